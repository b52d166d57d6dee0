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

/// What `tandem image` says where no packages can be had: apt cannot fetch, has no lists, or a program is not there.
const NO_PACKAGES: [&str; 3] = [
    "cannot fetch packages",
    "apt knows no package",
    "is missing (Debian's",
];

/// Whether `tandem image`, which failed with these words, cannot have packages here: the one failure a test that needs
/// an image may be skipped for.
#[must_use]
pub fn has_no_packages(words: &str) -> bool {
    NO_PACKAGES.iter().any(|reason| words.contains(reason))
}

/// Whether one of these programs is not here, for which the test that calls this is skipped then. Users' `PATH` seldom
/// has all folders that are looked into.
#[must_use]
pub fn skip_without(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .collect();
    let is_here = |program: &&&str| folders.iter().any(|folder| folder.join(program).is_file());
    let missing = programs.iter().find(|program| !is_here(program));
    if let Some(missing) = missing {
        skip_this(&format!("{missing} is missing"));
    }
    missing.is_some()
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
