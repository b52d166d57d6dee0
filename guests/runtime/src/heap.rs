//! The heap: all RAM behind the image.

use core::alloc::{GlobalAlloc, Layout};
use talc::{TalcCell, source::Manual};

/// The one allocator of a guest.
///
/// Deterministic: what it does depends on the sequence of calls alone.
struct Heap(TalcCell<Manual>);

// SAFETY: a guest has one CPU and one thread, and interrupts run no Rust code.
unsafe impl Sync for Heap {}

#[cfg_attr(not(test), global_allocator)]
static HEAP: Heap = Heap(TalcCell::new(Manual));

// SAFETY: passes every call on to an allocator that keeps the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised by the caller.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as promised by the caller.
        unsafe { self.0.realloc(pointer, layout, new_size) }
    }
}

unsafe extern "C" {
    /// End of the image, from the linker script.
    static image_end: u8;
}

/// Gives the allocator the RAM from the end of the image on. Called once, at boot.
pub(crate) fn init() {
    let start = (&raw const image_end).expose_provenance();
    let end = crate::start_info::end_of_ram_at(start as u64)
        .expect("the machine names no RAM where the image lies")
        .min(crate::boot::RAM_LIMIT);
    // SAFETY: this is RAM, and nobody else uses any of it.
    let heap = unsafe {
        HEAP.0.claim(
            core::ptr::with_exposed_provenance_mut(start),
            end as usize - start,
        )
    };
    assert!(
        heap.is_some(),
        "too little memory for a heap: {start:#x} to {end:#x}"
    );
}
