//! SSSE3, SSE4.1 and SSE4.2 instructions.

use super::Lowered;
use super::form::Form;
use super::simd::{full, insert, narrow};
use super::simd_float;
use crate::execute::simd::rounding::*;
use crate::execute::simd::ssse3::*;
use crate::execute::simd::{Aligned, Any, Xmm, moves, strings};
use crate::op::Handler;
use crate::word::Word;
use iced_x86::Mnemonic;

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    let handler = lanewise(form)
        .or_else(|| widening(form))
        .or_else(|| floating(form))
        .or_else(|| picking(form))
        .or_else(|| comparing(form))?;
    Some(form.with(handler))
}

fn lanewise(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Pshufb => full::<Pshufb>(form),
        M::Phaddw => full::<Phaddw>(form),
        M::Phaddd => full::<Phaddd>(form),
        M::Phaddsw => full::<Phaddsw>(form),
        M::Phsubw => full::<Phsubw>(form),
        M::Phsubd => full::<Phsubd>(form),
        M::Phsubsw => full::<Phsubsw>(form),
        M::Pmaddubsw => full::<Pmaddubsw>(form),
        M::Psignb => full::<Psignb>(form),
        M::Psignw => full::<Psignw>(form),
        M::Psignd => full::<Psignd>(form),
        M::Pabsb => full::<Pabsb>(form),
        M::Pabsw => full::<Pabsw>(form),
        M::Pabsd => full::<Pabsd>(form),
        M::Pmulhrsw => full::<Pmulhrsw>(form),
        M::Palignr => full::<Palignr>(form),
        M::Pmuldq => full::<Pmuldq>(form),
        M::Pmulld => full::<Pmulld>(form),
        M::Pcmpeqq => full::<Pcmpeqq>(form),
        M::Pcmpgtq => full::<Pcmpgtq>(form),
        M::Packusdw => full::<Packusdw>(form),
        M::Pminsb => full::<Pminsb>(form),
        M::Pmaxsb => full::<Pmaxsb>(form),
        M::Pminuw => full::<Pminuw>(form),
        M::Pmaxuw => full::<Pmaxuw>(form),
        M::Pminsd => full::<Pminsd>(form),
        M::Pmaxsd => full::<Pmaxsd>(form),
        M::Pminud => full::<Pminud>(form),
        M::Pmaxud => full::<Pmaxud>(form),
        M::Phminposuw => full::<Phminposuw>(form),
        M::Mpsadbw => full::<Mpsadbw>(form),
        M::Blendps => full::<Blendps>(form),
        M::Blendpd => full::<Blendpd>(form),
        M::Pblendw => full::<Pblendw>(form),
        _ => return None,
    })
}

fn widening(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Pmovsxbw => narrow::<Pmovsxbw, u64>(form),
        M::Pmovsxbd => narrow::<Pmovsxbd, u32>(form),
        M::Pmovsxbq => narrow::<Pmovsxbq, u16>(form),
        M::Pmovsxwd => narrow::<Pmovsxwd, u64>(form),
        M::Pmovsxwq => narrow::<Pmovsxwq, u32>(form),
        M::Pmovsxdq => narrow::<Pmovsxdq, u64>(form),
        M::Pmovzxbw => narrow::<Pmovzxbw, u64>(form),
        M::Pmovzxbd => narrow::<Pmovzxbd, u32>(form),
        M::Pmovzxbq => narrow::<Pmovzxbq, u16>(form),
        M::Pmovzxwd => narrow::<Pmovzxwd, u64>(form),
        M::Pmovzxwq => narrow::<Pmovzxwq, u32>(form),
        M::Pmovzxdq => narrow::<Pmovzxdq, u64>(form),
        _ => return None,
    })
}

fn floating(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Roundps => simd_float::full::<Roundps>(form),
        M::Roundpd => simd_float::full::<Roundpd>(form),
        M::Roundss => simd_float::single::<Roundss>(form),
        M::Roundsd => simd_float::double::<Roundsd>(form),
        M::Dpps => simd_float::full::<Dpps>(form),
        M::Dppd => simd_float::full::<Dppd>(form),
        _ => return None,
    })
}

fn picking(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    Some(match form.instruction.mnemonic() {
        M::Pinsrb => insert::<Pinsrb, u8>(form),
        M::Pinsrd => insert::<Pinsrd, u32>(form),
        M::Pinsrq => insert::<Pinsrq, u64>(form),
        M::Insertps => {
            let handler = narrow::<Insertps, u32>(form);
            if form.is_memory(1) {
                form.op.imm &= 0x3f;
            }
            handler
        }
        M::Pextrb => extract::<u8>(form),
        M::Pextrw => extract::<u16>(form),
        M::Pextrd | M::Extractps => extract::<u32>(form),
        M::Pextrq => extract::<u64>(form),
        M::Pblendvb => blend::<ByBytes>(form),
        M::Blendvps => blend::<BySingles>(form),
        M::Blendvpd => blend::<ByDoubles>(form),
        _ => return None,
    })
}

fn extract<W: Word>(form: &mut Form) -> Handler {
    form.src(1).last_immediate();
    if form.is_memory(0) {
        form.any();
        return moves::extract_to_memory::<W>;
    }
    form.dst(0);
    moves::extract::<W>
}

fn blend<S: Select>(form: &mut Form) -> Handler {
    form.dst(0);
    if form.is_memory(1) {
        form.any();
        return blend_by_xmm0::<S, Aligned<Any>>;
    }
    form.src(1);
    blend_by_xmm0::<S, Xmm>
}

fn comparing(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    use strings::{EXPLICIT, MASK, WIDE};
    let extra = match form.instruction.mnemonic() {
        M::Ptest => {
            form.dst(0);
            if form.is_memory(1) {
                form.any();
                return Some(ptest::<Aligned<Any>>);
            }
            form.src(1);
            return Some(ptest::<Xmm>);
        }
        M::Pcmpistri => 0,
        M::Pcmpistrm => MASK,
        M::Pcmpestri => EXPLICIT,
        M::Pcmpestrm => EXPLICIT | MASK,
        M::Pcmpestri64 => EXPLICIT | WIDE,
        M::Pcmpestrm64 => EXPLICIT | WIDE | MASK,
        _ => return None,
    };
    form.dst(0).last_immediate();
    form.op.extra = extra;
    if form.is_memory(1) {
        form.any();
        form.op.extra |= strings::MEMORY;
    } else {
        form.src(1);
    }
    Some(strings::compare_strings)
}
