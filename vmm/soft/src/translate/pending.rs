//! The guest's flags while they are written nowhere.
//!
//! Few flags are ever looked at: most are overwritten by the next arithmetic. But an exception may come in between,
//! and shows them. So what would make them is remembered while code is written, and carried out only where somebody
//! looks, mostly in code that is never run:
//!
//! ```text
//!  cmp eax, ecx      host's flags are the guest's            Host, redo = [cmp eax, ecx]
//!  mov edx, [rsi]    a check changes the host's              Saved, pending = [cmp eax, ecx]
//!     └─ not in the TLB: cmp eax, ecx; lahf; seto; store; handler
//!  add edx, edi      overwrites them: forgotten
//! ```

use super::asm::*;
use super::emit::Emit;
use super::general::TEST;
use super::plan::Arg;
use super::state::{field, flags_byte, stash};

/// CF, PF, ZF, SF, OF.
pub(super) mod bit {
    pub const C: u8 = 1;
    pub const P: u8 = 2;
    pub const Z: u8 = 4;
    pub const S: u8 = 8;
    pub const O: u8 = 16;
    /// These, and AF.
    pub const ALL: u8 = 32 | 31;
}

/// Flags that a condition asks (SDM volume 1, appendix B).
fn asked(condition: u8) -> u8 {
    match condition >> 1 {
        0 => bit::O,
        1 => bit::C,
        2 => bit::Z,
        3 => bit::C | bit::Z,
        4 => bit::S,
        5 => bit::P,
        6 => bit::S | bit::O,
        _ => bit::Z | bit::S | bit::O,
    }
}

/// Where the guest's flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In memory, once what is pending is carried out.
    Saved,
    /// In the host's alone.
    Host,
    /// In both.
    Both,
    /// Nowhere: nobody will look at them.
    Dead,
}

/// What makes flags that were not saved. Registers are the guest's; sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// CMP or TEST of what is still there.
    Compare {
        code: u8,
        size: u8,
        one: u8,
        other: Arg,
    },
    /// ADD or SUB of a register: taken back and done again.
    Again {
        code: u8,
        size: u8,
        to: u8,
        from: Arg,
    },
    /// INC or DEC, likewise.
    Step { code: u8, size: u8, to: u8 },
    /// A shift of what is in the stash.
    Shift { code: u8, size: u8, count: u8 },
    /// The same, by a count that is there, too.
    ShiftByCl { code: u8, size: u8 },
    /// A rotation that had this result.
    Rotate { code: u8, size: u8, to: u8 },
    /// TEST of what is in the stash with itself.
    Result { size: u8 },
    /// The same by a count that is in the stash.
    RotateByCl { code: u8, size: u8, to: u8 },
    /// CF and OF are what the stash has.
    CarryOverflow,
    /// CF is what the stash has.
    Carry,
    /// A division's: AF is set, CF and OF stay, the others are clear.
    Divided,
}

impl Pending {
    /// Guest registers it needs as they are, a bit each.
    fn needs(self) -> u16 {
        let reg = |arg| match arg {
            Arg::Reg(number) => 1_u16 << number,
            _ => 0,
        };
        match self {
            Self::Compare { one, other, .. } => 1 << one | reg(other),
            Self::Again { to, from, .. } => 1 << to | reg(from),
            Self::Step { to, .. } | Self::Rotate { to, .. } | Self::RotateByCl { to, .. } => {
                1 << to
            }
            _ => 0,
        }
    }

    /// Whether the host's flags are all it makes.
    fn is_whole(self) -> bool {
        matches!(self, Self::Compare { .. } | Self::Again { .. })
    }
}

/// Most that is put off.
const LONGEST: usize = 4;

/// What is to be carried out, one after the other, to have the flags in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    items: [Option<Pending>; LONGEST],
}

impl Chain {
    fn of(pending: Pending) -> Self {
        let mut chain = Self::default();
        chain.items[0] = Some(pending);
        chain
    }

    fn is_empty(&self) -> bool {
        self.items[0].is_none()
    }

    fn len(&self) -> usize {
        self.items.iter().flatten().count()
    }

    fn needs(&self) -> u16 {
        self.items
            .iter()
            .flatten()
            .fold(0, |all, p| all | p.needs())
    }

    /// With `pending` behind; `None` if there is no room.
    fn with(mut self, pending: Pending) -> Option<Self> {
        let free = self.items.iter_mut().find(|item| item.is_none())?;
        *free = Some(pending);
        Some(self)
    }

    /// The only item, if the host's flags are all it makes.
    fn whole(&self) -> Option<Pending> {
        match self.items {
            [Some(only), None, ..] if only.is_whole() => Some(only),
            _ => None,
        }
    }
}

