//! What the guest's kernel did in a recording, by an exact replay: `tandem trace`.
//!
//! ```text
//!  replay ─┬─ every N instructions ──▶ kernel: which functions ─▶ profile ─▶ folded stacks, pprof
//!          └─ each change of privilege, each switch of tasks ───▶ tracks ──▶ Perfetto
//! ```
//!
//! The replay stops at these places and goes on; the guest does nothing else for it, and what is found is the same at
//! every run. Translated code is run in between.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod btf;
mod kernel;
mod memory;
mod profile;
mod symbols;
mod tracks;
mod unwind;

use crate::failure::Outcome;
use crate::look::witness::Sheet;
use kernel::Kernel;
use memory::{Guest, Look};
use profile::Profile;
use replay::file::LogReader;
use replay::replayer::Replayer;
use replica::outside::Discard;
use std::fs::File;
use std::io::BufWriter;
use std::num::NonZeroU64;
use std::path::PathBuf;
pub use symbols::Source;
use symbols::{Linked, Symbols};
use tracks::Tracks;
use vmm::machine::examine::{Advance, Examined};
use vmm::machine::{Ended, Machine, MachineError};
use vmm::soft::SoftEngine;
use vmm::soft::looking::{Debuggable, Pause, Transfer, Watch};

/// The log, replayed.
type Log = Replayer<LogReader, Discard>;

/// What is to be found out.
pub struct Plan {
    /// Where symbols are from.
    pub symbols: Source,
    /// Instructions between two looks at what runs.
    pub every: NonZeroU64,
    /// Where stacks are written to, a line each.
    pub folded: Option<PathBuf>,
    /// Where they are written to for pprof.
    pub pprof: Option<PathBuf>,
    /// Where the tracks are written to.
    pub perfetto: Option<PathBuf>,
}

/// So many instructions at least are between two looks for a kernel that was not there yet.
const SEARCH: u64 = 1 << 25;
/// Bits of CS that are the privilege; that of programs.
const PRIVILEGE: u16 = 3;
const USER: u16 = 3;
/// Number of a page fault (SDM volume 3, table 6-1).
const PAGE_FAULT: u8 = 14;

/// A replay that is traced.
pub struct Tracer {
    examined: Examined<SoftEngine>,
    replayer: Log,
    every: NonZeroU64,
    linked: Option<Linked>,
    kernel: Option<Kernel>,
    search_at: u64,
    /// Where the task that runs is.
    task: Option<u64>,
    profile: Profile,
    tracks: Option<Tracks>,
    folded: Option<Sheet<BufWriter<File>>>,
    pprof: Option<Sheet<BufWriter<File>>>,
}

impl Tracer {
    /// Of `machine`, which stands where `log` begins, by `plan`.
    ///
    /// # Errors
    /// If symbols cannot be read, or a file not be written.
    pub fn new(machine: Machine<SoftEngine>, log: LogReader, plan: Plan) -> Outcome<Self> {
        let linked = match &plan.symbols {
            Source::Memory => None,
            Source::File(path) => Some(Linked::read(path)?),
        };
        // What cannot be written is told before the replay, and not behind it.
        let tracks = plan.perfetto.as_deref().map(Tracks::create).transpose()?;
        let folded = plan.folded.as_deref().map(Sheet::create).transpose()?;
        let pprof = plan.pprof.as_deref().map(Sheet::create).transpose()?;
        Ok(Self {
            examined: Examined::new(machine),
            replayer: Replayer::new(log, Discard { console: None }),
            every: plan.every,
            linked,
            kernel: None,
            search_at: 0,
            task: None,
            profile: Profile::default(),
            tracks,
            folded,
            pprof,
        })
    }

    /// The replay, as far as it got.
    pub fn replayer(&mut self) -> &mut Log {
        &mut self.replayer
    }

    /// The machine.
    pub fn machine(&self) -> &Machine<SoftEngine> {
        self.examined.machine()
    }

    /// Runs to the end. How the machine ended, or why the replay did not get there; and whether tracing failed.
    ///
    /// # Errors
    /// If the symbols are those of another kernel.
    pub fn run(&mut self) -> Outcome<Result<Ended, MachineError>> {
        let every = self.every.get();
        let mut watch = Watch::default();
        watch.heed = true;
        let mut sample_at = self.steps().next_multiple_of(every).max(every);
        self.search_at = self.steps();
        loop {
            if self.kernel.is_none() && self.steps() >= self.search_at {
                self.find_kernel()?;
            }
            let search_at = match self.kernel {
                None => self.search_at,
                Some(_) => u64::MAX,
            };
            watch.until = Some(sample_at.min(search_at));
            self.examined.engine().leave(&mut watch);
            match self.examined.advance(&mut self.replayer, &mut watch) {
                Err(error) => return Ok(Err(error)),
                Ok(Advance::Ended(ended)) => return Ok(Ok(ended)),
                Ok(Advance::Paused(Pause::Transfer(transfer))) => self.transferred(transfer),
                Ok(Advance::Paused(Pause::Breakpoint)) => self.switched(),
                Ok(Advance::Paused(_)) => {
                    if self.steps() >= sample_at {
                        self.sample();
                        sample_at = (self.steps() + 1).next_multiple_of(every);
                    }
                }
            }
        }
    }

    fn steps(&self) -> u64 {
        self.examined.engine().steps()
    }

