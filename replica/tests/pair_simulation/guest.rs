//! A guest that does nothing but take inputs and make outputs. What it outputs depends on all inputs before.

use replay::Output;
use std::collections::BTreeSet;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An input that makes no output.
    Plain,
    Frame,
    Console,
    /// A write to the disk.
    Disk,
    /// The disk has done what the entry with this index asked for.
    Done(u64),
}

/// One entry of a log. No two entries that were ever logged have the same input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub what: What,
    pub input: u64,
}

/// The guest of one replica.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    entries: Vec<Entry>,
    /// Behind each entry: a digest of all inputs up to there.
    digests: Vec<u64>,
    /// Disk requests that are not known to be done.
    under_way: BTreeSet<u64>,
}

impl Guest {
    /// Index of the entry it executes next.
    pub fn next(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Executes `entry`. Returns what that outputs.
    pub fn execute(&mut self, entry: Entry) -> Option<Output> {
        let index = self.next();
        let before = self.digests.last().copied().unwrap_or_default();
        self.entries.push(entry);
        self.digests.push(mix(before ^ entry.input));
        match entry.what {
            What::Disk => assert!(self.under_way.insert(index)),
            What::Done(request) => assert!(
                self.under_way.remove(&request),
                "invariant 9: request {request} is done that nobody waits for"
            ),
            What::Plain | What::Frame | What::Console => {}
        }
        self.output(index)
    }

    /// What entry `index` outputs.
    pub fn output(&self, index: u64) -> Option<Output> {
        let at = usize::try_from(index).expect("a small index");
        let mut bytes = index.to_le_bytes().to_vec();
        bytes.extend(self.digests.get(at)?.to_le_bytes());
        match self.entries[at].what {
            What::Frame => Some(Output::Frame(bytes)),
            What::Console => Some(Output::Console(bytes)),
            What::Disk => Some(Output::DiskWrite {
                tag: u32::try_from(index).expect("a small index"),
                offset: index,
                data: bytes,
            }),
            What::Plain | What::Done(_) => None,
        }
    }

    /// The disk requests that are not known to be done.
    pub fn under_way(&self) -> &BTreeSet<u64> {
        &self.under_way
    }

    /// Diverges: the last entry had another input here.
    pub fn diverge(&mut self) {
        if let Some(digest) = self.digests.last_mut() {
            *digest = mix(!*digest);
        }
    }
}

/// The index that a guest wrote into its output.
pub fn index_of(output: &Output) -> u64 {
    let (Output::Frame(bytes) | Output::Console(bytes) | Output::DiskWrite { data: bytes, .. }) =
        output
    else {
        unreachable!("this guest makes no {output:?}");
    };
    u64::from_le_bytes(bytes[..8].try_into().expect("16 bytes"))
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (word >> 32)
}
