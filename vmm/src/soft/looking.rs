//! Looking inside a vCPU, pausing it anywhere, and taking it back.

use super::convert;
use super::vcpu::SoftEngine;
use crate::engine::{Engine, EngineError, Halfway, VmEntry};
use crate::state::CpuState;
use replay::Stop;
pub use soft::watch::{Data, Hit, Kind, Pause, Transfer, Watch};

/// An instruction as text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Line {
    /// Its address.
    pub rip: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it says, in AT&T syntax.
    pub text: String,
}

/// A vCPU that can be paused between any two instructions, and taken back to where it was.
///
/// Why not part of [`Engine`]: no hardware vCPU can do it, and no replica needs it.
pub trait Debuggable: Engine {
    /// All that [`Debuggable::put_back`] needs but memory.
    type Checkpoint;

    /// As [`Engine::run`], but pauses as `watch` asks.
    ///
    /// # Errors
    /// As for [`Engine::run`].
    fn run_watched(
        &mut self,
        entry: VmEntry,
        stop: Stop,
        watch: &mut Watch,
    ) -> Result<Halfway<Pause>, EngineError>;

    /// Makes `watch` one that leaves the place the vCPU is paused at.
    fn leave(&self, watch: &mut Watch);

    /// Has a run that heeds them pause before the instructions at these linear addresses, and no others. False, and
    /// nothing is done, if one is not mapped: see [`soft::Soft::probe`].
    fn probe(&mut self, addresses: &[u64]) -> bool;

    /// Instructions since the guest began: a clock that also counts where the log's counts blocks.
    fn steps(&self) -> u64;

    /// Linear address of the next instruction.
    fn rip(&self) -> u64;

    /// The vCPU's registers, at any time, changing nothing.
    fn view(&self) -> CpuState;

    /// Copies memory at a linear address out, through the guest's page tables, up to where there is no
    /// RAM; how many bytes that was. Changes nothing.
    fn look(&self, address: u64, bytes: &mut [u8]) -> usize;

    /// The instructions from RIP on.
    fn disassemble(&self, count: usize) -> Vec<Line>;

    /// All its state but memory. Unlike [`Engine::save`] it may be taken at a pause, and has what no
    /// other engine has: its translations, which are part of what the guest may see.
    fn checkpoint(&self) -> Self::Checkpoint;

    /// Puts a checkpoint back. Memory must be put back, too, by the caller, before the next run.
    fn put_back(&mut self, checkpoint: &Self::Checkpoint);
}

/// A software vCPU at an earlier time.
pub struct Checkpoint {
    processor: soft::watch::Copy,
    counters: super::vcpu::Counters,
}

impl Debuggable for SoftEngine {
    type Checkpoint = Checkpoint;

    fn run_watched(
        &mut self,
        entry: VmEntry,
        stop: Stop,
        watch: &mut Watch,
    ) -> Result<Halfway<Pause>, EngineError> {
        self.enter(entry, stop, Some(watch))
    }

    fn leave(&self, watch: &mut Watch) {
        watch.leave(&self.soft().cpu);
    }

    fn probe(&mut self, addresses: &[u64]) -> bool {
        self.soft_mut().probe(addresses)
    }

    fn steps(&self) -> u64 {
        self.soft().cpu.clock
    }

    fn rip(&self) -> u64 {
        self.soft().cpu.linear_rip()
    }

    fn view(&self) -> CpuState {
        CpuState {
            clock: self.clock(),
            ..convert::save(&self.soft().cpu)
        }
    }

    fn look(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.soft().cpu.look(address, bytes)
    }

    fn disassemble(&self, count: usize) -> Vec<Line> {
        let lines = self.soft().disassemble(count).into_iter();
        lines
            .map(|(rip, bytes, text)| Line { rip, bytes, text })
            .collect()
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            processor: self.soft().copy(),
            counters: self.counters(),
        }
    }

    fn put_back(&mut self, checkpoint: &Checkpoint) {
        self.soft_mut().put_back(&checkpoint.processor);
        self.set_counters(checkpoint.counters);
    }
}
