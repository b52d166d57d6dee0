//! The kernel and first root within a disk: found and read by debugfs, which mounts nothing.

use crate::error::{During, Error, Result};
use crate::partition::Partition;
use crate::tools::{Stop, output, stream, tool};
use std::cmp::Ordering;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

/// What a guest is booted with.
pub struct BootFiles {
    /// The kernel's release.
    pub release: String,
    /// The kernel, as it stands there.
    pub kernel: Vec<u8>,
    /// Its first root.
    pub initrd: Vec<u8>,
    /// The root's name for the kernel: `UUID=...`.
    pub root: String,
}

/// File systems and the like that are not read: where their mark stands, the mark, their name.
const OTHERS: [(u64, &[u8], &str); 6] = [
    (0, b"XFSB", "XFS"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0x200, b"LABELONE", "LVM"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"hsqs", "squashfs"),
    (0x36, b"FAT1", "FAT"),
];
/// Where ext2's superblock begins, and in it its mark and identifier (Documentation/filesystems/ext4 of Linux).
const SUPERBLOCK: u64 = 1024;
const MARK_AT: u64 = SUPERBLOCK + 0x38;
const UUID_AT: u64 = SUPERBLOCK + 0x68;
/// Names of first roots, around the release: Debian's and Ubuntu's, Fedora's, SUSE's.
const INITRDS: [(&str, &str); 3] = [("initrd.img-", ""), ("initramfs-", ".img"), ("initrd-", "")];
/// Most bytes of a file that is taken.
const FILE_MAX: u64 = 1 << 30;
/// The drivers without which a kernel sees no device of the machine's.
const DRIVERS: [&str; 3] = ["VIRTIO_MMIO", "VIRTIO_BLK", "VIRTIO_NET"];

/// Finds them in the disk in a file. `work` is a folder; `no` makes a failure of why there are none.
///
/// # Errors
/// `no`, or if a tool fails.
pub fn find(
    stop: &Stop,
    disk: &Path,
    partitions: &[Partition],
    work: &Path,
    no: &dyn Fn(String) -> Error,
) -> Result<BootFiles> {
    let look = Look { stop, disk, work };
    let (mut found, mut root, mut seen) = (None, None, Vec::new());
    for (n, partition) in partitions.iter().enumerate() {
        let Some(uuid) = look.uuid(partition)? else {
            if let Some(name) = look.other(partition)? {
                seen.push(format!("partition {} is {name}", n + 1));
            }
            continue;
        };
        let top = look.list(partition, "/")?;
        if root.is_none()
            && ["etc", "usr"]
                .iter()
                .all(|name| top.iter().any(|entry| entry.name == *name))
        {
            root = Some(uuid);
        }
        for folder in ["/boot", ""] {
            let files = match folder {
                "" => top.clone(),
                folder => look.list(partition, folder)?,
            };
            if let Some(release) = newest(&files).filter(|_| found.is_none()) {
                found = Some(Boot {
                    look: &look,
                    partition: *partition,
                    folder,
                    files,
                    release,
                    no,
                });
            }
        }
    }
    let but = match seen.is_empty() {
        true => String::new(),
        false => format!(": {}, which is not read", seen.join(", ")),
    };
    let kernel = "it has no kernel (vmlinuz-*) on an ext4 partition";
    let boot = found.ok_or_else(|| no(format!("{kernel}{but}")))?;
    let etc = "none of its ext4 partitions is a root (with etc and usr)";
    let root = root.ok_or_else(|| no(format!("{etc}{but}")))?;
    boot.take(root)
}

/// The folder a kernel was found in.
struct Boot<'a> {
    look: &'a Look<'a>,
    partition: Partition,
    folder: &'static str,
    files: Vec<Entry>,
    /// The kernel's release.
    release: String,
    no: &'a dyn Fn(String) -> Error,
}

