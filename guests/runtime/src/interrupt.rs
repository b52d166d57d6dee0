//! Interrupts, as the program sees them: notes it polls.
//!
//! ```text
//! device ─▶ PIC ─▶ stub in ring 0: notes[irq] += 1, pending = 1 ─▶ program polls `notes`, or sleeps in `idle`
//! ```

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

unsafe extern "C" {
    /// How often each IRQ came, counted by the ring 0 stubs.
    static interrupt_notes: [AtomicU64; 16];
    /// Nonzero if any came since [`idle`] last returned or looked.
    static pending_note: AtomicU8;
}

/// The interrupt masks' I/O ports.
const MASTER_MASK: u16 = 0x21;
const SLAVE_MASK: u16 = 0xa1;

/// Lets `irq` (0 to 15) through. All are masked at boot.
///
/// # Panics
/// If there is no such IRQ.
pub fn enable(irq: u8) {
    assert!(irq < 16, "no IRQ {irq}");
    let port = if irq < 8 { MASTER_MASK } else { SLAVE_MASK };
    // SAFETY: the PICs change no memory.
    unsafe { crate::port::write(port, crate::port::read(port) & !(1 << (irq % 8))) }
}

/// How often `irq` has come so far. It can change between any two reads.
///
/// # Panics
/// If there is no such IRQ.
#[inline]
#[must_use]
pub fn notes(irq: u8) -> u64 {
    // SAFETY: the stubs write it by one instruction; it is never torn for this only CPU.
    unsafe { interrupt_notes[irq as usize].load(Relaxed) }
}

/// Waits until an interrupt has come since the last return from here.
///
/// A program polls all its notes and rings, then idles, and so misses nothing: what comes after its
/// poll makes `idle` return at once.
#[inline]
pub fn idle() {
    // SAFETY: the flag is a byte both sides access by single instructions; an interrupt between the
    // two only makes this return. The ring 0 stub of vector 3 keeps every register.
    unsafe {
        if pending_note.load(Relaxed) != 0 {
            pending_note.store(0, Relaxed);
            return;
        }
        core::arch::asm!("int3", options(nostack));
    }
}
