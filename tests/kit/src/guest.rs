//! The guests that clients are let at, and how one knows that they serve.

use crate::daemon::program;
use crate::error::{During, KitError, KitResult};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A guest that serves clients who speak Redis's protocol, with all it takes to start it.
#[derive(Clone, Debug)]
pub struct Served {
    /// What it is, for people.
    pub what: &'static str,
    /// Name of its machines, to which their number is added.
    pub name: &'static str,
    /// As for `tandem run`.
    pub words: Vec<OsString>,
    /// What it prints when it serves.
    pub ready: &'static str,
    /// Longest time until then.
    pub patience: Duration,
    /// How far its leases may differ from the clients' clocks, in milliseconds.
    pub lease_slack_ms: u64,
    /// Time a client thinks between two requests.
    pub think: Duration,
}

impl Served {
    /// The built-in key-value server.
    #[must_use]
    pub fn kv() -> Self {
        Self {
            what: "kv, a key-value server that speaks Redis's protocol",
            name: "kv",
            words: vec!["kv".into()],
            ready: "ready",
            patience: Duration::from_secs(60),
            lease_slack_ms: 20,
            think: Duration::from_micros(500),
        }
    }

    /// Debian's Linux and its redis-server, in an image that is built, or found, in `folder`. It may ask the
    /// network, and so comes before this process leaves for a private one.
    ///
    /// # Errors
    /// If no image can be had.
    pub fn linux(folder: &Path) -> KitResult<Self> {
        let image = linux_image(folder)?;
        Ok(Self {
            what: "Debian's Linux kernel and its redis-server, both as shipped",
            name: "redis",
            words: vec![image.into_os_string(), "--cpu".into(), "v2".into()],
            ready: "Ready to accept connections",
            patience: Duration::from_secs(180),
            lease_slack_ms: 500,
            think: Duration::from_millis(2),
        })
    }
}

/// Builds redis's image in `folder`, which costs little if it is there.
fn linux_image(folder: &Path) -> KitResult<PathBuf> {
    std::fs::create_dir_all(folder).during(format_args!("cannot make {}", folder.display()))?;
    let path = folder.join("demo-redis.img");
    match make_image(&path, &["redis-server"])? {
        None => Ok(path),
        Some(why) => Err(KitError::NoImage(why)),
    }
}

/// Has the program itself build an image of `packages`, its root in memory, at `path`, or find it in its cache;
/// returns why it could not. A process of its own: it starts threads, which its caller may not have yet.
///
/// # Errors
/// If the process cannot be started.
pub fn make_image(path: &Path, packages: &[&str]) -> KitResult<Option<String>> {
    let output = Command::new(program()?)
        .args(["image", "--in-memory", "-o"])
        .arg(path)
        .args(packages)
        .output()
        .during("cannot run tandem image")?;
    if output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let why = text.lines().last().unwrap_or("it did not say why");
    Ok(Some(why.strip_prefix("tandem: ").unwrap_or(why).to_owned()))
}

/// The number behind `key=` in a line of a guest's.
#[must_use]
pub fn value_of(line: &str, key: &str) -> Option<u64> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        let line = "counter: ticks=7 iterations=100 checksum=00ff ns=5";
        assert_eq!(value_of(line, "iterations"), Some(100));
        assert_eq!(value_of(line, "tick"), None);
    }
}
