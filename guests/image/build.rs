//! A digest of this crate's own sources, which decide how an image comes out of the same packages: what was built by
//! others is not taken for it.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn main() {
    let mut files = Vec::new();
    for folder in ["src", "bundle/src"] {
        println!("cargo::rerun-if-changed={folder}");
        add_files(Path::new(folder), &mut files);
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let bytes = std::fs::read(&file).expect("a source of this crate is read");
        digest.update(file.to_string_lossy().as_bytes());
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(&bytes);
    }
    let digest: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("cargo::rustc-env=TANDEM_IMAGE_SOURCES={digest}");
}

/// The files in a folder and those in it.
fn add_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of this crate is read") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            add_files(&path, files);
        } else {
            files.push(path);
        }
    }
}
