//! Code that is rarely run: it lies behind its trace, and first puts everything where others expect it.

use super::asm::*;
use super::emit::Emit;
use super::pending::{Pending, State};
use super::state::{Kind, Record, field};

/// What code behind a trace does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Exit {
    /// Calls the instruction's handler and goes on at `back`, with the host's flags being the guest's, and heeding the
    /// guest's MXCSR, as said.
    Handle {
        record: Record,
        back: u64,
        with_flags: bool,
        with_float: bool,
        stashed: Option<(Mem, Pending)>,
    },
    /// Leaves translated code.
    Leave(Record),
    /// Goes on at [`Record::target`].
    To(Record),
    /// Goes on at virtual address RAX, which a RET that drops so many bytes found; by the interpreter, if that is no
    /// address.
    Return(Record, i32),
}

/// A look through the window on the stack that shows another page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shut {
    /// What leads here.
    pub from: Hole,
    /// Where to go on with RAX in the host.
    pub back: u64,
    /// Of [`super::thunks::Thunks::open`].
    pub open: u64,
}

/// Code behind a trace.
#[derive(Clone, Debug)]
pub(super) struct Cold {
    /// What leads here.
    pub from: Vec<Hole>,
    /// What leads here once the window cannot be opened.
    pub shut: Vec<Shut>,
    /// How the flags are there.
    pub flags: State,
    /// Registers of [`super::state::FREE`] that have to be stored.
    pub dirty: u8,
    /// Instructions that were counted and did not run.
    pub credit: i32,
    /// The host heeds the guest's MXCSR.
    pub float: bool,
    pub exit: Exit,
}

impl Cold {
    /// Whether everything is where others expect it.
    pub fn is_settled(&self) -> bool {
        self.flags.is_settled() && self.dirty == 0 && self.credit == 0 && !self.float
    }
}

impl Emit<'_> {
    /// Writes what is behind the trace: cold code, then its records.
    pub fn end(&mut self) {
        let mut records = Vec::new();
        for cold in std::mem::take(&mut self.cold) {
            let mut from = cold.from.clone();
            for shut in &cold.shut {
                self.asm.fill_here(shut.from);
                self.asm.call(shut.open);
                from.push(self.asm.jump_if(2));
                self.asm.jump_to(shut.back);
            }
            for hole in from {
                self.asm.fill_here(hole);
            }
            match cold.exit {
                Exit::Handle { .. } => self.handle(&cold, &mut records),
                Exit::Leave(record) => {
                    self.restore(&cold);
                    self.leave(record, &mut records);
                }
                Exit::To(record) => self.leave_to(&cold, record, &mut records),
                Exit::Return(record, drop) => {
                    self.leave_by_return(&cold, record, drop, &mut records)
                }
            }
        }
        self.asm.align(align_of::<Record>() as u64);
        for (hole, record) in records {
            self.asm.fill_here(hole);
            self.asm.raw(&record.bytes());
        }
    }

    /// Puts everything where others expect it. RAX and R10 change.
    fn restore(&mut self, cold: &Cold) {
        self.flags = cold.flags;
        self.settle_flags();
        self.store_free(cold.dirty);
        if cold.credit != 0 {
            self.asm.alu_value(0, 8, field!(native.left), cold.credit);
        }
        if cold.float {
            self.host_mxcsr_is_ours();
        }
    }

    fn handle(&mut self, cold: &Cold, records: &mut Vec<(Hole, Record)>) {
        let Exit::Handle {
            record,
            back,
            with_flags,
            with_float,
            stashed,
        } = cold.exit
        else {
            unreachable!("asked for by this kind")
        };
        self.restore(cold);
        records.push((self.asm.lea_here(RAX), record));
        self.asm.call(self.thunks.handle);
        if cold.credit != 0 {
            self.asm.alu_value(5, 8, field!(native.left), cold.credit);
        }
        if with_float {
            self.host_mxcsr_is_guests();
        }
        self.load_free();
        if let Some((stash, pending)) = stashed {
            self.stash_from_flags(stash, pending);
        }
        if with_flags {
            self.load_flags();
        }
        self.asm.jump_to(back);
    }

    fn leave(&mut self, record: Record, records: &mut Vec<(Hole, Record)>) {
        records.push((self.asm.lea_here(RAX), record));
        self.asm.jump_to(if record.kind == Kind::Last {
            self.thunks.last
        } else {
            self.thunks.leave
        });
    }

    fn leave_to(&mut self, cold: &Cold, mut record: Record, records: &mut Vec<(Hole, Record)>) {
        let target = record.target;
        self.restore(cold);
        if !(0..4096).contains(&target) {
            self.elsewhere(target);
            return;
        }
        if let Some(code) = self.code_at(target) {
            self.asm.jump_to(code);
            return;
        }
        // The jump that will lead there once there is code.
        let hole = match cold.from[..] {
            [only] if cold.is_settled() => only,
            _ => {
                let hole = self.asm.jump();
                self.asm.fill_here(hole);
                hole
            }
        };
        record.link = self.asm.place(hole);
        self.leave(record, records);
    }

    fn leave_by_return(
        &mut self,
        cold: &Cold,
        record: Record,
        drop: i32,
        records: &mut Vec<(Hole, Record)>,
    ) {
        self.asm.store(8, field!(native.target), RAX);
        self.restore(cold);
        self.asm.load(8, RAX, field!(native.target));
        let refused = self.not_canonical();
        self.asm.lea(8, R13, Mem::at(R13, 8 + drop));
        self.find();
        self.asm.fill_here(refused);
        self.leave(record, records);
    }

    /// Goes on in another page, `target` bytes from the start of this one.
    fn elsewhere(&mut self, target: i64) {
        self.asm.load(8, RAX, field!(native.page));
        // A block is at most a page, and a branch reaches 2 GiB: the sum may be more than 32 bits.
        match i32::try_from(target) {
            Ok(target) => self.asm.lea(8, RAX, Mem::at(RAX, target)),
            Err(_) => {
                self.asm.set(R10, target as u64);
                self.asm.lea(8, RAX, Mem::indexed(Some(RAX), R10, 0, 0));
            }
        }
        self.find();
    }
}
