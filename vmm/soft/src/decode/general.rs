//! General instructions beyond the commonest: one operand, widening moves, products, conditions,
//! exchanges, stack frames, 32-bit relics, and what does nothing.

use super::form::Form;
use super::select::{by_address, by_size, by_wide};
use crate::execute::operand::{Dst, Mem, Src};
use crate::execute::unary::{self, Dec, Inc, Neg, Not, Unary};
use crate::execute::{condition, exchange, legacy, multiply, stack, transfer};
use crate::op::{Handler, slot};
use iced_x86::{Code, ConditionCode, FlowControl, Mnemonic};

/// `handler source` in every form and size.
macro_rules! one_source {
    ($form:expr, $handler:ident) => {
        by_size!($form.size(0), W => {
            if $form.is_memory(0) {
                by_address!($form.memory(), A => multiply::$handler::<W, Mem<A>>)
            } else {
                $form.src(0);
                multiply::$handler::<W, Src>
            }
        })
    };
}

/// `handler place, register` in every form and size.
macro_rules! place_register {
    ($form:expr, $handler:ident) => {{
        // XCHG is the same both ways round.
        let (place, register) = if $form.is_memory(1) { (1, 0) } else { (0, 1) };
        $form.src(register);
        by_size!($form.size(register), W => {
            if $form.is_memory(place) {
                by_address!($form.memory(), A => exchange::$handler::<W, Mem<A>>)
            } else {
                $form.dst(place);
                exchange::$handler::<W, Dst>
            }
        })
    }};
}

/// The handler for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Handler> {
    Some(match form.instruction.mnemonic() {
        Mnemonic::Inc => unary::<Inc>(form),
        Mnemonic::Dec => unary::<Dec>(form),
        Mnemonic::Neg => unary::<Neg>(form),
        Mnemonic::Not => unary::<Not>(form),
        Mnemonic::Movzx => movzx(form),
        Mnemonic::Movsx => movsx(form),
        Mnemonic::Movsxd => movsxd(form),
        Mnemonic::Movnti => {
            form.src(1);
            let address = form.memory();
            match form.size(0) {
                4 => by_address!(address, A => transfer::mov::<u32, Mem<A>, Src>),
                _ => by_address!(address, A => transfer::mov::<u64, Mem<A>, Src>),
            }
        }
        Mnemonic::Mul => one_source!(form, mul),
        Mnemonic::Imul => imul(form),
        Mnemonic::Div => one_source!(form, div),
        Mnemonic::Idiv => one_source!(form, idiv),
        Mnemonic::Cbw => multiply::widen::<u8, u16>,
        Mnemonic::Cwde => multiply::widen::<u16, u32>,
        Mnemonic::Cdqe => multiply::widen::<u32, u64>,
        Mnemonic::Cwd => multiply::spread::<u16>,
        Mnemonic::Cdq => multiply::spread::<u32>,
        Mnemonic::Cqo => multiply::spread::<u64>,
        Mnemonic::Xchg => place_register!(form, xchg),
        Mnemonic::Xadd => xadd(form),
        Mnemonic::Cmpxchg => place_register!(form, cmpxchg),
        Mnemonic::Cmpxchg8b => by_address!(form.memory(), A => exchange::cmpxchg8b::<A>),
        Mnemonic::Cmpxchg16b => by_address!(form.memory(), A => exchange::cmpxchg16b::<A>),
        Mnemonic::Lahf => condition::lahf,
        Mnemonic::Sahf => condition::sahf,
        Mnemonic::Clc => condition::clc,
        Mnemonic::Stc => condition::stc,
        Mnemonic::Cmc => condition::cmc,
        Mnemonic::Cld => condition::cld,
        Mnemonic::Std => condition::std,
        Mnemonic::Xlatb => {
            let address = form.memory();
            // The handler adds AL, which is no index as others are.
            form.op.index = slot::ZERO | form.op.index & slot::SHORT;
            by_address!(address, A => transfer::xlat::<A>)
        }
        _ if is_conditional(form, 1) => set(form),
        _ if is_conditional(form, 2) => conditional_move(form),
        // Of the prefetches, AMD's processors take only those with a memory operand.
        _ if is_no_prefetch(form) => super::undefined,
        _ if does_nothing(form) => transfer::nothing,
        _ => return frame(form).or_else(|| relic(form)),
    })
}

