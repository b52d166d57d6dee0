//! The layers of a container's image, laid upon each other.
//!
//! ```text
//!  a layer   a tar archive of what it adds and changes
//!            DIR/.wh.NAME       NAME of the layers below is gone
//!            DIR/.wh..wh..opq   all of DIR that the layers below had is gone
//! ```
//!
//! Source: "Image Layer Filesystem Changeset" of the OCI image specification. Layers are whoever's: no name leads out of
//! the root, and none below something that is no directory. Links in them are followed as within the root.

use crate::bounded::Bounded;
use crate::deb::{Item, PackageError, What, read_items};
use crate::tree::{Kind, Node, Tree};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Read;

/// Most bytes of all files of a container's layers and their names, in GiB: they are kept in memory.
pub const LAYERS_MAX_GIB: u64 = 4;
/// Most bytes all layers unpack to, in GiB: the files, and as much again for headers and padding.
pub const LAYERS_STREAM_MAX_GIB: u64 = 2 * LAYERS_MAX_GIB;
/// Most files of them.
pub const LAYERS_FILES_MAX: u64 = 2_000_000;
/// What begins the name of a file that is gone.
const GONE: &str = ".wh.";
/// What begins the names of files with another meaning.
const MARK: &str = ".wh..wh.";
/// That of one which says that nothing of a folder's is left.
const NOTHING_LEFT: &str = ".wh..wh..opq";

/// The root that comes of layers.
#[derive(Debug)]
pub struct Layers {
    root: Tree,
    bytes: u64,
    files: u64,
    /// Bytes the archives still to come may have.
    left: u64,
}

impl Layers {
    /// No layer yet.
    pub fn new() -> Self {
        Self {
            root: Tree::as_it_is(),
            bytes: 0,
            files: 0,
            left: LAYERS_STREAM_MAX_GIB << 30,
        }
    }

    /// The root.
    pub fn into_root(self) -> Tree {
        self.root
    }

    /// Lays another layer on top, a tar archive. It is read to its end, with what stands behind the archive's.
    ///
    /// # Errors
    /// If it is none, or holds what no layer may, or all of them are longer than is taken.
    pub fn add(&mut self, archive: impl Read) -> Result<(), PackageError> {
        let mut added = BTreeSet::new();
        let left = Cell::new(self.left);
        let mut archive = Bounded::new(archive, &left, || PackageError::Stream);
        let read = read_items(
            &mut archive,
            |_| true,
            |item| self.add_item(item, &mut added),
        );
        let rest = read.and_then(|()| Ok(std::io::copy(&mut archive, &mut std::io::sink())?));
        self.left = left.get();
        rest.map(drop)
    }

    /// One file of a layer; `added` are the paths it has added so far.
    fn add_item(&mut self, item: Item, added: &mut BTreeSet<String>) -> Result<(), PackageError> {
        let outside = || PackageError::Outside(item.path.escape_debug().to_string());
        let Some((folder, name)) = split(&item.path).ok_or_else(outside)? else {
            return Ok(());
        };
        self.count(&item)?;
        let folder = self.folder(&folder)?.ok_or_else(outside)?;
        if name == NOTHING_LEFT {
            self.root.remove_below(&folder, |path| has(added, path));
            return Ok(());
        }
        if name.starts_with(MARK) {
            return Ok(());
        }
        if let Some(gone) = name.strip_prefix(GONE) {
            if matches!(gone, "" | "." | "..") {
                return Err(outside());
            }
            self.root
                .remove(&joined(&folder, gone), |path| has(added, path));
            return Ok(());
        }
        let kind = match &item.what {
            What::Is(kind) => kind.clone(),
            What::NameOf(first) => {
                let (folder, name) = split(first).ok_or_else(outside)?.ok_or_else(outside)?;
                let folder = self.root.resolve(&folder).ok_or_else(outside)?;
                let first = self.root.get(&joined(&folder, &name));
                let first = first.filter(|node| node.kind != Kind::Dir);
                let nothing = || PackageError::LinkToNothing(item.path.clone());
                first.ok_or_else(nothing)?.kind.clone()
            }
            What::Other => return Ok(()),
        };
        let path = joined(&folder, &name);
        let there = self.root.get(&path).map(|node| &node.kind);
        if !(kind == Kind::Dir && there == Some(&Kind::Dir)) {
            self.root.remove(&path, |_| false);
        }
        self.root.replace(&path, item.node.with(kind));
        added.insert(path);
        Ok(())
    }

