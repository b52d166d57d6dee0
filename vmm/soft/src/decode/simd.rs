//! MMX and SSE instructions.

use super::Lowered;
use super::form::{AddressForm, Form, segment_slot};
use super::select::by_address;
use crate::execute::simd::integer::*;
use crate::execute::simd::{
    Aligned, Any, Count, Gpr, Mm, NARROW, Packed, Scalar, Unaligned, Xmm, moves, packed, packed_mm,
    state,
};
use crate::op::{Handler, slot};
use crate::word::Word;
use iced_x86::{Mnemonic, OpKind};

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    if let Some(handler) = moving(form)
        .or_else(|| arithmetic(form))
        .or_else(|| shuffling(form))
    {
        return Some(form.with(handler));
    }
    None
}

impl Form<'_> {
    /// Operands of a memory form whose handler uses [`Any`].
    pub fn any(&mut self) {
        if self.memory() == AddressForm::Narrow {
            self.op.base |= NARROW;
        }
    }

    /// Whether operand `n` is an MMX register.
    fn is_mm(&self, n: u32) -> bool {
        self.is_register(n) && self.instruction.op_register(n).is_mm()
    }

    /// Whether operand `n` is an XMM register.
    fn is_xmm(&self, n: u32) -> bool {
        self.is_register(n) && self.instruction.op_register(n).is_xmm()
    }

    /// Whether operand `n` is a general register.
    fn is_general(&self, n: u32) -> bool {
        self.is_register(n) && self.instruction.op_register(n).is_gpr()
    }

    /// Sets `imm` if the last operand is one.
    pub fn last_immediate(&mut self) {
        let last = self.instruction.op_count() - 1;
        if self.is_immediate(last) {
            self.imm(last);
        }
    }
}

/// `O register, register/memory/immediate (, imm)`, memory being as wide as the register.
pub(super) fn full<O: Packed>(form: &mut Form) -> Handler {
    form.dst(0).last_immediate();
    let mm = form.is_mm(0);
    if form.is_memory(1) {
        form.any();
        return if mm {
            packed_mm::<O, Scalar<Any, u64>>
        } else {
            packed::<O, Aligned<Any>>
        };
    }
    form.src(1);
    if mm {
        packed_mm::<O, Mm>
    } else {
        packed::<O, Xmm>
    }
}

/// The same with an instance for each form of address.
fn common<O: Packed>(form: &mut Form) -> Handler {
    if form.is_mm(0) || !form.is_memory(1) {
        return full::<O>(form);
    }
    form.dst(0).last_immediate();
    let address = form.memory();
    by_address!(address, A => packed::<O, Aligned<A>>)
}

/// A shift: the count is a register, memory or an immediate.
fn shift<O: Packed>(form: &mut Form) -> Handler {
    if !form.is_immediate(1) {
        return full::<O>(form);
    }
    form.dst(0).imm(1);
    if form.is_mm(0) {
        packed_mm::<O, Count>
    } else {
        packed::<O, Count>
    }
}

/// `O xmm, xmm/memory of W (, imm)`.
pub(super) fn narrow<O: Packed, W: Word>(form: &mut Form) -> Handler {
    form.dst(0).last_immediate();
    if form.is_memory(1) {
        form.any();
        return packed::<O, Scalar<Any, W>>;
    }
    form.src(1);
    packed::<O, Xmm>
}

/// A whole vector, in or out.
fn vector(form: &mut Form, aligned: bool) -> Handler {
    if form.is_memory(0) {
        let address = form.memory();
        form.src(1);
        return if aligned {
            by_address!(address, A => moves::store_aligned::<A>)
        } else {
            by_address!(address, A => moves::store::<A>)
        };
    }
    form.dst(0);
    if form.is_memory(1) {
        let address = form.memory();
        return if aligned {
            by_address!(address, A => moves::load::<Aligned<A>>)
        } else {
            by_address!(address, A => moves::load::<Unaligned<A>>)
        };
    }
    form.src(1);
    moves::load::<Xmm>
}

/// `movss`, `movsd`: `O` is how registers merge.
fn scalar<O: Packed, W: Word>(form: &mut Form) -> Handler {
    if form.is_memory(0) {
        let address = form.memory();
        form.src(1);
        return by_address!(address, A => moves::store_low::<A, W>);
    }
    form.dst(0);
    if form.is_memory(1) {
        let address = form.memory();
        return by_address!(address, A => moves::load::<Scalar<A, W>>);
    }
    form.src(1);
    packed::<O, Xmm>
}

