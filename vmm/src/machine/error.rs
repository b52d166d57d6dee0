//! Why a machine stops for good.

use super::board::BoardError;
use super::boot::BootError;
use super::snapshot::SnapshotError;
use super::time::TimeError;
use crate::engine::EngineError;
use replay::divergence::Divergence;
use replay::{ExecPoint, InputsError};

/// Why a machine stopped for good.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The vCPU cannot go on.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The guest touched something that is not there, or a chip refused what came to it from outside.
    #[error("{error}{} ({at})", by(.culprit))]
    Board {
        /// Where the guest was.
        at: ExecPoint,
        /// What happened.
        error: BoardError,
        /// The instruction that did it, in bytes and words, where it is known.
        culprit: Option<String>,
    },
    /// Inputs or the log failed, or replay diverged.
    #[error(transparent)]
    Inputs(#[from] InputsError),
    /// The guest could not go on, and that end could not be noted: the log failed, or a recording went on
    /// there.
    #[error("{error} (at the end of a guest that failed: {reason})")]
    Unnoted {
        /// Why the guest could not go on.
        reason: Box<MachineError>,
        /// Why that was not noted.
        error: InputsError,
    },
    /// The guest could not be put into memory.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest time would leave its range.
    #[error("{error} ({at})")]
    Time {
        /// Where the guest was.
        at: ExecPoint,
        /// What happened.
        error: TimeError,
    },
    /// A snapshot cannot be taken or put back.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl MachineError {
    /// Where the run differs from the recording, if that is what stopped it.
    #[must_use]
    pub fn divergence(&self) -> Option<&Divergence> {
        match self {
            Self::Inputs(InputsError::Diverged(divergence))
            | Self::Unnoted {
                error: InputsError::Diverged(divergence),
                ..
            } => Some(divergence),
            _ => None,
        }
    }

    /// Whether it is surely the guest's own doing, and so happens to every replica at the same place. What
    /// a chip refuses came from the disk's host, or from a log: the guest has no part in that.
    #[must_use]
    pub fn is_the_guests(&self) -> bool {
        matches!(
            self,
            Self::Engine(EngineError::GuestFault { .. })
                | Self::Board {
                    error: BoardError::Nobody { .. },
                    ..
                }
        )
    }
}

fn by(culprit: &Option<String>) -> String {
    let with = |what| format!(": {what}");
    culprit.as_ref().map_or_else(String::new, with)
}
