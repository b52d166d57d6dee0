//! Building an image: packages from the cache or the network, their files, the archives.

use crate::apt::{self, Candidate};
use crate::cache::{Cache, Sums, file_sha256};
use crate::closure::{self, Closure, PackageFiles};
use crate::error::{During, Error, Result};
use crate::modules::{self, Module};
use crate::plan::{Plan, Request};
use crate::tools::Stop;
use crate::tree::{Kind, Tree};
use crate::{deb, ext4, rootfs};
use bundle::{Bundle, FORMAT, Manifest, Package, sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Where the kernel's modules are, and what it has built in.
const MODULES: &str = "usr/lib/modules/";
/// Memory of the kernel itself, in MiB, with room to breathe.
const KERNEL_MIB: u64 = 96;

/// What is at hand while building.
pub struct Builder<'a> {
    /// Whether to end.
    pub stop: &'a Stop,
    /// The cache, held.
    pub cache: &'a Cache,
    /// Told what is being done.
    pub says: &'a dyn Fn(String),
}

/// The kernel's package, taken apart.
struct Kernel {
    release: String,
    image: Vec<u8>,
    modules: Vec<Module>,
}

impl Builder<'_> {
    /// Builds, and puts the result into the cache. Gives back what programs ask for that is not there.
    ///
    /// # Errors
    /// If packages cannot be fetched or read, or a tool or the disk fails.
    pub fn build(&self, request: &Request, plan: &Plan) -> Result<Vec<String>> {
        let debs = self.fetch(plan)?;
        let work = self.cache.work()?;
        let kernel = self.kernel(&plan.kernel, &debs)?;
        let closure = self.closure(request, plan, &debs)?;
        (self.says)("building the image".into());
        let package = self.read(&plan.busybox, &debs, |path| path == "usr/bin/busybox")?;
        let busybox = rootfs::busybox(&package).ok_or_else(|| lacks(&plan.busybox, "busybox"))?;
        let root = rootfs::root(busybox, &closure.tree, &request.root());
        let mut first = if request.disk {
            rootfs::base(busybox)
        } else {
            root.clone()
        };
        rootfs::add_boot(&mut first, &kernel.modules, request.disk);
        let initrd = first.to_cpio()?;
        self.stop.check()?;
        let manifest = manifest(request, plan, &kernel, &initrd);
        let bundle = Bundle {
            kernel: &kernel.image,
            initrd: &initrd,
            manifest,
        };
        let image = bundle.write()?;
        let built = work.path().join("built");
        std::fs::create_dir(&built).during("cannot make a folder")?;
        std::fs::write(built.join("image"), &image).during("cannot write to the cache")?;
        let mut sums = Sums {
            image: sha256(&image),
            disk: None,
            missing: closure.missing,
        };
        if request.disk {
            (self.says)("building the disk".into());
            let disk = built.join("disk");
            let mib = request.disk_mib(&root);
            ext4::make(self.stop, &root, &disk, mib, work.path(), &plan.inputs)?;
            sums.disk = Some(file_sha256(self.stop, &disk)?);
        }
        self.cache.keep_built(&plan.inputs, &built, &sums)?;
        Ok(sums.missing)
    }

    /// The package files, by package name, each found whole.
    fn fetch(&self, plan: &Plan) -> Result<BTreeMap<String, PathBuf>> {
        let wanted = [&plan.kernel, &plan.busybox];
        let wanted = wanted
            .into_iter()
            .chain(plan.sources.iter().map(|(c, _)| c));
        let (mut found, mut absent) = (BTreeMap::new(), Vec::new());
        for candidate in wanted {
            match self.cache.deb(self.stop, &candidate.sha256)? {
                Some(path) => drop(found.insert(candidate.name.clone(), path)),
                None => absent.push(candidate),
            }
        }
        if absent.is_empty() {
            return Ok(found);
        }
        let bytes: u64 = absent.iter().map(|candidate| candidate.size).sum();
        (self.says)(format!(
            "fetching {} packages, {}.{} MB",
            absent.len(),
            bytes / 1_000_000,
            bytes / 100_000 % 10
        ));
        let work = self.cache.work()?;
        apt::download(self.stop, &absent, work.path())?;
        for candidate in absent {
            let file = work.path().join(&candidate.file);
            self.cache.keep_deb(self.stop, &file, &candidate.sha256)?;
            let path = self.cache.deb(self.stop, &candidate.sha256)?;
            let path = path.ok_or(Error::CacheChanges)?;
            found.insert(candidate.name.clone(), path);
        }
        Ok(found)
    }

    fn read(
        &self,
        candidate: &Candidate,
        debs: &BTreeMap<String, PathBuf>,
        keep: impl Fn(&str) -> bool,
    ) -> Result<Tree> {
        let name = &candidate.name;
        (self.says)(format!("reading {name}"));
        let path = debs
            .get(name)
            .ok_or_else(|| Error::NotFetched(format!("{name} was left out")))?;
        deb::read(self.stop, path, keep).map_err(|source| Error::Package {
            package: name.clone(),
            source: Box::new(source),
        })
    }

    fn kernel(&self, candidate: &Candidate, debs: &BTreeMap<String, PathBuf>) -> Result<Kernel> {
        let keep = |path: &str| path.starts_with("boot/vmlinuz-") || path.starts_with(MODULES);
        let package = self.read(candidate, debs, keep)?;
        let file = |path: &str| match &package.get(path)?.kind {
            Kind::File(bytes) => Some(bytes.as_ref()),
            _ => None,
        };
        let release = package
            .iter()
            .find_map(|(path, _)| path.strip_prefix("boot/vmlinuz-"));
        let (release, image) = release
            .and_then(|release| Some((release, file(&format!("boot/vmlinuz-{release}"))?)))
            .ok_or_else(|| lacks(candidate, "kernel in it"))?;
        let list = file(&format!("{MODULES}{release}/modules.builtin"));
        let list = list.map_or_else(Default::default, String::from_utf8_lossy);
        let built_in: BTreeSet<String> = modules::built_in(&list);
        let files = package.iter().filter_map(|(path, node)| match &node.kind {
            Kind::File(bytes) => Some((path, bytes.as_ref())),
            _ => None,
        });
        let modules = modules::order(files, &built_in, &modules::WANTED)?;
        Ok(Kernel {
            release: release.to_owned(),
            image: image.to_vec(),
            modules,
        })
    }

    fn closure(
        &self,
        request: &Request,
        plan: &Plan,
        debs: &BTreeMap<String, PathBuf>,
    ) -> Result<Closure> {
        let mut sources = Vec::new();
        for (candidate, whole) in &plan.sources {
            let tree = self.read(candidate, debs, |path| !closure::is_ballast(path))?;
            sources.push(PackageFiles {
                tree,
                whole: *whole,
            });
        }
        let roots = request.service.map_or(&[][..], |service| service.roots);
        let closure = closure::select(&sources, roots, rootfs::has_program);
        let own = closure.tree_lacks(roots);
        match own {
            Some(root) => Err(Error::NoRoot(root.to_owned())),
            None => Ok(closure),
        }
    }
}

