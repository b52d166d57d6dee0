//! What makers of processors do differently, where the manuals leave it open: for each form and case, what a
//! maker's processor makes of it, from what ours does.
//!
//! Ours is AMD's way, so AMD's model changes nothing. Each of Intel's is the whole difference: a processor of
//! either that does anything else fails.

use crate::forms::Case;
use crate::native::State;
use crate::reference::number::Exact;
use crate::reference::sse_forms::{self, DotOrder};
use crate::reference::x87::{DE, Kind, OE, Operand, UE};
use iced_x86::Code;

pub use crate::maker::Maker;

impl Maker {
    /// As in [`crate::captured`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
        }
    }

    /// Whether nobody has seen yet what this maker's processors do in a case. Such cases are left out, unless
    /// `VECTOR_UNSEEN` is set.
    pub fn leaves_out(self, case: &Case, before: &State) -> bool {
        let unseen = match case.code {
            // With unmasked overflow or underflow.
            Code::Fscale => before.fx.fcw & (OE | UE) != OE | UE,
            Code::Fpatan => is_least_quotient(before),
            // Digits above 9, which both manuals leave open.
            Code::Fbld_m80bcd => {
                let digits = &before.memory[..9];
                digits.iter().any(|two| two & 15 > 9 || two >> 4 > 9)
            }
            _ => before.fx.mxcsr & 0x1f80 != 0x1f80,
        };
        self == Self::Amd && unseen && std::env::var_os("VECTOR_UNSEEN").is_none()
    }

    /// `ours`, the state after the instruction, as this maker's processor would leave it.
    pub fn adjust(self, case: &Case, before: &State, ours: &mut State, faulted: bool) {
        if self == Self::Amd {
            return;
        }
        match case.code {
            Code::Dpps_xmm_xmmm128_imm8 | Code::Dppd_xmm_xmmm128_imm8 => {
                dot_of_each_lane(case, before, ours);
            }
            Code::Cvtpi2ps_xmm_mmm64
            | Code::Cvtps2pi_mm_xmmm64
            | Code::Cvttps2pi_mm_xmmm64
            | Code::Cvtpd2pi_mm_xmmm128
            | Code::Cvttpd2pi_mm_xmmm128
                if faulted && !(case.code == Code::Cvtpi2ps_xmm_mmm64 && case.memory) =>
            {
                // Conversions of MMX registers that raise #XM have already made the x87 unit an MMX one.
                ours.enter_mmx();
            }
            Code::Fsin | Code::Fsincos => {
                let x = Operand::register(before.fx.st[0]);
                if is_least_times(x, Exact::new(false, 0, 1)) {
                    let register = usize::from(case.code == Code::Fsincos);
                    least_is_exact(before, ours, &[x], register);
                }
            }
            Code::Fpatan if is_least_quotient(before) => {
                let operands = [0, 1].map(|n| Operand::register(before.fx.st[n]));
                least_is_exact(before, ours, &operands, 0);
            }
            _ => {}
        }
    }
}

/// DPPS and DPPD: Intel's processors add for each lane of the result in an order that begins with it, which
/// shows in the NaN they take of several (SDM volume 2, DPPS: "Horizontal propagation of NaNs to the
/// destination and the positioning of those NaNs in the destination is implementation dependent").
fn dot_of_each_lane(case: &Case, before: &State, ours: &mut State) {
    let [once, each_lane] = [DotOrder::Once, DotOrder::EachLane].map(|order| {
        sse_forms::expected(case.code, case.immediate, case.memory, before, order)
            .expect("the reference has it")
            .state
            .fx
            .xmm[1]
    });
    if ours.fx.xmm[1] == once {
        ours.fx.xmm[1] = each_lane;
    }
}

/// FSIN and FSINCOS of the least normal number, and FPATAN where that is the quotient: Intel's processors have
/// it for the result, in every direction. The true one is a little less: cut, it is a denormal, and an
/// underflow. `register`: which one the result is in.
fn least_is_exact(before: &State, ours: &mut State, operands: &[Operand], register: usize) {
    let top = before.fx.fsw >> 11 & 7;
    let is_empty = |n: u16| before.fx.tags & 1 << ((top + n) & 7) == 0;
    let faults = (0..operands.len() as u16).any(is_empty) || register == 1 && !is_empty(7);
    // A denormal that is an unmasked error leaves everything undone.
    let denormal = operands.iter().any(|operand| operand.denormal);
    if faults || denormal && before.fx.fcw & DE == 0 {
        return;
    }
    // To nearest it is that number; cut, the largest denormal, or where underflow is an error that times
    // 2^24576, at 64 bits.
    let sign = 1 << 79;
    let least = 1 << 64 | 1 << 63;
    let result = ours.fx.st[register];
    let largest = u128::from(u64::MAX);
    let known = [least, largest >> 1, 0x6000 << 64 | largest];
    if !known.contains(&(result & !sign)) {
        return;
    }
    let raised = ours.fx.fsw & !before.fx.fsw & UE;
    ours.fx.fsw &= !raised;
    if ours.fx.fsw & !before.fx.fcw & 0x3f == 0 {
        ours.fx.fsw &= !0x8080;
    }
    ours.fx.st[register] = result & sign | least;
}

/// Whether ST(1) divided by ST(0), which is positive, is the least normal number or its negative.
fn is_least_quotient(before: &State) -> bool {
    let [x, y] = [0, 1].map(|n| Operand::register(before.fx.st[n]));
    matches!(x.kind, Kind::Number(unit) if !unit.negative && is_least_times(y, unit))
}

/// Whether an operand is the least normal number, or its negative, times `unit`, which is positive.
fn is_least_times(operand: Operand, unit: Exact) -> bool {
    let Kind::Number(number) = operand.kind else {
        return false;
    };
    let exponent = unit.exponent - 16382;
    let magnitude = Exact {
        negative: false,
        ..number
    };
    magnitude.compare(Exact { exponent, ..unit }).is_eq()
}
