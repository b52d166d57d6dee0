//! The kernels. A unit of each is some tens of millions of instructions.

mod branches;
mod bytecode;
mod calls;
mod code;
mod float;
mod integer;
mod kernel;
mod memory;

/// What a unit of work came to.
#[derive(Clone, Copy)]
pub struct Done {
    /// How much was done, in whatever the kernel counts.
    pub items: u64,
    /// Of what was computed.
    pub checksum: u64,
}

/// One kind of work.
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// What is not measured.
    pub prepare: fn(),
    /// One unit of work, by its number.
    pub work: fn(u64) -> Done,
}

const fn kernel(name: &'static str, prepare: fn(), work: fn(u64) -> Done) -> Kernel {
    Kernel {
        name,
        prepare,
        work,
    }
}

fn nothing() {}

/// All of them.
pub static KERNELS: [Kernel; 9] = [
    kernel("integer", nothing, integer::work),
    kernel("memory", memory::prepare, memory::work),
    kernel("branches", nothing, branches::work),
    kernel("bytecode", nothing, bytecode::work),
    kernel("calls", nothing, calls::work),
    kernel("code", nothing, code::work),
    kernel("float", nothing, float::work),
    kernel("syscalls", nothing, kernel::syscalls),
    kernel("faults", nothing, kernel::faults),
];

/// A step of a linear congruential generator (Knuth's MMIX): the high bits are good.
fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 16
}

/// Mixes a value into a checksum.
fn mix(sum: u64, value: u64) -> u64 {
    (sum.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
