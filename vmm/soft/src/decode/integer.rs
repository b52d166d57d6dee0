//! Integer instructions.

use super::form::{AddressForm, Form};
use super::general::{self, condition, sixteen};
use super::select::{by_address, by_size, by_wide};
use super::{Lowered, bits};
use crate::execute::alu::{self, Adc, Add, Alu, And, Cmp, Or, Sbb, Sub, Test, Xor};
use crate::execute::operand::{Dst, Imm, Mem, Src};
use crate::execute::{branch, stack, transfer};
use crate::op::Handler;
use crate::word::Word;
use iced_x86::{Code, FlowControl, InstructionInfoFactory, Mnemonic, OpKind, Register};

/// The op for an integer instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    let handler = match form.instruction.mnemonic() {
        Mnemonic::Add => two::<Add>(form),
        Mnemonic::Or => two::<Or>(form),
        Mnemonic::Adc => two::<Adc>(form),
        Mnemonic::Sbb => two::<Sbb>(form),
        Mnemonic::And => two::<And>(form),
        Mnemonic::Sub => two::<Sub>(form),
        Mnemonic::Xor => two::<Xor>(form),
        Mnemonic::Cmp => two::<Cmp>(form),
        Mnemonic::Test => two::<Test>(form),
        Mnemonic::Mov => mov(form)?,
        Mnemonic::Lea => lea(form),
        Mnemonic::Push => push(form)?,
        Mnemonic::Pop => pop(form)?,
        _ => match bits::lower(form).or_else(|| general::lower(form)) {
            Some(handler) => handler,
            None => return near_branch(form),
        },
    };
    Some(form.with(handler))
}

/// `O place, source` in every form.
fn two<O: Alu + 'static>(form: &mut Form) -> Handler {
    by_size!(form.size(0), W => two_sized::<O, W>(form))
}

fn two_sized<O: Alu + 'static, W: Word>(form: &mut Form) -> Handler {
    use alu::alu;
    match (form.is_memory(0), form.is_memory(1)) {
        (true, _) => {
            let address = form.memory();
            if form.is_immediate(1) {
                form.imm(1);
                return by_address!(address, A => alu::<O, W, Mem<A>, Imm>);
            }
            form.src(1);
            by_address!(address, A => alu::<O, W, Mem<A>, Src>)
        }
        (false, true) => {
            let address = form.memory();
            form.dst(0);
            by_address!(address, A => alu::<O, W, Dst, Mem<A>>)
        }
        (false, false) if form.is_immediate(1) => {
            form.dst(0).imm(1);
            alu::<O, W, Dst, Imm>
        }
        (false, false) => {
            form.dst(0).src(1);
            alu::<O, W, Dst, Src>
        }
    }
}

fn mov(form: &mut Form) -> Option<Handler> {
    let general = |n| form.instruction.op_register(n).is_gpr();
    if (form.is_register(0) && !general(0)) || (form.is_register(1) && !general(1)) {
        return None;
    }
    Some(by_size!(form.size(0), W => mov_sized::<W>(form)))
}

fn mov_sized<W: Word>(form: &mut Form) -> Handler {
    use transfer::mov;
    if form.is_memory(0) {
        let address = form.memory();
        if form.is_immediate(1) {
            form.imm(1);
            return by_address!(address, A => mov::<W, Mem<A>, Imm>);
        }
        form.src(1);
        return by_address!(address, A => mov::<W, Mem<A>, Src>);
    }
    form.dst(0);
    if form.is_memory(1) {
        let address = form.memory();
        return by_address!(address, A => mov::<W, Dst, Mem<A>>);
    }
    if form.is_immediate(1) {
        form.imm(1);
        return mov::<W, Dst, Imm>;
    }
    form.src(1);
    mov::<W, Dst, Src>
}

fn lea(form: &mut Form) -> Handler {
    let address = form.memory();
    form.op.extra = u8::from(address == AddressForm::Narrow);
    form.dst(0);
    by_size!(form.size(0), W => transfer::lea::<W>)
}

/// Bytes a push or pop moves.
fn stack_size(form: &Form) -> u8 {
    form.instruction.stack_pointer_increment().unsigned_abs() as u8
}

fn push(form: &mut Form) -> Option<Handler> {
    if form.is_register(0) && !form.instruction.op_register(0).is_gpr() {
        return None;
    }
    let size = stack_size(form);
    if form.is_memory(0) {
        let address = form.memory();
        return Some(by_size!(size, W => by_address!(address, A => transfer::push::<W, Mem<A>>)));
    }
    if form.is_immediate(0) {
        form.imm(0);
        return Some(by_size!(size, W => transfer::push::<W, Imm>));
    }
    form.src(0);
    Some(by_size!(size, W => transfer::push::<W, Src>))
}

