//! Which kernel modules a guest needs, and the order to load them in.
//!
//! A kernel package has no `modules.dep` (its installation would make it), so dependencies are read from
//! the modules themselves.

use crate::elf;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// The modules no guest does without, since its devices are those. One that the kernel has built in is no module.
pub const NEEDED: [&str; 2] = ["virtio_mmio", "virtio_net"];
/// Those no guest with its root on a disk does without.
pub const NEEDED_FOR_DISK: [&str; 2] = ["virtio_blk", "ext4"];
/// Those that are loaded where there are any: a disk that is no root, randomness, ext4's checksums.
const WELCOME: [&str; 4] = ["virtio_blk", "virtio_rng", "ext4", "crc32c_generic"];

/// Most bytes of a module, decompressed.
const MODULE_MAX: u64 = 64 << 20;

/// What is wrong with a module.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// It is compressed in a way that is not read here, or is damaged.
    #[error("the kernel module {name} cannot be decompressed: {why}")]
    Compressed {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
    /// It is no kernel module.
    #[error("{name} is not a kernel module")]
    NotOne {
        /// Its name.
        name: String,
    },
    /// The kernel has no driver for a device of the machine's.
    #[error(
        "the kernel has no {name}, neither as a module nor built in, and no guest runs without"
    )]
    NoDriver {
        /// The module it would be in.
        name: String,
    },
    /// It depends on one that is not there.
    #[error(
        "the kernel module {name} depends on {missing}, which the kernel's package does not have"
    )]
    Missing {
        /// Its name.
        name: String,
        /// The other's.
        missing: String,
    },
}

/// A module ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The ELF file, decompressed.
    pub bytes: Vec<u8>,
}

/// A module's name from the path of its file (`virtio-rng.ko.xz` is `virtio_rng`), if it is one's.
pub fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    let known = matches!(rest, "" | ".xz" | ".zst" | ".gz");
    (known && !name.is_empty()).then(|| name.replace('-', "_"))
}

/// The modules in `files` (path and contents) that a guest loads: those it `needs` and what is welcome, in the order
/// to load them: each after those it depends on. `built_in` are the names of what the kernel has in itself.
///
/// # Errors
/// [`ModuleError`], also for one that is needed and neither there nor built in.
pub fn order<'a>(
    files: impl Iterator<Item = (&'a str, &'a [u8])>,
    built_in: &BTreeSet<String>,
    needs: &[&str],
) -> Result<Vec<Module>, ModuleError> {
    let files: BTreeMap<String, (&str, &[u8])> = files
        .filter_map(|(path, bytes)| Some((name_of(path)?, (path, bytes))))
        .collect();
    let mut order = Order {
        files: &files,
        built_in,
        begun: BTreeSet::new(),
        done: Vec::new(),
    };
    for name in needs.iter().chain(&WELCOME) {
        if built_in.contains(*name) {
            continue;
        }
        if files.contains_key(*name) {
            order.visit(name)?;
        } else if needs.contains(name) {
            return Err(ModuleError::NoDriver {
                name: (*name).to_owned(),
            });
        }
    }
    Ok(order.done)
}

struct Order<'a> {
    files: &'a BTreeMap<String, (&'a str, &'a [u8])>,
    built_in: &'a BTreeSet<String>,
    begun: BTreeSet<String>,
    done: Vec<Module>,
}

impl Order<'_> {
    /// Depth first. No deeper than there are modules: each is begun once.
    fn visit(&mut self, name: &str) -> Result<(), ModuleError> {
        if !self.begun.insert(name.to_owned()) {
            return Ok(());
        }
        let (path, bytes) = self.files[name];
        let bytes = decompressed(name, path, bytes)?;
        let depends =
            elf::module_depends(&bytes).ok_or_else(|| ModuleError::NotOne { name: name.into() })?;
        for other in depends {
            let other = other.replace('-', "_");
            if self.files.contains_key(&other) {
                self.visit(&other)?;
            } else if !self.built_in.contains(&other) {
                return Err(ModuleError::Missing {
                    name: name.into(),
                    missing: other,
                });
            }
        }
        self.done.push(Module {
            name: name.to_owned(),
            bytes,
        });
        Ok(())
    }
}

/// The names in a package's `modules.builtin`.
pub fn built_in(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(name_of).collect()
}

/// A module's bytes. The guest's busybox loads none that is compressed, and the guest's processor is the
/// slower one.
fn decompressed(name: &str, path: &str, bytes: &[u8]) -> Result<Vec<u8>, ModuleError> {
    let failed = |why: String| ModuleError::Compressed {
        name: name.to_owned(),
        why,
    };
    if path.ends_with(".ko") {
        return Ok(bytes.to_vec());
    }
    if !path.ends_with(".xz") {
        return Err(failed("only xz is understood".into()));
    }
    let mut out = Bounded(Vec::new());
    let mut input = std::io::BufReader::new(bytes);
    lzma_rs::xz_decompress(&mut input, &mut out).map_err(|e| failed(e.to_string()))?;
    Ok(out.0)
}

