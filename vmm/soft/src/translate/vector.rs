//! SSE: moves, packed integers, and floating point as the host does it.
//!
//! The guest's XMM registers stay in memory; an instruction works on the host's XMM0. Instructions that heed MXCSR
//! run under the guest's own, from the first of them in a block to its end; a block whose MXCSR lets an exception
//! through is left to the interpreter.

use super::asm::*;
use super::emit::Emit;
use super::plan::{Effect, Plan, register};
use super::state::{Kind, field, xmm_at};
use crate::decode::Form;
use iced_x86::{CpuidFeature, Instruction, Mnemonic as M, OpKind, Register};

/// The host's register that instructions work on.
const XMM0: Reg = Reg(0);
/// Another.
const XMM1: Reg = Reg(1);
/// MXCSR: the masks of all exceptions.
const MASKS: i32 = 0x1f80;

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Guest's XMM register.
    Xmm(u8),
    /// Guest's general register.
    General(u8),
    /// The memory operand.
    Mem,
}

/// Which way an instruction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// All of an XMM register from another, or from memory, what is above the operand being cleared.
    Load,
    /// The low bytes to memory.
    Store,
    /// XMM register changed by an operand.
    Packed,
    /// XMM register changed by an immediate; ModRM's register field is part of the opcode.
    Shifted(u8),
    /// General register from an XMM register or memory.
    ToGeneral,
    /// Nothing but the flags.
    Compare,
}

/// What to write for an SSE instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    shape: Shape,
    opcode: Opcode,
    to: Place,
    from: Place,
    /// Bytes of the memory operand.
    memory: u8,
    /// It must be aligned.
    aligned: bool,
    /// Operand size where a general register is one, else 4: no REX.W.
    size: u8,
    immediate: Option<u8>,
    /// It heeds MXCSR.
    float: bool,
}

impl Work {
    /// The size of [`Plan`].
    pub fn size(&self) -> u8 {
        self.size
    }

    /// What it does to the flags.
    pub fn flags(&self) -> Effect {
        if self.shape == Shape::Compare {
            return Effect::WRITES;
        }
        Effect::NONE
    }

    /// Guest registers it changes, a bit each.
    pub fn written(&self) -> u16 {
        match self.to {
            Place::General(number) => 1 << number,
            _ => 0,
        }
    }

    /// The general register that is an operand.
    pub fn general(&self) -> Option<u8> {
        [self.to, self.from]
            .into_iter()
            .find_map(|place| match place {
                Place::General(number) => Some(number),
                _ => None,
            })
    }
}

/// The work for an instruction; `None` if the handler is to do it.
pub(super) fn plan(form: &Form, bytes: &[u8]) -> Option<Work> {
    let i = form.instruction;
    if !host_has(i) {
        return None;
    }
    let (mut opcode, field) = opcode(bytes)?;
    let shape = shape(i, field)?;
    let (to, from) = match shape {
        Shape::Shifted(_) => (place(form, 0)?, place(form, 0)?),
        _ => (place(form, 0)?, place(form, 1)?),
    };
    let general = [0, 1].into_iter().find(|&n| register(form, n).is_some());
    let memory = if to == Place::Mem || from == Place::Mem {
        match i.memory_size().size() {
            size @ 1..=16 => size as u8,
            _ => return None,
        }
    } else {
        0
    };
    // Between registers the store's opcode is as good, but its operands are the other way round.
    if shape == Shape::Packed && matches!(i.mnemonic(), M::Movss | M::Movsd) {
        opcode.byte = 0x10;
    }
    let last = i.op_count() - 1;
    let wide = |n: u32| form.size(n) as u8;
    let size = match (general, shape) {
        (Some(n), _) => wide(n),
        // CVTSI2SD of memory is as wide as that is.
        (None, Shape::Packed) if converts_general(i.mnemonic()) => memory,
        _ => 4,
    };
    Some(Work {
        shape,
        opcode,
        to,
        from,
        memory,
        aligned: memory == 16 && !is_unaligned(i.mnemonic()),
        size: if general.is_some() && is_mask(i.mnemonic()) {
            4
        } else {
            size
        },
        immediate: form.is_immediate(last).then(|| match i.mnemonic() {
            // The other bits are reserved.
            M::Cmpps | M::Cmppd | M::Cmpss | M::Cmpsd => i.immediate(last) as u8 & 7,
            _ => i.immediate(last) as u8,
        }),
        float: is_float(i.mnemonic()),
    })
}

