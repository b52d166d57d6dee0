//! All chips of a board in one order: that of snapshots and digests.

use super::{Board, Card, Clock};
use crate::devices::{Chip, DeviceError};

/// A board's state, taken out.
pub(in crate::machine) struct SavedBoard {
    console: Vec<u8>,
    typed: Vec<u8>,
    chips: Vec<(u16, Vec<u8>)>,
}

impl Board {
    /// Every chip.
    pub(in crate::machine) fn chips(&self) -> Vec<&dyn Chip> {
        let clock: &dyn Chip = match &self.clock {
            Clock::Silent(clock) => clock,
            Clock::Ticking(clock) => &**clock,
        };
        let card: &dyn Chip = match &self.net {
            Card::Plain(card) => card,
            Card::Controlled(card) => &**card,
        };
        let mut chips: Vec<&dyn Chip> = vec![&self.pic, &self.pit, clock, &self.uart, card];
        chips.extend(self.block.as_ref().map(|block| block as &dyn Chip));
        if let Some(pc) = &self.pc {
            chips.extend([&pc.pm as &dyn Chip, &pc.rng, &pc.exit]);
        }
        chips
    }

    /// Every chip, to be changed; in the order of [`Board::chips`].
    pub(in crate::machine) fn chips_mut(&mut self) -> Vec<&mut dyn Chip> {
        let clock: &mut dyn Chip = match &mut self.clock {
            Clock::Silent(clock) => clock,
            Clock::Ticking(clock) => &mut **clock,
        };
        let card: &mut dyn Chip = match &mut self.net {
            Card::Plain(card) => card,
            Card::Controlled(card) => &mut **card,
        };
        let mut chips: Vec<&mut dyn Chip> =
            vec![&mut self.pic, &mut self.pit, clock, &mut self.uart, card];
        chips.extend(self.block.as_mut().map(|block| block as &mut dyn Chip));
        if let Some(pc) = &mut self.pc {
            chips.extend([&mut pc.pm as &mut dyn Chip, &mut pc.rng, &mut pc.exit]);
        }
        chips
    }

    /// The board's state.
    pub(in crate::machine) fn saved(&self) -> SavedBoard {
        let chips = self.chips().into_iter();
        SavedBoard {
            console: self.console.clone(),
            typed: self.typed.clone(),
            chips: chips.map(|c| (c.version(), c.save_bytes())).collect(),
        }
    }

    /// Puts [`Board::saved`] back.
    ///
    /// # Errors
    /// If the state is not this board's.
    pub(in crate::machine) fn put_back(&mut self, saved: &SavedBoard) -> Result<(), DeviceError> {
        for (chip, (version, bytes)) in self.chips_mut().into_iter().zip(&saved.chips) {
            chip.restore_bytes(*version, bytes)?;
        }
        self.console.clone_from(&saved.console);
        self.typed.clone_from(&saved.typed);
        Ok(())
    }
}
