//! What cannot run, or not for long: one clear line, and a recording that is whole up to there.

use super::common::bare::elf;
use super::common::{assert_one_line, core, tandem, text};
use super::images;
use bundle::Bundle;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

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
    let _core = core();
    // lidt of ten zero bytes, ud2; mov $0xfec00000, %eax, jmp *%rax; the same for 128 MiB, beyond RAM.
    let triple = b"\x0f\x01\x1d\x02\0\0\0\x0f\x0b\0\0\0\0\0\0\0\0\0\0";
    let cases: [(&[u8], &[&str]); 4] = [
        (triple, &["triple fault", "rip 0x20100", "[0f, 0b]", "ud2"]),
        // rsm, which raises #UD outside of system management mode.
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
        place.log_is_whole(words);
    }
}

#[test]
fn a_port_without_a_device_is_named() {
    let _core = core();
    let place = Place::new();
    // mov $0xacd, %dx; out %al, %dx
    let image = place.file("guest", &elf(b"\x66\xba\xcd\x0a\xee"));
    let words = ["0xacd", "no device: [ee] (out %al,%dx) at 0x201004"];
    assert_one_line(&place.record(&image, &[]), 1, &words);
    place.log_is_whole(&words);
}

#[test]
fn a_kernel_without_the_drivers_for_its_root_panics_and_asks_for_a_reset() {
    let _core = core();
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
        "--on-reset",
        "end",
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

/// Records `image` with `more`; the guest must ask for a reset after it said `why`, and its log be whole.
fn gives_up(place: &Place, image: &Path, more: &[&str], why: &str) {
    let output = place.record(image, more);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let last = errors.lines().last().unwrap_or_default();
    let wanted = format!("reset (status 3321) after it said \"{why}");
    assert!(last.contains(&wanted), "'{wanted}' in: {errors}");
    let replayed = tandem(&["replay", text(&place.path("log"))]);
    assert!(replayed.status.success(), "{replayed:?}");
}

#[test]
fn memory_too_small_to_unpack_the_image_is_said_by_the_kernel() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let place = Place::new();
    // The least memory that holds kernel and initrd as they come: with less nothing is begun.
    let begun = |mib: &u32| {
        let memory = mib.to_string();
        let _ = place.record(&image, &["--memory", &memory]);
        place.path("log").exists()
    };
    let least = (64..=512).step_by(8).find(begun).unwrap().to_string();
    let why = "Kernel panic - not syncing";
    gives_up(&place, &image, &["--memory", &least], why);
}

#[test]
fn a_kernel_without_a_network_driver_is_said_by_the_image() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let place = Place::new();
    let more = ["--append", "module_blacklist=virtio_net"];
    let why = "tandem: cannot go on: no network device";
    gives_up(&place, &image, &more, why);
}

#[test]
fn an_image_that_does_not_fit_or_is_broken_is_said() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let place = Place::new();
    let bytes = std::fs::read(&image).unwrap();
    let line_and_code = |image: &Path, more: &[&str], words: &[&str], code: i32| {
        assert_one_line(&place.record(image, more), code, words);
        assert!(!place.path("log").exists(), "no log of what never began");
    };
    let line = |image: &Path, more: &[&str], words: &[&str]| line_and_code(image, more, words, 1);
    line(&image, &["--memory", "64"], &["give it more", "64 MiB"]);
    line(&image, &["--memory", "16"], &["give it more", "16 MiB"]);
    line_and_code(&image, &["--clock", "blocks"], &["--clock instructions"], 2);
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
