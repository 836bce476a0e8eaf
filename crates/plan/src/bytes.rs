//! Numbers of bytes as people read them.

/// Bytes in GiB.
#[must_use]
pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

/// `1.25 GiB`, or `1.2 MiB` of little.
#[must_use]
pub fn size(bytes: u64) -> String {
    match gib(bytes) {
        few if few < 0.1 => format!("{:.1} MiB", 1024.0 * few),
        many => format!("{many:.2} GiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_told_in_smaller_units() {
        assert_eq!(size(1 << 20), "1.0 MiB");
        assert_eq!(size(5 << 28), "1.25 GiB");
    }
}
