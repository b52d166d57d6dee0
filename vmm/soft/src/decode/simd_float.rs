//! SSE floating-point instructions.

use super::Lowered;
use super::form::Form;
use crate::execute::simd::float::*;
use crate::execute::simd::{Aligned, Any, Gpr, Input, Mm, Scalar, Xmm};
use crate::op::Handler;
use crate::word::Word;
use iced_x86::Mnemonic;

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    let handler = packed(form)
        .or_else(|| scalar(form))
        .or_else(|| converting(form))
        .or_else(|| to_general(form))?;
    Some(form.with(handler))
}

/// `O xmm, xmm/memory (, imm)` with memory read as `M`.
fn with_memory<O: Float, M: Input>(form: &mut Form) -> Handler {
    form.dst(0).last_immediate();
    if form.is_memory(1) {
        form.any();
        return float::<O, M>;
    }
    form.src(1);
    float::<O, Xmm>
}

pub(super) fn full<O: Float>(form: &mut Form) -> Handler {
    with_memory::<O, Aligned<Any>>(form)
}

pub(super) fn single<O: Float>(form: &mut Form) -> Handler {
    with_memory::<O, Scalar<Any, u32>>(form)
}

pub(super) fn double<O: Float>(form: &mut Form) -> Handler {
    with_memory::<O, Scalar<Any, u64>>(form)
}

fn packed(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Addps => full::<Addps>(form),
        M::Addpd => full::<Addpd>(form),
        M::Subps => full::<Subps>(form),
        M::Subpd => full::<Subpd>(form),
        M::Mulps => full::<Mulps>(form),
        M::Mulpd => full::<Mulpd>(form),
        M::Divps => full::<Divps>(form),
        M::Divpd => full::<Divpd>(form),
        M::Minps => full::<Minps>(form),
        M::Minpd => full::<Minpd>(form),
        M::Maxps => full::<Maxps>(form),
        M::Maxpd => full::<Maxpd>(form),
        M::Sqrtps => full::<Sqrtps>(form),
        M::Sqrtpd => full::<Sqrtpd>(form),
        M::Rcpps => full::<Rcpps>(form),
        M::Rsqrtps => full::<Rsqrtps>(form),
        M::Cmpps => full::<Cmpps>(form),
        M::Cmppd => full::<Cmppd>(form),
        M::Haddps => full::<Haddps>(form),
        M::Haddpd => full::<Haddpd>(form),
        M::Hsubps => full::<Hsubps>(form),
        M::Hsubpd => full::<Hsubpd>(form),
        M::Addsubps => full::<Addsubps>(form),
        M::Addsubpd => full::<Addsubpd>(form),
        _ => return None,
    })
}

fn scalar(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Addss => single::<Addss>(form),
        M::Addsd => double::<Addsd>(form),
        M::Subss => single::<Subss>(form),
        M::Subsd => double::<Subsd>(form),
        M::Mulss => single::<Mulss>(form),
        M::Mulsd => double::<Mulsd>(form),
        M::Divss => single::<Divss>(form),
        M::Divsd => double::<Divsd>(form),
        M::Minss => single::<Minss>(form),
        M::Minsd => double::<Minsd>(form),
        M::Maxss => single::<Maxss>(form),
        M::Maxsd => double::<Maxsd>(form),
        M::Sqrtss => single::<Sqrtss>(form),
        M::Sqrtsd => double::<Sqrtsd>(form),
        M::Rcpss => single::<Rcpss>(form),
        M::Rsqrtss => single::<Rsqrtss>(form),
        M::Cmpss => single::<Cmpss>(form),
        // The string instruction has the same name.
        M::Cmpsd if form.instruction.op_count() == 3 => double::<Cmpsd>(form),
        M::Comiss => compare::<Comiss, u32>(form),
        M::Comisd => compare::<Comisd, u64>(form),
        M::Ucomiss => compare::<Ucomiss, u32>(form),
        M::Ucomisd => compare::<Ucomisd, u64>(form),
        _ => return None,
    })
}

