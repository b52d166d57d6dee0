//! From what was asked for and what apt knows, to what an image is built from.

use crate::apt::{Candidate, is_name};
use crate::error::{Error, Result};
use crate::ext4;
use crate::oci::Container;
use crate::rootfs::Root;
use crate::services::Service;
use crate::tree::Tree;
use crate::{Place, Spec};
use bundle::{FORMAT, Package, sha256};
use serde::Serialize;
use std::collections::BTreeMap;

/// The packages that make systemd process 1, tell it of devices (without those it waits for its console), and let
/// systemctl ask logind for the machine's end.
const SYSTEMD: [&str; 3] = ["systemd-sysv", "udev", "dbus"];
/// The package busybox is from.
pub const BUSYBOX: &str = "busybox-static";
/// The kernel command line, if nobody gives another: messages on the console, but few (each byte of them
/// is an output that waits for the backup); a kernel that panics resets the machine, which ends it; the
/// time-stamp counter is derived from the instruction clock, and no other clock checks it; there is no
/// speculation to be guarded against.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off";
/// A digest of this crate's sources (build.rs of the crate), in hexadecimal: lists, scripts, what the tools are told.
const SOURCES: &str = env!("TANDEM_IMAGE_SOURCES");
/// Memory of the kernel itself, in MiB, with room to breathe.
const KERNEL_MIB: u64 = 96;
/// Memory of a shell, in MiB, beside the kernel's and its root's.
const SHELL_MIB: u64 = 64;
/// Memory of a command nothing is known of.
const COMMAND_MIB: u64 = 416;
/// Most memory of a machine, in MiB.
const MEMORY_MAX_MIB: u64 = 3072;

/// What is asked of an image, worked out.
#[derive(Debug)]
pub struct Request {
    /// The command it runs; none for a shell.
    pub command: Option<String>,
    /// The packages asked for, the service's among them. If there are none, busybox is all there is.
    pub packages: Vec<String>,
    /// The kernel command line.
    pub cmdline: String,
    /// Whether the root goes on a disk.
    pub disk: bool,
    /// The disk's size, if it was given.
    size_mib: Option<u32>,
    /// The guest's memory, if it was given.
    memory_mib: Option<u32>,
    /// The kernel's package, or one that depends on it.
    pub kernel_package: String,
    /// The service it is for.
    service: Option<&'static Service>,
    /// Whether systemd is its process 1.
    systemd: bool,
    /// The container's image its root is of.
    pub container: Option<Container>,
}

/// What an image is built from.
#[derive(Debug)]
pub struct Plan {
    /// The kernel's package.
    pub kernel: Candidate,
    /// busybox's.
    pub busybox: Candidate,
    /// The packages that are installed in the root.
    pub installed: Vec<Candidate>,
    /// SHA-256 over all that decides how the image comes out, in hexadecimal.
    pub inputs: String,
}

/// A package's name without its version.
fn bare(name: &str) -> &str {
    name.split('=').next().unwrap_or_default()
}

