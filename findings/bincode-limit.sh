#!/usr/bin/env bash
# bincode 2.0.1: what a decode limit counts.
#
# One would guess: `with_limit::<N>()` ("Sets the byte limit") refuses input of more than N bytes, so a
# message shorter than N is within the limit.
# What happens: the limit counts what values take once they are decoded. A u64 counts 8 however short its
# varint is, and a container claims its length times `size_of` its element before the first one is read.
# 1003 bytes of valid input need a limit of 8008; 101 bytes of `None` are refused at 8192.
# Where: src/de/impls.rs (`claim_bytes_read(8)` of u64), src/de/mod.rs (`claim_container_read`).
# So a limit that is meant for bytes received must be put on the reader, or be a multiple of their number.
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
bincode = "=2.0.1"
TOML
cat > src/main.rs <<'RUST'
use bincode::config::standard;
use bincode::error::DecodeError;
use bincode::{decode_from_slice, encode_to_vec};

fn main() {
    let numbers = vec![1u64; 1000];
    let encoded = encode_to_vec(&numbers, standard()).unwrap();
    let within = |result: Result<(Vec<u64>, usize), DecodeError>| match result {
        Ok((decoded, _)) => decoded == numbers,
        Err(DecodeError::LimitExceeded) => false,
        Err(other) => panic!("{other}"),
    };
    let own_length = within(decode_from_slice(&encoded, standard().with_limit::<1003>()));
    let less_one = within(decode_from_slice(&encoded, standard().with_limit::<8007>()));
    let decoded_size = within(decode_from_slice(&encoded, standard().with_limit::<8008>()));

    let empty: Vec<Option<[u64; 32]>> = vec![None; 100];
    let short = encode_to_vec(&empty, standard()).unwrap();
    let short_fits =
        decode_from_slice::<Vec<Option<[u64; 32]>>, _>(&short, standard().with_limit::<8192>())
            .is_ok();

    println!("bincode 2.0.1, {} bytes: 1000 u64 of value 1; {} bytes: 100 None", encoded.len(), short.len());
    println!("expected: the first is within limits of 1003, 8007 and 8008, the second within 8192");
    println!("seen:     1003: {own_length}, 8007: {less_one}, 8008: {decoded_size}; 8192: {short_fits}");
    let as_stated = (encoded.len(), short.len()) == (1003, 101)
        && !own_length && !less_one && decoded_size && !short_fits;
    std::process::exit(i32::from(!as_stated));
}
RUST
cargo run --quiet --release --target-dir target
