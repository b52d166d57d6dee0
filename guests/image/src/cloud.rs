//! A distribution's cloud image as a guest: its disk, the kernel and first root in it, and a seed for cloud-init.
//!
//! ```text
//!  CLOUD.qcow2 ─ qemu-img ─▶ raw disk ─ sfdisk ─▶ partitions
//!                              │   └ debugfs ─▶ /boot: vmlinuz-R, initrd, config-R          ─▶ OUT.img
//!                              └ longer by a partition: ISO 9660, label CIDATA (xorriso)    ─▶ OUT.ext4
//! ```
//!
//! Nothing is mounted, so no root is needed, and nobody's file system is given to the host's kernel. A machine has one
//! disk: the seed is a partition of it. The guest's own boot loader is not run.
//!
//! Source of the seed's form: cloud-init's documentation, "NoCloud", "Networking config Version 2".

use crate::cache::{file_beside, file_sha256};
use crate::error::{During, Error, Result};
use crate::partition::{Partition, Table};
use crate::tools::{Stop, output, tool};
use crate::{Built, bootfiles, check_apart, check_writable, folder_of, plan};
use bundle::{Bundle, FORMAT, Manifest, Package, sha256};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf, absolute};

/// What the kernel is told beside where its root is. Interfaces keep the kernel's names, as the seed has them.
const CMDLINE: &str = "console=ttyS0 panic=-1 tsc=reliable mitigations=off net.ifnames=0";
/// Memory such a guest is comfortable with, in MiB.
const MEMORY_MIB: u32 = 1024;
/// Most bytes of what cloud-init is to do.
const USER_DATA_MAX: u64 = 1 << 20;
/// A partition begins at a multiple of this.
const ALIGN: u64 = 1 << 20;
/// Room behind the last partition, for the second copy of a GPT.
const TAIL: u64 = 1 << 20;
/// Bytes of a qcow2 header up to the end of what is looked at.
const HEADER_BYTES: u64 = 80;
/// The incompatible feature of a qcow2 image whose clusters are in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// What is asked of a guest from a cloud image.
#[derive(Clone, Debug)]
pub struct CloudSpec {
    /// The cloud image, a qcow2 file.
    pub from: PathBuf,
    /// The image to write.
    pub output: PathBuf,
    /// The disk to write; if there is none, beside the image.
    pub disk: Option<PathBuf>,
    /// What cloud-init is to do (user data); if there is none, nothing but the network.
    pub user_data: Option<PathBuf>,
    /// The disk's size in MiB; if there is none, the cloud image's own.
    pub size_mib: Option<u32>,
    /// The guest's memory in MiB; if there is none, 1024.
    pub memory_mib: Option<u32>,
    /// The kernel command line, if not the usual one.
    pub cmdline: Option<String>,
}

/// What qemu-img says of a file.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
}

/// What decides how the guest comes out.
#[derive(Serialize)]
struct Inputs<'a> {
    from: String,
    user_data: String,
    size_mib: Option<u32>,
    memory_mib: Option<u32>,
    cmdline: Option<&'a str>,
}

