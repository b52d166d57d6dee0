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

/// The image called `name`, of what `args` ask for, or why there can be none here.
fn build(name: &str, args: &[&str]) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linux");
    std::fs::create_dir_all(&folder).expect("a folder for images");
    let path = folder.join(format!("{name}.img"));
    let output = Command::new(PROGRAM)
        .args(["image", "-o", text(&path)])
        .args(args)
        .output()
        .expect("the program runs");
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(path);
    }
    let no_apt = NO_APT.iter().any(|reason| words.contains(reason));
    assert!(no_apt, "no image {name}: {words}");
    Err(words.trim().to_owned())
}

/// The image of `package`, its root in memory; `None` if apt cannot fetch here, which is counted as skipped.
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
    found(cell.get_or_init(|| build(package, &["--in-memory", package])))
}

fn found(built: &Result<PathBuf, String>) -> Option<PathBuf> {
    match built {
        Ok(path) => Some(path.clone()),
        Err(why) => {
            skipped::skip_this(why);
            None
        }
    }
}

/// The image called `name`, of what `args` ask for.
pub fn image_of(name: &str, args: &[&str]) -> Option<PathBuf> {
    found(&build(name, args))
}

/// The same, its root on a disk beside it.
pub fn on_disk(name: &str, args: &[&str]) -> Option<PathBuf> {
    let image = image_of(name, args)?;
    assert!(bundle::disk_beside(&image).exists(), "{name} has a disk");
    Some(image)
}

/// Debian's full kernel, not that for clouds, with programs that use a machine's clock and network device by
/// all means there are.
pub fn tools() -> Option<PathBuf> {
    static TOOLS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let args = [
        "--in-memory",
        "--kernel-package",
        "linux-image-amd64",
        "util-linux",
        "util-linux-extra",
        "iproute2",
    ];
    found(TOOLS.get_or_init(|| build("tools", &args)))
}

/// The package of the kernel that images have unless another is asked for.
pub const CLOUD: &str = "linux-image-cloud-amd64";

/// A shell on the kernel in the package `kernel`, and nothing else.
pub fn shell(kernel: &str) -> Option<PathBuf> {
    found(&build(kernel, &["--kernel-package", kernel]))
}

/// busybox alone: for tests of the machine, which boots it sooner than any other.
pub fn plain() -> Option<PathBuf> {
    static PLAIN: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    found(PLAIN.get_or_init(|| build("plain", &[])))
}

/// Redis's image, which the tests of boots and of bad input take too.
pub fn redis() -> Option<PathBuf> {
    image("redis-server")
}
