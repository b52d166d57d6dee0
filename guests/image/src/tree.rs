//! A tree of files in memory: what a package holds, and what a guest's root is made of.
//!
//! Paths are relative to the root, without a leading slash, and merged: what stands in `bin`, `sbin`,
//! `lib` or `lib64` is kept under `usr`, as Debian's own systems have had it since release 12. Only a tree that is made
//! as [`Tree::as_it_is`] has them where they stand.

use bundle::cpio::{self, CpioError, Meta, Writer};
use std::collections::{BTreeMap, HashMap};
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
    /// The capabilities a program gets (capabilities(7)), as the extended attribute `security.capability` has them.
    pub capability: Option<Arc<[u8]>>,
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
            capability: None,
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
    /// Whether paths are not merged.
    as_it_is: bool,
}

/// Symbolic links followed on the way to a file, at most (Linux, MAXSYMLINKS).
const LINKS_MAX: u32 = 40;

/// `path` as it is kept: merged, without leading `/` or `./` and without a slash at its end. `None` for the
/// root itself and for a path that leaves it.
pub fn normal(path: &str) -> Option<String> {
    let clean = clean(path)?;
    let merged = clean
        .split_once('/')
        .is_some_and(|(first, _)| MERGED.contains(&first));
    Some(if merged {
        format!("usr/{clean}")
    } else {
        clean
    })
}

/// The same, not merged.
pub fn clean(path: &str) -> Option<String> {
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
    (!parts.is_empty()).then(|| parts.join("/"))
}

impl Tree {
    /// An empty tree whose paths are not merged.
    pub fn as_it_is() -> Self {
        Self {
            as_it_is: true,
            ..Self::default()
        }
    }

    /// Puts a file under a path, and directories of root's above it where there are none. A directory
    /// leaves what is there as it is.
    pub fn insert(&mut self, path: &str, node: Node) {
        let path = match self.as_it_is {
            true => clean(path),
            false => normal(path),
        };
        let Some(path) = path else { return };
        let merged = !self.as_it_is && MERGED.contains(&path.as_str());
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

    /// Takes away what stands under exactly this path, and all below it but what is to stay.
    pub fn remove(&mut self, path: &str, stays: impl Fn(&str) -> bool) {
        if !stays(path) {
            self.nodes.remove(path);
        }
        self.remove_below(path, stays);
    }

    /// Takes away all below exactly this path (all there is, if it is empty) but what is to stay.
    pub fn remove_below(&mut self, path: &str, stays: impl Fn(&str) -> bool) {
        let begin = match path {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let below = self.nodes.range(begin.clone()..);
        let below = below.take_while(|(path, _)| path.starts_with(&begin));
        let gone: Vec<_> = below.map(|(path, _)| path.clone()).collect();
        for path in gone.iter().filter(|path| !stays(path)) {
            self.nodes.remove(path);
        }
    }

    /// Where `path` leads once links are followed as a process in this root would follow them: the path of what is
    /// there, or would be. That of the root is empty. `None` if there are links without end, or a file on the way.
    pub fn resolve(&self, path: &str) -> Option<String> {
        let mut left: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        let (mut at, mut links) = (Vec::<String>::new(), 0);
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => drop(at.pop()),
                _ => at.push(part),
            }
            match self.nodes.get(&at.join("/")).map(|node| &node.kind) {
                Some(Kind::Link(target)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    match target.starts_with('/') {
                        true => at.clear(),
                        false => drop(at.pop()),
                    }
                    left.extend(target.rsplit('/').map(str::to_owned));
                }
                Some(Kind::Dir) | None => {}
                Some(_) if left.iter().all(|part| matches!(part.as_str(), "" | ".")) => {}
                Some(_) => return None,
            }
        }
        Some(at.join("/"))
    }

    /// The first file that stands below something that is no directory, as none may.
    pub fn misplaced(&self) -> Option<&str> {
        let parent = |path: &str| Some(self.nodes.get(path.rsplit_once('/')?.0)?.kind == Kind::Dir);
        let mut paths = self.nodes.keys().map(String::as_str);
        paths.find(|path| path.contains('/') && parent(path) != Some(true))
    }