/// Makes a guest of a cloud image. `says` is told what is being done; `stop` ends it from another thread.
///
/// # Errors
/// [`Error`]; what was written by then is whole, or not there.
pub fn make(spec: &CloudSpec, stop: &Stop, says: &dyn Fn(String)) -> Result<Built> {
    let disk = spec.disk.clone();
    let disk = disk.unwrap_or_else(|| bundle::disk_beside(&spec.output));
    for out in [&spec.output, &disk] {
        check_writable(out)?;
    }
    check_apart(&[&spec.output, &disk], Some(&spec.from))?;
    let user_data = user_data(spec.user_data.as_deref())?;
    for name in ["qemu-img", "sfdisk", "debugfs", "xorriso"] {
        tool(name)?;
    }
    let info = info(stop, &spec.from)?;
    let asked = spec.size_mib.map(|mib| u64::from(mib) << 20);
    if let (Some(asked), Some(size_mib)) = (asked, spec.size_mib)
        && asked < info.virtual_size
    {
        return Err(Error::DiskTooSmall {
            size_mib: size_mib.into(),
            least_mib: info.virtual_size.div_ceil(1 << 20),
        });
    }
    let cloud = Cloud {
        spec,
        disk: &disk,
        stop,
        inputs: inputs(spec, stop, &user_data)?,
    };
    let failed = format!("cannot write {}", disk.display());
    // Everything is done in a folder of its own, under names that mean nothing to the tools: no option and no protocol
    // begins with a slash.
    let folder = absolute(folder_of(&disk)).during(&failed)?;
    let work = tempfile::Builder::new()
        .prefix(".tandem-")
        .tempdir_in(folder)
        .during(&failed)?;
    says("converting the disk".into());
    let raw = work.path().join("disk");
    cloud.convert(&raw)?;
    says("looking for the kernel".into());
    let table = Table::read(stop, &raw, || cloud.no("it has no partition table"))?;
    let boot = bootfiles::find(stop, &raw, &table.partitions, work.path(), &|why| {
        cloud.no(&why)
    })?;
    says("adding the seed".into());
    let seed = cloud.seed(work.path(), &user_data)?;
    cloud.add_seed(
        &raw,
        &table,
        &seed,
        info.virtual_size.max(asked.unwrap_or(0)),
    )?;
    let disk_bytes = fs::metadata(&raw).during(&failed)?.len();
    let manifest = cloud.manifest(&boot, disk_bytes);
    let bundle = Bundle {
        kernel: &boot.kernel,
        initrd: &boot.initrd,
        manifest: manifest.clone(),
    };
    let image = bundle.write()?;
    let disk_sum = file_sha256(stop, &raw)?;
    let writing = format!("cannot write {}", spec.output.display());
    let mut file = file_beside(&spec.output)?;
    file.write_all(&image).during(&writing)?;
    let public = fs::Permissions::from_mode(0o644);
    fs::set_permissions(&raw, public).during(&failed)?;
    fs::rename(&raw, &disk).during(&failed)?;
    let kept = file.persist(&spec.output).map_err(std::io::Error::from);
    kept.during(&writing)?;
    Ok(Built {
        image_bytes: image.len() as u64,
        image_sha256: sha256(&image),
        initrd_bytes: boot.initrd.len(),
        disk: Some(disk),
        disk_bytes: Some(disk_bytes),
        disk_sha256: Some(disk_sum),
        manifest,
        cached: false,
    })
}

