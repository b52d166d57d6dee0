//! Tests that this host cannot run: each says so, and leaves a line for the total at the end of `./test`.

use std::fmt::Display;
use std::io::Write;

/// The file that gets a line for each test skipped: name, tab, reason. `./test` sets and reads it.
const FILE: &str = "TANDEM_SKIPPED";

/// Says that the test `name` is skipped and why, and counts it.
///
/// # Panics
/// If it cannot be counted: a total that is too small is worse than a failure.
pub fn skipped(name: &str, why: &dyn Display) {
    println!("SKIPPED {name}: {why}");
    let Some(path) = std::env::var_os(FILE) else {
        return;
    };
    let line = format!("{name}\t{}\n", why.to_string().replace('\n', " "));
    // One write at the end of the file: lines of tests that run at the same time do not mix.
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap_or_else(|e| panic!("{FILE} cannot be written: {e}"));
}

/// As [`skipped`], for the test that calls this.
pub fn skip_this(why: &dyn Display) {
    skipped(&this_test(), why);
}

/// The name of the test that calls this: the harness gives it to the thread, or was given it as filter
/// if it runs one test on the main thread.
pub fn this_test() -> String {
    let thread = std::thread::current();
    match thread.name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => std::env::args().nth(1).unwrap_or_default(),
    }
}
