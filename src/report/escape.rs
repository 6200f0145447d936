//! The one way in which bytes of foreign origin (names inside an image, paths) reach a terminal or a document.
//!
//! Invariant: the result holds no control character, no character that changes the direction or the look of
//! the text round it, and no invalid UTF-8; different inputs give different results.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `bytes` as text that is safe to print: what is not plain is written as `\n`, `\t`, `\\`, `\u{202e}` or, where
/// it is no UTF-8, `\xff`.
#[must_use]
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            push_char(&mut safe, c);
        }
        for byte in chunk.invalid() {
            push_formatted(&mut safe, format_args!("\\x{byte:02x}"));
        }
    }
    safe
}

/// [`escape_bytes`] of a path.
#[must_use]
pub fn escape_path(path: &Path) -> String {
    escape_bytes(path.as_os_str().as_bytes())
}

/// As [`escape_bytes`] for a message that may hold names escaped before: backslashes stay as they are.
#[must_use]
pub fn escape_message(message: &str) -> String {
    let mut safe = String::with_capacity(message.len());
    for c in message.chars() {
        match c {
            '\\' => safe.push(c),
            _ => push_char(&mut safe, c),
        }
    }
    safe
}

fn push_char(safe: &mut String, c: char) {
    match c {
        '\\' => safe.push_str("\\\\"),
        '\n' => safe.push_str("\\n"),
        '\t' => safe.push_str("\\t"),
        _ if is_deceptive(c) => push_formatted(safe, format_args!("\\u{{{:x}}}", u32::from(c))),
        _ => safe.push(c),
    }
}

fn push_formatted(safe: &mut String, what: std::fmt::Arguments<'_>) {
    // A string never refuses.
    safe.write_fmt(what).unwrap_or_default();
}

/// True for characters that are not seen for what they are: controls, direction marks, invisible and
/// line-breaking ones, tags, variation selectors, and code points that no character will ever have.
fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffc}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
        || u32::from(c) & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::escape_bytes;

    #[test]
    fn plain_names_stay_as_they_are() {
        for name in ["before upgrade", "срез-1", "備份", "naïve \"quoted\"", ""] {
            assert_eq!(escape_bytes(name.as_bytes()), name);
        }
    }

    #[test]
    fn hostile_names_are_disarmed() {
        for (name, safe) in [
            (&b"\x1b[2Jgone"[..], "\\u{1b}[2Jgone"),
            (b"a\nb\tc\r", "a\\nb\\tc\\u{d}"),
            (b"back\\slash", "back\\\\slash"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"cut \xe2\x82", "cut \\xe2\\x82"),
            ("exe\u{202e}gpj.".as_bytes(), "exe\\u{202e}gpj."),
            ("\u{2066}x\u{2069}\u{200b}".as_bytes(), "\\u{2066}x\\u{2069}\\u{200b}"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
        ] {
            assert_eq!(escape_bytes(name), safe);
        }
    }

    #[test]
    fn escaping_keeps_different_names_different() {
        assert_ne!(escape_bytes(b"\\n"), escape_bytes(b"\n"));
        assert_ne!(escape_bytes(b"\\xff"), escape_bytes(b"\xff"));
    }
}
