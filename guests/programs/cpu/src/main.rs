//! Work for a processor, of one kind at a time, to hold engines beside each other: the same file runs
//! natively and in guests, on whatever executes them.
//!
//! Arguments: the kernels to run, joined by `+` (`all`), and how many units of work of each (1). Each kernel
//! makes ready, prints a line, works, and prints another:
//!
//! ```text
//! cpu: begin integer
//! cpu: end integer items=65536 checksum=0123456789abcdef ns=12345678
//! ```
//!
//! The checksum is of what was computed, and the same wherever instructions do what they should. `ns` is
//! processor time, by the kernel it runs on, whose clock in a guest need not be anybody's.
#![no_std]
#![no_main]

mod kernels;
mod sys;

use core::fmt::Write as _;
use kernels::{KERNELS, Kernel};
use sys::Line;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::print(b"cpu: panic\n");
    sys::exit(101)
}

/// # Safety
/// `stack` is what Linux gave: argc, argc pointers to texts, a null.
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the caller says what lies there.
    let word = |index: usize| unsafe {
        (index < *stack).then(|| core::ffi::CStr::from_ptr(*stack.add(1 + index) as *const i8))
    };
    let text = |index, default| word(index).map_or(Ok(default), |word| word.to_str());
    let (Ok(names), Ok(units)) = (text(1, "all"), text(2, "1")) else {
        sys::exit(64)
    };
    let Ok(units) = units.parse::<u32>() else {
        sys::exit(64)
    };
    let known = |name: &str| name == "all" || KERNELS.iter().any(|kernel| kernel.name == name);
    if !names.split('+').all(known) {
        sys::exit(64);
    }
    for kernel in &KERNELS {
        if names
            .split('+')
            .any(|name| name == "all" || name == kernel.name)
        {
            run(kernel, units);
        }
    }
    sys::exit(0)
}

fn run(kernel: &Kernel, units: u32) {
    (kernel.prepare)();
    let mut line = Line::new();
    // A line of these fits.
    let _ = writeln!(line, "cpu: begin {}", kernel.name);
    line.print();
    let begun = sys::cpu_ns();
    let mut items = 0u64;
    let mut checksum = 0u64;
    for unit in 0..units {
        let done = (kernel.work)(unit.into());
        items += done.items;
        checksum = checksum.rotate_left(9) ^ done.checksum;
    }
    let ns = sys::cpu_ns().saturating_sub(begun);
    let mut line = Line::new();
    let _ = writeln!(
        line,
        "cpu: end {} items={items} checksum={checksum:016x} ns={ns}",
        kernel.name
    );
    line.print();
}
