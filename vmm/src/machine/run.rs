//! The run loop: value in, value out.
//!
//! At every stop, in this order, on primary and backup alike:
//!
//! 1. the exit is handled (answers and outputs are entries, in the order the guest makes them);
//! 2. arrivals are delivered, each an entry;
//! 3. if the stop is natural or something was delivered at it, and the vCPU can take an interrupt, the
//!    one the interrupt controller has is injected;
//! 4. a state digest, if due, is taken;
//! 5. the vCPU is entered, up to the next stop.

use super::board::legacy::RESET_STATUS;
use super::board::{Board, BoardError, Write, Wrote};
use super::config::MachineConfig;
use super::time::{GuestClock, TimeError};
use super::{boot, reset, snapshot};
use crate::engine::{Engine, EngineError, VmEntry, VmExit};
use crate::memory::GuestMemory;
use replay::divergence::Divergence;
use replay::{
    Anchor, Arrival, Clock, Delivery, ExecPoint, Here, Inputs, InputsError, Output, Question,
    RegisterDigest, Situation, StateWindow,
};

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
    Boot(#[from] boot::BootError),
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
    Snapshot(#[from] snapshot::SnapshotError),
}

/// Exit status in the log of a guest that could not go on. It is no status a process can have.
pub const FAULT_STATUS: u32 = 0xfa17;

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

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The guest's exit status; 0 when stopped from outside.
    pub code: u32,
    /// Whether the operator asked for it.
    pub stopped: bool,
    /// The clock at the end.
    pub clock: Clock,
    /// Digest of memory and all state.
    pub digest: u64,
}

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
    /// Steps 2 to 4 are done at the stop it stands at; whether that one is natural.
    pub(super) settled: Option<bool>,
    /// What it starts over from, if its guest resets it.
    pub(super) origin: Option<reset::Origin>,
}

/// How chips ask at `here`: derived time answers what it can, `inputs` the rest.
fn asking(
    inputs: &mut dyn Inputs,
    time: GuestClock,
    here: Here,
) -> impl FnMut(Question) -> Result<u64, InputsError> {
    move |question| match time.answer(question, here.point.clock) {
        Some(value) => Ok(value),
        None => inputs.answer(&here, question),
    }
}

/// What a stop leads to.
pub(super) enum Next {
    Enter(Situation),
    End {
        here: Here,
        code: u32,
        stopped: bool,
    },
}

impl<E: Engine> Machine<E> {
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
            settled: None,
            origin: None,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its vCPU.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Digest of the vCPU, every device, and the pages of `window` (all memory if `None`).
    ///
    /// # Errors
    /// If the vCPU's state cannot be read.
    pub fn digest(&mut self, window: Option<StateWindow>) -> Result<u64, MachineError> {
        Ok(snapshot::digest(self, window)?)
    }

    /// Runs to the machine's end.
    ///
    /// A guest that cannot go on ends its log with [`FAULT_STATUS`]: a replica or a replay that gets there
    /// must fail, too.
    ///
    /// # Errors
    /// See [`MachineError`]. The machine is of no more use then.
    pub fn run(&mut self, inputs: &mut dyn Inputs) -> Result<Ended, MachineError> {
        match self.run_to_end(inputs) {
            Err(error) => Err(self.broke(inputs, error)),
            ended => ended,
        }
    }

    /// The machine failed with `error`: if that is the guest's doing, lets out what it had to say, and
    /// notes the end. Where that fails, too, both reasons are told.
    ///
    /// Place and registers are not noted: where a vCPU stands that can go no further, engines do not agree.
    /// The clock, which counts the failure, names the place.
    pub(super) fn broke(&mut self, inputs: &mut dyn Inputs, error: MachineError) -> MachineError {
        if !error.is_the_guests() {
            return error;
        }
        let here = Here {
            point: ExecPoint {
                clock: self.engine.clock(),
                ..Default::default()
            },
            registers: RegisterDigest::default(),
        };
        let mut out = Vec::new();
        self.board.flush_console(&mut out);
        let digest = snapshot::digest_without_vcpu(self);
        let noted = out
            .into_iter()
            .try_for_each(|output| inputs.output(&here, output))
            .and_then(|()| inputs.end(&here, FAULT_STATUS, digest));
        match noted {
            Ok(()) => error,
            Err(other) => MachineError::Unnoted {
                reason: Box::new(error),
                error: other,
            },
        }
    }