fn unary<O: Unary + 'static>(form: &mut Form) -> Handler {
    by_size!(form.size(0), W => {
        if form.is_memory(0) {
            by_address!(form.memory(), A => unary::unary::<O, W, Mem<A>>)
        } else {
            form.dst(0);
            unary::unary::<O, W, Dst>
        }
    })
}

/// `handler register, source` from `F` to the register's size.
macro_rules! widening {
    ($form:expr, $from:ty, $handler:ident) => {
        by_wide!($form.size(0), T => {
            $form.dst(0);
            if $form.is_memory(1) {
                by_address!($form.memory(), A => transfer::$handler::<$from, T, Mem<A>>)
            } else {
                $form.src(1);
                transfer::$handler::<$from, T, Src>
            }
        })
    };
}

fn movzx(form: &mut Form) -> Handler {
    match form.size(1) {
        1 => widening!(form, u8, movzx),
        _ => widening!(form, u16, movzx),
    }
}

fn movsx(form: &mut Form) -> Handler {
    match form.size(1) {
        1 => widening!(form, u8, movsx),
        _ => widening!(form, u16, movsx),
    }
}

/// Without REX.W it moves as much as the register takes; it reads 32 bits even so, as AMD's processors do.
fn movsxd(form: &mut Form) -> Handler {
    widening!(form, u32, movsx)
}

fn xadd(form: &mut Form) -> Handler {
    form.src(1);
    by_size!(form.size(1), W => {
        if form.is_memory(0) {
            by_address!(form.memory(), A => exchange::xadd_memory::<W, A>)
        } else {
            form.dst(0);
            exchange::xadd::<W>
        }
    })
}

fn imul(form: &mut Form) -> Handler {
    if form.instruction.op_count() == 1 {
        return one_source!(form, imul);
    }
    form.dst(0);
    let three = form.instruction.op_count() == 3;
    if three {
        form.imm(2);
    }
    by_wide!(form.size(0), W => match (form.is_memory(1), three) {
        (true, true) => by_address!(form.memory(), A => multiply::imul_three::<W, Mem<A>>),
        (true, false) => by_address!(form.memory(), A => multiply::imul_two::<W, Mem<A>>),
        (false, true) => {
            form.src(1);
            multiply::imul_three::<W, Src>
        }
        (false, false) => {
            form.src(1);
            multiply::imul_two::<W, Src>
        }
    })
}

/// Whether it is SETcc (one operand) or CMOVcc (two).
pub(crate) fn is_conditional(form: &Form, operands: u32) -> bool {
    let i = form.instruction;
    i.condition_code() != ConditionCode::None
        && i.flow_control() == FlowControl::Next
        && i.op_count() == operands
}

/// The condition's code as instructions encode it.
pub(crate) fn condition(form: &Form) -> u8 {
    // iced's are in the same order, after one for none.
    (form.instruction.condition_code() as u8).wrapping_sub(1) % 16
}

