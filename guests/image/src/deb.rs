//! What is in a Debian package, and in the archive an installation comes as.

use crate::bounded::Bounded;
use crate::error::{During, Result};
use crate::layers::{LAYERS_FILES_MAX, LAYERS_MAX_GIB, LAYERS_STREAM_MAX_GIB};
use crate::tools::{Stop, stream, tool};
use crate::tree::{Kind, Node, TIME, Tree, normal};
use std::cell::Cell;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use tar::EntryType;
use thiserror::Error;

/// Most bytes of one file in a package.
const FILE_MAX: u64 = 1 << 30;
/// Most bytes of a path in an archive, and of what a link names (PATH_MAX of Linux).
pub const PATH_MAX: usize = 4096;
/// Most bytes of a member's headers, with those that extend it: long names, pax records, maps of sparse files. Go's
/// archive/tar takes as much of each.
pub const HEADERS_MAX: u64 = 1 << 20;

/// Why a package's archive is not understood.
#[derive(Debug, Error)]
pub enum PackageError {
    /// It cannot be read, or is none.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It has another name for a file that is not there.
    #[error("{0} is a link to no file")]
    LinkToNothing(String),
    /// One of its files is larger than is taken.
    #[error("{0} is too large")]
    TooLarge(String),
    /// A file's name is none that is kept.
    #[error("a file's name is no UTF-8, or more than a line: {0}")]
    Name(String),
    /// A file of a layer would be outside of the root, or below something that is no directory.
    #[error("{0} is not within the root")]
    Outside(String),
    /// A member's path, or what it links to, is longer than any there can be.
    #[error("a path is longer than {PATH_MAX} bytes: {0}...")]
    Path(String),
    /// A member's headers are larger than are taken.
    #[error("a file has more than {HEADERS_MAX} bytes of headers")]
    Headers,
    /// A member is of a kind that is not understood.
    #[error("{path} is of a kind that is not read: {kind}")]
    Kind {
        /// Its path.
        path: String,
        /// What the archive says it is.
        kind: String,
    },
    /// The layers' archives are longer than is taken.
    #[error("it unpacks to archives of more than {LAYERS_STREAM_MAX_GIB} GiB")]
    Stream,
    /// There is more than is taken.
    #[error("it unpacks to more than {LAYERS_MAX_GIB} GiB or {LAYERS_FILES_MAX} files")]
    TooMuch,
    /// A file's owner is none there can be.
    #[error("an owner's number is too large: {0}")]
    Owner(u64),
}

/// Reads the files of a package that `keep` wants, by their path, with the owners the package gives them.
///
/// The package is read through a pipe and never unpacked into folders, so owners need no root and nothing
/// is left behind.
///
/// # Errors
/// If it is no package, or holds what is not understood.
pub fn read(stop: &Stop, package: &Path, keep: impl Fn(&str) -> bool) -> Result<Tree> {
    let mut command = tool("dpkg-deb")?;
    command.arg("--fsys-tarfile").arg(package);
    let tree = stream(stop, &mut command, |pipe| {
        let tree = read_tar(&mut *pipe, keep);
        // The padding behind an archive's end: left unread, it would make dpkg-deb fail.
        std::io::copy(pipe, &mut std::io::sink()).during("cannot read a package")?;
        Ok(tree?)
    })?;
    Ok(tree?)
}

/// Reads a tar archive's files that `keep` wants, by their path.
///
/// # Errors
/// If it is no archive, or holds what is not understood.
pub fn read_tar(pipe: impl Read, keep: impl Fn(&str) -> bool) -> Result<Tree, PackageError> {
    let mut tree = Tree::default();
    let wanted = |path: &str| normal(path).is_some_and(|path| keep(&path));
    read_items(pipe, wanted, |item| {
        let Some(path) = normal(&item.path) else {
            return Ok(());
        };
        let kind = match item.what {
            What::Is(kind) => kind,
            // A hard link comes after the file it is another name of.
            What::NameOf(first) => {
                let first = normal(&first).and_then(|first| tree.get(&first));
                let first = first.ok_or(PackageError::LinkToNothing(path.clone()))?;
                first.kind.clone()
            }
            What::Other => return Ok(()),
        };
        let node = item.node.with(kind);
        tree.insert(&path, node);
        Ok(())
    })?;
    Ok(tree)
}

