//! The translator against the interpreter: from the same state both must end in the same one, to the last flag,
//! whatever they run and wherever they are stopped.
//!
//! Programs are made of any instructions the assembler knows, with random operands, registers and memory. Two
//! processors run each, one with the translator on and no block too cold for it, and are stopped after every count
//! of instructions. Compared are registers, flags, MMX, x87 and SSE, memory, the clock, why the run ended, and the
//! translations both remember.
//!
//! `TANDEM_TRANSLATED_CASES`: programs of each test. `TANDEM_TRANSLATED_SEED`: another seed.
//! `TANDEM_TRANSLATED_ONLY`: only codes whose name has this.

use crate::from_environment;
use crate::generate::Generator;
use crate::random::Random;
use crate::state::{ARENA, ARENA_LEN, AT, Case, Fx, State};
use crate::twins::{Rights, Twins};
use iced_x86::{Code, CpuidFeature as F, Encoder, OpKind, Register};

/// Instruction sets the model has.
const SETS: [F; 25] = [
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::POPCNT,
    F::MULTIBYTENOP,
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::FXSR,
    F::MOVBE,
    F::BMI1,
    F::LZCNT,
];

/// Instructions of 64-bit code whose bytes a generator can make.
fn codes() -> Vec<Code> {
    let only = std::env::var("TANDEM_TRANSLATED_ONLY").unwrap_or_default();
    Code::values()
        .filter(|code| code.op_code().is_instruction() && code.op_code().mode64())
        .filter(|code| code.cpuid_features().iter().all(|set| SETS.contains(set)))
        .filter(|code| format!("{code:?}").contains(&only))
        .collect()
}

fn seed() -> u64 {
    from_environment("TANDEM_TRANSLATED_SEED").unwrap_or(1)
}

fn programs(standard: u64) -> u64 {
    from_environment("TANDEM_TRANSLATED_CASES").unwrap_or(standard)
}

fn fill_fx(random: &mut Random) -> Fx {
    let mut fx = Fx::default();
    let double = |random: &mut Random| match random.below(4) {
        0 => f64::to_bits(random.below(1000) as f64 / 8.0),
        1 => random.pick(&[0, 1 << 63, 0x7ff0 << 48, 0x7ff8 << 48, 0x7ff4 << 48, 1]),
        _ => random.word(),
    };
    for xmm in &mut fx.xmm {
        *xmm = u128::from(double(random)) | u128::from(double(random)) << 64;
    }
    for st in &mut fx.st {
        st[..8].copy_from_slice(&random.word().to_le_bytes());
        st[8..10].copy_from_slice(&(random.word() as u16).to_le_bytes());
    }
    fx.ftw = random.next() as u8;
    // Rounding, DAZ and FTZ are any; exceptions are mostly masked.
    fx.mxcsr = random.next() as u32 & 0xe07f | 0x1f80;
    if random.percent(5) {
        fx.mxcsr &= !0x1f80 | random.next() as u32;
    }
    fx
}

/// A case of any of `codes`.
fn case(codes: &[Code], random: &mut Random) -> Option<Case> {
    let generator = Generator {
        bitness: 64,
        any_segment: true,
        fill_fx: Some(fill_fx),
    };
    (0..20).find_map(|_| generator.case(random.pick(codes), random))
}

/// Runs `bytes` on both from `state`, stopped after every count up to `count`; says where they differ.
fn compare(twins: &mut Twins, bytes: &[u8], state: &State, count: u64) -> Result<(), String> {
    for stop in 0..=count {
        twins.start(bytes, state);
        twins
            .run(stop)
            .map_err(|difference| format!("stopped after {stop}: {difference}"))?;
    }
    Ok(())
}

/// Every form alone, with a jump behind it, so that there is something to translate.
#[test]
fn every_form_alone() {
    let (codes, seed) = (codes(), seed());
    let mut all = Rights::ALL.map(Twins::new);
    for number in 0..programs(120_000) {
        let mut random = Random::new(seed, number);
        let twins = &mut all[(number / 7 % 3) as usize];
        if number % 512 < 21 {
            twins.fill(&mut random);
        }
        let code = codes[(number % codes.len() as u64) as usize];
        let Some(case) = case(&[code], &mut random) else {
            continue;
        };
        let mut bytes = case.bytes.clone();
        bytes.extend([0xeb, 0x00, 0x90, 0xeb, 0xfe]);
        if let Err(difference) = compare(twins, &bytes, &case.state, 4) {
            panic!(
                "seed {seed} program {number}: {}\n{difference}",
                case.instruction
            );
        }
    }
    for twins in &all {
        let (ran, all) = twins.ran_translated();
        assert!(
            2 * ran > all,
            "{ran} of {all} instructions ran as host code"
        );
    }
}