    /// The folder under `path`, made if it is not there, with those above it; `None` if it is no folder.
    fn folder(&mut self, path: &str) -> Result<Option<String>, PackageError> {
        let Some(folder) = self.root.resolve(path) else {
            return Ok(None);
        };
        if folder.is_empty() {
            return Ok(Some(folder));
        }
        match self.root.get(&folder).map(|node| &node.kind) {
            Some(Kind::Dir) => {}
            None => {
                // One short name may ask for a thousand folders, each kept by its whole path.
                for (at, _) in folder.match_indices('/') {
                    self.take(at)?;
                }
                self.take(folder.len())?;
                self.root.insert(&folder, Node::dir());
            }
            Some(_) => return Ok(None),
        }
        Ok(Some(folder))
    }

    fn count(&mut self, item: &Item) -> Result<(), PackageError> {
        let bytes = match &item.what {
            What::Is(Kind::File(bytes)) => bytes.len(),
            What::Is(Kind::Link(target)) => target.len(),
            _ => 0,
        };
        self.take(item.path.len() + bytes)
    }

    /// Counts a file, and its bytes that are kept.
    fn take(&mut self, bytes: usize) -> Result<(), PackageError> {
        self.files += 1;
        self.bytes += bytes as u64;
        if self.bytes > LAYERS_MAX_GIB << 30 || self.files > LAYERS_FILES_MAX {
            return Err(PackageError::TooMuch);
        }
        Ok(())
    }
}

/// The path of a name in a folder, of which the root's is empty.
fn joined(folder: &str, name: &str) -> String {
    match folder {
        "" => name.to_owned(),
        folder => format!("{folder}/{name}"),
    }
}

/// Whether one of these paths is this one, or below it.
fn has(paths: &BTreeSet<String>, path: &str) -> bool {
    let below = format!("{path}/");
    let mut after = paths.range(below.clone()..);
    paths.contains(path) || after.next().is_some_and(|next| next.starts_with(&below))
}

