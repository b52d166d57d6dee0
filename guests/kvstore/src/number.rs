//! Integers in decimal, as Redis reads and writes them.

/// Digits of the longest 64-bit integer, sign included.
pub(crate) const DIGITS_MAX: usize = 20;

/// Reads an integer: an optional minus and digits without a leading zero, and nothing else.
pub(crate) fn parse(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', digits) => (true, digits),
        _ => (false, text),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [] | [b'0', ..] => return None,
        _ if digits.len() >= DIGITS_MAX => return None,
        _ => {}
    }
    // At most 19 digits: a u64 holds every such number.
    let mut magnitude = 0u64;
    for &byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit);
    }
    if negative {
        0i64.checked_sub_unsigned(magnitude)
    } else {
        magnitude.try_into().ok()
    }
}

/// Writes `value` to the end of `buffer` and returns that end.
pub(crate) fn format(value: i64, buffer: &mut [u8; DIGITS_MAX]) -> &[u8] {
    let mut rest = value.unsigned_abs();
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        buffer[at] = b'-';
    }
    &buffer[at..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_redis_refuses() {
        for text in [
            "",
            "-",
            "+1",
            "01",
            "-0",
            "-01",
            " 1",
            "1 ",
            "1a",
            "0x1",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
            "10000000000000000000",
            "99999999999999999999",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(value in prop_oneof![any::<i64>(), -20i64..20, Just(i64::MIN), Just(i64::MAX)]) {
            let mut buffer = [0; DIGITS_MAX];
            let text = format(value, &mut buffer);
            prop_assert_eq!(core::str::from_utf8(text), Ok(&*value.to_string()));
            prop_assert_eq!(parse(text), Some(value));
        }

        #[test]
        fn reads_nothing_it_would_not_write(text in "[-0-9a ]{0,21}") {
            let mut buffer = [0; DIGITS_MAX];
            if let Some(value) = parse(text.as_bytes()) {
                prop_assert_eq!(format(value, &mut buffer), text.as_bytes());
            } else {
                prop_assert!(text.parse::<i64>().ok().is_none_or(|v| v.to_string() != text));
            }
        }
    }
}