/// `movd`, `movq`.
fn word<W: Word>(form: &mut Form) -> Handler {
    if form.is_mm(0) || form.is_mm(1) {
        return word_mm::<W>(form);
    }
    if form.is_memory(0) {
        let address = form.memory();
        form.src(1);
        return by_address!(address, A => moves::store_low::<A, W>);
    }
    form.dst(0);
    if form.is_memory(1) {
        let address = form.memory();
        return by_address!(address, A => moves::load::<Scalar<A, W>>);
    }
    form.src(1);
    if form.is_general(0) {
        return moves::to_general::<W>;
    }
    if form.is_general(1) {
        return moves::load::<Gpr<W>>;
    }
    packed::<Low64, Xmm>
}

fn word_mm<W: Word>(form: &mut Form) -> Handler {
    if form.is_memory(0) {
        form.any();
        form.src(1);
        return moves::store_mm::<W>;
    }
    form.dst(0);
    if form.is_memory(1) {
        form.any();
        return moves::load_mm::<Scalar<Any, W>>;
    }
    form.src(1);
    if form.is_general(0) {
        moves::mm_to_general::<W>
    } else if form.is_general(1) {
        moves::load_mm::<Gpr<W>>
    } else {
        moves::load_mm::<Mm>
    }
}

/// Half of a vector to or from memory: `O` is how it merges.
fn half<O: Packed>(form: &mut Form, high: bool) -> Handler {
    if !form.is_memory(0) {
        return narrow::<O, u64>(form);
    }
    form.any();
    form.src(1);
    if high {
        moves::store_high
    } else {
        moves::store_low::<Any, u64>
    }
}

/// A general register from a vector register: two handlers, for XMM and MMX.
fn gather(form: &mut Form, xmm: Handler, mm: Handler) -> Handler {
    form.dst(0).src(1).last_immediate();
    if form.is_mm(1) { mm } else { xmm }
}

/// `maskmovdqu`, `maskmovq`: to DS:RDI, or another segment's.
fn masked(form: &mut Form) -> Option<Handler> {
    form.op.base = match form.instruction.op0_kind() {
        OpKind::MemorySegRDI => slot::RDI,
        OpKind::MemorySegEDI => slot::RDI | NARROW,
        OpKind::MemorySegDI => {
            form.op.index |= slot::SHORT;
            slot::RDI | NARROW
        }
        _ => return None,
    };
    form.op.scale_segment = segment_slot(form.instruction.memory_segment(), form.long) << 2;
    form.dst(1).src(2);
    if form.is_mm(1) {
        Some(moves::maskmov_mm)
    } else {
        Some(moves::maskmov)
    }
}

/// A handler of a memory operand and nothing else.
fn memory_only(form: &mut Form, handler: Handler) -> Handler {
    form.any();
    handler
}

fn moving(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => {
            vector(form, true)
        }
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => vector(form, false),
        M::Movss => scalar::<MergeLow32, u32>(form),
        M::Movsd if form.is_xmm(0) || form.is_xmm(1) => scalar::<MergeLow64, u64>(form),
        M::Movd => word::<u32>(form),
        M::Movq | M::Movntq => word::<u64>(form),
        M::Movlps | M::Movlpd => half::<MergeLow64>(form, false),
        M::Movhps | M::Movhpd => half::<MergeHigh64>(form, true),
        M::Movhlps => full::<HighToLow>(form),
        M::Movlhps => full::<MergeHigh64>(form),
        M::Movddup => narrow::<Movddup, u64>(form),
        M::Movsldup => full::<Movsldup>(form),
        M::Movshdup => full::<Movshdup>(form),
        M::Movdq2q => gather(form, moves::movdq2q, moves::movdq2q),
        M::Movq2dq => gather(form, moves::movq2dq, moves::movq2dq),
        M::Movnti => {
            form.any();
            form.src(1);
            if form.instruction.op1_register().size() == 8 {
                moves::movnti::<u64>
            } else {
                moves::movnti::<u32>
            }
        }
        M::Maskmovdqu | M::Maskmovq => masked(form)?,
        M::Pmovmskb => gather(form, moves::mask::<moves::Bytes>, moves::mask_mm),
        M::Movmskps => gather(form, moves::mask::<moves::Doubles>, moves::mask_mm),
        M::Movmskpd => gather(form, moves::mask::<moves::Quads>, moves::mask_mm),
        M::Ldmxcsr => memory_only(form, state::ldmxcsr),
        M::Stmxcsr => memory_only(form, state::stmxcsr),
        M::Fxsave | M::Fxsave64 => memory_only(form, state::fxsave),
        M::Fxrstor | M::Fxrstor64 => memory_only(form, state::fxrstor),
        _ => return None,
    })
}

