//! Disk images, and what the guest `disk` makes of one.

use super::LIMIT;
use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Images in a folder of their own, in memory where there is such: flushes take time on a disk.
pub struct Images {
    folder: tempfile::TempDir,
    made: Cell<u32>,
}

impl Images {
    /// None yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self {
            folder: folder.unwrap(),
            made: Cell::new(0),
        }
    }

    fn next(&self) -> Image {
        self.made.set(self.made.get() + 1);
        Image(self.folder.path().join(format!("{}.img", self.made.get())))
    }

    /// One with something on it, different from all others here.
    pub fn filled(&self, bytes: usize) -> Image {
        let image = self.next();
        let seed = u64::from(self.made.get());
        let word = |n: u64| (n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        let mut all: Vec<u8> = (0..bytes as u64 / 8).flat_map(word).collect();
        // And something that may be a hole.
        let middle = bytes / 4..bytes / 2;
        all[middle].fill(0);
        std::fs::write(&image.0, all).unwrap();
        image
    }

    /// A copy of one, with a hole where that has zeros.
    pub fn copy(&self, of: &Image) -> Image {
        let image = self.next();
        let bytes = of.bytes();
        let file = std::fs::File::create(&image.0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (at, sector) in (0..).step_by(512).zip(bytes.chunks(512)) {
            if sector.iter().any(|byte| *byte != 0) {
                file.write_all_at(sector, at).unwrap();
            }
        }
        image
    }
}

/// One of them.
pub struct Image(PathBuf);

impl Image {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is on it.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }

    /// Changes its last byte.
    pub fn change(&self) {
        let mut bytes = self.bytes();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&self.0, bytes).unwrap();
    }

    /// Takes all there is on it away.
    pub fn cut(&self) {
        let file = std::fs::File::options().write(true).open(&self.0);
        file.unwrap().set_len(0).unwrap();
    }

    /// Waits until it has other contents than `before`.
    #[track_caller]
    pub fn wait_change(&self, before: &[u8]) {
        let begun = Instant::now();
        while self.bytes() == before {
            assert!(begun.elapsed() < LIMIT, "nobody writes to it");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Bytes of a round of the guest `disk` (`guests/disk`), and of each of its requests.
const ROUND: usize = 32 << 10;
const REQUEST: usize = 4 << 10;

/// Checks that rounds of the guest `disk` have made `now` of a disk that was `first`. Each reads 32 KiB, makes
/// something else of them, and writes that. The last may have written some of its requests only. How many rounds
/// were written whole.
///
/// # Panics
/// If no number of rounds has.
#[track_caller]
pub fn assert_rounds(first: &[u8], now: &[u8]) -> u64 {
    assert_eq!(first.len(), now.len());
    let places = (first.len() / ROUND) as u64;
    let mut disk = first.to_vec();
    for round in 0..1_000_000u64 {
        let at = (round.wrapping_mul(7919) % places) as usize * ROUND;
        let before = disk[at..at + ROUND].to_vec();
        let words = disk[at..at + ROUND].as_chunks_mut::<8>().0;
        for (i, word) in (0u64..).zip(words) {
            let changed = (u64::from_le_bytes(*word) ^ i.wrapping_add(round << 32))
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *word = changed.to_le_bytes();
        }
        if disk[..at] == now[..at] && disk[at + ROUND..] == now[at + ROUND..] {
            let after = disk[at..at + ROUND].chunks(REQUEST);
            let requests = now[at..at + ROUND]
                .chunks(REQUEST)
                .zip(before.chunks(REQUEST));
            let mut either = after.zip(requests);
            if either.all(|(after, (now, before))| now == after || now == before) {
                return round + u64::from(disk[at..at + ROUND] == now[at..at + ROUND]);
            }
        }
    }
    panic!("no number of rounds makes this disk");
}

/// From now on the process writes to no place in a file from `bytes` on.
pub fn limit_files(process: u32, bytes: u64) {
    super::limit(process, libc::RLIMIT_FSIZE, bytes);
}