fn pop(form: &mut Form) -> Option<Handler> {
    let size = stack_size(form);
    if form.is_memory(0) {
        let address = form.memory();
        return Some(by_wide!(size, W => {
            by_address!(address, A => stack::pop_memory::<W, A>)
        }));
    }
    if !form.instruction.op_register(0).is_gpr() {
        return None;
    }
    form.dst(0);
    Some(by_wide!(size, W => transfer::pop::<W>))
}

/// Bytes of a branch's target, which are those of its operand size: 2 with a 66 prefix, as AMD's processors
/// have it in 64-bit code, too (AMD APM volume 3, "Near Branches in 64-Bit Mode").
fn target_size(form: &Form) -> u8 {
    match (form.instruction.op_kind(0), form.long) {
        (OpKind::NearBranch16, _) => 2,
        (_, false) => 4,
        (_, true) => 8,
    }
}

fn near_branch(form: &mut Form) -> Option<Lowered> {
    const JUMPS: [Handler; 16] = sixteen!(CODE => branch::jump_if::<CODE>);
    const SHORT_JUMPS: [Handler; 16] = sixteen!(CODE => branch::jump_if_short::<CODE>);
    let i = form.instruction;
    let size = target_size(form);
    let handler = match i.flow_control() {
        FlowControl::ConditionalBranch if i.is_jcc_short_or_near() => {
            form.target();
            let table = if size == 2 { SHORT_JUMPS } else { JUMPS };
            table[usize::from(condition(form))]
        }
        FlowControl::ConditionalBranch => counted(form)?,
        FlowControl::UnconditionalBranch if i.is_jmp_short_or_near() => {
            form.target();
            if size == 2 {
                branch::jump_short
            } else {
                branch::jump
            }
        }
        FlowControl::Call if i.is_call_near() => {
            form.target();
            by_wide!(size, W => branch::call::<W>)
        }
        FlowControl::IndirectBranch if i.is_jmp_near_indirect() => indirect(form, false),
        FlowControl::IndirectCall if i.is_call_near_indirect() => indirect(form, true),
        FlowControl::Return => ret(form)?,
        _ => return None,
    };
    Some(form.ending(handler))
}

fn ret(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    if i.op_count() == 1 {
        form.op.imm = i.immediate16().into();
    }
    Some(match i.code() {
        Code::Retnw | Code::Retnw_imm16 => branch::ret::<u16>,
        Code::Retnd | Code::Retnd_imm16 => branch::ret::<u32>,
        Code::Retnq | Code::Retnq_imm16 => branch::ret::<u64>,
        _ => return None,
    })
}

/// LOOP and its kin, JRCXZ and its kin.
fn counted(form: &mut Form) -> Option<Handler> {
    use branch::{Until, count_down, jump_if_counted};
    let size = target_size(form);
    form.target();
    // The handlers cut the target by this.
    form.op.imm = u64::MAX >> (64 - 8 * u32::from(size));
    let i = form.instruction;
    let until = match i.mnemonic() {
        Mnemonic::Loop => Until::Count,
        Mnemonic::Loope => Until::NotEqual,
        Mnemonic::Loopne => Until::Equal,
        Mnemonic::Jcxz => return Some(jump_if_counted::<u16>),
        Mnemonic::Jecxz => return Some(jump_if_counted::<u32>),
        Mnemonic::Jrcxz => return Some(jump_if_counted::<u64>),
        _ => return None,
    };
    form.op.extra = until as u8;
    let counter = InstructionInfoFactory::new()
        .info(i)
        .used_registers()
        .iter()
        .map(|used| used.register())
        .find(|r| r.full_register() == Register::RCX)?;
    Some(by_wide!(counter.size(), W => count_down::<W>))
}

fn indirect(form: &mut Form, call: bool) -> Handler {
    let size = form.size(0);
    if form.is_memory(0) {
        let address = form.memory();
        if call {
            return by_wide!(size, W => by_address!(address, A => branch::call_to::<W, Mem<A>>));
        }
        return by_wide!(size, W => by_address!(address, A => branch::jump_to::<W, Mem<A>>));
    }
    form.src(0);
    if call {
        return by_wide!(size, W => branch::call_to::<W, Src>);
    }
    by_wide!(size, W => branch::jump_to::<W, Src>)
}