/// A member of a tar archive.
#[derive(Debug)]
pub struct Item {
    /// Its path, as it stands there.
    pub path: String,
    /// Its owner, permissions and times.
    pub node: About,
    /// What it is.
    pub what: What,
}

/// What a member of an archive is.
#[derive(Debug)]
pub enum What {
    /// Itself.
    Is(Kind),
    /// Another name of the file with this path.
    NameOf(String),
    /// Nothing a root needs: a named pipe, a block device.
    Other,
}

/// A file but for what it is.
#[derive(Clone, Debug)]
pub struct About {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u32,
    capability: Option<Arc<[u8]>>,
}

impl About {
    /// A file of this kind.
    pub fn with(self, kind: Kind) -> Node {
        Node {
            kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            capability: self.capability,
        }
    }
}

/// Gives the members of a tar archive whose paths `keep` wants to `each`, in their order. The bytes of others are
/// passed over.
///
/// # Errors
/// If it is no archive, holds what is not understood, or what `each` fails with.
pub fn read_items(
    pipe: impl Read,
    keep: impl Fn(&str) -> bool,
    mut each: impl FnMut(Item) -> Result<(), PackageError>,
) -> Result<(), PackageError> {
    let left = Cell::new(HEADERS_MAX);
    let pipe = Bounded::new(pipe, &left, || PackageError::Headers);
    let mut archive = tar::Archive::new(pipe);
    for entry in archive.entries()? {
        let mut entry = entry?;
        // A member's own bytes are bounded as they are read; then come the next one's headers.
        left.set(u64::MAX);
        let path = text(&entry.path_bytes())?;
        let kind = entry.header().entry_type();
        if entry.size() > FILE_MAX && kind.is_gnu_sparse() {
            return Err(PackageError::TooLarge(path));
        }
        // What is said of all members, not one of them.
        if keep(&path) && !kind.is_pax_global_extensions() {
            let item = item(&mut entry, path)?;
            each(item)?;
        }
        std::io::copy(&mut entry, &mut std::io::sink())?;
        left.set(HEADERS_MAX);
    }
    Ok(())
}

/// A member of an archive, which has this path.
fn item(entry: &mut tar::Entry<'_, impl Read>, path: String) -> Result<Item, PackageError> {
    let capability = capability(entry, &path)?;
    let header = entry.header();
    let node = About {
        mode: header.mode()? & 0o7777,
        uid: number(header.uid()?)?,
        gid: number(header.gid()?)?,
        // Beyond 2106 there is no time in an archive for Linux either.
        mtime: u32::try_from(header.mtime()?).unwrap_or(u32::MAX).max(TIME),
        capability,
    };
    let target = entry
        .link_name_bytes()
        .map(|name| text(&name))
        .transpose()?;
    let what = match entry.header().entry_type() {
        EntryType::Directory => What::Is(Kind::Dir),
        EntryType::Symlink => What::Is(Kind::Link(target.unwrap_or_default())),
        EntryType::Link => What::NameOf(target.unwrap_or_default()),
        EntryType::Char => {
            let number = |part: Option<u32>| part.unwrap_or_default();
            let (major, minor) = (header.device_major()?, header.device_minor()?);
            What::Is(Kind::Device(number(major), number(minor)))
        }
        // A contiguous file is one like any other, and of a sparse one the holes are read as zeros.
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            if entry.size() > FILE_MAX {
                return Err(PackageError::TooLarge(path));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            What::Is(Kind::File(bytes.into()))
        }
        EntryType::Fifo | EntryType::Block => What::Other,
        other => {
            return Err(PackageError::Kind {
                path,
                kind: char::from(other.as_byte()).escape_default().to_string(),
            });
        }
    };
    Ok(Item { path, node, what })
}

