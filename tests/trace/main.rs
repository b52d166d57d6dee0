//! Debian's kernel, unmodified, instruction by instruction on the software engine and on QEMU, from the same
//! memory and registers; told at the first difference.
//!
//! ```text
//!  kernel    the kernel, as it comes (it unpacks itself) and unpacked (`vmlinux`)
//!  ours      our side
//!  firmware  what brings QEMU's processor to where ours begins
//!  qemu      QEMU, and its registers before each instruction
//!  compare   both side by side
//! ```
//!
//! `TANDEM_TRACE_INSTRUCTIONS=50000000` compares so many instructions of each (300000).

#[path = "../common/mod.rs"]
mod common;
#[path = "../linux/images.rs"]
#[allow(dead_code, reason = "this test uses its own part of it")]
mod images;

mod compare;
mod firmware;
mod kernel;
mod ours;
mod qemu;

use common::skipped::skip_this;
use common::{machine, text};
use compare::{Comparison, Tally, long_repeated};
use guests::Image;
use ours::{Beginning, Ours};
use qemu::Qemu;
use std::time::Instant;
use vmm::cpu::CpuModel;

/// Instructions compared where nothing else is asked for: a few seconds.
const USUAL: u64 = 300_000;
/// Repeated instructions with more iterations are compared by what they leave, not by each of these.
const MANY: u64 = 1000;
/// After so many more it is told how far the comparison is.
const TELL: u64 = 5_000_000;

/// How many instructions are to be compared.
fn instructions() -> u64 {
    testing::numbers::number("TANDEM_TRACE_INSTRUCTIONS").unwrap_or(USUAL)
}

/// Debian's kernel with an initrd; `None` where this cannot be run, which is counted as skipped.
fn debian() -> Option<Image> {
    if let Some(why) = qemu::missing() {
        skip_this(&why);
        return None;
    }
    let path = images::redis()?;
    Some(guests::load(text(&path), None).expect("an image"))
}

/// Both at their first instruction.
fn begin(image: &Image, kernel: Option<&[u8]>, cpu: CpuModel) -> Result<Comparison, String> {
    let beginning = Beginning::of(image, kernel, cpu);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (memory, bios) = (folder.path().join("memory"), folder.path().join("bios"));
    beginning.write_memory(&memory);
    std::fs::write(&bios, firmware::image(&beginning.state)).expect("room for the firmware");
    let mut scout = Ours::new(Beginning::of(image, kernel, cpu));
    let hidden = long_repeated(&mut scout, USUAL, MANY);
    drop(scout);
    let qemu = Qemu::start(&memory, beginning.mib, &bios, cpu, &hidden);
    // QEMU has opened its files once it prints registers.
    Comparison::new(Ours::new(beginning), qemu, hidden)
}

/// [`begin`] with Debian's kernel unpacked; `None` where that cannot be.
fn unpacked() -> Option<Comparison> {
    let image = debian()?;
    let kernel = match kernel::unpack(image.bytes().kernel) {
        Ok(kernel) => kernel,
        Err(why) => {
            skip_this(&why);
            return None;
        }
    };
    let comparison = begin(&image, Some(&kernel), CpuModel::V2);
    Some(comparison.expect("the same first state"))
}

/// Compares as many instructions as are asked for, and tells what was compared.
fn compare(name: &str, comparison: &mut Comparison) {
    let (begun, count) = (Instant::now(), instructions());
    let mut done = 0;
    while done < count {
        let part = TELL.min(count - done);
        if let Err(difference) = comparison.run(part) {
            tell(name, &comparison.tally, begun);
            panic!("{name}: {difference}");
        }
        done += part;
        if done < count {
            println!("{name}: {done} of {count} instructions");
        }
    }
    tell(name, &comparison.tally, begun);
}

fn tell(name: &str, tally: &Tally, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{name}: {} instructions, {} with iterations, {} without record, {} interrupts, {seconds:.1} s, \
         {:.0} a second",
        tally.instructions,
        tally.records,
        tally.hidden,
        tally.interrupts,
        tally.records as f64 / seconds
    );
    println!("  answers of QEMU: {:?}", tally.answers);
    println!("  undefined flags: {:?}", tally.undefined);
}

#[test]
fn a_kernel_that_unpacks_itself_runs_as_on_qemu() {
    let _machine = machine();
    let Some(image) = debian() else { return };
    let mut comparison = begin(&image, None, CpuModel::V1).expect("the same first state");
    compare("bzImage", &mut comparison);
}

#[test]
fn an_unpacked_kernel_boots_as_on_qemu() {
    let _machine = machine();
    let Some(mut comparison) = unpacked() else {
        return;
    };
    compare("vmlinux", &mut comparison);
}

#[test]
fn a_difference_is_told_at_the_instruction_that_makes_it() {
    let _machine = machine();
    let Some(mut comparison) = unpacked() else {
        return;
    };
    comparison.run(100).expect("equal so far");
    comparison.ours.soft.cpu.regs[15] ^= 1;
    let difference = comparison.run(1).expect_err("a register was altered");
    for words in [
        "registers differ, after instruction 100, at 0x",
        "r15 ",
        "<--",
    ] {
        assert!(difference.contains(words), "'{words}' in: {difference}");
    }
}
