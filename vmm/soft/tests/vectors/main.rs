//! MMX, SSE and x87 instructions, here and on the host's processor: every form the assembler knows, on
//! random and remarkable numbers, compared in registers, flags, status and memory.
//!
//! `VECTOR_CASES` sets how many cases each form gets, `VECTOR_ONLY` which ones run (part of a name).

mod faults;
mod native;
mod random;

use iced_x86::{Code, CpuidFeature, Encoder, Instruction, OpCodeOperandKind, Register};
use native::{Native, State};
use random::Random;
use soft::Exit;
use soft::op::slot;
use soft::testing::{CODE, DATA, Machine};

/// What is compared, and how well.
struct Case {
    code: Code,
    bytes: Vec<u8>,
}

fn cases_each() -> u64 {
    std::env::var("VECTOR_CASES").map_or(2000, |n| n.parse().expect("a number"))
}

/// Whether the host has what `code` needs: otherwise there is nothing to compare with.
fn host_has(code: Code) -> bool {
    code.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        _ => true,
    })
}

/// The forms whose CPUID features are all in `features`, in every form of operands.
fn forms(features: &[CpuidFeature], wanted: impl Fn(Code) -> bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let only = std::env::var("VECTOR_ONLY")
        .unwrap_or_default()
        .to_lowercase();
    for code in Code::values() {
        let in_set = code.cpuid_features().iter().all(|f| features.contains(f));
        let name = format!("{code:?}").to_lowercase();
        let known = code.op_code().is_instruction() && code.op_code().mode64();
        if !in_set || !known || !wanted(code) || !host_has(code) || !name.contains(&only) {
            continue;
        }
        for memory in [false, true] {
            cases.extend(
                assemble(code, memory)
                    .into_iter()
                    .map(|bytes| Case { code, bytes }),
            );
        }
    }
    cases
}

/// Encodings of `code`, with a memory operand if it can have one.
fn assemble(code: Code, memory: bool) -> Vec<Vec<u8>> {
    use OpCodeOperandKind as K;
    let kinds = code.op_code().op_kinds();
    let mut has_memory = false;
    let mut has_immediate = false;
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for (n, kind) in kinds.iter().enumerate() {
        let n = n as u32;
        let mut register = |r: Register| instruction.set_op_register(n, r);
        match kind {
            K::mem | K::mem_offs => has_memory = true,
            K::xmm_or_mem
            | K::mm_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r16_or_mem
            | K::r8_or_mem
                if memory =>
            {
                has_memory = true
            }
            K::xmm_or_mem | K::xmm_rm => register(Register::XMM2),
            K::xmm_reg => register(Register::XMM1),
            K::mm_or_mem | K::mm_rm => register(Register::MM2),
            K::mm_reg => register(Register::MM1),
            K::r32_or_mem | K::r32_rm => register(Register::ECX),
            K::r32_reg => register(Register::EDX),
            K::r64_or_mem | K::r64_rm => register(Register::RCX),
            K::r64_reg => register(Register::RDX),
            K::st0 => register(Register::ST0),
            K::sti_opcode => register(Register::ST3),
            K::ax => register(Register::AX),
            K::imm8 | K::imm8_const_1 => has_immediate = true,
            // Left out here: `maskmov*` name their memory by RDI alone.
            _ => return Vec::new(),
        }
        if has_memory && kind_is_memory(*kind, memory) {
            instruction.set_op_kind(n, iced_x86::OpKind::Memory);
            instruction.set_memory_base(Register::RSI);
        }
        if matches!(kind, K::imm8) {
            instruction.set_op_kind(n, iced_x86::OpKind::Immediate8);
        }
    }
    if memory && !has_memory
        || !memory && has_memory && kinds.iter().any(|k| kind_is_memory(*k, false))
    {
        // The same as the other, or only there.
        if !(memory && has_memory) {
            return Vec::new();
        }
    }
    let immediates: Vec<u8> = if has_immediate {
        (0..=255).collect()
    } else {
        vec![0]
    };
    let mut all = Vec::new();
    for immediate in immediates {
        if has_immediate {
            instruction.set_immediate8(immediate);
        }
        let mut encoder = Encoder::new(64);
        let encoded = encoder.encode(&instruction, CODE).is_ok();
        let bytes = encoder.take_buffer();
        // A waiting form is two instructions.
        if encoded && (bytes[0] != 0x9b || bytes.len() == 1) {
            all.push(bytes);
        }
    }
    all
}

fn kind_is_memory(kind: OpCodeOperandKind, memory: bool) -> bool {
    use OpCodeOperandKind as K;
    match kind {
        K::mem | K::mem_offs => true,
        K::xmm_or_mem
        | K::mm_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
        | K::r16_or_mem
        | K::r8_or_mem => memory,
        _ => false,
    }
}

