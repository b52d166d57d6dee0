//! `branches`: quicksort of random numbers. Compares and branches nobody can foretell.

use super::{Done, mix, random};

const NUMBERS: usize = 32 * 1024;
const SORTS: u64 = 4;

/// Sorts; the larger part is left to the loop, so that the stack stays small.
fn quicksort(mut part: &mut [u32]) {
    while part.len() > 12 {
        let (last, middle) = (part.len() - 1, part.len() / 2);
        let (a, b, c) = (part[0], part[middle], part[last]);
        let pivot = a.min(b).max(a.max(b).min(c));
        let (mut low, mut high) = (0, last);
        loop {
            while part[low] < pivot {
                low += 1;
            }
            while part[high] > pivot {
                high -= 1;
            }
            if low >= high {
                break;
            }
            part.swap(low, high);
            low += 1;
            high -= 1;
        }
        let (left, right) = part.split_at_mut(low);
        let (small, large) = if left.len() < right.len() {
            (left, right)
        } else {
            (right, left)
        };
        quicksort(small);
        part = large;
    }
    for n in 1..part.len() {
        let value = part[n];
        let mut at = n;
        while at > 0 && part[at - 1] > value {
            part[at] = part[at - 1];
            at -= 1;
        }
        part[at] = value;
    }
}

/// A number sorted is an item.
pub fn work(unit: u64) -> Done {
    let mut numbers = [0u32; NUMBERS];
    let mut state = unit;
    let mut checksum = 0;
    for _ in 0..SORTS {
        numbers.fill_with(|| random(&mut state) as u32);
        quicksort(&mut numbers);
        assert!(numbers.is_sorted(), "quicksort does not sort");
        checksum = numbers
            .iter()
            .step_by(97)
            .fold(checksum, |sum, &n| mix(sum, n.into()));
    }
    Done {
        items: SORTS * NUMBERS as u64,
        checksum,
    }
}
