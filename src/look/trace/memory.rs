//! The guest's memory by linear addresses, read a number or a text at a time. What is read is the guest's: it may be
//! anything.

use vmm::soft::looking::Debuggable;

/// Whoever can be asked for memory.
pub trait Look {
    /// Up to `length` bytes from `address` on: as many as there are in one piece.
    fn up_to(&self, address: u64, length: usize) -> Vec<u8>;

    /// So many bytes.
    fn bytes(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let bytes = self.up_to(address, length);
        (bytes.len() == length).then_some(bytes)
    }

    /// A number of 64 bits.
    fn u64(&self, address: u64) -> Option<u64> {
        let bytes = self.bytes(address, 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// A number of 32 bits.
    fn u32(&self, address: u64) -> Option<u32> {
        let bytes = self.bytes(address, 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// What is there up to a zero, `most` bytes at most.
    fn text(&self, address: u64, most: usize) -> String {
        let bytes = self.up_to(address, most);
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or(&[]);
        String::from_utf8_lossy(text).into_owned()
    }
}

/// A guest's memory.
pub struct Guest<'a, E>(pub &'a E);

impl<E: Debuggable> Look for Guest<'_, E> {
    fn up_to(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let there = self.0.look(address, &mut bytes);
        bytes.truncate(there);
        bytes
    }

    fn u64(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.0.look(address, &mut bytes) == 8).then(|| u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Some bytes at some address, and nothing else.
    pub struct Flat {
        begin: u64,
        bytes: Vec<u8>,
    }

    impl Flat {
        /// Zeros.
        pub fn new(begin: u64, length: usize) -> Self {
            let bytes = vec![0; length];
            Self { begin, bytes }
        }

        /// Puts some there.
        pub fn put(&mut self, at: u64, bytes: &[u8]) {
            let at = (at - self.begin) as usize;
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    impl Look for Flat {
        fn up_to(&self, address: u64, length: usize) -> Vec<u8> {
            let Some(at) = address.checked_sub(self.begin) else {
                return Vec::new();
            };
            let rest = self.bytes.get(at as usize..).unwrap_or(&[]);
            rest[..rest.len().min(length)].to_vec()
        }
    }

    #[test]
    fn what_is_not_all_there_is_nothing() {
        let memory = Flat::new(0x1000, 12);
        assert_eq!(memory.u64(0x1004), Some(0));
        assert_eq!(memory.u64(0x1005), None);
        assert_eq!(memory.u64(0xfff), None);
    }
}