impl Boot<'_> {
    /// What the kernel is booted with. `root` is its root's name.
    fn take(self, root: String) -> Result<BootFiles> {
        let release = &self.release;
        if let Some(config) = self.read(&format!("config-{release}"))?
            && let Some(driver) = lacks(&String::from_utf8_lossy(&config))
        {
            return Err((self.no)(format!(
                "its kernel {release} is built without CONFIG_{driver}, and no guest runs without"
            )));
        }
        let names = INITRDS.map(|(before, after)| format!("{before}{release}{after}"));
        let lacks = |names: &[String]| {
            let names = names.join(", ");
            (self.no)(format!("its kernel {release} has no first root ({names})"))
        };
        let there = |name: &&String| self.files.iter().any(|entry| entry.name == **name);
        let initrd = names.iter().find(there).ok_or_else(|| lacks(&names))?;
        let initrd = self.read(initrd)?.ok_or_else(|| lacks(&names))?;
        let name = format!("vmlinuz-{release}");
        let kernel = self.read(&name)?;
        let kernel = kernel.ok_or_else(|| (self.no)(format!("it has no {name}")))?;
        Ok(BootFiles {
            kernel,
            initrd,
            release: self.release,
            root,
        })
    }

    /// The file's bytes, `None` if there is none of this name. It is refused before it is read if it is no regular file,
    /// or too large.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(entry) = self.files.iter().find(|entry| entry.name == name) else {
            return Ok(None);
        };
        let path = format!("{}/{name}", self.folder);
        let size = match entry.size {
            None => return Err((self.no)(format!("its {path} is no regular file"))),
            Some(size) if size > FILE_MAX => {
                return Err((self.no)(format!(
                    "its {path} is of {size} bytes, and {FILE_MAX} at most are taken"
                )));
            }
            Some(size) => size,
        };
        let bytes = self.look.read(&self.partition, &path, size)?;
        let other = || format!("its {path} is not of the {size} bytes it is said to be");
        bytes.ok_or_else(|| (self.no)(other())).map(Some)
    }
}

/// The first driver a kernel with this configuration does not have.
fn lacks(config: &str) -> Option<&'static str> {
    let has = |name: &&str| {
        let line = format!("CONFIG_{name}=");
        config
            .lines()
            .any(|found| matches!(found.strip_prefix(&line), Some("y" | "m")))
    };
    DRIVERS.into_iter().find(|name| !has(name))
}

/// The release of the newest kernel among these files.
fn newest(files: &[Entry]) -> Option<String> {
    let files = files.iter().filter(|entry| entry.size.is_some());
    let releases = files.filter_map(|entry| entry.name.strip_prefix("vmlinuz-"));
    // Fedora's, which boots any host and is no newer than the others.
    let releases = releases.filter(|release| !release.starts_with("0-rescue"));
    releases.max_by(|a, b| by_version(a, b)).map(str::to_owned)
}

/// Compares two releases, numbers as numbers.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| {
        let mut parts: Vec<(u64, String)> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let letters = rest
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(letters);
            let digits = after
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(after.len());
            let (number, after) = after.split_at(digits);
            parts.push((number.parse().unwrap_or(0), word.to_owned()));
            rest = after;
        }
        parts
    };
    let (a, b) = (parts(a), parts(b));
    let pairs = a
        .iter()
        .zip(&b)
        .map(|(a, b)| a.1.cmp(&b.1).then(a.0.cmp(&b.0)));
    let differ = pairs.into_iter().find(|order| order.is_ne());
    differ.unwrap_or(a.len().cmp(&b.len()))
}

/// A file in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    name: String,
    /// Its length in bytes, if it is a regular file.
    size: Option<u64>,
}

/// A disk being looked into.
struct Look<'a> {
    stop: &'a Stop,
    disk: &'a Path,
    work: &'a Path,
}