    fn run_to_end(&mut self, inputs: &mut dyn Inputs) -> Result<Ended, MachineError> {
        loop {
            if let Some(ended) = self.run_until(inputs, |_| false)? {
                return Ok(ended);
            }
        }
    }

    /// Runs to the machine's end, or to a stop `pause` says yes to: `None` then. All is done there but
    /// entering the guest, so that the machine can be saved, and goes on by another run, its copies too.
    /// Not asked where the guest waits for the answer to a read, nor at the place it goes on from.
    ///
    /// # Errors
    /// See [`MachineError`]. The machine is of no more use then.
    pub fn run_until(
        &mut self,
        inputs: &mut dyn Inputs,
        mut pause: impl FnMut(&Situation) -> bool,
    ) -> Result<Option<Ended>, MachineError> {
        let mut natural = true;
        let mut ask = self.settled.is_none();
        loop {
            let now = match self.next(inputs, natural)? {
                Next::Enter(now) => now,
                Next::End {
                    here,
                    code,
                    stopped,
                } => return self.end(inputs, here, code, stopped).map(Some),
            };
            if ask && self.entry == VmEntry::Resume && pause(&now) {
                self.settled = Some(now.natural);
                return Ok(None);
            }
            ask = true;
            let exit = self.enter(inputs, now)?;
            natural = exit != VmExit::Stopped;
            if let Some(code) = self.handle(inputs, exit)? {
                let here = self.here()?;
                return self.end(inputs, here, code, false).map(Some);
            }
        }
    }

    /// Steps 2 to 4, unless they are done.
    pub(super) fn next(
        &mut self,
        inputs: &mut dyn Inputs,
        natural: bool,
    ) -> Result<Next, MachineError> {
        let Some(natural) = self.settled.take() else {
            return self.stopped(inputs, natural);
        };
        let here = self.here()?;
        Ok(Next::Enter(self.situation(here, natural)))
    }

    pub(super) fn here(&mut self) -> Result<Here, MachineError> {
        let (point, registers) = self.engine.point()?;
        Ok(Here { point, registers })
    }

    /// Steps 2 to 4.
    fn stopped(&mut self, inputs: &mut dyn Inputs, natural: bool) -> Result<Next, MachineError> {
        let here = self.here()?;
        if self.halted && !self.engine.interruptible() {
            let why = "it halted with interrupts disabled".to_owned();
            return Err(EngineError::GuestFault {
                at: here.point,
                why,
            }
            .into());
        }
        let mut now = self.situation(here, natural);
        let mut delivered = false;
        while let Some(Delivery { arrival, anchor }) = inputs.arrival(&now)? {
            self.anchor(here.point, anchor)?;
            if arrival == Arrival::Stop {
                return Ok(Next::End {
                    here,
                    code: 0,
                    stopped: true,
                });
            }
            self.board
                .deliver(&self.memory, arrival)
                .map_err(|error| MachineError::Board {
                    at: here.point,
                    error,
                    culprit: None,
                })?;
            delivered = true;
            now = self.situation(here, natural);
        }
        if (natural || delivered) && now.interruptible && now.interrupt_pending {
            self.engine.inject(self.board.acknowledge())?;
            self.halted = false;
        }
        if let Some(window) = inputs.state_due(&here)? {
            let digest = snapshot::digest(self, Some(window))?;
            inputs.state(&here, window, digest)?;
        }
        Ok(Next::Enter(self.situation(here, natural)))
    }

    /// Brings derived time forward, for the chips and for the vCPU.
    fn anchor(&mut self, at: ExecPoint, anchor: Anchor) -> Result<(), MachineError> {
        if anchor == Anchor::NONE {
            return Ok(());
        }
        self.time
            .advance(anchor)
            .map_err(|error| MachineError::Time { at, error })?;
        Ok(self.engine.set_time(self.time.base())?)
    }

    fn situation(&self, here: Here, natural: bool) -> Situation {
        Situation {
            here,
            interruptible: self.engine.interruptible(),
            interrupt_pending: self.board.interrupt_pending(),
            natural,
            halted: self.halted,
            timer: self.board.timer(),
            frames_room: self.board.frames_room(&self.memory),
            typed_room: self.board.typed_room(),
            time_ns: self.time.now_ns(here.point.clock),
        }
    }