    /// All of it, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// How many files there are, directories and links among them.
    pub fn count(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// All of it, in order, each with the path of the file it is another name of (a hard link), if it is.
    pub fn with_names(&self) -> impl Iterator<Item = (&str, &Node, Option<&str>)> {
        let mut seen: HashMap<*const u8, (&str, &Node)> = HashMap::new();
        self.iter().map(move |(path, node)| {
            let Kind::File(bytes) = &node.kind else {
                return (path, node, None);
            };
            let (first, other) = *seen.entry(bytes.as_ptr()).or_insert((path, node));
            // One file has one owner, and what has no bytes has none to share.
            let same = first != path && !bytes.is_empty() && other == node;
            (path, node, same.then_some(first))
        })
    }

    /// The bytes it takes where each file takes whole blocks, as in memory and on a disk.
    pub fn bytes(&self) -> u64 {
        let blocks = |node: &Node| (node.data().len() as u64).next_multiple_of(BLOCK);
        let files = self.with_names().filter(|(.., first)| first.is_none());
        files.map(|(_, node, _)| blocks(node)).sum()
    }

    /// As a cpio archive. `last` is added behind all else, as an empty file: where that was unpacked, all was.
    ///
    /// # Errors
    /// [`CpioError::TooLarge`] for a file of 4 GiB.
    pub fn to_cpio(&self, last: &str) -> Result<Vec<u8>, CpioError> {
        let mut links: HashMap<&str, u32> = HashMap::new();
        for first in self.with_names().filter_map(|(.., first)| first) {
            *links.entry(first).or_insert(1) += 1;
        }
        let (mut writer, mut inodes) = (Writer::default(), HashMap::new());
        for (path, node, first) in self.with_names() {
            let meta = node.meta();
            let links = |path: &str| links.get(path).copied();
            match (first, links(path)) {
                (Some(first), _) => {
                    writer.add_name(path, meta, inodes[first], links(first).unwrap_or(1))?;
                }
                (None, Some(links)) => {
                    let inode = writer.add_named(path, meta, node.data(), links)?;
                    inodes.insert(path, inode);
                }
                (None, None) => writer.add(path, meta, node.data())?,
            }
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
    fn links_are_followed_within_the_root_and_not_without_end() {
        let mut tree = Tree::as_it_is();
        tree.insert("lib", Node::link("usr/lib"));
        tree.insert("usr/lib/x", Node::file(*b"1", 0o644));
        tree.insert("out", Node::link("../../../usr"));
        tree.insert("round", Node::link("/round"));
        let resolve = |path: &str| tree.resolve(path);
        assert_eq!(resolve("lib/x").as_deref(), Some("usr/lib/x"));
        assert_eq!(resolve("/out/lib/new").as_deref(), Some("usr/lib/new"));
        assert_eq!(resolve("..").as_deref(), Some(""));
        assert_eq!(resolve("round/x"), None);
        assert_eq!(resolve("lib/x/y"), None);
        assert_eq!(tree.misplaced(), None);
        tree.insert("lib/y", Node::file(*b"1", 0o644));
        assert_eq!(tree.misplaced(), Some("lib/y"));
    }

    #[test]
    fn a_file_of_two_names_is_kept_once() {
        let mut tree = Tree::default();
        let file = Node::file(vec![7; 5000], 0o755);
        tree.insert("a/one", file.clone());
        tree.insert("b/two", file.clone());
        let mut anothers = file;
        anothers.uid = 5;
        tree.insert("c", anothers);
        let names: Vec<_> = tree.with_names().filter_map(|(.., first)| first).collect();
        assert_eq!(names, ["a/one"]);
        assert_eq!(tree.bytes(), 4 * BLOCK);
        let bytes = tree.to_cpio("end").unwrap();
        let sizes = Reader::new(&bytes).map(|m| m.unwrap().data.len());
        assert_eq!(sizes.collect::<Vec<_>>(), [0, 5000, 0, 0, 5000, 0]);
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
