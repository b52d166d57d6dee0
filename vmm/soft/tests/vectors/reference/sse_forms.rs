//! SSE floating-point instructions, lane by lane: the state each leaves.

use super::sse::{BEFORE, Control, DOUBLE, Lane, Operation, Raised, SINGLE};
use crate::native::State;
use iced_x86::{Code, OpCodeOperandKind};
use std::cmp::Ordering;

/// In what order the products of DPPS and DPPD are added, which shows in the NaN that comes out of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DotOrder {
    /// As written in the manuals, once: `(p0 + p1) + (p2 + p3)` for every lane. The engine, and AMD.
    Once,
    /// For lane n, counted from n itself, by lanes exchanged: DPPS `(p(n^1) + p(n)) + (p(n^3) + p(n^2))`,
    /// DPPD `p(n) + p(n^1)`. Intel.
    EachLane,
}

/// The state after an instruction, and whether it raised #XM instead of completing.
pub struct Expected {
    pub state: State,
    pub fault: bool,
}

fn lanes(lane: Lane, vector: u128) -> Vec<u64> {
    let mask = u128::MAX >> (128 - lane.width);
    (0..128 / lane.width)
        .map(|n| (vector >> (n * lane.width) & mask) as u64)
        .collect()
}

fn vector(lane: Lane, lanes: &[u64]) -> u128 {
    lanes
        .iter()
        .rev()
        .fold(0, |v, x| v << lane.width | u128::from(*x))
}

/// What an instruction works on.
struct Operands {
    control: Control,
    a: u128,
    b: u128,
    immediate: u8,
    flags: u32,
    /// Of steps that have ended.
    earlier: u32,
}

impl Operands {
    fn lift(&mut self, (value, flags): Raised) -> u64 {
        self.flags |= flags;
        value
    }

    /// A vector with `f` of each lane of the two, or of the lowest one alone.
    fn each(&mut self, lane: Lane, scalar: bool, f: impl Fn(Control, u64, u64) -> Raised) -> u128 {
        let (mut a, b) = (lanes(lane, self.a), lanes(lane, self.b));
        let count = if scalar { 1 } else { a.len() };
        for n in 0..count {
            a[n] = self.lift(f(self.control, a[n], b[n]));
        }
        vector(lane, &a)
    }

    /// Ends a step: an unmasked error of its operands leaves the others out. Whether one is not masked.
    fn end_step(&mut self) -> bool {
        if self.control.stops(self.flags & BEFORE) {
            self.flags &= BEFORE;
        }
        self.earlier |= std::mem::take(&mut self.flags);
        self.control.stops(self.earlier)
    }

    fn binary(&mut self, lane: Lane, operation: Operation, a: u64, b: u64) -> u64 {
        self.lift(self.control.binary(operation, lane, a, b))
    }

    /// Neighbours in pairs, of one vector and then of the other.
    fn horizontal(&mut self, lane: Lane, operation: Operation) -> u128 {
        let mut pairs = lanes(lane, self.a);
        pairs.extend(lanes(lane, self.b));
        let results: Vec<u64> = pairs
            .chunks_exact(2)
            .map(|pair| self.binary(lane, operation, pair[0], pair[1]))
            .collect();
        vector(lane, &results)
    }

    /// Even lanes subtracted, odd ones added.
    fn alternating(&mut self, lane: Lane) -> u128 {
        let operations = [Operation::Subtract, Operation::Add];
        let (a, b) = (lanes(lane, self.a), lanes(lane, self.b));
        let results: Vec<u64> = (0..a.len())
            .map(|n| self.binary(lane, operations[n % 2], a[n], b[n]))
            .collect();
        vector(lane, &results)
    }

    fn dot(&mut self, lane: Lane, order: DotOrder) -> u128 {
        let (a, b) = (lanes(lane, self.a), lanes(lane, self.b));
        let immediate = self.immediate;
        let products: Vec<u64> = (0..a.len())
            .map(|n| match immediate >> (4 + n) & 1 {
                0 => 0,
                _ => self.binary(lane, Operation::Multiply, a[n], b[n]),
            })
            .collect();
        let mut terms: Vec<Vec<u64>> = (0..a.len())
            .map(|n| match (order, a.len()) {
                (DotOrder::Once, count) => (0..count).collect(),
                (DotOrder::EachLane, 2) => vec![n, n ^ 1],
                (DotOrder::EachLane, _) => vec![n ^ 1, n, n ^ 3, n ^ 2],
            })
            .map(|sequence| sequence.into_iter().map(|n: usize| products[n]).collect())
            .collect();
        // Each step has its errors; one that is not masked is the last.
        while terms[0].len() > 1 && !self.end_step() {
            for lane_terms in &mut terms {
                *lane_terms = lane_terms
                    .chunks_exact(2)
                    .map(|pair| self.binary(lane, Operation::Add, pair[0], pair[1]))
                    .collect();
            }
        }
        self.end_step();
        let stored = |(n, terms): (usize, &Vec<u64>)| match immediate >> n & 1 {
            0 => 0,
            _ => terms[0],
        };
        let results: Vec<u64> = terms.iter().enumerate().map(stored).collect();
        vector(lane, &results)
    }

