//! What becomes of each instruction of a block, decided before anything is written.
//!
//! A plan tells all that the translator needs of an instruction, and what it does with the flags, by which later
//! ones are spared saving them.

use crate::decode::{AddressForm, Features, Form};
use crate::op::{Op, slot};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// An operand of a general instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arg {
    /// Guest register, as instructions encode it.
    Reg(u8),
    /// The memory operand.
    Mem,
    /// A value that is sign-extended from 32 bits.
    Value(i32),
}

/// How a memory operand's address is put together: [`Op`]'s fields, with what is not in them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    /// Guest register, [`slot::ZERO`] or [`slot::BLOCK`].
    pub base: u8,
    /// Guest register or [`slot::ZERO`].
    pub index: u8,
    /// log2 of the index's scale.
    pub scale: u8,
    /// Displacement; from the block's start if the base is [`slot::BLOCK`].
    pub disp: i32,
    /// Slot of the segment's base, if it has one.
    pub segment: Option<u8>,
    /// Its offset is cut to 32 bits.
    pub narrow: bool,
}

impl Address {
    /// Whether RSP alone says where it is.
    pub fn is_on_stack(&self) -> bool {
        self.base == slot::RSP && self.index == slot::ZERO && self.segment.is_none() && !self.narrow
    }
}

/// What to write for an instruction. Sizes are in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Nothing.
    Nothing,
    /// Arithmetic by its code (see [`super::asm::Asm::alu`]); 8 is TEST.
    Alu { code: u8, to: Arg, from: Arg },
    /// The same of a byte and AH (0), CH (1), DH (2) or BH (3).
    AluHigh { code: u8, to: u8, value: u8 },
    /// `mov`.
    Move { to: Arg, from: Arg },
    /// `mov` of one of the bytes AL to BH to another, of which at least one is AH to BH: as ModRM has them where there
    /// is no REX prefix.
    MoveByte { to: u8, from: u8 },
    /// `mov` of a value of 64 bits.
    Constant { to: u8, value: u64 },
    /// `lea`.
    Lea { to: u8 },
    /// `movzx`, `movsx`, `movsxd`: from `narrow` bytes.
    Widen {
        to: u8,
        from: Arg,
        narrow: u8,
        signed: bool,
    },
    /// `movzx`, `movsx` from AH (0), CH (1), DH (2) or BH (3) to 4 bytes.
    WidenHigh { to: u8, from: u8, signed: bool },
    /// `inc` (0), `dec` (1).
    Step { code: u8, to: Arg },
    /// `not` (2), `neg` (3).
    Negate { code: u8, to: Arg },
    /// A shift (see [`super::asm::Asm::shift`]); by CL if there is no count.
    Shift {
        code: u8,
        to: Arg,
        count: Option<u8>,
    },
    /// `imul register, source(, value)`.
    Product {
        to: u8,
        from: Arg,
        value: Option<i32>,
    },
    /// `mul` (4), `imul` (5) of RAX.
    Wide { code: u8, from: Arg },
    /// `div` (6), `idiv` (7).
    Divide { code: u8, from: Arg },
    /// `bt` (4), `bts` (5), `btr` (6), `btc` (7).
    Bit { code: u8, to: Arg, number: Arg },
    /// `bsf` (0xbc), `bsr` (0xbd).
    Scan { code: u8, to: u8, from: Arg },
    /// `popcnt`.
    Count { to: u8, from: Arg },
    /// `bswap`.
    Swap { to: u8 },
    /// `cbw`, `cwde`, `cdqe`.
    Extend,
    /// `cwd`, `cdq`, `cqo`.
    Spread,
    /// `setCC`.
    Set { condition: u8, to: Arg },
    /// `cmovCC`.
    MoveIf { condition: u8, to: u8, from: Arg },
    /// `xchg`.
    Exchange { to: Arg, with: u8 },
    /// `xadd memory, register`.
    AddExchange { with: u8 },
    /// `cmpxchg memory, register`.
    CompareExchange { with: u8 },
    /// `cmpxchg16b`.
    CompareExchangeWide,
    /// `push`.
    Push { from: Arg },
    /// `pop register`.
    Pop { to: u8 },
    /// `leave`.
    Leave,
    /// SSE by [`super::vector`].
    Vector(super::vector::Work),
    /// `jCC` to this many bytes from the block's start.
    JumpIf { condition: u8, target: i64 },
    /// `jmp`.
    Jump { target: i64 },
    /// `call`.
    Call { target: i64 },
    /// `jmp` to what the operand says.
    JumpTo { from: Arg },
    /// `call` of what the operand says.
    CallTo { from: Arg },
    /// `ret`, dropping this many bytes more.
    Return { drop: i32 },
    /// The interpreter's handler does it.
    Handler,
    /// The interpreter does it, and the rest of the block.
    Rest,
}

