//! Why a replica did not start, or how it ended if not well.

use std::fmt::Display;

/// How a replica fails.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// What was asked for makes no sense on any host.
    #[error("{0}")]
    Usage(String),
    /// A step failed.
    #[error("{what}: {why}")]
    Step {
        /// The step, with its operands.
        what: String,
        /// Why it failed.
        why: String,
    },
    /// This replica may not or cannot do what it was started for: a peer, a flag or this host stands in the
    /// way.
    #[error("{0}")]
    Refused(String),
    /// The guest ended the machine with a status that is not 0.
    #[error("{said}")]
    Guest {
        /// The status.
        status: u32,
        /// What to tell its operator.
        said: String,
        /// It ended well all the same.
        well: bool,
    },
}

/// What the steps of a replica return.
pub type Outcome<T = ()> = Result<T, ReplicaError>;

impl ReplicaError {
    /// [`Self::Refused`] with this line.
    pub fn refused(line: impl Into<String>) -> Self {
        Self::Refused(line.into())
    }
}

macro_rules! refused_by {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for ReplicaError {
            fn from(error: $error) -> Self {
                Self::refused(error.to_string())
            }
        })*
    };
}

refused_by! {
    logchannel::HandshakeError,
    nix::errno::Errno,
    replay::InputsError,
    replay::LogError,
    std::io::Error,
    testandset::ArbiterError,
    testandset::NameError,
    tls::TlsError,
    viewservice::ViewError,
    vmm::backends::disk::DiskError,
    vmm::backends::switch::LinkError,
    vmm::backends::tap::TapError,
    vmm::engine::EngineError,
    vmm::kvm::KvmError,
    vmm::machine::ConfigError,
    vmm::machine::boot::BootError,
    vmm::machine::snapshot::SnapshotError,
    vmm::machine::MachineError,
}

/// Says what was being done when something failed.
pub trait During<T> {
    /// The failure of the step `what`.
    ///
    /// # Errors
    /// [`ReplicaError::Step`].
    fn during(self, what: impl Display) -> Outcome<T>;
}

impl<T, E: Display> During<T> for Result<T, E> {
    fn during(self, what: impl Display) -> Outcome<T> {
        self.map_err(|e| ReplicaError::Step {
            what: what.to_string(),
            why: e.to_string(),
        })
    }
}
