//! From what was asked for and what apt knows, to what an image is built from.

use crate::Spec;
use crate::apt::Candidate;
use crate::depends;
use crate::error::{Error, Result};
use crate::ext4;
use crate::rootfs::{self, Root};
use crate::services::Service;
use crate::tree::{Node, Tree};
use bundle::{FORMAT, Package, sha256};
use serde::Serialize;
use std::collections::BTreeMap;

/// The package busybox is from.
pub const BUSYBOX: &str = "busybox-static";
/// The kernel command line, if nobody gives another: messages on the console, but few (each byte of them
/// is an output that waits for the backup); a kernel that panics resets the machine, which ends it; the
/// time-stamp counter is derived from the instruction clock, and no other clock checks it; there is no
/// speculation to be guarded against.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off";
/// Counts changes of what is built from the same inputs.
const RECIPE: u32 = 1;

/// What is asked of an image, worked out.
#[derive(Debug)]
pub struct Request {
    /// The service it is for.
    pub service: Option<&'static Service>,
    /// The command it runs; none for a shell.
    pub command: Option<String>,
    /// The packages asked for, the service's among them.
    pub packages: Vec<String>,
    /// The kernel command line.
    pub cmdline: String,
    /// Whether the root goes on a disk.
    pub disk: bool,
    /// The disk's size, if it was given.
    pub size_mib: Option<u32>,
    /// The kernel's package, or one that depends on it.
    pub kernel_package: String,
}

/// What an image is built from.
#[derive(Debug)]
pub struct Plan {
    /// The kernel's package.
    pub kernel: Candidate,
    /// busybox's.
    pub busybox: Candidate,
    /// Packages files are taken from, and whether all of them are.
    pub sources: Vec<(Candidate, bool)>,
    /// SHA-256 over all that decides how the image comes out, in hexadecimal.
    pub inputs: String,
}

impl Request {
    /// Works out what is asked for.
    ///
    /// # Errors
    /// If a name can be no package's, or no service is known by it.
    pub fn new(spec: &Spec) -> Result<Self> {
        let mut packages = spec.packages.clone();
        let kernel_package = spec.kernel_package.clone();
        for name in packages.iter().chain([&kernel_package]) {
            if !crate::apt::is_name(name) {
                return Err(Error::NoName(name.escape_debug().to_string()));
            }
        }
        let bare = |name: &str| name.split('=').next().unwrap_or_default().to_owned();
        let service = match (&spec.service, &spec.command) {
            (Some(name), _) => {
                Some(Service::named(name).ok_or_else(|| Error::NoService(name.clone()))?)
            }
            (None, Some(_)) => None,
            (None, None) => packages.iter().find_map(|name| Service::named(&bare(name))),
        };
        if let Some(service) = service {
            // The service's own name is asked for where the package has another.
            packages.retain(|name| name != service.name || name == service.package);
            if packages.iter().all(|name| bare(name) != service.package) {
                packages.push(service.package.to_owned());
            }
        }
        packages.sort();
        packages.dedup();
        let disk = spec.disk.is_some();
        let command = spec.command.clone();
        let command = command.or_else(|| service.map(|service| service.command(disk)));
        if command.as_ref().is_some_and(|line| line.contains('\n')) {
            return Err(Error::CommandLines);
        }
        Ok(Self {
            service,
            command,
            packages,
            cmdline: spec.cmdline.clone().unwrap_or_else(|| CMDLINE.to_owned()),
            disk,
            size_mib: spec.size_mib,
            kernel_package,
        })
    }

    /// All names apt is asked for.
    pub fn names(&self) -> Vec<String> {
        let base = [self.kernel_package.clone(), BUSYBOX.to_owned()];
        base.into_iter().chain(self.packages.clone()).collect()
    }

