//! What is measured: one image, and what can serve from it.

use super::super::engines::{QEMU, installed};
use super::super::linux::{build_of, with_bundle, write};
use crate::error::{BenchError, Outcome};
use crate::qemu;
use bundle::Bundle;
use kit::During;
use serde::Serialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The package that serves.
pub const SERVER: &str = "redis-server";

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

    /// Arguments of QEMU.
    pub fn qemu_args(&self, tsc_khz: u64) -> Vec<OsString> {
        let machine = qemu::Machine {
            kernel: &self.file("kernel"),
            initrd: &self.file("initrd"),
            cmdline: &self.cmdline,
            memory_mib: self.guest.memory_mib,
            disk: None,
        };
        machine.args(tsc_khz)
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
pub fn qemu_program() -> Outcome<PathBuf> {
    installed(QEMU).ok_or_else(|| BenchError::said(format!("{QEMU} is not installed")))
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
}