fn arithmetic(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Pxor | M::Xorps | M::Xorpd => common::<Pxor>(form),
        M::Pand | M::Andps | M::Andpd => common::<Pand>(form),
        M::Por | M::Orps | M::Orpd => common::<Por>(form),
        M::Pandn | M::Andnps | M::Andnpd => common::<Pandn>(form),
        M::Paddb => full::<Paddb>(form),
        M::Paddw => full::<Paddw>(form),
        M::Paddd => common::<Paddd>(form),
        M::Paddq => common::<Paddq>(form),
        M::Paddsb => full::<Paddsb>(form),
        M::Paddsw => full::<Paddsw>(form),
        M::Paddusb => full::<Paddusb>(form),
        M::Paddusw => full::<Paddusw>(form),
        M::Psubb => full::<Psubb>(form),
        M::Psubw => full::<Psubw>(form),
        M::Psubd => full::<Psubd>(form),
        M::Psubq => full::<Psubq>(form),
        M::Psubsb => full::<Psubsb>(form),
        M::Psubsw => full::<Psubsw>(form),
        M::Psubusb => full::<Psubusb>(form),
        M::Psubusw => full::<Psubusw>(form),
        M::Pmullw => full::<Pmullw>(form),
        M::Pmulhw => full::<Pmulhw>(form),
        M::Pmulhuw => full::<Pmulhuw>(form),
        M::Pmuludq => full::<Pmuludq>(form),
        M::Pmaddwd => full::<Pmaddwd>(form),
        M::Pcmpeqb => common::<Pcmpeqb>(form),
        M::Pcmpeqw => full::<Pcmpeqw>(form),
        M::Pcmpeqd => full::<Pcmpeqd>(form),
        M::Pcmpgtb => full::<Pcmpgtb>(form),
        M::Pcmpgtw => full::<Pcmpgtw>(form),
        M::Pcmpgtd => full::<Pcmpgtd>(form),
        M::Pminub => common::<Pminub>(form),
        M::Pmaxub => full::<Pmaxub>(form),
        M::Pminsw => full::<Pminsw>(form),
        M::Pmaxsw => full::<Pmaxsw>(form),
        M::Pavgb => full::<Pavgb>(form),
        M::Pavgw => full::<Pavgw>(form),
        M::Psadbw => full::<Psadbw>(form),
        M::Psllw => shift::<Psllw>(form),
        M::Pslld => shift::<Pslld>(form),
        M::Psllq => shift::<Psllq>(form),
        M::Psrlw => shift::<Psrlw>(form),
        M::Psrld => shift::<Psrld>(form),
        M::Psrlq => shift::<Psrlq>(form),
        M::Psraw => shift::<Psraw>(form),
        M::Psrad => shift::<Psrad>(form),
        M::Pslldq => shift::<Pslldq>(form),
        M::Psrldq => shift::<Psrldq>(form),
        _ => return None,
    })
}

fn shuffling(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Punpcklbw => unpack_low::<Punpcklbw>(form),
        M::Punpcklwd => unpack_low::<Punpcklwd>(form),
        M::Punpckldq => unpack_low::<Punpckldq>(form),
        M::Punpcklqdq | M::Unpcklpd => full::<Punpcklqdq>(form),
        M::Unpcklps => full::<Punpckldq>(form),
        M::Punpckhbw => full::<Punpckhbw>(form),
        M::Punpckhwd => full::<Punpckhwd>(form),
        M::Punpckhdq | M::Unpckhps => full::<Punpckhdq>(form),
        M::Punpckhqdq | M::Unpckhpd => full::<Punpckhqdq>(form),
        M::Packsswb => full::<Packsswb>(form),
        M::Packssdw => full::<Packssdw>(form),
        M::Packuswb => full::<Packuswb>(form),
        M::Pshufd => common::<Pshufd>(form),
        M::Pshuflw => full::<Pshuflw>(form),
        M::Pshufhw => full::<Pshufhw>(form),
        M::Pshufw => full::<Pshufw>(form),
        M::Shufps => full::<Shufps>(form),
        M::Shufpd => full::<Shufpd>(form),
        M::Pinsrw => insert::<Pinsrw, u16>(form),
        M::Pextrw if form.is_register(0) => gather(form, moves::pextrw, moves::pextrw_mm),
        _ => return None,
    })
}

/// `punpckl*`: with an MMX register the memory operand has 32 bits.
fn unpack_low<O: Packed>(form: &mut Form) -> Handler {
    if form.is_mm(0) && form.is_memory(1) {
        form.dst(0).any();
        return packed_mm::<O, Scalar<Any, u32>>;
    }
    full::<O>(form)
}

/// A general register or a word of memory into a vector.
pub(super) fn insert<O: Packed, W: Word>(form: &mut Form) -> Handler {
    form.dst(0).last_immediate();
    let mm = form.is_mm(0);
    if form.is_memory(1) {
        form.any();
        return if mm {
            packed_mm::<O, Scalar<Any, W>>
        } else {
            packed::<O, Scalar<Any, W>>
        };
    }
    form.src(1);
    if mm {
        packed_mm::<O, Gpr<u64>>
    } else {
        packed::<O, Gpr<u64>>
    }
}
