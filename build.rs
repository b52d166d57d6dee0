//! Builds the guests, and the programs that run inside Linux guests, and makes their images part of the program.
//!
//! Both are cargo workspaces of their own (other target options, other lints), so this runs cargo on them, in
//! target folders shared by all profiles of the host build.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The guests whose images become part of the program.
const GUESTS: [&str; 6] = ["counter", "clock", "echo", "disk", "kv", "reset"];
/// The programs that do.
const PROGRAMS: [&str; 1] = ["cpu"];
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(var("OUT_DIR"));
    // OUT_DIR is TARGET_DIR/PROFILE/build/NAME-HASH/out.
    let target = out.ancestors().nth(4).expect("OUT_DIR is deep");
    for (workspace, images) in [("guests", &GUESTS[..]), ("programs", &PROGRAMS)] {
        let folder = root.join(workspace);
        for entry in std::fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .flatten()
        {
            if entry.file_name() != "target" {
                println!("cargo:rerun-if-changed={}", entry.path().display());
            }
        }
        let target = target.join(workspace);
        build(&folder, &target);
        for name in images {
            let image = target.join(TARGET).join("release").join(name);
            std::fs::copy(&image, out.join(name))
                .unwrap_or_else(|e| panic!("image {}: {e}", image.display()));
        }
    }
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn build(workspace: &Path, target: &Path) {
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
        .current_dir(workspace)
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
    assert!(status.success(), "{} does not build", workspace.display());
}