    /// `cmpps` and its kin.
    fn compared(&mut self, lane: Lane, scalar: bool) -> u128 {
        let predicate = self.immediate & 7;
        let signalling = matches!(predicate & 3, 1 | 2);
        self.each(lane, scalar, |control, a, b| {
            let (order, flags) = control.compare(lane, a, b, signalling);
            let holds = match predicate & 3 {
                0 => order == Some(Ordering::Equal),
                1 => order == Some(Ordering::Less),
                2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                _ => order.is_none(),
            } != (predicate & 4 != 0);
            (
                if holds {
                    u64::MAX >> (64 - lane.width)
                } else {
                    0
                },
                flags,
            )
        })
    }

    /// `roundps` and its kin: bits 0-1 of the immediate the direction, bit 2 MXCSR's instead, bit 3 no PE.
    fn rounded(&mut self, lane: Lane, scalar: bool) -> u128 {
        let immediate = self.immediate;
        self.each(lane, scalar, |mut control, _, b| {
            if immediate & 4 == 0 {
                control.direction = super::number::Direction::of(immediate.into());
            }
            control.integral(lane, b, immediate & 8 != 0)
        })
    }

    /// The rules the processor under test has for RCPPS and RSQRTPS: 1 divided by the number, or by its
    /// root, under DAZ and FTZ, to nearest, with no flag.
    fn approximate(&mut self, root: bool, scalar: bool) -> u128 {
        let control = Control::of(0x9fc0);
        self.each(SINGLE, scalar, |_, _, b| {
            let b = if root { control.root(SINGLE, b).0 } else { b };
            (
                control.binary(Operation::Divide, SINGLE, 0x3f80_0000, b).0,
                0,
            )
        })
    }

    /// `count` numbers of one format to the other; what is above them is zero, or the destination's.
    fn converted(&mut self, from: Lane, count: usize, keep: bool) -> u128 {
        let to = if from.width == 32 { DOUBLE } else { SINGLE };
        let mut results = if keep {
            lanes(to, self.a)
        } else {
            vec![0; 128 / to.width as usize]
        };
        for (result, x) in results.iter_mut().zip(lanes(from, self.b)).take(count) {
            *result = self.lift(self.control.convert(from, to, x));
        }
        vector(to, &results)
    }

    /// 32-bit integers to numbers.
    fn numbers(&mut self, to: Lane, count: usize, keep: bool) -> u128 {
        let mut results = if keep {
            lanes(to, self.a)
        } else {
            vec![0; 128 / to.width as usize]
        };
        for (result, x) in results.iter_mut().zip(lanes(SINGLE, self.b)).take(count) {
            *result = self.lift(self.control.number(to, (x as i32).into()));
        }
        vector(to, &results)
    }

    /// Numbers to integers of 32 bits; what is above them is zero.
    fn integers(&mut self, from: Lane, count: usize, truncate: bool) -> u128 {
        let mut results = vec![0; 4];
        for (result, x) in results.iter_mut().zip(lanes(from, self.b)).take(count) {
            *result = self.integer(from, 32, truncate, x);
        }
        vector(SINGLE, &results)
    }

    fn integer(&mut self, from: Lane, width: u32, truncate: bool, x: u64) -> u64 {
        let control = if truncate {
            self.control.towards_zero()
        } else {
            self.control
        };
        self.lift(control.to_integer(from, width, x))
    }

    /// The result in an XMM register; `None` if it is not such an instruction.
    fn xmm(&mut self, name: &str, order: DotOrder) -> Option<u128> {
        let (operation, suffix) = name.split_at_checked(name.len() - 2)?;
        let (lane, scalar) = match suffix {
            "ps" => (SINGLE, false),
            "pd" => (DOUBLE, false),
            "ss" => (SINGLE, true),
            "sd" => (DOUBLE, true),
            _ => (SINGLE, false),
        };
        let binary =
            |operation| move |control: Control, a, b| control.binary(operation, lane, a, b);
        Some(match (operation, name) {
            (_, "Cvtps2pd") => self.converted(SINGLE, 2, false),
            (_, "Cvtpd2ps") => self.converted(DOUBLE, 2, false),
            (_, "Cvtss2sd") => self.converted(SINGLE, 1, true),
            (_, "Cvtsd2ss") => self.converted(DOUBLE, 1, true),
            (_, "Cvtdq2ps") => self.numbers(SINGLE, 4, false),
            (_, "Cvtdq2pd" | "Cvtpi2pd") => self.numbers(DOUBLE, 2, false),
            (_, "Cvtpi2ps") => self.numbers(SINGLE, 2, true),
            (_, "Cvtps2dq" | "Cvttps2dq") => self.integers(SINGLE, 4, name.contains("tt")),
            (_, "Cvtpd2dq" | "Cvttpd2dq") => self.integers(DOUBLE, 2, name.contains("tt")),
            ("Add", _) => self.each(lane, scalar, binary(Operation::Add)),
            ("Sub", _) => self.each(lane, scalar, binary(Operation::Subtract)),
            ("Mul", _) => self.each(lane, scalar, binary(Operation::Multiply)),
            ("Div", _) => self.each(lane, scalar, binary(Operation::Divide)),
            ("Min", _) => self.each(lane, scalar, |c, a, b| c.extreme(lane, a, b, false)),
            ("Max", _) => self.each(lane, scalar, |c, a, b| c.extreme(lane, a, b, true)),
            ("Sqrt", _) => self.each(lane, scalar, |c, _, b| c.root(lane, b)),
            ("Cmp", _) => self.compared(lane, scalar),
            ("Hadd", _) => self.horizontal(lane, Operation::Add),
            ("Hsub", _) => self.horizontal(lane, Operation::Subtract),
            ("Addsub", _) => self.alternating(lane),
            ("Dp", _) => self.dot(lane, order),
            ("Round", _) => self.rounded(lane, scalar),
            ("Rcp", _) => self.approximate(false, scalar),
            ("Rsqrt", _) => self.approximate(true, scalar),
            _ => return None,
        })
    }
}