fn place(form: &Form, n: u32) -> Option<Place> {
    if form.is_memory(n) {
        return Some(Place::Mem);
    }
    if form.instruction.op_kind(n) != OpKind::Register {
        return None;
    }
    let reg = form.instruction.op_register(n);
    if reg.is_xmm() {
        return Some(Place::Xmm((reg as u32 - Register::XMM0 as u32) as u8));
    }
    register(form, n).map(Place::General)
}

fn host_has(i: &Instruction) -> bool {
    i.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => std::arch::is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => std::arch::is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => std::arch::is_x86_feature_detected!("sse4.1"),
        _ => false,
    })
}

/// An instruction's opcode, and ModRM's register field.
fn opcode(bytes: &[u8]) -> Option<(Opcode, u8)> {
    let mut bytes = bytes.iter().copied().peekable();
    let (mut prefix, mut operand) = (0, 0);
    while let Some(byte) = bytes.next_if(|b| {
        matches!(
            b,
            0x66 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x67
        )
    }) {
        match byte {
            0xf2 | 0xf3 => prefix = byte,
            0x66 => operand = byte,
            _ => {}
        }
    }
    bytes.next_if(|b| b & 0xf0 == 0x40);
    if bytes.next()? != 0x0f {
        return None;
    }
    let (map, byte): (&'static [u8], u8) = match bytes.next()? {
        0x38 => (&[0x0f, 0x38], bytes.next()?),
        0x3a => (&[0x0f, 0x3a], bytes.next()?),
        byte => (&[0x0f], byte),
    };
    let opcode = Opcode {
        prefix: if prefix != 0 { prefix } else { operand },
        map,
        byte,
    };
    Some((opcode, bytes.next()? >> 3 & 7))
}

/// Which way an instruction goes; `None` if the handler is to do it.
fn shape(i: &Instruction, field: u8) -> Option<Shape> {
    let to_memory = i.op_kind(0) == OpKind::Memory;
    let from_memory = i.op_kind(1) == OpKind::Memory;
    let m = i.mnemonic();
    let whole = matches!(
        m,
        M::Movaps | M::Movapd | M::Movdqa | M::Movups | M::Movupd | M::Movdqu | M::Lddqu
    );
    let scalar = matches!(m, M::Movss | M::Movsd);
    let word = matches!(m, M::Movd | M::Movq);
    if whole || scalar || word {
        let general = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_gpr();
        return Some(match () {
            () if to_memory => Shape::Store,
            () if general(0) => Shape::ToGeneral,
            // Between registers these two leave the upper part.
            () if scalar && !from_memory => Shape::Packed,
            () => Shape::Load,
        });
    }
    if to_memory {
        return matches!(
            m,
            M::Movlps | M::Movlpd | M::Movntps | M::Movntpd | M::Movntdq
        )
        .then_some(Shape::Store);
    }
    let is_value = i.op_kind(1) == OpKind::Immediate8;
    match m {
        M::Ucomiss | M::Ucomisd | M::Comiss | M::Comisd => Some(Shape::Compare),
        _ if is_mask(m) || is_conversion_to_general(m) => Some(Shape::ToGeneral),
        _ if is_shift(m) && is_value => Some(Shape::Shifted(field)),
        _ if is_shift(m) || is_packed(m) || is_float(m) => Some(Shape::Packed),
        _ => None,
    }
}

