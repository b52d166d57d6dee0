//! What can be wrong with the channel.

use crate::messages::Bye;
use replay::LogIndex;

/// Bytes that are no frame, or a frame that says something impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is over the limit.
    #[error("frame of {length} bytes, at most {max} are allowed")]
    TooLong {
        /// What the header says.
        length: usize,
        /// [`crate::framing::PAYLOAD_MAX`].
        max: usize,
    },
    /// No frame has this kind.
    #[error("frame of unknown kind {kind}")]
    UnknownKind {
        /// What the header says.
        kind: u8,
    },
    /// The bytes were changed on their way.
    #[error("frame checksum {found:08x}, computed {computed:08x}")]
    Checksum {
        /// In the header.
        found: u32,
        /// Over what arrived.
        computed: u32,
    },
    /// A payload of the wrong shape.
    #[error("malformed {frame} frame: {what}")]
    Malformed {
        /// Name of the frame's kind.
        frame: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The peer speaks TLS, and this side does not.
    #[error("the peer speaks TLS: give --tls DIR here, too")]
    Tls,
    /// The peer does not speak this protocol at all.
    #[error("the peer is not a tandem replica")]
    NotTandem,
    /// The peer speaks another version of it.
    #[error(
        "the peer speaks version {theirs} of the logging channel, this is version {ours}: run the same tandem on both hosts"
    )]
    Version {
        /// [`crate::framing::VERSION`].
        ours: u16,
        /// The peer's.
        theirs: u16,
    },
}

/// Why a link could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed, or the peer took too long.
    #[error("{what} {peer}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// The peer's address.
        peer: String,
        /// Why.
        source: std::io::Error,
    },
    /// The peer sent something else than a greeting.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent a frame that has no place in a handshake.
    #[error("{frame} frame in the handshake")]
    OutOfPlace {
        /// Name of the frame's kind.
        frame: &'static str,
    },
    /// What is to be offered is over a limit.
    #[error("{what} of {length} bytes in the handshake, at most {max} are allowed")]
    TooLong {
        /// Which field.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        max: usize,
    },
    /// Settings that cannot work.
    #[error(
        "heartbeat every {heartbeat_ms} ms with suspicion after {suspect_ms} ms: heartbeats must be 1 ms or more apart, suspicion at least twice that and at most a minute"
    )]
    Settings {
        /// Heartbeat interval.
        heartbeat_ms: u32,
        /// Silence after which the peer is suspected.
        suspect_ms: u32,
    },
    /// A running machine's state could not be taken or handed over.
    #[error("the machine's state: {why}")]
    State {
        /// Why.
        why: String,
    },
    /// No log begins where this one is said to.
    #[error(transparent)]
    Base(#[from] replay::BaseError),
    /// The backup is too far away for any setting.
    #[error(
        "the backup takes {round_trip_ms} ms to answer; at most {most_ms} ms are allowed, as its silence could not be told from its distance"
    )]
    TooFar {
        /// How long an answer takes.
        round_trip_ms: u32,
        /// How long it may take.
        most_ms: u32,
    },
    /// The backup does not want this primary.
    #[error("the backup refused: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
}

impl HandshakeError {
    /// Whether the peer has refused, and said why.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// Why a link was lost. Suspicion only: whoever sees this asks the arbiter.
#[derive(Debug, thiserror::Error)]
pub enum LinkLost {
    /// The peer closed the connection without a word.
    #[error("the connection was closed")]
    Closed,
    /// The connection broke.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// What came is not the peer's, or came before, or in another order.
    #[error("the connection is no longer the peer's: {why}")]
    Forged {
        /// What TLS says of it.
        why: String,
    },
    /// Nothing was heard for too long.
    #[error("nothing heard for {silence_ms} ms")]
    Silence {
        /// How long.
        silence_ms: u64,
    },
    /// This side paused, and nothing has come since that is sure to have been sent after the pause.
    #[error("nothing heard for {waited_ms} ms that is newer than a pause of this side")]
    Unanswered {
        /// How long it was waited for. Each pause counts as the time to suspicion at most.
        waited_ms: u64,
    },
    /// The peer's bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// An entry in a sound frame is not one.
    #[error(transparent)]
    Entry(#[from] replay::LogError),
    /// Entries are missing.
    #[error("entries {expected} to {found} are missing")]
    Gap {
        /// The next one wanted.
        expected: LogIndex,
        /// The one that came.
        found: LogIndex,
    },
    /// Entries came again.
    #[error("entry {found} came again, {expected} was next")]
    Repeat {
        /// The next one wanted.
        expected: LogIndex,
        /// The one that came.
        found: LogIndex,
    },
    /// A frame that this side never gets in this state.
    #[error("unexpected {frame} frame")]
    OutOfPlace {
        /// Name of the frame's kind.
        frame: &'static str,
    },
    /// A cursor of the peer's stepped back, or ran ahead of what the peer can know.
    #[error("the peer's {cursor} cursor says {says}, it must be from {least} to {most}")]
    Cursor {
        /// Which.
        cursor: &'static str,
        /// What it says.
        says: LogIndex,
        /// Lower bound.
        least: LogIndex,
        /// Upper bound.
        most: LogIndex,
    },
}

/// How a link came to its end. Told once.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    /// The peer may have failed.
    #[error("link lost: {0}")]
    Lost(#[from] LinkLost),
    /// The peer said goodbye: no failure.
    #[error("the peer left: {0}")]
    Bye(Bye),
    /// This side said goodbye, and the peer has closed.
    #[error("this side left")]
    Left,
    /// This side's own outlet failed: nothing more may leave here, this replica must stop.
    #[error("an output could not be delivered: {0}")]
    OutletFailed(String),
}
