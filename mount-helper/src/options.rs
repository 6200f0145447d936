//! The `-o` list: `key`, `key=value`, separated by commas; a comma within double quotes belongs to its value.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One option of a `-o` list, without its quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOption {
    /// What stands before the first `=`.
    pub key: OsString,
    /// What stands behind it.
    pub value: Option<OsString>,
}

/// Splits a `-o` list. Empty options (`a,,b`) are nothing.
///
/// # Errors
/// A double quote that is never closed.
pub fn split(list: &OsStr) -> Result<Vec<MountOption>, String> {
    let mut options = Vec::new();
    let mut bytes = Vec::new();
    let mut equals = None;
    let mut quoted = false;
    for &byte in list.as_bytes() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => finish(&mut bytes, &mut equals, &mut options),
            b'=' if equals.is_none() && !quoted => {
                equals = Some(bytes.len());
                bytes.push(byte);
            }
            _ => bytes.push(byte),
        }
    }
    if quoted {
        return Err(format!("a double quote is not closed in the options {list:?}"));
    }
    finish(&mut bytes, &mut equals, &mut options);
    Ok(options)
}

fn finish(bytes: &mut Vec<u8>, equals: &mut Option<usize>, options: &mut Vec<MountOption>) {
    let option = std::mem::take(bytes);
    let equals = equals.take();
    if option.is_empty() {
        return;
    }
    let (key, value) = match equals {
        Some(at) => (option[..at].to_vec(), Some(OsString::from_vec(option[at + 1..].to_vec()))),
        None => (option, None),
    };
    options.push(MountOption { key: OsString::from_vec(key), value });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &str) -> Vec<(String, Option<String>)> {
        let text = |s: &OsString| s.to_str().unwrap().to_owned();
        split(OsStr::new(list)).unwrap().iter().map(|o| (text(&o.key), o.value.as_ref().map(text))).collect()
    }

    fn pair(key: &str, value: Option<&str>) -> (String, Option<String>) {
        (key.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn split_plain_list_gives_keys_and_values() {
        assert_eq!(
            pairs("ro,repair=leaks,,nofail"),
            [pair("ro", None), pair("repair", Some("leaks")), pair("nofail", None)]
        );
    }

    #[test]
    fn split_quoted_comma_stays_in_its_value() {
        assert_eq!(
            pairs(r#"data-file="/srv/a,b.raw",ro"#),
            [pair("data-file", Some("/srv/a,b.raw")), pair("ro", None)]
        );
    }

    #[test]
    fn split_second_equals_sign_belongs_to_the_value() {
        assert_eq!(pairs("a=b=c,d="), [pair("a", Some("b=c")), pair("d", Some(""))]);
    }

    #[test]
    fn split_open_quote_is_refused() {
        assert!(split(OsStr::new(r#"a="b,c"#)).unwrap_err().contains("not closed"));
    }

    #[test]
    fn split_bytes_that_are_no_utf8_are_kept() {
        let list = OsString::from_vec(b"data-file=/\xff\xfe".to_vec());
        assert_eq!(split(&list).unwrap()[0].value.as_ref().unwrap().as_bytes(), b"/\xff\xfe");
    }
}