fn is_unaligned(m: M) -> bool {
    matches!(m, M::Movups | M::Movupd | M::Movdqu | M::Lddqu)
}

fn is_mask(m: M) -> bool {
    matches!(m, M::Pmovmskb | M::Movmskps | M::Movmskpd)
}

fn is_conversion_to_general(m: M) -> bool {
    matches!(m, M::Cvtsd2si | M::Cvttsd2si | M::Cvtss2si | M::Cvttss2si)
}

fn converts_general(m: M) -> bool {
    matches!(m, M::Cvtsi2sd | M::Cvtsi2ss)
}

fn is_shift(m: M) -> bool {
    matches!(
        m,
        M::Psllw
            | M::Pslld
            | M::Psllq
            | M::Psrlw
            | M::Psrld
            | M::Psrlq
            | M::Psraw
            | M::Psrad
            | M::Pslldq
            | M::Psrldq
    )
}

/// Packed operations that have one result and heed no MXCSR.
#[rustfmt::skip]
fn is_packed(m: M) -> bool {
    matches!(
        m,
        M::Pxor | M::Por | M::Pand | M::Pandn | M::Xorps | M::Xorpd | M::Orps | M::Orpd | M::Andps | M::Andpd
            | M::Andnps | M::Andnpd
            | M::Paddb | M::Paddw | M::Paddd | M::Paddq | M::Psubb | M::Psubw | M::Psubd | M::Psubq
            | M::Paddsb | M::Paddsw | M::Paddusb | M::Paddusw | M::Psubsb | M::Psubsw | M::Psubusb | M::Psubusw
            | M::Pcmpeqb | M::Pcmpeqw | M::Pcmpeqd | M::Pcmpeqq | M::Pcmpgtb | M::Pcmpgtw | M::Pcmpgtd
            | M::Punpcklbw | M::Punpcklwd | M::Punpckldq | M::Punpcklqdq
            | M::Punpckhbw | M::Punpckhwd | M::Punpckhdq | M::Punpckhqdq
            | M::Packsswb | M::Packssdw | M::Packuswb | M::Packusdw
            | M::Pmullw | M::Pmulhw | M::Pmulhuw | M::Pmuludq | M::Pmuldq | M::Pmulld | M::Pmaddwd | M::Pmaddubsw
            | M::Psadbw | M::Pavgb | M::Pavgw | M::Pmulhrsw
            | M::Pminub | M::Pminuw | M::Pminud | M::Pminsb | M::Pminsw | M::Pminsd
            | M::Pmaxub | M::Pmaxuw | M::Pmaxud | M::Pmaxsb | M::Pmaxsw | M::Pmaxsd
            | M::Pshufd | M::Pshufhw | M::Pshuflw | M::Pshufb | M::Palignr | M::Pabsb | M::Pabsw | M::Pabsd
            | M::Psignb | M::Psignw | M::Psignd | M::Phaddw | M::Phaddd | M::Phsubw | M::Phsubd
            | M::Pmovzxbw | M::Pmovzxbd | M::Pmovzxbq | M::Pmovzxwd | M::Pmovzxwq | M::Pmovzxdq
            | M::Pmovsxbw | M::Pmovsxbd | M::Pmovsxbq | M::Pmovsxwd | M::Pmovsxwq | M::Pmovsxdq
            | M::Unpcklps | M::Unpcklpd | M::Unpckhps | M::Unpckhpd | M::Shufps | M::Shufpd
            | M::Movhlps | M::Movlhps | M::Movhps | M::Movhpd | M::Movlps | M::Movlpd
            | M::Movddup | M::Movsldup | M::Movshdup
    )
}