/// What cloud-init is to do.
fn user_data(path: Option<&Path>) -> Result<Vec<u8>> {
    let Some(path) = path else {
        return Ok(b"#cloud-config\n{}\n".to_vec());
    };
    let mut bytes = Vec::new();
    let file = File::open(path).during(format_args!("cannot read {}", path.display()))?;
    let read = file.take(USER_DATA_MAX + 1).read_to_end(&mut bytes);
    read.during(format_args!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > USER_DATA_MAX {
        return Err(Error::UserDataTooLarge {
            path: path.to_owned(),
            most: USER_DATA_MAX,
        });
    }
    Ok(bytes)
}

fn inputs(spec: &CloudSpec, stop: &Stop, user_data: &[u8]) -> Result<String> {
    plan::digest(&Inputs {
        from: file_sha256(stop, &spec.from)?,
        user_data: sha256(user_data),
        size_mib: spec.size_mib,
        memory_mib: spec.memory_mib,
        cmdline: spec.cmdline.as_deref(),
    })
}

/// What the file is: a qcow2 image, whole in itself.
fn info(stop: &Stop, from: &Path) -> Result<Info> {
    let no = |why: String| Error::Cloud {
        path: from.display().to_string(),
        why,
    };
    let mut header = Vec::new();
    let reading = format!("cannot read {}", from.display());
    let file = File::open(from).during(&reading)?;
    file.take(HEADER_BYTES)
        .read_to_end(&mut header)
        .during(&reading)?;
    whole(&header).map_err(|why| no(why.to_owned()))?;
    let mut command = tool("qemu-img")?;
    command
        .args(["info", "-f", "qcow2", "--output=json"])
        .arg(absolute(from).during(&reading)?);
    let words = output(stop, &mut command)?.map_err(|failed| no(failed.line().to_owned()))?;
    serde_json::from_str(&words).map_err(|why| no(why.to_string()))
}

/// Whether a file that begins like this is a qcow2 image that names no other file; if not, why.
///
/// Why: an image is whoever's. qemu-img opens the files it names, whichever of the host's they are, and what is in them
/// would be on the guest's disk.
/// Source: docs/interop/qcow2.txt of QEMU, "Header". Its numbers are big-endian.
fn whole(header: &[u8]) -> Result<(), &'static str> {
    let number = |at: usize, length: usize| {
        let bytes = header.get(at..at + length);
        bytes.map(|bytes| bytes.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)))
    };
    // Other formats are guessed by their contents, which a guest may have written.
    if !header.starts_with(b"QFI\xfb") {
        return Err("it is no qcow2 file (qemu-img convert -O qcow2 makes one of other formats)");
    }
    let cut = "it is no whole qcow2 file: its header is cut short";
    // Version 2 ends before the features.
    let features = match number(4, 4).ok_or(cut)? {
        2 => 0,
        3 => number(72, 8).ok_or(cut)?,
        _ => return Err("it is a qcow file of a version that is not read (2 and 3 are)"),
    };
    if number(8, 8).ok_or(cut)? != 0 {
        return Err(
            "it has a backing file, and no other file is read; who has both makes them one: \
             qemu-img convert -O qcow2 IN OUT, or qemu-img rebase -b '' FILE",
        );
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(
            "it has an external data file, and no other file is read; who has both makes them one: \
             qemu-img convert -O qcow2 IN OUT",
        );
    }
    Ok(())
}

/// A guest being made.
struct Cloud<'a> {
    spec: &'a CloudSpec,
    disk: &'a Path,
    stop: &'a Stop,
    inputs: String,
}