/// An instruction's plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub work: Work,
    /// Operand size.
    pub size: u8,
    /// Of the memory operand.
    pub address: Option<Address>,
    /// What it does to the flags.
    pub flags: Effect,
    /// A handler may be called, or the block left, before it retires.
    pub leaves: bool,
    /// It is a branch: the block ends with it.
    pub ends: bool,
}

impl Plan {
    /// Guest registers it changes, a bit each: all, if that is not known.
    pub fn written(&self) -> u16 {
        const A: u16 = 1 << slot::RAX;
        const D: u16 = 1 << slot::RDX;
        const SP: u16 = 1 << slot::RSP;
        let place = |to| match to {
            Arg::Reg(number) => 1 << number,
            _ => 0,
        };
        match self.work {
            // CMP, TEST and BT change nothing.
            Work::Alu { code: 7 | 8, .. }
            | Work::AluHigh { code: 7 | 8, .. }
            | Work::Bit { code: 4, .. } => 0,
            Work::Alu { to, .. }
            | Work::Move { to, .. }
            | Work::Step { to, .. }
            | Work::Negate { to, .. }
            | Work::Shift { to, .. }
            | Work::Bit { to, .. }
            | Work::Set { to, .. } => place(to),
            Work::AluHigh { to, .. }
            | Work::Constant { to, .. }
            | Work::Lea { to }
            | Work::Widen { to, .. }
            | Work::WidenHigh { to, .. }
            | Work::Product { to, .. }
            | Work::Scan { to, .. }
            | Work::Count { to, .. }
            | Work::Swap { to }
            | Work::MoveIf { to, .. } => 1 << to,
            Work::MoveByte { to, .. } => 1 << (to % 4),
            Work::Wide { .. } | Work::Divide { .. } | Work::CompareExchangeWide => A | D,
            Work::Extend | Work::CompareExchange { .. } => A,
            Work::Spread => D,
            Work::Exchange { to, with } => place(to) | 1 << with,
            Work::AddExchange { with } => 1 << with,
            Work::Push { .. } | Work::Call { .. } | Work::CallTo { .. } | Work::Return { .. } => SP,
            Work::Pop { to } => SP | 1 << to,
            Work::Leave => SP | 1 << slot::RBP,
            Work::Vector(work) => work.written(),
            Work::Nothing | Work::JumpIf { .. } | Work::Jump { .. } | Work::JumpTo { .. } => 0,
            Work::Handler | Work::Rest => u16::MAX,
        }
    }

    /// Guest registers its operands and its address name, one after the other.
    pub fn named(&self) -> impl Iterator<Item = u8> + use<> {
        let reg = |arg| match arg {
            Arg::Reg(number) => Some(number),
            _ => None,
        };
        let (one, other) = match self.work {
            Work::Alu { to, from, .. } | Work::Move { to, from } => (reg(to), reg(from)),
            Work::Step { to, .. }
            | Work::Negate { to, .. }
            | Work::Shift { to, .. }
            | Work::Set { to, .. } => (reg(to), None),
            Work::Bit { to, number, .. } => (reg(to), reg(number)),
            Work::Widen { to, from, .. }
            | Work::Product { to, from, .. }
            | Work::Scan { to, from, .. }
            | Work::Count { to, from }
            | Work::MoveIf { to, from, .. } => (Some(to), reg(from)),
            Work::Constant { to, .. }
            | Work::WidenHigh { to, .. }
            | Work::Lea { to }
            | Work::Swap { to }
            | Work::Pop { to } => (Some(to), None),
            Work::Wide { from, .. }
            | Work::Divide { from, .. }
            | Work::Push { from }
            | Work::JumpTo { from }
            | Work::CallTo { from } => (reg(from), None),
            Work::Exchange { to, with } => (reg(to), Some(with)),
            Work::AddExchange { with } | Work::CompareExchange { with } => (Some(with), None),
            Work::Vector(work) => (work.general(), None),
            _ => (None, None),
        };
        let address = self.address.map(|address| [address.base, address.index]);
        let address = address.into_iter().flatten().filter(|reg| *reg < 16);
        one.into_iter().chain(other).chain(address)
    }
}

