//! x87 instructions.

use super::Lowered;
use super::form::Form;
use crate::execute::x87::arithmetic::{self, POP_TWICE, TO_FLAGS, UNORDERED};
use crate::execute::x87::host::source;
use crate::execute::x87::transcendental::{self, function};
use crate::execute::x87::{control, environment, remainder, transfer};
use crate::op::Handler;
use iced_x86::{MemorySize, Mnemonic, Register};

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    let handler = controlling(form)
        .or_else(|| computing(form))
        .or_else(|| comparing(form))
        .or_else(|| moving(form))
        .or_else(|| storing(form))
        .or_else(|| whole(form))?;
    Some(form.with(handler))
}

impl Form<'_> {
    /// Number of the stack register operand `n` is.
    fn st(&self, n: u32) -> u8 {
        (self.instruction.op_register(n) as u8).wrapping_sub(Register::ST0 as u8)
    }

    /// Sets the memory operand and [`crate::op::Op::extra`], its format.
    fn number(&mut self) {
        self.any();
        self.op.extra = match self.instruction.memory_size() {
            MemorySize::Float32 => source::SINGLE,
            MemorySize::Float64 => source::DOUBLE,
            MemorySize::Int16 => source::INT16,
            MemorySize::Int32 => source::INT32,
            MemorySize::Int64 => source::INT64,
            MemorySize::Bcd => source::DECIMAL,
            _ => source::EXTENDED,
        };
    }

    fn has_memory(&self) -> bool {
        self.instruction.op_count() > 0 && self.is_memory(0)
    }
}

fn controlling(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    let handler: Handler = match form.instruction.mnemonic() {
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
    };
    if form.has_memory() {
        form.any();
    }
    Some(handler)
}

/// Arithmetic of two operands: number of [`crate::execute::x87::host::ARITHMETIC`], and whether it pops.
fn computing(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    let (operation, pops) = match form.instruction.mnemonic() {
        M::Fadd | M::Fiadd => (0, false),
        M::Faddp => (0, true),
        M::Fmul | M::Fimul => (1, false),
        M::Fmulp => (1, true),
        M::Fsub | M::Fisub => (2, false),
        M::Fsubp => (2, true),
        M::Fsubr | M::Fisubr => (3, false),
        M::Fsubrp => (3, true),
        M::Fdiv | M::Fidiv => (4, false),
        M::Fdivp => (4, true),
        M::Fdivr | M::Fidivr => (5, false),
        M::Fdivrp => (5, true),
        _ => return None,
    };
    form.op.imm = operation | if pops { arithmetic::POP } else { 0 };
    if form.has_memory() {
        form.number();
    } else {
        form.op.dst = form.st(0);
        form.op.src = form.st(1);
    }
    Some(arithmetic::arithmetic)
}

fn comparing(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    use arithmetic::POP;
    form.op.imm = match form.instruction.mnemonic() {
        M::Fcom | M::Ficom => 0,
        M::Fcomp | M::Ficomp => POP,
        M::Fcompp => POP_TWICE,
        M::Fucom => UNORDERED,
        M::Fucomp => UNORDERED | POP,
        M::Fucompp => UNORDERED | POP_TWICE,
        M::Fcomi => TO_FLAGS,
        M::Fcomip => TO_FLAGS | POP,
        M::Fucomi => UNORDERED | TO_FLAGS,
        M::Fucomip => UNORDERED | TO_FLAGS | POP,
        _ => return None,
    };
    if form.has_memory() {
        form.number();
    } else if form.instruction.op_count() == 2 {
        form.op.src = form.st(1);
    } else {
        form.op.src = 1;
    }
    Some(arithmetic::compare)
}

