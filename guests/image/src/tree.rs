//! A tree of files in memory: what a package holds, and what a guest's root is made of.
//!
//! Paths are relative to the root, without a leading slash, and merged: what stands in `bin`, `sbin`,
//! `lib` or `lib64` is kept under `usr`, as Debian's own systems have had it since release 12.

use bundle::cpio::{self, CpioError, Meta, Writer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Folders that are links into `usr`.
pub const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// Links followed before a path counts as a circle, as Linux does.
const LINKS_MAX: usize = 40;

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
}

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

    /// The bytes of all its regular files.
    pub fn bytes(&self) -> u64 {
        self.nodes
            .values()
            .map(|node| node.data().len() as u64)
            .sum()
    }

    /// As a cpio archive.
    ///
    /// # Errors
    /// [`CpioError::TooLarge`] for a file of 4 GiB.
    pub fn to_cpio(&self) -> Result<Vec<u8>, CpioError> {
        let mut writer = Writer::default();
        for (path, node) in &self.nodes {
            writer.add(path, node.meta(), node.data())?;
        }
        Ok(writer.finish())
    }
}

/// Where the link at `path` with this target points to.
pub fn link_target(path: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return normal(target);
    }
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    normal(&format!("{folder}/{target}"))
}

/// The paths passed on the way from `path` to what it stands for: itself, and each link's target. Empty
/// if `get` knows nothing there, or if links go in a circle.
pub fn follow<'a>(path: &str, get: impl Fn(&str) -> Option<&'a Node>) -> Vec<String> {
    let mut way = Vec::new();
    let mut next = normal(path);
    while let Some(path) = next {
        let Some(node) = get(&path) else { break };
        next = match &node.kind {
            Kind::Link(target) => link_target(&path, target),
            _ => None,
        };
        let last = next.is_none();
        way.push(path);
        if last {
            return way;
        }
        if way.len() > LINKS_MAX {
            break;
        }
    }
    Vec::new()
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
        let bytes = tree.to_cpio().unwrap();
        let members: Vec<_> = Reader::new(&bytes).map(|m| m.unwrap().name).collect();
        assert_eq!(members, paths);
    }

    #[test]
    fn links_are_followed_and_circles_end() {
        let mut tree = Tree::default();
        tree.insert("usr/bin/redis-server", Node::link("redis-check-rdb"));
        tree.insert("usr/bin/redis-check-rdb", Node::file(*b"", 0o755));
        tree.insert("a", Node::link("/b"));
        tree.insert("b", Node::link("a"));
        let way = follow("/bin/redis-server", |path| tree.get(path));
        assert_eq!(way, ["usr/bin/redis-server", "usr/bin/redis-check-rdb"]);
        assert!(follow("a", |path| tree.get(path)).is_empty());
        assert!(follow("nothing", |path| tree.get(path)).is_empty());
    }
}