/// A table of a handler's sixteen instances, one for each condition.
macro_rules! sixteen {
    ($condition:ident => $handler:expr) => {{
        sixteen!(@ $condition, $handler, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    }};
    (@ $condition:ident, $handler:expr, $($code:literal)*) => {
        [$({ const $condition: u8 = $code; $handler as Handler }),*]
    };
}
pub(super) use sixteen;

fn set(form: &mut Form) -> Handler {
    const TABLE: [Handler; 16] = sixteen!(CODE => condition::set_if::<CODE>);
    let code = condition(form);
    if form.is_memory(0) {
        form.op.extra = code;
        return by_address!(form.memory(), A => condition::set::<Mem<A>>);
    }
    form.dst(0);
    TABLE[usize::from(code)]
}

fn conditional_move(form: &mut Form) -> Handler {
    const TABLE32: [Handler; 16] = sixteen!(CODE => condition::move_if::<u32, CODE>);
    const TABLE64: [Handler; 16] = sixteen!(CODE => condition::move_if::<u64, CODE>);
    let code = condition(form);
    form.dst(0);
    form.op.extra = code;
    if form.is_memory(1) {
        let address = form.memory();
        return by_wide!(form.size(0), W => by_address!(address, A =>
            condition::conditional_move::<W, Mem<A>>
        ));
    }
    form.src(1);
    match form.size(0) {
        2 => condition::conditional_move::<u16, Src>,
        4 => TABLE32[usize::from(code)],
        _ => TABLE64[usize::from(code)],
    }
}

fn frame(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    Some(match i.code() {
        Code::Leavew => stack::leave::<u16>,
        Code::Leaved => stack::leave::<u32>,
        Code::Leaveq => stack::leave::<u64>,
        Code::Enterw_imm16_imm8 | Code::Enterd_imm16_imm8 | Code::Enterq_imm16_imm8 => {
            form.op.imm = i.immediate16().into();
            form.op.extra = i.immediate8_2nd();
            match i.code() {
                Code::Enterw_imm16_imm8 => stack::enter::<u16>,
                Code::Enterd_imm16_imm8 => stack::enter::<u32>,
                _ => stack::enter::<u64>,
            }
        }
        Code::Pushaw => stack::push_all::<u16>,
        Code::Pushad => stack::push_all::<u32>,
        Code::Popaw => stack::pop_all::<u16>,
        Code::Popad => stack::pop_all::<u32>,
        _ => return None,
    })
}

/// What only 32-bit code has.
fn relic(form: &mut Form) -> Option<Handler> {
    Some(match form.instruction.mnemonic() {
        Mnemonic::Daa => legacy::decimal_adjust::<false>,
        Mnemonic::Das => legacy::decimal_adjust::<true>,
        Mnemonic::Aaa => legacy::ascii_adjust::<false>,
        Mnemonic::Aas => legacy::ascii_adjust::<true>,
        Mnemonic::Aam => {
            form.imm(0);
            legacy::aam
        }
        Mnemonic::Aad => {
            form.imm(0);
            legacy::aad
        }
        Mnemonic::Salc => legacy::salc,
        Mnemonic::Bound => {
            form.dst(0);
            let address = form.memory();
            match form.size(0) {
                2 => by_address!(address, A => legacy::bound::<u16, A>),
                _ => by_address!(address, A => legacy::bound::<u32, A>),
            }
        }
        _ => return None,
    })
}

/// Whether it is one of opcode 0F 0D that names a register, and so does not exist.
pub(crate) fn is_no_prefetch(form: &Form) -> bool {
    form.is_register(0)
        && matches!(
            form.instruction.code(),
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        )
}

/// Whether an instruction has no effect on this processor: NOP in every form, hints, fences, and what older
/// processors take for a NOP (shadow-stack and branch-tracking instructions, SDM volume 1, chapter 17).
pub(crate) fn does_nothing(form: &Form) -> bool {
    use Mnemonic as M;
    matches!(
        form.instruction.mnemonic(),
        M::Nop
            | M::Reservednop
            | M::Pause
            | M::Lfence
            | M::Sfence
            | M::Mfence
            | M::Endbr32
            | M::Endbr64
            | M::Rdsspd
            | M::Rdsspq
            | M::Cldemote
            | M::Prefetch
            | M::Prefetchw
            | M::Prefetchwt1
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchit0
            | M::Prefetchit1
    )
}
