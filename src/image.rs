//! `tandem image`: what was asked for on the command line, progress on a terminal, and what came of it.

use crate::cli::ImageArgs;
use crate::failure::{During, Failure, Outcome};
use crate::signals;
use ::image::{Built, CloudSpec, Error, Place, Spec, Stop};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};
use terminal::say;

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
    systemd: bool,
    from: Option<String>,
    cmdline: String,
    ports: Vec<String>,
    without_capabilities: Vec<String>,
    memory_mib: u32,
    inputs_sha256: String,
    cached: bool,
    seconds: f64,
}

/// Builds an image.
///
/// # Errors
/// The one line to print.
pub fn image(args: &ImageArgs) -> Outcome {
    let begun = Instant::now();
    let stop = Stop::default();
    let asked = stop.clone();
    let end = move || {
        if asked.ask() {
            std::process::exit(130);
        }
    };
    signals::watch(signals::block()?, end)?;
    let progress = progress();
    let says = |what: String| progress.set_message(what);
    let built = match &args.from {
        Some(from) => ::image::make_from_cloud(&cloud(args, from), &stop, &says),
        None => ::image::make(&args.into(), &stop, &says),
    };
    progress.finish_and_clear();
    let mut summary = summary(args, built.map_err(failure)?);
    summary.seconds = begun.elapsed().as_secs_f64();
    if args.json {
        say(&(serde_json::to_string(&summary).during("report")? + "\n"));
    } else {
        say(&words(&summary));
    }
    Ok(())
}

impl From<&ImageArgs> for Spec {
    fn from(args: &ImageArgs) -> Self {
        Self {
            packages: args.packages.clone(),
            output: args.output.clone(),
            root: match &args.disk {
                _ if args.in_memory => Place::Memory,
                Some(disk) => Place::Disk(disk.clone()),
                None => Place::Usual,
            },
            size_mib: args.size,
            memory_mib: args.memory,
            kernel_package: args.kernel_package.clone(),
            service: args.service.clone(),
            command: args.run.clone(),
            systemd: args.systemd,
            cmdline: args.cmdline.clone(),
            container: args.from_oci.clone(),
        }
    }
}

/// What is asked of a guest from a cloud image.
fn cloud(args: &ImageArgs, from: &Path) -> CloudSpec {
    CloudSpec {
        from: from.to_owned(),
        output: args.output.clone(),
        disk: args.disk.clone(),
        user_data: args.user_data.clone(),
        size_mib: args.size,
        memory_mib: args.memory,
        cmdline: args.cmdline.clone(),
    }
}

/// The one line for a build that failed, with the options that help where there are some.
fn failure(error: Error) -> Failure {
    match error {
        Error::NoService(_) => Failure::new(format!("{error} (others with --run)")),
        Error::CommandLines => Failure::new("--run takes one line"),
        Error::SizeOfNoDisk(_) => Failure::usage(
            "--size is for a disk, and a guest without packages has none unless --disk names it",
        ),
        Error::DiskTooSmall {
            size_mib,
            least_mib,
        } => Failure::new(format!(
            "a disk of {size_mib} MiB has no room for its files; --size takes {least_mib} or more"
        )),
        other => other.into(),
    }
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

fn summary(args: &ImageArgs, built: Built) -> Summary {
    let manifest = built.manifest;
    Summary {
        image: args.output.display().to_string(),
        image_bytes: built.image_bytes,
        image_sha256: built.image_sha256,
        initrd_bytes: built.initrd_bytes,
        disk: built.disk.map(|disk| disk.display().to_string()),
        disk_bytes: built.disk_bytes,
        disk_sha256: built.disk_sha256,
        kernel: manifest.kernel_release,
        kernel_version: manifest.kernel.version,
        packages: manifest.packages.len(),
        command: manifest.command,
        systemd: args.systemd,
        from: args.from.as_ref().map(|from| from.display().to_string()),
        cmdline: manifest.cmdline,
        ports: manifest.ports,
        without_capabilities: manifest.without_capabilities,
        memory_mib: manifest.memory_mib,
        inputs_sha256: manifest.inputs_sha256,
        cached: built.cached,
        seconds: 0.0,
    }
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
    lines.push(match summary.from.is_some() {
        true => format!("kernel    Linux {kernel}"),
        false => format!("kernel    Linux {kernel} (Debian {version})"),
    });
    lines.push(format!("packages  {}", summary.packages));
    let otherwise = match (summary.systemd, summary.from.is_some()) {
        (true, _) => "systemd, with the packages' units",
        (_, true) => "what is on its disk, set up by cloud-init",
        _ => "a shell",
    };
    let command = summary.command.as_deref().unwrap_or(otherwise);
    lines.push(format!("runs      {command}"));
    if !summary.ports.is_empty() {
        lines.push(format!(
            "ports     {} (tandem run forwards those of TCP)",
            summary.ports.join(", ")
        ));
    }
    if !summary.without_capabilities.is_empty() {
        let programs = summary.without_capabilities.join(", ");
        lines.push(format!(
            "lost      the file capabilities of {programs}, which a root on a disk keeps"
        ));
    }
    lines.push(format!("memory    {} MiB", summary.memory_mib));
    let how = if summary.cached {
        "from the cache"
    } else {
        "built"
    };
    lines.push(format!("{how} in {:.1} s", summary.seconds));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_option_that_helps() {
        let line = |error| failure(error).to_string();
        let small = Error::DiskTooSmall {
            size_mib: 16,
            least_mib: 64,
        };
        assert!(line(small).contains("--size takes 64 or more"));
        assert_eq!(line(Error::CommandLines), "--run takes one line");
        let service = line(Error::NoService("x".into()));
        assert!(service.ends_with("there are redis, memcached, nginx (others with --run)"));
        assert_eq!(line(Error::Interrupted), "interrupted");
    }
}
