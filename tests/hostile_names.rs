//! Names inside an image are its author's words: whatever they are, no terminal, document, log or folder is driven by
//! them. Each name is put in the place of one of the same length that the real qemu-img wrote.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::mount::Mount;
use support::program::{document, instar};
use support::tools::{self, must, stderr, stdout};
use tempfile::TempDir;

/// What each name is put in the place of; as long as the names below.
const SNAPSHOT: &[u8] = b"snapshot-name-24-bytes--";
const BITMAP: &[u8] = b"bitmap-name---24-bytes--";
const BACKING: &[u8] = b"backing-name--24-bytes--";

/// Names of 24 bytes.
const HOSTILE: [&[u8]; 8] = [
    b"\x1b[2J\x1b]0;owned\x07 clear it!",
    b"line\nverdict: consistent\n",
    b"../../../../../etc/passwd",
    b"\0\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f\x10\x7f\x80\x9b\xc2\x9b\xe2\x80",
    b"\xff\xfe\xfd\xf8\x88\x80\x80\x80\xc0\xaf..\xc0\xaf..\xed\xa0\x80\xf4\x90\x80\x80",
    "\u{202e}gpj.exe\u{202c}\u{200b}\u{feff}\u{2066}".as_bytes(),
    b"\",\"verdict\":\"consistent\"",
    b"<script>alert(1)</script",
];

/// Replaces `old` wherever it stands in the file; it must.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let mut new = new.to_vec();
    new.resize(old.len(), b'.');
    let places: Vec<usize> =
        bytes.windows(old.len()).enumerate().filter(|(_, part)| *part == old).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{} is not in the image", String::from_utf8_lossy(old));
    for at in places {
        bytes[at..at + old.len()].copy_from_slice(&new);
    }
}

fn text(name: &[u8]) -> &str {
    str::from_utf8(name).expect("a plain name")
}

/// An image with a snapshot and a bitmap called `name`, and one below which such a name should be.
fn images(name: &[u8]) -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [image, overlay] = ["disk.qcow2", "over.qcow2"].map(|name| folder.path().join(name));
    must(tools::qemu_img(["create", "-q", "-f", "qcow2"]).arg(&image).arg("1M"));
    must(tools::qemu_io("qcow2", ["write -q -P 1 0 64k"]).arg(&image));
    must(tools::qemu_img(["snapshot", "-c", text(SNAPSHOT)]).arg(&image));
    must(tools::qemu_img(["bitmap", "--add"]).arg(&image).arg(text(BITMAP)));
    let below = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", text(BACKING)];
    must(tools::qemu_img(below).arg(&overlay).arg("1M"));
    for (path, names) in [(&image, &[SNAPSHOT, BITMAP][..]), (&overlay, &[BACKING][..])] {
        let mut bytes = fs::read(path).expect("an image");
        names.iter().for_each(|old| replace(&mut bytes, old, name));
        fs::write(path, bytes).expect("an image");
    }
    (folder, image, overlay)
}

/// Text is valid, and holds no control character but the ends of its lines and no mark that turns text round.
fn assert_harmless(what: &str, bytes: &[u8]) {
    let text = str::from_utf8(bytes).unwrap_or_else(|error| panic!("{what}: {error}: {bytes:?}"));
    let bad = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    assert!(!text.contains(bad), "{what}: {text:?}");
}

fn assert_output_is_harmless(what: &str, output: &Output) {
    assert_harmless(what, &output.stdout);
    assert_harmless(what, &output.stderr);
}

fn arguments<'a>(words: &'a [&'a str], image: &'a Path) -> Vec<&'a str> {
    let path = image.to_str().expect("a plain path");
    words.iter().copied().chain([path]).collect()
}

#[test]
fn names_in_images_drive_no_terminal_no_document_and_no_log() {
    need!(tools::qemu());
    for name in HOSTILE {
        let (_folder, image, overlay) = images(name);
        let escaped = String::from_utf8_lossy(name).into_owned();
        for words in [&["info"][..], &["check"], &["check", "--chain"], &["check", "--log=trace"]] {
            for path in [&image, &overlay] {
                let output = tools::run(&mut instar(arguments(words, path)));
                let what = format!("{words:?} of {escaped:?}");
                assert_output_is_harmless(&what, &output);
                // A line of its own would be one that the image's author wrote.
                let forged = stdout(&output).lines().any(|line| line.trim() == "verdict: consistent");
                assert!(!forged, "{what}: {}", stdout(&output));
            }
        }
        for words in [&["info", "--output=json"][..], &["check", "--output=json"]] {
            let output = tools::run(&mut instar(arguments(words, &image)));
            assert_output_is_harmless("a document", &output);
            assert!(document(&output).is_object());
        }
    }
}

#[test]
fn snapshots_with_hostile_names_are_files_of_their_folder_with_plain_names() {
    need!(tools::qemu(), tools::fuse(), tools::program("fusermount3"));
    for name in HOSTILE {
        let (_folder, image, _) = images(name);
        let mount = Mount::new(&image, ["--log=trace"]);
        assert_harmless("the mount's words", mount.said.as_bytes());
        let entries = fs::read_dir(mount.path("snapshots")).expect("a folder of snapshots");
        let names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_harmless("a file name", names[0].as_encoded_bytes());
        let len = fs::metadata(mount.path("snapshots").join(&names[0])).expect("the snapshot's disk").len();
        assert_eq!(len, 1 << 20, "{}", names[0].display());
        for document in ["report.json", "health", "metrics"] {
            assert_harmless(document, mount.document(document).as_bytes());
        }
    }
}

#[test]
fn backing_names_open_nothing_and_are_told_escaped() {
    need!(tools::qemu(), tools::fuse(), tools::program("fusermount3"));
    for name in HOSTILE {
        let (_folder, _, overlay) = images(name);
        let output = match Mount::try_new(&overlay, ["--quiet"]) {
            Ok(_) => panic!("an image whose backing file nobody named is served"),
            Err(output) => output,
        };
        assert_output_is_harmless("a refusal", &output);
        assert_eq!(tools::code(&output), 1, "{}", stderr(&output));
    }
}