/// Takes bytes up to [`MODULE_MAX`].
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > MODULE_MAX {
            return Err(std::io::Error::other("it is too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel module as small as one can be: an ELF header, `.modinfo` and the section names.
    fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0retpoline=Y\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + info.len());
        let table_at = (names_at + names.len()).next_multiple_of(8);
        let mut out = vec![0u8; 64];
        out[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        out[16..18].copy_from_slice(&1u16.to_le_bytes());
        out[18..20].copy_from_slice(&62u16.to_le_bytes());
        out[20] = 1;
        out[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
        out[52..54].copy_from_slice(&64u16.to_le_bytes());
        out[58..60].copy_from_slice(&64u16.to_le_bytes());
        out[60..62].copy_from_slice(&3u16.to_le_bytes());
        out[62..64].copy_from_slice(&2u16.to_le_bytes());
        out.extend_from_slice(info.as_bytes());
        out.extend_from_slice(names);
        out.resize(table_at + 64, 0);
        let mut section = |name: u32, kind: u32, at: usize, len: usize| {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            out.extend_from_slice(&header);
        };
        section(1, 1, info_at, info.len());
        section(10, 3, names_at, names.len());
        out
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        lzma_rs::xz_compress(&mut std::io::BufReader::new(bytes), &mut out).unwrap();
        out
    }

    fn loaded(files: &[(&str, Vec<u8>)], wanted: &[&str]) -> Result<Vec<String>, ModuleError> {
        let files = files.iter().map(|(path, bytes)| (*path, bytes.as_slice()));
        let built_in = built_in("kernel/fs/mbcache.ko\nkernel/lib/crc16.ko\n");
        let modules = order(files, &built_in, wanted)?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn each_comes_after_what_it_depends_on_and_once() {
        let files = [
            ("k/virtio_net.ko", module("net_failover,virtio,virtio-ring")),
            ("k/virtio_ring.ko.xz", xz(&module("virtio"))),
            ("k/net_failover.ko", module("failover")),
            ("k/failover.ko", module("")),
            ("k/virtio.ko", module("")),
            ("k/virtio_mmio.ko", module("virtio,virtio_ring")),
            ("k/unasked.ko", module("")),
        ];
        let order = loaded(&files, &NEEDED).unwrap();
        let expected = [
            "virtio",
            "virtio_ring",
            "virtio_mmio",
            "failover",
            "net_failover",
            "virtio_net",
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn what_is_built_in_is_not_loaded() {
        let files = [("k/ext4.ko", module("mbcache,crc16"))];
        assert_eq!(loaded(&files, &["ext4", "crc16"]).unwrap(), ["ext4"]);
    }

    #[test]
    fn a_kernel_without_a_driver_that_is_needed_is_refused() {
        let files = [("k/virtio_net.ko", module(""))];
        let refused = loaded(&files, &NEEDED).unwrap_err();
        assert!(matches!(refused, ModuleError::NoDriver { name } if name == "virtio_mmio"));
        assert_eq!(loaded(&files, &["virtio_net"]).unwrap(), ["virtio_net"]);
    }

    #[test]
    fn a_circle_ends() {
        let files = [("a.ko", module("b")), ("b.ko", module("a"))];
        assert_eq!(loaded(&files, &["a"]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let files = [
            ("a.ko", module("nothing")),
            ("b.ko", b"text".to_vec()),
            ("c.ko.xz", b"not xz".to_vec()),
            ("d.ko.zst", Vec::new()),
        ];
        let error = |name: &str| loaded(&files, &[name]).unwrap_err();
        assert!(matches!(error("a"), ModuleError::Missing { missing, .. } if missing == "nothing"));
        assert!(matches!(error("b"), ModuleError::NotOne { name } if name == "b"));
        assert!(matches!(error("c"), ModuleError::Compressed { name, .. } if name == "c"));
        assert!(matches!(error("d"), ModuleError::Compressed { name, .. } if name == "d"));
    }

    #[test]
    fn names_are_those_the_kernel_uses() {
        assert_eq!(name_of("a/b/virtio-rng.ko.xz"), Some("virtio_rng".into()));
        assert_eq!(name_of("a/ext4.ko"), Some("ext4".into()));
        assert_eq!(name_of("a/modules.order"), None);
        assert_eq!(name_of("a/.ko"), None);
        assert_eq!(name_of("a/x.kotlin"), None);
    }
}
