//! The kernel and first root within a disk: found and read by debugfs, which mounts nothing.

use crate::error::{During, Error, Result};
use crate::partition::Partition;
use crate::tools::{Stop, output, tool};
use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

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
                found = Some((*partition, folder, files, release));
            }
        }
    }
    let Some((partition, folder, files, release)) = found else {
        let but = match seen.is_empty() {
            true => String::new(),
            false => format!(": {}, which is not read", seen.join(", ")),
        };
        return Err(no(format!(
            "it has no kernel (vmlinuz-*) on an ext4 partition{but}"
        )));
    };
    let root =
        root.ok_or_else(|| no("none of its ext4 partitions is a root (with etc and usr)".into()))?;
    let read = |name: &str| look.read(&partition, &format!("{folder}/{name}"));
    let has = |name: &str| files.iter().any(|entry| entry.name == name);
    let config = format!("config-{release}");
    if has(&config) {
        let config = read(&config)?;
        if let Some(driver) = lacks(&String::from_utf8_lossy(&config)) {
            return Err(no(format!(
                "its kernel {release} is built without CONFIG_{driver}, and no guest runs without"
            )));
        }
    }
    let names = INITRDS.map(|(before, after)| format!("{before}{release}{after}"));
    let initrd = names.iter().find(|name| has(name));
    let initrd = initrd.ok_or_else(|| {
        no(format!(
            "its kernel {release} has no first root ({})",
            names.join(", ")
        ))
    })?;
    Ok(BootFiles {
        kernel: read(&format!("vmlinuz-{release}"))?,
        initrd: read(initrd)?,
        release,
        root,
    })
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
    let files = files.iter().filter(|entry| entry.is_file);
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
    is_file: bool,
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

    fn debugfs(&self, partition: &Partition, request: &str) -> Result<String> {
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
        Ok(output(self.stop, &mut command)??)
    }

    /// The files in a folder; none if it is not there.
    fn list(&self, partition: &Partition, folder: &str) -> Result<Vec<Entry>> {
        let words = self.debugfs(partition, &format!("ls -p {folder}"))?;
        Ok(words.lines().filter_map(entry).collect())
    }

    fn read(&self, partition: &Partition, path: &str) -> Result<Vec<u8>> {
        let to = self.work.join("file");
        let words = self.debugfs(partition, &format!("dump {path} file"))?;
        let failed = format!("cannot read {path} in the disk");
        let file = File::open(&to).during(format_args!("{failed} ({})", words.trim()))?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX)
            .read_to_end(&mut bytes)
            .during(&failed)?;
        fs::remove_file(&to).during(&failed)?;
        Ok(bytes)
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
    fits.then(|| Entry {
        name: name.to_owned(),
        is_file: mode & 0o170_000 == 0o100_000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_taken_by_number() {
        let file = |name: &str| Entry {
            name: name.into(),
            is_file: true,
        };
        let mut files = [
            "vmlinuz-6.1.0-9-cloud-amd64",
            "vmlinuz-6.1.0-31-cloud-amd64",
            "vmlinuz-6.1.0-31-amd64",
            "initrd.img-9",
        ]
        .map(file);
        assert_eq!(newest(&files).as_deref(), Some("6.1.0-31-cloud-amd64"));
        files[1].is_file = false;
        assert_eq!(newest(&files).as_deref(), Some("6.1.0-31-amd64"));
        assert_eq!(newest(&files[3..]), None);
    }

    #[test]
    fn only_plain_names_are_taken_from_a_listing() {
        let line = |name: &str| format!("/12/100644/0/0/{name}/5/");
        let vmlinuz = entry(&line("vmlinuz-6.1.0+x~1")).unwrap();
        assert!(vmlinuz.is_file && vmlinuz.name == "vmlinuz-6.1.0+x~1");
        for odd in ["a b", "a\"b", "", "vmlinuz-\u{e9}"] {
            assert_eq!(entry(&line(odd)), None, "{odd}");
        }
        assert!(!entry("/2/40755/0/0/boot//").unwrap().is_file);
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
