//! x87 instructions that compute, compare, load and store: the state each leaves. Registers are as the
//! instruction needs them: full where it reads, ST(7) empty.

use super::number::Exact;
use super::sse::Lane;
use super::x87::{BEFORE, C1, Control, DE, IE, INDEFINITE, OE, Operand, Raised, UE, lane_of};
use crate::native::State;
use iced_x86::{Code, MemorySize, OpCodeOperandKind};
use std::cmp::Ordering;

const C0: u16 = 1 << 8;
const C2: u16 = 1 << 10;
const C3: u16 = 1 << 14;
const UNORDERED: u16 = C0 | C2 | C3;

/// The constants FLDL2T, FLDL2E, FLDPI, FLDLG2 and FLDLN2 load, cut after 128 bits: significand and exponent.
const CONSTANTS: [(&str, u128, i32); 5] = [
    ("Fldl2t", 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c, -126),
    ("Fldl2e", 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88, -127),
    ("Fldpi", 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1, -126),
    ("Fldlg2", 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178, -129),
    ("Fldln2", 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af, -128),
];

/// The unit while an instruction is carried out.
struct Unit {
    state: State,
    control: Control,
}

impl Unit {
    fn top(&self) -> u16 {
        self.state.fx.fsw >> 11 & 7
    }

    fn set_top(&mut self, top: u16) {
        self.state.fx.fsw = self.state.fx.fsw & !0x3800 | (top & 7) << 11;
    }

    fn push(&mut self, value: u128) {
        self.set_top(self.top() + 7);
        self.state.fx.st.rotate_right(1);
        self.state.fx.st[0] = value;
        self.state.fx.tags |= 1 << self.top();
    }

    fn pop(&mut self) {
        self.state.fx.tags &= !(1 << self.top());
        self.set_top(self.top() + 1);
        self.state.fx.st.rotate_left(1);
    }

    fn masked(&self, flags: u16) -> bool {
        (0..6).all(|n| flags & 1 << n == 0 || self.control.masks(1 << n))
    }

    /// Flags stick, C1 is the last's; an unmasked error of operands leaves everything else undone: false.
    fn take(&mut self, mut flags: u16) -> bool {
        let done = self.masked(flags & BEFORE);
        if !done {
            flags &= BEFORE;
        }
        let fsw = self.state.fx.fsw & !(C1 | 0x8080) | flags;
        let pending = if self.masked(fsw & 0x3f) { 0 } else { 0x8080 };
        self.state.fx.fsw = fsw | pending;
        done
    }

    fn conditions(&mut self, mask: u16, value: u16) {
        self.state.fx.fsw = self.state.fx.fsw & !mask | value;
    }

    fn memory<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|n| self.state.memory[n])
    }

    fn st(&self, n: usize) -> Operand {
        Operand::register(self.state.fx.st[n])
    }

    /// The memory operand, with IE for a number that signals only in memory.
    fn source(&self, size: MemorySize) -> Option<Operand> {
        Some(match size {
            MemorySize::Float32 => {
                Operand::lane(lane_of(32), u32::from_le_bytes(self.memory()).into())
            }
            MemorySize::Float64 => Operand::lane(lane_of(64), u64::from_le_bytes(self.memory())),
            MemorySize::Float80 => {
                let mut bytes = [0; 16];
                bytes[..10].copy_from_slice(&self.memory::<10>());
                Operand::register(u128::from_le_bytes(bytes))
            }
            MemorySize::Int16 => Operand::integer(i16::from_le_bytes(self.memory()).into()),
            MemorySize::Int32 => Operand::integer(i32::from_le_bytes(self.memory()).into()),
            MemorySize::Int64 => Operand::integer(i64::from_le_bytes(self.memory())),
            MemorySize::Bcd => Operand::register(decimal(self.memory())),
            _ => return None,
        })
    }

    /// Whether it may pop.
    fn arithmetic(&mut self, operation: &str, dst: usize, b: Operand) -> bool {
        let (control, a) = (self.control, self.st(dst));
        let (value, flags) = match operation {
            "add" => control.add(a, b),
            "mul" => control.multiply(a, b),
            "sub" => control.subtract(a, b),
            "subr" => control.subtract(b, a),
            "div" => control.divide(a, b),
            _ => control.divide(b, a),
        };
        let done = self.take(flags);
        if done {
            self.state.fx.st[dst] = value;
        }
        done
    }

    /// Whether it may pop.
    fn compare(&mut self, b: Operand, quiet: bool, to_flags: bool) -> bool {
        let (order, flags) = Control::compare(self.st(0), b, quiet);
        let conditions = match order {
            Some(Ordering::Greater) => 0,
            Some(Ordering::Less) => C0,
            Some(Ordering::Equal) => C3,
            None => UNORDERED,
        };
        let kept = self.state.fx.fsw & C1;
        let done = self.take(flags);
        if to_flags {
            self.state.fx.fsw |= kept;
            let bit = |condition, flag| if conditions & condition != 0 { flag } else { 0 };
            let flags = bit(C0, 1) | bit(C2, 4) | bit(C3, 0x40);
            self.state.flags = self.state.flags & !0x8d5 | flags;
        } else {
            self.conditions(UNORDERED, conditions);
        }
        done
    }

    fn load(&mut self, source: Operand, size: MemorySize) {
        let converted = matches!(size, MemorySize::Float32 | MemorySize::Float64);
        let (value, flags) = match Control::nans(source, source) {
            Some(raised) if converted => raised,
            _ => (
                source.register,
                if converted && source.denormal { DE } else { 0 },
            ),
        };
        // A denormal is loaded even where it is an error.
        if self.take(flags) || flags & IE == 0 {
            self.push(value);
        }
    }

    fn store(&mut self, bytes: &[u8]) {
        self.state.memory[..bytes.len()].copy_from_slice(bytes);
    }

    /// Whether it may pop.
    fn store_as(&mut self, size: MemorySize, truncate: bool) -> bool {
        let a = self.st(0);
        let control = if truncate {
            self.control.towards_zero()
        } else {
            self.control
        };
        let lane: Option<Lane> = match size {
            MemorySize::Float32 => Some(lane_of(32)),
            MemorySize::Float64 => Some(lane_of(64)),
            _ => None,
        };
        if let Some(lane) = lane {
            let (value, flags) = control.store(lane, a);
            let fits = self.masked(flags & (OE | UE));
            let done = self.take(flags) && fits;
            if done {
                let bytes = value.expect("a number to store").to_le_bytes();
                self.store(&bytes[..lane.width as usize / 8]);
            }
            return done;
        }
        if size == MemorySize::Float80 {
            self.take(0);
            self.store(&a.register.to_le_bytes()[..10]);
            return true;
        }
        let (bound, decimal, bytes) = match size {
            MemorySize::Int16 => (1 << 15, false, 2),
            MemorySize::Int32 => (1 << 31, false, 4),
            MemorySize::Int64 => (1 << 63, false, 8),
            _ => (10u128.pow(18), true, 10),
        };
        let (value, flags) = control.integer(a, bound, !decimal);
        if !self.take(flags) {
            return false;
        }
        let image = match (value, decimal) {
            (None, false) => bound,
            (None, true) => INDEFINITE,
            (Some((negative, x)), false) => {
                if negative {
                    x.wrapping_neg()
                } else {
                    x
                }
            }
            (Some((negative, x)), true) => digits(negative, x),
        };
        self.store(&image.to_le_bytes()[..bytes]);
        true
    }

    /// In ST(0).
    fn unary(&mut self, (value, flags): Raised) {
        if self.take(flags) {
            self.state.fx.st[0] = value;
        }
    }
}

