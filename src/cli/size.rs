//! Sizes as people write them: `268435456`, `256M`, `256MiB`.

/// Bytes meant by `text`: a whole number, then nothing or one of K, M, G, T (with or without `iB` or `B`),
/// each 1024 times the one before.
///
/// # Errors
/// A sentence that names what was given.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit) {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(format!("unit '{}' is not one of K, M, G, T", unit.escape_default())),
    };
    let number: u64 = number.parse().map_err(|_| "expected a whole number, as in 256M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{number}{unit} is over 2^64 bytes"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn size_with_each_unit_is_scaled() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("4k", 4096), ("256M", 1 << 28), ("2GiB", 2 << 30), ("1TB", 1 << 40)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn size_that_is_none_is_refused() {
        for text in ["", "M", "-1", "1.5G", "1P", "18446744073709551615K", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