/// Operations that heed MXCSR: the guest's, with every exception masked, has them do what the handlers do.
#[rustfmt::skip]
fn is_float(m: M) -> bool {
    matches!(
        m,
        M::Addps | M::Addpd | M::Addss | M::Addsd | M::Subps | M::Subpd | M::Subss | M::Subsd
            | M::Mulps | M::Mulpd | M::Mulss | M::Mulsd | M::Divps | M::Divpd | M::Divss | M::Divsd
            | M::Minps | M::Minpd | M::Minss | M::Minsd | M::Maxps | M::Maxpd | M::Maxss | M::Maxsd
            | M::Sqrtps | M::Sqrtpd | M::Sqrtss | M::Sqrtsd
            | M::Cmpps | M::Cmppd | M::Cmpss | M::Cmpsd
            | M::Cvtps2pd | M::Cvtss2sd | M::Cvtpd2ps | M::Cvtsd2ss | M::Cvtdq2ps | M::Cvtdq2pd
            | M::Cvtps2dq | M::Cvttps2dq | M::Cvtpd2dq | M::Cvttpd2dq
            | M::Cvtsi2sd | M::Cvtsi2ss | M::Cvtsd2si | M::Cvttsd2si | M::Cvtss2si | M::Cvttss2si
            | M::Ucomiss | M::Ucomisd | M::Comiss | M::Comisd
    )
}

/// An opcode after 0F, of the SSE registers.
const fn sse(prefix: u8, byte: u8) -> Opcode {
    Opcode {
        prefix,
        map: &[0x0f],
        byte,
    }
}

