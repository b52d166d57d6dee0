//! Which files of the packages go into a guest.
//!
//! ```text
//!  whole packages   all they have, without ballast and without shared libraries nobody asks for
//!  the service      its program and its own files
//!      └─▶ what those need: link targets, PT_INTERP, DT_NEEDED, `#!`, taken from any package
//! ```
//!
//! Why not by packages alone: Debian's redis-tools depends, in steps, on 40 packages, most of them to be
//! installed and few to run. Why not by libraries alone: what a program opens by name (modules of an
//! interpreter, tables, configuration) no header tells.

use crate::elf;
use crate::tree::{Kind, Node, Tree, follow, normal};
use std::collections::{BTreeMap, BTreeSet};

/// Where the loader looks by itself.
const LIBRARY_FOLDERS: [&str; 3] = ["usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"];
/// What the C library opens by name when a thread ends.
const OPENED_BY_LIBC: &str = "libgcc_s.so.1";

/// Folders nothing reads in a guest: documentation, other languages, what starts services elsewhere, what
/// compiles against a library.
const BALLAST: &[&str] = &[
    "etc/apparmor.d",
    "etc/bash_completion.d",
    "etc/cron.d",
    "etc/cron.daily",
    "etc/cron.weekly",
    "etc/default",
    "etc/init",
    "etc/init.d",
    "etc/insserv.conf.d",
    "etc/logrotate.d",
    "etc/pam.d",
    "etc/rc.d",
    "etc/rsyslog.d",
    "etc/ufw",
    "usr/include",
    "usr/lib/initramfs-tools",
    "usr/lib/modules-load.d",
    "usr/lib/pkgconfig",
    "usr/lib/systemd",
    "usr/lib/sysusers.d",
    "usr/lib/tmpfiles.d",
    "usr/lib/udev",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/pkgconfig",
    "usr/share/applications",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/fish",
    "usr/share/gdb",
    "usr/share/icons",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/metainfo",
    "usr/share/pixmaps",
    "usr/share/zsh",
];

/// The files of one package.
#[derive(Debug)]
pub struct PackageFiles {
    /// Its files, without ballast.
    pub tree: Tree,
    /// Whether all of them go in, or only those that are needed.
    pub whole: bool,
}

/// What was chosen.
#[derive(Debug, Default)]
pub struct Closure {
    /// The files.
    pub tree: Tree,
    /// What programs ask for that no package has, and who asks; words for people.
    pub missing: Vec<String>,
}

impl Closure {
    /// The first of these files that is not in it.
    pub fn tree_lacks<'a>(&self, roots: &[&'a str]) -> Option<&'a str> {
        let lacks = |root: &&&str| self.tree.get(root).is_none();
        roots.iter().find(lacks).copied()
    }
}

/// Whether nothing in a guest reads this file.
pub fn is_ballast(path: &str) -> bool {
    let within = |folder: &&str| {
        path.strip_prefix(*folder)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    BALLAST.iter().any(within) || path.ends_with(".a") || path.ends_with(".la")
}

/// Chooses files: all of the whole sources, `roots` (files, or folders with all in them), and whatever
/// those need. `has` says whether the base system has a program already.
pub fn select(sources: &[PackageFiles], roots: &[&str], has: impl Fn(&str) -> bool) -> Closure {
    let mut files: BTreeMap<&str, &Node> = BTreeMap::new();
    for (path, node) in sources.iter().flat_map(|source| source.tree.iter()) {
        // A directory may be in many packages; any other file in one.
        files.entry(path).or_insert(node);
    }
    let mut libraries: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in files.keys().filter(|path| path.contains(".so")) {
        let name = path.rsplit('/').next().unwrap_or(path);
        libraries.entry(name).or_default().push(path);
    }
    let mut walk = Walk {
        files,
        libraries,
        taken: BTreeSet::new(),
        open: Vec::new(),
        missing: BTreeSet::new(),
    };
    for source in sources.iter().filter(|source| source.whole) {
        let paths = source.tree.iter().map(|(path, _)| path);
        walk.open.extend(
            paths
                .filter(|path| !is_shared_library(path))
                .map(str::to_owned),
        );
    }
    for root in roots {
        walk.take_root(root);
    }
    walk.run(&has);
    let mut closure = Closure::default();
    for path in &walk.taken {
        if let Some(node) = walk.files.get(path.as_str()) {
            closure.tree.insert(path, (*node).clone());
        }
    }
    closure.missing = walk.missing.into_iter().collect();
    closure
}

struct Walk<'a> {
    files: BTreeMap<&'a str, &'a Node>,
    /// Paths by the file's name.
    libraries: BTreeMap<&'a str, Vec<&'a str>>,
    taken: BTreeSet<String>,
    open: Vec<String>,
    missing: BTreeSet<String>,
}