fn converting(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Cvtps2pd => double::<Cvtps2pd>(form),
        M::Cvtpd2ps => full::<Cvtpd2ps>(form),
        M::Cvtss2sd => single::<Cvtss2sd>(form),
        M::Cvtsd2ss => double::<Cvtsd2ss>(form),
        M::Cvtdq2ps => full::<Cvtdq2ps>(form),
        M::Cvtdq2pd => double::<Cvtdq2pd>(form),
        M::Cvtps2dq => full::<Cvtps2dq>(form),
        M::Cvttps2dq => full::<Cvttps2dq>(form),
        M::Cvtpd2dq => full::<Cvtpd2dq>(form),
        M::Cvttpd2dq => full::<Cvttpd2dq>(form),
        M::Cvtpi2ps => from_mm::<Cvtpi2ps>(form),
        M::Cvtpi2pd => from_mm::<Cvtdq2pd>(form),
        M::Cvtps2pi => to_mm::<Cvtps2pi, Scalar<Any, u64>>(form),
        M::Cvttps2pi => to_mm::<Cvttps2pi, Scalar<Any, u64>>(form),
        M::Cvtpd2pi => to_mm::<Cvtpd2dq, Aligned<Any>>(form),
        M::Cvttpd2pi => to_mm::<Cvttpd2dq, Aligned<Any>>(form),
        M::Cvtsi2ss => from_general::<Cvtsi2ss32, Cvtsi2ss64>(form),
        M::Cvtsi2sd => from_general::<Cvtsi2sd32, Cvtsi2sd64>(form),
        _ => return None,
    })
}

/// From an MMX register, which makes it an MMX instruction, or from memory, which does not.
fn from_mm<O: Float>(form: &mut Form) -> Handler {
    form.dst(0);
    if form.is_memory(1) {
        form.any();
        return float::<O, Scalar<Any, u64>>;
    }
    form.src(1);
    float_from_mm::<O, Mm>
}

fn to_mm<O: Float, M: Input>(form: &mut Form) -> Handler {
    form.dst(0);
    if form.is_memory(1) {
        form.any();
        return float_to_mm::<O, M>;
    }
    form.src(1);
    float_to_mm::<O, Xmm>
}

/// `cvtsi2*`: `N` for 32 bits, `W` for 64.
fn from_general<N: Float, W: Float>(form: &mut Form) -> Handler {
    form.dst(0);
    let wide = form.size(1) == 8;
    if form.is_memory(1) {
        form.any();
        return if wide {
            float::<W, Scalar<Any, u64>>
        } else {
            float::<N, Scalar<Any, u32>>
        };
    }
    form.src(1);
    if wide {
        float::<W, Gpr<u64>>
    } else {
        float::<N, Gpr<u32>>
    }
}

fn to_general(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Cvtss2si => to_integer::<Cvtss2si32, Cvtss2si64, u32>(form),
        M::Cvtsd2si => to_integer::<Cvtsd2si32, Cvtsd2si64, u64>(form),
        M::Cvttss2si => to_integer::<Cvttss2si32, Cvttss2si64, u32>(form),
        M::Cvttsd2si => to_integer::<Cvttsd2si32, Cvttsd2si64, u64>(form),
        _ => return None,
    })
}

/// To a general register of 32 (`N`) or 64 bits (`W`), from a number as wide as `M`.
fn to_integer<N: ToInteger, W: ToInteger, M: Word>(form: &mut Form) -> Handler {
    form.dst(0);
    let wide = form.size(0) == 8;
    if form.is_memory(1) {
        form.any();
        return if wide {
            float_to_general::<W, u64, Scalar<Any, M>>
        } else {
            float_to_general::<N, u32, Scalar<Any, M>>
        };
    }
    form.src(1);
    if wide {
        float_to_general::<W, u64, Xmm>
    } else {
        float_to_general::<N, u32, Xmm>
    }
}

fn compare<O: ToInteger, M: Word>(form: &mut Form) -> Handler {
    form.dst(0);
    if form.is_memory(1) {
        form.any();
        return float_compare::<O, Scalar<Any, M>>;
    }
    form.src(1);
    float_compare::<O, Xmm>
}
