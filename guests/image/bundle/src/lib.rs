//! The image file: kernel, first root and a description, in one cpio archive.
//!
//! ```text
//!  OUT.img   cpio (newc)  ├ manifest.json  what it is made of, and how it is meant to be run
//!                         ├ kernel         a bzImage, as its package ships it
//!                         └ initrd         a cpio archive, not compressed
//! ```
//!
//! # Example
//!
//! ```
//! use bundle::{Bundle, BundleError, FORMAT, Manifest, Package, sha256};
//!
//! let (kernel, initrd) = (b"a bzImage".as_slice(), b"a cpio archive".as_slice());
//! let package = Package {
//!     name: "linux-image-cloud-amd64".into(),
//!     version: "6.1".into(),
//!     sha256: sha256(b"the package's file"),
//! };
//! let manifest = Manifest {
//!     format: FORMAT,
//!     kernel: package.clone(),
//!     kernel_sha256: sha256(kernel),
//!     initrd_sha256: sha256(initrd),
//!     cmdline: "console=ttyS0".into(),
//!     memory_mib: 128,
//! #   kernel_release: "6.1.0-cloud-amd64".into(),
//! #   packages: vec![package],
//! #   modules: Vec::new(),
//! #   command: None,
//! #   disk: false,
//! #   disk_bytes: None,
//! #   tells_status: true,
//! #   without_capabilities: Vec::new(),
//! #   ports: Vec::new(),
//! #   inputs_sha256: sha256(b"inputs"),
//!     // ...
//! };
//! let mut file = Bundle { kernel, initrd, manifest }.write()?;
//! assert!(Bundle::is_one(&file));
//! assert_eq!(Bundle::parse(&file)?.kernel, kernel);
//!
//! // No byte of kernel or first root changes unnoticed.
//! let at = file.windows(kernel.len()).position(|bytes| bytes == kernel).unwrap();
//! file[at] ^= 1;
//! assert!(matches!(Bundle::parse(&file), Err(BundleError::Damaged("kernel"))));
//! # Ok::<(), BundleError>(())
//! ```

pub mod cpio;

use cpio::{CpioError, Meta, Reader, S_IFREG, Writer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The format written here.
pub const FORMAT: u32 = 1;
/// Most bytes of a description.
const MANIFEST_MAX: usize = 1 << 20;
const MANIFEST: &str = "manifest.json";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

/// Where the first member's name stands in an image file, which tells it from other archives.
const NAME_AT: usize = 110;

/// A package an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the package's file, in hexadecimal.
    pub sha256: String,
}

/// What an image is made of, and how it is meant to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The image's format: [`FORMAT`].
    pub format: u32,
    /// The package the kernel is from.
    pub kernel: Package,
    /// The kernel's release, as `uname -r` has it.
    pub kernel_release: String,
    /// The packages files were taken from, by name.
    pub packages: Vec<Package>,
    /// The kernel's modules, in the order they are loaded.
    pub modules: Vec<String>,
    /// The command the guest runs; none for a shell.
    pub command: Option<String>,
    /// The kernel command line to boot it with, if nobody asks for another.
    pub cmdline: String,
    /// Memory the guest is comfortable with, in MiB.
    pub memory_mib: u32,
    /// Whether the root is on a disk image made along with this one.
    pub disk: bool,
    /// The size of that disk, if it is known: one that is smaller is not whole.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// Whether its guest's power-off ends with the command's exit status; one made before that could be
    /// ends with 0 whatever came of the command.
    #[serde(default)]
    pub tells_status: bool,
    /// The programs that have lost their file capabilities (capabilities(7)): the archive of a root in memory has none.
    #[serde(default)]
    pub without_capabilities: Vec<String>,
    /// The ports its server listens on, where that is known, each as a number and a protocol (`80/tcp`).
    #[serde(default)]
    pub ports: Vec<String>,
    /// SHA-256 over what the image was built from, in hexadecimal.
    pub inputs_sha256: String,
    /// SHA-256 of the member `kernel`, in hexadecimal.
    pub kernel_sha256: String,
    /// SHA-256 of the member `initrd`, in hexadecimal.
    pub initrd_sha256: String,
}

