//! What can go wrong between the service, its disk and its clients.

use std::io;
use std::path::{Path, PathBuf};

/// Why a call or the service failed.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The address names no service.
    #[error("viewservice address {given:?}: {reason}")]
    BadAddress {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The service cannot be reached, or stopped answering half-way: whether it took the request is
    /// unknown.
    #[error("viewservice {address} is out of reach: {reason}; protected VMs run on without it")]
    Unreachable {
        /// Its address.
        address: String,
        /// What was seen.
        reason: String,
    },
    /// The service did not take the request, which changed nothing.
    #[error("viewservice {address} refused: {reason}")]
    Refused {
        /// Its address.
        address: String,
        /// What it said.
        reason: String,
    },
    /// The service could not make its answer durable: what becomes of the request is unknown.
    #[error("viewservice {address} cannot store its views: {reason}")]
    Failed {
        /// Its address.
        address: String,
        /// What it said.
        reason: String,
    },
    /// What answers there is no viewservice, or one of another version.
    #[error(
        "what answers at {address} is no viewservice of this version: {reason}; check the address"
    )]
    Protocol {
        /// Its address.
        address: String,
        /// What it sent.
        reason: String,
    },
    /// The state file says nothing sensible.
    #[error("{} is damaged: {reason}; restore it, or take all VMs down and remove it", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process serves this state.
    #[error("{} is in use by another viewservice; stop that one or choose another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A failure of the disk.
    #[error("cannot {operation} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ViewError {
    pub(crate) fn disk(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Disk {
            operation,
            path: path.into(),
            source,
        }
    }
}