/// What an instruction does to the flags, all six.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// It asks them.
    pub reads: bool,
    /// They are others afterwards.
    pub writes: bool,
    /// Some of them stay as they are.
    pub keeps: bool,
}

impl Effect {
    pub const NONE: Self = Self {
        reads: false,
        writes: false,
        keeps: true,
    };
    const READS: Self = Self {
        reads: true,
        ..Self::NONE
    };
    pub const WRITES: Self = Self {
        reads: false,
        writes: true,
        keeps: false,
    };
    /// It sets some and leaves some.
    const CHANGES: Self = Self {
        writes: true,
        ..Self::NONE
    };
    /// It asks them, and sets all.
    const REPLACES: Self = Self {
        reads: true,
        ..Self::WRITES
    };
}

impl Plan {
    fn new(work: Work, size: u8, flags: Effect) -> Self {
        Self {
            work,
            size,
            address: None,
            flags,
            leaves: false,
            ends: false,
        }
    }

    /// The handler does it: who knows what it does to the flags.
    fn handler() -> Self {
        Self {
            leaves: true,
            ..Self::new(Work::Handler, 0, Effect::CHANGES)
        }
    }

    /// The interpreter does it and what follows.
    pub fn rest() -> Self {
        Self {
            leaves: true,
            ..Self::new(Work::Rest, 0, Effect::READS)
        }
    }
}

/// The plan for an instruction of 64-bit code `start` bytes into its block.
pub(super) fn plan(
    instruction: &Instruction,
    bytes: &[u8],
    start: u8,
    features: &Features,
) -> Plan {
    let mut form = Form::new(instruction, start, true);
    let exists = features.allow(instruction) || crate::decode::does_nothing(&form);
    if is_string(instruction) || !exists {
        return Plan::rest();
    }
    let address = match memory(&mut form) {
        Ok(address) => address,
        Err(()) => return Plan::handler(),
    };
    let mut plan = integer(&form)
        .or_else(|| {
            super::vector::plan(&form, bytes).map(|work| {
                let (size, flags) = (work.size(), work.flags());
                Plan {
                    leaves: true,
                    ..Plan::new(Work::Vector(work), size, flags)
                }
            })
        })
        .unwrap_or_else(Plan::handler);
    let strings = matches!(
        plan.work,
        Work::Bit {
            to: Arg::Mem,
            number: Arg::Reg(_),
            ..
        }
    );
    // How far away the bit is counts before the address is cut.
    if strings && address.is_some_and(|address| address.narrow) {
        return Plan::handler();
    }
    plan.address = address;
    plan.leaves |= address.is_some() && !matches!(plan.work, Work::Lea { .. } | Work::Nothing);
    plan
}

fn is_string(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|n| {
        matches!(
            instruction.op_kind(n),
            OpKind::MemorySegSI
                | OpKind::MemorySegESI
                | OpKind::MemorySegRSI
                | OpKind::MemoryESDI
                | OpKind::MemoryESEDI
                | OpKind::MemoryESRDI
                | OpKind::MemorySegDI
                | OpKind::MemorySegEDI
                | OpKind::MemorySegRDI
        )
    })
}

/// The memory operand; an error if it is one the translator does not make.
fn memory(form: &mut Form) -> Result<Option<Address>, ()> {
    let operands = form.instruction.op_count();
    if !(0..operands).any(|n| form.is_memory(n)) {
        return Ok(None);
    }
    let narrow = form.memory() == AddressForm::Narrow;
    let op: &Op = &form.op;
    let disp = i32::try_from(op.disp as i64).map_err(|_| ())?;
    let segment = op.scale_segment >> 2;
    Ok(Some(Address {
        base: op.base,
        index: op.index,
        scale: op.scale_segment & 3,
        disp,
        segment: matches!(segment, slot::FS | slot::GS).then_some(segment),
        narrow,
    }))
}

/// Operand `n`: a general register without high bytes, memory, or a value that fits 32 bits.
fn arg(form: &Form, n: u32) -> Option<Arg> {
    if form.is_memory(n) {
        return Some(Arg::Mem);
    }
    if form.is_immediate(n) {
        let value = form.instruction.immediate(n);
        // Those as wide as the operand are not extended.
        let cut = matches!(
            form.instruction.op_kind(n),
            OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32
        );
        let value = if cut {
            value as i32 as i64
        } else {
            value as i64
        };
        return i32::try_from(value).ok().map(Arg::Value);
    }
    register(form, n).map(Arg::Reg)
}

