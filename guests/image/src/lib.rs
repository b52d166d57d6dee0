//! A bootable Linux guest from Debian packages, built without root.
//!
//! ```text
//!  plan     what was asked for ─▶ packages      apt, near: what apt knows of them, fetching
//!  build    packages ─▶ image and disk          deb, elf: what is in a package, in a module
//!           debian    the root, by mmdebstrap   modules: the kernel's, and their order
//!           rootfs    what starts it            services: what is known by name
//!           oci       a container's root        store: files in an archive; layers: upon each other
//!           bounded   no more than may be read
//!  cloud    a cloud image ─▶ image and disk     partition, bootfiles: what is on its disk
//!  tree     files in memory                     ext4: the same on a disk
//!  cache    what was fetched and built before   tools: the system's own programs; summed: what is read, checked
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
//! use image::{Place, Spec, Stop, make};
//!
//! let mut spec = Spec::new("redis.img");
//! spec.packages = vec!["redis-server".into()];
//! spec.root = Place::Disk("redis.ext4".into());
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
mod bootfiles;
mod bounded;
mod build;
mod cache;
mod cloud;
mod deb;
mod debian;
mod elf;
mod error;
mod ext4;
mod layers;
mod modules;
mod near;
mod oci;
mod partition;
mod plan;
mod rootfs;
mod services;
mod store;
mod summed;
mod tools;
mod tree;

pub use cache::folder as cache_folder;
pub use cloud::{CloudSpec, make as make_from_cloud};
pub use deb::PackageError;
pub use error::Error;
pub use modules::ModuleError;
pub use tools::{Stop, ToolFailure};

use build::Builder;
use bundle::{Bundle, Manifest};
use cache::{Cache, Sums};
use error::{During, Result};
use plan::{Plan, Request};
use std::collections::BTreeMap;
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
    /// Where the root goes.
    pub root: Place,
    /// The disk's size in MiB; if there is none, what its files need and some more.
    pub size_mib: Option<u32>,
    /// The guest's memory in MiB; if there is none, what it is comfortable with.
    pub memory_mib: Option<u32>,
    /// The kernel's package, or one that depends on it.
    pub kernel_package: String,
    /// The known service to run; if there is neither this nor a command, that of the packages.
    pub service: Option<String>,
    /// The command to run, one line for a shell.
    pub command: Option<String>,
    /// Whether systemd is to run the packages' units.
    pub systemd: bool,
    /// The kernel command line, if not the usual one.
    pub cmdline: Option<String>,
    /// The container's image the root is of, in place of packages: a folder or an archive, or `PATH:NAME`.
    pub container: Option<PathBuf>,
}

/// Where a guest's root is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// On a disk beside the image ([`bundle::disk_beside`]); in memory, if the guest has no packages.
    #[default]
    Usual,
    /// On this disk.
    Disk(PathBuf),
    /// In memory, which data in it does not outlive.
    Memory,
}

impl Spec {
    /// The image of a shell, written to `output`, with the usual kernel.
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self {
            packages: Vec::new(),
            output: output.into(),
            root: Place::Usual,
            size_mib: None,
            memory_mib: None,
            kernel_package: KERNEL_PACKAGE.to_owned(),
            service: None,
            command: None,
            systemd: false,
            cmdline: None,
            container: None,
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
    /// The disk, if there is one.
    pub disk: Option<PathBuf>,
    /// Its size.
    pub disk_bytes: Option<u64>,
    /// SHA-256 of the disk, in hexadecimal.
    pub disk_sha256: Option<String>,
    /// The description in the image.
    pub manifest: Manifest,
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
    let disk = request.disk.then(|| match &spec.root {
        Place::Disk(path) => path.clone(),
        _ => bundle::disk_beside(&spec.output),
    });
    for out in [Some(&spec.output), disk.as_ref()].into_iter().flatten() {
        check_writable(out)?;
    }
    let outs = [Some(&spec.output), disk.as_ref()].into_iter().flatten();
    let read = request.container.as_ref().map(|found| found.path.as_path());
    check_apart(&outs.map(PathBuf::as_path).collect::<Vec<_>>(), read)?;
    let work = Work {
        output: &spec.output,
        disk: disk.as_deref(),
        stop,
        says,
    };
    let (sums, cached) = work.copy_or_build(&request)?;
    work.built(sums, cached)
}

/// A build under way.
struct Work<'a> {
    output: &'a Path,
    disk: Option<&'a Path>,
    stop: &'a Stop,
    says: &'a dyn Fn(String),
}

