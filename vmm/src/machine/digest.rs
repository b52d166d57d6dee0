//! Digests of a machine's state.

use super::error::MachineError;
use super::state::Machine;
use crate::engine::Engine;
use crate::memory::PAGE_BYTES;
use replay::StateWindow;
use replay::codec::to_bytes;
use replay::digest::StateHasher;
use vm_memory::{Bytes, GuestAddress};

impl<E: Engine> Machine<E> {
    /// Digest of the vCPU, every device, and the pages of `window` (all memory if `None`).
    ///
    /// # Errors
    /// If the vCPU's state cannot be read.
    pub fn digest(&mut self, window: Option<StateWindow>) -> Result<u64, MachineError> {
        let mut hash = StateHasher::default();
        let cpu = self.engine.save()?;
        hash.update(&to_bytes(&cpu));
        Ok(self.digest_rest(hash, window))
    }
}

impl<E> Machine<E> {
    /// Digest of all memory and every chip, without the vCPU: for a guest that cannot go on, whose
    /// registers engines leave in different states.
    pub(super) fn digest_without_vcpu(&self) -> u64 {
        self.digest_rest(StateHasher::default(), None)
    }

    fn digest_rest(&self, mut hash: StateHasher, window: Option<StateWindow>) -> u64 {
        for chip in self.board.chips() {
            hash.update(&chip.save_bytes());
        }
        hash.update(&to_bytes(&self.pending()));
        if let Some(skipped_ns) = self.time.saved() {
            hash.update(&skipped_ns.to_le_bytes());
        }
        let pages = self.config.memory_bytes() / PAGE_BYTES;
        let window = window.unwrap_or(StateWindow {
            first_page: 0,
            pages: u32::try_from(pages).expect("at most 3 GiB"),
        });
        let first = window.first_page.min(pages);
        let last = first.saturating_add(window.pages.into()).min(pages);
        let mut page = [0u8; PAGE_BYTES as usize];
        for number in first..last {
            self.memory
                .read_slice(&mut page, GuestAddress(number * PAGE_BYTES))
                .expect("the window was clipped to memory");
            hash.update(&page);
        }
        hash.finish()
    }
}
