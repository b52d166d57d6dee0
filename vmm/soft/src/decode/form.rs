//! An instruction's operands, as [`Op`]s have them.

use super::Lowered;
use crate::execute::loose;
use crate::op::{Handler, Op, slot};
use iced_x86::{Instruction, OpKind, Register};

/// How a memory operand's address is put together (see [`crate::op::Address`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressForm {
    Simple,
    Full,
    Narrow,
}

/// An instruction on its way to an [`Op`].
pub(crate) struct Form<'a> {
    /// As iced has it.
    pub instruction: &'a Instruction,
    /// 64-bit code.
    pub long: bool,
    /// What it becomes.
    pub op: Op,
}

impl<'a> Form<'a> {
    pub fn new(instruction: &'a Instruction, start: u8, long: bool) -> Self {
        let op = Op {
            start,
            len: instruction.len() as u8,
            ..Op::NOTHING
        };
        Self {
            instruction,
            long,
            op,
        }
    }

    /// Done: `run` does it.
    pub fn with(&self, run: Handler) -> Lowered {
        Lowered {
            op: Op { run, ..self.op },
            ends: false,
            counts: false,
        }
    }

    /// Done, and the last of its block.
    pub fn ending(&self, run: Handler) -> Lowered {
        Lowered {
            op: Op { run, ..self.op },
            ends: true,
            counts: false,
        }
    }

    /// Sets everything an operand needs whose form is looked at when it runs (see
    /// [`crate::execute::loose`]); `size` in bytes.
    pub fn loose(&mut self, operand: u32, size: usize) -> &mut Self {
        self.op.extra |= size as u8;
        if self.is_memory(operand) {
            self.loose_memory();
        } else {
            self.src(operand);
        }
        self
    }

    /// Sets everything a memory operand needs whose form is looked at when it runs.
    pub fn loose_memory(&mut self) -> &mut Self {
        self.op.extra |= loose::MEMORY;
        if self.memory() == AddressForm::Narrow {
            self.op.extra |= loose::NARROW;
        }
        self
    }

    pub fn is_register(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Register
    }

    pub fn is_memory(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Memory
    }

    pub fn is_immediate(&self, operand: u32) -> bool {
        matches!(
            self.instruction.op_kind(operand),
            OpKind::Immediate8
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    }

    /// Slot of a general register operand, with [`slot::HIGH`] for AH to BH.
    pub fn register(&self, operand: u32) -> u8 {
        register_slot(self.instruction.op_register(operand))
    }

    /// Sets `dst` from a register operand.
    pub fn dst(&mut self, operand: u32) -> &mut Self {
        self.op.dst = self.register(operand);
        self
    }

    /// Sets `src` from a register operand.
    pub fn src(&mut self, operand: u32) -> &mut Self {
        self.op.src = self.register(operand);
        self
    }

    /// Sets `imm` from an immediate operand, sign-extended.
    pub fn imm(&mut self, operand: u32) -> &mut Self {
        self.op.imm = self.instruction.immediate(operand);
        self
    }

    /// Sets `disp` to a near branch's target.
    pub fn target(&mut self) -> &mut Self {
        self.op.disp = self.instruction.near_branch_target();
        if !self.long {
            self.op.disp = self.op.disp as i32 as i64 as u64;
        }
        self
    }

    /// Bytes of operand `operand`.
    pub fn size(&self, operand: u32) -> usize {
        if self.is_register(operand) {
            return self.instruction.op_register(operand).size();
        }
        self.instruction.memory_size().size()
    }

    /// Whether the explicit memory operand has a 16-bit address, which 32-bit code can ask for.
    fn has_short_address(&self) -> bool {
        let i = self.instruction;
        let (base, index) = (i.memory_base(), i.memory_index());
        let registers = base != Register::None || index != Register::None;
        base.size() == 2 || index.size() == 2 || !registers && i.memory_displ_size() == 2
    }

    /// Sets everything a memory operand needs.
    pub fn memory(&mut self) -> AddressForm {
        let i = self.instruction;
        let base = i.memory_base();
        self.op.base = match base {
            Register::None => slot::ZERO,
            Register::RIP | Register::EIP => slot::BLOCK,
            register => register_slot(register),
        };
        self.op.index = match i.memory_index() {
            Register::None => slot::ZERO,
            register => register_slot(register),
        };
        // For RIP-relative operands iced gives the position of the target, counted from the block.
        self.op.disp = i.memory_displacement64();
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        let segment = segment_slot(i.memory_segment(), self.long);
        self.op.scale_segment = segment << 2 | scale;
        let narrow = base.size() == 4
            || i.memory_index().size() == 4
            || base == Register::EIP
            || i.memory_displ_size() == 4
                && base == Register::None
                && i.memory_index() == Register::None
            || !self.long;
        if narrow {
            if segment == slot::ZERO {
                self.op.scale_segment = slot::FLAT_NARROW << 2 | scale;
            }
            if self.has_short_address() {
                self.op.index |= slot::SHORT;
            }
            return AddressForm::Narrow;
        }
        if self.op.index == slot::ZERO && segment == slot::ZERO {
            return AddressForm::Simple;
        }
        AddressForm::Full
    }
}

/// Slot of a general register, with [`slot::HIGH`] for AH to BH.
pub(super) fn register_slot(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            (register as u8 - Register::AH as u8) | slot::HIGH
        }
        register => register.full_register().number() as u8,
    }
}

/// Slot of a segment's base; flat ones have none in 64-bit code.
pub(super) fn segment_slot(register: Register, long: bool) -> u8 {
    let number = match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        Register::GS => 5,
        _ => return slot::ZERO,
    };
    if long && number < 4 {
        return slot::ZERO;
    }
    slot::SEGMENTS + number
}
