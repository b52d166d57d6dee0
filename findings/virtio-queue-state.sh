#!/usr/bin/env bash
# virtio-queue 0.18.0: what a saved queue forgets.
#
# One would guess: `Queue::try_from(queue.state())` behaves as the queue does; `state()` is "useful for
# implementing save/restore capabilities".
# What happens: the number of buffers given back since the last `needs_notification` is kept in the queue
# (`num_added`) but not in its state. With VIRTIO_F_EVENT_IDX, a queue saved after `add_used` and before
# `needs_notification` says true, the restored one false: a driver that waits for that interrupt never
# gets it.
# Where: src/queue.rs (`num_added` in `needs_notification`), src/state.rs (no such field).
# So with event indices ask `needs_notification` before saving, or notify once after restoring.
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

fn main() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let mut queue = Queue::new(16).unwrap();
    queue.set_desc_table_address(Some(0x1000), None);
    queue.set_avail_ring_address(Some(0x2000), None);
    queue.set_used_ring_address(Some(0x3000), None);
    queue.set_event_idx(true);
    queue.set_ready(true);
    assert!(queue.is_valid(&memory));

    // used_event, behind the available ring's 16 entries: "interrupt me when entry 0 has been used".
    memory.write_obj(0u16, GuestAddress(0x2000 + 4 + 2 * 16)).unwrap();
    queue.add_used(&memory, 0, 0).unwrap();

    let mut restored = Queue::try_from(queue.state()).unwrap();
    let same_state = restored.state() == queue.state();
    let restored_says = restored.needs_notification(&memory).unwrap();
    let original_says = queue.needs_notification(&memory).unwrap();

    println!("virtio-queue 0.18.0, VIRTIO_F_EVENT_IDX, one buffer used, the driver waits for it");
    println!("expected: both queues need a notification");
    println!("seen:     states equal: {same_state}; original: {original_says}; restored: {restored_says}");
    std::process::exit(i32::from(!(same_state && original_says && !restored_says)));
}
RUST
cargo run --quiet --release --target-dir target
