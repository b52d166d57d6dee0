//! A machine whose run can be paused at any instruction, looked at, and taken back.
//!
//! ```text
//!  Examined::advance ─▶ the run loop's step, with an entry that may pause in the middle
//!  checkpoint / put_back: vCPU, chips, pages of memory, and where in the loop it stands
//! ```
//!
//! The inputs see nothing of a pause: the entry it is in goes on with the same stop.

use super::board::SavedBoard;
use super::error::MachineError;
use super::run::{Ended, Step};
use super::snapshot::SnapshotError;
use super::state::{Machine, Standing};
use super::time::GuestClock;
use crate::engine::VmEntry;
use crate::memory::PAGE_BYTES;
use crate::soft::looking::{Debuggable, Pause, Watch};
use replay::Inputs;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

const PAGE: usize = PAGE_BYTES as usize;

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
}

/// Memory at some time; pages that did not change since the checkpoint before are shared with it.
type Pages = Vec<Arc<[u8; PAGE]>>;

/// A machine at an earlier time.
pub struct Checkpoint<C> {
    engine: C,
    board: SavedBoard,
    halted: bool,
    time: GuestClock,
    entry: VmEntry,
    standing: Standing,
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
        Self { machine }
    }

    /// The vCPU.
    pub fn engine(&self) -> &E {
        &self.machine.engine
    }

    /// The machine.
    pub fn machine(&self) -> &Machine<E> {
        &self.machine
    }

    /// Has a run that heeds them pause before these instructions, and no others: [`Debuggable::probe`].
    pub fn probe(&mut self, addresses: &[u64]) -> bool {
        self.machine.engine.probe(addresses)
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
        let mut enter = |engine: &mut E, entry, stop| engine.run_watched(entry, stop, watch);
        loop {
            match self.machine.step(inputs, &mut |_| false, &mut enter)? {
                Step::Stopped | Step::Paused => {}
                Step::Inside(pause) => return Ok(Advance::Paused(pause)),
                Step::Ended(ended) => return Ok(Advance::Ended(ended)),
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
            board: machine.board.saved(),
            halted: machine.halted,
            time: machine.time,
            entry: machine.entry,
            standing: machine.standing,
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
        machine
            .board
            .put_back(&checkpoint.board)
            .map_err(SnapshotError::from)?;
        machine.halted = checkpoint.halted;
        machine.time = checkpoint.time;
        machine.entry = checkpoint.entry;
        machine.standing = checkpoint.standing;
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
    use replay::Stop;

    #[test]
    fn a_machine_that_was_saved_where_it_paused_stands_there_again_when_put_back() {
        let natural = false;
        for standing in [
            Standing::BEGIN,
            Standing::Settled { natural },
            Standing::Settled { natural: true },
            Standing::Inside(Stop::Never),
        ] {
            let mut machine = machine();
            machine.standing = standing;
            let mut examined = Examined::new(machine);
            let checkpoint = examined.checkpoint(None);
            // As the run loop leaves it, which goes on to other places.
            examined.machine.standing = Standing::Stopped { natural };
            examined.put_back(&checkpoint).unwrap();
            assert_eq!(examined.machine.standing, standing);
        }
    }
}
