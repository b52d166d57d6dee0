//! A reader that knows the SHA-256 of what it gave.

use crate::tools::Stop;
use bundle::hex;
use sha2::{Digest, Sha256};
use std::io::Read;

/// What is read, summed up.
pub struct Summed<'a, R> {
    inner: R,
    digest: Sha256,
    stop: &'a Stop,
}

impl<'a, R: Read> Summed<'a, R> {
    /// Of what `inner` gives, until `stop` is asked to end.
    pub fn new(stop: &'a Stop, inner: R) -> Self {
        Self {
            inner,
            digest: Sha256::new(),
            stop,
        }
    }

    /// The SHA-256 of what was read so far, in hexadecimal.
    pub fn sum(&self) -> String {
        hex(&self.digest.clone().finalize())
    }
}

impl<R: Read> Read for Summed<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.stop.check().is_err() {
            return Err(std::io::Error::other("asked to end"));
        }
        let length = self.inner.read(into)?;
        self.digest.update(&into[..length]);
        Ok(length)
    }
}
