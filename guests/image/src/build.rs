//! Building an image: packages from the cache or the network, their files, the archives.

use crate::apt::{self, Candidate};
use crate::cache::{Cache, Sums, file_sha256};
use crate::debian::{self, Installation};
use crate::error::{During, Error, Result};
use crate::modules::{self, Module};
use crate::plan::{Plan, Request};
use crate::rootfs::{self, Busybox};
use crate::summed::Summed;
use crate::tools::{Stop, output};
use crate::tree::{Kind, Tree};
use crate::{deb, ext4};
use bundle::{Bundle, FORMAT, Manifest, Package, sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the kernel's modules are, and what it has built in.
const MODULES: &str = "usr/lib/modules/";

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
    /// Builds, and puts the result into the cache.
    ///
    /// # Errors
    /// If packages cannot be fetched, read or installed, or a tool or the disk fails.
    pub fn build(&self, request: &Request, plan: &Plan) -> Result {
        if !plan.installed.is_empty() {
            debian::check_tools()?;
        }
        let debs = self.fetch(plan)?;
        let work = self.cache.work()?;
        let busybox = self.busybox(&plan.busybox, &debs, work.path())?;
        (self.says)(format!("reading {}", plan.kernel.name));
        // Seconds of unpacking, while mmdebstrap waits for the disk.
        let stop = self.stop;
        let (kernel, files) = std::thread::scope(|scope| {
            let kernel = scope.spawn(|| kernel(stop, &plan.kernel, &debs, request.disk));
            let files = match &request.container {
                Some(container) => container.root(stop).map(Some),
                None => self.install(request, plan, &debs),
            };
            (kernel.join().expect("no panic"), files)
        });
        let (kernel, files) = (kernel?, files?);
        self.stop.check()?;
        (self.says)("building the image".into());
        let options = request.root(&plan.inputs);
        let root = match (&request.container, files) {
            (Some(container), Some(files)) => {
                rootfs::of_container(&busybox, container, files, &options)?
            }
            (_, installed) => rootfs::root(&busybox, installed.as_ref(), &options),
        };
        if let Some(path) = root.misplaced() {
            return Err(Error::Misplaced(path.to_owned()));
        }
        let mut first = if request.disk {
            rootfs::alone(&busybox)
        } else {
            root.clone()
        };
        rootfs::add_boot(&mut first, &kernel.modules, options.on_disk);
        let initrd = first.to_cpio(rootfs::END)?;
        self.stop.check()?;
        let memory_mib = request.memory_mib(&first, initrd.len() as u64)?;
        let disk_mib = request.disk.then(|| request.disk_mib(&root));
        let capable = root.iter().filter(|(_, node)| node.capability.is_some());
        let manifest = Manifest {
            memory_mib,
            without_capabilities: match request.disk {
                true => Vec::new(),
                false => capable.map(|(path, _)| format!("/{path}")).collect(),
            },
            disk_bytes: disk_mib.map(|mib| mib << 20),
            ..manifest(request, plan, &kernel, &initrd)
        };
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
        };
        if let Some(mib) = disk_mib {
            (self.says)("building the disk".into());
            let disk = built.join("disk");
            ext4::make(self.stop, &root, &disk, mib, work.path(), &plan.inputs)?;
            sums.disk = Some(file_sha256(self.stop, &disk)?);
        }
        self.cache.keep_built(&plan.inputs, &built, &sums)
    }

    /// Debian with the packages asked for; none if there are none.
    fn install(
        &self,
        request: &Request,
        plan: &Plan,
        debs: &BTreeMap<String, PathBuf>,
    ) -> Result<Option<Tree>> {
        if plan.installed.is_empty() {
            return Ok(None);
        }
        let installation = Installation {
            names: &request.installed_names(),
            packages: &plan.installed,
            debs,
        };
        let inputs = installation.digest()?;
        let read = |file: &mut Summed<File>| debian::read(file).ok();
        let kept = self.cache.root(self.stop, &inputs, read)?;
        if kept.is_some() {
            return Ok(kept);
        }
        (self.says)(format!("installing {} packages", plan.installed.len()));
        let work = self.cache.work()?;
        let installed = work.path().join("installed");
        std::fs::create_dir(&installed).during("cannot make a folder")?;
        let path = installed.join("root");
        let file = File::create(&path).during("cannot write to the cache")?;
        let tree = debian::install(self.stop, &installation, &file)?;
        let sum = file_sha256(self.stop, &path)?;
        self.cache.keep_root(&inputs, &installed, sum)?;
        Ok(Some(tree))
    }

    /// The package files, by package name, each found whole.
    fn fetch(&self, plan: &Plan) -> Result<BTreeMap<String, PathBuf>> {
        let wanted = [&plan.kernel, &plan.busybox];
        let wanted = wanted.into_iter().chain(&plan.installed);
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

    /// busybox, and the names it gives its programs. `work` is a folder.
    fn busybox(
        &self,
        candidate: &Candidate,
        debs: &BTreeMap<String, PathBuf>,
        work: &Path,
    ) -> Result<Busybox> {
        const BUSYBOX: &str = "usr/bin/busybox";
        let package = read(self.stop, candidate, debs, |path| path == BUSYBOX)?;
        let file = package.get(BUSYBOX);
        let file = file.ok_or_else(|| lacks(candidate, "busybox"))?.clone();
        let Kind::File(bytes) = &file.kind else {
            return Err(lacks(candidate, "busybox"));
        };
        let program = work.join("busybox");
        std::fs::write(&program, bytes).during("cannot write to the cache")?;
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))
            .during("cannot write to the cache")?;
        let mut command = Command::new(&program);
        command.arg("--list-full").env("LC_ALL", "C");
        let list = output(self.stop, &mut command)??;
        let programs = list.lines().filter(|path| !path.ends_with("/busybox"));
        Ok(Busybox {
            programs: programs.map(str::to_owned).collect(),
            file,
        })
    }
}