/// A path's folder and its last name; `None` within `Some` for the root itself, and `None` for a path that goes up.
fn split(path: &str) -> Option<Option<(String, String)>> {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let mut parts: Vec<&str> = parts.collect();
    if parts.contains(&"..") {
        return None;
    }
    let Some(name) = parts.pop() else {
        return Some(None);
    };
    Some(Some((parts.join("/"), name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::EntryType;

    /// A layer of these: path, what, contents or target.
    fn layer(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, kind, data) in members {
            let mut header = tar::Header::new_gnu();
            // Names no builder takes are put in as they are.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            let data = match kind {
                EntryType::Regular => data.as_bytes(),
                _ => {
                    header.as_mut_bytes()[157..157 + data.len()].copy_from_slice(data.as_bytes());
                    b""
                }
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    use EntryType::{Directory as D, Link as H, Regular as F, Symlink as L};

    #[test]
    fn folders_no_layer_names_count_as_others_do() {
        let deep = format!("{}x", "d/".repeat(40));
        let mut all = Layers::new();
        all.files = LAYERS_FILES_MAX - 41;
        all.add(layer(&[(&deep, F, "1")]).as_slice()).unwrap();
        assert_eq!((all.files, all.root.count()), (LAYERS_FILES_MAX, 41));
        let mut all = Layers::new();
        all.files = LAYERS_FILES_MAX - 40;
        let refused = all.add(layer(&[(&deep, F, "1")]).as_slice()).unwrap_err();
        assert!(matches!(refused, PackageError::TooMuch), "{refused}");
    }

    #[test]
    fn all_layers_together_are_no_longer_than_is_taken() {
        let one = layer(&[("a", F, "1")]);
        let (mut zeros, mut all) = (one.clone(), Layers::new());
        all.left = 3 * one.len() as u64;
        all.add(one.as_slice()).unwrap();
        all.add(one.as_slice()).unwrap();
        // What stands behind an archive's end is unpacked, too.
        zeros.resize(zeros.len() + 1, 0);
        let refused = all.add(zeros.as_slice()).unwrap_err();
        assert!(refused.to_string().contains("more than 8 GiB"), "{refused}");
    }

    fn root(layers: &[&[(&str, EntryType, &str)]]) -> Result<Tree, PackageError> {
        let mut all = Layers::new();
        for members in layers {
            all.add(layer(members).as_slice())?;
        }
        Ok(all.into_root())
    }

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn whiteouts_take_away_what_the_layers_below_had_and_no_more() {
        let below: &[_] = &[
            ("a", D, ""),
            ("a/old", F, "1"),
            ("a/deep/x", F, "1"),
            ("b/kept", F, "1"),
            ("b/gone/x", F, "1"),
        ];
        let above: &[_] = &[
            ("a/new", F, "2"),
            ("a/deep/new", F, "2"),
            ("a/.wh..wh..opq", F, ""),
            ("b/.wh.gone", F, ""),
            ("b/.wh.never", F, ""),
            (".wh..wh.plnk", D, ""),
        ];
        let tree = root(&[below, above]).unwrap();
        assert_eq!(
            paths(&tree),
            ["a", "a/deep", "a/deep/new", "a/new", "b", "b/kept"]
        );
    }

    #[test]
    fn a_layer_is_laid_through_links_as_the_root_has_them() {
        let below: &[_] = &[
            ("usr/lib/x", F, "1"),
            ("lib", L, "usr/lib"),
            ("usr/abs", L, "/usr/lib"),
        ];
        let above: &[_] = &[
            ("lib/y", F, "2"),
            ("usr/abs/z", H, "lib/x"),
            ("new", L, "../../out"),
            ("new/w", F, "3"),
        ];
        let tree = root(&[below, above]).unwrap();
        for path in ["usr/lib/y", "usr/lib/z", "out/w"] {
            assert!(tree.get(path).is_some(), "{path}: {:?}", paths(&tree));
        }
        let names: Vec<_> = tree.with_names().filter_map(|(.., first)| first).collect();
        assert_eq!(names, ["usr/lib/x"], "a hard link is one");
        assert_eq!(tree.misplaced(), None);
    }

    #[test]
    fn a_file_takes_the_place_of_a_folder_and_the_other_way_round() {
        let below: &[_] = &[("a/x", F, "1"), ("b", F, "1"), ("c", L, "a")];
        let above: &[_] = &[("a", F, "2"), ("b", D, ""), ("b/y", F, "2"), ("c", D, "")];
        let tree = root(&[below, above]).unwrap();
        assert_eq!(paths(&tree), ["a", "b", "b/y", "c"]);
        assert_eq!(tree.get("c").unwrap().kind, Kind::Dir);
    }

    #[test]
    fn what_leads_out_of_the_root_or_below_a_file_is_refused() {
        let refused =
            |members: &[(&str, EntryType, &str)]| root(&[members]).unwrap_err().to_string();
        for path in ["../out", "a/../../out", "a/../b", ".wh...", ".wh.."] {
            assert!(
                refused(&[(path, F, "1")]).contains("is not within the root"),
                "{path}"
            );
        }
        assert!(refused(&[("f", F, "1"), ("f/x", F, "1")]).contains("f/x is not within"));
        assert!(refused(&[("h", H, "../../passwd")]).contains("h is not within"));
        assert!(refused(&[("h", H, "nothing")]).contains("link to no file"));
        assert!(refused(&[("l", L, "l"), ("l/x", F, "1")]).contains("l/x is not within"));
    }
}
