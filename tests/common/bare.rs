//! Little bare-metal guests, put together byte by byte.

/// Where a little guest is loaded and entered.
pub const ENTRY: u64 = 0x20_1000;
/// Offset of its code in the file.
const CODE: usize = 0x1000;

/// An ELF64 executable of one segment, all of it `code` (System V ABI, "Object Files").
#[must_use]
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let (executable, x86_64, header, segment) = (2_u16, 62_u16, 64_u16, 56_u16);
    file.extend([executable, x86_64].iter().flat_map(|v| v.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([ENTRY, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    let sizes = [header, segment, 1, 64, 0, 0];
    file.extend(sizes.iter().flat_map(|v| v.to_le_bytes()));
    let (load, read_write_execute) = (1_u32, 7_u32);
    file.extend(
        [load, read_write_execute]
            .iter()
            .flat_map(|v| v.to_le_bytes()),
    );
    let length = code.len() as u64;
    let places = [CODE as u64, ENTRY, ENTRY, length, length, 0x1000];
    file.extend(places.iter().flat_map(|v| v.to_le_bytes()));
    file.resize(CODE, 0);
    file.extend(code);
    file
}

/// Offset of the tick's handler in the image, and of the interrupt table.
const HANDLER: usize = 0x800;
const TABLE: usize = 0x1000;
/// The interrupt the tick is made.
const VECTOR: u8 = 0x20;

/// A guest that takes `ticks` timer ticks (at most 127), printing a dot at each, and then executes `last`.
/// Also the address of that.
#[must_use]
pub fn after_ticks(ticks: u8, last: &[u8]) -> (Vec<u8>, u64) {
    let mut code = Vec::new();
    // lidt of the ten bytes before the table.
    code.extend([0x0f, 0x01, 0x1d]);
    code.extend(((TABLE - 10 - 7) as u32).to_le_bytes());
    let mut out = |port: u8, values: &[u8]| {
        for value in values {
            code.extend([0xb0, *value, 0xe6, port]); // mov al, value; out port, al
        }
    };
    // The first 8259A: ICW1 to ICW4, then all but its input 0 masked.
    out(0x20, &[0x11]);
    out(0x21, &[VECTOR, 4, 1, 0xfe]);
    // The timer's channel 0, a rate generator of about a thousand hertz: 1193.
    out(0x43, &[0x34]);
    out(0x40, &[0xa9, 0x04]);
    code.extend([0x31, 0xdb]); // xor ebx, ebx
    let again = code.len();
    code.extend([0xfb, 0xf4]); // sti; hlt
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee]); // out of a dot to the console
    code.extend([0x83, 0xfb, ticks, 0x72]); // cmp ebx, ticks; jb again
    let back = again as i64 - (code.len() as i64 + 1);
    code.push(i8::try_from(back).expect("a short loop") as u8);
    code.push(0xfa); // cli
    let at = ENTRY + code.len() as u64;
    code.extend(last);
    assert!(code.len() <= HANDLER);
    code.resize(HANDLER, 0xcc);
    // inc ebx; end of interrupt; iretq
    code.extend([0xff, 0xc3, 0xb0, 0x20, 0xe6, 0x20, 0x48, 0xcf]);
    code.resize(TABLE - 10, 0);
    code.extend(((VECTOR as u16 + 1) * 16 - 1).to_le_bytes());
    code.extend((ENTRY + TABLE as u64).to_le_bytes());
    code.resize(TABLE + usize::from(VECTOR) * 16, 0);
    // An interrupt gate: code segment 8, present.
    let handler = ENTRY + HANDLER as u64;
    let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    code.extend(low.to_le_bytes());
    code.extend((handler >> 32).to_le_bytes());
    (elf(&code), at)
}
