//! Shifts, rotates, and instructions on single bits.

use super::form::Form;
use super::select::{by_address, by_size, by_wide};
use crate::execute::bit::{self, Bit, Flip, Look, Reset, Set};
use crate::execute::operand::{Cl, Dst, Imm, Mem, Src};
use crate::execute::shift::{self, Rcl, Rcr, Rol, Ror, Sar, Shift, Shl, Shr};
use crate::op::Handler;
use crate::word::Word;
use iced_x86::Mnemonic;

/// `handler register, source` in every form.
macro_rules! scan {
    ($form:expr, $name:ident) => {
        by_wide!($form.size(0), W => {
            $form.dst(0);
            if $form.is_memory(1) {
                by_address!($form.memory(), A => bit::$name::<W, Mem<A>>)
            } else {
                $form.src(1);
                bit::$name::<W, Src>
            }
        })
    };
}

/// The handler for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Handler> {
    Some(match form.instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<Shl>(form),
        Mnemonic::Shr => shift::<Shr>(form),
        Mnemonic::Sar => shift::<Sar>(form),
        Mnemonic::Rol => shift::<Rol>(form),
        Mnemonic::Ror => shift::<Ror>(form),
        Mnemonic::Rcl => shift::<Rcl>(form),
        Mnemonic::Rcr => shift::<Rcr>(form),
        Mnemonic::Shld => double::<true>(form),
        Mnemonic::Shrd => double::<false>(form),
        Mnemonic::Bt => bit::<Look>(form),
        Mnemonic::Bts => bit::<Set>(form),
        Mnemonic::Btr => bit::<Reset>(form),
        Mnemonic::Btc => bit::<Flip>(form),
        Mnemonic::Bsf => scan!(form, bsf),
        Mnemonic::Bsr => scan!(form, bsr),
        Mnemonic::Tzcnt => scan!(form, tzcnt),
        Mnemonic::Lzcnt => scan!(form, lzcnt),
        Mnemonic::Popcnt => scan!(form, popcnt),
        Mnemonic::Crc32 => crc32(form),
        Mnemonic::Bswap => {
            form.dst(0);
            by_wide!(form.size(0), W => bit::bswap::<W>)
        }
        Mnemonic::Movbe => movbe(form),
        _ => return None,
    })
}

fn shift<O: Shift + 'static>(form: &mut Form) -> Handler {
    by_size!(form.size(0), W => shift_sized::<O, W>(form))
}

fn shift_sized<O: Shift + 'static, W: Word>(form: &mut Form) -> Handler {
    use shift::shift;
    let by_register = form.is_register(1);
    if !by_register {
        form.imm(1);
    }
    if form.is_memory(0) {
        let address = form.memory();
        if by_register {
            return by_address!(address, A => shift::<O, W, Mem<A>, Cl>);
        }
        return by_address!(address, A => shift::<O, W, Mem<A>, Imm>);
    }
    form.dst(0);
    if by_register {
        shift::<O, W, Dst, Cl>
    } else {
        shift::<O, W, Dst, Imm>
    }
}

fn double<const LEFT: bool>(form: &mut Form) -> Handler {
    by_wide!(form.size(0), W => double_sized::<W, LEFT>(form))
}

fn double_sized<W: Word, const LEFT: bool>(form: &mut Form) -> Handler {
    use shift::double;
    form.src(1);
    let by_register = form.is_register(2);
    if !by_register {
        form.imm(2);
    }
    if form.is_memory(0) {
        let address = form.memory();
        if by_register {
            return by_address!(address, A => double::<W, Mem<A>, Cl, LEFT>);
        }
        return by_address!(address, A => double::<W, Mem<A>, Imm, LEFT>);
    }
    form.dst(0);
    if by_register {
        double::<W, Dst, Cl, LEFT>
    } else {
        double::<W, Dst, Imm, LEFT>
    }
}

fn bit<B: Bit + 'static>(form: &mut Form) -> Handler {
    by_wide!(form.size(0), W => bit_sized::<B, W>(form))
}

fn bit_sized<B: Bit + 'static, W: Word>(form: &mut Form) -> Handler {
    use bit::{bit, bit_string};
    if form.is_memory(0) {
        let address = form.memory();
        if form.is_immediate(1) {
            form.imm(1);
            return by_address!(address, A => bit::<B, W, Mem<A>, Imm>);
        }
        form.src(1);
        return by_address!(address, A => bit_string::<B, W, A>);
    }
    form.dst(0);
    if form.is_immediate(1) {
        form.imm(1);
        return bit::<B, W, Dst, Imm>;
    }
    form.src(1);
    bit::<B, W, Dst, Src>
}

fn crc32(form: &mut Form) -> Handler {
    form.dst(0);
    by_size!(form.size(1), W => {
        if form.is_memory(1) {
            by_address!(form.memory(), A => bit::crc32::<W, Mem<A>>)
        } else {
            form.src(1);
            bit::crc32::<W, Src>
        }
    })
}

fn movbe(form: &mut Form) -> Handler {
    let stores = form.is_memory(0);
    let address = form.memory();
    by_wide!(form.size(0), W => {
        if stores {
            form.src(1);
            by_address!(address, A => bit::movbe::<W, Mem<A>, Src>)
        } else {
            form.dst(0);
            by_address!(address, A => bit::movbe::<W, Dst, Mem<A>>)
        }
    })
}
