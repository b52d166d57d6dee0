//! Where a Linux kernel is, which moves by another offset in each boot (KASLR).
//!
//! The kernel maps its image in the region of its own, from its first page (`_text`) on, and nothing before it
//! (Linux, arch/x86/kernel/head64.c). So the first page mapped there says how far it is from where it was linked to.

use vmm::soft::looking::Debuggable;

/// The region of the image, and where one that is not moved begins: `__START_KERNEL_map`, and it with
/// `CONFIG_PHYSICAL_START` of x86-64.
const REGION: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;
const LINKED: u64 = 0xffff_ffff_8100_0000;
/// It is moved by multiples of this (`CONFIG_PHYSICAL_ALIGN`), and mapped by pages of this size.
const ALIGN: usize = 2 << 20;

/// By how much the kernel of the guest on `engine` is moved, modulo 2^64; `None` where no kernel is mapped (yet).
pub fn offset(engine: &impl Debuggable) -> Option<u64> {
    let mapped = |at: &u64| engine.look(*at, &mut [0]) == 1;
    let text = REGION.step_by(ALIGN).find(mapped)?;
    Some(text.wrapping_sub(LINKED))
}

/// What to tell gdb, so that it finds the kernel's symbols.
pub fn words(offset: u64) -> String {
    match offset {
        0 => "the kernel is where it was linked to: symbol-file vmlinux".into(),
        offset => format!("the kernel is moved by {offset:#x}: symbol-file vmlinux -o {offset:#x}"),
    }
}
