//! What a vCPU must be able to do, whoever implements it.
//!
//! ```text
//!            entry                    exit
//! board ───────────────▶ Engine::run ───────────▶ board
//!        (read data)      │  guest   │  (read, write, halt, stopped, kicked)
//! ```

use crate::memory::PageSet;
use replay::{Clock, ClockKind, ExecPoint, RegisterDigest, Stop};

/// What runs a guest. Two kinds may differ in what the processor leaves open, so a log says which it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// KVM on a processor that virtualises.
    KvmHardware,
    /// KVM that runs ring 3 natively and emulates ring 0.
    KvmSoftware,
    /// The software processor.
    Soft,
}

impl EngineKind {
    /// Whether a guest that counts `clock` does the same on both: on the same, and on the software engine
    /// whatever the other, unless it counts instructions, of which single steps leave out those of
    /// interrupt handlers.
    #[must_use]
    pub fn agrees_with(self, other: Self, clock: ClockKind) -> bool {
        let one_soft = self == Self::Soft || other == Self::Soft;
        self == other || one_soft && clock == ClockKind::Blocks
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KvmHardware => "hardware-virtualised KVM",
            Self::KvmSoftware => "software-virtualised KVM",
            Self::Soft => "software engine",
        })
    }
}

/// Which address space an access goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// I/O ports.
    Port,
    /// Memory-mapped registers.
    Mmio,
    /// The time-stamp counter: RDTSC, RDTSCP, or RDMSR of IA32_TSC, read at address 0 with 8 bytes under
    /// [`TimeBase::Exit`].
    Tsc,
}

/// Why the vCPU left the guest. All but `Stopped` and `Kicked` are natural: they happen at the same
/// place in every run, and count one on the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// The guest reads `size` bytes; the next entry must bring them.
    Read {
        /// Address space.
        bus: Bus,
        /// Address.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
    },
    /// The guest writes the low `size` bytes of `value`.
    Write {
        /// Address space.
        bus: Bus,
        /// Address.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// What is written, zero-extended.
        value: u64,
    },
    /// The guest halted.
    Halt,
    /// The stop asked for was reached.
    Stopped,
    /// Somebody kicked the vCPU between two stoppable places; the clock has moved on, but nothing may
    /// be injected and no registers looked at.
    Kicked,
}

/// How the vCPU enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEntry {
    /// Just go on.
    Resume,
    /// Go on with the data the guest asked for by [`VmExit::Read`].
    ReadData(u64),
}

/// How an entry that may be paused left the guest, or did not; `P` says at what it paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halfway<P> {
    /// It left.
    Exit(VmExit),
    /// It stands in the middle, and goes on with the same stop.
    Paused(P),
}

/// What the guest's RDTSC yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeBase {
    /// It leaves the guest, which reads [`Bus::Tsc`] (or an engine whose guests do so by themselves lets
    /// them read the control page).
    #[default]
    Exit,
    /// `ns_at_zero` plus the clock, wrapping, and plus whatever the guest's own writes to IA32_TSC
    /// (0x10) moved it by. That offset is the guest's doing, and part of the vCPU's state.
    Derived {
        /// Guest time at clock 0, in nanoseconds, which are ticks.
        ns_at_zero: u64,
    },
}

/// What went wrong in an engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An ioctl failed.
    #[error("{operation}: {source}")]
    Ioctl {
        /// The operation and its operands.
        operation: String,
        /// Why.
        source: std::io::Error,
    },
    /// The guest cannot go on, by its own doing alone (triple fault, a jump to where there is no RAM, ...):
    /// every replica gets there.
    #[error("the guest cannot go on at {at}: {why}")]
    GuestFault {
        /// Where.
        at: ExecPoint,
        /// Why.
        why: String,
    },
    /// The engine or its host failed, as far as can be told: another replica may well go on.
    #[error("the engine failed at {at}: {why}")]
    Failed {
        /// Where the guest was.
        at: ExecPoint,
        /// Why.
        why: String,
    },
    /// The engine cannot do what was asked.
    #[error("{0}")]
    Unsupported(String),
}

impl EngineError {
    /// [`Engine::dirty_pages`] was called without [`Engine::note_dirty_pages`].
    pub(crate) fn not_noted() -> Self {
        Self::Unsupported("nobody asked for dirty pages to be noted".into())
    }
}

/// A vCPU.
pub trait Engine {
    /// What its clock counts.
    fn clock_kind(&self) -> ClockKind;

    /// Runs until a guest exit, a kick, or `stop`.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn run(&mut self, entry: VmEntry, stop: Stop) -> Result<VmExit, EngineError>;

    /// The clock now.
    fn clock(&self) -> Clock;

    /// Where it stands. Only after a natural exit or `Stopped`.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn point(&mut self) -> Result<(ExecPoint, RegisterDigest), EngineError>;

    /// Whether an interrupt can be taken here. Only after a natural exit or `Stopped`.
    fn interruptible(&self) -> bool;