impl Emit<'_> {
    pub(super) fn vector(&mut self, plan: &Plan, work: Work) {
        if !self.sse {
            self.asm.alu_value(7, 1, field!(native.sse), 0);
            let refused = self.asm.jump_if(4);
            self.leave_from(refused, Kind::Rest);
            self.sse = true;
        }
        if work.float {
            self.begin_float();
        }
        let place = if work.memory > 0 {
            self.vector_memory(plan, &work);
            Some(Mem::at(RAX, 0))
        } else {
            None
        };
        let from: Rm = match (work.from, place) {
            (Place::Mem, Some(place)) => place.into(),
            (Place::Xmm(number), _) => xmm_at(number).into(),
            (Place::General(number), _) => self.rm(number),
            (Place::Mem, None) => unreachable!("its address was made"),
        };
        match work.shape {
            Shape::Load => self.vector_load(&work, from),
            Shape::Store => {
                let Place::Xmm(number) = work.from else {
                    unreachable!("from an XMM register")
                };
                let size = work.memory;
                self.asm.op(4, load_of(size), XMM0.0, xmm_at(number));
                self.asm
                    .op(4, store_of(size), XMM0.0, place.expect("to memory"));
            }
            Shape::Packed => {
                let to = self.loaded(work.to);
                let from = self.vector_source(&work, from);
                self.asm.op(work.size, work.opcode, XMM0.0, from);
                self.asm.raw(work.immediate.as_slice());
                self.asm.op(4, store_of(16), XMM0.0, to);
            }
            Shape::Shifted(field) => {
                let to = self.loaded(work.to);
                self.asm.op(4, work.opcode, field, XMM0);
                self.asm.raw(work.immediate.as_slice());
                self.asm.op(4, store_of(16), XMM0.0, to);
            }
            Shape::ToGeneral => self.vector_to_general(&work, from),
            Shape::Compare => {
                self.loaded(work.to);
                self.asm.op(4, work.opcode, XMM0.0, from);
                self.has_flags(None);
            }
        }
    }

    /// The source of a packed operation. Moves between registers mean something else than from memory: the register
    /// is brought to XMM1.
    fn vector_source(&mut self, work: &Work, from: Rm) -> Rm {
        let moves = work.opcode.map.len() == 1 && matches!(work.opcode.byte, 0x10 | 0x12 | 0x16);
        match work.from {
            Place::Xmm(number) if moves => {
                self.asm.op(4, load_of(16), XMM1.0, xmm_at(number));
                XMM1.into()
            }
            _ => from,
        }
    }

    /// XMM0 becomes guest register `to`; where that is.
    fn loaded(&mut self, to: Place) -> Mem {
        let Place::Xmm(number) = to else {
            unreachable!("an XMM register")
        };
        self.asm.op(4, load_of(16), XMM0.0, xmm_at(number));
        xmm_at(number)
    }

    fn vector_load(&mut self, work: &Work, from: Rm) {
        let Place::Xmm(to) = work.to else {
            unreachable!("to an XMM register")
        };
        let opcode = match work.from {
            Place::Mem => load_of(work.memory),
            // movd, movq
            Place::General(_) => sse(0x66, 0x6e),
            Place::Xmm(_)
                if work.opcode.prefix == 0xf3 && work.opcode.byte == 0x7e
                    || work.opcode.prefix == 0x66 && work.opcode.byte == 0xd6 =>
            {
                load_of(8)
            }
            Place::Xmm(_) => load_of(16),
        };
        self.asm.op(work.size, opcode, XMM0.0, from);
        self.asm.op(4, store_of(16), XMM0.0, xmm_at(to));
    }

    fn vector_to_general(&mut self, work: &Work, from: Rm) {
        let Place::General(to) = work.to else {
            unreachable!("to a general register")
        };
        match work.from {
            // movd, movq: the source is the low part.
            Place::Xmm(number) if work.opcode.byte == 0x7e => {
                self.asm.load(work.size, R10, xmm_at(number));
            }
            Place::Xmm(number) => {
                self.asm.op(4, load_of(16), XMM0.0, xmm_at(number));
                self.asm.op(work.size, work.opcode, R10.0, XMM0);
            }
            _ => self.asm.op(work.size, work.opcode, R10.0, from),
        }
        self.set_reg(to, R10);
    }

    fn vector_memory(&mut self, plan: &Plan, work: &Work) {
        let address = plan.address.expect("it has a memory operand");
        self.linear(&address);
        if work.aligned {
            // test al, 15
            self.asm.raw(&[0xa8, 15]);
            self.check(5);
        }
        self.translate(work.memory, work.to == Place::Mem);
    }

    /// Has the host heed the guest's MXCSR, if it does not.
    fn begin_float(&mut self) {
        if self.float {
            return;
        }
        self.asm.load(4, RAX, field!(fpu.mxcsr));
        // not eax
        self.asm.op(4, one(0xf7), 2, RAX);
        self.asm.op(4, one(0xf7), 0, RAX);
        self.asm.raw(&MASKS.to_le_bytes());
        let unmasked = self.asm.jump_if(5);
        self.leave_from(unmasked, Kind::Rest);
        self.host_mxcsr_is_guests();
        self.float = true;
    }

    /// `ldmxcsr` of the guest's.
    pub(super) fn host_mxcsr_is_guests(&mut self) {
        self.asm.op(4, two(0xae), 2, field!(fpu.mxcsr));
    }

    /// `stmxcsr` to the guest's; the host's becomes Rust's.
    pub(super) fn host_mxcsr_is_ours(&mut self) {
        self.asm.op(4, two(0xae), 3, field!(fpu.mxcsr));
        self.asm.op(4, two(0xae), 2, field!(native.mxcsr));
    }

    /// Has the host heed its own MXCSR again.
    pub(super) fn end_float(&mut self) {
        if std::mem::take(&mut self.float) {
            self.host_mxcsr_is_ours();
        }
    }
}

/// The move of `size` bytes to an XMM register that clears the rest.
fn load_of(size: u8) -> Opcode {
    match size {
        4 => sse(0xf3, 0x10),
        8 => sse(0xf3, 0x7e),
        _ => sse(0, 0x10),
    }
}

/// The move of `size` bytes from an XMM register.
fn store_of(size: u8) -> Opcode {
    match size {
        4 => sse(0xf3, 0x11),
        8 => sse(0x66, 0xd6),
        _ => sse(0, 0x11),
    }
}
