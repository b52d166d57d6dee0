//! A vCPU on the software processor.
//!
//! Its clock is the processor's own count of instructions, or the blocks the guest counts; natural exits
//! count one each on either.

use super::convert;
use super::executor::Executor;
use crate::cpu::{CpuModel, Offer};
use crate::engine::{Bus, Engine, EngineError, Halfway, TimeBase, VmEntry, VmExit};
use crate::kick::{self, Target};
use crate::memory::{self, GuestMemory, PageSet};
use crate::state::CpuState;
use replay::{Clock, ClockKind, ExecPoint, RegisterDigest, Stop, digest};
use soft::memory::{Physical, Region};
use soft::model::{Leaf, Model};
use soft::trap::{Access, Space};
use soft::watch::{Pause, Watch, Watched};
use soft::{Exit, Soft};
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

/// A block budget that never runs out.
const ENDLESS: u64 = 1 << 63;

/// What [`SoftEngine::counters`] is; fields as in the engine.
#[derive(Clone, Copy)]
pub(super) struct Counters {
    blocks: u64,
    budget: u64,
    /// The budget word as the guest left it.
    word: u64,
    trap_due: bool,
    reading: bool,
    injected: bool,
}

/// A bare processor of `model` over `memory` and `more`: an engine's, or one to be stepped by hand.
///
/// # Safety
/// `memory` must outlive the processor, and nobody else may touch it while the processor runs.
#[must_use]
pub unsafe fn processor(
    memory: &GuestMemory,
    more: impl IntoIterator<Item = Region>,
    model: CpuModel,
    offer: Offer,
) -> Soft {
    let own = memory.iter().map(|region| {
        region.bitmap().writes().watch();
        // SAFETY: the caller says so.
        unsafe { Region::new(region.start_addr().0, region.len(), region.as_ptr()) }
    });
    let leaves = model.leaves(offer).into_iter().map(|leaf| Leaf {
        function: leaf.function,
        index: leaf.index,
        registers: leaf.registers,
    });
    let regions = own.chain(more).collect();
    Soft::new(Physical::new(regions), Model::new(leaves.collect()))
}

/// A vCPU on the software processor. It belongs to the thread that made it.
pub struct SoftEngine {
    // Order matters: the kick target points into `kicked` and must go first.
    target: Target,
    kicked: Box<AtomicBool>,
    soft: Soft,
    memory: GuestMemory,
    clock_page: MmapRegion,
    kind: ClockKind,
    /// The `Blocks` clock.
    blocks: u64,
    /// What the budget word was set to at the last entry.
    budget: u64,
    trap_due: bool,
    /// The guest waits for the answer to a read.
    reading: bool,
    injected: bool,
    /// Whether dirty pages are noted.
    notes: bool,
}

impl SoftEngine {
    /// A vCPU over `memory` that counts `kind`. To be made on the thread that will run it.
    ///
    /// # Errors
    /// If the clock is none this engine has, or the host has no memory or no signal for us.
    pub fn new(
        memory: GuestMemory,
        model: CpuModel,
        offer: Offer,
        kind: ClockKind,
    ) -> Result<Self, EngineError> {
        if kind == ClockKind::Branches {
            let why = "the software engine counts instructions or blocks, not branches";
            return Err(EngineError::Unsupported(why.into()));
        }
        kick::install().map_err(|source| EngineError::Ioctl {
            operation: "cannot install the kick signal's handler".into(),
            source,
        })?;
        let clock_page = MmapRegion::<()>::new(4096).map_err(|e| EngineError::Ioctl {
            operation: "cannot map the clock page".into(),
            source: std::io::Error::other(e),
        })?;
        // SAFETY: the page lives as long as the engine.
        let clock_region = unsafe { Region::new(abi::CLOCK_PAGE, 4096, clock_page.as_ptr()) };
        // SAFETY: the engine keeps `memory`; devices touch it only while the guest is stopped.
        let mut soft = unsafe { processor(&memory, [clock_region], model, offer) };
        Executor::of_process().prepare(&mut soft);
        let kicked = Box::new(AtomicBool::new(false));
        // SAFETY: the box is dropped after the target, on this thread: the engine is not `Send`.
        let target = unsafe { Target::new(kicked.as_ptr().cast()) };
        Ok(Self {
            target,
            kicked,
            soft,
            memory,
            clock_page,
            kind,
            blocks: 0,
            budget: ENDLESS,
            trap_due: false,
            reading: false,
            injected: false,
            notes: false,
        })
    }

    fn word(&self) -> *mut u64 {
        self.clock_page.as_ptr().cast()
    }

    fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
        // SAFETY: the page is ours, and the guest, the only other writer, is stopped.
        unsafe { self.word().write(budget) };
    }

    /// Brings the `Blocks` clock up to what the guest has counted.
    fn count(&mut self) -> Result<(), EngineError> {
        if self.kind != ClockKind::Blocks {
            return Ok(());
        }
        // SAFETY: as in `set_budget`.
        let word = unsafe { self.word().read() };
        let Some(used) = self.budget.checked_sub(word) else {
            return Err(self.fault(&format!("it altered its block budget ({word:#x})")));
        };
        self.blocks += used;
        self.budget = word;
        self.trap_due = word == 0;
        Ok(())
    }

    /// The processor.
    pub(super) fn soft(&self) -> &Soft {
        &self.soft
    }

    /// The processor.
    pub(super) fn soft_mut(&mut self) -> &mut Soft {
        &mut self.soft
    }

    /// What the engine counts and remembers besides the processor.
    pub(super) fn counters(&self) -> Counters {
        Counters {
            blocks: self.blocks,
            budget: self.budget,
            // SAFETY: as in `set_budget`.
            word: unsafe { self.word().read() },
            trap_due: self.trap_due,
            reading: self.reading,
            injected: self.injected,
        }
    }

    /// Puts [`SoftEngine::counters`] back.
    pub(super) fn set_counters(&mut self, counters: Counters) {
        self.set_budget(counters.word);
        self.blocks = counters.blocks;
        self.budget = counters.budget;
        self.trap_due = counters.trap_due;
        self.reading = counters.reading;
        self.injected = counters.injected;
    }

    fn natural(&mut self) {
        match self.kind {
            ClockKind::Blocks => self.blocks += 1,
            _ => self.soft.cpu.clock += 1,
        }
    }

    fn here(&self) -> ExecPoint {
        ExecPoint {
            clock: self.clock(),
            rip: self.soft.cpu.rip,
            rcx: self.soft.cpu.regs[1],
        }
    }

    /// The guest cannot go on. That counts as a natural exit does: what lies at the count before it can be
    /// reached by a replay, and so can this.
    fn fault(&mut self, why: &str) -> EngineError {
        self.natural();
        EngineError::GuestFault {
            at: self.here(),
            why: why.to_owned(),
        }
    }

    /// Takes note of what devices wrote to: instructions decoded from there are dropped.
    fn follow_writes(&mut self) {
        for page in memory::written(&self.memory) {
            self.soft.page_written(page);
        }
    }

    /// Enters the guest; pauses in the middle as `watch` asks. A run that paused goes on by the same call
    /// with [`VmEntry::Resume`].
    pub(super) fn enter(
        &mut self,
        entry: VmEntry,
        stop: Stop,
        mut watch: Option<&mut Watch>,
    ) -> Result<Halfway<Pause>, EngineError> {
        match entry {
            VmEntry::ReadData(value) if std::mem::take(&mut self.reading) => {
                self.soft.answer(value);
            }
            VmEntry::Resume if !self.reading => {}
            _ => panic!(
                "{entry:?} does not fit: waiting for an answer is {}",
                self.reading
            ),
        }
        self.follow_writes();
        self.injected = false;
        let goal = match stop {
            Stop::Never => None,
            Stop::Soon => Some(self.clock().0 + 1),
            // Blocks stop at the guest's traps only.
            Stop::Window if self.kind == ClockKind::Blocks => Some(self.blocks + 1),
            Stop::Window => None,
            Stop::At(clock) => Some(clock.0),
        };
        let mut kicked = false;
        loop {
            let mut until = u64::MAX;
            if self.kind == ClockKind::Blocks {
                if !self.trap_due {
                    self.set_budget(goal.map_or(ENDLESS, |goal| goal - self.blocks));
                }
            } else {
                until = goal.unwrap_or(u64::MAX);
            }
            let window = until == u64::MAX && stop == Stop::Window;
            let window = window && self.kind == ClockKind::Instructions;
            let exit = match watch.as_deref_mut() {
                None => self.soft.run(until, window, &self.kicked),
                Some(watch) => match self.soft.run_watched(until, watch, &self.kicked) {
                    Watched::Exit(exit) => exit,
                    Watched::Paused(pause) => {
                        self.count()?;
                        return Ok(Halfway::Paused(pause));
                    }
                },
            };
            self.count()?;
            match exit {
                Exit::Stopped => return Ok(Halfway::Exit(VmExit::Stopped)),
                Exit::Kicked => {
                    self.target.clear();
                    kicked = true;
                    if self.trap_due {
                        continue;
                    }
                    return Ok(Halfway::Exit(VmExit::Kicked));
                }
                Exit::Read(access) | Exit::Write(access) => {
                    if let Some(exit) = self.access_exit(access)? {
                        return Ok(Halfway::Exit(exit));
                    }
                }
                Exit::Halt => {
                    self.natural();
                    return Ok(Halfway::Exit(VmExit::Halt));
                }
                Exit::TripleFault => {
                    let (Ok(at) | Err(at)) = self.soft.instruction();
                    return Err(self.fault(&format!("triple fault: {at}")));
                }
                Exit::Unimplemented => {
                    let why = self.soft.describe();
                    return Err(self.fault(&why));
                }
            }
            // A block trap ended.
            if goal == Some(self.blocks) {
                return Ok(Halfway::Exit(VmExit::Stopped));
            }
            if kicked {
                return Ok(Halfway::Exit(VmExit::Kicked));
            }
        }
    }

    /// The exit an access is; `None` for the store a block trap makes.
    fn access_exit(&mut self, access: Access) -> Result<Option<VmExit>, EngineError> {
        let (bus, address, size) = (bus(access.space), access.address, access.size);
        let Some(value) = access.value else {
            self.natural();
            self.reading = true;
            return Ok(Some(VmExit::Read { bus, address, size }));
        };
        let trap = abi::CONTROL_PAGE + abi::control::TRAP;
        if self.kind == ClockKind::Blocks && bus == Bus::Mmio && address == trap {
            if !std::mem::take(&mut self.trap_due) {
                return Err(self.fault("it stored to the trap register within its budget"));
            }
            return Ok(None);
        }
        self.natural();
        Ok(Some(VmExit::Write {
            bus,
            address,
            size,
            value,
        }))
    }
}

