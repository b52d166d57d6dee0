//! Debian's kernel, as it comes and unpacked.

use std::io::Write;
use std::process::{Command, Stdio};

/// How a kernel's payload may be packed: its first bytes, and the command that unpacks its standard input.
const PACKED: [(&[u8], &[&str]); 3] = [
    (b"\xfd7zXZ\0", &["xz", "-dc", "--single-stream"]),
    (b"\x28\xb5\x2f\xfd", &["zstd", "-dcq"]),
    (b"\x1f\x8b", &["gzip", "-dcq"]),
];

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
    let payload = &bzimage[setup + word(0x248)..][..word(0x24c)];
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
        // Behind the packed bytes is the length of the unpacked: the command may stop before.
        scope.spawn(move || input.write_all(payload));
        child.wait_with_output().expect("its output can be read")
    });
    let elf = output.stdout;
    assert!(elf.starts_with(b"\x7fELF"), "{command:?} made no ELF file");
    Ok(elf)
}
