//! What the machine tells about itself: PVH's `hvm_start_info`
//! (<https://xenbits.xen.org/docs/unstable/misc/pvh.html>).

/// `hvm_start_info`, version 1.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `hvm_memmap_table_entry`.
#[repr(C)]
struct MemoryRange {
    start: u64,
    len: u64,
    kind: u32,
    reserved: u32,
}

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;
/// More entries than any machine has.
const ENTRIES_MAX: u32 = 128;

/// The end of the RAM range that holds `address`; `None` if the machine names none.
#[must_use]
pub fn end_of_ram_at(address: u64) -> Option<u64> {
    let info = core::ptr::with_exposed_provenance::<StartInfo>(abi::START_INFO as usize);
    // SAFETY: the page is mapped, and holds plain integers whatever they are.
    let info = unsafe { &*info };
    if info.magic != MAGIC || info.version < 1 {
        return None;
    }
    let table = core::ptr::with_exposed_provenance::<MemoryRange>(info.memory_map as usize);
    (0..info.memory_map_entries.min(ENTRIES_MAX)).find_map(|i| {
        // SAFETY: the machine, which the guest has to believe, says that the entry is there.
        let range = unsafe { &*table.add(i as usize) };
        let end = range.start.saturating_add(range.len);
        (range.kind == RAM && (range.start..end).contains(&address)).then_some(end)
    })
}
