//! The images the tests run, built once per run of the tests.

use super::common::{PROGRAM, skipped, text};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

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
    let excused = skipped::has_no_packages(&words);
    assert!(excused, "no image {name}: {words}");
    Err(words.trim().to_owned())
}

/// The packages of all images but redis's own and the plain one: they are installed once, and images differ in what
/// they run, on which kernel, and where their root is.
const PACKAGES: [&str; 8] = [
    "iproute2",
    "iputils-ping",
    "libcap2-bin",
    "memcached",
    "nginx",
    "python3-magic",
    "util-linux",
    "util-linux-extra",
];

/// The image of `package`, its root in memory; `None` if apt cannot fetch here, which is counted as skipped.
pub fn image(package: &str) -> Option<PathBuf> {
    static REDIS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    static MEMCACHED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    static NGINX: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let of_all = ["--in-memory", "--service", package];
    let of_all = [&of_all[..], &PACKAGES].concat();
    let (cell, args) = match package {
        "redis-server" => (&REDIS, vec!["--in-memory", package]),
        "memcached" => (&MEMCACHED, of_all),
        "nginx" => (&NGINX, of_all),
        other => unreachable!("no test runs {other}"),
    };
    found(cell.get_or_init(|| build(package, &args)))
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

/// What runs `command` with all packages, its root on a disk beside it.
pub fn all_on_disk(name: &str, command: &str) -> Option<PathBuf> {
    on_disk(name, &[&["--run", command][..], &PACKAGES].concat())
}

/// The image called `name`, of what `args` ask for, its root on a disk beside it.
pub fn on_disk(name: &str, args: &[&str]) -> Option<PathBuf> {
    let image = image_of(name, args)?;
    assert!(bundle::disk_beside(&image).exists(), "{name} has a disk");
    Some(image)
}

/// Debian's full kernel, not that for clouds, with programs that use a machine's clock and network device by
/// all means there are.
pub fn tools() -> Option<PathBuf> {
    static TOOLS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    // A command: without one the image would be of the first service there is.
    let args = [
        "--in-memory",
        "--kernel-package",
        "linux-image-amd64",
        "--run",
        "sh",
    ];
    let args = [&args[..], &PACKAGES].concat();
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
