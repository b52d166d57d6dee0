//! The arbiter without a server: a directory on storage both hosts share.
//!
//! ```text
//!   DIR/temp.web.3.9c0f..   1. written and fsynced under a name of its own
//!         │ link(2)         2. atomic on local file systems and NFS: one caller succeeds
//!         ▼
//!   DIR/flag.web.3          3. read back: whoever it names is the holder; nobody ever removes it
//!                           4. fsync(DIR), then the verdict
//! ```
//!
//! Step 1 may be made long before: on ext4 it waits for a thread of the kernel that has no priority, 7 to
//! 30 ms on a busy host, while the others take one.
//!
//! The file `store` has the directory's identity, and comes into being in the same way, with the first
//! call. It is looked at before and after a flag is set: a directory that was emptied has no verdicts.
//!
//! Killed at any moment, a contender leaves either no flag file or a whole one. The verdict is always
//! read from the flag file, never inferred from the result of link(2). Over NFS the link may have been made
//! although its reply was lost; then the file names this contender.
//!
//! Temporary files of contenders that died are removed by whoever next finds the flag set. That is safe even
//! for a file that is still in use: its owner fails to link it, and reads the flag file.

use crate::identity::Known;
use crate::record::{Identity, MAX_LINE, Record, from_line, to_line};
use crate::{Arbiter, ArbiterError, Contender, Flag, StoreId, Verdict, ViewNumber, VmId};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Flags as files in one directory, which both hosts of a pair mount.
///
/// The directory stays open: should it be unmounted or replaced later, operations fail instead of
/// setting flags somewhere else. Calls block as long as the storage does (a hard NFS mount whose
/// server is away: until it is back).
#[derive(Debug)]
pub struct SharedDisk {
    path: PathBuf,
    dir: File,
    known: Known,
    /// What was written for a flag to come.
    prepared: Mutex<Option<Prepared>>,
}

/// A file that waits to become a flag.
#[derive(Debug)]
struct Prepared {
    temp: String,
    flag: Flag,
    who: Contender,
}

