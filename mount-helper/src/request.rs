//! What mount(8) asked for, and the `instar-mount` call that it means.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::options::{self, MountOption};

/// Options of `instar-mount` that take a value, by the same name: `repair=leaks` means `--repair=leaks`.
const WITH_VALUE: &[&str] = &[
    "repair",
    "decide",
    "undo-dir",
    "state-dir",
    "sandbox",
    "memory",
    "data-file",
    "backing",
    "allow-chain",
    "backing-format",
    "on-damage",
    "cache-size",
    "transport",
    "uid",
    "gid",
    "umask",
    "log",
    "log-to",
];
/// Options of `instar-mount` without a value: `preview` means `--preview`. `allow_other` is spelled as for every other
/// FUSE file system, and means `--allow-other`.
const WITHOUT_VALUE: &[&str] = &["preview", "quiet", "allow_other"];
/// Options that are for mount(8), fstab or systemd, or that a FUSE mount fulfils by itself. The disk is served
/// read-only in any case, so `rw`, which mount(8) adds by itself, asks for nothing that could be lost.
const NOT_FOR_US: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "silent",
    "loud",
    "comment",
];

/// One call of the helper.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    image: OsString,
    mount_point: OsString,
    passed_on: Vec<OsString>,
    /// `-f`: everything but the mount itself.
    pub fake: bool,
    /// `-v`: show the call.
    pub verbose: bool,
}

impl Request {
    /// Reads the helper's arguments, as mount(8) gives them.
    ///
    /// # Errors
    /// A sentence that names the argument that is not understood or not there.
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut flags = Flags::default();
        let mut places = Vec::new();
        let mut options = Vec::new();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let bytes = argument.as_bytes();
            if bytes.len() < 2 || bytes[0] != b'-' {
                places.push(argument);
                continue;
            }
            if let Some((letter, value)) = flags.take_letters(bytes)? {
                let value = match value {
                    Some(value) => value,
                    None => arguments.next().ok_or_else(|| format!("-{letter} needs a value"))?,
                };
                if letter == 'o' {
                    options.extend(options::split(&value)?);
                }
            }
        }
        let [image, mount_point] = <[OsString; 2]>::try_from(places)
            .map_err(|places| format!("an image and a mount point are needed, {} given", places.len()))?;
        let passed_on = translate(&options, flags.sloppy)?;
        Ok(Self { image, mount_point, passed_on, fake: flags.fake, verbose: flags.verbose })
    }

    /// The arguments for `instar-mount`.
    #[must_use]
    pub fn instar_mount_arguments(&self) -> Vec<OsString> {
        let mut arguments = self.passed_on.clone();
        arguments.push("--".into());
        arguments.extend([self.image.clone(), self.mount_point.clone()]);
        arguments
    }
}

#[derive(Debug, Default)]
struct Flags {
    fake: bool,
    sloppy: bool,
    verbose: bool,
}

impl Flags {
    /// Takes a bundle of one-letter flags. A letter that has a value ends the bundle and is given back, with the
    /// rest of the bundle as its value if there is any.
    fn take_letters(&mut self, bundle: &[u8]) -> Result<Option<(char, Option<OsString>)>, String> {
        for (at, &letter) in bundle.iter().enumerate().skip(1) {
            match letter {
                b'f' => self.fake = true,
                b's' => self.sloppy = true,
                b'v' => self.verbose = true,
                b'n' | b'r' | b'w' => {}
                b'N' => {
                    return Err("-N: mount in another namespace with nsenter(1) instead".to_owned());
                }
                b'o' | b't' => {
                    let rest = &bundle[at + 1..];
                    let value = (!rest.is_empty()).then(|| OsString::from_vec(rest.to_vec()));
                    return Ok(Some((char::from(letter), value)));
                }
                _ => return Err(format!("unknown flag in {:?}", OsStr::from_bytes(bundle))),
            }
        }
        Ok(None)
    }
}

