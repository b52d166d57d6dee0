//! A root file system as an ext4 image, made without root.
//!
//! `mke2fs -d` takes a folder's files as they are. Who is root gives those their owners and modes. A user's files are the
//! user's: then, and for what no file can be given (times of changes, devices), `debugfs -w` writes into the inodes. It
//! takes a millisecond for a dozen lines, so there are no more than are needed.
//! Identifiers come from the inputs' digest and times are the tree's, so that the same inputs give the same bytes.

use crate::error::{During, Error, Result};
use crate::tools::{Stop, output, tool};
use crate::tree::{BLOCK, Kind, Node, TIME, Tree};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// Bytes of an inode.
const INODE: u64 = 256;
/// Room for the service's own data beside its files, in MiB, if nobody says how much.
const ROOM_MIB: u64 = 512;
/// Inodes beside those of the tree's files: what the guest may add.
const ROOM_INODES: u64 = 16384;

/// MiB of a disk for these files, if nobody says how many.
pub fn size_mib(tree: &Tree) -> u64 {
    least_mib(tree) + ROOM_MIB
}

/// MiB of a disk these files fit on, with next to no room beside them: blocks, inodes, the journal of 8 MiB.
fn least_mib(tree: &Tree) -> u64 {
    let inodes = (tree.count() + ROOM_INODES) * INODE;
    ((tree.bytes() + inodes) * 17 / 16).div_ceil(1 << 20) + 16
}