/// The files of a package that are wanted.
fn read(
    stop: &Stop,
    candidate: &Candidate,
    debs: &BTreeMap<String, PathBuf>,
    keep: impl Fn(&str) -> bool,
) -> Result<Tree> {
    let name = &candidate.name;
    let path = debs
        .get(name)
        .ok_or_else(|| Error::NotFetched(format!("{name} was left out")))?;
    deb::read(stop, path, keep).map_err(|source| Error::Package {
        package: name.clone(),
        source: Box::new(source),
    })
}

/// The kernel, with what it needs for a root on a disk if there is to be one.
fn kernel(
    stop: &Stop,
    candidate: &Candidate,
    debs: &BTreeMap<String, PathBuf>,
    disk: bool,
) -> Result<Kernel> {
    let keep = |path: &str| path.starts_with("boot/vmlinuz-") || path.starts_with(MODULES);
    let package = read(stop, candidate, debs, keep)?;
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
    let needs = if disk {
        [&modules::NEEDED[..], &modules::NEEDED_FOR_DISK].concat()
    } else {
        modules::NEEDED.to_vec()
    };
    let ordered = modules::order(files, &built_in, &needs);
    let modules = ordered.map_err(|source| Error::Package {
        package: candidate.name.clone(),
        source: Box::new(source.into()),
    })?;
    Ok(Kernel {
        release: release.to_owned(),
        image: image.to_vec(),
        modules,
    })
}

fn lacks(package: &Candidate, what: &'static str) -> Error {
    Error::Lacks {
        package: package.name.clone(),
        what,
    }
}

fn manifest(request: &Request, plan: &Plan, kernel: &Kernel, initrd: &[u8]) -> Manifest {
    let fixed = [&plan.kernel, &plan.busybox];
    let all = fixed.into_iter().chain(&plan.installed);
    let mut packages: Vec<Package> = all.map(Candidate::package).collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages.dedup();
    Manifest {
        format: FORMAT,
        kernel: plan.kernel.package(),
        kernel_release: kernel.release.clone(),
        packages,
        modules: kernel.modules.iter().map(|m| m.name.clone()).collect(),
        command: request.command.clone(),
        cmdline: request.cmdline.clone(),
        memory_mib: 0,
        disk: request.disk,
        disk_bytes: None,
        tells_status: true,
        without_capabilities: Vec::new(),
        ports: request
            .container
            .as_ref()
            .map(|container| container.ports())
            .unwrap_or_default(),
        inputs_sha256: plan.inputs.clone(),
        kernel_sha256: sha256(&kernel.image),
        initrd_sha256: sha256(initrd),
    }
}