/// A state to start from.
fn random_state(random: &mut Random, x87: bool) -> State {
    let mut state = State::default();
    for xmm in &mut state.fx.xmm {
        *xmm = random.vector();
    }
    state.fx.xmm[2] = if random.below(8) == 0 {
        state.fx.xmm[1]
    } else {
        state.fx.xmm[2]
    };
    for st in &mut state.fx.st {
        *st = if x87 {
            random.extended()
        } else {
            0xffff << 64 | random.vector() & u128::from(u64::MAX)
        };
    }
    // All masked; rounding, DAZ and FTZ at random, old flags at random.
    state.fx.mxcsr =
        0x1f80 | random.next() as u32 & 0xe07f & if random.below(2) == 0 { 0 } else { !0 };
    state.fx.tags = random.next() as u8 | random.next() as u8;
    state.fx.fsw = random.next() as u16 & 0x7f7f;
    state.fx.fcw = 0x7f | random.next() as u16 & 0xc00;
    if x87 {
        state.fx.fcw |= [0, 0x200, 0x300, 0x300][random.below(4) as usize];
        // Few stack faults.
        if random.below(4) != 0 {
            state.fx.tags = 0xff;
        }
        // Sometimes unmasked errors, none of them pending.
        if random.below(4) == 0 {
            state.fx.fcw &= !(random.next() as u16 & 0x3f);
            state.fx.fsw &= state.fx.fcw | !0x3f;
        }
    } else {
        state.fx.fcw |= 0x300;
    }
    for reg in &mut state.regs {
        *reg = random.double();
    }
    state.flags = 0x202 | random.next() & 0x8d5;
    let first = if x87 {
        random.extended()
    } else {
        random.vector()
    };
    state.memory[..16].copy_from_slice(&first.to_le_bytes());
    let second = random.vector();
    state.memory[16..32].copy_from_slice(&second.to_le_bytes());
    if random.below(3) == 0 {
        let number = random.double();
        state.memory[..8].copy_from_slice(&number.to_le_bytes());
    }
    state
}

/// Runs the instruction at [`CODE`] on the emulated processor.
fn emulate(machine: &mut Machine, state: &mut State) -> Exit {
    let cpu = &mut machine.soft.cpu;
    cpu.rip = CODE;
    cpu.set_slot(slot::RSI, DATA);
    cpu.set_slot(slot::RDI, DATA);
    for n in 0..4u8 {
        cpu.set_slot(n, state.regs[usize::from(n)]);
    }
    cpu.set_rflags(state.flags);
    let fpu = &mut cpu.fpu;
    fpu.xmm = state.fx.xmm;
    fpu.fcw = state.fx.fcw;
    fpu.fsw = state.fx.fsw;
    fpu.tags = state.fx.tags;
    fpu.mxcsr = state.fx.mxcsr;
    for n in 0..8 {
        fpu.x87[(fpu.top() + n) % 8] = state.fx.st[n];
    }
    for (n, word) in state.memory.chunks_exact(8).enumerate() {
        let value = u64::from_le_bytes(word.try_into().unwrap());
        cpu.physical.write(DATA + n as u64 * 8, value, 8);
    }
    let exit = machine.run(1);
    let cpu = &machine.soft.cpu;
    for n in 0..4u8 {
        state.regs[usize::from(n)] = cpu.slot(n);
    }
    state.flags = cpu.rflags();
    let fpu = &cpu.fpu;
    state.fx.xmm = fpu.xmm;
    state.fx.fcw = fpu.fcw;
    state.fx.fsw = fpu.fsw;
    state.fx.tags = fpu.tags;
    state.fx.mxcsr = fpu.mxcsr;
    for n in 0..8 {
        state.fx.st[n] = fpu.x87[(fpu.top() + n) % 8] & ((1 << 80) - 1);
    }
    for (n, word) in state.memory.chunks_exact_mut(8).enumerate() {
        let value = cpu.physical.read(DATA + n as u64 * 8, 8).unwrap();
        word.copy_from_slice(&value.to_le_bytes());
    }
    exit
}