    /// Guest time; where that is not derived, the recording's.
    fn now_ns(&mut self) -> u64 {
        let derived = self.examined.machine().guest_ns();
        derived.unwrap_or_else(|| self.replayer.log_mut().at_us() * 1000)
    }

    fn find_kernel(&mut self) -> Outcome {
        self.search_at = self.steps() + SEARCH;
        let machine = self.examined.machine();
        let (engine, memory) = (machine.engine(), machine.memory());
        let look = Guest(engine);
        let kernel = Kernel::find(&look, engine, memory, self.linked.as_ref())?;
        let Some(kernel) = kernel else { return Ok(()) };
        self.task = kernel.current(&look);
        let switch = kernel.switch;
        self.kernel = Some(kernel);
        if let Some(at) = switch
            && !self.examined.probe(&[at])
        {
            // A kernel that is mapped is mapped as a whole: it is not this symbol's.
            self.task = None;
        }
        self.enter_task();
        Ok(())
    }

    /// `__switch_to(previous, next)` is about to run.
    fn switched(&mut self) {
        let state = self.examined.engine().view();
        const RSI: usize = 4;
        self.task = Some(state.general[RSI]);
        self.enter_task();
    }

    /// Another task runs.
    fn enter_task(&mut self) {
        let now = self.now_ns();
        let engine = self.examined.engine();
        let (Some(kernel), Some(at), Some(tracks)) = (&self.kernel, self.task, &mut self.tracks)
        else {
            return;
        };
        if let Some(task) = kernel.task(&Guest(engine), at) {
            tracks.switch(now, at, &task);
        }
    }

    fn transferred(&mut self, transfer: Transfer) {
        if self.tracks.is_none() {
            return;
        }
        let now = self.now_ns();
        let engine = self.examined.engine();
        let state = engine.view();
        let look = Guest(engine);
        let (Some(tracks), Some(task)) = (&mut self.tracks, self.task) else {
            return;
        };
        let [rax, _, _, _, rsi, rdi, rsp, _] = std::array::from_fn(|n| state.general[n]);
        let rdx = state.general[3];
        match transfer {
            Transfer::Call => {
                let number = rax as u32;
                let known = self.kernel.as_ref();
                if let Some(own) = known.and_then(|kernel| kernel.task(&look, task)) {
                    tracks.meet(now, task, &own);
                }
                let name = match &mut self.kernel {
                    Some(kernel) => kernel.call(number).to_owned(),
                    None => format!("system call {number}"),
                };
                tracks.call(now, task, &name, [rdi, rsi, rdx]);
            }
            Transfer::Event { vector, has_error } => {
                // What was pushed: RIP, CS, flags, RSP, SS; before it the error code of some.
                let error = if has_error { 8 } else { 0 };
                let word = |n: u64| look.u64(rsp.wrapping_add(error + 8 * n)).unwrap_or(0);
                let address = (vector == PAGE_FAULT).then_some(state.control[1]);
                tracks.event(now, task, vector, (word(0), word(3)), address);
            }
            Transfer::Return => {
                let program = state.segments[0].selector & PRIVILEGE == USER;
                tracks.returned(now, task, program.then_some(rax), rsp);
            }
        }
    }

    /// Adds what runs here to the profile.
    fn sample(&mut self) {
        let engine = self.examined.engine();
        let state = engine.view();
        let look = Guest(engine);
        let program = state.segments[0].selector & PRIVILEGE == USER;
        let (callers, task) = match &mut self.kernel {
            Some(kernel) => {
                let task = self.task.and_then(|at| kernel.task(&look, at));
                let callers = match program {
                    true => Vec::new(),
                    false => kernel.callers(&look, &state),
                };
                (callers, task)
            }
            None => (vec![state.rip], None),
        };
        let task = task.map_or("(no task known)".to_owned(), |task| task.name);
        self.profile.add(&task, program, &callers, self.every.get());
    }

    /// Writes what was found; in words, what there is.
    ///
    /// # Errors
    /// If it could not be written.
    pub fn finish(&mut self) -> Outcome<Findings> {
        let now = self.now_ns();
        let none = Symbols::default();
        let symbols = self.kernel.as_ref().map_or(&none, |kernel| &kernel.symbols);
        let mut written = Vec::new();
        if let Some(sheet) = &mut self.folded {
            self.profile.write_folded(symbols, sheet)?;
            written.push(format!("stacks in {}", sheet.path()));
        }
        if let Some(sheet) = &mut self.pprof {
            self.profile.write_pprof(symbols, self.every.get(), sheet)?;
            written.push(format!("the profile in {}", sheet.path()));
        }
        if let Some(tracks) = &mut self.tracks {
            written.push(tracks.finish(now)?);
        }
        let lacks = match &self.kernel {
            None => Some("no symbols of a kernel were found in the guest"),
            Some(kernel) => kernel.lacks(),
        };
        Ok(Findings {
            functions: self.profile.functions(symbols),
            samples: self.profile.samples(),
            written,
            lacks,
        })
    }
}

/// What a trace found.
pub struct Findings {
    /// Functions by the samples they were the innermost of, most first.
    pub functions: Vec<(String, u64)>,
    /// All samples.
    pub samples: u64,
    /// What was written, in words.
    pub written: Vec<String>,
    /// What could not be found out.
    pub lacks: Option<&'static str>,
}
