//! Figures as people read them.

/// Bandwidth of `bytes` in `us` microseconds, in Mbit/s; 0 if there was no time.
#[must_use]
pub fn mbit_s(bytes: u64, us: u64) -> f64 {
    if us == 0 {
        0.0
    } else {
        bytes as f64 * 8.0 / us as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_a_microsecond_is_eight_megabits_a_second() {
        assert_eq!(mbit_s(1_000_000, 1_000_000), 8.0);
        assert_eq!(mbit_s(1, 0), 0.0);
    }
}
