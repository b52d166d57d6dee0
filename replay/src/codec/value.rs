//! Plain values as bytes. This is the one module that uses bincode; everything decoded is under a size limit.

use crate::error::LogError;
use serde::{Serialize, de::DeserializeOwned};

/// Most bytes [`from_bytes`] accepts: room for the largest state there is, that of a disk with 64 writes of
/// 256 KiB under way.
pub const BLOB_MAX: usize = 32 << 20;
/// Most bytes that bincode may count for one encoded byte. Its limit is on what values take when decoded,
/// not on what they take encoded: a number of 128 bits, or of 64, may be one byte.
const COUNTED_MAX: usize = 16;

/// A value for which bincode counts at most `COUNTED` bytes, and how many encoded bytes it took.
fn decode<const COUNTED: usize, T: DeserializeOwned>(
    bytes: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    let config = bincode::config::standard().with_limit::<COUNTED>();
    bincode::serde::decode_from_slice(bytes, config)
}

/// A value and how many bytes it took. Whatever is whole in `bytes` is decoded; the limit is there so that
/// a length within, which nobody has checked, sizes no allocation far beyond what was received.
fn decode_any<T: DeserializeOwned>(
    bytes: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    const SMALL: usize = 1 << 10;
    const MEDIUM: usize = 64 << 10;
    const LARGE: usize = 1 << 20;
    let length = bytes.len();
    if length <= SMALL {
        decode::<{ SMALL * COUNTED_MAX }, T>(bytes)
    } else if length <= MEDIUM {
        decode::<{ MEDIUM * COUNTED_MAX }, T>(bytes)
    } else if length <= LARGE {
        decode::<{ LARGE * COUNTED_MAX }, T>(bytes)
    } else {
        decode::<{ BLOB_MAX * COUNTED_MAX }, T>(bytes)
    }
}

/// Any plain value as bytes (device states, configurations, headers).
///
/// # Panics
/// If the value cannot be serialised at all, which is a bug of its type.
#[must_use]
pub fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("plain values serialise")
}

/// The value in `bytes`, which must hold nothing else and at most [`BLOB_MAX`] bytes.
///
/// # Errors
/// [`LogError::Malformed`] for anything but exactly one value.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, LogError> {
    let malformed = |what: String, offset: usize| LogError::Malformed {
        what,
        offset: offset as u64,
        entry: 0,
    };
    if bytes.len() > BLOB_MAX {
        return Err(malformed("a value of too many bytes".into(), BLOB_MAX));
    }
    let (value, used) =
        decode_any(bytes).map_err(|e| malformed(format!("undecodable value: {e}"), 0))?;
    if used != bytes.len() {
        return Err(malformed("bytes left over after a value".into(), used));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is encoded in `length` bytes is decoded.
    fn returns<T>(value: &T, length: usize)
    where
        T: Serialize + DeserializeOwned + PartialEq,
    {
        let bytes = to_bytes(value);
        assert_eq!(bytes.len(), length);
        assert!(from_bytes::<T>(&bytes).unwrap() == *value);
    }

    #[test]
    fn the_largest_values_are_decoded_whatever_they_are_made_of() {
        // Where the limit steps, and the largest of all: a length of 5 bytes, or of 3, before them.
        for length in [1 << 10, 1 << 16] {
            returns(&vec![0u64; length - 3], length);
            returns(&vec![0u128; length - 3], length);
            let count = (length - 3) / 9;
            let prefix = if count <= 250 { 1 } else { 3 };
            returns(&vec![u64::MAX; count], prefix + 9 * count);
            returns(&"x".repeat(length - 3), length);
        }
        returns(&vec![0u64; (1 << 20) - 5], 1 << 20);
        returns(&vec![(0u32, false, Some(0u16)); 1 << 20], 5 + (4 << 20));
        returns(&vec![0xaau8; BLOB_MAX - 5], BLOB_MAX);
        returns(&"x".repeat(BLOB_MAX - 5), BLOB_MAX);
    }

    #[test]
    fn a_value_beyond_the_limit_is_refused() {
        let bytes = to_bytes(&vec![0xaau8; BLOB_MAX - 4]);
        let error = from_bytes::<Vec<u8>>(&bytes).unwrap_err();
        assert!(error.to_string().contains("too many bytes"), "{error}");
        // A length that is not there is refused before it is made room for.
        let lengths = [u64::MAX, 1 << 40, 1 << 24];
        for bytes in lengths.map(|length| to_bytes(&length)) {
            let error = from_bytes::<String>(&bytes).unwrap_err();
            assert!(error.to_string().contains("LimitExceeded"), "{error}");
        }
    }
}