/// The first difference, in words.
fn difference(ours: &State, theirs: &State) -> Option<String> {
    for n in 0..16 {
        if ours.fx.xmm[n] != theirs.fx.xmm[n] {
            return Some(format!(
                "xmm{n}: {:#034x}, host {:#034x}",
                ours.fx.xmm[n], theirs.fx.xmm[n]
            ));
        }
    }
    for n in 0..8 {
        if ours.fx.st[n] != theirs.fx.st[n] {
            return Some(format!(
                "st{n}: {:#022x}, host {:#022x}",
                ours.fx.st[n], theirs.fx.st[n]
            ));
        }
    }
    let words = [
        ("mxcsr", ours.fx.mxcsr as u64, theirs.fx.mxcsr as u64),
        ("fsw", ours.fx.fsw.into(), theirs.fx.fsw.into()),
        ("fcw", ours.fx.fcw.into(), theirs.fx.fcw.into()),
        ("tags", ours.fx.tags.into(), theirs.fx.tags.into()),
        ("rax", ours.regs[0], theirs.regs[0]),
        ("rcx", ours.regs[1], theirs.regs[1]),
        ("rdx", ours.regs[2], theirs.regs[2]),
        ("rbx", ours.regs[3], theirs.regs[3]),
        ("flags", ours.flags, theirs.flags),
    ];
    for (name, ours, theirs) in words {
        if ours != theirs {
            return Some(format!("{name}: {ours:#x}, host {theirs:#x}"));
        }
    }
    for n in 0..512 {
        if ours.memory[n] != theirs.memory[n] {
            return Some(format!(
                "memory: {:02x?}, host {:02x?}, from byte {n}",
                &ours.memory[..32],
                &theirs.memory[..32]
            ));
        }
    }
    None
}

/// Compares every form; panics with all that differ.
fn compare(cases: Vec<Case>, x87: bool, allowed: impl Fn(Code, &State, &mut State, &mut State)) {
    let mut native = Native::new();
    let mut failures: Vec<String> = Vec::new();
    let mut last_failed = None;
    let total = cases.len();
    let mut machine = Machine::new(&[], 3);
    for (number, case) in cases.into_iter().enumerate() {
        native.set(&case.bytes);
        for (n, byte) in case.bytes.iter().enumerate() {
            machine
                .soft
                .cpu
                .physical
                .write(CODE + n as u64, u64::from(*byte), 1);
        }
        machine.soft.page_written(CODE / 4096);
        let seed = number as u64 * 0x1234_5678_9abc;
        let mut random = Random(seed);
        // A form with an immediate comes 256 times.
        let immediate = case
            .code
            .op_code()
            .op_kinds()
            .contains(&OpCodeOperandKind::imm8);
        let count = if immediate {
            cases_each() / 50
        } else {
            cases_each()
        };
        for _ in 0..count {
            let before = random_state(&mut random, x87);
            let (mut ours, mut theirs) = (before, before);
            native.run(&mut theirs);
            let exit = emulate(&mut machine, &mut ours);
            let mut wrong = (exit != Exit::Stopped).then(|| format!("exit {exit:?}"));
            if wrong.is_none() {
                allowed(case.code, &before, &mut ours, &mut theirs);
                wrong = difference(&ours, &theirs);
            }
            if let Some(wrong) = wrong {
                if last_failed != Some(case.code) {
                    failures.push(describe(&case, &before, &wrong));
                }
                last_failed = Some(case.code);
                break;
            }
        }
    }
    println!("{total} forms");
    assert!(
        failures.is_empty(),
        "{} differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn describe(case: &Case, before: &State, wrong: &str) -> String {
    format!(
        "{:?} {:02x?}: {wrong}\n    xmm1 {:#034x} xmm2 {:#034x} mxcsr {:#x}\n    st0 {:#022x} st1 {:#022x} st3 {:#022x} fcw {:#x} fsw {:#x} tags {:#x}\n    memory {:02x?} rcx {:#x}",
        case.code,
        case.bytes,
        before.fx.xmm[1],
        before.fx.xmm[2],
        before.fx.mxcsr,
        before.fx.st[0],
        before.fx.st[1],
        before.fx.st[3],
        before.fx.fcw,
        before.fx.fsw,
        before.fx.tags,
        &before.memory[..16],
        before.regs[1],
    )
}

/// Integer instructions, and those of the system, that need an SSE set: other tests' matter.
fn is_vector(code: Code) -> bool {
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let others = [
        "prefetch", "fence", "pause", "crc32", "popcnt", "clflush", "monitor", "mwait", "ldmxcsr",
        "stmxcsr", "movnti",
    ];
    !others.iter().any(|other| name.contains(other))
}

#[test]
fn mmx_and_sse_as_the_host_has_them() {
    use CpuidFeature as F;
    let features = [
        F::MMX,
        F::SSE,
        F::SSE2,
        F::SSE3,
        F::SSSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::FPU,
    ];
    let wanted = |code: Code| is_vector(code) && !code.cpuid_features().contains(&F::FPU);
    compare(forms(&features, wanted), false, |code, _, ours, theirs| {
        let name = format!("{:?}", code.mnemonic());
        // Approximations: each vendor has its own.
        if matches!(name.as_str(), "Rcpps" | "Rcpss" | "Rsqrtps" | "Rsqrtss") {
            close(ours.fx.xmm[1], theirs.fx.xmm[1], &name);
            ours.fx.xmm[1] = theirs.fx.xmm[1];
        }
    });
}

/// Approximations differ by what the vendors promise at most.
fn close(ours: u128, theirs: u128, name: &str) {
    for n in 0..4 {
        let [a, b] = [ours, theirs].map(|v| f32::from_bits((v >> (n * 32)) as u32));
        // At the least normal number one may be flushed to zero.
        let flushed = a.abs() <= f32::MIN_POSITIVE && b.abs() <= f32::MIN_POSITIVE;
        let near = flushed || a.to_bits() == b.to_bits() || (a / b - 1.0).abs() < 1.0 / 1024.0;
        assert!(near || a.is_nan() && b.is_nan(), "{name}: {a} {b}");
    }
}

/// Instructions whose results vendors disagree on, or that are our own choice.
const TRANSCENDENTAL: [&str; 8] = [
    "F2xm1", "Fyl2x", "Fyl2xp1", "Fptan", "Fpatan", "Fsin", "Fcos", "Fsincos",
];

#[test]
fn x87_as_the_host_has_it() {
    use CpuidFeature as F;
    let features = [F::FPU, F::FPU287, F::FPU387, F::CMOV, F::SSE3];
    let wanted = |code: Code| {
        let name = format!("{:?}", code.mnemonic());
        let set = code.cpuid_features();
        let is_x87 = set
            .iter()
            .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387));
        is_x87 && !TRANSCENDENTAL.contains(&name.as_str())
    };
    compare(forms(&features, wanted), true, |code, _, ours, theirs| {
        // Pointers and opcode of the last instruction, which we do not keep.
        let name = format!("{code:?}");
        let pointers = match name.as_str() {
            "Fnstenv_m28byte" | "Fnsave_m108byte" => [12..18, 20..26].to_vec(),
            "Fnstenv_m14byte" | "Fnsave_m94byte" => [6..10, 10..14].to_vec(),
            _ => Vec::new(),
        };
        for n in pointers.into_iter().flatten() {
            theirs.memory[n] = 0;
            ours.memory[n] = 0;
        }
    });
}