    /// What the root is made for.
    pub fn root(&self) -> Root<'_> {
        Root {
            command: self.command.as_deref(),
            folders: self.service.map_or(&[], |service| service.folders),
            files: self.service.map_or(&[], |service| service.files),
            disk: self.disk,
        }
    }

    /// The disk's size in MiB, for a root of these files.
    pub fn disk_mib(&self, root: &Tree) -> u64 {
        self.size_mib
            .map_or_else(|| ext4::size_mib(root), u64::from)
    }
}

/// Chooses the packages an image is built from, of all an installation would have.
///
/// # Errors
/// If the kernel's or busybox's is not among them.
pub fn plan(request: &Request, all: &BTreeMap<String, Candidate>) -> Result<Plan> {
    let kernel = kernel(&request.kernel_package, all)?;
    let busybox = all
        .get(BUSYBOX)
        .ok_or_else(|| Error::NotChosen(BUSYBOX.to_owned()))?;
    let bare = |name: &String| name.split('=').next().unwrap_or_default().to_owned();
    let named: Vec<String> = request.packages.iter().map(bare).collect();
    // A service's packages give what it needs; others that were named are there whole.
    let own = request.service.map(|service| service.package);
    let for_whole: Vec<String> = named
        .iter()
        .filter(|name| own != Some(name.as_str()))
        .cloned()
        .collect();
    let whole = depends::needed(&for_whole, all);
    let sources: Vec<(Candidate, bool)> = depends::needed(&named, all)
        .iter()
        .filter_map(|name| {
            Some((
                all.get(name)?.clone(),
                whole.contains(name) && name != "libc6",
            ))
        })
        .filter(|(candidate, _)| candidate.name != BUSYBOX && candidate.name != kernel.name)
        .collect();
    let inputs = inputs(request, kernel, busybox, &sources)?;
    Ok(Plan {
        kernel: kernel.clone(),
        busybox: busybox.clone(),
        sources,
        inputs,
    })
}

/// The package that has the kernel: the one named, or the one that depends on.
fn kernel<'a>(named: &str, all: &'a BTreeMap<String, Candidate>) -> Result<&'a Candidate> {
    let bare = named.split('=').next().unwrap_or_default();
    let missing = || Error::NotChosen(format!("the kernel {bare}"));
    let named = all.get(bare).ok_or_else(missing)?;
    let image = |name: &&String| name.starts_with("linux-image-");
    let other = named.depends.iter().flatten().find(image);
    Ok(other.and_then(|name| all.get(name)).unwrap_or(named))
}

/// What decides how an image comes out.
#[derive(Serialize)]
struct Inputs<'a> {
    format: u32,
    recipe: u32,
    program: &'static str,
    packages: Vec<(&'a str, bool)>,
    base: String,
    roots: &'a [&'a str],
    cmdline: &'a str,
    disk: bool,
    size_mib: Option<u32>,
}

fn inputs(
    request: &Request,
    kernel: &Candidate,
    busybox: &Candidate,
    sources: &[(Candidate, bool)],
) -> Result<String> {
    let fixed = [(kernel, false), (busybox, false)];
    let sources = sources.iter().map(|(candidate, whole)| (candidate, *whole));
    let packages = fixed.into_iter().chain(sources);
    // The scripts, the base system's files and the command, without what packages add to them.
    let base = rootfs::root(&Node::file(*b"", 0o755), &Tree::default(), &request.root());
    let base = [base.to_cpio()?, rootfs::INIT.as_bytes().to_vec()].concat();
    let inputs = Inputs {
        format: FORMAT,
        recipe: RECIPE,
        program: env!("CARGO_PKG_VERSION"),
        packages: packages
            .map(|(candidate, whole)| (candidate.sha256.as_str(), whole))
            .collect(),
        base: sha256(&base),
        roots: request.service.map_or(&[], |service| service.roots),
        cmdline: &request.cmdline,
        disk: request.disk,
        size_mib: request.size_mib,
    };
    let inputs = serde_json::to_vec(&inputs).map_err(|source| Error::Json {
        what: "inputs",
        source,
    })?;
    Ok(sha256(&inputs))
}

