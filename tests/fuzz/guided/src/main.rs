//! A fuzzer of the target that `TANDEM_FUZZ` names, with the command line of libFuzzer.

#![no_main]

use fuzzed::{TARGETS, Target, target};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CHOSEN: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TANDEM_FUZZ").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let names = TARGETS.map(|target| target.name);
        eprintln!("TANDEM_FUZZ is to be one of {}", names.join(", "));
        std::process::exit(2);
    })
});

fuzz_target!(|bytes: &[u8]| (CHOSEN.take)(bytes));