/// Operand `n`, if it is a general register and no high byte.
pub(super) fn register(form: &Form, n: u32) -> Option<u8> {
    if !form.is_register(n) || !form.instruction.op_register(n).is_gpr() {
        return None;
    }
    let number = form.register(n);
    (number & slot::HIGH == 0).then_some(number)
}

/// Operand `n`, if it is AH (0), CH (1), DH (2) or BH (3): the register whose byte it is.
fn high(form: &Form, n: u32) -> Option<u8> {
    if !form.is_register(n) || !form.instruction.op_register(n).is_gpr() {
        return None;
    }
    let number = form.register(n);
    (number & slot::HIGH != 0).then_some(number & !slot::HIGH)
}

/// Operand `n`, if it is one of AL to BH, as ModRM has it where there is no REX prefix.
fn byte(form: &Form, n: u32) -> Option<u8> {
    let low = || register(form, n).filter(|number| *number < 4);
    high(form, n).map(|number| number + 4).or_else(low)
}

fn condition(form: &Form) -> u8 {
    crate::decode::condition(form)
}

fn integer(form: &Form) -> Option<Plan> {
    use Mnemonic as M;
    let i = form.instruction;
    let size = || form.size(0) as u8;
    let alu = |code, flags: Effect| {
        if let (Some(to), true, false) = (high(form, 0), form.is_immediate(1), flags.reads) {
            let value = i.immediate(1) as u8;
            return Some(Plan::new(Work::AluHigh { code, to, value }, 1, flags));
        }
        let work = Work::Alu {
            code,
            to: arg(form, 0)?,
            from: arg(form, 1)?,
        };
        Some(Plan::new(work, size(), flags))
    };
    match i.mnemonic() {
        M::Add => alu(0, Effect::WRITES),
        M::Or => alu(1, Effect::WRITES),
        M::Adc => alu(2, Effect::REPLACES),
        M::Sbb => alu(3, Effect::REPLACES),
        M::And => alu(4, Effect::WRITES),
        M::Sub => alu(5, Effect::WRITES),
        M::Xor => alu(6, Effect::WRITES),
        M::Cmp => alu(7, Effect::WRITES),
        M::Test => alu(8, Effect::WRITES),
        M::Mov => mov(form),
        M::Lea => {
            let work = Work::Lea {
                to: register(form, 0)?,
            };
            Some(Plan::new(work, size(), Effect::NONE))
        }
        M::Movzx | M::Movsx | M::Movsxd => {
            let narrow = if i.mnemonic() == M::Movsxd {
                4
            } else {
                form.size(1) as u8
            };
            // Without REX.W the latter is a plain move, or one of 16 bits that reads 32.
            if i.mnemonic() == M::Movsxd && size() != 8 {
                return None;
            }
            let signed = i.mnemonic() != M::Movzx;
            if let (Some(from), true) = (high(form, 1), size() == 4) {
                let to = register(form, 0)?;
                let work = Work::WidenHigh { to, from, signed };
                return Some(Plan::new(work, 4, Effect::NONE));
            }
            let work = Work::Widen {
                to: register(form, 0)?,
                from: arg(form, 1)?,
                narrow,
                signed,
            };
            Some(Plan::new(work, size(), Effect::NONE))
        }
        M::Inc | M::Dec => {
            let code = u8::from(i.mnemonic() == M::Dec);
            let work = Work::Step {
                code,
                to: arg(form, 0)?,
            };
            Some(Plan::new(work, size(), Effect::CHANGES))
        }
        M::Not | M::Neg => {
            let (code, flags) = match i.mnemonic() {
                M::Not => (2, Effect::NONE),
                _ => (3, Effect::WRITES),
            };
            let work = Work::Negate {
                code,
                to: arg(form, 0)?,
            };
            Some(Plan::new(work, size(), flags))
        }
        M::Shl | M::Sal => shift(form, 4),
        M::Shr => shift(form, 5),
        M::Sar => shift(form, 7),
        M::Rol => shift(form, 0),
        M::Ror => shift(form, 1),
        _ => product(form)
            .or_else(|| bits(form))
            .or_else(|| transfer(form))
            .or_else(|| branch(form)),
    }
}

