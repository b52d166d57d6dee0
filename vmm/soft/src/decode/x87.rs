//! x87 instructions.

use super::Lowered;
use super::form::Form;
use crate::execute::x87::control;
use crate::op::Handler;
use iced_x86::Mnemonic;

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    let handler = controlling(form)?;
    Some(form.with(handler))
}

fn controlling(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    if form.instruction.op_count() > 0 && form.is_memory(0) {
        form.any();
    }
    Some(match form.instruction.mnemonic() {
        M::Fninit => control::fninit,
        M::Fnclex => control::fnclex,
        M::Fldcw => control::fldcw,
        M::Fnstcw => control::fnstcw,
        M::Fnstsw if form.is_memory(0) => control::fnstsw,
        M::Fnstsw => control::fnstsw_ax,
        M::Wait => control::fwait,
        M::Fnop => control::fnop,
        M::Fneni | M::Fndisi | M::Fnsetpm => control::ignored,
        M::Emms => control::emms,
        _ => return None,
    })
}
