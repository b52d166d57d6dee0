//! Builds the guests and makes their images part of the program.
//!
//! The guests are a cargo workspace of their own (other target options, other lints), so this runs cargo
//! on it, in a target folder shared by all profiles of the host build.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The guests whose images become part of the program.
const GUESTS: [&str; 5] = ["counter", "clock", "echo", "disk", "kv"];
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(var("OUT_DIR"));
    let guests = root.join("guests");
    for entry in std::fs::read_dir(&guests)
        .expect("guests/ is there")
        .flatten()
    {
        if entry.file_name() != "target" {
            println!("cargo:rerun-if-changed={}", entry.path().display());
        }
    }
    // OUT_DIR is TARGET_DIR/PROFILE/build/NAME-HASH/out.
    let target = out
        .ancestors()
        .nth(4)
        .expect("OUT_DIR is deep")
        .join("guests");
    build(&guests, &target);
    for guest in GUESTS {
        let image = target.join(TARGET).join("release").join(guest);
        std::fs::copy(&image, out.join(guest))
            .unwrap_or_else(|e| panic!("guest image {}: {e}", image.display()));
    }
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn build(guests: &Path, target: &Path) {
    let mut cargo = Command::new(var("CARGO"));
    // What cargo set for this build would change that one.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let leaks = [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
        ];
        let leaks_too = [
            "CARGO_CFG_",
            "CARGO_FEATURE_",
            "CARGO_PKG_",
            "CARGO_PROFILE_",
            "CARGO_BUILD_",
        ];
        if leaks.contains(&name.as_str()) || leaks_too.iter().any(|p| name.starts_with(p)) {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(guests)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the guests do not build");
}