/// An image file, taken apart.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    /// The bzImage.
    pub kernel: &'a [u8],
    /// The first root.
    pub initrd: &'a [u8],
    /// What they are.
    pub manifest: Manifest,
}

/// Why bytes are no image.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The archive is broken.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// A member is not there.
    #[error("the image has no member '{0}'")]
    Missing(&'static str),
    /// A member is there twice, or is none of an image's.
    #[error("the image has a member '{0}' it should not have")]
    Unexpected(String),
    /// The description is too large.
    #[error("the image's manifest is larger than {MANIFEST_MAX} bytes")]
    ManifestTooLarge,
    /// The description is no JSON, or lacks something.
    #[error("the image's manifest is broken: {0}")]
    Manifest(#[source] serde_json::Error),
    /// It is of a later format.
    #[error("the image is of format {found}; this program reads {FORMAT}")]
    Format {
        /// Its format.
        found: u32,
    },
    /// A member is not what the description says.
    #[error("the image's {0} is damaged: its SHA-256 is not the manifest's")]
    Damaged(&'static str),
}

/// The format alone: what is read first of a description.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Where the disk of the image at `path` is, unless somebody says otherwise: beside it, under its name with the
/// ending `ext4`.
pub fn disk_beside(path: &Path) -> PathBuf {
    path.with_extension("ext4")
}

impl<'a> Bundle<'a> {
    /// Whether these bytes begin as an image does (and not as a kernel or an ELF file does).
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(b"070701")
            && bytes
                .get(NAME_AT..)
                .is_some_and(|rest| rest.starts_with(MANIFEST.as_bytes()))
    }

    /// Takes an image apart and checks it. Only the description is copied; it is at most 1 MiB.
    ///
    /// # Errors
    /// [`BundleError`], for any bytes that are not a whole image.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let (mut manifest, mut kernel, mut initrd) = (None, None, None);
        for member in Reader::new(bytes) {
            let member = member?;
            let slot = match member.name {
                MANIFEST => &mut manifest,
                KERNEL => &mut kernel,
                INITRD => &mut initrd,
                other => return Err(BundleError::Unexpected(short(other))),
            };
            if slot.replace(member.data).is_some() {
                return Err(BundleError::Unexpected(short(member.name)));
            }
        }
        let manifest = manifest.ok_or(BundleError::Missing(MANIFEST))?;
        let kernel = kernel.ok_or(BundleError::Missing(KERNEL))?;
        let initrd = initrd.ok_or(BundleError::Missing(INITRD))?;
        if manifest.len() > MANIFEST_MAX {
            return Err(BundleError::ManifestTooLarge);
        }
        let Format { format } = serde_json::from_slice(manifest).map_err(BundleError::Manifest)?;
        if format != FORMAT {
            return Err(BundleError::Format { found: format });
        }
        let manifest: Manifest = serde_json::from_slice(manifest).map_err(BundleError::Manifest)?;
        for (name, bytes, expected) in [
            (KERNEL, kernel, &manifest.kernel_sha256),
            (INITRD, initrd, &manifest.initrd_sha256),
        ] {
            if sha256(bytes) != *expected {
                return Err(BundleError::Damaged(name));
            }
        }
        Ok(Self {
            kernel,
            initrd,
            manifest,
        })
    }

    /// The image file.
    ///
    /// # Errors
    /// [`BundleError::Cpio`] for a member of 4 GiB.
    pub fn write(&self) -> Result<Vec<u8>, BundleError> {
        let mut manifest =
            serde_json::to_vec_pretty(&self.manifest).map_err(BundleError::Manifest)?;
        manifest.push(b'\n');
        let file = Meta {
            mode: S_IFREG | 0o644,
            ..Meta::default()
        };
        let mut writer = Writer::default();
        writer.add(MANIFEST, file, &manifest)?;
        writer.add(KERNEL, file, self.kernel)?;
        writer.add(INITRD, file, self.initrd)?;
        Ok(writer.finish())
    }
}

