//! The guest's root: Debian as it was installed, or busybox alone, and what starts it.
//!
//! ```text
//!  /init                 the kernel's first program (in the first root)     init.sh
//!    ├ busybox init      process 1, which poweroff and reboot talk to       inittab
//!    │   └ start         command, the machine's end                         start.sh
//!    │       └ network   addresses                                          network.sh
//!    └ systemd           if it was asked for: process 1, and the units of the packages as they are shipped
//!        └ network       as a unit                                          network.service
//! ```
//!
//! busybox and the scripts are in `/usr/lib/tandem`, where no package has anything. Its programs are there, too,
//! for the scripts, and for commands that name one the root does not have.

use crate::error::Result;
use crate::modules::Module;
use crate::oci::Container;
use crate::tree::{Kind, MERGED, Node, Tree};

/// The guest's scripts: what begins, and what goes on from there.
const INIT: &str = include_str!("init.sh");
/// The second of them.
const START: &str = include_str!("start.sh");
/// The guest's network.
const NETWORK: &str = include_str!("network.sh");
/// The same for systemd.
const NETWORK_UNIT: &str = include_str!("network.service");
/// What process 1 does.
const INITTAB: &str = include_str!("inittab");
/// The last file of a first root, which is not there unless all others are.
pub const END: &str = "tandem-end";
/// The file in a first root that has the name of the root on a disk.
const ON_DISK: &str = "root-on-disk";
/// The same in that root.
const ROOT: &str = "etc/tandem/root";
/// The file in a root whose process 1 is systemd.
const SYSTEMD: &str = "etc/tandem/systemd";

/// Where busybox is.
const BUSYBOX: &str = "usr/lib/tandem/busybox";
/// Where its programs are.
const PROGRAMS: &str = "usr/lib/tandem/bin";

/// What runs a container's command.
const CONTAINER: &str = "usr/lib/tandem/container";

/// The folders of a root without packages.
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

/// The files of a root without packages.
const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
         nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n",
    ),
];

/// The files of any root that say where it is.
const PLACE: &[(&str, &str)] = &[
    (
        "etc/hosts",
        "127.0.0.1 localhost\n10.77.0.2 tandem\n10.77.0.1 gateway\n",
    ),
    ("etc/hostname", "tandem\n"),
    ("etc/resolv.conf", "nameserver 10.77.0.1\n"),
];

/// What an installation leaves that differs from one to the next, or that is of no more use. What stands in a
/// folder goes with it.
const LEFTOVERS: &[&str] = &[
    // What mmdebstrap was told, for itself.
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "var/cache/apt",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/passwords.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/lists",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/status-old",
    "var/log/apt",
];

/// What a root in memory goes without, since each MiB of it costs every boot: what people read, and what only another
/// installation would use. dpkg's list of what is installed stays.
const NOT_IN_MEMORY: &[&str] = &[
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/debconf",
    "var/lib/dpkg/alternatives",
    "var/lib/dpkg/info",
];

/// busybox's program.
#[derive(Clone, Debug)]
pub struct Busybox {
    /// Its file.
    pub file: Node,
    /// The paths of the programs it is, as it names them itself.
    pub programs: Vec<String>,
}

/// What the root is made for.
#[derive(Debug, Default)]
pub struct Root<'a> {
    /// The command it runs; none for a shell.
    pub command: Option<&'a str>,
    /// More files: path and contents.
    pub files: &'a [(&'a str, &'a str)],
    /// A name for it, if it is on a disk.
    pub on_disk: Option<&'a str>,
    /// Whether systemd is process 1, and not busybox's init.
    pub systemd: bool,
}

