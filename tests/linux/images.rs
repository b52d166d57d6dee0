//! The images the tests run, built once per run of the tests.

use super::common::{PROGRAM, skipped, text};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What `tandem image` says where apt cannot fetch.
const NO_APT: [&str; 3] = [
    "cannot fetch packages",
    "apt knows no package",
    "is missing (Debian's",
];

/// The image of `package`, or why there can be none here.
fn build(package: &str) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux");
    std::fs::create_dir_all(&folder).expect("a folder for images");
    let path = folder.join(format!("{package}.img"));
    let output = Command::new(PROGRAM)
        .args(["image", "-o", text(&path), package])
        .output()
        .expect("the program runs");
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(path);
    }
    let no_apt = NO_APT.iter().any(|reason| words.contains(reason));
    assert!(no_apt, "no image of {package}: {words}");
    Err(words.trim().to_owned())
}

/// The image of `package`; `None` if apt cannot fetch here, which is counted as skipped.
pub fn image(package: &str) -> Option<PathBuf> {
    static REDIS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    static MEMCACHED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    static NGINX: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let cell = match package {
        "redis-server" => &REDIS,
        "memcached" => &MEMCACHED,
        "nginx" => &NGINX,
        other => unreachable!("no test runs {other}"),
    };
    match cell.get_or_init(|| build(package)) {
        Ok(path) => Some(path.clone()),
        Err(why) => {
            skipped::skip_this(why);
            None
        }
    }
}

/// Redis's image, which the tests of boots and of bad input take too.
pub fn redis() -> Option<PathBuf> {
    image("redis-server")
}
