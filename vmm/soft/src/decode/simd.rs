//! MMX and SSE instructions.

use super::Lowered;
use super::form::Form;

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(_: &mut Form) -> Option<Lowered> {
    None
}
