//! Replay differing from the recording.

use crate::event::LogIndex;
use crate::point::ExecPoint;

/// Replay differs from the recording: fatal to this replica (invariant 7).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[error("divergence at entry {index}, {at}: expected {expected}, found {found}{context}")]
pub struct Divergence {
    /// The entry that could not be replayed.
    pub index: LogIndex,
    /// Where the replica stood.
    pub at: ExecPoint,
    /// What the log says.
    pub expected: String,
    /// What the replica did.
    pub found: String,
    /// The entries around it, one a line, for a reader.
    pub context: String,
}