fn translate(options: &[MountOption], sloppy: bool) -> Result<Vec<OsString>, String> {
    let mut arguments = Vec::new();
    for option in options {
        let key = option.key.to_str().unwrap_or_default();
        let for_us = match &option.value {
            Some(value) if WITH_VALUE.contains(&key) => {
                let mut argument = OsString::from(format!("--{key}="));
                argument.push(value);
                arguments.push(argument);
                true
            }
            None if WITHOUT_VALUE.contains(&key) => {
                arguments.push(format!("--{}", key.replace('_', "-")).into());
                true
            }
            _ => false,
        };
        let for_others = NOT_FOR_US.contains(&key) || key.starts_with("x-") || key.starts_with("X-");
        if !for_us && !for_others && !sloppy {
            return Err(refusal(option, key));
        }
    }
    Ok(arguments)
}

fn refusal(option: &MountOption, key: &str) -> String {
    if WITH_VALUE.contains(&key) {
        format!("the option {key} needs a value")
    } else if WITHOUT_VALUE.contains(&key) {
        format!("the option {key} takes no value")
    } else {
        format!("unknown option {:?}", option.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Request, String> {
        Request::parse(arguments.iter().map(OsString::from))
    }

    fn call(arguments: &[&str]) -> Vec<String> {
        let request = parse(arguments).unwrap();
        request
            .instar_mount_arguments()
            .iter()
            .map(|argument| argument.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn parse_call_of_mount8_gives_the_instar_mount_call() {
        assert_eq!(
            call(&["a.qcow2", "/mnt", "-o", "rw,repair=leaks,preview"]),
            ["--repair=leaks", "--preview", "--", "a.qcow2", "/mnt"]
        );
        assert_eq!(
            call(&[
                "a",
                "/m",
                "-o",
                "repair=all,decide=orphan-data=free,decide=orphan-table=attach,undo-dir=/u"
            ]),
            [
                "--repair=all",
                "--decide=orphan-data=free",
                "--decide=orphan-table=attach",
                "--undo-dir=/u",
                "--",
                "a",
                "/m"
            ]
        );
        assert_eq!(
            call(&["-n", "-orepair=all", "-t", "instar", "a.qcow2", "/m"]),
            ["--repair=all", "--", "a.qcow2", "/m"]
        );
    }

    #[test]
    fn parse_options_of_fstab_and_systemd_are_left_out() {
        let call = call(&["a", "b", "-o", "defaults,nofail,x-systemd.automount,_netdev,comment=x,ro"]);
        assert_eq!(call, ["--", "a", "b"]);
    }

    #[test]
    fn parse_owner_and_permissions_are_passed_on() {
        assert_eq!(
            call(&[
                "a",
                "b",
                "-o",
                "allow_other,uid=64055,gid=108,umask=027,user=root,noauto,x-systemd.automount"
            ]),
            ["--allow-other", "--uid=64055", "--gid=108", "--umask=027", "--", "a", "b"]
        );
    }

    #[test]
    fn parse_image_that_looks_like_an_option_stays_an_image() {
        assert_eq!(call(&["./-v", "/m"]), ["--", "./-v", "/m"]);
        assert!(parse(&["-x.qcow2", "/m"]).unwrap_err().contains("unknown flag"));
    }

    #[test]
    fn parse_other_namespace_is_refused() {
        assert!(parse(&["a", "b", "-N", "/proc/1/ns/mnt"]).unwrap_err().contains("nsenter"));
    }

    #[test]
    fn parse_unknown_option_is_refused_by_name_unless_sloppy() {
        assert!(parse(&["a", "b", "-o", "repiar=all"]).unwrap_err().contains("repiar"));
        assert!(parse(&["a", "b", "-s", "-o", "repiar=all"]).is_ok());
    }

    #[test]
    fn parse_value_that_is_missing_or_too_much_is_refused() {
        assert!(parse(&["a", "b", "-o", "repair"]).unwrap_err().contains("needs a value"));
        assert!(parse(&["a", "b", "-o", "preview=1"]).unwrap_err().contains("takes no value"));
        assert!(parse(&["a", "b", "-o"]).unwrap_err().contains("needs a value"));
    }

    #[test]
    fn parse_wrong_number_of_places_is_refused() {
        assert!(parse(&["a"]).unwrap_err().contains("1 given"));
        assert!(parse(&["a", "b", "c"]).unwrap_err().contains("3 given"));
    }

    #[test]
    fn parse_bundled_flags_are_each_taken() {
        let request = parse(&["-fv", "a", "b"]).unwrap();
        assert!(request.fake && request.verbose);
        assert!(parse(&["-fq", "a", "b"]).unwrap_err().contains("-fq"));
    }
}
