//! Vectors as arrays of lanes, and as what the host's SSE2 works on.

use std::arch::x86_64::__m128i;

macro_rules! lanes {
    ($to:ident, $from:ident, $lane:ty, $count:expr) => {
        #[doc = concat!("The lanes of a vector, as `", stringify!($lane), "`.")]
        #[inline(always)]
        pub(crate) fn $to(vector: u128) -> [$lane; $count] {
            // SAFETY: same size, and every bit pattern is a value of both.
            unsafe { std::mem::transmute(vector) }
        }

        #[doc = concat!("A vector of `", stringify!($lane), "` lanes.")]
        #[inline(always)]
        pub(crate) fn $from(lanes: [$lane; $count]) -> u128 {
            // SAFETY: same size, and every bit pattern is a value of both.
            unsafe { std::mem::transmute(lanes) }
        }
    };
}

/// The bytes of a vector.
#[inline(always)]
pub(crate) fn u8s(vector: u128) -> [u8; 16] {
    vector.to_le_bytes()
}

/// A vector of bytes.
#[inline(always)]
pub(crate) fn from_u8s(lanes: [u8; 16]) -> u128 {
    u128::from_le_bytes(lanes)
}

lanes!(i8s, from_i8s, i8, 16);
lanes!(u16s, from_u16s, u16, 8);
lanes!(i16s, from_i16s, i16, 8);
lanes!(u32s, from_u32s, u32, 4);
lanes!(i32s, from_i32s, i32, 4);
lanes!(u64s, from_u64s, u64, 2);
lanes!(i64s, from_i64s, i64, 2);

/// For the host's instructions.
#[inline(always)]
pub(crate) fn host(vector: u128) -> __m128i {
    // SAFETY: same size, and every bit pattern is a value of both.
    unsafe { std::mem::transmute(vector) }
}

/// From the host's instructions.
#[inline(always)]
pub(crate) fn guest(vector: __m128i) -> u128 {
    // SAFETY: same size, and every bit pattern is a value of both.
    unsafe { std::mem::transmute(vector) }
}

/// Both lanes, of a vector each, that `f` makes of those of two.
#[inline(always)]
pub(crate) fn zip<T: Copy, U: Copy, R, const N: usize>(
    a: [T; N],
    b: [U; N],
    f: impl Fn(T, U) -> R,
) -> [R; N] {
    std::array::from_fn(|n| f(a[n], b[n]))
}