/// Several instructions in a row, in one block or several: what one leaves the next one finds.
#[test]
fn many_forms_in_a_row() {
    let (codes, seed) = (codes(), seed());
    let plain = plain(&codes);
    let mut all = Rights::ALL.map(Twins::new);
    for number in 0..programs(40_000) {
        let mut random = Random::new(seed ^ 0x5eed, number);
        let twins = &mut all[(number % 3) as usize];
        if number % 512 < 3 {
            twins.fill(&mut random);
        }
        let Some(mut first) = case(&codes, &mut random) else {
            continue;
        };
        put_stack(&mut first.state, &mut random);
        let mut bytes = first.bytes.clone();
        let mut text = vec![first.instruction.to_string()];
        for _ in 0..random.below(12) {
            if random.percent(15) {
                text.push("jmp .".to_owned());
                bytes.extend([0xeb, 0x00]);
            }
            // What the plan has code of its own for comes often.
            let from = if random.percent(75) { &plain } else { &codes };
            let next = case(from, &mut random).and_then(|case| in_place(case, &mut random));
            if let Some((instruction, more)) = next {
                text.push(instruction);
                bytes.extend(more);
            }
        }
        bytes.extend([0xeb, 0xfe]);
        let count = text.len() as u64 + 2;
        if let Err(difference) = compare(twins, &bytes, &first.state, count) {
            panic!(
                "seed {seed} program {number}: {}\n{difference}",
                text.join("; ")
            );
        }
    }
}

/// Blocks that lead to each other at random: loops, ways out of them, calls and returns, all in one page. They run
/// long enough to be translated together, and are stopped anywhere.
#[test]
fn blocks_that_lead_to_each_other() {
    let (codes, seed) = (codes(), seed());
    let plain = plain(&codes);
    let mut all = Rights::ALL.map(Twins::new);
    for number in 0..programs(6_000) {
        let mut random = Random::new(seed ^ 0xb10c, number);
        let twins = &mut all[(number % 3) as usize];
        if number % 512 < 3 {
            twins.fill(&mut random);
        }
        let Some(first) = case(&plain, &mut random) else {
            continue;
        };
        let (text, bytes) = maze(&plain, &mut random);
        let mut state = first.state;
        put_stack(&mut state, &mut random);
        // First far, so that all is known and translated.
        let mut stops = vec![400, 300, 350];
        stops.extend((0..10).map(|_| random.below(250)));
        for stop in stops {
            twins.start(&bytes, &state);
            if let Err(difference) = twins.run(stop) {
                panic!(
                    "seed {seed} program {number} stopped after {stop}:\n{}\n{bytes:02x?}\n{difference}",
                    text.join("\n")
                );
            }
        }
    }
    for twins in &all {
        let (ran, all) = twins.ran_translated();
        assert!(
            2 * ran > all,
            "{ran} of {all} instructions ran as host code"
        );
    }
}

/// Has RSP point into the arena mostly, often near the end of a page.
fn put_stack(state: &mut State, random: &mut Random) {
    let within = match random.below(4) {
        0 => 0xff0 + random.below(16),
        1 => 0xfc0 + random.below(8) * 8,
        _ => 0x800 + random.below(0x100) * 8,
    };
    if random.percent(90) {
        state.regs[4] = ARENA + within;
    }
}

