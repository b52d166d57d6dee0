//! What a bare-metal guest of Tandem stands on.
//!
//! ```text
//!  program (entry!)                                            ring 3, counted by the block clock
//!    │ net (smoltcp)   virtio::{net, block}   console  pit  rtc  control
//!    ├──────────────────────────────────────────────────────────────────
//!    │ boot.s: interrupts noted, RDTSC answered, idle          ring 0, a few instructions each
//!  machine
//! ```
//!
//! A guest is one program on one CPU without threads. Whatever happens outside reaches it in one of
//! two ways: it asks (a port, a register), or an interrupt is noted for it to find
//! ([`interrupt::notes`], [`interrupt::idle`]).
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod args;
#[cfg(not(test))]
pub mod boot;
#[cfg(not(test))]
pub mod console;
#[cfg(not(test))]
pub mod control;
#[cfg(not(test))]
mod heap;
#[cfg(not(test))]
pub mod interrupt;
mod mem;
#[cfg(not(test))]
pub mod net;
#[cfg(not(test))]
pub mod pit;
pub mod port;
pub mod rtc;
#[cfg(not(test))]
mod start_info;
#[cfg(not(test))]
pub mod virtio;

pub use args::Args;

/// Exit status of a guest that panicked.
pub const PANIC_STATUS: u32 = 102;

/// Names the function a guest begins with: `fn(&Args) -> u32`, whose value is the exit status.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(args: &$crate::Args) -> u32 {
            let main: fn(&$crate::Args) -> u32 = $main;
            main(args)
        }
    };
}

#[cfg(not(test))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("{info}");
    control::power_off(PANIC_STATUS)
}
