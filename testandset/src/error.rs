//! Why the arbiter gave no verdict.

use crate::StoreId;
use nix::errno::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// What the smallest file takes on most file systems, in bytes.
const BLOCK: u64 = 4096;

/// Why the arbiter gave no verdict. Whatever the variant, the flag's state is *unknown* to the
/// caller: never take an error for an unset flag.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The address names no arbiter.
    #[error("arbiter address {given:?}: {reason}")]
    BadAddress {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file that the arbiter's address names is of no use.
    #[error("the arbiter's {what} {}: {reason}", path.display())]
    BadFile {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The arbiter cannot be reached, or stopped answering half-way.
    #[error(
        "arbiter {arbiter} is out of reach: {reason}; bring it back, nobody goes live meanwhile"
    )]
    Unreachable {
        /// Address or directory.
        arbiter: String,
        /// What was seen.
        reason: String,
    },
    /// The arbiter's disk is full, or a quota is.
    #[error(
        "cannot {operation} {}: the arbiter's disk is full; make room for {bytes} bytes there, it goes on \
         by itself then",
        path.display()
    )]
    DiskFull {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// How much room it takes.
        bytes: u64,
    },
    /// The arbiter takes no more flags, from this client or from anyone.
    #[error("arbiter {arbiter} takes no more flags: {reason}")]
    TooManyFlags {
        /// Address or directory.
        arbiter: String,
        /// Whose bound is reached, and what to do.
        reason: String,
    },
    /// The arbiter's disk is mounted read-only.
    #[error("cannot {operation} {}: the arbiter's disk is read-only; remount it writable", path.display())]
    ReadOnly {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// This process may not use the arbiter's files.
    #[error("cannot {operation} {}: no permission; let this user write there", path.display())]
    Denied {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// A file of the arbiter's says nothing sensible, so it may have said anything.
    #[error("{} is damaged: {reason}; restore it, or find out who is live before removing it", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no store, and none was to be made.
    #[error("{} has no store of flags; put the one back that was there, or let a new one be made", path.display())]
    NoStore {
        /// The directory.
        path: PathBuf,
    },
    /// Another process serves this store.
    #[error("{} is in use by another arbiter server; stop that one or choose another directory", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },
    /// Another failure of the disk.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server did not take the request.
    #[error("arbiter {arbiter} refused: {reason}")]
    Refused {
        /// Its address.
        arbiter: String,
        /// What it said.
        reason: String,
    },
    /// The server could not make its answer durable.
    #[error("arbiter {arbiter} cannot store flags: {reason}")]
    StoreFailed {
        /// Its address.
        arbiter: String,
        /// What it said.
        reason: String,
    },
    /// The arbiter keeps its flags in another store than the one this client has talked to, so it may
    /// have forgotten any flag. Its word is not taken, and nothing was set.
    #[error(
        "arbiter {arbiter} has lost the store it had ({known}): {}; put that store back, nobody goes \
         live meanwhile",
        found.map_or_else(|| "there is none now".to_owned(), |found| format!(
            "its flags are in another one now ({found}), which knows nothing of those set before"
        ))
    )]
    OtherStore {
        /// Address or directory.
        arbiter: String,
        /// The store talked to before.
        known: StoreId,
        /// The store found now, if there is one.
        found: Option<StoreId>,
    },
    /// What answers there is no arbiter, or one of another version.
    #[error("what answers at {arbiter} is no arbiter of this version: {reason}; check the address")]
    Protocol {
        /// Its address.
        arbiter: String,
        /// What it sent.
        reason: String,
    },
}

impl ArbiterError {
    /// Sorts a failed disk operation by what can be done about it; one that takes a file and a block.
    pub(crate) fn disk(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::disk_for(operation, path, BLOCK, source)
    }

    /// [`Self::disk`] for an operation that takes so many `bytes` of room.
    pub(crate) fn disk_for(
        operation: &'static str,
        path: &Path,
        bytes: u64,
        source: io::Error,
    ) -> Self {
        let path = path.to_path_buf();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => Self::DiskFull {
                operation,
                path,
                bytes,
            },
            Some(Errno::EROFS) => Self::ReadOnly { operation, path },
            Some(Errno::EACCES | Errno::EPERM) => Self::Denied { operation, path },
            Some(
                Errno::ESTALE
                | Errno::ETIMEDOUT
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ENOTCONN
                | Errno::ENODEV,
            ) => Self::Unreachable {
                arbiter: path.display().to_string(),
                reason: format!("cannot {operation} it: {source}"),
            },
            _ => Self::Io {
                operation,
                path,
                source,
            },
        }
    }
}
