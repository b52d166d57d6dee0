//! Builds the guests, and the programs that run inside Linux guests, and makes their images part of this crate.
//!
//! Both are cargo workspaces of their own (other target options, other lints), so this runs cargo on them, in
//! target folders shared by all profiles of the host build.
//!
//! In the repository they are built where they are. A package of this crate has no room for packages within it:
//! it has their files by way of the links in `sources`, with each `Cargo.toml` under another name, and they are
//! laid out as cargo wants them first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guests whose images become part of the program.
const GUESTS: [&str; 6] = ["counter", "clock", "echo", "disk", "kv", "reset"];
/// The programs that do.
const PROGRAMS: [&str; 1] = ["cpu"];
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What is in the guests' folder and none of the guests' workspace.
const OTHERS: [&str; 4] = ["builtin", "image", "programs", "target"];
/// What a `Cargo.toml` is called in `sources`.
const MANIFEST: &str = "manifest.toml";

fn main() {
    let own = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(var("OUT_DIR"));
    // OUT_DIR is TARGET_DIR/PROFILE/build/NAME-HASH/out.
    let target = out.ancestors().nth(4).expect("OUT_DIR is deep");
    let guests = match own.parent() {
        Some(folder) if folder.join("link.ld").exists() => folder.to_owned(),
        _ => {
            let sources = own.join("sources");
            println!("cargo:rerun-if-changed={}", sources.display());
            let folder = out.join("guests");
            lay_out(&sources, &folder);
            folder
        }
    };
    for (name, folder, images) in [
        ("guests", guests.clone(), &GUESTS[..]),
        ("programs", guests.join("programs"), &PROGRAMS),
    ] {
        if !folder.starts_with(&out) {
            watch(&folder);
        }
        let target = target.join(name);
        build(&folder, &target);
        for name in images {
            let image = target.join(TARGET).join("release").join(name);
            fs::copy(&image, out.join(name))
                .unwrap_or_else(|e| panic!("image {}: {e}", image.display()));
        }
    }
}

/// Has cargo run this again when a workspace changes.
fn watch(workspace: &Path) {
    for entry in entries(workspace) {
        if !OTHERS.iter().any(|other| entry.ends_with(other)) {
            println!("cargo:rerun-if-changed={}", entry.display());
        }
    }
}

/// Copies `from` to `to`, each manifest under the name cargo knows. What is there already and the same keeps its
/// time, so that it need not be built again.
fn lay_out(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap_or_else(|e| panic!("{}: {e}", to.display()));
    for entry in entries(from) {
        let name = entry.file_name().expect("an entry has a name");
        if entry.is_dir() {
            lay_out(&entry, &to.join(name));
            continue;
        }
        let copy = to.join(if name == MANIFEST {
            "Cargo.toml".as_ref()
        } else {
            name
        });
        let bytes = fs::read(&entry).unwrap_or_else(|e| panic!("{}: {e}", entry.display()));
        if fs::read(&copy).ok().as_ref() != Some(&bytes) {
            fs::write(&copy, bytes).unwrap_or_else(|e| panic!("{}: {e}", copy.display()));
        }
    }
}

/// The paths of what is in a folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.flatten().map(|entry| entry.path()).collect()
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
            "--config",
            "options.toml",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "{} does not build", workspace.display());
}
