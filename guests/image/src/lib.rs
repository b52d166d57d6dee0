//! A bootable Linux guest from Debian packages, built without root.
//!
//! ```text
//!  plan     what was asked for ─▶ packages      apt, depends: what apt knows of them, fetching
//!  build    packages ─▶ archives                deb, elf: what is in a package, in a program
//!           closure   which files go in         modules: the kernel's, and their order
//!           rootfs    the base system           services: what is known by name
//!  tree     files in memory                     ext4: the same on a disk
//!  cache    what was fetched and built before   tools: the system's own programs
//! ```
//!
//! The same packages and options give the same bytes. What comes out is a file the crate `bundle` reads, which
//! is all that whoever runs the guest needs to know.
//!
//! # Example
//!
//! Debian's redis-server as a guest, its root on a disk. It takes the system's apt, and minutes the first time.
//!
//! ```no_run
//! use image::{Spec, Stop, make};
//!
//! let mut spec = Spec::new("redis.img");
//! spec.packages = vec!["redis-server".into()];
//! spec.disk = Some("redis.disk".into());
//! let built = make(&spec, &Stop::default(), &|doing| println!("{doing}"))?;
//! println!("Linux {}, {} MiB", built.manifest.kernel_release, built.image_bytes >> 20);
//! # Ok::<(), image::Error>(())
//! ```
//!
//! What cannot be built is refused before any work:
//!
//! ```
//! use image::{Error, Spec, Stop, make};
//!
//! let mut spec = Spec::new("redis.img");
//! spec.service = Some("no-such-service".into());
//! let refused = make(&spec, &Stop::default(), &|doing| panic!("{doing}")).unwrap_err();
//! assert!(matches!(refused, Error::NoService(name) if name == "no-such-service"));
//! ```

mod apt;
mod build;
mod cache;
mod closure;
mod deb;
mod depends;
mod elf;
mod error;
mod ext4;
mod modules;
mod plan;
mod rootfs;
mod services;
mod tools;
mod tree;

pub use cache::folder as cache_folder;
pub use deb::PackageError;
pub use error::Error;
pub use modules::ModuleError;
pub use tools::{Stop, ToolFailure};

use build::Builder;
use bundle::{Bundle, Manifest};
use cache::{Cache, Sums};
use error::{During, Result};
use plan::{Plan, Request};
use std::path::{Path, PathBuf};

/// The package the kernel is from, if nobody names another: it depends on the kernel itself.
pub const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// What is asked of an image.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Debian packages the guest is made of, each with a version (`name=version`) or without.
    pub packages: Vec<String>,
    /// The image to write.
    pub output: PathBuf,
    /// Where to write the disk, if the root goes on one.
    pub disk: Option<PathBuf>,
    /// The disk's size in MiB; if there is none, what its files need and some more.
    pub size_mib: Option<u32>,
    /// The kernel's package, or one that depends on it.
    pub kernel_package: String,
    /// The known service to run; if there is neither this nor a command, that of the packages.
    pub service: Option<String>,
    /// The command to run, one line for a shell.
    pub command: Option<String>,
    /// The kernel command line, if not the usual one.
    pub cmdline: Option<String>,
}

impl Spec {
    /// The image of a shell, written to `output`, with the usual kernel.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self {
            packages: Vec::new(),
            output: output.into(),
            disk: None,
            size_mib: None,
            kernel_package: KERNEL_PACKAGE.to_owned(),
            service: None,
            command: None,
            cmdline: None,
        }
    }
}

/// What a build came to: what the files say that were written.
#[derive(Clone, Debug)]
pub struct Built {
    /// Size of the image.
    pub image_bytes: u64,
    /// SHA-256 of the image, in hexadecimal.
    pub image_sha256: String,
    /// Size of the first root in it.
    pub initrd_bytes: usize,
    /// Size of the disk, if there is one.
    pub disk_bytes: Option<u64>,
    /// SHA-256 of the disk, in hexadecimal.
    pub disk_sha256: Option<String>,
    /// The description in the image.
    pub manifest: Manifest,
    /// What programs ask for that no package has, and who asks; words for people.
    pub missing: Vec<String>,
    /// Whether it was built before, and copied.
    pub cached: bool,
}

/// Builds an image, or copies it if it was built before. `says` is told what is being done, one short line at a
/// time; `stop` ends the build from another thread.
///
/// # Errors
/// [`Error`]; what was written by then is whole, or not there.
pub fn make(spec: &Spec, stop: &Stop, says: &dyn Fn(String)) -> Result<Built> {
    let request = Request::new(spec)?;
    for out in [Some(&spec.output), spec.disk.as_ref()]
        .into_iter()
        .flatten()
    {
        check_writable(out)?;
    }
    if spec.disk.as_ref() == Some(&spec.output) {
        return Err(Error::SameFile);
    }
    let (sums, cached) = copy_or_build(spec, &request, stop, says)?;
    built(spec, sums, cached)
}

/// From the cache, or built. The second value is whether it was in the cache.
fn copy_or_build(
    spec: &Spec,
    request: &Request,
    stop: &Stop,
    says: &dyn Fn(String),
) -> Result<(Sums, bool)> {
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
        let disk = spec.disk.as_deref();
        cache.copy_built(stop, &plan.inputs, &spec.output, disk)
    };
    if let Some(sums) = copy(&plan)? {
        return Ok((sums, true));
    }
    let builder = Builder {
        stop,
        cache: &cache,
        says,
    };
    builder.build(request, &plan)?;
    let sums = copy(&plan)?.ok_or(Error::CacheChanges)?;
    Ok((sums, false))
}

/// A file that cannot be written is better known before minutes of work.
fn check_writable(out: &Path) -> Result {
    let folder = match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if out.is_dir() {
        return Err(Error::Directory(out.to_owned()));
    }
    tempfile::tempfile_in(folder).during(format_args!("cannot write {}", out.display()))?;
    Ok(())
}

/// What the files say that were written.
fn built(spec: &Spec, sums: Sums, cached: bool) -> Result<Built> {
    let path = spec.output.display();
    let bytes = std::fs::read(&spec.output).during(format_args!("cannot read {path}"))?;
    let Bundle {
        initrd, manifest, ..
    } = Bundle::parse(&bytes)?;
    let disk_bytes = match &spec.disk {
        None => None,
        Some(disk) => {
            let meta = std::fs::metadata(disk);
            let meta = meta.during(format_args!("cannot read {}", disk.display()))?;
            Some(meta.len())
        }
    };
    Ok(Built {
        image_bytes: bytes.len() as u64,
        image_sha256: sums.image,
        initrd_bytes: initrd.len(),
        disk_bytes,
        disk_sha256: sums.disk,
        manifest,
        missing: sums.missing,
        cached,
    })
}
