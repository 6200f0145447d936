//! Numbers for people.

/// Bytes in the largest binary unit that keeps the number at one or above, with one decimal where it matters:
/// `512 bytes`, `64 KiB`, `1.5 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut divisor = 1_u64;
    while unit + 1 < UNITS.len() && count / divisor >= 1024 {
        divisor <<= 10;
        unit += 1;
    }
    let tenths = count % divisor * 10 / divisor.max(1);
    let name = if count == 1 { "byte" } else { UNITS[unit] };
    match tenths {
        0 => format!("{} {name}", count / divisor),
        _ => format!("{}.{tenths} {name}", count / divisor),
    }
}

/// `1 leak`, `2 leaks`.
#[must_use]
pub fn counted(count: u64, singular: &str, plural: &str) -> String {
    format!("{count} {}", if count == 1 { singular } else { plural })
}

#[cfg(test)]
mod tests {
    use super::{bytes, counted};

    #[test]
    fn bytes_are_told_in_the_largest_fitting_unit() {
        for (count, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn counted_uses_the_singular_for_one_only() {
        assert_eq!(counted(1, "leak", "leaks"), "1 leak");
        assert_eq!(counted(0, "leak", "leaks"), "0 leaks");
    }
}
