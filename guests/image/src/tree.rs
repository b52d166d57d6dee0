//! A tree of files in memory: what a package holds, and what a guest's root is made of.
//!
//! Paths are relative to the root, without a leading slash, and merged: what stands in `bin`, `sbin`,
//! `lib` or `lib64` is kept under `usr`, as Debian's own systems have had it since release 12.

use bundle::cpio::{self, CpioError, Meta, Writer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Folders that are links into `usr`.
pub const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// Bytes of a page of memory, and of a block of a disk.
pub const BLOCK: u64 = 4096;

/// What stands under a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File(Arc<[u8]>),
    /// A symbolic link.
    Link(String),
    /// A character device with its major and minor number.
    Device(u32, u32),
}

/// A file, with its owner and permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-user-id, set-group-id and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed last, in seconds since 1970.
    pub mtime: u32,
}

/// The time files of ours have: 0 would read as "never" in some of ext4's fields.
pub const TIME: u32 = 1;

impl Node {
    /// A directory of root's that everyone may enter.
    pub fn dir() -> Self {
        Self::root(Kind::Dir, 0o755)
    }

    /// A file of root's.
    pub fn file(bytes: impl Into<Arc<[u8]>>, mode: u32) -> Self {
        Self::root(Kind::File(bytes.into()), mode)
    }

    /// A symbolic link.
    pub fn link(target: &str) -> Self {
        Self::root(Kind::Link(target.to_owned()), 0o777)
    }

    /// A character device of root's.
    pub fn device(major: u32, minor: u32, mode: u32) -> Self {
        Self::root(Kind::Device(major, minor), mode)
    }

    fn root(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: TIME,
        }
    }

    fn meta(&self) -> Meta {
        let (kind, device) = match self.kind {
            Kind::Dir => (cpio::S_IFDIR, (0, 0)),
            Kind::File(_) => (cpio::S_IFREG, (0, 0)),
            Kind::Link(_) => (cpio::S_IFLNK, (0, 0)),
            Kind::Device(major, minor) => (cpio::S_IFCHR, (major, minor)),
        };
        Meta {
            mode: kind | self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            device,
        }
    }

    fn data(&self) -> &[u8] {
        match &self.kind {
            Kind::File(bytes) => bytes,
            Kind::Link(target) => target.as_bytes(),
            Kind::Dir | Kind::Device(..) => &[],
        }
    }
}

/// Files by their path, in order: a directory comes before what is in it.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// `path` as it is kept: merged, without leading `/` or `./` and without a slash at its end. `None` for the
/// root itself and for a path that leaves it.
pub fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    if parts.len() > 1 && MERGED.contains(&parts[0]) {
        parts.insert(0, "usr");
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

impl Tree {
    /// Puts a file under a path, and directories of root's above it where there are none. A directory
    /// leaves what is there as it is.
    pub fn insert(&mut self, path: &str, node: Node) {
        let Some(path) = normal(path) else { return };
        let merged = MERGED.contains(&path.as_str());
        if merged && !matches!(node.kind, Kind::Link(_)) {
            return;
        }
        for (at, _) in path.match_indices('/') {
            self.nodes
                .entry(path[..at].to_owned())
                .or_insert_with(Node::dir);
        }
        if node.kind == Kind::Dir && self.nodes.contains_key(&path) {
            return;
        }
        self.nodes.insert(path, node);
    }

    /// Puts a file under a path, also a directory where there is one.
    pub fn replace(&mut self, path: &str, node: Node) {
        self.nodes.remove(path);
        self.insert(path, node);
    }

    /// The file under exactly this path.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// All of it, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// How many files there are, directories and links among them.
    pub fn count(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// The bytes it takes where each file takes whole blocks, as in memory and on a disk.
    pub fn bytes(&self) -> u64 {
        let blocks = |node: &Node| (node.data().len() as u64).next_multiple_of(BLOCK);
        self.nodes.values().map(blocks).sum()
    }

    /// As a cpio archive. `last` is added behind all else, as an empty file: where that was unpacked, all was.
    ///
    /// # Errors
    /// [`CpioError::TooLarge`] for a file of 4 GiB.
    pub fn to_cpio(&self, last: &str) -> Result<Vec<u8>, CpioError> {
        let mut writer = Writer::default();
        for (path, node) in &self.nodes {
            writer.add(path, node.meta(), node.data())?;
        }
        let end = Node::file(*b"", 0o444);
        writer.add(last, end.meta(), end.data())?;
        Ok(writer.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::cpio::Reader;

    #[test]
    fn paths_are_merged_and_never_leave_the_root() {
        assert_eq!(normal("./lib/a/"), Some("usr/lib/a".into()));
        assert_eq!(normal("/bin/../etc/x"), Some("etc/x".into()));
        assert_eq!(normal("lib"), Some("lib".into()));
        assert_eq!(normal("../etc"), None);
        assert_eq!(normal("/"), None);
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let mut tree = Tree::default();
        tree.insert("./lib/x/y", Node::file(*b"1", 0o644));
        tree.insert("lib/", Node::dir());
        tree.insert("lib", Node::link("usr/lib"));
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["lib", "usr", "usr/lib", "usr/lib/x", "usr/lib/x/y"]);
        let bytes = tree.to_cpio("end").unwrap();
        let members: Vec<_> = Reader::new(&bytes).map(|m| m.unwrap().name).collect();
        assert_eq!(members, [&paths[..], &["end"]].concat());
    }
}