/// Whether a path is one of these, or in one.
fn within(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| {
        path.strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// The whole root: Debian as it was `installed`, or busybox alone, and what `root` asks for.
pub fn root(busybox: &Busybox, installed: Option<&Tree>, root: &Root) -> Tree {
    let mut tree = match installed {
        Some(installed) => kept(installed, root.on_disk.is_none()),
        None => alone(busybox),
    };
    add_ours(&mut tree, busybox, root);
    if !root.systemd {
        // Process 1 is busybox's init whatever was installed.
        for name in ["halt", "poweroff", "reboot"] {
            let path = format!("usr/sbin/{name}");
            tree.replace(&path, Node::link(&format!("/{BUSYBOX}")));
        }
    }
    tree
}

/// The root of a container's image, with what runs it. Its own files stay as they are but for those that say where it
/// is.
///
/// # Errors
/// If what it is to run is not in it.
pub fn of_container(
    busybox: &Busybox,
    container: &Container,
    tree: Tree,
    root: &Root,
) -> Result<Tree> {
    let mut tree = tree;
    let (script, user) = container.script(&tree, &format!("/{PROGRAMS}"))?;
    for folder in ["dev", "etc/tandem", "proc", "root", "run", "sys", "var"] {
        tree.insert(folder, Node::dir());
    }
    tree.insert("tmp", everyones());
    add_ours(&mut tree, busybox, root);
    tree.replace(CONTAINER, Node::file(script.into_bytes(), 0o755));
    if let Some(line) = user {
        let mut users = match tree.get("etc/passwd").map(|node| &node.kind) {
            Some(Kind::File(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        };
        if users.last().is_some_and(|last| *last != b'\n') {
            users.push(b'\n');
        }
        users.extend_from_slice(line.as_bytes());
        tree.replace("etc/passwd", Node::file(users, 0o644));
    }
    Ok(tree)
}

/// Adds what every root has of ours: what starts the machine, and says where it is and what it runs.
fn add_ours(tree: &mut Tree, busybox: &Busybox, root: &Root) {
    add_start(tree, busybox);
    for (path, text) in PLACE.iter().chain(root.files) {
        tree.replace(path, Node::file(text.as_bytes(), 0o644));
    }
    if root.systemd {
        add_systemd(tree);
    } else {
        tree.replace("etc/inittab", Node::file(INITTAB.as_bytes(), 0o644));
    }
    if let Some(command) = root.command {
        let line = format!("{command}\n").into_bytes();
        tree.replace("etc/tandem/command", Node::file(line, 0o644));
    }
    if let Some(name) = root.on_disk {
        tree.replace(ROOT, named(name));
    }
}

/// A folder in which everyone may write, and remove what is their own.
fn everyones() -> Node {
    Node {
        mode: 0o1777,
        ..Node::dir()
    }
}

/// What is kept of an installation.
fn kept(installed: &Tree, in_memory: bool) -> Tree {
    let mut tree = Tree::default();
    for (path, node) in installed.iter() {
        let left_out = in_memory && within(path, NOT_IN_MEMORY);
        let emptied = left_out || within(path, LEFTOVERS);
        match &node.kind {
            // apt wants its folders.
            Kind::Dir if !left_out => tree.insert(path, node.clone()),
            _ if emptied => {}
            // What logs say differs each time; who may write them does not.
            Kind::File(_) if within(path, &["var/log"]) => {
                let kind = Kind::File((*b"").into());
                tree.insert(
                    path,
                    Node {
                        kind,
                        ..node.clone()
                    },
                );
            }
            _ => tree.insert(path, node.clone()),
        }
    }
    tree
}

/// Adds what the kernel begins with: the first program, the modules and their order. `tree` is the root,
/// or busybox alone to find the root on a disk by its name.
pub fn add_boot(tree: &mut Tree, modules: &[Module], on_disk: Option<&str>) {
    tree.insert("init", Node::file(INIT.as_bytes(), 0o755));
    let mut order = String::new();
    for module in modules {
        order.push_str(&module.name);
        order.push('\n');
        let path = format!("modules/{}.ko", module.name);
        tree.insert(&path, Node::file(module.bytes.as_slice(), 0o644));
    }
    tree.insert("modules/order", Node::file(order.into_bytes(), 0o644));
    if let Some(name) = on_disk {
        tree.insert("newroot", Node::dir());
        tree.insert(ON_DISK, named(name));
    }
}

fn named(name: &str) -> Node {
    Node::file(format!("{name}\n").into_bytes(), 0o444)
}

/// A root of busybox alone: folders, devices, and its programs where they usually are.
pub fn alone(busybox: &Busybox) -> Tree {
    let mut tree = Tree::default();
    for folder in FOLDERS {
        tree.insert(folder, Node::dir());
    }
    for folder in ["tmp", "var/tmp"] {
        tree.replace(folder, everyones());
    }
    for name in MERGED {
        tree.insert(name, Node::link(&format!("usr/{name}")));
    }
    tree.insert("var/run", Node::link("/run"));
    for (path, text) in FILES {
        tree.insert(path, Node::file(text.as_bytes(), 0o644));
    }
    for path in &busybox.programs {
        tree.insert(path, Node::link(&format!("/{BUSYBOX}")));
    }
    add_start(&mut tree, busybox);
    tree
}

/// Adds busybox, what starts the machine by it, and what the kernel needs before anything is mounted.
fn add_start(tree: &mut Tree, busybox: &Busybox) {
    tree.replace("dev/console", Node::device(5, 1, 0o600));
    tree.replace("dev/null", Node::device(1, 3, 0o666));
    tree.insert(BUSYBOX, busybox.file.clone());
    for path in &busybox.programs {
        let name = path.rsplit('/').next().unwrap_or(path);
        tree.insert(&format!("{PROGRAMS}/{name}"), Node::link("../busybox"));
    }
    for (name, text) in [("start", START), ("network", NETWORK)] {
        let path = format!("usr/lib/tandem/{name}");
        tree.insert(&path, Node::file(text.as_bytes(), 0o755));
    }
}

/// Adds what has systemd bring up the network, and let root in on the console without a password, as busybox's
/// init does.
fn add_systemd(tree: &mut Tree) {
    const UNITS: &str = "etc/systemd/system";
    let login =
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I\n";
    for (path, text) in [
        ("tandem-network.service", NETWORK_UNIT),
        ("serial-getty@ttyS0.service.d/tandem.conf", login),
    ] {
        tree.insert(
            &format!("{UNITS}/{path}"),
            Node::file(text.as_bytes(), 0o644),
        );
    }
    tree.insert(
        &format!("{UNITS}/sysinit.target.wants/tandem-network.service"),
        Node::link(&format!("/{UNITS}/tandem-network.service")),
    );
    // Empty it is filled at the first boot; where there is none systemd asks who is at the console for more
    // (machine-id(5), "First boot semantics").
    tree.replace("etc/machine-id", Node::file(*b"", 0o444));
    tree.insert(SYSTEMD, Node::file(*b"", 0o444));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busybox() -> Busybox {
        let words = "bin/sh bin/mount bin/cat sbin/init sbin/poweroff usr/bin/cttyhack";
        Busybox {
            file: Node::file(*b"busybox", 0o755),
            programs: words.split(' ').map(str::to_owned).collect(),
        }
    }

    fn installed(files: &[(&str, Node)]) -> Tree {
        let mut tree = Tree::default();
        for (path, node) in files {
            tree.insert(path, node.clone());
        }
        tree
    }

    fn text(tree: &Tree, path: &str) -> String {
        match &tree.get(path).unwrap_or_else(|| panic!("no {path}")).kind {
            Kind::File(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Kind::Link(target) => target.clone(),
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn the_status_goes_to_the_machines_register() {
        let register = vmm::devices::exit_status::ADDRESS;
        assert!(START.contains(&format!("devmem {register:#x} 8 \"$status\"")));
    }

    #[test]
    fn an_installation_is_kept_and_its_traces_are_not() {
        let mut log = Node::file(*b"once", 0o640);
        log.gid = 4;
        let debian = installed(&[
            ("usr/bin/ls", Node::file(*b"own", 0o755)),
            ("usr/sbin/reboot", Node::link("/bin/systemctl")),
            ("etc/passwd", Node::file(*b"users", 0o644)),
            ("etc/hostname", Node::file(*b"builder", 0o644)),
            ("var/log/dpkg.log", log),
            ("var/lib/apt/lists/x", Node::file(*b"", 0o644)),
            ("var/lib/dpkg/status-old", Node::file(*b"", 0o644)),
            ("usr/share/doc/x/copyright", Node::file(*b"words", 0o644)),
            ("var/lib/dpkg/info/x.list", Node::file(*b"files", 0o644)),
            ("var/lib/dpkg/status", Node::file(*b"packages", 0o644)),
        ]);
        let on_disk = Root {
            command: Some("exec x"),
            on_disk: Some("name"),
            ..Root::default()
        };
        let tree = root(&busybox(), Some(&debian), &on_disk);
        assert_eq!(text(&tree, "usr/bin/ls"), "own");
        assert_eq!(text(&tree, "etc/passwd"), "users");
        assert_eq!(text(&tree, "etc/hostname"), "tandem\n");
        assert_eq!(text(&tree, "usr/sbin/reboot"), "/usr/lib/tandem/busybox");
        assert_eq!(text(&tree, "usr/lib/tandem/bin/mount"), "../busybox");
        assert_eq!(text(&tree, "etc/tandem/command"), "exec x\n");
        assert_eq!(text(&tree, "etc/tandem/root"), "name\n");
        assert_eq!(text(&tree, "usr/share/doc/x/copyright"), "words");
        assert_eq!(text(&tree, "var/log/dpkg.log"), "");
        assert_eq!(tree.get("var/log/dpkg.log").unwrap().gid, 4);
        assert!(tree.get("var/lib/dpkg/status-old").is_none());
        assert!(tree.get("var/lib/apt/lists/x").is_none());
        assert!(
            tree.get("usr/bin/mount").is_none(),
            "busybox is in no one's way"
        );
        let in_memory = root(&busybox(), Some(&debian), &Root::default());
        assert!(in_memory.get("usr/share/doc/x/copyright").is_none());
        assert!(in_memory.get("var/lib/dpkg/info").is_none());
        assert_eq!(text(&in_memory, "var/lib/dpkg/status"), "packages");
        assert_eq!(text(&tree, "var/lib/dpkg/info/x.list"), "files");
        assert!(in_memory.get("etc/tandem/root").is_none());
    }

    #[test]
    fn systemd_gets_units_and_keeps_its_own_programs() {
        let debian = installed(&[("usr/sbin/reboot", Node::link("/bin/systemctl"))]);
        let systemd = Root {
            on_disk: Some("name"),
            systemd: true,
            ..Root::default()
        };
        let tree = root(&busybox(), Some(&debian), &systemd);
        assert_eq!(text(&tree, "usr/sbin/reboot"), "/bin/systemctl");
        assert!(tree.get("etc/inittab").is_none() && tree.get(SYSTEMD).is_some());
        let unit = "etc/systemd/system/sysinit.target.wants/tandem-network.service";
        let unit = text(&tree, unit);
        assert!(text(&tree, &unit[1..]).contains("ExecStart=/usr/lib/tandem/network"));
        assert_eq!(text(&tree, "etc/machine-id"), "");
    }

    #[test]
    fn without_packages_the_programs_are_busyboxs() {
        let tree = root(&busybox(), None, &Root::default());
        assert_eq!(text(&tree, "usr/bin/sh"), "/usr/lib/tandem/busybox");
        assert!(text(&tree, "etc/passwd").starts_with("root:"));
        assert_eq!(tree.get("tmp").unwrap().mode, 0o1777);
    }

    #[test]
    fn modules_are_listed_in_their_order() {
        let mut tree = alone(&busybox());
        let module = |name: &str| Module {
            name: name.into(),
            bytes: vec![1],
        };
        add_boot(&mut tree, &[module("virtio"), module("a")], Some("name"));
        assert_eq!(text(&tree, "modules/order"), "virtio\na\n");
        assert_eq!(text(&tree, "root-on-disk"), "name\n");
    }
}