    /// Makes the vCPU take interrupt `vector` at the next entry, before any other instruction.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn inject(&mut self, vector: u8) -> Result<(), EngineError>;

    /// What RDTSC yields from here on. Called before the first entry, and between entries whenever derived
    /// time is moved forward; the default is an engine on which RDTSC always leaves the guest.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] if the engine cannot do it.
    fn set_time(&mut self, time: TimeBase) -> Result<(), EngineError> {
        match time {
            TimeBase::Exit => Ok(()),
            TimeBase::Derived { .. } => Err(EngineError::Unsupported(
                "this engine has no derived time".into(),
            )),
        }
    }

    /// Bytes, disassembly and address of the instruction that made the natural exit `exit`, which the last
    /// run ended with, for a message; `None` where that cannot be known. Looks only.
    fn culprit(&mut self, exit: VmExit) -> Option<String> {
        let _ = exit;
        None
    }

    /// Ends what the last exit left under way, so that [`Engine::save`] is all there is to the vCPU: to be
    /// called before a state is saved that is to be restored. Only after `Stopped`, `Halt`, or a write; the
    /// default is an engine that leaves nothing.
    ///
    /// # Errors
    /// If the guest is in the middle of an instruction that makes several accesses.
    fn settle(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Ends what the last exit left under way, dropping what the instruction had still to do outside, so that
    /// [`Engine::restore`] is all there is to the vCPU: to be called before a state is put back over one that
    /// ran. Only after `Stopped`, `Halt`, or a write; registers and memory are not to be looked at after it.
    /// The default is an engine whose restore does that.
    ///
    /// # Errors
    /// If it does not end.
    fn abandon(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Forgets every translation of the guest's: the next accesses walk its page tables, as on a vCPU that
    /// [`Engine::restore`] was just called on. What a guest sees that changes its tables and does not flush
    /// depends on that, so both sides of a join do this there. Registers and memory are left as they are.
    ///
    /// Where the processor counts, the blocks that the guest counts all the same begin anew, as they do on a
    /// vCPU that was restored: no state has them, but the guest's flags show them.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn flush_translations(&mut self) -> Result<(), EngineError>;

    /// From now on notes (or no longer does) which pages of guest memory are written: by the guest, by
    /// devices, or by whomever through [`crate::memory::GuestMemory`]. What was noted so far is forgotten.
    /// Not noted in the beginning, as it costs something: on KVM a fault at the first write to each page
    /// after each [`Engine::dirty_pages`], on the software engine a slow store there. Where it is not asked
    /// for it costs nothing.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn note_dirty_pages(&mut self, noted: bool) -> Result<(), EngineError>;

    /// The pages written to since the last call, or since [`Engine::note_dirty_pages`]; a page may be there
    /// that was not, none is missing. Only between two runs, and while they are noted.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] if they are not noted, else see [`EngineError`].
    fn dirty_pages(&mut self) -> Result<PageSet, EngineError>;

    /// The vCPU's state, engine-neutral. Only after a natural exit or `Stopped`; after a read it is good for
    /// a digest only.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn save(&mut self) -> Result<crate::state::CpuState, EngineError>;

    /// Puts a saved state back.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn restore(&mut self, state: &crate::state::CpuState) -> Result<(), EngineError>;
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    fn clock_kind(&self) -> ClockKind {
        (**self).clock_kind()
    }

    fn run(&mut self, entry: VmEntry, stop: Stop) -> Result<VmExit, EngineError> {
        (**self).run(entry, stop)
    }

    fn clock(&self) -> Clock {
        (**self).clock()
    }

    fn point(&mut self) -> Result<(ExecPoint, RegisterDigest), EngineError> {
        (**self).point()
    }

    fn interruptible(&self) -> bool {
        (**self).interruptible()
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        (**self).inject(vector)
    }

    fn set_time(&mut self, time: TimeBase) -> Result<(), EngineError> {
        (**self).set_time(time)
    }

    fn settle(&mut self) -> Result<(), EngineError> {
        (**self).settle()
    }

    fn abandon(&mut self) -> Result<(), EngineError> {
        (**self).abandon()
    }

    fn culprit(&mut self, exit: VmExit) -> Option<String> {
        (**self).culprit(exit)
    }

    fn flush_translations(&mut self) -> Result<(), EngineError> {
        (**self).flush_translations()
    }

    fn note_dirty_pages(&mut self, noted: bool) -> Result<(), EngineError> {
        (**self).note_dirty_pages(noted)
    }

    fn dirty_pages(&mut self) -> Result<PageSet, EngineError> {
        (**self).dirty_pages()
    }

    fn save(&mut self) -> Result<crate::state::CpuState, EngineError> {
        (**self).save()
    }

    fn restore(&mut self, state: &crate::state::CpuState) -> Result<(), EngineError> {
        (**self).restore(state)
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
