//! A reader that fails rather than give more than it may.

use crate::deb::PackageError;
use std::cell::Cell;
use std::io::{Read, Result, Seek, SeekFrom};

/// Gives what `inner` does, until more comes than is left.
///
/// Why: the tar library keeps the headers that extend a member's (long names, pax records) in memory, however long
/// they say they are; and a small archive may unpack to any length.
/// Invariant: of `left`, which others may share or fill up again, each byte that was given is taken.
pub struct Bounded<'a, R> {
    inner: R,
    left: &'a Cell<u64>,
    over: fn() -> PackageError,
}

impl<'a, R> Bounded<'a, R> {
    /// Reads `left` bytes at most, and fails with `over` where there are more.
    pub fn new(inner: R, left: &'a Cell<u64>, over: fn() -> PackageError) -> Self {
        Self { inner, left, over }
    }
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let length = self.inner.read(into)?;
        let left = self.left.get().checked_sub(length as u64);
        let left = left.ok_or_else(|| std::io::Error::other((self.over)()))?;
        self.left.set(left);
        Ok(length)
    }
}

impl<R: Seek> Seek for Bounded<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.inner.seek(to)
    }
}