impl Request {
    /// Works out what is asked for.
    ///
    /// # Errors
    /// If a name can be no package's, or no service is known by it.
    pub fn new(spec: &Spec) -> Result<Self> {
        let says = spec.command.is_some() || spec.service.is_some() || spec.systemd;
        if spec.container.is_some() && (says || !spec.packages.is_empty()) {
            return Err(Error::ContainerAlone);
        }
        let container = spec.container.as_deref().map(Container::open).transpose()?;
        let mut packages = spec.packages.clone();
        let kernel_package = spec.kernel_package.clone();
        for name in packages.iter().chain([&kernel_package]) {
            if !is_name(name) {
                return Err(Error::NoName(name.escape_debug().to_string()));
            }
        }
        if spec.systemd {
            // Units say what runs, and systemd needs room to write.
            if spec.command.is_some() || spec.service.is_some() || spec.root == Place::Memory {
                return Err(Error::SystemdRuns);
            }
            packages.extend(SYSTEMD.map(str::to_owned));
        }
        let service = match (&spec.service, &spec.command) {
            _ if spec.systemd => None,
            (Some(name), _) => {
                Some(Service::named(name).ok_or_else(|| Error::NoService(name.clone()))?)
            }
            (None, Some(_)) => None,
            (None, None) => packages.iter().find_map(|name| Service::named(bare(name))),
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
        let disk = match &spec.root {
            Place::Disk(_) => true,
            Place::Memory => false,
            Place::Usual => !packages.is_empty() || container.is_some(),
        };
        if let (false, Some(size_mib)) = (disk, spec.size_mib) {
            return Err(Error::SizeOfNoDisk(size_mib));
        }
        let command = spec.command.clone();
        let command = command.or_else(|| {
            Some(
                container
                    .as_ref()?
                    .words()
                    .join(" ")
                    .escape_debug()
                    .to_string(),
            )
        });
        let command = command.or_else(|| service.map(|service| service.command(disk)));
        if command.as_ref().is_some_and(|line| line.contains('\n')) {
            return Err(Error::CommandLines);
        }
        Ok(Self {
            command,
            packages,
            cmdline: spec.cmdline.clone().unwrap_or_else(|| CMDLINE.to_owned()),
            disk,
            size_mib: spec.size_mib,
            memory_mib: spec.memory_mib,
            kernel_package,
            service,
            systemd: spec.systemd,
            container,
        })
    }

    /// The names of what boots the guest, for apt.
    pub fn boot_names(&self) -> Vec<String> {
        vec![self.kernel_package.clone(), BUSYBOX.to_owned()]
    }

    /// The packages asked for, without versions.
    pub fn installed_names(&self) -> Vec<String> {
        self.packages
            .iter()
            .map(|name| bare(name).to_owned())
            .collect()
    }

    /// What the root is made for; `name` is its name on a disk.
    pub fn root<'a>(&'a self, name: &'a str) -> Root<'a> {
        Root {
            command: self.command.as_deref(),
            files: self.service.map_or(&[], |service| service.files),
            on_disk: self.disk.then_some(name),
            systemd: self.systemd,
        }
    }

    /// The disk's size in MiB, for a root of these files.
    pub fn disk_mib(&self, root: &Tree) -> u64 {
        self.size_mib
            .map_or_else(|| ext4::size_mib(root), u64::from)
    }

    /// Memory the guest is comfortable with, in MiB, if its first root has these files and is an archive of so
    /// many bytes.
    ///
    /// # Errors
    /// If no machine has so much.
    pub fn memory_mib(&self, first: &Tree, initrd_bytes: u64) -> Result<u32> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (root, initrd) = (mib(first.bytes()), mib(initrd_bytes));
        let work = match self.service {
            Some(service) => u64::from(service.memory_mib),
            None if !self.packages.is_empty() || self.container.is_some() => COMMAND_MIB,
            None => SHELL_MIB,
        };
        // While it is unpacked the archive is in memory, too, and the root may have half of all else.
        let unpacked = KERNEL_MIB + initrd + 2 * root;
        // Then there are the root and what works on it; in memory it is written to, too.
        let room = if self.disk { 0 } else { work / 2 };
        let needed = unpacked.max(KERNEL_MIB + root + work + room);
        let needed = needed.next_multiple_of(32);
        let asked = self.memory_mib.map_or(needed, u64::from);
        match u32::try_from(asked) {
            Ok(asked) if u64::from(asked) <= MEMORY_MAX_MIB => Ok(asked),
            _ => Err(Error::TooLargeForMemory {
                root_mib: root,
                needed_mib: needed,
                most_mib: MEMORY_MAX_MIB,
            }),
        }
    }
}

/// Chooses what an image is built from: `boot` are the packages an installation of what boots it would have,
/// `installed` those of its root.
///
/// # Errors
/// If the kernel's or busybox's is not among them.
pub fn plan(
    request: &Request,
    boot: &BTreeMap<String, Candidate>,
    installed: BTreeMap<String, Candidate>,
) -> Result<Plan> {
    let kernel = kernel(&request.kernel_package, boot)?;
    let busybox = boot
        .get(BUSYBOX)
        .ok_or_else(|| Error::NotChosen(BUSYBOX.to_owned()))?;
    let installed: Vec<_> = installed.into_values().collect();
    let inputs = inputs(request, kernel, busybox, &installed)?;
    Ok(Plan {
        kernel: kernel.clone(),
        busybox: busybox.clone(),
        installed,
        inputs,
    })
}

/// The package that has the kernel: the one named, or the one that depends on.
fn kernel<'a>(named: &str, all: &'a BTreeMap<String, Candidate>) -> Result<&'a Candidate> {
    let missing = || Error::NotChosen(format!("the kernel {}", bare(named)));
    let named = all.get(bare(named)).ok_or_else(missing)?;
    let depends = named.depends();
    let other = depends.iter().find(|name| name.starts_with("linux-image-"));
    Ok(other.and_then(|name| all.get(*name)).unwrap_or(named))
}

/// What decides how an image comes out.
#[derive(Serialize)]
struct Inputs<'a> {
    format: u32,
    kernel: &'a str,
    busybox: &'a str,
    installed: Vec<&'a str>,
    names: Vec<String>,
    systemd: bool,
    container: Option<&'a str>,
    command: Option<&'a str>,
    files: &'a [(&'a str, &'a str)],
    cmdline: &'a str,
    disk: bool,
    size_mib: Option<u32>,
    memory_mib: Option<u32>,
}

fn inputs(
    request: &Request,
    kernel: &Candidate,
    busybox: &Candidate,
    installed: &[Candidate],
) -> Result<String> {
    let (root, container) = (request.root(""), request.container.as_ref());
    digest(&Inputs {
        format: FORMAT,
        kernel: &kernel.sha256,
        busybox: &busybox.sha256,
        installed: installed.iter().map(|c| c.sha256.as_str()).collect(),
        names: request.installed_names(),
        systemd: root.systemd,
        container: container.map(|container| container.digest.as_str()),
        command: root.command,
        files: root.files,
        cmdline: &request.cmdline,
        disk: request.disk,
        size_mib: request.size_mib,
        memory_mib: request.memory_mib,
    })
}

