//! The Linux guest that is measured: the same kernel and the same first root for every engine.

use crate::error::{BenchError, Outcome};
use bundle::Bundle;
use bundle::cpio::{CpioError, Meta, S_IFREG, Writer};
use guests::CPU;
use kit::guest::make_image;
use kit::{During, KitResult};
use std::path::{Path, PathBuf};

/// Guest memory, in MiB.
pub const MEMORY_MIB: u32 = 256;
/// Most bytes of an image file.
const IMAGE_MAX: u64 = 1 << 30;
/// The kernel's command line, but for what runs: no clock is doubted that a slow engine keeps, and
/// nothing is done against faults of processors nobody emulates.
const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off tandem.ip=none tandem.run=";

/// Files of the guest, in a folder that goes with this.
pub struct Linux {
    folder: tempfile::TempDir,
    /// As the kernel calls its release.
    pub release: String,
}

impl Linux {
    /// From an image `tandem image` made, or one that it makes now.
    pub fn prepare(image: Option<&Path>) -> Outcome<Self> {
        let folder = tempfile::tempdir().during("cannot make a folder")?;
        let path = match image {
            Some(path) => path.to_owned(),
            None => build(folder.path())?,
        };
        with_bundle(&path, |bundle| Self::unpack(bundle, folder))
    }

    /// The files of an image, in `folder`.
    fn unpack(bundle: &Bundle<'_>, folder: tempfile::TempDir) -> Outcome<Self> {
        let linux = Self {
            release: bundle.manifest.kernel_release.clone(),
            folder,
        };
        write(&linux.kernel(), bundle.kernel)?;
        write(
            &linux.initrd(),
            &with_program(bundle.initrd).during("cannot add the program to the first root")?,
        )?;
        write_program(&linux.program())?;
        Ok(linux)
    }

    /// A file beside the guest's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The bzImage.
    pub fn kernel(&self) -> PathBuf {
        self.file("kernel")
    }

    /// The first root, with the program in it.
    pub fn initrd(&self) -> PathBuf {
        self.file("initrd")
    }

    /// The program for this host.
    pub fn program(&self) -> PathBuf {
        self.file("cpu")
    }

    /// The kernel's command line to run `command`, of words without spaces and commas.
    pub fn cmdline(command: &[String]) -> String {
        format!("{CMDLINE}{}", command.join(","))
    }
}

/// Does `then` with what is in the image at `path`, which has its root in memory.
pub fn with_bundle<T>(path: &Path, then: impl FnOnce(&Bundle<'_>) -> Outcome<T>) -> Outcome<T> {
    let during = format!("cannot read the image {}", path.display());
    let meta = std::fs::metadata(path).during(&during)?;
    if !meta.is_file() || meta.len() > IMAGE_MAX {
        return Err(BenchError::said(format!(
            "{} is not what `tandem image` makes",
            path.display()
        )));
    }
    let bytes = std::fs::read(path).during(&during)?;
    let bundle = Bundle::parse(&bytes).during(path.display())?;
    if bundle.manifest.disk {
        return Err(BenchError::said(format!(
            "{} has its root on a disk; an image without one is needed",
            path.display()
        )));
    }
    then(&bundle)
}

/// A first root with the program as `/cpu` in it: Linux unpacks archives that stand one behind the other.
fn with_program(initrd: &[u8]) -> Result<Vec<u8>, CpioError> {
    let program = Meta {
        mode: S_IFREG | 0o755,
        ..Meta::default()
    };
    let mut more = Writer::default();
    more.add("cpu", program, CPU)?;
    // An archive begins at a multiple of 4 (Documentation/driver-api/early-userspace/buffer-format.rst).
    let mut all = initrd.to_vec();
    all.resize(all.len().next_multiple_of(4), 0);
    all.extend(more.finish());
    Ok(all)
}

/// Writes a file of the guest's.
pub fn write(path: &Path, bytes: &[u8]) -> KitResult {
    std::fs::write(path, bytes).during(format_args!("cannot write {}", path.display()))
}

/// Writes the program to `path`, to be run on this host.
fn write_program(path: &Path) -> KitResult {
    use std::os::unix::fs::PermissionsExt;
    write(path, CPU)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .during(format_args!("cannot change {}", path.display()))
}

/// An image without packages in `folder`.
fn build(folder: &Path) -> Outcome<PathBuf> {
    build_of(folder.join("shell.img"), &[])
}

/// An image of `packages` at `path`.
pub fn build_of(path: PathBuf, packages: &[&str]) -> Outcome<PathBuf> {
    match make_image(&path, packages)? {
        None => Ok(path),
        Some(why) => Err(BenchError::said(format!(
            "no Linux image to measure with: {why} (one made elsewhere can be given with --image)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::cpio::Reader;

    #[test]
    fn the_program_is_a_static_file_behind_the_first_root() {
        assert!(CPU.starts_with(b"\x7fELF"));
        let all = with_program(b"070701 odd").unwrap();
        assert_eq!(all[..12], *b"070701 odd\0\0");
        let members: Vec<_> = Reader::new(&all[12..]).map(|m| m.unwrap()).collect();
        let [program] = &members[..] else {
            panic!("{} members", members.len())
        };
        assert_eq!((program.name, program.data), ("cpu", CPU));
    }

    #[test]
    fn the_guest_is_told_what_to_run_in_one_word() {
        let command = ["/cpu", "all", "3"].map(String::from);
        assert!(Linux::cmdline(&command).ends_with(" tandem.run=/cpu,all,3"));
    }
}