/// A file's capabilities, which an archive has as an extended attribute (pax(5), star's keyword).
fn capability(
    entry: &mut tar::Entry<'_, impl Read>,
    path: &str,
) -> Result<Option<Arc<[u8]>>, PackageError> {
    let mut capability = None;
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        // GNU tar's sparse files of its pax format: what is there is a map and pieces, not the file.
        if extension.key_bytes().starts_with(b"GNU.sparse.") {
            return Err(PackageError::Kind {
                path: path.to_owned(),
                kind: "a sparse file of the pax format".to_owned(),
            });
        }
        if extension.key_bytes() == b"SCHILY.xattr.security.capability" {
            capability = Some(extension.value_bytes().into());
        }
    }
    Ok(capability)
}

fn text(bytes: &[u8]) -> Result<String, PackageError> {
    if bytes.len() > PATH_MAX {
        let begin = bytes.get(..64).unwrap_or_default();
        return Err(PackageError::Path(begin.escape_ascii().to_string()));
    }
    let text = std::str::from_utf8(bytes).ok();
    let text = text.filter(|text| !text.contains('\n'));
    text.map(str::to_owned)
        .ok_or_else(|| PackageError::Name(bytes.escape_ascii().to_string()))
}

fn number(id: u64) -> Result<u32, PackageError> {
    u32::try_from(id).map_err(|_| PackageError::Owner(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind: EntryType, mode: u32, link: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(1_700_000_000);
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(42);
            header.set_size(data.len() as u64);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            builder.append_data(&mut header, path, data).unwrap();
        };
        let long = format!("usr/share/{}/x", "long".repeat(40));
        add("./lib/", EntryType::Directory, 0o755, "", b"");
        add("./lib/a.so.1", EntryType::Regular, 0o644, "", b"ELF");
        add("./lib/a.so", EntryType::Symlink, 0o777, "a.so.1", b"");
        add("./lib/b.so", EntryType::Link, 0o644, "./lib/a.so.1", b"");
        add("./usr/bin/chage", EntryType::Regular, 0o2755, "", b"x");
        add("./usr/share/doc/x", EntryType::Regular, 0o644, "", b"words");
        add(&long, EntryType::Regular, 0o600, "", b"deep");
        builder.into_inner().unwrap()
    }

    #[test]
    fn owners_modes_links_and_long_names_are_read() {
        let keep = |path: &str| !path.starts_with("usr/share/doc");
        let tree = read_tar(archive().as_slice(), keep).unwrap();
        let node = |path: &str| tree.get(path).unwrap();
        assert_eq!(node("usr/lib/a.so.1").kind, Kind::File((*b"ELF").into()));
        assert_eq!(node("usr/lib/a.so").kind, Kind::Link("a.so.1".into()));
        assert_eq!(node("usr/lib/b.so").kind, node("usr/lib/a.so.1").kind);
        assert_eq!(
            (node("usr/bin/chage").mode, node("usr/bin/chage").gid),
            (0o2755, 42)
        );
        let long = format!("usr/share/{}/x", "long".repeat(40));
        assert_eq!(
            (node(&long).mode, node(&long).mtime),
            (0o600, 1_700_000_000)
        );
        assert!(tree.get("usr/share/doc/x").is_none());
    }

    /// An archive's member as it stands there. `patch` are bytes of its header, and where they stand.
    fn member(path: &str, kind: u8, data: &[u8], patch: &[(usize, &str)]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_path(path).unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(data.len() as u64);
        for (at, bytes) in patch {
            header.as_mut_bytes()[*at..*at + bytes.len()].copy_from_slice(bytes.as_bytes());
        }
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn record(key: &str, value: &str) -> Vec<u8> {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len();
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        format!("{length}{rest}").into_bytes()
    }

    fn tree(members: &[Vec<u8>]) -> Result<Tree, PackageError> {
        read_tar(members.concat().as_slice(), |_| true)
    }

    #[test]
    fn contiguous_and_sparse_files_are_files() {
        // Two pieces, a hole before and after each; the header's fields are at 386 (where, how much), 483 (the size).
        let map = [
            (386, "00000001000\x0000000001000\0"),
            (410, "00000003000\x0000000000003\0"),
            (434, "00000010000\x0000000000000\0"),
            (483, "00000010000\0"),
        ];
        let pieces = [&[b'a'; 512][..], b"end"].concat();
        let all = [
            member("whole", b'7', b"as it is", &[]),
            member("holes", b'S', &pieces, &map),
            member("g", b'g', &record("comment", "of all"), &[]),
            member("last", b'0', b"here", &[]),
        ];
        let tree = tree(&all).unwrap();
        let file = |path: &str| match &tree.get(path).unwrap().kind {
            Kind::File(bytes) => bytes.to_vec(),
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(file("whole"), b"as it is");
        let mut holes = vec![0; 4096];
        holes[512..1024].fill(b'a');
        holes[1536..1539].copy_from_slice(b"end");
        assert_eq!(file("holes"), holes);
        assert_eq!(file("last"), b"here");
        assert!(tree.get("g").is_none(), "a global header is no file");
    }

    #[test]
    fn a_member_that_is_not_understood_is_refused_by_its_path() {
        for kind in [b'D', b'M', b'V', b'Z'] {
            let words = tree(&[member("odd", kind, b"", &[])]).unwrap_err();
            let kind = char::from(kind);
            let expected = format!("odd is of a kind that is not read: {kind}");
            assert_eq!(words.to_string(), expected);
        }
        let sparse = record("GNU.sparse.major", "1");
        let sparse = [
            member("x", b'x', &sparse, &[]),
            member("odd", b'0', b"", &[]),
        ];
        let words = tree(&sparse).unwrap_err().to_string();
        assert!(
            words.contains("odd is of a kind that is not read"),
            "{words}"
        );
        // What a root does not need.
        let pipes = [member("p", b'6', b"", &[]), member("b", b'4', b"", &[])];
        assert!(tree(&pipes).unwrap().iter().next().is_none());
        // Its holes would be filled: told before, wanted or not.
        let map = [
            (386, "77777777777\x0000000000000\0"),
            (483, "77777777777\0"),
        ];
        let vast = member("vast", b'S', b"", &map);
        for wanted in [true, false] {
            let words = read_tar(vast.as_slice(), |_| wanted).unwrap_err();
            assert_eq!(words.to_string(), "vast is too large");
        }
    }

    #[test]
    fn long_names_and_headers_are_bounded() {
        let long = |length: usize| "n".repeat(length);
        let named = |kind: u8, name: &str| {
            let named = if kind == b'K' { b'2' } else { b'0' };
            tree(&[
                member("first", b'0', b"1", &[]),
                member("x", kind, name.as_bytes(), &[]),
                member("a", named, b"", &[]),
            ])
        };
        let pax = |key: &str, length: usize| {
            named(b'x', str::from_utf8(&record(key, &long(length))).unwrap())
        };
        for kind in [b'L', b'K'] {
            assert!(named(kind, &long(PATH_MAX)).is_ok());
            let words = named(kind, &long(PATH_MAX + 1)).unwrap_err().to_string();
            assert!(
                words.starts_with("a path is longer than 4096 bytes: nnn"),
                "{words}"
            );
            assert!(words.len() < 128, "{words}");
        }
        assert!(pax("path", PATH_MAX).is_ok());
        let words = pax("path", PATH_MAX + 1).unwrap_err().to_string();
        assert!(words.contains("a path is longer"), "{words}");
        assert!(pax("comment", 1 << 19).is_ok());
        let over = HEADERS_MAX as usize;
        let refused = [
            pax("comment", over),
            named(b'L', &long(over)),
            named(b'K', &long(over)),
        ];
        for refused in refused {
            let words = refused.unwrap_err().to_string();
            assert_eq!(words, "a file has more than 1048576 bytes of headers");
        }
        // Files' bytes are not headers', whether they are wanted or not, nor are those of many files one's.
        let large = vec![1; over];
        let all = [
            member("a", b'0', &large, &[]),
            member("b", b'0', &large, &[]),
            member("x", b'x', &record("comment", &long(1 << 19)), &[]),
            member("c", b'0', b"", &[]),
            member("x", b'x', &record("comment", &long(1 << 19)), &[]),
            member("d", b'0', b"", &[]),
        ];
        assert_eq!(tree(&all).unwrap().iter().count(), 4);
        let none = read_tar(all.concat().as_slice(), |_| false).unwrap();
        assert!(none.iter().next().is_none());
    }

    #[test]
    fn a_cut_archive_is_an_error() {
        let bytes = archive();
        assert!(read_tar(&bytes[..1000], |_| true).is_err());
    }
}