fn lacks(package: &Candidate, what: &'static str) -> Error {
    Error::Lacks {
        package: package.name.clone(),
        what,
    }
}

fn manifest(request: &Request, plan: &Plan, kernel: &Kernel, initrd: &[u8]) -> Manifest {
    let fixed = [&plan.kernel, &plan.busybox];
    let others = plan.sources.iter().map(|(candidate, _)| candidate);
    let mut packages: Vec<Package> = fixed
        .into_iter()
        .chain(others)
        .map(Candidate::package)
        .collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    let service = request.service.map_or(64, |service| service.memory_mib);
    // The archive is in memory twice while the kernel unpacks it.
    let initrd_mib = 2 * (initrd.len() as u64).div_ceil(1 << 20);
    let memory = KERNEL_MIB + initrd_mib + u64::from(service);
    Manifest {
        format: FORMAT,
        kernel: plan.kernel.package(),
        kernel_release: kernel.release.clone(),
        packages,
        modules: kernel.modules.iter().map(|m| m.name.clone()).collect(),
        command: request.command.clone(),
        cmdline: request.cmdline.clone(),
        memory_mib: u32::try_from(memory.next_multiple_of(32)).unwrap_or(u32::MAX),
        disk: request.disk,
        tells_status: true,
        inputs_sha256: plan.inputs.clone(),
        kernel_sha256: sha256(&kernel.image),
        initrd_sha256: sha256(initrd),
    }
}
