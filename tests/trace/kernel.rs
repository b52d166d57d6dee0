//! Debian's kernel, as it comes and unpacked.

use std::io::Write;
use std::process::{Command, Stdio};

/// How a kernel's payload may be packed: its first bytes, and the command that unpacks its standard input.
const PACKED: [(&[u8], &[&str]); 3] = [
    (b"\x02\x21\x4c\x18", &["lz4", "-dc"]),
    (b"\xfd7zXZ\0", &["xz", "-dc"]),
    (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"]),
];
/// Behind the packed bytes: the length of the unpacked ones (Linux, scripts/Makefile.lib: size_append).
const SIZE: usize = 4;

/// The `vmlinux` within a bzImage (Linux, Documentation/arch/x86/boot.rst: payload_offset, payload_length).
///
/// # Errors
/// If this host cannot unpack it.
pub fn unpack(bzimage: &[u8]) -> Result<Vec<u8>, String> {
    let word = |at: usize| {
        let bytes = bzimage[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let setup = (usize::from(bzimage[0x1f1]) + 1) * 512;
    let payload = &bzimage[setup + word(0x248)..][..word(0x24c) - SIZE];
    let (_, command) = PACKED
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .ok_or_else(|| format!("a payload packed as {:02x?}", &payload[..4]))?;
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{} cannot be run ({e})", command[0]))?;
    let mut input = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        // If it does not take all of it, there is no ELF file.
        scope.spawn(move || input.write_all(payload));
        child.wait_with_output().expect("its output can be read")
    });
    let elf = output.stdout;
    assert!(output.status.success(), "{command:?}: {}", output.status);
    assert!(elf.starts_with(b"\x7fELF"), "{command:?} made no ELF file");
    Ok(elf)
}
