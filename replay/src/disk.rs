//! Part of the contents of a machine's disk, on its way to a disk that is to have the same.

/// Part of a disk's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskPart<'a> {
    /// These bytes.
    Data {
        /// Where on the disk.
        at: u64,
        /// What is there.
        bytes: &'a [u8],
    },
    /// Nothing but zeros.
    Zeros {
        /// Where on the disk.
        at: u64,
        /// How many.
        length: u64,
    },
}

impl DiskPart<'_> {
    /// Where on the disk it begins.
    #[must_use]
    pub fn at(self) -> u64 {
        match self {
            Self::Data { at, .. } | Self::Zeros { at, .. } => at,
        }
    }

    /// How many bytes of the disk it says.
    #[must_use]
    pub fn length(self) -> u64 {
        match self {
            Self::Data { bytes, .. } => bytes.len() as u64,
            Self::Zeros { length, .. } => length,
        }
    }
}