/// A program of a few blocks that lead to each other; its text by blocks, and its bytes.
fn maze(codes: &[Code], random: &mut Random) -> (Vec<String>, Vec<u8>) {
    /// Bytes of a branch of 32 bits, padded.
    const BRANCH: usize = 6;
    let mut blocks = Vec::new();
    let mut room = 240;
    for _ in 0..1 + random.below(8) {
        let (mut text, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..random.below(5) {
            let next = case(codes, random).and_then(|case| in_place(case, random));
            if let Some((instruction, more)) = next {
                text.push(instruction);
                bytes.extend(more);
            }
        }
        if bytes.len() + BRANCH > room {
            break;
        }
        room -= bytes.len() + BRANCH;
        blocks.push((text, bytes));
    }
    let mut starts = vec![0];
    for (_, bytes) in &blocks {
        starts.push(starts[starts.len() - 1] + bytes.len() + BRANCH);
    }
    let (mut text, mut all) = (Vec::new(), Vec::new());
    for (n, (mut instructions, bytes)) in blocks.into_iter().enumerate() {
        all.extend(bytes);
        let to = random.below(starts.len() as u64) as usize;
        let branch = |opcode: &[u8], all: &mut Vec<u8>| {
            all.extend(opcode);
            let behind = all.len() as i64 + 4;
            all.extend(((starts[to] as i64 - behind) as i32).to_le_bytes());
        };
        let condition = random.below(16) as u8;
        instructions.push(match random.below(16) {
            0 => {
                branch(&[0xe8], &mut all);
                format!("call {to}")
            }
            1 => {
                all.push(0xc3);
                "ret".to_owned()
            }
            2 | 3 => {
                branch(&[0xe9], &mut all);
                format!("jmp {to}")
            }
            4 => "-".to_owned(),
            _ => {
                branch(&[0x0f, 0x80 | condition], &mut all);
                format!("jcc {condition} {to}")
            }
        });
        // What is behind a jump or a return is reached by others only.
        all.resize(starts[n + 1], 0x90);
        text.push(format!("{n}: {}", instructions.join("; ")));
    }
    all.extend([0xeb, 0xfe]);
    (text, all)
}

/// A case's instruction with its memory operand somewhere in the arena, whatever the registers are, and its bytes.
fn in_place(case: Case, random: &mut Random) -> Option<(String, Vec<u8>)> {
    let mut i = case.instruction;
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        i.set_memory_index(Register::None);
        i.set_memory_index_scale(1);
        let aligned = random.percent(80);
        if random.percent(30) {
            // On the stack, and that may be elsewhere by then.
            i.set_memory_base(Register::RSP);
            i.set_memory_displ_size(1);
            i.set_memory_displacement64(random.below(32));
        } else {
            i.set_memory_base(Register::None);
            i.set_memory_displ_size(8);
            let at = random.below(ARENA_LEN - 64) & if aligned { !15 } else { !0 };
            i.set_memory_displacement64(ARENA + at);
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&i, AT).ok()?;
    Some((i.to_string(), encoder.take_buffer()))
}

/// An instruction that unmasks exceptions, between two that heed them.
#[test]
fn what_unmasks_exceptions_is_heeded_at_once() {
    let mut twins = Twins::new(Rights::User);
    let bytes = [
        &[0x0f, 0x57, 0xc9][..],   // xorps %xmm1,%xmm1
        &[0xf3, 0x0f, 0x58, 0xc0], // addss %xmm0,%xmm0
        &[0x0f, 0xae, 0x10],       // ldmxcsr (%rax)
        &[0xf3, 0x0f, 0x5e, 0xc1], // divss %xmm1,%xmm0
        &[0xeb, 0xfe],             // jmp .
    ]
    .concat();
    let mut state = State {
        regs: [0; 16],
        rip: AT,
        flags: 0x202,
        fx: Fx::default(),
    };
    state.fx.xmm[0] = f32::to_bits(1.0).into();
    for mxcsr in [0x1f80_u32, 0x1d80] {
        twins.poke(&mxcsr.to_le_bytes());
        state.regs[0] = ARENA;
        compare(&mut twins, &bytes, &state, 6).unwrap();
    }
}

/// Those that the translator has code for, mostly.
fn plain(codes: &[Code]) -> Vec<Code> {
    use iced_x86::OpCodeOperandKind as K;
    let mut plain: Vec<Code> = codes.to_vec();
    plain.retain(|code| {
        let info = code.op_code();
        let strings = info
            .op_kinds()
            .iter()
            .any(|kind| matches!(kind, K::seg_rSI | K::es_rDI | K::seg_rBX_al | K::seg_rDI));
        let known = code.cpuid_features().iter().all(|set| {
            matches!(
                set,
                F::INTEL8086 | F::INTEL186 | F::INTEL386 | F::X64 | F::CMOV | F::SSE | F::SSE2
            )
        });
        known
            && !strings
            && !info.is_privileged()
            && code.flow_control() == iced_x86::FlowControl::Next
    });
    if plain.is_empty() {
        codes.to_vec()
    } else {
        plain
    }
}