impl SharedDisk {
    /// Opens `dir`, which must exist.
    ///
    /// It is not created: a directory made where the shared storage is not mounted would let both
    /// sides win.
    ///
    /// # Errors
    /// [`ArbiterError::Unreachable`] if there is no such directory.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, ArbiterError> {
        let path = dir.as_ref().to_path_buf();
        let unreachable = |reason: String| ArbiterError::Unreachable {
            arbiter: path.display().to_string(),
            reason,
        };
        let file = File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => unreachable(format!(
                "{e} (mount the shared storage, or create the directory on it)"
            )),
            _ => ArbiterError::disk("open", &path, e),
        })?;
        let meta = file
            .metadata()
            .map_err(|e| ArbiterError::disk("read", &path, e))?;
        if !meta.is_dir() {
            return Err(unreachable("it is no directory".into()));
        }
        Ok(Self {
            path,
            dir: file,
            known: Known::default(),
            prepared: Mutex::new(None),
        })
    }

    fn error(&self, operation: &'static str, name: &str, errno: Errno) -> ArbiterError {
        ArbiterError::disk(operation, &self.path.join(name), errno.into())
    }

    /// Reads a file of one line, and what it says; `None` if there is none.
    fn read_line<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ArbiterError> {
        let how = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.dir, name, how, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => {
                self.is_there()?;
                return Ok(None);
            }
            Err(errno) => return Err(self.error("open", name, errno)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_LINE as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| ArbiterError::disk("read", &self.path.join(name), e))?;
        let said = match bytes.split_last() {
            None => Err("it is empty".into()),
            Some((b'\n', line)) => from_line(line),
            Some(_) => Err("its end is missing".into()),
        };
        said.map(Some).map_err(|reason| self.corrupt(name, reason))
    }

    fn corrupt(&self, name: &str, reason: String) -> ArbiterError {
        ArbiterError::Corrupt {
            path: self.path.join(name),
            reason,
        }
    }

    /// Reads the flag file; `None` if there is none.
    fn read(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let name = flag_name(flag);
        match self.read_line::<Record>(&name)? {
            Some(record) if record.flag() != *flag => {
                Err(self.corrupt(&name, format!("it is {}", record.flag())))
            }
            record => Ok(record.map(|record| record.holder)),
        }
    }

    /// Checks that the store here is the one known. If none is known yet, it is the one known from now on; if
    /// there is none here, it is made.
    fn same_store(&self) -> Result<StoreId, ArbiterError> {
        let here = self.path.display().to_string();
        let is_first = self.known.get().is_none();
        if let Some(id) = self.known.check(&here, self.read_id()?)? {
            if is_first {
                self.sweep(STORE_PREFIX);
            }
            return Ok(id);
        }
        let id = StoreId::random().map_err(|e| ArbiterError::disk("name", &self.path, e))?;
        let temp = self.write_temp(STORE_PREFIX, &to_line(&Identity { store: id }))?;
        let linked = self.link(&temp, STORE);
        self.remove(&temp);
        self.sweep(STORE_PREFIX);
        let id = match (self.read_id()?, linked) {
            (None, Err(errno)) => return Err(self.error("link", STORE, errno)),
            (None, Ok(())) => return Err(self.error("find", STORE, Errno::ENOENT)),
            (id, _) => self.known.check(&here, id)?,
        };
        Ok(id.expect("one was found"))
    }

    /// The identity of the store here, durable.
    fn read_id(&self) -> Result<Option<StoreId>, ArbiterError> {
        let id = self.read_line::<Identity>(STORE)?.map(|said| said.store);
        if id.is_some() && self.known.get().is_none() {
            self.settle()?;
        }
        Ok(id)
    }

    fn link(&self, temp: &str, name: &str) -> nix::Result<()> {
        linkat(&self.dir, temp, &self.dir, name, AtFlags::empty())
    }

    /// Says so if the directory itself is gone.
    fn is_there(&self) -> Result<(), ArbiterError> {
        use std::os::unix::fs::MetadataExt;
        match self.dir.metadata() {
            Ok(meta) if meta.nlink() > 0 => Ok(()),
            Ok(_) => Err(ArbiterError::Unreachable {
                arbiter: self.path.display().to_string(),
                reason: "the directory was removed".into(),
            }),
            Err(e) => Err(ArbiterError::disk("read", &self.path, e)),
        }
    }

    /// Writes `content` to a new file `prefix` + 16 hex digits and makes its content durable.
    fn write_temp(&self, prefix: &str, content: &str) -> Result<String, ArbiterError> {
        let how = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        let (name, mut file) = loop {
            let name = format!(
                "{prefix}{:016x}",
                RandomState::new().build_hasher().finish()
            );
            match openat(&self.dir, name.as_str(), how, mode) {
                Ok(fd) => break (name, File::from(fd)),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(self.error("create", &name, errno)),
            }
        };
        let written = file
            .write_all(content.as_bytes())
            .and_then(|()| file.sync_all());
        if let Err(e) = written {
            self.remove(&name);
            return Err(ArbiterError::disk("write", &self.path.join(&name), e));
        }
        Ok(name)
    }

    /// The name of a durable file that says that `who` has `flag`: the one prepared, if it is there still.
    fn written(&self, flag: &Flag, who: &Contender) -> Result<String, ArbiterError> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |file: &Prepared| file.flag == *flag && file.who == *who;
        let line = to_line(&Record::new(flag, who));
        if let Some(Prepared { temp, .. }) = prepared.take_if(|file| fits(file)) {
            let there = self.read_line::<Record>(&temp);
            if matches!(there, Ok(Some(said)) if to_line(&said) == line) {
                return Ok(temp);
            }
            self.remove(&temp);
        }
        self.write_temp(&temp_prefix(flag), &line)
    }

    /// Removes a temporary file; one that stays is only litter.
    fn remove(&self, name: &str) {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::debug!(name, %errno, "cannot remove a temporary file"),
        }
    }

    /// The directory, to be listed.
    fn list(&self) -> nix::Result<Dir> {
        let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Dir::openat(&self.dir, ".", how, Mode::empty())
    }

    /// The highest view of `vm` that the directory lists a flag of.
    fn highest_listed(&self, vm: &VmId) -> Result<Option<ViewNumber>, ArbiterError> {
        let failed = |errno: Errno| ArbiterError::disk("list", &self.path, errno.into());
        let prefix = format!("flag.{vm}.");
        let mut highest = None;
        for entry in self.list().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_str().unwrap_or_default();
            let view = name.strip_prefix(&prefix).and_then(|v| v.parse().ok());
            // Only a name that a flag would have: "+1" is a number, too.
            let view = view.map(ViewNumber).filter(|view| {
                let flag = Flag {
                    vm: vm.clone(),
                    view: *view,
                };
                flag_name(&flag) == name
            });
            highest = highest.max(view);
        }
        Ok(highest)
    }

    /// Removes what contenders left under `prefix`.
    fn sweep(&self, prefix: &str) {
        let Ok(dir) = self.list() else {
            return;
        };
        for entry in dir.into_iter().flatten() {
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            // The rest has no dot, so "temp.a.1." does not match VM "a.1".
            let rest = name.strip_prefix(prefix).unwrap_or_default();
            if rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()) {
                self.remove(name);
            }
        }
    }

    /// Makes the name of a flag file that was read durable. It must be durable before anyone is told of it.
    fn settle(&self) -> Result<(), ArbiterError> {
        self.dir
            .sync_all()
            .map_err(|e| ArbiterError::disk("sync", &self.path, e))
    }
}

