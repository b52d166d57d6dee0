//! One replica of a protected machine, as a process.
//!
//! ```text
//!            control thread (this process's main)
//!   link end ─▶ role machine ◀─ vCPU: drained, ended, failed
//!   flag ─────▶     │
//!                   ├─▶ arbiter, viewservice
//!                   └─▶ gate, go-live, halt
//! ```

mod backup;
mod callers;
mod claim;
mod control;
mod events;
mod inputs;
mod primary;
mod report;
mod vcpu;

pub use backup::backup;
pub use events::Line;
pub use primary::primary;

use logchannel::Suppressed;
use std::sync::mpsc::SyncSender;
use vmm::machine::Ended;

/// What reaches the control thread.
enum Message {
    /// The link ended.
    Link(logchannel::LinkEnd),
    /// The vCPU thread has something to say.
    Vcpu(VcpuEvent),
    /// Somebody asks this process to end.
    StopAsked,
}

/// What a vCPU thread says.
enum VcpuEvent {
    /// A backup executed every entry there is; it waits to be told to go live.
    Drained {
        /// What it suppressed and nobody may have seen.
        outputs: Suppressed,
        /// To be answered with whether to go live.
        reply: SyncSender<bool>,
    },
    /// The guest takes live inputs from now on.
    Live {
        /// Frames that were seen but not logged by the dead primary.
        frames: usize,
    },
    /// The machine ended.
    Ended {
        /// How.
        ended: Ended,
        /// What was suppressed and nobody may have seen.
        outputs: Suppressed,
    },
    /// The guest could not go on, which ends the machine for both replicas.
    Broke {
        /// Why, in one line.
        why: String,
        /// What was suppressed and nobody may have seen.
        outputs: Suppressed,
    },
    /// Replay differs from the recording.
    Diverged(String),
    /// The machine cannot go on.
    Failed(String),
}
