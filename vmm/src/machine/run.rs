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
use super::error::MachineError;
use super::state::{Machine, Standing};
use super::time::GuestClock;
use crate::engine::{Engine, EngineError, Halfway, VmEntry, VmExit};
use replay::{
    Anchor, Arrival, Clock, Delivery, ExecPoint, Here, Inputs, InputsError, Output, Question,
    RegisterDigest, Situation, Stop,
};
use std::convert::Infallible;

/// Exit status in the log of a guest that could not go on. It is no status a process can have.
pub const FAULT_STATUS: u32 = 0xfa17;

/// Exit status of a Linux guest that halted its processor for good, with interrupts disabled (`halt -f`), and
/// wrote no status before. It is no status a process can have.
pub const HALT_STATUS: u32 = 0xf4f4;

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

/// What a step of the loop came to.
pub(super) enum Step<P> {
    /// To the next stop; its exit is handled.
    Stopped,
    /// To a place before the vCPU is entered, where it was asked to pause.
    Paused,
    /// To a place inside an entry, where the vCPU paused.
    Inside(P),
    /// To the machine's end.
    Ended(Ended),
}

/// What steps 2 to 4 lead to.
enum Turn {
    Enter(Situation),
    End {
        here: Here,
        code: u32,
        stopped: bool,
    },
}

impl<E: Engine> Machine<E> {
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
    pub fn broke(&mut self, inputs: &mut dyn Inputs, error: MachineError) -> MachineError {
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
        let digest = self.digest_without_vcpu();
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
    /// Not asked where the guest waits for the answer to a read, nor at the place it goes on from. Where the
    /// guest is halted, inputs that are wanted to pause say so ([`InputsError::Paused`]), and it pauses, too.
    ///
    /// # Errors
    /// See [`MachineError`]. The machine is of no more use then.
    pub fn run_until(
        &mut self,
        inputs: &mut dyn Inputs,
        mut pause: impl FnMut(&Situation) -> bool,
    ) -> Result<Option<Ended>, MachineError> {
        let mut enter = |engine: &mut E, entry, stop| {
            let exit = engine.run(entry, stop)?;
            Ok::<Halfway<Infallible>, EngineError>(Halfway::Exit(exit))
        };
        loop {
            match self.step(inputs, &mut pause, &mut enter)? {
                Step::Stopped => {}
                Step::Paused => return Ok(None),
                Step::Ended(ended) => return Ok(Some(ended)),
                Step::Inside(never) => match never {},
            }
        }
    }

    /// The loop's one step: from where the machine stands to the next stop, whose exit is handled, or to a
    /// pause before that.
    ///
    /// `pause` is asked before the vCPU is entered, as [`Machine::run_until`] says. `enter` enters it; where
    /// it pauses in the middle, the next step goes on from there, with the same stop.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub(super) fn step<P>(
        &mut self,
        inputs: &mut dyn Inputs,
        pause: &mut impl FnMut(&Situation) -> bool,
        enter: &mut impl FnMut(&mut E, VmEntry, Stop) -> Result<Halfway<P>, EngineError>,
    ) -> Result<Step<P>, MachineError> {
        let stop = match self.standing {
            Standing::Inside(stop) => stop,
            Standing::Settled { natural } => {
                let here = self.here()?;
                inputs.next_stop(&self.situation(here, natural))?
            }
            Standing::Stopped { natural } => {
                let turn = match self.stopped(inputs, natural) {
                    // Nothing has changed: the halted guest is asked after again when the machine goes on.
                    Err(MachineError::Inputs(InputsError::Paused)) => return Ok(Step::Paused),
                    turn => turn?,
                };
                let now = match turn {
                    Turn::Enter(now) => now,
                    Turn::End {
                        here,
                        code,
                        stopped,
                    } => return self.end(inputs, here, code, stopped).map(Step::Ended),
                };
                self.standing = Standing::Settled { natural };
                if self.entry == VmEntry::Resume && pause(&now) {
                    return Ok(Step::Paused);
                }
                inputs.next_stop(&now)?
            }
        };
        let exit = match self.enter(inputs, stop, enter)? {
            Halfway::Exit(exit) => exit,
            Halfway::Paused(pause) => return Ok(Step::Inside(pause)),
        };
        let natural = exit != VmExit::Stopped;
        self.standing = Standing::Stopped { natural };
        let Some(code) = self.handle(inputs, exit)? else {
            return Ok(Step::Stopped);
        };
        let here = self.here()?;
        self.end(inputs, here, code, false).map(Step::Ended)
    }