impl Arbiter for SharedDisk {
    fn store(&self) -> Result<StoreId, ArbiterError> {
        match self.known.get() {
            Some(id) => Ok(id),
            None => self.same_store(),
        }
    }

    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        self.same_store()?;
        let holder = match self.read(flag)? {
            Some(holder) => holder,
            None => {
                let name = flag_name(flag);
                let temp = self.written(flag, who)?;
                let linked = self.link(&temp, &name);
                let holder = self.read(flag);
                self.remove(&temp);
                match (holder?, linked) {
                    (Some(holder), _) => holder,
                    (None, Err(errno)) => return Err(self.error("link", &name, errno)),
                    (None, Ok(())) => return Err(self.error("find", &name, Errno::ENOENT)),
                }
            }
        };
        self.settle()?;
        self.sweep(&temp_prefix(flag));
        self.same_store()?;
        Ok(Verdict::of(who, &holder))
    }

    fn prepare(&self, flag: &Flag, who: &Contender) {
        let line = to_line(&Record::new(flag, who));
        let temp = match self.write_temp(&temp_prefix(flag), &line) {
            Ok(temp) => temp,
            Err(error) => return tracing::debug!(%error, "nothing is prepared for the flag"),
        };
        let prepared = Prepared {
            temp,
            flag: flag.clone(),
            who: who.clone(),
        };
        let mut slot = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = slot.replace(prepared) {
            self.remove(&before.temp);
        }
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let holder = self.read(flag)?;
        if holder.is_some() {
            self.settle()?;
        }
        // After the flag: an emptied directory has none.
        self.same_store()?;
        Ok(holder)
    }

    fn newest(&self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError> {
        self.is_there()?;
        let listed = self.highest_listed(vm)?;
        let mut newest = None;
        let mut view = Some(listed.unwrap_or_default());
        // What an NFS client remembers of a directory may be old, what it opens is not: so the next ones are
        // looked for as well.
        while let Some(at) = view {
            let flag = Flag {
                vm: vm.clone(),
                view: at,
            };
            match self.read(&flag)? {
                Some(holder) => newest = Some((at, holder)),
                None => break,
            }
            view = at.0.checked_add(1).map(ViewNumber);
        }
        if newest.is_some() {
            self.settle()?;
        }
        self.same_store()?;
        match (listed, &newest) {
            // Flags stay for ever: one that was listed and is not there says that this is not all there is.
            (Some(view), None) => Err(ArbiterError::Corrupt {
                path: self.path.join(flag_name(&Flag {
                    vm: vm.clone(),
                    view,
                })),
                reason: "it is listed, and is not there".into(),
            }),
            _ => Ok(newest),
        }
    }

    fn check(&self) -> Result<(), ArbiterError> {
        self.is_there()?;
        self.same_store()?;
        let temp = self.write_temp(CHECK_PREFIX, "a flag could be written here\n")?;
        self.remove(&temp);
        self.sweep(CHECK_PREFIX);
        self.settle()
    }
}

/// The file that has the directory's identity.
const STORE: &str = "store";

/// Prefix of the files it is made from.
const STORE_PREFIX: &str = "temp.store.";

/// Prefix of the files that [`Arbiter::check`] writes.
const CHECK_PREFIX: &str = "check.";

/// A flag's file. The view has no dot, so the last dot parts VM and view.
fn flag_name(flag: &Flag) -> String {
    format!("flag.{}.{}", flag.vm, flag.view)
}

