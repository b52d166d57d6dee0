//! String instructions.

use super::Lowered;
use super::form::{Form, segment_slot};
use super::select::by_size;
use crate::execute::string::{
    Body, Cmps, Lods, Movs, NARROW, REPEAT, SHORT, Scas, Stos, WHILE_NOT_EQUAL, string,
};
use crate::op::Handler;
use iced_x86::{Mnemonic, OpKind, Register};

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    // Some share their mnemonic with an SSE2 instruction, which has no implicit memory operand.
    let width = operands(form)?;
    let i = form.instruction;
    let handler = match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
            sized::<Movs>(form)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            sized::<Stos>(form)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            sized::<Lods>(form)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            sized::<Scas>(form)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
            sized::<Cmps>(form)
        }
        _ => return None,
    };
    prepare(form, width);
    // A repeated one may be followed by itself.
    Some(if form.op.extra & REPEAT != 0 {
        form.ending(handler)
    } else {
        form.with(handler)
    })
}

/// How wide the addresses are: nothing for 64 bits, [`NARROW`] or [`SHORT`]; `None` if it is no string
/// instruction.
pub(super) fn operands(form: &Form) -> Option<u8> {
    let i = form.instruction;
    (0..i.op_count()).find_map(|n| match i.op_kind(n) {
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(0),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(NARROW),
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(SHORT),
        _ => None,
    })
}

/// Fills in segments and repetition as [`crate::execute::string`] wants them.
pub(super) fn prepare(form: &mut Form, width: u8) {
    let i = form.instruction;
    let compares = matches!(
        i.mnemonic(),
        Mnemonic::Scasb
            | Mnemonic::Scasw
            | Mnemonic::Scasd
            | Mnemonic::Scasq
            | Mnemonic::Cmpsb
            | Mnemonic::Cmpsw
            | Mnemonic::Cmpsd
            | Mnemonic::Cmpsq
    );
    let segment = match i.segment_prefix() {
        Register::None => Register::DS,
        segment => segment,
    };
    form.op.base = segment_slot(segment, form.long);
    form.op.index = segment_slot(Register::ES, form.long);
    form.op.extra = width;
    if i.has_rep_prefix() || i.has_repne_prefix() {
        form.op.extra |= REPEAT;
    }
    if i.has_repne_prefix() && compares {
        form.op.extra |= WHILE_NOT_EQUAL;
    }
}

fn sized<B: Body + 'static>(form: &Form) -> Handler {
    let size = form.instruction.memory_size().size();
    by_size!(size, W => string::<B, W>)
}
