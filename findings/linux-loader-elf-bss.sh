#!/usr/bin/env bash
# linux-loader 0.14.0: an ELF's .bss is neither cleared nor always counted.
#
# One would guess: `Elf::load` leaves memory as the ELF says: bytes from p_filesz to p_memsz "are defined to
# hold the value 0" (System V ABI, chapter 5), and `kernel_end` is behind all of them.
# What happens: only bytes of the file are written. In fresh memory that does not show; in memory that was
# used, as for a guest that is restarted, variables begin with what the last run left. And a segment of
# .bss alone (p_filesz 0) is passed over, so that `kernel_end` can lie before it.
# Where: src/loader/elf/mod.rs, `if phdr.p_type != PT_LOAD || phdr.p_filesz == 0 { .. continue }`, and the
# read of p_filesz bytes after it.
# So clear memory before loading a second time, and go through the program headers for the end.
# The ELF is made here by gcc and ld: text at 1 MiB, data and some .bss at 2 MiB, .bss alone at 3 MiB.
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
linux-loader = { version = "=0.14.0", features = ["elf"] }
vm-memory = { version = "=0.18.0", features = ["backend-mmap"] }
TOML
cat > src/main.rs <<'RUST'
use linux_loader::loader::{Elf, KernelLoader};
use std::fs::File;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn main() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let path = std::env::args().nth(1).unwrap();
    let load = || Elf::load(&memory, None, &mut File::open(&path).unwrap(), None).unwrap();
    let (data, bss) = (GuestAddress(0x20_0000), GuestAddress(0x20_0008));
    let first = load();
    let fresh: [u64; 2] = [memory.read_obj(data).unwrap(), memory.read_obj(bss).unwrap()];
    // The guest runs and writes its two variables; then it is restarted.
    memory.write_obj(77u64, data).unwrap();
    memory.write_obj(77u64, bss).unwrap();
    load();
    let again: [u64; 2] = [memory.read_obj(data).unwrap(), memory.read_obj(bss).unwrap()];
    println!("linux-loader 0.14.0, an ELF of gcc and ld, loaded, run, and loaded again");
    println!("expected: .data and .bss hold 5 and 0 both times; kernel_end is 0x302000");
    println!("seen:     {fresh:?}, then {again:?}; kernel_end is {:#x}", first.kernel_end);
    let as_stated = fresh == [5, 0] && again == [5, 77] && first.kernel_end < 0x30_0000;
    std::process::exit(i32::from(!as_stated));
}
RUST
cat > guest.s <<'ASM'
.globl _start
.text
_start: hlt
.data
.quad 5
.bss
.skip 8
.section .late, "aw", @nobits
.skip 0x2000
ASM
gcc -nostdlib -static -Wl,--build-id=none -Wl,-Ttext=0x100000 -Wl,-Tdata=0x200000 -Wl,-Tbss=0x200008 \
    -Wl,--section-start=.late=0x300000 -o guest guest.s
readelf -lW guest | grep LOAD
cargo run --quiet --release --target-dir target -- guest