impl Walk<'_> {
    fn take_root(&mut self, root: &str) {
        let Some(root) = normal(root) else { return };
        if !self.files.contains_key(root.as_str()) {
            self.missing.insert(format!("{root} (the service's own)"));
        }
        let inside = format!("{root}/");
        let paths = self.files.keys();
        let paths = paths.filter(|path| path.starts_with(&inside) || **path == root);
        self.open.extend(paths.map(|path| (*path).to_owned()));
    }

    fn run(&mut self, has: &impl Fn(&str) -> bool) {
        while let Some(path) = self.open.pop() {
            let Some(node) = self.files.get(path.as_str()).copied() else {
                continue;
            };
            if !self.taken.insert(path.clone()) {
                continue;
            }
            match &node.kind {
                Kind::Link(_) => {
                    let way = follow(&path, |at| self.files.get(at).copied());
                    self.open.extend(way);
                }
                Kind::File(bytes) if elf::is_elf(bytes) => self.take_needs(&path, bytes),
                Kind::File(bytes) if node.mode & 0o111 != 0 => self.take_shell(&path, bytes, has),
                _ => {}
            }
        }
    }

    /// What an ELF file asks for. A broken one (or a 32-bit one) asks for nothing.
    fn take_needs(&mut self, path: &str, bytes: &[u8]) {
        let needs = elf::needs(bytes).unwrap_or_default();
        if let Some(loader) = &needs.loader {
            self.take_path(path, loader);
        }
        for name in &needs.libraries {
            self.take_library(path, name);
            if name == "libc.so.6" && self.libraries.contains_key(OPENED_BY_LIBC) {
                self.take_library(path, OPENED_BY_LIBC);
            }
        }
    }

    fn take_library(&mut self, path: &str, name: &str) {
        let found = self.libraries.get(name).and_then(|paths| {
            let standard = LIBRARY_FOLDERS.iter().find_map(|folder| {
                let here =
                    |path: &&&str| path.rsplit_once('/').is_some_and(|(at, _)| at == *folder);
                paths.iter().find(here)
            });
            // Elsewhere: a library of the package's own, which its programs know where to find.
            standard.or_else(|| paths.first())
        });
        match found {
            Some(found) => self.open.push((*found).to_owned()),
            None => drop(self.missing.insert(format!("{name} (for {path})"))),
        }
    }

    /// The program a script is for.
    fn take_shell(&mut self, path: &str, bytes: &[u8], has: &impl Fn(&str) -> bool) {
        let Some(line) = bytes.strip_prefix(b"#!") else {
            return;
        };
        // Elsewhere (a library's modules) such a line is seldom meant to be used.
        if !path.contains("bin/") {
            return;
        }
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or(line);
        let line = String::from_utf8_lossy(&line[..line.len().min(256)]).into_owned();
        let mut words = line.split_whitespace();
        let Some(program) = words.next() else { return };
        let program = match words.next() {
            Some(name) if program == "/usr/bin/env" => format!("/usr/bin/{name}"),
            _ => program.to_owned(),
        };
        let known =
            normal(&program).is_some_and(|program| self.files.contains_key(program.as_str()));
        if known || !has(&program) {
            self.take_path(path, &program);
        }
    }

    fn take_path(&mut self, path: &str, wanted: &str) {
        let way = follow(wanted, |at| self.files.get(at).copied());
        if way.is_empty() {
            self.missing.insert(format!("{wanted} (for {path})"));
        }
        self.open.extend(way);
    }
}

