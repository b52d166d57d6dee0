//! A machine whose run can be paused at any instruction, looked at, and taken back.
//!
//! ```text
//!  Examined::advance ─▶ the run loop's steps (see `run`), but the vCPU pauses inside an entry
//!  checkpoint / put_back: vCPU, chips, pages of memory, and where in the loop it stands
//! ```
//!
//! The loop sees nothing of a pause: the entry it is in goes on with the same stop.

use super::run::{Ended, Machine, MachineError, Next};
use super::snapshot::{Chips, SnapshotError};
use super::time::GuestClock;
use crate::engine::{VmEntry, VmExit};
use crate::soft::looking::{Debuggable, Halfway, Pause, Watch};
use replay::{Inputs, Stop};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const PAGE: usize = 4096;

/// How an advance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// Paused, as asked.
    Paused(Pause),
    /// The machine ended.
    Ended(Ended),
}

/// A machine under examination.
pub struct Examined<E> {
    machine: Machine<E>,
    /// Whether the last exit was natural.
    natural: bool,
    /// The stop of the entry it is paused in.
    inside: Option<Stop>,
}

/// Memory at some time; pages that did not change since the checkpoint before are shared with it.
type Pages = Vec<Arc<[u8; PAGE]>>;

/// A machine at an earlier time.
pub struct Checkpoint<C> {
    engine: C,
    chips: Chips,
    time: GuestClock,
    entry: VmEntry,
    settled: Option<bool>,
    natural: bool,
    inside: Option<Stop>,
    pages: Pages,
}

impl<C> Checkpoint<C> {
    /// Bytes of memory this checkpoint holds and `before`, the one it was made after, does not.
    #[must_use]
    pub fn bytes_beyond(&self, before: Option<&Self>) -> u64 {
        let shared = before.map_or(0, |before| {
            let pairs = self.pages.iter().zip(&before.pages);
            pairs.filter(|(a, b)| Arc::ptr_eq(a, b)).count()
        });
        ((self.pages.len() - shared) * PAGE) as u64
    }
}

impl<E: Debuggable> Examined<E> {
    /// Examines `machine`, which has not run yet, or was saved where [`Machine::run_until`] paused.
    pub fn new(machine: Machine<E>) -> Self {
        Self {
            machine,
            natural: true,
            inside: None,
        }
    }

    /// The vCPU.
    pub fn engine(&self) -> &E {
        &self.machine.engine
    }

    /// The machine.
    pub fn machine(&self) -> &Machine<E> {
        &self.machine
    }

    /// Runs until `watch` asks for a pause, or to the machine's end.
    ///
    /// # Errors
    /// As for [`Machine::run`]. The machine can only be put back then.
    pub fn advance(
        &mut self,
        inputs: &mut dyn Inputs,
        watch: &mut Watch,
    ) -> Result<Advance, MachineError> {
        match self.advance_within(inputs, watch) {
            Err(error) => Err(self.machine.broke(inputs, error)),
            advanced => advanced,
        }
    }

    fn advance_within(
        &mut self,
        inputs: &mut dyn Inputs,
        watch: &mut Watch,
    ) -> Result<Advance, MachineError> {
        let machine = &mut self.machine;
        loop {
            let stop = match self.inside {
                Some(stop) => stop,
                None => match machine.next(inputs, self.natural)? {
                    Next::Enter(now) => inputs.next_stop(&now)?,
                    Next::End {
                        here,
                        code,
                        stopped,
                    } => {
                        let ended = machine.end(inputs, here, code, stopped)?;
                        return Ok(Advance::Ended(ended));
                    }
                },
            };
            let entry = std::mem::replace(&mut machine.entry, VmEntry::Resume);
            self.inside = Some(stop);
            let exit = match machine.engine.run_watched(entry, stop, watch)? {
                Halfway::Paused(pause) => return Ok(Advance::Paused(pause)),
                Halfway::Exit(VmExit::Kicked) => continue,
                Halfway::Exit(exit) => exit,
            };
            self.inside = None;
            self.natural = exit != VmExit::Stopped;
            if let Some(code) = machine.handle(inputs, exit)? {
                let here = machine.here()?;
                let ended = machine.end(inputs, here, code, false)?;
                return Ok(Advance::Ended(ended));
            }
        }
    }

    /// The machine as it is; only at a pause. `before`: an earlier checkpoint to share memory with.
    pub fn checkpoint(
        &self,
        before: Option<&Checkpoint<E::Checkpoint>>,
    ) -> Checkpoint<E::Checkpoint> {
        let machine = &self.machine;
        let zero = Arc::new([0; PAGE]);
        let count = machine.config.memory_bytes() as usize / PAGE;
        let mut pages = Vec::with_capacity(count);
        let mut page = [0; PAGE];
        for number in 0..count {
            self.read_page(number, &mut page);
            let known = before.map_or(&zero, |before| &before.pages[number]);
            pages.push(if **known == page {
                known.clone()
            } else {
                Arc::new(page)
            });
        }
        Checkpoint {
            engine: machine.engine.checkpoint(),
            chips: machine.chips(),
            time: machine.time,
            entry: machine.entry,
            settled: machine.settled,
            natural: self.natural,
            inside: self.inside,
            pages,
        }
    }

    /// Takes the machine back to `checkpoint`, from wherever it is.
    ///
    /// # Errors
    /// If a chip or the vCPU does not take its own state: a bug.
    pub fn put_back(&mut self, checkpoint: &Checkpoint<E::Checkpoint>) -> Result<(), MachineError> {
        let mut page = [0; PAGE];
        for (number, kept) in checkpoint.pages.iter().enumerate() {
            self.read_page(number, &mut page);
            if **kept != page {
                // Noted, and so followed by the engine's decoded instructions.
                self.machine
                    .memory
                    .write_slice(&kept[..], GuestAddress((number * PAGE) as u64))
                    .map_err(|e| SnapshotError::Malformed(e.to_string()))?;
            }
        }
        let machine = &mut self.machine;
        machine.engine.put_back(&checkpoint.engine);
        machine.put_chips_back(&checkpoint.chips)?;
        machine.time = checkpoint.time;
        machine.entry = checkpoint.entry;
        machine.settled = checkpoint.settled;
        self.natural = checkpoint.natural;
        self.inside = checkpoint.inside;
        Ok(())
    }

    fn read_page(&self, number: usize, page: &mut [u8; PAGE]) {
        self.machine
            .memory
            .read_slice(page, GuestAddress((number * PAGE) as u64))
            .expect("all memory is there");
    }
}

#[cfg(test)]
mod tests {
    use super::super::reset::tests::machine;
    use super::*;

    #[test]
    fn a_machine_that_was_saved_where_it_paused_stands_there_again_when_put_back() {
        for settled in [None, Some(false), Some(true)] {
            let mut machine = machine();
            machine.settled = settled;
            let mut examined = Examined::new(machine);
            let checkpoint = examined.checkpoint(None);
            // As the run loop leaves it, which does steps 2 to 4 at other places.
            examined.machine.settled = settled.is_none().then_some(true);
            examined.put_back(&checkpoint).unwrap();
            assert_eq!(examined.machine.settled, settled);
        }
    }
}
