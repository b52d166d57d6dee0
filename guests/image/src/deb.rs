//! What is in a Debian package, and in the archive an installation comes as.

use crate::error::{During, Result};
use crate::tools::{Stop, stream, tool};
use crate::tree::{Kind, Node, TIME, Tree, normal};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use tar::EntryType;
use thiserror::Error;

/// Most bytes of one file in a package.
const FILE_MAX: u64 = 1 << 30;
/// Most bytes of all files of a container's layers, in GiB: they are kept in memory.
pub const LAYERS_MAX_GIB: u64 = 4;
/// Most files of them.
pub const LAYERS_FILES_MAX: u64 = 2_000_000;

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
    /// Nothing a root needs: a pipe, a block device.
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
    let mut archive = tar::Archive::new(pipe);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = text(&entry.path_bytes())?;
        if !keep(&path) {
            continue;
        }
        let capability = capability(&mut entry)?;
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
            kind if kind.is_file() => {
                if entry.size() > FILE_MAX {
                    return Err(PackageError::TooLarge(path));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                What::Is(Kind::File(bytes.into()))
            }
            _ => What::Other,
        };
        each(Item { path, node, what })?;
    }
    Ok(())
}

/// A file's capabilities, which an archive has as an extended attribute (pax(5), star's keyword).
fn capability(entry: &mut tar::Entry<'_, impl Read>) -> Result<Option<Arc<[u8]>>, PackageError> {
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if extension.key_bytes() == b"SCHILY.xattr.security.capability" {
            return Ok(Some(extension.value_bytes().into()));
        }
    }
    Ok(None)
}

fn text(bytes: &[u8]) -> Result<String, PackageError> {
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

    #[test]
    fn a_cut_archive_is_an_error() {
        let bytes = archive();
        assert!(read_tar(&bytes[..1000], |_| true).is_err());
    }
}