/// All about the guest's flags at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub place: Place,
    /// What is not in memory yet of those that are [`Place::Saved`].
    pending: Chain,
    /// What makes those anew that are in the host's.
    redo: Option<Chain>,
    /// Which of those in the host's are right ([`bit`]); if not all are, there is a `redo`.
    exact: u8,
}

impl State {
    /// In memory.
    pub const SAVED: Self = Self {
        place: Place::Saved,
        pending: Chain {
            items: [None; LONGEST],
        },
        redo: None,
        exact: 0,
    };
    /// Nobody will look at them.
    pub const DEAD: Self = Self {
        place: Place::Dead,
        ..Self::SAVED
    };

    /// Whether the host has them.
    pub fn in_host(&self) -> bool {
        matches!(self.place, Place::Host | Place::Both)
    }

    /// Whether memory has them already.
    pub fn is_settled(&self) -> bool {
        match self.place {
            Place::Saved | Place::Both => self.pending.is_empty(),
            Place::Host => false,
            Place::Dead => true,
        }
    }
}

impl Emit<'_> {
    /// The host's flags are the guest's now, and `redo` makes them anew.
    pub fn has_flags(&mut self, redo: Option<Pending>) {
        self.has_some_flags(redo.map(Chain::of), bit::ALL);
    }

    /// Those of the host's flags that `exact` has are the guest's now.
    fn has_some_flags(&mut self, redo: Option<Chain>, exact: u8) {
        self.flags = State::DEAD;
        if self.live {
            self.flags = State {
                place: Place::Host,
                pending: Chain::default(),
                redo,
                exact,
            };
        }
    }

    /// The guest's flags were written to memory, all of them.
    pub fn flags_are_saved(&mut self) {
        self.flags = if self.live { State::SAVED } else { State::DEAD };
    }

    /// Something is about to change the host's flags.
    pub fn spill_flags(&mut self) {
        match (self.flags.place, self.flags.redo) {
            (Place::Host, Some(redo)) => {
                self.flags = State {
                    pending: redo,
                    ..State::SAVED
                };
            }
            (Place::Host, None) => {
                self.settle_flags();
                self.flags = State::SAVED;
            }
            (Place::Both, _) => {
                let pending = self.flags.pending;
                self.flags = State {
                    pending,
                    ..State::SAVED
                };
            }
            _ => {}
        }
    }

    /// Has the flags in memory; they stay the host's if they are. RAX and R10 change.
    pub fn settle_flags(&mut self) {
        let flags = self.flags;
        match flags.place {
            Place::Dead => return,
            _ if flags.is_settled() => {}
            Place::Host | Place::Both if flags.exact == bit::ALL => {
                self.store_host_flags();
                self.flags = State {
                    place: Place::Both,
                    exact: bit::ALL,
                    ..State::SAVED
                };
                return;
            }
            Place::Host => self.carry_out(flags.redo.expect("they are not all there")),
            Place::Saved | Place::Both => self.carry_out(flags.pending),
        }
        if !flags.is_settled() {
            self.flags = State::SAVED;
        }
    }

    /// lahf; seto al; and the store.
    fn store_host_flags(&mut self) {
        self.asm.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
        self.asm.store(2, flags_byte(0), RAX);
    }

    /// Guest registers `written` are about to change; `needed`: somebody asks afterwards for flags that were there
    /// before.
    pub fn before_writing(&mut self, written: u16, needed: bool) {
        if !needed {
            return;
        }
        if let Some(redo) = self.flags.redo
            && redo.needs() & written != 0
        {
            self.flags.redo = self.keep_result(redo);
            if self.flags.redo.is_none() && self.flags.exact != bit::ALL {
                self.flags.redo = Some(redo);
                self.settle_flags();
                return;
            }
        }
        let pending = self.flags.pending;
        if pending.needs() & written != 0 {
            if let Some(kept) = self.keep_result(pending) {
                self.flags.pending = kept;
            } else if self.flags.place == Place::Both {
                self.flags.place = Place::Host;
                self.flags.pending = Chain::default();
            } else {
                self.settle_flags();
            }
        }
    }

    /// If `chain` is no more than what a register says, the same with the register in the stash.
    fn keep_result(&mut self, chain: Chain) -> Option<Chain> {
        let [
            Some(Pending::Compare {
                code: TEST,
                size,
                one,
                other,
            }),
            None,
            ..,
        ] = chain.items
        else {
            return None;
        };
        if other != Arg::Reg(one) {
            return None;
        }
        let reg = self.reg(one, R10);
        self.asm.store(8, stash(0, 0), reg);
        Some(Chain::of(Pending::Result { size }))
    }

    /// The host's flags become the guest's, at least those that `condition` asks. RAX and R10 change.
    pub fn need_flags(&mut self, condition: u8) {
        let flags = self.flags;
        let exact = asked(condition) & !flags.exact == 0;
        if flags.in_host() && exact {
            return;
        }
        if let (Place::Saved, Some(pending)) = (flags.place, flags.pending.whole()) {
            self.redo(pending);
            self.flags.place = Place::Both;
            self.flags.exact = bit::ALL;
            return;
        }
        self.settle_flags();
        if !self.flags.in_host() {
            self.load_flags();
            self.flags.place = Place::Both;
            self.flags.exact = bit::ALL;
        }
    }

    /// The host's CF becomes the guest's. RAX and R10 change, unless the flags are settled.
    pub fn need_carry(&mut self) {
        let flags = self.flags;
        if flags.in_host() && flags.exact & bit::C != 0 {
            return;
        }
        if let (Place::Saved, Some(pending)) = (flags.place, flags.pending.whole()) {
            self.redo(pending);
            self.flags.place = Place::Both;
            self.flags.exact = bit::ALL;
            return;
        }
        self.settle_flags();
        if !self.flags.in_host() {
            self.bring_carry();
        }
    }

    /// `bt` of CF in memory.
    fn bring_carry(&mut self) {
        self.asm.op(2, two(0xba), 4, flags_byte(0));
        self.asm.raw(&[8]);
    }

    /// Makes the host's flags the guest's, which are settled. RAX changes.
    pub fn load_flags(&mut self) {
        self.asm.op(4, two(0xb7), RAX.0, flags_byte(0));
        // OF from bit 0; sahf.
        self.asm.alu_value(0, 1, RAX, 0x7f);
        self.asm.raw(&[0x9e]);
    }

    /// Before INC or DEC of a register, which leave CF: has it in the host's flags where that is cheap.
    pub fn before_step(&mut self) {
        if self.flags.in_host() && self.flags.exact & bit::C == 0 {
            self.spill_flags();
        }
        if let (Place::Saved, Some(pending)) = (self.flags.place, self.flags.pending.whole()) {
            self.redo(pending);
            self.flags.place = Place::Both;
            self.flags.exact = bit::ALL;
        }
        if self.flags.place == Place::Saved {
            self.stash_for_next();
        }
    }

    /// After it: `before` is how the flags were then.
    pub fn after_step(&mut self, before: State, step: Pending) {
        let (chain, exact) = match before.place {
            Place::Both => (before.pending.with(step), bit::ALL),
            Place::Host => (before.redo.and_then(|redo| redo.with(step)), bit::ALL),
            Place::Saved => (before.pending.with(step), bit::ALL & !bit::C),
            Place::Dead => (None, bit::ALL),
        };
        self.has_some_flags(chain, exact);
    }

    /// Where what a pending instruction needs is kept: its place in the chain decides. What is pending no longer fits
    /// is carried out first. To be called before the instruction, with the host's flags spilled.
    pub fn stash_for_next(&mut self) -> Mem {
        if self.flags.pending.len() == LONGEST {
            self.settle_flags();
        }
        stash(self.flags.pending.len(), 0)
    }

    /// The same for an instruction that sets all flags.
    pub fn stash_for_first(&self) -> Mem {
        stash(0, 0)
    }

    /// An instruction that leaves some flags as they were: `pending` is carried out when they are asked for. The
    /// host has those that `exact` has.
    pub fn put_off(&mut self, pending: Pending, exact: u8) {
        if !self.live {
            self.flags = State::DEAD;
            return;
        }
        let chain = self.flags.pending.with(pending).expect("room was made");
        if exact == 0 {
            self.flags = State {
                pending: chain,
                ..State::SAVED
            };
        } else {
            self.has_some_flags(Some(chain), exact);
        }
    }

    /// The same for one that sets them all.
    pub fn put_off_all(&mut self, pending: Pending, exact: u8) {
        self.has_some_flags(Some(Chain::of(pending)), exact);
    }

    /// Puts in the stash what an instruction would have that its handler carried out.
    pub fn stash_from_flags(&mut self, stash: Mem, pending: Pending) {
        // OF is bit 0 of one byte, CF of the other.
        let byte = i32::from(pending == Pending::Carry);
        self.asm.op(4, two(0xb6), RAX.0, flags_byte(byte));
        self.asm.alu_value(4, 4, RAX, 1);
        self.asm.store(1, stash, RAX);
    }

    fn carry_out(&mut self, chain: Chain) {
        for (place, pending) in chain.items.into_iter().flatten().enumerate() {
            self.carry_out_one(place, pending);
        }
    }

    fn carry_out_one(&mut self, place: usize, pending: Pending) {
        match pending {
            Pending::Compare { .. } | Pending::Again { .. } => {
                self.redo(pending);
                self.store_host_flags();
            }
            Pending::Result { size } => {
                self.asm.load(8, R10, stash(place, 0));
                self.apply(TEST, size, R10, R10.into());
                self.store_host_flags();
            }
            Pending::Step { code, size, to } => {
                let opcode = one(if size == 1 { 0xfe } else { 0xff });
                let to = self.rm(to);
                self.asm.op(size, opcode, code ^ 1, to);
                self.bring_carry();
                self.asm.op(size, opcode, code, to);
                self.store_host_flags();
            }
            Pending::Shift { code, size, count } => {
                self.asm.load(8, R10, stash(place, 0));
                self.asm.shift(code, size, R10, count);
                self.store_shift_flags(code, count);
            }
            Pending::ShiftByCl { code, size } => self.carry_out_shift(place, code, size),
            Pending::Rotate { code, size, to } => {
                let result = self.rm(to);
                self.store_rotate_flags(code, size, result);
            }
            Pending::RotateByCl { code, size, to } => {
                let mask = if size == 8 { 63 } else { 31 };
                self.asm.op(1, one(0xf6), 0, stash(place, 8));
                self.asm.raw(&[mask]);
                // A count of zero leaves the flags as they are.
                let zero = self.asm.jump_if(4);
                let result = self.rm(to);
                self.store_rotate_flags(code, size, result);
                self.asm.fill_here(zero);
            }
            Pending::CarryOverflow => {
                self.asm.op_from_byte(4, two(0xb6), RAX, stash(place, 0));
                self.asm.op(4, one(0x69), RAX.0, RAX);
                self.asm.raw(&0x101_i32.to_le_bytes());
                self.merge_flags(!0x101);
            }
            Pending::Carry => {
                self.asm.op_from_byte(4, two(0xb6), RAX, stash(place, 0));
                self.asm.shift(4, 4, RAX, 8);
                self.merge_flags(!0x100);
            }
            Pending::Divided => {
                self.asm.set(RAX, 0x1000);
                self.merge_flags(0x101);
            }
        }
    }

    fn carry_out_shift(&mut self, place: usize, code: u8, size: u8) {
        self.asm.store(8, field!(native.held), RCX);
        self.asm.load(4, RCX, stash(place, 8));
        let mask = if size == 8 { 63 } else { 31 };
        self.asm.alu_value(4, 4, RCX, mask);
        // A count of zero leaves the flags as they are.
        let zero = self.asm.jump_if(4);
        self.asm.load(8, R10, stash(place, 0));
        self.asm.shift_cl(code, size, R10);
        self.store_shift_flags_by_cl(code);
        self.asm.fill_here(zero);
        self.asm.load(8, RCX, field!(native.held));
    }

    /// The host's flags become those of CMP, TEST, ADD or SUB. R10 changes.
    fn redo(&mut self, pending: Pending) {
        match pending {
            Pending::Compare {
                code,
                size,
                one,
                other,
            } => self.arithmetic(code, size, one, other),
            Pending::Again {
                code,
                size,
                to,
                from,
            } => {
                // ADD is 0, SUB is 5.
                self.arithmetic(5 - code, size, to, from);
                self.arithmetic(code, size, to, from);
            }
            _ => unreachable!("not all of the host's flags"),
        }
    }

    fn arithmetic(&mut self, code: u8, size: u8, to: u8, from: Arg) {
        let place = self.rm(to);
        match from {
            Arg::Value(value) => self.apply_value(code, size, place, value),
            Arg::Reg(from) => {
                let from = self.reg(from, R10);
                self.apply_to(code, size, place, from);
            }
            Arg::Mem => unreachable!("registers and values only"),
        }
    }

    /// Those of the flags in memory that `kept` has stay, the others are as in RAX. R10 changes.
    pub fn merge_flags(&mut self, kept: i32) {
        self.asm.op(4, two(0xb7), R10.0, flags_byte(0));
        self.asm.alu_value(4, 4, R10, kept);
        self.asm.alu(1, 4, R10, RAX);
        self.asm.store(2, flags_byte(0), R10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_room_for_some() {
        let mut chain = Chain::default();
        for n in 0..LONGEST {
            assert_eq!(chain.len(), n);
            chain = chain.with(Pending::Carry).unwrap();
        }
        assert_eq!(chain.with(Pending::Carry), None);
        assert_eq!(chain.whole(), None);
    }

    #[test]
    fn what_a_pending_instruction_needs_is_known() {
        let compare = Pending::Compare {
            code: 7,
            size: 8,
            one: 3,
            other: Arg::Reg(11),
        };
        assert_eq!(Chain::of(compare).needs(), 1 << 3 | 1 << 11);
        assert_eq!(Chain::of(compare).whole(), Some(compare));
        assert_eq!(
            Pending::Shift {
                code: 4,
                size: 8,
                count: 2
            }
            .needs(),
            0
        );
    }
}
