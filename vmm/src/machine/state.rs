//! What a machine is made of, and where in the run loop it stands.
//!
//! Whoever runs, saves, digests, resets or examines a machine works on this one struct; none of them is
//! known here.

use super::board::Board;
use super::boot;
use super::config::MachineConfig;
use super::error::MachineError;
use super::origin::Origin;
use super::time::GuestClock;
use crate::backends::station::Station;
use crate::engine::{Engine, VmEntry};
use crate::memory::GuestMemory;
use replay::Stop;
use std::sync::Arc;

/// A machine.
pub struct Machine<E> {
    pub(super) engine: E,
    pub(super) board: Board,
    pub(super) memory: GuestMemory,
    pub(super) config: MachineConfig,
    /// Guest time.
    pub(super) time: GuestClock,
    /// How the vCPU is to be entered next.
    pub(super) entry: VmEntry,
    /// Whether the guest stands in a halt.
    pub(super) halted: bool,
    /// Where in the run loop it stands.
    pub(super) standing: Standing,
    /// What it starts over from, if its guest resets it.
    pub(super) origin: Option<Origin>,
}

/// Where in the run loop a machine stands, between two of its steps. The steps are those of
/// [`super::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// At a stop whose exit is handled; steps 2 to 4 come next. A machine that has not run stands at a
    /// natural stop.
    Stopped {
        /// Whether the guest left by itself here.
        natural: bool,
    },
    /// At a stop where steps 2 to 4 are done; the vCPU is entered next.
    Settled {
        /// Whether the guest left by itself here.
        natural: bool,
    },
    /// Inside an entry, which goes on up to the same stop. Only a machine under examination stands here.
    Inside(Stop),
}

impl Standing {
    /// Where a machine stands that has not run.
    pub(super) const BEGIN: Self = Self::Stopped { natural: true };
}

/// What the machine keeps besides vCPU, chips and memory, as it is in digests and snapshots.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Pending {
    /// Console bytes that have not left yet.
    pub(super) console: Vec<u8>,
    /// Console input the UART has no room for yet.
    pub(super) typed: Vec<u8>,
    /// Whether the guest stands in a halt.
    pub(super) halted: bool,
}

impl<E> Machine<E> {
    /// The disk requests whose completion is still to come, as they were made.
    pub fn outstanding_disk(&self) -> Vec<replay::Output> {
        self.board.outstanding_disk()
    }

    /// Its configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its vCPU.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Its memory, which whoever has it may read while the guest runs.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Tells `station` the addresses of its network card, now and whenever they change.
    pub fn tell_station(&mut self, station: Arc<Station>) {
        self.board.tell(station);
    }

    pub(super) fn pending(&self) -> Pending {
        Pending {
            console: self.board.console.clone(),
            typed: self.board.typed.clone(),
            halted: self.halted,
        }
    }
}

impl<E: Engine> Machine<E> {
    /// Guest time in nanoseconds since the machine began; none where it is logged, and not derived.
    pub fn guest_ns(&self) -> Option<u64> {
        self.time.now_ns(self.engine.clock())
    }

    /// A machine with `image` loaded, about to run its first instruction.
    ///
    /// # Errors
    /// If the image cannot be loaded or the vCPU not set up.
    pub fn boot(
        mut engine: E,
        memory: GuestMemory,
        config: MachineConfig,
        image: &boot::GuestImage<'_>,
    ) -> Result<Self, MachineError> {
        let state = boot::load(&config, image, &memory)?;
        let time = GuestClock::new(config.tsc);
        engine.restore(&state)?;
        engine.set_time(time.base())?;
        let board = Board::new(&config);
        Ok(Self {
            engine,
            board,
            memory,
            config,
            time,
            entry: VmEntry::Resume,
            halted: false,
            standing: Standing::BEGIN,
            origin: None,
        })
    }
}