impl Look<'_> {
    fn bytes(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let failed = "cannot read the disk";
        let mut file = File::open(self.disk).during(failed)?;
        file.seek(SeekFrom::Start(at)).during(failed)?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).during(failed)?;
        Ok(bytes)
    }

    /// The name of the file system in a partition, if it is one of ext2's kind.
    fn uuid(&self, partition: &Partition) -> Result<Option<String>> {
        if self.bytes(partition.begin.saturating_add(MARK_AT), 2)? != [0x53, 0xef] {
            return Ok(None);
        }
        let id = bundle::hex(&self.bytes(partition.begin + UUID_AT, 16)?);
        if id.len() != 32 {
            return Ok(None);
        }
        let parts = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]];
        Ok(Some(format!("UUID={}", parts.join("-"))))
    }

    /// What else is in a partition, where that is known.
    fn other(&self, partition: &Partition) -> Result<Option<&'static str>> {
        for (at, mark, name) in OTHERS {
            let found = self.bytes(partition.begin.saturating_add(at), mark.len() as u64)?;
            if found == mark {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn debugfs(&self, partition: &Partition, request: &str) -> Result<Command> {
        let mut command = tool("debugfs")?;
        let name = self
            .disk
            .file_name()
            .unwrap_or_default()
            .display()
            .to_string();
        command
            .args(["-R", request])
            .arg(format!("{name}?offset={}", partition.begin))
            .current_dir(self.work);
        Ok(command)
    }

    /// The files in a folder; none if it is not there.
    fn list(&self, partition: &Partition, folder: &str) -> Result<Vec<Entry>> {
        let mut command = self.debugfs(partition, &format!("ls -p {folder}"))?;
        let words = output(self.stop, &mut command)??;
        Ok(words.lines().filter_map(entry).collect())
    }

    /// The file of `size` bytes under `path`, `None` if it is not of that size. It is read through a pipe: what a file
    /// system says of its holes never fills the host's disk.
    fn read(&self, partition: &Partition, path: &str, size: u64) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        let mut command = self.debugfs(partition, &format!("cat {path}"))?;
        let done = stream(self.stop, &mut command, |pipe| {
            let read = pipe.take(size.saturating_add(1)).read_to_end(&mut bytes);
            read.during(format_args!("cannot read {path} in the disk"))
        })?;
        if bytes.len() as u64 != size {
            // What debugfs has more of, it was kept from writing: its failure is no other.
            return Ok(None);
        }
        done?;
        Ok(Some(bytes))
    }
}

/// A line of `ls -p`: /inode/mode/uid/gid/name/size/. Names no kernel has are passed over, so that none is more than a
/// word for debugfs.
fn entry(line: &str) -> Option<Entry> {
    let mut fields = line.strip_prefix('/')?.split('/');
    let (_, mode, _, _) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let name = fields.next()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._+~-".contains(&b);
    let fits = !name.is_empty() && name.bytes().all(plain);
    let mode = u32::from_str_radix(mode, 8).ok()?;
    let is_file = mode & 0o170_000 == 0o100_000;
    // A size that is no number is larger than any.
    let size = fields.next().unwrap_or_default();
    let size = is_file.then(|| size.parse().unwrap_or(u64::MAX));
    fits.then(|| Entry {
        name: name.to_owned(),
        size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_taken_by_number() {
        let file = |name: &str| Entry {
            name: name.into(),
            size: Some(1),
        };
        let mut files = [
            "vmlinuz-6.1.0-9-cloud-amd64",
            "vmlinuz-6.1.0-31-cloud-amd64",
            "vmlinuz-6.1.0-31-amd64",
            "initrd.img-9",
        ]
        .map(file);
        assert_eq!(newest(&files).as_deref(), Some("6.1.0-31-cloud-amd64"));
        files[1].size = None;
        assert_eq!(newest(&files).as_deref(), Some("6.1.0-31-amd64"));
        assert_eq!(newest(&files[3..]), None);
    }

    #[test]
    fn only_plain_names_are_taken_from_a_listing() {
        let line = |name: &str| format!("/12/100644/0/0/{name}/5/");
        let vmlinuz = entry(&line("vmlinuz-6.1.0+x~1")).unwrap();
        assert!(vmlinuz.size == Some(5) && vmlinuz.name == "vmlinuz-6.1.0+x~1");
        for odd in ["a b", "a\"b", "", "vmlinuz-\u{e9}"] {
            assert_eq!(entry(&line(odd)), None, "{odd}");
        }
        for other in ["/2/40755/0/0/boot//", "/2/120777/0/0/vmlinuz-1/5/"] {
            assert_eq!(entry(other).unwrap().size, None, "{other}");
        }
        let unknown = entry("/2/100644/0/0/vmlinuz-1/-5/").unwrap();
        assert_eq!(unknown.size, Some(u64::MAX));
        assert_eq!(entry("/boot: File not found by ext2_lookup"), None);
    }

    #[test]
    fn a_kernel_without_a_driver_is_told_by_its_configuration() {
        let all = "CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_NET=m\n";
        assert_eq!(lacks(all), None);
        let no = all.replace("CONFIG_VIRTIO_MMIO=m", "# CONFIG_VIRTIO_MMIO is not set");
        assert_eq!(lacks(&no), Some("VIRTIO_MMIO"));
    }
}
