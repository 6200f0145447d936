//! The system's list of mounts, as this process sees it.
//!
//! Invariant: a mount is ours by its type alone, `fuse.instar`, which any user can give to a mount of his own: the names
//! and everything below them are of foreign origin.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// The list.
const LIST: &str = "/proc/self/mountinfo";
/// The type under which the kernel lists our mounts.
const OUR_TYPE: &[u8] = b"fuse.instar";
/// Place of the device in a line, counted from 0.
const DEVICE_FIELD: usize = 2;
/// Fields between device and mount point.
const FIELDS_BETWEEN: usize = 1;
/// What separates the fields with a fixed place from type, source and options.
const SEPARATOR: &[u8] = b"-";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Major and minor number of its device, as `major:minor`.
    pub(super) device: Vec<u8>,
    /// Where it is.
    pub point: PathBuf,
    kind: Vec<u8>,
    /// What it says that it is made from: of ours the image's name, made plain.
    pub source: OsString,
}

/// All mounts of ours that this process can see.
///
/// # Errors
/// Those of reading the list.
pub fn ours() -> io::Result<Vec<Listed>> {
    Ok(all()?.into_iter().filter(|mount| mount.kind == OUR_TYPE).collect())
}

/// All mounts that this process can see: of those at one place, the one on top is last.
pub(super) fn all() -> io::Result<Vec<Listed>> {
    Ok(parse(&fs::read(LIST)?))
}

pub(super) fn parse(list: &[u8]) -> Vec<Listed> {
    list.split(|byte| *byte == b'\n').filter_map(mount_of).collect()
}

fn mount_of(line: &[u8]) -> Option<Listed> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(DEVICE_FIELD)?.to_vec();
    let point = PathBuf::from(OsString::from_vec(plain(fields.nth(FIELDS_BETWEEN)?)));
    fields.find(|field| *field == SEPARATOR)?;
    let kind = fields.next()?.to_vec();
    let source = OsString::from_vec(plain(fields.next().unwrap_or_default()));
    Some(Listed { device, point, kind, source })
}

/// A field without the kernel's escapes: a backslash and three octal digits for what would break the list.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\').then(|| after.get(..3).and_then(octal)).flatten();
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn list_is_read_with_optional_fields_and_escapes() {
        let list = b"22 1 0:21 / /proc rw shared:5 - proc proc rw\n\
            90 1 0:44 / /srv/my\\040disk\\134\\012 ro,nosuid shared:7 master:1 - fuse.instar a.qcow2 ro,user_id=0\n\
            91 1 0:45 / /mnt ro - fuse.instar b ro\n\
            92 1 0:46 / /x ro - fuse.other fuse.instar ro\n\
            half a line";
        let listed = parse(list);
        assert_eq!((listed.len(), &listed[0].device[..]), (4, &b"0:21"[..]), "{listed:?}");
        let found: Vec<_> = listed.into_iter().filter(|mount| mount.kind == OUR_TYPE).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].point.as_os_str().as_bytes(), b"/srv/my disk\\\n");
        assert_eq!((found[0].source.to_str(), found[1].point.to_str()), (Some("a.qcow2"), Some("/mnt")));
    }

    #[test]
    fn escapes_that_are_none_are_kept() {
        assert_eq!(plain(br"a\9b\04"), br"a\9b\04");
        assert_eq!(plain(br"\777"), br"\777");
    }
}
