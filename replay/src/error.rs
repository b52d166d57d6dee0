//! What can be wrong with a log.

/// What can be wrong with a log's bytes, or with reading and writing them.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// The operation and its operand.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are not a log, or not a whole one.
    #[error("{what} at byte {offset} (entry {entry})")]
    Malformed {
        /// What is wrong.
        what: String,
        /// Byte offset in the file or stream.
        offset: u64,
        /// Index of the first entry that cannot be had.
        entry: u64,
    },
    /// A log of another format version, machine or guest.
    #[error("{0}")]
    Foreign(String),
}