fn mov(form: &Form) -> Option<Plan> {
    let size = form.size(0) as u8;
    if form.is_immediate(1) && form.is_register(0) && size >= 4 {
        let value = form.instruction.immediate(1);
        let value = if size == 4 {
            u64::from(value as u32)
        } else {
            value
        };
        let work = Work::Constant {
            to: register(form, 0)?,
            value,
        };
        return Some(Plan::new(work, size, Effect::NONE));
    }
    if high(form, 0).or(high(form, 1)).is_some() {
        let work = Work::MoveByte {
            to: byte(form, 0)?,
            from: byte(form, 1)?,
        };
        return Some(Plan::new(work, 1, Effect::NONE));
    }
    let (to, from) = (arg(form, 0)?, arg(form, 1)?);
    Some(Plan::new(Work::Move { to, from }, size, Effect::NONE))
}

fn shift(form: &Form, code: u8) -> Option<Plan> {
    let size = form.size(0) as u8;
    let to = arg(form, 0)?;
    let count = if form.is_register(1) {
        None
    } else {
        let mask = if size == 8 { 63 } else { 31 };
        Some(form.instruction.immediate(1) as u8 & mask)
    };
    let rotates = code < 4;
    match count {
        // Of the flags of more turns than there are bits each shift has its own idea.
        Some(0) => return None,
        Some(count) if !rotates && count >= size * 8 => return None,
        None if size < 4 || to == Arg::Mem => return None,
        _ => {}
    }
    let flags = if rotates || count.is_none() {
        Effect::CHANGES
    } else {
        Effect::WRITES
    };
    Some(Plan::new(Work::Shift { code, to, count }, size, flags))
}

fn product(form: &Form) -> Option<Plan> {
    use Mnemonic as M;
    let i = form.instruction;
    let size = form.size(0) as u8;
    let one = i.op_count() == 1;
    let from = |n| arg(form, n).filter(|_| size >= 4);
    let work = match i.mnemonic() {
        M::Mul => Work::Wide {
            code: 4,
            from: from(0)?,
        },
        M::Imul if one => Work::Wide {
            code: 5,
            from: from(0)?,
        },
        M::Imul => Work::Product {
            to: register(form, 0)?,
            from: from(1)?,
            value: (i.op_count() == 3).then(|| i.immediate(2) as i32),
        },
        M::Div => Work::Divide {
            code: 6,
            from: from(0)?,
        },
        M::Idiv => Work::Divide {
            code: 7,
            from: from(0)?,
        },
        _ => return None,
    };
    let leaves = matches!(work, Work::Divide { .. });
    Some(Plan {
        leaves,
        ..Plan::new(work, size, Effect::CHANGES)
    })
}

fn bits(form: &Form) -> Option<Plan> {
    use Mnemonic as M;
    let i = form.instruction;
    let size = form.size(0) as u8;
    let bit = |code| {
        let (to, number) = (arg(form, 0)?, arg(form, 1)?);
        if size < 4 {
            return None;
        }
        Some(Plan::new(
            Work::Bit { code, to, number },
            size,
            Effect::CHANGES,
        ))
    };
    let scan = |code| {
        let (to, from) = (register(form, 0)?, arg(form, 1)?);
        (size >= 4).then(|| Plan {
            leaves: true,
            ..Plan::new(Work::Scan { code, to, from }, size, Effect::WRITES)
        })
    };
    match i.mnemonic() {
        M::Bt => bit(4),
        M::Bts => bit(5),
        M::Btr => bit(6),
        M::Btc => bit(7),
        M::Bsf => scan(0xbc),
        M::Bsr => scan(0xbd),
        M::Popcnt if size >= 4 && std::arch::is_x86_feature_detected!("popcnt") => {
            let (to, from) = (register(form, 0)?, arg(form, 1)?);
            Some(Plan::new(Work::Count { to, from }, size, Effect::WRITES))
        }
        M::Bswap if size >= 4 => {
            let to = register(form, 0)?;
            Some(Plan::new(Work::Swap { to }, size, Effect::NONE))
        }
        _ => None,
    }
}