impl Candidate {
    /// As an image's description names it.
    pub fn package(&self) -> Package {
        Package {
            name: self.name.clone(),
            version: self.version.clone(),
            sha256: self.sha256.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked for by these words, which are those of the command line.
    fn request(line: &str) -> Result<Request> {
        let mut spec = Spec::new("x.img");
        let mut words = line.split_whitespace().map(str::to_owned);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--service" => spec.service = words.next(),
                "--run" => spec.command = words.next(),
                "--cmdline" => spec.cmdline = words.next(),
                "--disk" => spec.disk = words.next().map(Into::into),
                _ => spec.packages.push(word),
            }
        }
        Request::new(&spec)
    }

    fn all(packages: &[(&str, &str)]) -> BTreeMap<String, Candidate> {
        let candidate = |(name, needs): &(&str, &str)| {
            let candidate = Candidate {
                name: (*name).to_owned(),
                sha256: sha256(name.as_bytes()),
                depends: depends::parse(needs),
                ..Candidate::default()
            };
            ((*name).to_owned(), candidate)
        };
        packages.iter().map(candidate).collect()
    }

    fn debian() -> BTreeMap<String, Candidate> {
        all(&[
            ("linux-image-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"),
            ("linux-image-6.1.0-9-cloud-amd64", "kmod, initramfs-tools"),
            ("kmod", "libc6"),
            ("busybox-static", ""),
            ("redis-server", "redis-tools"),
            ("redis-tools", "libc6"),
            ("strace", "libc6, libunwind8"),
            ("libunwind8", "libc6"),
            ("libc6", ""),
        ])
    }

    #[test]
    fn a_package_is_enough_to_ask_for_its_service() {
        let redis = Service::named("redis");
        for line in [
            "redis-server",
            "redis",
            "--service redis",
            "redis-server=5:7.0",
        ] {
            let request = request(line).unwrap();
            assert_eq!(request.service, redis, "{line}");
            assert!(
                request
                    .packages
                    .iter()
                    .any(|name| name.starts_with("redis-server"))
            );
            assert!(!request.packages.contains(&"redis".to_owned()));
        }
        let shell = request("").unwrap();
        assert_eq!((shell.service, shell.command), (None, None));
        let run = request("--run uptime redis-server").unwrap();
        assert_eq!(
            (run.service, run.command.as_deref()),
            (None, Some("uptime"))
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |line: &str| request(line).unwrap_err().to_string();
        assert!(error("--service nothing").contains("redis, memcached, nginx"));
        assert!(error("Bad").contains("'Bad' is no package's name"));
    }

    #[test]
    fn a_services_packages_give_what_it_needs_and_others_all() {
        let plan = plan(&request("redis-server strace").unwrap(), &debian()).unwrap();
        let sources: Vec<_> = plan
            .sources
            .iter()
            .map(|(c, whole)| (c.name.as_str(), *whole))
            .collect();
        let expected = [
            ("libc6", false),
            ("libunwind8", true),
            ("redis-server", false),
            ("redis-tools", false),
            ("strace", true),
        ];
        assert_eq!(sources, expected);
        assert_eq!(plan.kernel.name, "linux-image-6.1.0-9-cloud-amd64");
    }

    #[test]
    fn inputs_differ_when_anything_does() {
        let inputs = |line: &str, all: &BTreeMap<String, Candidate>| {
            plan(&request(line).unwrap(), all).unwrap().inputs
        };
        let mut newer = debian();
        newer.get_mut("busybox-static").unwrap().sha256 = sha256(b"newer");
        let lines = [
            "",
            "redis",
            "strace",
            "--run true",
            "--cmdline x",
            "--disk d.ext4",
        ];
        let mut found: Vec<_> = lines.iter().map(|line| inputs(line, &debian())).collect();
        found.push(inputs("", &newer));
        assert_eq!(found[0], inputs("", &debian()));
        let count = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count);
    }
}
