//! What is measured: one image, and what can serve from it.

use super::super::engines::{QEMU, QEMU_CPU, installed};
use super::super::linux::{build_of, with_bundle, write};
use crate::error::{BenchError, Outcome};
use bundle::Bundle;
use kit::During;
use kit::cluster::TAPS;
use serde::Serialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The package that serves.
pub const SERVER: &str = "redis-server";
/// The guest's hardware address, on every engine.
const MAC: &str = "52:54:00:7a:4d:01";
/// For how long the host's time-stamp counter is held against its clock.
const TSC_LOOK: Duration = Duration::from_millis(200);

/// The guest, for the results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RedisGuest {
    /// Release of the Linux kernel.
    pub kernel: String,
    /// Version of Debian's package redis-server.
    pub server: String,
    /// Its memory.
    pub memory_mib: u32,
}

/// Files of the guest, in a folder that goes with this.
pub struct Files {
    folder: tempfile::TempDir,
    /// What `tandem run` takes.
    pub image: PathBuf,
    /// What it is.
    pub guest: RedisGuest,
    cmdline: String,
}

impl Files {
    /// From an image `tandem image` made, or one that it makes now.
    pub fn prepare(image: Option<&Path>) -> Outcome<Self> {
        let folder = tempfile::tempdir().during("cannot make a folder")?;
        let image = match image {
            Some(path) => path.to_owned(),
            None => build_of(folder.path().join("redis.img"), &[SERVER])?,
        };
        let (guest, cmdline) = with_bundle(&image, |bundle| {
            let guest = guest_in(bundle).ok_or_else(|| {
                BenchError::said(format!(
                    "{} does not run {SERVER}: `tandem image -o FILE {SERVER}` makes one that does",
                    image.display()
                ))
            })?;
            write(&folder.path().join("kernel"), bundle.kernel)?;
            write(&folder.path().join("initrd"), bundle.initrd)?;
            Ok((guest, bundle.manifest.cmdline.clone()))
        })?;
        Ok(Self {
            folder,
            image,
            guest,
            cmdline,
        })
    }

    /// A file beside the guest's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The guest and its options, as for `tandem run` and `tandem primary`.
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![self.image.clone().into()];
        words.extend(["--engine", "soft", "--cpu", "v2"].map(OsString::from));
        words
    }

    /// Arguments of QEMU: a machine with virtio over MMIO, as Tandem's is, and nothing else Linux does
    /// not need to boot.
    ///
    /// It has no PM timer to hold the time-stamp counter against (docs/system/i386/microvm.rst), so the kernel is
    /// told that counter's rate, which on Tandem is told too: TCG hands out the host's own.
    pub fn qemu_args(&self, tsc_khz: u64) -> Vec<OsString> {
        let mut args: Vec<OsString> = ["-machine", "microvm,acpi=on", "-nodefaults"]
            .into_iter()
            .chain(["-no-user-config", "-no-reboot", "-display", "none"])
            .chain(["-serial", "stdio", "-accel", "tcg"])
            .chain(["-cpu", QEMU_CPU, "-smp", "1"])
            .map(OsString::from)
            .collect();
        let cmdline = format!("tsc_early_khz={tsc_khz} {}", self.cmdline);
        let tap = format!("tap,id=net,ifname={},script=no,downscript=no", TAPS[0]);
        let device = format!("virtio-net-device,netdev=net,mac={MAC}");
        for (option, value) in [
            ("-m", OsString::from(self.guest.memory_mib.to_string())),
            ("-kernel", self.file("kernel").into()),
            ("-initrd", self.file("initrd").into()),
            ("-append", cmdline.into()),
            ("-netdev", tap.into()),
            ("-device", device.into()),
        ] {
            args.extend([option.into(), value]);
        }
        args
    }
}