fn transfer(form: &Form) -> Option<Plan> {
    use Mnemonic as M;
    let i = form.instruction;
    let size = || form.size(0) as u8;
    let pushes = i.stack_pointer_increment().unsigned_abs() == 8;
    let leaving = |plan| Plan {
        leaves: true,
        ..plan
    };
    match i.mnemonic() {
        M::Cbw => Some(Plan::new(Work::Extend, 2, Effect::NONE)),
        M::Cwde => Some(Plan::new(Work::Extend, 4, Effect::NONE)),
        M::Cdqe => Some(Plan::new(Work::Extend, 8, Effect::NONE)),
        M::Cwd => Some(Plan::new(Work::Spread, 2, Effect::NONE)),
        M::Cdq => Some(Plan::new(Work::Spread, 4, Effect::NONE)),
        M::Cqo => Some(Plan::new(Work::Spread, 8, Effect::NONE)),
        M::Push if pushes => {
            let from = arg(form, 0)?;
            Some(leaving(Plan::new(Work::Push { from }, 8, Effect::NONE)))
        }
        M::Pop if pushes => {
            let to = register(form, 0)?;
            Some(leaving(Plan::new(Work::Pop { to }, 8, Effect::NONE)))
        }
        M::Leave if i.code() == iced_x86::Code::Leaveq => {
            Some(leaving(Plan::new(Work::Leave, 8, Effect::NONE)))
        }
        M::Xchg => {
            let (place, with) = if form.is_memory(1) { (1, 0) } else { (0, 1) };
            let (to, with) = (arg(form, place)?, register(form, with)?);
            let size = form.size(1 - place) as u8;
            Some(Plan::new(Work::Exchange { to, with }, size, Effect::NONE))
        }
        M::Xadd if form.is_memory(0) && form.size(1) >= 4 => {
            let with = register(form, 1)?;
            Some(Plan::new(
                Work::AddExchange { with },
                form.size(1) as u8,
                Effect::WRITES,
            ))
        }
        M::Cmpxchg if form.is_memory(0) && form.size(1) >= 4 => {
            let with = register(form, 1)?;
            Some(Plan::new(
                Work::CompareExchange { with },
                form.size(1) as u8,
                Effect::WRITES,
            ))
        }
        M::Cmpxchg16b => {
            let work = Work::CompareExchangeWide;
            let flags = Effect {
                reads: true,
                ..Effect::CHANGES
            };
            Some(Plan::new(work, 16, flags))
        }
        _ if crate::decode::is_no_prefetch(form) => None,
        _ if crate::decode::does_nothing(form) => Some(Plan::new(Work::Nothing, 0, Effect::NONE)),
        _ if crate::decode::is_conditional(form, 1) => {
            let work = Work::Set {
                condition: condition(form),
                to: arg(form, 0)?,
            };
            Some(Plan::new(work, 1, Effect::READS))
        }
        _ if crate::decode::is_conditional(form, 2) => {
            let work = Work::MoveIf {
                condition: condition(form),
                to: register(form, 0)?,
                from: arg(form, 1)?,
            };
            Some(Plan::new(work, size(), Effect::READS))
        }
        _ => None,
    }
}

fn branch(form: &Form) -> Option<Plan> {
    let i = form.instruction;
    let direct = i.op_count() == 1 && i.op_kind(0) == OpKind::NearBranch64;
    // iced's positions count from the block's first byte, and so may be negative.
    let target = i.near_branch_target() as i64;
    let wide = form.is_memory(0) || form.is_register(0);
    let wide = wide && form.size(0) == 8;
    let (work, flags) = if direct && i.is_jcc_short_or_near() {
        let condition = condition(form);
        (Work::JumpIf { condition, target }, Effect::READS)
    } else if direct && i.is_jmp_short_or_near() {
        (Work::Jump { target }, Effect::NONE)
    } else if direct && i.is_call_near() {
        (Work::Call { target }, Effect::NONE)
    } else if wide && i.is_jmp_near_indirect() {
        (
            Work::JumpTo {
                from: arg(form, 0)?,
            },
            Effect::NONE,
        )
    } else if wide && i.is_call_near_indirect() {
        (
            Work::CallTo {
                from: arg(form, 0)?,
            },
            Effect::NONE,
        )
    } else if matches!(
        i.code(),
        iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16
    ) {
        let drop = if i.op_count() == 1 {
            i.immediate16().into()
        } else {
            0
        };
        (Work::Return { drop }, Effect::NONE)
    } else {
        return None;
    };
    Some(Plan {
        leaves: true,
        ends: true,
        ..Plan::new(work, 8, flags)
    })
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
