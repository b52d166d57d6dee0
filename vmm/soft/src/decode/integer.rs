//! Integer instructions.

use super::Lowered;
use super::form::{AddressForm, Form};
use super::select::{by_address, by_size};
use crate::execute::alu::{self, Adc, Add, Alu, And, Cmp, Or, Sbb, Sub, Test, Xor};
use crate::execute::operand::{Dst, Imm, Mem, Src};
use crate::execute::{branch, transfer};
use crate::op::Handler;
use crate::word::Word;
use iced_x86::{FlowControl, Mnemonic};

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
        _ => return near_branch(form),
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
    if !form.is_register(0) || !form.instruction.op_register(0).is_gpr() {
        return None;
    }
    form.dst(0);
    Some(by_size!(stack_size(form), W => transfer::pop::<W>))
}

fn near_branch(form: &mut Form) -> Option<Lowered> {
    let i = form.instruction;
    let size = if form.long { 8 } else { 4 };
    let handler = match i.flow_control() {
        FlowControl::ConditionalBranch if i.is_jcc_short_or_near() => {
            form.target();
            conditional(i.condition_code() as u8 - 1)
        }
        FlowControl::UnconditionalBranch if i.is_jmp_short_or_near() => {
            form.target();
            branch::jump
        }
        FlowControl::Call if i.is_call_near() => {
            form.target();
            by_size!(size, W => branch::call::<W>)
        }
        FlowControl::IndirectBranch if i.is_jmp_near_indirect() => indirect(form, size, false),
        FlowControl::IndirectCall if i.is_call_near_indirect() => indirect(form, size, true),
        FlowControl::Return if i.mnemonic() == Mnemonic::Ret => {
            if i.op_count() == 1 {
                form.op.imm = i.immediate16().into();
            }
            by_size!(size, W => branch::ret::<W>)
        }
        _ => return None,
    };
    Some(form.ending(handler))
}

fn indirect(form: &mut Form, size: u8, call: bool) -> Handler {
    if form.is_memory(0) {
        let address = form.memory();
        if call {
            return by_size!(size, W => by_address!(address, A => branch::call_to::<W, Mem<A>>));
        }
        return by_size!(size, W => by_address!(address, A => branch::jump_to::<W, Mem<A>>));
    }
    form.src(0);
    if call {
        return by_size!(size, W => branch::call_to::<W, Src>);
    }
    by_size!(size, W => branch::jump_to::<W, Src>)
}

/// `jCC` for iced's condition codes (o, no, b, ae, e, ne, be, a, s, ns, p, np, l, ge, le, g), which are in
/// the order instructions encode them.
fn conditional(code: u8) -> Handler {
    use branch::jump_if;
    const TABLE: [Handler; 16] = [
        jump_if::<0>,
        jump_if::<1>,
        jump_if::<2>,
        jump_if::<3>,
        jump_if::<4>,
        jump_if::<5>,
        jump_if::<6>,
        jump_if::<7>,
        jump_if::<8>,
        jump_if::<9>,
        jump_if::<10>,
        jump_if::<11>,
        jump_if::<12>,
        jump_if::<13>,
        jump_if::<14>,
        jump_if::<15>,
    ];
    TABLE[usize::from(code) % 16]
}
