//! What cannot run, or not for long: one clear line, and a recording that is whole up to there.

use super::common::{assert_one_line, machine, tandem, text};
use super::images;
use std::path::{Path, PathBuf};
use std::process::Output;
use tandem::image::bundle::Bundle;
use tempfile::TempDir;

/// Where a little guest is loaded and entered.
const ENTRY: u64 = 0x20_1000;
/// Offset of its code in the file.
const CODE: usize = 0x1000;

/// An ELF64 executable of one segment, all of it `code` (System V ABI, "Object Files").
fn elf(code: &[u8]) -> Vec<u8> {
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

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Records the guest at `image` on the software engine, to `log`.
    fn record(&self, image: &Path, more: &[&str]) -> Output {
        let log = self.path("log");
        let args = ["record", text(image), "--engine", "soft", "--quiet", "-o"];
        tandem(&[&args[..], &[text(&log)], more].concat())
    }

    /// The log can be listed, and replayed up to where it ends, of which `words` are said.
    fn log_is_whole(&self, words: &[&str]) {
        let log = self.path("log");
        let listed = tandem(&["log", text(&log)]);
        assert!(listed.status.success(), "{listed:?}");
        let replayed = tandem(&["replay", text(&log), "--engine", "soft"]);
        assert_one_line(&replayed, 1, words);
    }
}

#[test]
fn a_guest_that_cannot_go_on_is_told_with_its_place() {
    let _machine = machine();
    // lidt of ten zero bytes, ud2; mov $0xfec00000, %eax, jmp *%rax; the same for 128 MiB, beyond RAM.
    let triple = b"\x0f\x01\x1d\x02\0\0\0\x0f\x0b\0\0\0\0\0\0\0\0\0\0";
    let cases: [(&[u8], &[&str]); 4] = [
        (triple, &["triple fault", "rip 0x20100", "[0f, 0b]", "ud2"]),
        // rsm, which outside of system management mode no guest needs.
        (b"\x0f\xaa", &["[0f, aa]", "rsm", "0x201000"]),
        (
            b"\xb8\0\0\xc0\xfe\xff\xe0",
            &["executes at 0xfec00000", "no RAM"],
        ),
        (
            b"\xb8\0\0\0\x08\xff\xe0",
            &["executes at 0x8000000", "no RAM"],
        ),
    ];
    for (code, words) in cases {
        let place = Place::new();
        let image = place.file("guest", &elf(code));
        assert_one_line(&place.record(&image, &[]), 1, words);
        place.log_is_whole(&["the log ends at entry 0", "without an end entry"]);
    }
}

#[test]
fn a_port_without_a_device_is_named() {
    let _machine = machine();
    let place = Place::new();
    // mov $0xacd, %dx; out %al, %dx
    let image = place.file("guest", &elf(b"\x66\xba\xcd\x0a\xee"));
    let words = ["0xacd", "no device", "rip 0x20100"];
    assert_one_line(&place.record(&image, &[]), 1, &words);
    place.log_is_whole(&["the log ends at entry 0", "without an end entry"]);
}

#[test]
fn a_kernel_without_the_drivers_for_its_root_panics_and_asks_for_a_reset() {
    let _machine = machine();
    let Some(image) = images::redis() else { return };
    let place = Place::new();
    let bytes = std::fs::read(image).unwrap();
    let kernel = place.file("vmlinuz", Bundle::parse(&bytes).unwrap().kernel);
    let append = "console=ttyS0 panic=-1 root=/dev/vda";
    let more = [
        "--memory",
        "256",
        "--cpu",
        "v2",
        "--no-reboot",
        "--append",
        append,
    ];
    let output = place.record(&kernel, &more);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.contains("reset (status 3321)"), "{errors}");
    // The guest ended by itself: its log is whole, and is replayed to its end.
    let log = place.path("log");
    let replayed = tandem(&["replay", text(&log), "--console"]);
    let console = String::from_utf8_lossy(&replayed.stdout);
    assert!(replayed.status.success(), "{replayed:?}");
    assert!(console.contains("Unable to mount root fs"), "{console}");
}

#[test]
fn an_image_that_does_not_fit_or_is_broken_is_said() {
    let _machine = machine();
    let Some(image) = images::redis() else { return };
    let place = Place::new();
    let bytes = std::fs::read(&image).unwrap();
    let line = |image: &Path, more: &[&str], words: &[&str]| {
        assert_one_line(&place.record(image, more), 1, words);
        assert!(!place.path("log").exists(), "no log of what never began");
    };
    line(&image, &["--memory", "64"], &["give it more", "64 MiB"]);
    line(&image, &["--memory", "16"], &["give it more", "16 MiB"]);
    line(&image, &["--clock", "blocks"], &["--clock instructions"]);
    let huge = place.file("initrd", &vec![0; 200 << 20]);
    let kernel = place.file("vmlinuz", Bundle::parse(&bytes).unwrap().kernel);
    let more = ["--initrd", text(&huge), "--memory", "128"];
    line(&kernel, &more, &["initrd", "128 MiB"]);
    for part in [7, 50, 99] {
        let cut = place.file("cut", &bytes[..bytes.len() / 100 * part]);
        line(&cut, &[], &["cut"]);
    }
    let mut other = elf(b"\xf4");
    // e_machine: AArch64.
    other[18] = 0xb7;
    line(&place.file("other", &other), &[], &["x86-64"]);
}