/// The state `code` leaves, with `immediate`, its source in memory or not; `None` if it is not an SSE
/// floating-point instruction.
pub fn expected(
    code: Code,
    immediate: u8,
    memory: bool,
    before: &State,
    order: DotOrder,
) -> Option<Expected> {
    let name = format!("{:?}", code.mnemonic());
    let kinds = code.op_code().op_kinds();
    let has = |kind| kinds.contains(&kind);
    let from_mm = has(OpCodeOperandKind::mm_or_mem) && !memory && name.starts_with("Cvtpi");
    let mut first = [0; 16];
    first.copy_from_slice(&before.memory[..16]);
    let from_general = name.starts_with("Cvtsi2");
    let mut operands = Operands {
        control: Control::of(before.fx.mxcsr),
        a: before.fx.xmm[1],
        b: match (memory, from_mm, from_general) {
            (true, ..) => u128::from_le_bytes(first),
            (_, true, _) => before.mm(2).into(),
            (.., true) => before.regs[1].into(),
            _ => before.fx.xmm[2],
        },
        immediate,
        flags: 0,
        earlier: 0,
    };
    let mut after = *before;
    let scalar = if name.contains("sd") { DOUBLE } else { SINGLE };
    let low = |operands: &Operands| lanes(scalar, operands.b)[0];
    let wide = kinds.iter().any(|kind| {
        use OpCodeOperandKind as K;
        matches!(kind, K::r64_reg | K::r64_or_mem)
    });
    let width = if wide { 64 } else { 32 };
    if from_general {
        let value = operands.b as i64;
        let value = if wide { value } else { (value as i32).into() };
        let result = operands.lift(operands.control.number(scalar, value));
        let mut all = lanes(scalar, operands.a);
        all[0] = result;
        after.fx.xmm[1] = vector(scalar, &all);
    } else if name.ends_with("2si") {
        let x = low(&operands);
        after.regs[2] = operands.integer(scalar, width, name.contains("tt"), x);
    } else if name.ends_with("2pi") {
        let from = if name.contains("pd") { DOUBLE } else { SINGLE };
        let result = operands.integers(from, 2, name.contains("tt"));
        after.set_mm(1, result as u64);
    } else if matches!(name.as_str(), "Comiss" | "Comisd" | "Ucomiss" | "Ucomisd") {
        let a = lanes(scalar, operands.a)[0];
        let signalling = !name.starts_with('U');
        let (order, flags) = operands
            .control
            .compare(scalar, a, low(&operands), signalling);
        operands.flags = flags;
        let bits = match order {
            Some(Ordering::Greater) => 0,
            Some(Ordering::Less) => 1,
            Some(Ordering::Equal) => 0x40,
            None => 0x45,
        };
        after.flags = before.flags & !0x8d5 | bits;
    } else {
        after.fx.xmm[1] = operands.xmm(&name, order)?;
        if from_mm {
            after.enter_mmx();
        }
    }
    operands.end_step();
    Some(finish(before, after, operands.earlier))
}

/// An error that is not masked leaves all but the flags undone.
fn finish(before: &State, mut after: State, flags: u32) -> Expected {
    let fault = flags & (!before.fx.mxcsr >> 7 & 0x3f) != 0;
    if fault {
        after = *before;
    }
    after.fx.mxcsr = before.fx.mxcsr | flags;
    Expected {
        state: after,
        fault,
    }
}

impl State {
    fn top(&self) -> usize {
        usize::from(self.fx.fsw >> 11 & 7)
    }

    /// MMX register `number`.
    fn mm(&self, number: usize) -> u64 {
        self.fx.st[(number + 8 - self.top()) % 8] as u64
    }

    /// Sets it, as an MMX instruction.
    fn set_mm(&mut self, number: usize, value: u64) {
        self.enter_mmx();
        self.fx.st[number] = 0xffff << 64 | u128::from(value);
    }

    /// TOP becomes 0, and no register is empty.
    pub fn enter_mmx(&mut self) {
        let top = self.top();
        self.fx.st.rotate_right(top);
        self.fx.fsw &= !0x3800;
        self.fx.tags = 0xff;
    }
}