/// SHA-256 over what decides how an image comes out, in hexadecimal: these inputs, and this crate.
///
/// # Errors
/// If they cannot be put into words.
pub fn digest(inputs: &impl Serialize) -> Result<String> {
    let words = serde_json::to_vec(&(SOURCES, inputs)).map_err(|source| Error::Json {
        what: "inputs",
        source,
    })?;
    Ok(sha256(&words))
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
    use crate::tree::Node;

    /// What is asked for by these words, which are those of the command line.
    fn request(line: &str) -> Result<Request> {
        let mut spec = Spec::new("x.img");
        let mut words = line.split_whitespace().map(str::to_owned);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--service" => spec.service = words.next(),
                "--run" => spec.command = words.next(),
                "--cmdline" => spec.cmdline = words.next(),
                "--disk" => spec.root = Place::Disk(words.next().unwrap().into()),
                "--in-memory" => spec.root = Place::Memory,
                "--systemd" => spec.systemd = true,
                "--size" => spec.size_mib = Some(words.next().unwrap().parse().unwrap()),
                "--memory" => spec.memory_mib = Some(words.next().unwrap().parse().unwrap()),
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
                stanza: format!("Package: {name}\nDepends: {needs}"),
                ..Candidate::default()
            };
            ((*name).to_owned(), candidate)
        };
        packages.iter().map(candidate).collect()
    }

    fn boot() -> BTreeMap<String, Candidate> {
        all(&[
            (
                "linux-image-cloud-amd64",
                "linux-image-6.1.0-9-cloud-amd64 (= 6.1)",
            ),
            ("linux-image-6.1.0-9-cloud-amd64", "kmod, initramfs-tools"),
            ("kmod", "libc6"),
            ("busybox-static", ""),
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
            assert_eq!(request.installed_names(), ["redis-server"], "{line}");
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
    fn systemd_runs_the_units_of_the_packages() {
        let request = request("--systemd redis-server").unwrap();
        assert_eq!(
            request.installed_names(),
            ["dbus", "redis-server", "systemd-sysv", "udev"]
        );
        assert!(request.disk && request.command.is_none());
        assert!(request.root("name").systemd);
    }

    #[test]
    fn the_root_is_on_a_disk_unless_busybox_is_all_or_it_was_asked_otherwise() {
        let disk = |line: &str| request(line).unwrap().disk;
        assert!(disk("redis") && disk("--run x strace") && disk("--disk d.ext4"));
        assert!(!disk("") && !disk("--run x") && !disk("--in-memory redis"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |line: &str| request(line).unwrap_err().to_string();
        assert!(error("--service nothing").contains("redis, memcached, nginx"));
        assert!(error("Bad").contains("'Bad' is no package's name"));
        assert!(error("--in-memory --size 64 redis").contains("no disk"));
        for line in [
            "--systemd --run x",
            "--systemd --service redis",
            "--systemd --in-memory",
        ] {
            assert!(error(line).contains("systemd"), "{line}");
        }
    }

    #[test]
    fn the_kernel_is_the_one_its_package_depends_on() {
        let plan = plan(&request("strace").unwrap(), &boot(), all(&[("strace", "")])).unwrap();
        assert_eq!(plan.kernel.name, "linux-image-6.1.0-9-cloud-amd64");
        let none = super::plan(&request("").unwrap(), &all(&[]), all(&[])).unwrap_err();
        assert!(none.to_string().contains("linux-image-cloud-amd64"));
    }

    #[test]
    fn memory_holds_the_archive_and_twice_the_root_while_that_is_unpacked() {
        let mut tree = Tree::default();
        tree.insert("x", Node::file(vec![0; 300 << 20], 0o644));
        let memory = |line: &str| request(line).unwrap().memory_mib(&tree, 300 << 20);
        assert!(memory("--in-memory --run x y").unwrap() >= 900 + 96);
        assert_eq!(memory("--in-memory --memory 200 redis").unwrap(), 200);
        tree.insert("y", Node::file(vec![0; 900 << 20], 0o644));
        let most = request("--in-memory redis")
            .unwrap()
            .memory_mib(&tree, 1200 << 20);
        assert!(most.unwrap_err().to_string().contains("1200 MiB"));
    }

    #[test]
    fn inputs_differ_when_anything_does() {
        let inputs = |line: &str, boot: &BTreeMap<String, Candidate>| {
            let request = request(line).unwrap();
            let installed = request.packages.iter().map(|name| (name.as_str(), ""));
            let installed = all(&installed.collect::<Vec<_>>());
            plan(&request, boot, installed).unwrap().inputs
        };
        let mut newer = boot();
        newer.get_mut("busybox-static").unwrap().sha256 = sha256(b"newer");
        let lines = [
            "",
            "redis",
            "strace",
            "--run true",
            "--cmdline x",
            "--disk d.ext4",
            "--memory 99",
            "--systemd",
        ];
        let mut found: Vec<_> = lines.iter().map(|line| inputs(line, &boot())).collect();
        found.push(inputs("", &newer));
        assert_eq!(found[0], inputs("", &boot()));
        let count = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count);
    }
}
