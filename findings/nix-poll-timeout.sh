#!/usr/bin/env bash
# nix 0.31.3: a wait of less than a millisecond is none.
#
# One would guess: `PollTimeout::try_from(duration)` never waits shorter than asked; it would round up, as
# std does for socket timeouts, or refuse what it cannot express.
# What happens: it cuts to whole milliseconds. 999 us become PollTimeout(0), which does not wait at all, so
# a loop that polls for the time left until a deadline spins through the last millisecond of every wait.
# Where: src/poll_timeout.rs, `impl TryFrom<Duration> for PollTimeout` (`as_millis`).
# So round up before converting, or use `ppoll`, which takes nanoseconds.
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
nix = { version = "=0.31.3", features = ["poll"] }
TOML
cat > src/main.rs <<'RUST'
use nix::poll::{PollTimeout, poll};
use std::time::{Duration, Instant};

fn main() {
    let timeout = |micros| PollTimeout::try_from(Duration::from_micros(micros)).unwrap();
    let (short, longer) = (timeout(999), timeout(1999));

    // A loop as one writes it: poll for what is left until the deadline.
    let deadline = Instant::now() + Duration::from_millis(20);
    let mut calls = 0u64;
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        poll(&mut [], PollTimeout::try_from(left).unwrap()).unwrap();
        calls += 1;
    }

    println!("nix 0.31.3, PollTimeout of 999 us and of 1999 us; poll until a deadline in 20 ms");
    println!("expected: 1 ms and 2 ms (or an error); poll is called once or twice");
    println!("seen:     {short:?} and {longer:?}; poll was called {calls} times");
    // How often it spins is the host's matter, and not judged.
    let as_stated = short == PollTimeout::ZERO && longer == PollTimeout::from(1u8);
    std::process::exit(i32::from(!as_stated));
}
RUST
cargo run --quiet --release --target-dir target