    /// Step 5: enters the vCPU until it exits for good, telling of progress when it is kicked.
    fn enter(
        &mut self,
        inputs: &mut dyn Inputs,
        mut now: Situation,
    ) -> Result<VmExit, MachineError> {
        assert!(!self.halted, "a halted vCPU is not entered");
        let mut entry = std::mem::replace(&mut self.entry, VmEntry::Resume);
        loop {
            let stop = inputs.next_stop(&now)?;
            let exit = self.engine.run(entry, stop)?;
            if exit != VmExit::Kicked {
                return Ok(exit);
            }
            entry = VmEntry::Resume;
            let clock = self.engine.clock();
            inputs.kicked(clock)?;
            let here = Here {
                point: ExecPoint {
                    clock,
                    ..Default::default()
                },
                registers: RegisterDigest::default(),
            };
            now = Situation {
                here,
                time_ns: self.time.now_ns(clock),
                natural: false,
                interruptible: false,
                ..now
            };
            now.frames_room = self.board.frames_room(&self.memory);
        }
    }

    /// Step 1. The exit status, if the guest switched itself off.
    pub(super) fn handle(
        &mut self,
        inputs: &mut dyn Inputs,
        exit: VmExit,
    ) -> Result<Option<u32>, MachineError> {
        match exit {
            VmExit::Stopped | VmExit::Kicked => Ok(None),
            VmExit::Halt => {
                self.halted = true;
                self.emit(inputs, |board, out| board.flush_console(out))?;
                Ok(None)
            }
            VmExit::Read { bus, address, size } => {
                let here = self.here()?;
                let ask = &mut asking(inputs, self.time, here);
                let value = self
                    .board
                    .read(bus, address, size, ask)
                    .map_err(|error| self.board_error(here.point, error, exit))?;
                self.entry = VmEntry::ReadData(value);
                Ok(None)
            }
            VmExit::Write {
                bus,
                address,
                size,
                value,
            } => {
                let here = self.here()?;
                let mut out = Vec::new();
                let write = Write {
                    bus,
                    address,
                    size,
                    value,
                };
                let wrote = self
                    .board
                    .write(
                        &self.memory,
                        write,
                        &mut asking(inputs, self.time, here),
                        &mut out,
                    )
                    .map_err(|error| self.board_error(here.point, error, exit))?;
                let ends = wrote == Wrote::Reset && !self.config.reboots;
                if ends {
                    out.push(Output::PowerOff { code: RESET_STATUS });
                }
                for output in out {
                    inputs.output(&here, output)?;
                }
                match wrote {
                    Wrote::Done => Ok(None),
                    Wrote::PowerOff(code) => Ok(Some(code)),
                    Wrote::Reset if ends => Ok(Some(RESET_STATUS)),
                    Wrote::Reset => {
                        self.start_over()?;
                        Ok(None)
                    }
                }
            }
        }
    }

    fn emit(
        &mut self,
        inputs: &mut dyn Inputs,
        collect: impl FnOnce(&mut Board, &mut Vec<Output>),
    ) -> Result<(), MachineError> {
        let mut out = Vec::new();
        collect(&mut self.board, &mut out);
        if out.is_empty() {
            return Ok(());
        }
        let here = self.here()?;
        for output in out {
            inputs.output(&here, output)?;
        }
        Ok(())
    }

    /// Inputs errors that came through a device's question are the inputs' own.
    fn board_error(&mut self, at: ExecPoint, error: BoardError, exit: VmExit) -> MachineError {
        match error {
            BoardError::Inputs(inner) => MachineError::Inputs(inner),
            error => MachineError::Board {
                at,
                error,
                culprit: self.engine.culprit(exit),
            },
        }
    }

    pub(super) fn end(
        &mut self,
        inputs: &mut dyn Inputs,
        here: Here,
        code: u32,
        stopped: bool,
    ) -> Result<Ended, MachineError> {
        let digest = snapshot::digest(self, None)?;
        inputs.end(&here, code, digest)?;
        Ok(Ended {
            code,
            stopped,
            clock: here.point.clock,
            digest,
        })
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