/// Makes the image `out` of `size_mib` with these files. `work` is an empty folder; `inputs` a digest, in
/// hexadecimal, identifiers are taken from.
///
/// # Errors
/// If a tool is missing or fails, or the files need more room.
pub fn make(
    stop: &Stop,
    tree: &Tree,
    out: &Path,
    size_mib: u64,
    work: &Path,
    inputs: &str,
) -> Result {
    let least_mib = least_mib(tree);
    if size_mib < least_mib {
        return Err(Error::DiskTooSmall {
            size_mib,
            least_mib,
        });
    }
    let staged = work.join("files");
    stage(stop, tree, &staged)?;
    let set = set_owners(stop, tree, &staged)?;
    let id = uuid(inputs);
    let mut command = tool("mke2fs")?;
    command
        .args(["-q", "-F", "-t", "ext4", "-L", "tandem", "-m", "0"])
        .args(["-b", &BLOCK.to_string(), "-I", &INODE.to_string()])
        .args(["-N", &(tree.count() + ROOM_INODES).to_string()])
        // Nothing is left for the kernel to initialize, and the log is small for a small disk.
        .args(["-J", "size=8", "-U", &id])
        .arg("-E")
        .arg(format!(
            "root_owner=0:0,hash_seed={id},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        ))
        .arg("-d")
        .arg(&staged)
        .arg(out)
        .arg(format!("{size_mib}M"));
    fixed_time(&mut command);
    output(stop, &mut command)??;
    let failed = "cannot write a script";
    let mut text = debugfs_script(tree, set);
    let capable = tree
        .iter()
        .filter_map(|(path, node)| Some((path, node.capability.as_ref()?)));
    for (n, (path, capability)) in capable.enumerate() {
        let value = work.join(format!("capability-{n}"));
        fs::write(&value, capability).during(failed)?;
        let (path, value) = (
            quoted(&format!("/{path}")),
            quoted(&value.display().to_string()),
        );
        let _ = writeln!(text, "ea_set -f {value} {path} security.capability");
    }
    let script = work.join("script");
    fs::write(&script, text).during(failed)?;
    let mut command = tool("debugfs")?;
    command.args(["-w", "-f"]).arg(&script).arg(out);
    fixed_time(&mut command);
    stop.check()?;
    let words = output(stop, &mut command)??;
    // debugfs goes on after a line that fails, and says so among its echo.
    match words.lines().find(|line| is_complaint(line)) {
        Some(line) => Err(Error::Debugfs(line.to_owned())),
        None => Ok(()),
    }
}

/// Has e2fsprogs take [`TIME`] for the time it is.
fn fixed_time(command: &mut std::process::Command) {
    command
        .env("E2FSPROGS_FAKE_TIME", TIME.to_string())
        .env("SOURCE_DATE_EPOCH", TIME.to_string())
        .env("MKE2FS_DEVICE_SECTSIZE", "512");
}

fn is_complaint(line: &str) -> bool {
    !line.starts_with("debugfs: ") && line.contains(": ") && !line.starts_with("Allocated inode")
}

/// Contents and names into folders, for `mke2fs` to read.
fn stage(stop: &Stop, tree: &Tree, folder: &Path) -> Result {
    let failed = "cannot lay out the disk's files";
    fs::create_dir(folder).during(failed)?;
    for (path, node, first) in tree.with_names() {
        stop.check()?;
        let to = folder.join(path);
        if let Some(first) = first {
            fs::hard_link(folder.join(first), to).during(failed)?;
            continue;
        }
        match &node.kind {
            Kind::Dir => fs::create_dir(to),
            Kind::File(bytes) => fs::write(to, bytes),
            Kind::Link(target) => std::os::unix::fs::symlink(target, to),
            Kind::Device(..) => Ok(()),
        }
        .during(failed)?;
    }
    Ok(())
}

/// Gives the files in a folder the times of the tree's and, where that is allowed, the owners and modes; whether it was.
fn set_owners(stop: &Stop, tree: &Tree, folder: &Path) -> Result<bool> {
    let mut set = nix::unistd::geteuid().is_root();
    // What is in a directory comes behind it, and changes its times.
    let nodes: Vec<_> = tree.iter().filter(|(_, node)| !is_device(node)).collect();
    for (path, node) in nodes.into_iter().rev() {
        stop.check()?;
        let path = folder.join(path);
        // Root of a namespace may have few users. The change of an owner takes bits off the mode.
        set = set && lchown(&path, Some(node.uid), Some(node.gid)).is_ok();
        if set && !matches!(node.kind, Kind::Link(_)) {
            let mode = fs::Permissions::from_mode(node.mode);
            fs::set_permissions(&path, mode).during("cannot lay out the disk's files")?;
        }
        let time = TimeSpec::new(node.mtime.into(), 0);
        let timed = utimensat(
            AT_FDCWD,
            &path,
            &time,
            &time,
            UtimensatFlags::NoFollowSymlink,
        );
        let timed = timed.map_err(std::io::Error::from);
        timed.during("cannot lay out the disk's files")?;
    }
    Ok(set)
}

/// What makes each inode what the tree says. `set` is whether owners and modes are that already.
fn debugfs_script(tree: &Tree, set: bool) -> String {
    let owners_are_set = set;
    // What was written in the file system's life differs with how much is left to write here. Of 0 no count is kept.
    let mut script = "set_super_value kbytes_written 0\n".to_owned();
    let mut set = |path: &str, field: &str, value: &str| {
        let _ = writeln!(script, "set_inode_field {} {field} {value}", quoted(path));
    };
    for path in ["/", "/lost+found"] {
        for field in ["atime", "ctime", "mtime", "crtime"] {
            set(path, field, &format!("@{TIME}"));
            set(path, &format!("{field}_extra"), "0");
        }
    }
    for (path, node) in tree.iter().filter(|(_, node)| !is_device(node)) {
        // mke2fs changes the one as it reads a file, and nobody sets the other.
        for field in ["atime", "ctime"] {
            set(&format!("/{path}"), field, &format!("@{}", node.mtime));
        }
    }
    let mut rest = String::new();
    for (path, node) in tree.iter() {
        let kind = match node.kind {
            Kind::Dir => 0o040_000,
            Kind::File(_) => 0o100_000,
            Kind::Link(_) => 0o120_000,
            Kind::Device(major, minor) => {
                let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
                let _ = writeln!(rest, "cd {}", quoted(&format!("/{folder}")));
                let _ = writeln!(rest, "mknod {} c {major} {minor}", quoted(name));
                0o020_000
            }
        };
        if owners_are_set && !is_device(node) {
            continue;
        }
        let path = quoted(&format!("/{path}"));
        let _ = writeln!(rest, "set_inode_field {path} mode 0{:o}", kind | node.mode);
        let _ = writeln!(rest, "set_inode_field {path} uid {}", node.uid);
        let _ = writeln!(rest, "set_inode_field {path} gid {}", node.gid);
    }
    script + &rest
}

fn is_device(node: &Node) -> bool {
    matches!(node.kind, Kind::Device(..))
}

/// A name as one word for debugfs: in quotes, a quote doubled.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An identifier in the usual form, of the digest's first 16 bytes.
pub fn uuid(digest: &str) -> String {
    let part = |from: usize, to: usize| digest.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-4{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        let mut owned = Node::file(*b"hello", 0o4750);
        (owned.uid, owned.gid) = (1, 42);
        tree.insert("usr/another", owned.clone());
        tree.insert("usr/a \"b\" c", owned);
        let mut ping = Node::file(*b"ping", 0o755);
        // cap_net_raw, permitted and effective (linux/capability.h: VFS_CAP_REVISION_2, VFS_CAP_FLAGS_EFFECTIVE).
        let raw = [
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        ping.capability = Some(raw.into());
        tree.insert("ping", ping);
        tree.insert("dev/null", Node::device(1, 3, 0o666));
        tree.insert("link", Node::link("usr"));
        tree
    }

    /// Whether one of the tools the tests run is missing here; then the test that asks is skipped.
    fn tools_are_missing() -> bool {
        let missing = ["mke2fs", "debugfs", "e2fsck"]
            .iter()
            .find_map(|name| tool(name).err());
        if let Some(why) = &missing {
            testing::skipped::skip_this(why);
        }
        missing.is_some()
    }

    fn debugfs(image: &Path, request: &str) -> String {
        let mut command = tool("debugfs").unwrap();
        command.args(["-R", request]).arg(image);
        output(&Stop::default(), &mut command).unwrap().unwrap()
    }

    #[test]
    fn owners_modes_and_devices_are_the_trees_and_bytes_repeat() {
        if tools_are_missing() {
            return;
        }
        let stop = Stop::default();
        let folder = tempfile::tempdir().unwrap();
        let digest = "0123456789abcdef0123456789abcdef";
        let make = |name: &str| {
            let work = folder.path().join(name);
            fs::create_dir(&work).unwrap();
            let out = work.join("disk");
            make(&stop, &sample(), &out, 24, &work, digest).unwrap();
            out
        };
        let (first, second) = (make("1"), make("2"));
        let file = debugfs(&first, "stat \"/usr/a \"\"b\"\" c\"");
        assert!(file.contains("Mode:  04750"), "{file}");
        assert!(file.contains("User:     1   Group:    42"), "{file}");
        assert!(file.contains("Size: 5"), "{file}");
        for time in ["ctime", "atime", "mtime", "crtime"] {
            let line = format!("{time}: 0x00000001:00000000");
            assert!(file.contains(&line), "{line} in {file}");
        }
        assert!(file.contains("Links: 2"), "{file}");
        let capability = debugfs(&first, "ea_get -x /ping security.capability");
        assert!(capability.contains("01 00 00 02 00 20 00"), "{capability}");
        let device = debugfs(&first, "stat /dev/null");
        assert!(device.contains("Type: character special"), "{device}");
        assert!(
            device.contains("Device major/minor number: 01:03"),
            "{device}"
        );
        assert!(debugfs(&first, "stat /link").contains("Fast link dest: \"usr\""));
        let mut fsck = tool("e2fsck").unwrap();
        let check = fsck.args(["-fn"]).arg(&first).output().unwrap();
        let words = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success(), "{words}");
        assert!(
            fs::read(first).unwrap() == fs::read(second).unwrap(),
            "the same bytes"
        );
    }

    #[test]
    fn a_disk_too_small_says_what_it_takes() {
        if tools_are_missing() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("disk");
        let small = make(&Stop::default(), &sample(), &out, 4, folder.path(), "00").unwrap_err();
        let Error::DiskTooSmall {
            size_mib: 4,
            least_mib,
        } = small
        else {
            panic!("{small}");
        };
        let (stop, digest) = (Stop::default(), "0123456789abcdef0123456789abcdef");
        let enough = make(&stop, &sample(), &out, least_mib, folder.path(), digest);
        assert!(enough.is_ok(), "{least_mib} MiB: {enough:?}");
    }

    #[test]
    fn identifiers_have_the_usual_form() {
        let id = uuid("0123456789abcdef0123456789abcdef");
        assert_eq!(id, "01234567-89ab-4def-8123-456789abcdef");
    }
}
