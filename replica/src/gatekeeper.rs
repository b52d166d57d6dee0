//! What a replica that leads may let out, and what it may change: its gate and its lease, kept for a link.
//!
//! ```text
//!   vCPU ──GateOutlet──▶ ┌───────────────────┐
//!                        │ gate ── released ─┼──▶ outlet
//!   link ────Leader────▶ │                   │
//!                        │ lease ◀───────────┼─── the disk asks before every write
//!                        └───────────────────┘
//! ```

// The vCPU's thread and those of the link call it (see clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use crate::disk::Disk;
use crate::gate::SharedGate;
use crate::lease::Lease;
use logchannel::{Leader, SenderHandle, Settled};
use replay::{InputsError, LogIndex, Outlet, Output};
use std::sync::Arc;

/// Says which entry marks the first console output that has left the gate and is not yet where its reader
/// finds it. It is asked with every heartbeat, by threads that must not wait.
pub type Unprinted = Box<dyn Fn() -> Option<LogIndex> + Send + Sync>;

/// Keeps the output gate and the lease of a replica that leads over a link, as that link tells.
pub struct Gatekeeper {
    gate: SharedGate,
    lease: Arc<Lease>,
    unprinted: Unprinted,
    disk: Arc<Disk>,
}

impl Gatekeeper {
    /// For a log whose first entry is `first`. Released outputs go to `outlet`, which should not wait for long
    /// and must not call back; `lease` is the right to write to a shared disk; `unprinted` says what is still to
    /// be printed.
    #[must_use]
    pub fn new(
        first: LogIndex,
        outlet: Box<dyn Outlet + Send>,
        lease: Arc<Lease>,
        unprinted: Unprinted,
    ) -> Arc<Self> {
        Self::with_disk(first, outlet, lease, unprinted, Arc::default())
    }

    /// [`Self::new`], for a replica that has this disk. Where that is its own, what goes there is no output.
    pub(crate) fn with_disk(
        first: LogIndex,
        outlet: Box<dyn Outlet + Send>,
        lease: Arc<Lease>,
        unprinted: Unprinted,
        disk: Arc<Disk>,
    ) -> Arc<Self> {
        Arc::new(Self {
            gate: SharedGate::new(outlet, first),
            lease,
            unprinted,
            disk,
        })
    }

    /// Where a recorder puts its outputs: into the gate. They count against the buffer of `sender`, which is to
    /// be the end of the link that this gatekeeper is told by.
    #[must_use]
    pub fn outlet(self: &Arc<Self>, sender: SenderHandle) -> GateOutlet {
        GateOutlet {
            keeper: self.clone(),
            sender,
        }
    }

    /// How many outputs the gate holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.gate.held()
    }
}

impl Leader for Gatekeeper {
    fn begins(&self, settled: Settled) {
        self.lease.begin(settled);
    }

    fn heard(&self, since_us: u64) {
        self.lease.heard(since_us);
    }

    fn acked(&self, upto: LogIndex) -> Result<(), InputsError> {
        self.gate.acked(upto)
    }

    fn executed(&self, upto: LogIndex) {
        self.disk.reads().executed(upto);
    }

    fn unprinted(&self) -> Option<LogIndex> {
        (self.unprinted)()
    }

    /// The lease first: a write that waits for a read goes on to wait for the lease.
    fn undecided(&self) {
        self.lease.suspend();
        self.disk.reads().free();
    }

    fn solo(&self) -> Result<(), InputsError> {
        self.gate.open()
    }

    fn undisputed(&self) {
        self.lease.free();
        self.disk.reads().free();
    }

    /// The lease first: its end waits for nobody, and the outlet may take a while.
    fn halted(&self) {
        self.lease.end();
        self.disk.reads().free();
        self.gate.halt();
    }

    /// The lease stays as it is: what was let out may still be written for as long as it lasts, or after an
    /// orderly end.
    fn closed(&self) {
        self.gate.halt();
    }
}

/// Puts outputs into the gate of a link, and counts them against its sender's buffer.
pub struct GateOutlet {
    keeper: Arc<Gatekeeper>,
    sender: SenderHandle,
}

impl Outlet for GateOutlet {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.keeper.disk.reads().made(&output);
        let inside = self.keeper.disk.is_own() && output.disk_tag().is_some();
        if inside || !output.is_gated() {
            return self.keeper.gate.pass(index, output);
        }
        self.sender.hold_cost(output.bytes());
        self.keeper.gate.hold(index, output)
    }
}