/// Whether a file is a shared library where the loader looks: in only if something asks for it.
fn is_shared_library(path: &str) -> bool {
    let Some((folder, name)) = path.rsplit_once('/') else {
        return false;
    };
    LIBRARY_FOLDERS.contains(&folder) && (name.ends_with(".so") || name.contains(".so."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(whole: bool, files: &[(&str, Node)]) -> PackageFiles {
        let mut tree = Tree::default();
        for (path, node) in files {
            tree.insert(path, node.clone());
        }
        PackageFiles { tree, whole }
    }

    fn text(bytes: &[u8]) -> Node {
        Node::file(bytes.to_vec(), 0o755)
    }

    /// A program that is certainly there and asks for the C library.
    fn program() -> Node {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        Node::file(bytes, 0o755)
    }

    fn paths(closure: &Closure) -> Vec<&str> {
        let files = closure
            .tree
            .iter()
            .filter(|(_, node)| node.kind != Kind::Dir);
        files.map(|(path, _)| path).collect()
    }

    #[test]
    fn a_program_brings_its_loader_and_libraries_through_links() {
        let libc = source(
            false,
            &[
                (
                    "lib64/ld-linux-x86-64.so.2",
                    Node::link("/lib/x86_64-linux-gnu/ld.so"),
                ),
                ("lib/x86_64-linux-gnu/ld.so", text(b"loader")),
                ("lib/x86_64-linux-gnu/libc.so.6", text(b"libc")),
                ("lib/x86_64-linux-gnu/libm.so.6", text(b"libm")),
                ("lib/x86_64-linux-gnu/libunasked.so.1", text(b"")),
                ("etc/unasked", text(b"")),
            ],
        );
        let gcc = source(
            false,
            &[
                (
                    "lib/x86_64-linux-gnu/libgcc_s.so.1",
                    Node::link("libgcc_s-1.so"),
                ),
                ("lib/x86_64-linux-gnu/libgcc_s-1.so", text(b"gcc")),
            ],
        );
        let server = source(
            false,
            &[
                ("usr/bin/server", Node::link("tool")),
                ("usr/bin/tool", program()),
                ("usr/bin/other", text(b"")),
            ],
        );
        let closure = select(&[libc, gcc, server], &["/usr/bin/server"], |_| false);
        let found = paths(&closure);
        let expected = [
            "usr/bin/server",
            "usr/bin/tool",
            "usr/lib/x86_64-linux-gnu/ld.so",
            "usr/lib/x86_64-linux-gnu/libc.so.6",
            "usr/lib/x86_64-linux-gnu/libgcc_s-1.so",
            "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "usr/lib64/ld-linux-x86-64.so.2",
        ];
        let found: Vec<_> = found
            .into_iter()
            .filter(|path| !path.contains("libm."))
            .collect();
        assert_eq!(found, expected);
        assert!(closure.missing.is_empty(), "{:?}", closure.missing);
    }

    #[test]
    fn a_whole_package_is_there_but_for_libraries_nobody_asks_for() {
        let package = source(
            true,
            &[
                ("usr/lib/x86_64-linux-gnu/libown.so.1", text(b"")),
                ("usr/lib/python3/mod.so", text(b"")),
                ("usr/share/table", text(b"")),
                ("usr/bin/script", text(b"#! /usr/bin/env python3 -u\n")),
                ("usr/bin/simple", text(b"#!/bin/sh\n")),
            ],
        );
        let python = source(
            false,
            &[
                ("usr/bin/python3", Node::link("python3.11")),
                ("usr/bin/python3.11", text(b"")),
            ],
        );
        let closure = select(&[package, python], &[], |program| program == "/bin/sh");
        let expected = [
            "usr/bin/python3",
            "usr/bin/python3.11",
            "usr/bin/script",
            "usr/bin/simple",
            "usr/lib/python3/mod.so",
            "usr/share/table",
        ];
        assert_eq!(paths(&closure), expected);
        assert!(closure.missing.is_empty(), "{:?}", closure.missing);
    }

    #[test]
    fn what_no_package_has_is_named_with_who_asks() {
        let package = source(true, &[("usr/bin/x", text(b"#!/usr/bin/perl\n"))]);
        let closure = select(&[package], &["etc/x.conf"], |_| false);
        let expected = [
            "/usr/bin/perl (for usr/bin/x)",
            "etc/x.conf (the service's own)",
        ];
        assert_eq!(closure.missing, expected);
    }

    #[test]
    fn ballast_is_whole_folders() {
        assert!(is_ballast("usr/share/doc/redis/copyright"));
        assert!(is_ballast("usr/lib/systemd/system/x.service"));
        assert!(!is_ballast("usr/share/doctor/x"));
        assert!(is_ballast("usr/lib/libx.a"));
    }
}
