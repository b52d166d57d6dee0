//! The guest's root: a base system of busybox and a few files, and what was chosen from packages.

use crate::modules::Module;
use crate::tree::{Kind, MERGED, Node, Tree};

/// The guest's scripts: what begins, and what goes on from there.
pub const INIT: &str = include_str!("init.sh");
/// The second of them.
pub const START: &str = include_str!("start.sh");

/// Where busybox is.
const BUSYBOX: &str = "usr/bin/busybox";

const FOLDERS: &[&str] = &[
    "dev",
    "etc/tandem",
    "mnt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "var/lib",
    "var/log",
    "var/tmp",
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
         www-data:x:33:33:www-data:/var/www:/bin/false\n\
         nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n",
    ),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
         services: files\nprotocols: files\n",
    ),
    (
        "etc/hosts",
        "127.0.0.1 localhost\n10.77.0.2 tandem\n10.77.0.1 gateway\n",
    ),
    ("etc/hostname", "tandem\n"),
    ("etc/resolv.conf", "nameserver 10.77.0.1\n"),
    ("etc/tandem/run-folders", "lock\n"),
];

/// The programs busybox is, here; those in `sbin` are marked. A package's own program of the name comes
/// before it.
const APPLETS: &[&str] = &[
    "ash",
    "awk",
    "base64",
    "basename",
    "bunzip2",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "clear",
    "cmp",
    "cp",
    "cpio",
    "cttyhack",
    "cut",
    "date",
    "dd",
    "devmem",
    "df",
    "diff",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hexdump",
    "hostname",
    "id",
    "kill",
    "killall",
    "less",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "more",
    "mount",
    "mountpoint",
    "mv",
    "nc",
    "netstat",
    "nslookup",
    "nproc",
    "od",
    "paste",
    "pidof",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tar",
    "tee",
    "telnet",
    "test",
    "time",
    "timeout",
    "top",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "uptime",
    "usleep",
    "vi",
    "watch",
    "wc",
    "wget",
    "which",
    "xargs",
    "xxd",
    "yes",
    "zcat",
    "sbin/halt",
    "sbin/hwclock",
    "sbin/ifconfig",
    "sbin/insmod",
    "sbin/ip",
    "sbin/losetup",
    "sbin/lsmod",
    "sbin/mkswap",
    "sbin/poweroff",
    "sbin/reboot",
    "sbin/rmmod",
    "sbin/route",
    "sbin/swapon",
    "sbin/switch_root",
    "sbin/sysctl",
    "sbin/udhcpc",
];

/// What the root is made for.
#[derive(Debug, Default)]
pub struct Root<'a> {
    /// The command it runs; none for a shell.
    pub command: Option<&'a str>,
    /// Folders the service writes to.
    pub folders: &'a [&'a str],
    /// More files: path and contents.
    pub files: &'a [(&'a str, &'a str)],
    /// Whether it is on a disk.
    pub disk: bool,
}

/// Whether the base system has this program, by its absolute path.
pub fn has_program(path: &str) -> bool {
    let name = ["/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/"]
        .iter()
        .find_map(|folder| path.strip_prefix(folder));
    name.is_some_and(|name| {
        APPLETS
            .iter()
            .any(|applet| applet.trim_start_matches("sbin/") == name)
    })
}

/// The whole root: base system, `chosen` files of packages, what `root` asks for.
pub fn root(busybox: &Node, chosen: &Tree, root: &Root) -> Tree {
    let mut tree = base(busybox);
    for (path, text) in FILES {
        tree.insert(path, Node::file(text.as_bytes(), 0o644));
    }
    for (path, node) in chosen.iter() {
        // The base system's own files (users, name resolution) fit what is in the guest.
        if FILES.iter().all(|(own, _)| own != &path) {
            tree.insert(path, node.clone());
        }
    }
    tree.insert("usr/sbin/tandem-start", Node::file(START.as_bytes(), 0o755));
    for folder in root.folders {
        tree.insert(folder, Node::dir());
    }
    for (path, text) in root.files {
        tree.insert(path, Node::file(text.as_bytes(), 0o644));
    }
    if let Some(command) = root.command {
        let line = format!("{command}\n").into_bytes();
        tree.insert("etc/tandem/command", Node::file(line, 0o644));
    }
    if root.disk {
        tree.insert("etc/tandem/disk", Node::file(*b"", 0o644));
    }
    tree
}

