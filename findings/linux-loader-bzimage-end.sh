#!/usr/bin/env bash
# linux-loader 0.14.0: `kernel_end` of a bzImage is not where the kernel ends.
#
# One would guess: an initrd may be put at `KernelLoaderResult::kernel_end`; its documentation says "in case
# the device tree blob and initrd will be loaded adjacent to kernel image".
# What happens: for a bzImage it is the end of the packed file in memory. The kernel unpacks itself to
# pref_address and needs init_size bytes from there (setup header; Documentation/x86/boot.rst). That ends
# tens of MiB higher, so an initrd of some size at kernel_end is overwritten before anyone reads it.
# Where: src/loader/bzimage/mod.rs, `mem_offset + kernel_size`.
# So take the larger of it and pref_address + init_size.
# Kernel: Debian's, of linux-image-cloud-amd64.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"
[workspace]
[dependencies]
linux-loader = { version = "=0.14.0", features = ["bzimage"] }
vm-memory = { version = "=0.18.0", features = ["backend-mmap"] }
TOML
cat > src/main.rs <<'RUST'
use linux_loader::loader::{BzImage, KernelLoader};
use std::fs::File;
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn main() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 256 << 20)]).unwrap();
    let mut image = File::open(std::env::args().nth(1).unwrap()).unwrap();
    let loaded = BzImage::load(&memory, None, &mut image, None).unwrap();
    let header = loaded.setup_header.unwrap();
    let needed = header.pref_address + u64::from(header.init_size);
    println!("expected: kernel_end is at least pref_address + init_size, {needed:#x}");
    println!("seen:     kernel_end is {:#x}, {} KiB before that",
        loaded.kernel_end, needed.saturating_sub(loaded.kernel_end) >> 10);
    std::process::exit(i32::from(loaded.kernel_end >= needed));
}
RUST
image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | sed -n 1p)
apt-get download -qq -o APT::Sandbox::User=root "${image:?is the list of packages there (apt-get update)?}"
dpkg-deb -x ./*.deb kernel
echo "linux-loader 0.14.0, $image $(dpkg-deb -f ./*.deb Version)"
cargo run --quiet --release --target-dir target -- kernel/boot/vmlinuz-*
