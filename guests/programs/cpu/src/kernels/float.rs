//! `float`: four single-precision numbers at a time (SSE): multiply, add, divide, square root, compare.

use super::{Done, mix};
use core::arch::x86_64::{
    _mm_add_ps, _mm_and_ps, _mm_cmplt_ps, _mm_div_ps, _mm_loadu_ps, _mm_mul_ps, _mm_set1_ps,
    _mm_sqrt_ps, _mm_storeu_ps, _mm_sub_ps,
};
use core::hint::black_box;

const NUMBERS: usize = 4096;
const ROUNDS: u64 = 640;

/// A number gone through is an item.
pub fn work(unit: u64) -> Done {
    let mut a: [f32; NUMBERS] = core::array::from_fn(|n| 1.0 + n as f32 / 64.0);
    let b: [f32; NUMBERS] = core::array::from_fn(|n| 0.5 + ((n as u64 + unit) % 31) as f32);
    let b = black_box(&b);
    for _ in 0..ROUNDS {
        for (a, b) in a.chunks_exact_mut(4).zip(b.chunks_exact(4)) {
            // SAFETY: each pointer is to four numbers, and every x86-64 processor has SSE.
            unsafe {
                let (x, y) = (_mm_loadu_ps(a.as_ptr()), _mm_loadu_ps(b.as_ptr()));
                let sum = _mm_add_ps(_mm_mul_ps(x, _mm_set1_ps(0.75)), y);
                let over = _mm_div_ps(sum, _mm_add_ps(y, _mm_set1_ps(1.25)));
                let root = _mm_sqrt_ps(_mm_add_ps(_mm_mul_ps(over, over), _mm_set1_ps(1.0)));
                let small = _mm_and_ps(_mm_cmplt_ps(root, y), _mm_set1_ps(0.125));
                _mm_storeu_ps(a.as_mut_ptr(), _mm_sub_ps(_mm_add_ps(root, over), small));
            }
        }
    }
    let checksum = a.iter().fold(0, |sum, x| mix(sum, x.to_bits().into()));
    Done {
        items: ROUNDS * NUMBERS as u64,
        checksum,
    }
}
