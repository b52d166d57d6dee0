#!/usr/bin/env bash
# virtio-queue 0.18.0: a driver that wants no interrupts is interrupted.
#
# One would guess: without VIRTIO_F_EVENT_IDX, `needs_notification` heeds the flag by which a driver says
# that it wants no interrupts (VIRTQ_AVAIL_F_NO_INTERRUPT; virtio 1.2, 2.7.7: "the device SHOULD NOT
# send a notification"). Linux sets it while it polls a ring.
# What happens: without event indices it is always true, and needs not even a buffer used. The reverse
# direction has it: `disable_notification` sets the device's flag for the driver.
# Where: src/queue.rs, a comment within `needs_notification`; the method's documentation says nothing.
# So a device that offers no event indices must read the flag itself, or sends every interrupt.
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
virtio-queue = "=0.18.0"
vm-memory = { version = "=0.18.0", features = ["backend-mmap"] }
TOML
cat > src/main.rs <<'RUST'
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bit 0 of the available ring's flags.
const NO_INTERRUPT: u16 = 1;

fn main() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let mut queue = Queue::new(16).unwrap();
    queue.set_desc_table_address(Some(0x1000), None);
    queue.set_avail_ring_address(Some(0x2000), None);
    queue.set_used_ring_address(Some(0x3000), None);
    queue.set_ready(true);
    assert!(queue.is_valid(&memory));

    memory.write_obj(NO_INTERRUPT, GuestAddress(0x2000)).unwrap();
    let none_used = queue.needs_notification(&memory).unwrap();
    queue.add_used(&memory, 0, 0).unwrap();
    let one_used = queue.needs_notification(&memory).unwrap();

    queue.disable_notification(&memory).unwrap();
    let flags: u16 = memory.read_obj(GuestAddress(0x3000)).unwrap();

    println!("virtio-queue 0.18.0, no VIRTIO_F_EVENT_IDX, the driver has set NO_INTERRUPT");
    println!("expected: needs_notification is false, before and after a buffer is used");
    println!("seen:     before: {none_used}; after: {one_used}; flag to the driver: {flags}");
    std::process::exit(i32::from(!(none_used && one_used && flags == 1)));
}
RUST
cargo run --quiet --release --target-dir target
