//! The guests a demo can run, and how one knows that they serve.

use super::daemon::program;
use crate::cli::DemoArgs;
use crate::failure::{During, Failure, Outcome};
use crate::node::engine::EngineArg;
use clap::ValueEnum;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A guest of the demo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GuestArg {
    /// The built-in key-value server.
    #[default]
    Kv,
    /// Debian's Linux and its redis-server, as `tandem image` packs them.
    Linux,
}

/// A guest that is there, with all it takes to start it.
pub struct DemoGuest {
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

impl DemoGuest {
    /// Gets the guest asked for; a Linux image is built, or found in the cache. It may ask the network, and
    /// so comes before this process leaves for a private one.
    ///
    /// # Errors
    /// If no image can be had.
    pub fn get(args: &DemoArgs) -> Outcome<Self> {
        match args.guest {
            GuestArg::Kv => Ok(Self {
                what: "kv, a key-value server that speaks Redis's protocol",
                name: "kv",
                words: vec!["kv".into()],
                ready: "ready",
                patience: Duration::from_secs(60),
                lease_slack_ms: 20,
                think: Duration::from_micros(500),
            }),
            GuestArg::Linux => Ok(Self {
                what: "Debian's Linux kernel and its redis-server, both as shipped",
                name: "redis",
                words: vec![linux_image()?.into_os_string(), "--cpu".into(), "v2".into()],
                ready: "Ready to accept connections",
                patience: Duration::from_secs(180),
                lease_slack_ms: 500,
                think: Duration::from_millis(2),
            }),
        }
    }
}

/// The engines asked for, as options of primary and backup.
pub fn engines(args: &DemoArgs) -> [Vec<OsString>; 2] {
    let words = |engine: EngineArg| -> Vec<OsString> {
        let value = engine.to_possible_value().expect("none is hidden");
        vec!["--engine".into(), value.get_name().into()]
    };
    [
        words(args.engine),
        words(args.backup_engine.unwrap_or(args.engine)),
    ]
}

/// Builds redis's image beside the others in the cache, which costs little if it is there.
fn linux_image() -> Outcome<PathBuf> {
    let folder = crate::image::cache_folder()?;
    std::fs::create_dir_all(&folder).during(format_args!("cannot make {}", folder.display()))?;
    let path = folder.join("demo-redis.img");
    let why = match make_image(&path, &["redis-server"])? {
        None => return Ok(path),
        Some(why) => why,
    };
    Err(Failure::new(format!("no Linux guest can be made: {why}")))
}

/// Has the program itself build an image of `packages` at `path`, or find it in its cache; returns why it
/// could not. A process of its own: it starts threads, which its caller may not have yet.
///
/// # Errors
/// If the process cannot be started.
pub fn make_image(path: &Path, packages: &[&str]) -> Outcome<Option<String>> {
    let output = Command::new(program()?)
        .arg("image")
        .arg("-o")
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
