//! The kernel that is packed inside Debian's bzImage, unpacked and given as an ELF file.

use super::common::{core, os, text};
use super::images;
use super::recorded::{Log, Ran, replay_equals, start};
use bundle::Bundle;
use std::io::Write;
use std::process::{Command, Stdio};

/// Programs that unpack what begins with these bytes (Linux, lib/decompress.c).
const PACKERS: [(&[u8], &str); 4] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x1f\x8b", "gzip"),
];

/// The `vmlinux` of `kernel`; the reason if this host cannot unpack it.
///
/// Linux, Documentation/arch/x86/boot.rst: setup_sects at 0x1f1 (0 means 4), payload_offset at 0x248,
/// counted from the protected-mode code, payload_length at 0x24c, the last four bytes of which are the
/// length unpacked.
fn unpack(kernel: &[u8]) -> Result<Vec<u8>, String> {
    let word = |at: usize| {
        let bytes = kernel[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let setup = match kernel[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let from = (setup + 1) * 512 + word(0x248);
    let payload = &kernel[from..from + word(0x24c)];
    let known = PACKERS.iter().find(|(magic, _)| payload.starts_with(magic));
    let (_, program) = known.ok_or_else(|| format!("packed as {:02x?}", &payload[..4]))?;
    let (packed, length) = payload.split_at(payload.len() - 4);
    let child = Command::new(program)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|e| format!("{program}: {e}"))?;
    let mut stdin = child.stdin.take().expect("piped");
    let packed = packed.to_vec();
    let writing = std::thread::spawn(move || stdin.write_all(&packed));
    let output = child.wait_with_output().expect("it ends");
    writing.join().expect("no panic").expect("it reads all");
    assert!(output.status.success(), "{program}: {}", output.status);
    let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
    assert_eq!(
        output.stdout.len(),
        length as usize,
        "what {program} makes of it"
    );
    Ok(output.stdout)
}

#[test]
fn debians_kernel_boots_as_an_elf_file_too() {
    let _core = core();
    let Some(image) = images::plain() else { return };
    let bytes = std::fs::read(image).expect("the image");
    let bundle = Bundle::parse(&bytes).expect("an image");
    let vmlinux = match unpack(bundle.kernel) {
        Ok(vmlinux) => vmlinux,
        Err(why) => return super::common::skipped::skip_this(&why),
    };
    assert!(vmlinux.starts_with(b"\x7fELF"));
    let files = tempfile::tempdir().expect("a folder");
    let (kernel, initrd) = (files.path().join("vmlinux"), files.path().join("initrd"));
    std::fs::write(&kernel, vmlinux).expect("room for it");
    std::fs::write(&initrd, bundle.initrd).expect("room for it");
    let log = Log::new("vmlinux");
    let append = "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off tandem.ip=none \
                  tandem.run=echo,up,as,an,elf";
    let memory = bundle.manifest.memory_mib.to_string();
    let mut args = os(&[
        "record",
        text(&kernel),
        "--initrd",
        text(&initrd),
        "--cpu",
        "v2",
    ]);
    args.extend(os(&[
        "--on-reset",
        "end",
        "--memory",
        &memory,
        "--append",
        append,
    ]));
    args.extend(os(&["--json", "-o", text(&log)]));
    let recorded = Ran::of(start("recorder", args, &log));
    let said = recorded.console.iter().any(|line| line == "up as an elf");
    assert!(said, "{:?}", recorded.console);
    assert_eq!(recorded.report["exit_status"], 0);
    replay_equals(&recorded, &log);
}