/// A packed decimal: 18 digits and a sign. A digit above 9 counts as what its bits say: the manuals leave it
/// open, the processor under test does so.
fn decimal(bytes: [u8; 10]) -> u128 {
    let value = bytes[..9].iter().rev().fold(0i64, |value, byte| {
        value * 100 + i64::from(byte >> 4) * 10 + i64::from(byte & 15)
    });
    Operand::integer(value).register | u128::from(bytes[9] >> 7) << 79
}

fn digits(negative: bool, mut value: u128) -> u128 {
    let mut image = u128::from(negative) << 79;
    for n in 0..18 {
        image |= (value % 10) << (n * 4);
        value /= 10;
    }
    image
}

/// The state `code` leaves; `None` if it is no such instruction.
pub fn expected(code: Code, before: &State) -> Option<State> {
    let name = format!("{:?}", code.mnemonic());
    let size = code.op_code().memory_size();
    let mut unit = Unit {
        state: *before,
        control: Control::of(before.fx.fcw),
    };
    let memory = unit.source(size);
    let kinds = code.op_code().op_kinds();
    let register = |n: usize| match kinds.get(n) {
        Some(OpCodeOperandKind::sti_opcode) => 3,
        _ => 0,
    };
    let full = unit.control.full();
    let pops = name.ends_with('p');
    match name.as_str() {
        "Fsqrt" => unit.unary(unit.control.root(unit.st(0))),
        "Frndint" => unit.unary(full.integral(unit.st(0))),
        "Fscale" => unit.unary(full.scale(unit.st(0), unit.st(1))),
        "Fxtract" => {
            let (exponent, (significand, flags)) = Control::extract(unit.st(0));
            if unit.take(flags) {
                unit.state.fx.st[0] = exponent;
                unit.push(significand);
            }
        }
        "Ftst" => {
            unit.compare(Operand::register(0), false, false);
        }
        "Fld1" | "Fldz" => {
            unit.take(0);
            unit.push(Operand::integer((name == "Fld1").into()).register);
        }
        "Fldl2t" | "Fldl2e" | "Fldpi" | "Fldlg2" | "Fldln2" => {
            let (_, significand, exponent) = CONSTANTS.into_iter().find(|c| c.0 == name)?;
            let exact = Exact {
                rest: true,
                ..Exact::new(false, exponent, significand)
            };
            unit.take(0);
            unit.push(full.round(exact).0);
        }
        "Fld" | "Fild" | "Fbld" => unit.load(memory?, size),
        "Fst" | "Fist" | "Fstp" | "Fistp" | "Fisttp" | "Fbstp" => {
            memory?;
            if unit.store_as(size, name == "Fisttp") && pops {
                unit.pop();
            }
        }
        "Fcom" | "Fcomp" | "Fcompp" | "Ficom" | "Ficomp" | "Fucom" | "Fucomp" | "Fucompp"
        | "Fcomi" | "Fcomip" | "Fucomi" | "Fucomip" => {
            let b = match (memory, kinds.len()) {
                (Some(b), _) => b,
                (_, 2) => unit.st(3),
                _ => unit.st(1),
            };
            let to_flags = name.ends_with("omi") || name.ends_with("omip");
            if unit.compare(b, name.starts_with("Fu"), to_flags) && pops {
                unit.pop();
                if name.ends_with("pp") {
                    unit.pop();
                }
            }
        }
        _ => {
            let operation = name
                .trim_start_matches('F')
                .trim_start_matches('i')
                .trim_end_matches('p');
            if !matches!(operation, "add" | "mul" | "sub" | "subr" | "div" | "divr") {
                return None;
            }
            let (dst, b) = match memory {
                Some(b) => (0, b),
                None => (register(0), unit.st(register(1))),
            };
            if unit.arithmetic(operation, dst, b) && pops {
                unit.pop();
            }
        }
    }
    Some(unit.state)
}