/// What the image is a guest of, if it runs redis-server.
fn guest_in(bundle: &Bundle<'_>) -> Option<RedisGuest> {
    let manifest = &bundle.manifest;
    manifest.command.as_ref().filter(|c| c.contains(SERVER))?;
    let package = manifest.packages.iter().find(|p| p.name == SERVER)?;
    Some(RedisGuest {
        kernel: manifest.kernel_release.clone(),
        server: package.version.clone(),
        memory_mib: manifest.memory_mib,
    })
}

/// Where the program is that makes the requests.
pub fn client() -> Outcome<PathBuf> {
    installed("redis-benchmark").ok_or_else(|| {
        BenchError::said("redis-benchmark is not installed (Debian's package redis-tools)")
    })
}

/// Where QEMU is.
pub fn qemu() -> Outcome<PathBuf> {
    installed(QEMU).ok_or_else(|| BenchError::said(format!("{QEMU} is not installed")))
}

/// The rate of this host's time-stamp counter, in kHz.
pub fn tsc_khz() -> u64 {
    let look = || {
        // SAFETY: the instruction is there on every x86-64 processor, and only reads a counter.
        let ticks = unsafe { std::arch::x86_64::_rdtsc() };
        (Instant::now(), ticks)
    };
    let (begun, from) = look();
    std::thread::sleep(TSC_LOOK);
    let (ended, to) = look();
    let us = (ended - begun).as_micros().max(1);
    let ticks = u128::from(to.wrapping_sub(from));
    u64::try_from(ticks * 1000 / us).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{FORMAT, Manifest, Package, sha256};

    fn image(command: Option<&str>, folder: &Path) -> PathBuf {
        let (kernel, initrd) = (b"a bzImage".as_slice(), b"a cpio archive".as_slice());
        let package = |name: &str| Package {
            name: name.into(),
            version: "5:7.0.15".into(),
            sha256: sha256(b"its file"),
        };
        let manifest = Manifest {
            format: FORMAT,
            kernel: package("linux-image-cloud-amd64"),
            kernel_sha256: sha256(kernel),
            initrd_sha256: sha256(initrd),
            cmdline: "console=ttyS0 quiet".into(),
            memory_mib: 288,
            kernel_release: "6.1.0-cloud-amd64".into(),
            packages: vec![package("libc6"), package(SERVER)],
            modules: Vec::new(),
            command: command.map(str::to_owned),
            disk: false,
            disk_bytes: None,
            tells_status: true,
            without_capabilities: Vec::new(),
            ports: Vec::new(),
            inputs_sha256: sha256(b"inputs"),
        };
        let path = folder.join("image");
        let bundle = Bundle {
            kernel,
            initrd,
            manifest,
        };
        std::fs::write(&path, bundle.write().unwrap()).unwrap();
        path
    }

    #[test]
    fn every_engine_gets_the_image_s_kernel_root_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(Some("exec redis-server --bind 0.0.0.0"), folder.path());
        let files = Files::prepare(Some(&path)).unwrap();
        assert_eq!(files.guest.server, "5:7.0.15");
        assert_eq!(files.words()[0], path);
        assert_eq!(std::fs::read(files.file("kernel")).unwrap(), b"a bzImage");
        let args = files.qemu_args(2_100_000);
        let value = |option: &str| {
            let at = args.iter().position(|arg| arg == option).unwrap();
            args[at + 1].to_str().unwrap().to_owned()
        };
        assert_eq!(value("-m"), "288");
        assert_eq!(
            value("-append"),
            "tsc_early_khz=2100000 console=ttyS0 quiet"
        );
        assert!(value("-netdev").contains("ifname=tandem0,"));
        assert_eq!(PathBuf::from(value("-initrd")), files.file("initrd"));
    }

    #[test]
    fn an_image_of_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for command in [None, Some("exec memcached")] {
            let path = image(command, folder.path());
            let refused = Files::prepare(Some(&path)).err().unwrap().to_string();
            assert!(refused.contains("does not run redis-server"), "{refused}");
        }
    }

    #[test]
    fn the_counter_runs_as_fast_as_processors_do() {
        assert!((100_000..20_000_000).contains(&tsc_khz()), "{}", tsc_khz());
    }
}