/// SHA-256, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name for a message, whoever wrote it: cut, on one line.
fn short(name: &str) -> String {
    name.escape_debug().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn manifest(kernel: &[u8], initrd: &[u8]) -> Manifest {
        let package = Package {
            name: "linux-image".into(),
            version: "6.1".into(),
            sha256: sha256(b""),
        };
        Manifest {
            format: FORMAT,
            kernel: package.clone(),
            kernel_release: "6.1.0-cloud-amd64".into(),
            packages: vec![package],
            modules: vec!["virtio".into()],
            command: None,
            cmdline: "console=ttyS0".into(),
            memory_mib: 128,
            disk: false,
            disk_bytes: None,
            tells_status: true,
            without_capabilities: Vec::new(),
            ports: Vec::new(),
            inputs_sha256: sha256(b"inputs"),
            kernel_sha256: sha256(kernel),
            initrd_sha256: sha256(initrd),
        }
    }

    fn image(change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
        let (kernel, initrd) = (b"kernel".as_slice(), b"initrd".as_slice());
        let mut manifest = manifest(kernel, initrd);
        change(&mut manifest);
        let bundle = Bundle {
            kernel,
            initrd,
            manifest,
        };
        bundle.write().unwrap()
    }

    #[test]
    fn an_image_made_before_statuses_were_told_is_read_as_one_that_tells_none() {
        let bundle = Bundle {
            kernel: b"kernel",
            initrd: b"initrd",
            manifest: manifest(b"kernel", b"initrd"),
        };
        let mut old = serde_json::to_value(&bundle.manifest).unwrap();
        old.as_object_mut().unwrap().remove("tells_status").unwrap();
        let old: Manifest = serde_json::from_value(old).unwrap();
        assert!(bundle.manifest.tells_status && !old.tells_status);
    }

    #[test]
    fn an_image_is_taken_apart_as_it_was_made() {
        let bytes = image(|_| ());
        assert!(Bundle::is_one(&bytes));
        assert!(!Bundle::is_one(b"\x7fELF"));
        let bundle = Bundle::parse(&bytes).unwrap();
        assert_eq!(
            (bundle.kernel, bundle.initrd),
            (&b"kernel"[..], &b"initrd"[..])
        );
        assert_eq!(bundle.manifest, manifest(b"kernel", b"initrd"));
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        let bytes = image(|manifest| manifest.format = 2);
        let refused = Bundle::parse(&bytes).unwrap_err();
        assert!(matches!(refused, BundleError::Format { found: 2 }));
    }

    #[test]
    fn a_member_that_is_not_the_manifests_is_refused() {
        let bytes = image(|manifest| manifest.initrd_sha256 = sha256(b"other"));
        let refused = Bundle::parse(&bytes).unwrap_err();
        assert!(matches!(refused, BundleError::Damaged("initrd")));
    }

    #[test]
    fn members_are_each_there_once_and_no_others() {
        let file = Meta {
            mode: S_IFREG,
            ..Meta::default()
        };
        let with = |names: &[&str]| {
            let mut writer = Writer::default();
            for name in names {
                writer.add(name, file, b"").unwrap();
            }
            writer.finish()
        };
        let missing = with(&[MANIFEST, INITRD]);
        let twice = with(&[KERNEL, KERNEL]);
        let other = with(&["x\ny"]);
        let error = |bytes: &[u8]| Bundle::parse(bytes).unwrap_err();
        assert!(matches!(error(&missing), BundleError::Missing("kernel")));
        assert!(matches!(error(&twice), BundleError::Unexpected(name) if name == "kernel"));
        assert!(matches!(error(&other), BundleError::Unexpected(name) if name == "x\\ny"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(Bundle::parse(&bytes).is_err());
        }

        #[test]
        fn a_changed_byte_never_gives_another_kernel(at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = image(|_| ());
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Ok(bundle) = Bundle::parse(&bytes) {
                prop_assert_eq!((bundle.kernel, bundle.initrd), (&b"kernel"[..], &b"initrd"[..]));
            }
        }
    }
}