/// The place of a number among all numbers of its sign: neighbours differ by one.
fn ordinal(value: u128) -> u128 {
    value >> 64 << 63 | value & ((1 << 63) - 1)
}

/// About the number a register holds.
fn approximate(value: u128) -> f64 {
    let exponent = (value >> 64 & 0x7fff) as i32 - 0x3fff - 63;
    let magnitude = value as u64 as f64 * f64::from(exponent.clamp(-1000, 900)).exp2();
    if value >> 79 & 1 != 0 {
        -magnitude
    } else {
        magnitude
    }
}

/// Transcendental functions: everything but the last place of the result and what follows from it (which
/// way it was rounded, and whether at all), where they are defined. Angles the host reduces by too short a
/// pi are compared roughly, large ones not at all.
#[test]
fn transcendental_functions_are_near_the_hosts() {
    let wanted = |code: Code| {
        let name = format!("{:?}", code.mnemonic());
        TRANSCENDENTAL.contains(&name.as_str())
    };
    let features = [CpuidFeature::FPU, CpuidFeature::FPU387];
    compare(
        forms(&features, wanted),
        true,
        |code, before, ours, theirs| {
            for state in [&mut *ours, &mut *theirs] {
                state.fx.fsw &= !(0x200 | 1 << 5);
                if state.fx.fsw & !before.fx.fcw & 0x3f == 0 {
                    state.fx.fsw &= !0x8080;
                }
            }
            // A logarithm of a power of two is exact here.
            if matches!(code, Code::Fyl2x | Code::Fyl2xp1) {
                theirs.fx.fsw = theirs.fx.fsw & !0x10 | ours.fx.fsw & 0x10;
            }
            let x = before.fx.st[0];
            let exponent = x >> 64 & 0x7fff;
            let trigonometric =
                matches!(code, Code::Fsin | Code::Fcos | Code::Fsincos | Code::Fptan);
            if code == Code::Fyl2xp1 && x >> 79 != 0 && exponent >= 0x3fff {
                *ours = *theirs;
                return;
            }
            for n in 0..2 {
                let (a, b) = (ours.fx.st[n], theirs.fx.st[n]);
                let mut near = ordinal(a).abs_diff(ordinal(b)) <= 2;
                if trigonometric && exponent >= 0x3ffe {
                    let (c, d) = (approximate(a), approximate(b));
                    near |= (c - d).abs() < 1e-9 * (1.0 + c * c) || exponent > 0x3fff + 30;
                }
                if near {
                    ours.fx.st[n] = b;
                }
            }
        },
    );
}