/// Adds what the kernel begins with: the first program, the modules and their order. `tree` is the root,
/// or a base system that only finds the root on a disk.
pub fn add_boot(tree: &mut Tree, modules: &[Module], root_on_disk: bool) {
    tree.insert("init", Node::file(INIT.as_bytes(), 0o755));
    let mut order = String::new();
    for module in modules {
        order.push_str(&module.name);
        order.push('\n');
        let path = format!("modules/{}.ko", module.name);
        tree.insert(&path, Node::file(module.bytes.as_slice(), 0o644));
    }
    tree.insert("modules/order", Node::file(order.into_bytes(), 0o644));
    if root_on_disk {
        tree.insert("newroot", Node::dir());
        tree.insert("root-on-disk", Node::file(*b"", 0o644));
    }
}

/// Folders, devices and busybox under its names.
pub fn base(busybox: &Node) -> Tree {
    let mut tree = Tree::default();
    for folder in FOLDERS {
        tree.insert(folder, Node::dir());
    }
    for folder in ["tmp", "var/tmp"] {
        let mut node = Node::dir();
        node.mode = 0o1777;
        tree.replace(folder, node);
    }
    for name in MERGED {
        tree.insert(name, Node::link(&format!("usr/{name}")));
    }
    tree.insert("var/run", Node::link("/run"));
    // The kernel opens the console before anything is mounted.
    tree.insert("dev/console", Node::device(5, 1, 0o600));
    tree.insert("dev/null", Node::device(1, 3, 0o666));
    tree.insert(BUSYBOX, busybox.clone());
    for applet in APPLETS {
        let (path, target) = match applet.strip_prefix("sbin/") {
            Some(name) => (format!("usr/sbin/{name}"), "../bin/busybox"),
            None => (format!("usr/bin/{applet}"), "busybox"),
        };
        tree.insert(&path, Node::link(target));
    }
    tree
}

/// busybox, from its package's files.
pub fn busybox(package: &Tree) -> Option<&Node> {
    package
        .get(BUSYBOX)
        .filter(|node| matches!(node.kind, Kind::File(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::follow;

    fn sample(files: &[(&str, Node)]) -> Tree {
        let mut chosen = Tree::default();
        for (path, node) in files {
            chosen.insert(path, node.clone());
        }
        let options = Root {
            command: Some("exec x"),
            folders: &["var/lib/x"],
            ..Root::default()
        };
        root(&Node::file(*b"busybox", 0o755), &chosen, &options)
    }

    #[test]
    fn every_program_the_scripts_use_is_there() {
        let tree = sample(&[]);
        let words = "mount cat insmod poweroff switch_root mkdir ln hostname ip sh setsid cttyhack \
                     sync tr reboot devmem";
        for word in words.split_whitespace() {
            let way = |folder: &str| {
                let path = format!("{folder}/{word}");
                follow(&path, |at| tree.get(at)).last().cloned()
            };
            let found = way("usr/bin").or_else(|| way("usr/sbin"));
            assert_eq!(found.as_deref(), Some(BUSYBOX), "{word}");
            assert!(has_program(&format!("/bin/{word}")), "{word}");
        }
    }

    #[test]
    fn the_status_goes_to_the_machines_register() {
        let register = vmm::devices::exit_status::ADDRESS;
        assert!(START.contains(&format!("devmem {register:#x} 8 \"$status\"")));
    }

    #[test]
    fn a_packages_program_comes_before_busyboxs() {
        let own = Node::file(*b"own", 0o755);
        let users = Node::file(*b"other users", 0o644);
        let tree = sample(&[("bin/ls", own.clone()), ("etc/passwd", users)]);
        assert_eq!(tree.get("usr/bin/ls"), Some(&own));
        let Kind::File(users) = &tree.get("etc/passwd").unwrap().kind else {
            panic!("it is a file");
        };
        assert!(users.starts_with(b"root:"), "the base system's users stay");
    }

    #[test]
    fn modules_are_listed_in_their_order() {
        let mut tree = sample(&[]);
        let module = |name: &str| Module {
            name: name.into(),
            bytes: vec![1],
        };
        add_boot(&mut tree, &[module("virtio"), module("a")], true);
        let order = &tree.get("modules/order").unwrap().kind;
        assert_eq!(order, &Kind::File((*b"virtio\na\n").into()));
        assert!(tree.get("root-on-disk").is_some());
        assert_eq!(tree.get("tmp").unwrap().mode, 0o1777);
    }
}