impl Work<'_> {
    /// From the cache, or built. The second value is whether it was in the cache.
    fn copy_or_build(&self, request: &Request) -> Result<(Sums, bool)> {
        let (stop, says) = (self.stop, self.says);
        let cache = Cache::open(stop, || says("waiting for another tandem image".into()))?;
        says("asking apt".into());
        let plan = {
            let empty = cache.work()?;
            let boot = apt::resolve(stop, &request.boot_names(), empty.path())?;
            let installed = if request.packages.is_empty() {
                BTreeMap::new()
            } else {
                let essential = [apt::ESSENTIAL, apt::MERGED].map(str::to_owned);
                let names = [&essential[..], &request.packages].concat();
                apt::resolve(stop, &names, empty.path())?
            };
            plan::plan(request, &boot, installed)?
        };
        let copy = |plan: &Plan| cache.copy_built(stop, &plan.inputs, self.output, self.disk);
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

    /// What the files say that were written.
    fn built(&self, sums: Sums, cached: bool) -> Result<Built> {
        let path = self.output.display();
        let bytes = std::fs::read(self.output).during(format_args!("cannot read {path}"))?;
        let Bundle {
            initrd, manifest, ..
        } = Bundle::parse(&bytes)?;
        Ok(Built {
            image_bytes: bytes.len() as u64,
            image_sha256: sums.image,
            initrd_bytes: initrd.len(),
            disk: self.disk.map(Path::to_owned),
            disk_bytes: manifest.disk_bytes,
            disk_sha256: sums.disk,
            manifest,
            cached,
        })
    }
}

/// A file that cannot be written is better known before minutes of work.
fn check_writable(out: &Path) -> Result {
    if out.is_dir() {
        return Err(Error::Directory(out.to_owned()));
    }
    tempfile::tempfile_in(folder_of(out)).during(format_args!("cannot write {}", out.display()))?;
    Ok(())
}

/// The folder a file is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Sees to it that what is written is not one file, and none that is `read`, however their paths are spelled.
///
/// # Errors
/// [`Error::SameFile`].
fn check_apart(outs: &[&Path], read: Option<&Path>) -> Result {
    // A name is written to by renaming: it is the folder it stands in that counts, not what a link of that name names.
    let place = |path: &Path| {
        let folder = folder_of(path);
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        folder.join(path.file_name().unwrap_or_default())
    };
    let outs: Vec<_> = outs.iter().map(|path| place(path)).collect();
    let read = read.map(|path| [Some(place(path)), path.canonicalize().ok()]);
    let read = read.into_iter().flatten().flatten();
    let twice = outs
        .iter()
        .enumerate()
        .any(|(n, out)| outs[..n].contains(out));
    match twice || read.into_iter().any(|path| outs.contains(&path)) {
        true => Err(Error::SameFile),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_file_is_known_by_any_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("cloud"), "").unwrap();
        std::os::unix::fs::symlink("cloud", path("link")).unwrap();
        std::fs::create_dir(path("sub")).unwrap();
        let apart = |outs: [&str; 2], read: &str| {
            let outs = outs.map(path);
            check_apart(&[&outs[0], &outs[1]], Some(&path(read))).is_ok()
        };
        assert!(apart(["a.img", "a.ext4"], "cloud"));
        assert!(!apart(["a.img", "sub/../a.img"], "cloud"));
        assert!(!apart(["a.img", "./sub/.././cloud"], "cloud"));
        assert!(!apart(["a.img", "cloud"], "link"));
        assert!(!apart(["a.img", "link"], "link"));
        // The link is replaced, and not what it names.
        assert!(apart(["a.img", "link"], "cloud"));
    }
}