impl Cloud<'_> {
    fn no(&self, why: &str) -> Error {
        Error::Cloud {
            path: self.spec.from.display().to_string(),
            why: why.to_owned(),
        }
    }

    fn convert(&self, raw: &Path) -> Result {
        let from = &self.spec.from;
        let mut command = tool("qemu-img")?;
        command
            .args(["convert", "-f", "qcow2", "-O", "raw"])
            .arg(absolute(from).during(format_args!("cannot read {}", from.display()))?)
            .arg(raw);
        let converted = output(self.stop, &mut command)?;
        match converted {
            Ok(_) => Ok(()),
            Err(failed) if failed.stderr.contains("No space left on device") => {
                Err(std::io::Error::from(ErrorKind::StorageFull))
                    .during(format_args!("cannot write {}", self.disk.display()))
            }
            Err(failed) => Err(self.no(failed.line())),
        }
    }

    /// The seed: what cloud-init reads at the first boot, as a file system.
    fn seed(&self, work: &Path, user_data: &[u8]) -> Result<Vec<u8>> {
        let failed = "cannot write the seed";
        let folder = work.join("seed");
        fs::create_dir(&folder).during(failed)?;
        let id = self.inputs.get(..16).unwrap_or_default();
        let meta = format!("instance-id: tandem-{id}\nlocal-hostname: tandem\n");
        let network = "version: 2\nethernets:\n  eth0:\n    addresses: [10.77.0.2/24]\n    \
                       gateway4: 10.77.0.1\n    nameservers: {addresses: [10.77.0.1]}\n";
        for (name, bytes) in [
            ("meta-data", meta.as_bytes()),
            ("network-config", network.as_bytes()),
            ("user-data", user_data),
        ] {
            fs::write(folder.join(name), bytes).during(failed)?;
        }
        let image = work.join("seed.iso");
        let mut command = tool("xorriso")?;
        command
            .args(["-as", "mkisofs", "-quiet", "-V", "CIDATA", "-J", "-r", "-o"])
            .arg(&image)
            .arg("--set_all_file_dates")
            .arg("1980010100000000")
            .arg(&folder)
            .env("SOURCE_DATE_EPOCH", "315532800");
        output(self.stop, &mut command)??;
        fs::read(&image).during(failed)
    }

    /// Makes the disk longer by the seed, a partition behind all others. `size` is what the disk has without.
    fn add_seed(&self, raw: &Path, table: &Table, seed: &[u8], size: u64) -> Result {
        let failed = "cannot write the disk";
        let begin = size.next_multiple_of(ALIGN);
        let length = (seed.len() as u64).next_multiple_of(ALIGN);
        let mut file = File::options().write(true).open(raw).during(failed)?;
        file.set_len(begin + length + TAIL).during(failed)?;
        let partition = Partition {
            begin,
            bytes: length,
        };
        let no = |why: String| self.no(&why);
        table.append(self.stop, raw, partition, &self.inputs, &no)?;
        file.seek(SeekFrom::Start(begin)).during(failed)?;
        file.write_all(seed).during(failed)
    }

    fn manifest(&self, boot: &bootfiles::BootFiles, disk_bytes: u64) -> Manifest {
        let cmdline = match &self.spec.cmdline {
            Some(given) => given.clone(),
            None => format!("{CMDLINE} root={} ro", boot.root),
        };
        let kernel = Package {
            name: format!("vmlinuz-{}", boot.release),
            version: boot.release.clone(),
            sha256: sha256(&boot.kernel),
        };
        Manifest {
            format: FORMAT,
            kernel_sha256: kernel.sha256.clone(),
            packages: vec![kernel.clone()],
            kernel,
            kernel_release: boot.release.clone(),
            modules: Vec::new(),
            command: None,
            cmdline,
            memory_mib: self.spec.memory_mib.unwrap_or(MEMORY_MIB),
            disk: true,
            disk_bytes: Some(disk_bytes),
            // Its power-off is its own: no command's status is kept from anybody.
            tells_status: true,
            without_capabilities: Vec::new(),
            ports: Vec::new(),
            inputs_sha256: self.inputs.clone(),
            initrd_sha256: sha256(&boot.initrd),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32, backing: u64, features: u64) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES as usize];
        header[..4].copy_from_slice(b"QFI\xfb");
        header[4..8].copy_from_slice(&version.to_be_bytes());
        header[8..16].copy_from_slice(&backing.to_be_bytes());
        header[72..].copy_from_slice(&features.to_be_bytes());
        header
    }

    #[test]
    fn an_image_that_names_other_files_is_refused_by_its_header() {
        let refused = |header: &[u8]| whole(header).unwrap_err();
        assert_eq!(whole(&header(3, 0, 0)), Ok(()));
        // Dirty, and compressed by another method: nothing of other files.
        assert_eq!(whole(&header(3, 0, 0b1001)), Ok(()));
        assert_eq!(whole(&header(2, 0, 0)[..72]), Ok(()));
        for version in [2, 3] {
            for at in [0x210, 1, 1 << 63] {
                assert!(refused(&header(version, at, 0)).contains("has a backing file"));
            }
        }
        assert!(refused(&header(3, 0, 0b101)).contains("has an external data file"));
        for version in [0, 1, 4] {
            assert!(refused(&header(version, 0, 0)).contains("of a version that is not read"));
        }
        for length in [4, 8, 12, 72, 79] {
            assert!(refused(&header(3, 0, 0)[..length]).contains("cut short"));
        }
        assert!(refused(b"QF").contains("it is no qcow2 file"));
    }
}