    /// Where the vCPU stands, for an entry of the log: where [`Machine::run_until`] paused.
    ///
    /// # Errors
    /// If the vCPU cannot be read.
    pub fn here(&mut self) -> Result<Here, MachineError> {
        let (point, registers) = self.engine.point()?;
        Ok(Here { point, registers })
    }

    /// Steps 2 to 4.
    fn stopped(&mut self, inputs: &mut dyn Inputs, natural: bool) -> Result<Turn, MachineError> {
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
                return Ok(Turn::End {
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
        while let Some(window) = inputs.state_due(&here)? {
            let digest = self.digest(Some(window))?;
            inputs.state(&here, window, digest)?;
        }
        Ok(Turn::Enter(self.situation(here, natural)))
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
            clock_due_ns: self.board.clock_due_ns(),
            frames_room: self.board.frames_room(&self.memory),
            typed_room: self.board.typed_room(),
            time_ns: self.time.now_ns(here.point.clock),
        }
    }

    /// Step 5: enters the vCPU, up to `stop`, until it exits for good or pauses in the middle. Each time it is
    /// kicked the inputs are told of progress, and asked for the stop again.
    fn enter<P>(
        &mut self,
        inputs: &mut dyn Inputs,
        mut stop: Stop,
        enter: &mut impl FnMut(&mut E, VmEntry, Stop) -> Result<Halfway<P>, EngineError>,
    ) -> Result<Halfway<P>, MachineError> {
        assert!(!self.halted, "a halted vCPU is not entered");
        loop {
            let entry = std::mem::replace(&mut self.entry, VmEntry::Resume);
            self.standing = Standing::Inside(stop);
            let left = enter(&mut self.engine, entry, stop)?;
            if !matches!(left, Halfway::Exit(VmExit::Kicked)) {
                return Ok(left);
            }
            let clock = self.engine.clock();
            inputs.kicked(clock)?;
            stop = inputs.next_stop(&self.kicked(clock))?;
        }
    }

    /// The situation of a vCPU that was kicked: nothing is known of it but its clock.
    fn kicked(&self, clock: Clock) -> Situation {
        let point = ExecPoint {
            clock,
            ..Default::default()
        };
        let registers = RegisterDigest::default();
        Situation {
            interruptible: false,
            ..self.situation(Here { point, registers }, false)
        }
    }

    /// Step 1. The exit status, if the guest switched itself off.
    fn handle(
        &mut self,
        inputs: &mut dyn Inputs,
        exit: VmExit,
    ) -> Result<Option<u32>, MachineError> {
        match exit {
            VmExit::Stopped | VmExit::Kicked => Ok(None),
            VmExit::Halt => {
                self.halted = true;
                let goes_on = self.engine.interruptible();
                let status = self.board.halted_status().filter(|_| !goes_on);
                self.emit(inputs, |board, out| {
                    board.flush_console(out);
                    out.extend(status.map(|code| Output::PowerOff { code }));
                })?;
                Ok(status)
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
                let write = Write {
                    bus,
                    address,
                    size,
                    value,
                };
                self.write_exit(inputs, write, exit)
            }
        }
    }

    /// Step 1 for a write. The exit status, if it ended the machine.
    fn write_exit(
        &mut self,
        inputs: &mut dyn Inputs,
        write: Write,
        exit: VmExit,
    ) -> Result<Option<u32>, MachineError> {
        let here = self.here()?;
        let mut out = Vec::new();
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

    fn end(
        &mut self,
        inputs: &mut dyn Inputs,
        here: Here,
        code: u32,
        stopped: bool,
    ) -> Result<Ended, MachineError> {
        let digest = self.digest(None)?;
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