fn bus(space: Space) -> Bus {
    match space {
        Space::Port => Bus::Port,
        Space::Memory => Bus::Mmio,
        Space::Tsc => Bus::Tsc,
    }
}

impl Engine for SoftEngine {
    fn clock_kind(&self) -> ClockKind {
        self.kind
    }

    fn run(&mut self, entry: VmEntry, stop: Stop) -> Result<VmExit, EngineError> {
        match self.enter(entry, stop, None)? {
            Halfway::Exit(exit) => Ok(exit),
            Halfway::Paused(_) => unreachable!("nobody watches"),
        }
    }

    fn clock(&self) -> Clock {
        Clock(match self.kind {
            ClockKind::Blocks => self.blocks,
            _ => self.soft.cpu.clock,
        })
    }

    fn point(&mut self) -> Result<(ExecPoint, RegisterDigest), EngineError> {
        let cpu = &self.soft.cpu;
        let flags = cpu.rflags() & !convert::NOT_THE_GUESTS;
        let registers = digest::registers(cpu.rip, flags, &convert::general(cpu));
        Ok((self.here(), registers))
    }

    fn interruptible(&self) -> bool {
        self.soft.cpu.interruptible() && !self.injected
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.soft.interrupt(vector);
        self.injected = true;
        Ok(())
    }

    fn set_time(&mut self, time: TimeBase) -> Result<(), EngineError> {
        self.soft.cpu.time = match time {
            TimeBase::Exit => soft::cpu::TimeBase::Outside,
            TimeBase::Derived { ns_at_zero } if self.kind == ClockKind::Instructions => {
                soft::cpu::TimeBase::Clock(ns_at_zero)
            }
            // Guests that count for themselves ask the board, whose time may be derived all the same.
            TimeBase::Derived { .. } => soft::cpu::TimeBase::Outside,
        };
        Ok(())
    }

    fn settle(&mut self) -> Result<(), EngineError> {
        if self.reading || self.soft.is_under_way() {
            let why = "the guest is in the middle of an access";
            return Err(EngineError::Unsupported(why.into()));
        }
        Ok(())
    }

    fn culprit(&mut self, exit: VmExit) -> Option<String> {
        match exit {
            VmExit::Write { .. } => self.soft.writer(),
            _ => self.soft.instruction().ok(),
        }
    }

    fn flush_translations(&mut self) -> Result<(), EngineError> {
        self.soft.flush_translations();
        if self.kind != ClockKind::Blocks {
            self.set_budget(ENDLESS);
        }
        Ok(())
    }

    fn note_dirty_pages(&mut self, noted: bool) -> Result<(), EngineError> {
        self.follow_writes();
        let pages = memory::page_count(&self.memory).next_multiple_of(64);
        self.soft.note_writes(if noted { pages } else { 0 });
        self.notes = noted;
        Ok(())
    }

    fn dirty_pages(&mut self) -> Result<PageSet, EngineError> {
        if !self.notes {
            return Err(EngineError::not_noted());
        }
        self.follow_writes();
        let mut pages = PageSet::new(memory::page_count(&self.memory));
        pages.insert_words(&self.soft.take_written());
        Ok(pages)
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        Ok(CpuState {
            clock: self.clock(),
            injected: self.soft.pending_interrupt(),
            ..convert::save(&self.soft.cpu)
        })
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.soft.forget();
        convert::restore(&mut self.soft.cpu, state)?;
        self.soft.cpu.clock = state.clock.0;
        self.blocks = state.clock.0;
        self.set_budget(ENDLESS);
        self.trap_due = false;
        self.reading = false;
        self.soft.forget_interrupt();
        if let Some(vector) = state.injected {
            self.soft.interrupt(vector);
        }
        self.injected = state.injected.is_some();
        self.kicked.store(false, Ordering::Relaxed);
        Ok(())
    }
}