/// How the temporary files of a flag's contenders begin.
fn temp_prefix(flag: &Flag) -> String {
    format!("temp.{}.{}.", flag.vm, flag.view)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(vm: &str, view: u64) -> Flag {
        Flag {
            vm: VmId::new(vm).unwrap(),
            view: ViewNumber(view),
        }
    }

    fn who(name: &str) -> Contender {
        Contender::new(name).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_damaged_flag_file_is_named_and_never_won() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::open(dir.path()).unwrap();
        let whole = to_line(&Record::new(&flag("web", 1), &who("a")));
        let other = to_line(&Record::new(&flag("web", 2), &who("a")));
        let path = dir.path().join("flag.web.1");
        let mut flipped = whole.clone().into_bytes();
        flipped[20] ^= 0x10;
        let cases: [&[u8]; 6] = [
            b"",
            &whole.as_bytes()[..30],
            whole.trim_end().as_bytes(),
            other.as_bytes(),
            &flipped,
            &[0; 4096],
        ];
        for bytes in cases {
            std::fs::write(&path, bytes).unwrap();
            for asked in [who("a"), who("b")] {
                let error = disk.test_and_set(&flag("web", 1), &asked).unwrap_err();
                assert!(matches!(error, ArbiterError::Corrupt { .. }), "{error}");
                assert!(error.to_string().contains("flag.web.1"), "{error}");
            }
            assert!(disk.holder(&flag("web", 1)).is_err());
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is left alone");
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert!(disk.test_and_set(&flag("web", 1), &who("a")).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(disk.test_and_set(&flag("web", 1), &who("a")).is_err());
    }

    #[test]
    fn leftovers_go_when_their_flag_is_set_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::open(dir.path()).unwrap();
        let hex = "0123456789abcdef";
        for name in ["temp.a.1.", "temp.a.1.2.", "temp.a.11.", "temp.b.1."] {
            std::fs::write(dir.path().join(format!("{name}{hex}")), "half a li").unwrap();
        }
        disk.test_and_set(&flag("a", 1), &who("x")).unwrap();
        assert_eq!(
            names(dir.path()),
            [
                "flag.a.1".to_owned(),
                "store".to_owned(),
                format!("temp.a.1.2.{hex}"),
                format!("temp.a.11.{hex}"),
                format!("temp.b.1.{hex}"),
            ]
        );
        disk.test_and_set(&flag("a.1", 2), &who("x")).unwrap();
        assert!(!names(dir.path()).contains(&format!("temp.a.1.2.{hex}")));
    }

    #[test]
    fn what_was_prepared_becomes_the_flag_if_it_is_there_still() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::open(dir.path()).unwrap();
        let temps = || {
            let mut names = names(dir.path());
            names.retain(|name| name.starts_with("temp."));
            names
        };
        for (view, spoil) in [(1, None), (2, Some("")), (3, Some("gone"))] {
            let (flag, a) = (flag("web", view), who("a"));
            // Of two preparations the last counts.
            disk.prepare(&flag, &who("b"));
            disk.prepare(&flag, &a);
            assert_eq!(disk.holder(&flag).unwrap(), None, "it sets nothing");
            let [temp] = temps().try_into().unwrap();
            let temp = dir.path().join(temp);
            match spoil {
                Some("gone") => std::fs::remove_file(&temp).unwrap(),
                Some(text) => std::fs::write(&temp, text).unwrap(),
                None => {}
            }
            assert_eq!(disk.test_and_set(&flag, &a).unwrap(), Verdict::Won);
            assert_eq!(disk.holder(&flag).unwrap(), Some(a));
            assert!(temps().is_empty(), "{:?}", temps());
        }
        // It is no other's, and no other flag's.
        disk.prepare(&flag("web", 4), &who("a"));
        assert_eq!(
            disk.test_and_set(&flag("web", 4), &who("b")).unwrap(),
            Verdict::Won
        );
        let lost = Verdict::Lost { holder: who("b") };
        assert_eq!(disk.test_and_set(&flag("web", 4), &who("a")).unwrap(), lost);
        assert!(temps().is_empty(), "{:?}", temps());
    }

    #[test]
    fn a_contender_whose_temporary_file_was_swept_reads_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::open(dir.path()).unwrap();
        let (flag, b) = (flag("a", 1), who("b"));
        let line = to_line(&Record::new(&flag, &b));
        let temp = disk.write_temp(&temp_prefix(&flag), &line).unwrap();
        disk.test_and_set(&flag, &who("a")).unwrap();
        let linked = linkat(
            &disk.dir,
            temp.as_str(),
            &disk.dir,
            flag_name(&flag).as_str(),
            AtFlags::empty(),
        );
        assert_eq!(linked, Err(Errno::ENOENT));
        assert_eq!(disk.holder(&flag).unwrap(), Some(who("a")));
    }

    #[test]
    fn a_directory_that_was_replaced_is_an_error_not_an_empty_arbiter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        std::fs::create_dir(&path).unwrap();
        let disk = SharedDisk::open(&path).unwrap();
        disk.test_and_set(&flag("a", 1), &who("a")).unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        for result in [
            disk.test_and_set(&flag("a", 1), &who("b")).map(|_| ()),
            disk.holder(&flag("a", 1)).map(|_| ()),
            disk.check(),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, ArbiterError::Unreachable { .. }), "{error}");
        }
        assert!(names(&path).is_empty());
    }

    #[test]
    fn a_check_sets_nothing_and_leaves_the_identity_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("check.0123456789abcdef"), "left").unwrap();
        std::fs::write(dir.path().join("temp.store.0123456789abcdef"), "left").unwrap();
        disk.check().unwrap();
        assert_eq!(names(dir.path()), ["store"]);
    }
}
