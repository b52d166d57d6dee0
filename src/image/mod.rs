//! `tandem image`: a bootable Linux guest from Debian packages, built without root.
//!
//! ```text
//!  plan     what was asked for ─▶ packages      apt, depends: what apt knows of them, fetching
//!  build    packages ─▶ archives                deb, elf: what is in a package, in a program
//!           closure   which files go in         modules: the kernel's, and their order
//!           rootfs    the base system           services: what is known by name
//!  bundle   the image file                      tree, cpio, ext4: files in memory, archive, disk
//!  cache    what was fetched and built before   tools: the system's own programs
//! ```
//!
//! The same packages and options give the same bytes.

pub mod apt;
mod build;
pub mod bundle;
pub mod cache;
pub mod closure;
pub mod cpio;
mod deb;
mod depends;
pub mod elf;
mod ext4;
pub mod modules;
mod plan;
mod rootfs;
pub mod services;
mod tools;
pub mod tree;

use crate::cli::ImageArgs;
use crate::failure::{During, Failure, Outcome};
use crate::report::say;
use crate::signals;
use build::Builder;
use bundle::Bundle;
use cache::{Cache, Sums};
use indicatif::{ProgressBar, ProgressStyle};
use plan::{Plan, Request};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};
use tools::Stop;

/// What a build comes to.
#[derive(Debug, Serialize)]
struct Summary {
    image: String,
    image_bytes: u64,
    image_sha256: String,
    initrd_bytes: usize,
    disk: Option<String>,
    disk_bytes: Option<u64>,
    disk_sha256: Option<String>,
    kernel: String,
    kernel_version: String,
    packages: usize,
    command: Option<String>,
    cmdline: String,
    memory_mib: u32,
    inputs_sha256: String,
    /// What programs ask for that no package has.
    missing: Vec<String>,
    cached: bool,
    seconds: f64,
}

pub use cache::folder as cache_folder;

/// Builds an image.
///
/// # Errors
/// The one line to print.
pub fn image(args: &ImageArgs) -> Outcome {
    let begun = Instant::now();
    let stop = Stop::default();
    let asked = stop.clone();
    signals::watch(signals::block()?, move || asked.ask())?;
    let request = Request::new(args)?;
    for out in [Some(&args.output), args.disk.as_ref()]
        .into_iter()
        .flatten()
    {
        check_writable(out)?;
    }
    if args.disk.as_ref() == Some(&args.output) {
        return Err(Failure::new("image and disk cannot be the same file"));
    }
    let progress = progress();
    let (sums, cached) = make(args, &request, &stop, &progress)?;
    progress.finish_and_clear();
    let mut summary = summary(args, sums)?;
    summary.cached = cached;
    summary.seconds = begun.elapsed().as_secs_f64();
    if args.json {
        say(&(serde_json::to_string(&summary).during("report")? + "\n"));
    } else {
        say(&words(&summary));
    }
    Ok(())
}

/// From the cache, or built. The second value is whether it was in the cache.
fn make(
    args: &ImageArgs,
    request: &Request,
    stop: &Stop,
    progress: &ProgressBar,
) -> Outcome<(Sums, bool)> {
    let says = |what: String| progress.set_message(what);
    let cache = Cache::open(stop, || says("waiting for another tandem image".into()))?;
    says("asking apt".into());
    let plan = {
        let empty = cache.work()?;
        plan::plan(
            request,
            &apt::resolve(stop, &request.names(), empty.path())?,
        )?
    };
    let copy = |plan: &Plan| {
        let disk = args.disk.as_deref();
        cache.copy_built(stop, &plan.inputs, &args.output, disk)
    };
    if let Some(sums) = copy(&plan)? {
        return Ok((sums, true));
    }
    let builder = Builder {
        stop,
        cache: &cache,
        says: &says,
    };
    builder.build(request, &plan)?;
    let sums = copy(&plan)?;
    let sums = sums.ok_or_else(|| Failure::new("the cache changes while it is held"))?;
    Ok((sums, false))
}

/// A file that cannot be written is better known before minutes of work.
fn check_writable(out: &Path) -> Outcome {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = format_args!("cannot write {}", out.display()).to_string();
    if out.is_dir() {
        return Err(Failure::new(format!("{failed}: it is a directory")));
    }
    tempfile::tempfile_in(folder).during(failed)?;
    Ok(())
}

fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
    bar.enable_steady_tick(Duration::from_millis(100));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// What the files say that were written.
fn summary(args: &ImageArgs, sums: Sums) -> Outcome<Summary> {
    let path = args.output.display();
    let bytes = std::fs::read(&args.output).during(format_args!("cannot read {path}"))?;
    let Bundle {
        initrd, manifest, ..
    } = Bundle::parse(&bytes)?;
    let disk = args.disk.as_ref();
    let disk_bytes = disk.map(std::fs::metadata).transpose()?;
    Ok(Summary {
        image: path.to_string(),
        image_bytes: bytes.len() as u64,
        image_sha256: sums.image,
        initrd_bytes: initrd.len(),
        disk: disk.map(|disk| disk.display().to_string()),
        disk_bytes: disk_bytes.map(|meta| meta.len()),
        disk_sha256: sums.disk,
        kernel: manifest.kernel_release,
        kernel_version: manifest.kernel.version,
        packages: manifest.packages.len(),
        command: manifest.command,
        cmdline: manifest.cmdline,
        memory_mib: manifest.memory_mib,
        inputs_sha256: manifest.inputs_sha256,
        missing: sums.missing,
        cached: false,
        seconds: 0.0,
    })
}

fn words(summary: &Summary) -> String {
    let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20);
    let mut lines = vec![format!(
        "image     {}, {} (initrd {})",
        summary.image,
        mib(summary.image_bytes),
        mib(summary.initrd_bytes as u64)
    )];
    if let (Some(disk), Some(bytes)) = (&summary.disk, summary.disk_bytes) {
        lines.push(format!("disk      {disk}, {}", mib(bytes)));
    }
    let (kernel, version) = (&summary.kernel, &summary.kernel_version);
    lines.push(format!("kernel    Linux {kernel} (Debian {version})"));
    lines.push(format!("packages  {}", summary.packages));
    let command = summary.command.as_deref().unwrap_or("a shell");
    lines.push(format!("runs      {command}"));
    lines.push(format!("memory    {} MiB or more", summary.memory_mib));
    for missing in &summary.missing {
        lines.push(format!("lacks     {missing}"));
    }
    let how = if summary.cached {
        "from the cache"
    } else {
        "built"
    };
    lines.push(format!("{how} in {:.1} s", summary.seconds));
    lines.join("\n") + "\n"
}
