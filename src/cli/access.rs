//! Who may read what is mounted.
//!
//! Invariant: without these options nobody gets at the disk who could not read the image itself: the mount lets in its
//! owner, and the files carry the image's read permissions. Letting others in takes two things that are asked
//! for apart, a mount that admits them and files that they may read. Nothing is ever writable.

use clap::Args;

use crate::fuse::{Admitted, Tree};

/// The read permission bits of a mode; there are no others on a disk that is served read-only.
const READ_BITS: u16 = 0o444;
/// The largest mask of permission bits.
const UMASK_MAX: u16 = 0o777;

/// Owner and permissions of the served files.
#[derive(Debug, Clone, Default, Args)]
pub struct AccessArgs {
    /// Let every user in whom the permissions of the files allow to read. Users other than root need
    /// `user_allow_other` in /etc/fuse.conf for that.
    #[arg(long)]
    pub allow_other: bool,
    /// Owner of the files, as a number. [default: the user who mounts]
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(..i64::from(u32::MAX)))]
    pub uid: Option<u32>,
    /// Group of the files, as a number. [default: the group of the user who mounts]
    #[arg(long, value_name = "GID", value_parser = clap::value_parser!(u32).range(..i64::from(u32::MAX)))]
    pub gid: Option<u32>,
    /// Permissions to keep from the files, in octal: 077 leaves them to their owner. [default: readable for the owner,
    /// and for others as far as the image is]
    #[arg(long, value_name = "MASK", value_parser = umask)]
    pub umask: Option<u16>,
}

impl AccessArgs {
    /// Whom the mount lets in.
    #[must_use]
    pub fn admitted(&self) -> Admitted {
        if self.allow_other { Admitted::Everybody } else { Admitted::Owner }
    }

    /// Gives the files the owner and the permissions that were asked for.
    pub fn put_on(&self, tree: &mut Tree) {
        tree.uid = self.uid.unwrap_or(tree.uid);
        tree.gid = self.gid.unwrap_or(tree.gid);
        tree.file_mode = self.umask.map_or(tree.file_mode, |mask| READ_BITS & !mask);
    }
}

fn umask(text: &str) -> Result<u16, String> {
    let is_octal = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u16::from_str_radix(text, 8) {
        Ok(mask) if is_octal && mask <= UMASK_MAX => Ok(mask),
        _ => Err("allowed are 0 to 777, in octal".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::Content;

    #[test]
    fn umask_is_octal_and_bounded() {
        assert_eq!((umask("077"), umask("0"), umask("0777")), (Ok(0o77), Ok(0), Ok(0o777)));
        for wrong in ["", "8", "1000", "+7", "-1", "rwx", "99999999999"] {
            assert!(umask(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_get_what_was_asked_for_and_keep_the_rest() {
        let mut tree = Tree::new(Content::Directory);
        (tree.uid, tree.gid, tree.file_mode) = (5, 6, 0o440);
        AccessArgs::default().put_on(&mut tree);
        assert_eq!((tree.uid, tree.gid, tree.file_mode), (5, 6, 0o440));
        let asked = AccessArgs { uid: Some(0), umask: Some(0o027), ..AccessArgs::default() };
        asked.put_on(&mut tree);
        assert_eq!((tree.uid, tree.gid, tree.file_mode), (0, 6, 0o440));
        AccessArgs { umask: Some(0), ..AccessArgs::default() }.put_on(&mut tree);
        assert_eq!(tree.file_mode, 0o444);
    }
}
