//! Whatever bytes a guest runs, the host does not panic and the clock does not go back.

use soft::op::slot;
use soft::testing::{CODE, DATA, Machine, STACK};
use soft::{Exit, flags};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Code: bytes of any kind, with more of the prefixes and escapes than chance would give.
fn code(random: &mut Random, bytes: &mut [u8]) {
    const OFTEN: [u8; 16] = [
        0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x41, 0x67, 0xf0, 0x64, 0x38, 0x3a, 0xd9, 0xdd, 0xff, 0xf7,
        0x0f,
    ];
    for byte in bytes {
        let value = random.next();
        *byte = if value & 3 == 0 {
            OFTEN[(value >> 8) as usize % OFTEN.len()]
        } else {
            (value >> 8) as u8
        };
    }
}

fn registers(machine: &mut Machine, random: &mut Random) {
    let cpu = &mut machine.soft.cpu;
    for register in 0..16 {
        let value = match random.next() % 4 {
            0 => DATA + random.next() % 0x2000,
            1 => random.next() % 64,
            2 => random.next(),
            _ => CODE + random.next() % 0x2000,
        };
        cpu.set_slot(register, value);
    }
    cpu.set_slot(slot::RSP, STACK - 0x100);
    cpu.set_rflags(
        random.next() & (flags::ARITHMETIC | flags::DF | flags::TF | flags::AC | flags::IF),
    );
    cpu.halted = false;
    cpu.rip = CODE;
}

/// Runs random code from the same registers in ring `ring` of 64-bit code, or of 32-bit code.
fn fuzz(ring: u8, long: bool, seed: u64) {
    let rounds = std::env::var("TANDEM_FUZZ_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok());
    let mut random = Random(seed);
    for round in 0..rounds.unwrap_or(150) {
        let mut machine = Machine::new(&[], ring);
        if !long {
            machine.soft.cpu.segments[soft::cpu::segment::CS].attributes ^= 0x600;
        }
        let fresh = machine.soft.cpu.segments;
        let (control, cpl) = (machine.soft.cpu.control, machine.soft.cpu.cpl);
        for _ in 0..200 {
            let mut bytes = [0; 256];
            code(&mut random, &mut bytes);
            let cpu = &mut machine.soft.cpu;
            cpu.segments = fresh;
            (cpu.control, cpu.cpl) = (control, cpl);
            for (n, byte) in bytes.iter().enumerate() {
                cpu.physical.write(CODE + n as u64, (*byte).into(), 1);
            }
            registers(&mut machine, &mut random);
            machine.soft.forget();
            let mut clock = machine.soft.cpu.clock;
            for _ in 0..20 {
                let exit = machine.run(10);
                assert!(
                    machine.soft.cpu.clock >= clock,
                    "round {round} of seed {seed}"
                );
                clock = machine.soft.cpu.clock;
                match exit {
                    Exit::Read(_) => machine.soft.answer(random.next()),
                    Exit::Stopped | Exit::Write(_) => {}
                    _ => break,
                }
            }
        }
    }
}

#[test]
fn random_bytes_in_ring_3() {
    fuzz(3, true, 1);
}

#[test]
fn random_bytes_in_ring_0() {
    fuzz(0, true, 2);
}

#[test]
fn random_bytes_in_32_bit_code() {
    fuzz(3, false, 3);
    fuzz(0, false, 4);
}
