//! Which blocks of a disk were written.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a block: as a page of memory, so that both count alike.
pub const BLOCK_BYTES: u64 = 4096;

/// Blocks that one word stands for.
const WORD: u64 = 64;

/// A set of blocks, by number. It takes memory for what is in it, not for the size of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    /// No word is zero.
    words: BTreeMap<u64, u64>,
}

impl BlockSet {
    /// Adds the blocks that have any of these bytes.
    pub fn insert_bytes(&mut self, bytes: Range<u64>) {
        if !bytes.is_empty() {
            self.insert(bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES));
        }
    }

    /// Adds these blocks.
    fn insert(&mut self, blocks: Range<u64>) {
        let mut first = blocks.start;
        while first < blocks.end {
            let word = first / WORD;
            let end = blocks.end.min((word + 1) * WORD);
            let ones = u64::MAX >> (WORD - (end - first)) << (first % WORD);
            *self.words.entry(word).or_default() |= ones;
            first = end;
        }
    }

    /// Adds the blocks of `other`.
    pub fn extend(&mut self, other: &Self) {
        for (word, ones) in &other.words {
            *self.words.entry(*word).or_default() |= ones;
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        let ones = self.words.values();
        ones.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The blocks in it, in order, those next to each other together.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut runs = self.words.iter().flat_map(|(at, ones)| {
            let first = at * WORD;
            let (mut ones, mut bit) = (*ones, 0);
            std::iter::from_fn(move || {
                if ones == 0 {
                    return None;
                }
                let zeros = ones.trailing_zeros();
                let count = (ones >> zeros).trailing_ones();
                let run = first + u64::from(bit + zeros)..first + u64::from(bit + zeros + count);
                bit += zeros + count;
                ones = ones.checked_shr(zeros + count).unwrap_or(0);
                Some(run)
            })
        });
        let mut next: Option<Range<u64>> = runs.next();
        std::iter::from_fn(move || {
            let mut run = next.take()?;
            for more in runs.by_ref() {
                if more.start != run.end {
                    next = Some(more);
                    break;
                }
                run.end = more.end;
            }
            Some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn bytes_touch_whole_blocks() {
        let mut set = BlockSet::default();
        set.insert_bytes(4095..4097);
        set.insert_bytes(9 * BLOCK_BYTES..9 * BLOCK_BYTES);
        set.insert_bytes(u64::MAX - 1..u64::MAX);
        assert_eq!(set.len(), 3);
        let last = u64::MAX / BLOCK_BYTES;
        assert_eq!(set.runs().collect::<Vec<_>>(), [0..2, last..last + 1]);
    }

    #[test]
    fn a_run_goes_on_over_words() {
        let mut set = BlockSet::default();
        set.insert(60..200);
        set.insert(0..1);
        assert_eq!(set.runs().collect::<Vec<_>>(), [0..1, 60..200]);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(
            runs in prop::collection::vec((0u64..700, 0u64..200), 0..20),
            more in prop::collection::vec((0u64..700, 0u64..70), 0..5),
        ) {
            let made = |runs: &[(u64, u64)]| {
                let (mut set, mut plain) = (BlockSet::default(), BTreeSet::new());
                for (first, count) in runs {
                    set.insert(*first..first + count);
                    plain.extend(*first..first + count);
                }
                (set, plain)
            };
            let (mut set, mut plain) = made(&runs);
            let (other, others) = made(&more);
            set.extend(&other);
            plain.extend(others);
            prop_assert_eq!(set.len(), plain.len() as u64);
            prop_assert_eq!(set.is_empty(), plain.is_empty());
            let runs: Vec<Range<u64>> = set.runs().collect();
            prop_assert!(runs.iter().cloned().flatten().eq(plain));
            prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
