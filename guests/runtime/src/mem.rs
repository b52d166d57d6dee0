//! `memcpy` and its kin (mem.s), which the compiler calls by name. The host's tests link them too, in
//! place of the C library's.

core::arch::global_asm!(include_str!("mem.s"));

#[cfg(test)]
mod tests {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" {
        fn memcpy(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void;
        fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void;
        fn memset(to: *mut c_void, byte: c_int, len: usize) -> *mut c_void;
        fn memcmp(one: *const c_void, other: *const c_void, len: usize) -> c_int;
        fn bcmp(one: *const c_void, other: *const c_void, len: usize) -> c_int;
        fn strlen(text: *const i8) -> usize;
    }

    const SIZE: usize = 700;
    /// Every length at which the code changes its way, and those beside it.
    const LENGTHS: [usize; 25] = [
        0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 255, 256, 257, 258, 300,
        400,
    ];

    fn numbered() -> [u8; SIZE] {
        core::array::from_fn(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8))
    }

    #[test]
    fn memcpy_copies_so_much_and_no_more() {
        let source = numbered();
        for len in LENGTHS {
            for (from, to) in [(0, 0), (3, 1), (17, 40)] {
                let mut target = [0xee; SIZE];
                // SAFETY: both ranges lie within their arrays.
                let result = unsafe {
                    memcpy(
                        target[to..].as_mut_ptr().cast(),
                        source[from..].as_ptr().cast(),
                        len,
                    )
                };
                assert_eq!(result.cast(), target[to..].as_mut_ptr());
                for (i, byte) in target.into_iter().enumerate() {
                    let inside = (to..to + len).contains(&i);
                    let expected = if inside { source[from + i - to] } else { 0xee };
                    assert_eq!(byte, expected, "length {len} from {from} to {to}, byte {i}");
                }
            }
        }
    }

    #[test]
    fn memmove_overlaps_both_ways() {
        for len in LENGTHS {
            for (from, to) in [
                (100, 100),
                (100, 101),
                (101, 100),
                (100, 117),
                (117, 100),
                (0, 300),
                (200, 80),
            ] {
                let source = numbered();
                let mut bytes = source;
                let start = bytes.as_mut_ptr();
                // SAFETY: both ranges lie within the array.
                unsafe { memmove(start.add(to).cast(), start.add(from).cast(), len) };
                for (i, byte) in bytes.into_iter().enumerate() {
                    let inside = (to..to + len).contains(&i);
                    let expected = source[if inside { from + i - to } else { i }];
                    assert_eq!(byte, expected, "length {len} from {from} to {to}, byte {i}");
                }
            }
        }
    }

    #[test]
    fn memset_fills_so_much_and_no_more() {
        for len in LENGTHS {
            let mut bytes = [1u8; SIZE];
            // SAFETY: the range lies within the array.
            unsafe { memset(bytes[5..].as_mut_ptr().cast(), 0x1ff, len) };
            for (i, byte) in bytes.into_iter().enumerate() {
                assert_eq!(
                    byte == 0xff,
                    (5..5 + len).contains(&i),
                    "length {len}, byte {i}"
                );
            }
        }
    }

    #[test]
    fn memcmp_finds_the_first_difference_and_its_sign() {
        for len in LENGTHS {
            let one = numbered();
            let compare = |other: &[u8; SIZE]| {
                // SAFETY: both ranges lie within their arrays.
                unsafe {
                    let ordered = memcmp(one.as_ptr().cast(), other.as_ptr().cast(), len);
                    let equal = bcmp(one.as_ptr().cast(), other.as_ptr().cast(), len);
                    assert_eq!(ordered == 0, equal == 0);
                    ordered.signum()
                }
            };
            let mut beyond = one;
            beyond[len] ^= 0xff;
            assert_eq!(compare(&beyond), 0, "length {len}");
            for at in 0..len {
                for flip in [0x80, 0x01] {
                    let mut other = one;
                    other[at] ^= flip;
                    if at + 1 < len {
                        other[at + 1] = !other[at + 1]; // must not matter
                    }
                    let expected = if one[at] < other[at] { -1 } else { 1 };
                    assert_eq!(compare(&other), expected, "length {len}, byte {at}");
                }
            }
        }
    }

    #[test]
    fn strlen_counts_to_the_nul() {
        for text in [c"", c"a", c"command line"] {
            // SAFETY: the text ends with NUL.
            assert_eq!(unsafe { strlen(text.as_ptr()) }, text.to_bytes().len());
        }
    }
}
