//! The state folder of a host: what its supervisor must not forget, and the files of its replicas.
//!
//! ```text
//!   DIR/lock                held by the supervisor
//!   DIR/supervisor          its name: the same after its restart, and no other's
//!   DIR/events              what it did
//!   DIR/vms/vm-NAME/
//!      lock                 held by the replica's process
//!      begun                the highest view in which a primary was started here
//!      console stderr       what it prints
//!      events metrics       what it notes
//! ```

use super::lock;
use crate::failure::{During, Failure, Outcome};
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use viewservice::{ViewNumber, VmId};

/// Longest console or list of complaints before it is begun anew; the one before stays beside it.
const TEXT_MAX: u64 = 8 << 20;

/// How the name of a machine's folder begins: `..` is the name of a machine, too.
const PREFIX: &str = "vm-";

/// The state folder.
pub struct Folder {
    path: PathBuf,
    _held: lock::Held,
}

impl Folder {
    /// Opens the folder, made if need be, for the supervisor of one host.
    ///
    /// # Errors
    /// If it is another supervisor's, or not to be had.
    pub fn open(path: &Path) -> Outcome<Self> {
        let shown = path.display();
        make(path).during(format_args!("cannot make {shown}"))?;
        make(&path.join("vms")).during(format_args!("cannot make {shown}/vms"))?;
        // Replicas are started in other folders, and write to theirs.
        let path = path
            .canonicalize()
            .during(format_args!("cannot use {shown}"))?;
        match lock::hold(&path.join("lock"))? {
            Some(held) => Ok(Self { path, _held: held }),
            None => Err(Failure::new(format!(
                "{shown} is another supervisor's, which runs (choose another --state)"
            ))),
        }
    }

    /// The supervisor's own name.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub fn supervisor(&self) -> Outcome<String> {
        let path = self.path.join("supervisor");
        let shown = path.display();
        match std::fs::read_to_string(&path) {
            Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).during(format_args!("cannot read {shown}")),
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
            .during("cannot choose a name")?;
        put(&path, &name).during(format_args!("cannot write {shown}"))?;
        Ok(name.trim().to_owned())
    }

    /// The file of its events.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.path.join("events")
    }

    /// The folder of a machine's files.
    #[must_use]
    pub fn of(&self, vm: &VmId) -> PathBuf {
        self.path.join("vms").join(format!("{PREFIX}{vm}"))
    }

    /// The same, made if need be.
    ///
    /// # Errors
    /// If it is not to be had.
    pub fn make(&self, vm: &VmId) -> Outcome<PathBuf> {
        let path = self.of(vm);
        make(&path).during(format_args!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// The machines that have a folder.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn vms(&self) -> Outcome<Vec<VmId>> {
        let listing = "cannot read the state folder";
        let mut vms = Vec::new();
        for entry in std::fs::read_dir(self.path.join("vms")).during(listing)? {
            let name = entry.during(listing)?.file_name();
            let vm = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            vms.extend(vm.and_then(|vm| VmId::new(vm).ok()));
        }
        vms.sort();
        Ok(vms)
    }

    /// The highest view in which a primary of `vm` was started here.
    #[must_use]
    pub fn begun(&self, vm: &VmId) -> Option<ViewNumber> {
        let text = std::fs::read_to_string(self.of(vm).join("begun")).ok()?;
        text.trim().parse().ok().map(ViewNumber)
    }

    /// A primary of `vm` is about to be started in `view`. Durable when this returns.
    ///
    /// # Errors
    /// If it cannot be noted: it must not be started then.
    pub fn begin(&self, vm: &VmId, view: ViewNumber) -> Outcome {
        let path = self.make(vm)?.join("begun");
        put(&path, &format!("{view}\n")).during(format_args!("cannot write {}", path.display()))
    }
}

fn make(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a small file, whole and durable.
fn put(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Opens a file that a replica prints to, behind what is there.
///
/// # Errors
/// If it is not to be had.
pub fn to_print_to(path: &Path) -> Outcome<File> {
    let mut file = File::options();
    file.create(true).append(true);
    file.open(path)
        .during(format_args!("cannot write {}", path.display()))
}

/// Begins a file anew that a replica prints to, if it is full; what it had goes to one with `.1` behind its name. The
/// replica goes on printing to the same file, so what comes in the midst of that is lost.
pub fn bound(path: &Path) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    if file.metadata()?.len() < TEXT_MAX {
        return Ok(());
    }
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    std::fs::copy(path, before)?;
    file.set_len(0)
}

/// What stands in a file from byte `from` on, `most` bytes of it; of a file that is shorter by now, from its beginning.
/// Then where that ends.
///
/// # Errors
/// If it cannot be read.
pub fn part(path: &Path, from: Option<u64>, most: u64) -> std::io::Result<(Vec<u8>, u64)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(e) => return Err(e),
    };
    let length = file.metadata()?.len();
    let from = match from {
        Some(from) if from <= length => from,
        Some(_) => 0,
        None => length.saturating_sub(most),
    };
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let end = from + bytes.len() as u64;
    Ok((bytes, end))
}

/// The last line of a file behind byte `from`.
#[must_use]
pub fn last_line(path: &Path, from: u64) -> Option<String> {
    const LAST: u64 = 4 << 10;
    let length = std::fs::metadata(path).ok()?.len();
    let (bytes, _) = part(path, Some(from.max(length.saturating_sub(LAST))), LAST).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim_start_matches("tandem: ").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str) -> VmId {
        VmId::new(name).unwrap()
    }

    #[test]
    fn a_folder_is_one_supervisors_and_keeps_its_name() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state/host");
        let folder = Folder::open(&path).unwrap();
        let name = folder.supervisor().unwrap();
        let other = Folder::open(&path).err().expect("it is held").to_string();
        assert!(other.contains("another supervisor's"), "{other}");
        drop(folder);
        assert_eq!(Folder::open(&path).unwrap().supervisor().unwrap(), name);
    }

    #[test]
    fn a_machines_folder_is_in_the_state_folder_whatever_its_name() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let names = ["..", ".", "a.b", "web-1"].map(vm);
        for vm in &names {
            folder.make(vm).unwrap();
            folder.begin(vm, ViewNumber(7)).unwrap();
            assert_eq!(folder.begun(vm), Some(ViewNumber(7)));
        }
        let mut sorted = names.to_vec();
        sorted.sort();
        assert_eq!(folder.vms().unwrap(), sorted);
        assert_eq!(folder.begun(&vm("other")), None);
    }

    #[test]
    fn what_is_printed_is_bounded_and_read_in_parts() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("console");
        let mut file = to_print_to(&path).unwrap();
        file.write_all(b"one\ntandem: two\n\n").unwrap();
        bound(&path).unwrap();
        assert_eq!(part(&path, None, 5).unwrap(), (b"two\n\n".to_vec(), 17));
        assert_eq!(part(&path, Some(4), 6).unwrap(), (b"tandem".to_vec(), 10));
        assert_eq!(part(&path, Some(99), 3).unwrap(), (b"one".to_vec(), 3));
        assert_eq!(last_line(&path, 0).as_deref(), Some("two"));
        assert_eq!(last_line(&path, 17), None);
        file.set_len(TEXT_MAX).unwrap();
        bound(&path).unwrap();
        file.write_all(b"three").unwrap();
        assert_eq!(part(&path, Some(0), 9).unwrap(), (b"three".to_vec(), 5));
        let before = std::fs::metadata(place.path().join("console.1")).unwrap();
        assert_eq!(before.len(), TEXT_MAX);
    }
}