fn moving(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    let with = |form: &mut Form, imm: u64, handler: Handler| {
        form.op.imm = imm;
        Some(handler)
    };
    let condition = match form.instruction.mnemonic() {
        M::Fld if !form.is_memory(0) => {
            // The second operand, if the decoder names ST(0) first.
            form.op.src = form.st(form.instruction.op_count() - 1);
            return Some(transfer::load_register);
        }
        M::Fld | M::Fild | M::Fbld => {
            form.number();
            return Some(transfer::load);
        }
        M::Fld1 => return with(form, 0, transfer::load_constant),
        M::Fldl2t => return with(form, 1, transfer::load_constant),
        M::Fldl2e => return with(form, 2, transfer::load_constant),
        M::Fldpi => return with(form, 3, transfer::load_constant),
        M::Fldlg2 => return with(form, 4, transfer::load_constant),
        M::Fldln2 => return with(form, 5, transfer::load_constant),
        M::Fldz => return with(form, 6, transfer::load_constant),
        M::Fxch => {
            form.op.src = form.st(form.instruction.op_count() - 1);
            return Some(transfer::exchange);
        }
        M::Ffree => {
            form.op.dst = form.st(0);
            return with(form, 0, transfer::free);
        }
        M::Ffreep => {
            form.op.dst = form.st(0);
            return with(form, transfer::POP, transfer::free);
        }
        M::Fincstp => return with(form, 1, transfer::rotate),
        M::Fdecstp => return with(form, 7, transfer::rotate),
        M::Fcmovb => 0,
        M::Fcmove => 1,
        M::Fcmovbe => 2,
        M::Fcmovu => 3,
        M::Fcmovnb => 4,
        M::Fcmovne => 5,
        M::Fcmovnbe => 6,
        M::Fcmovnu => 7,
        _ => return None,
    };
    form.op.src = form.st(1);
    with(form, condition, transfer::conditional)
}

fn storing(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    use transfer::{POP, TRUNCATE};
    form.op.imm = match form.instruction.mnemonic() {
        M::Fst | M::Fist => 0,
        M::Fstp | M::Fistp | M::Fbstp => POP,
        M::Fstpnce => POP | transfer::UNCHECKED,
        M::Fisttp => POP | TRUNCATE,
        _ => return None,
    };
    if form.is_memory(0) {
        form.number();
        return Some(transfer::store);
    }
    form.op.dst = form.st(0);
    Some(transfer::store_register)
}

/// Instructions on ST(0) and ST(1), and on the unit as a whole.
fn whole(form: &mut Form) -> Option<Handler> {
    use Mnemonic as M;
    let (imm, handler): (u64, Handler) = match form.instruction.mnemonic() {
        M::Fabs => (0, arithmetic::sign),
        M::Fchs => (1, arithmetic::sign),
        M::Fsqrt => (0, arithmetic::unary),
        M::Frndint => (1, arithmetic::unary),
        M::Fscale => (2, arithmetic::unary),
        M::Fxtract => (0, arithmetic::fxtract),
        M::Fxam => (0, arithmetic::fxam),
        M::Ftst => (0, arithmetic::ftst),
        M::F2xm1 => (function::F2XM1, transcendental::of_one),
        M::Fsin => (function::FSIN, transcendental::of_one),
        M::Fcos => (function::FCOS, transcendental::of_one),
        M::Fyl2x => (function::FYL2X, transcendental::of_two),
        M::Fyl2xp1 => (function::FYL2XP1, transcendental::of_two),
        M::Fpatan => (function::FPATAN, transcendental::of_two),
        M::Fsincos => (function::FSINCOS, transcendental::two_of_one),
        M::Fptan => (function::FPTAN, transcendental::two_of_one),
        M::Fprem => (0, remainder::fprem),
        M::Fprem1 => (remainder::NEAREST, remainder::fprem),
        M::Fnstenv => (0, environment::fnstenv),
        M::Fldenv => (0, environment::fldenv),
        M::Fnsave => (0, environment::fnsave),
        M::Frstor => (0, environment::frstor),
        _ => return None,
    };
    form.op.imm = imm;
    if form.has_memory() {
        form.any();
        if matches!(
            form.instruction.memory_size(),
            MemorySize::FpuEnv14 | MemorySize::FpuState94
        ) {
            form.op.imm = environment::NARROW;
        }
    }
    Some(handler)
}
