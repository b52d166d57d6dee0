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
//! Killed at any moment, a contender leaves either no flag file or a whole one. The verdict is always
//! read from the flag file, never inferred from link's result: over NFS link may have worked although
//! its reply was lost, and then the file names this contender.
//!
//! Temporary files of contenders that died are removed by whoever next finds the flag set. That is
//! safe for one still in use as well: its owner's link fails, and it reads the flag file.

use crate::record::{MAX_LINE, Record};
use crate::{Arbiter, ArbiterError, Contender, Flag, Verdict};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Flags as files in one directory, which both hosts of a pair mount.
///
/// The directory stays open: should it be unmounted or replaced later, operations fail instead of
/// setting flags somewhere else. Calls block as long as the storage does (a hard NFS mount whose
/// server is away: until it is back).
#[derive(Debug)]
pub struct SharedDisk {
    path: PathBuf,
    dir: File,
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
        Ok(Self { path, dir: file })
    }

    fn error(&self, operation: &'static str, name: &str, errno: Errno) -> ArbiterError {
        ArbiterError::disk(operation, &self.path.join(name), errno.into())
    }

    /// Reads the flag file; `None` if there is none.
    fn read(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let name = flag_name(flag);
        let how = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.dir, name.as_str(), how, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return self.absent(),
            Err(errno) => return Err(self.error("open", &name, errno)),
        };
        let corrupt = |reason: String| ArbiterError::Corrupt {
            path: self.path.join(&name),
            reason,
        };
        let mut bytes = Vec::new();
        file.take(MAX_LINE as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| ArbiterError::disk("read", &self.path.join(&name), e))?;
        let record = match bytes.split_last() {
            None => return Err(corrupt("it is empty".into())),
            Some((b'\n', line)) => Record::from_line(line).map_err(corrupt)?,
            Some(_) => return Err(corrupt("its end is missing".into())),
        };
        if record.flag() != *flag {
            return Err(corrupt(format!("it is {}", record.flag())));
        }
        Ok(Some(record.holder))
    }

    /// A flag file was not found: says so, unless the directory itself is gone.
    fn absent(&self) -> Result<Option<Contender>, ArbiterError> {
        use std::os::unix::fs::MetadataExt;
        match self.dir.metadata() {
            Ok(meta) if meta.nlink() > 0 => Ok(None),
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

    /// Removes a temporary file; one that stays is only litter.
    fn remove(&self, name: &str) {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::debug!(name, %errno, "cannot remove a temporary file"),
        }
    }

    /// Removes what contenders left under `prefix`.
    fn sweep(&self, prefix: &str) {
        let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(dir) = Dir::openat(&self.dir, ".", how, Mode::empty()) else {
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

    /// Makes the name of a flag file that was read durable: it must be before anyone is told of it.
    fn settle(&self) -> Result<(), ArbiterError> {
        self.dir
            .sync_all()
            .map_err(|e| ArbiterError::disk("sync", &self.path, e))
    }
}

impl Arbiter for SharedDisk {
    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        let holder = match self.read(flag)? {
            Some(holder) => holder,
            None => {
                let name = flag_name(flag);
                let temp =
                    self.write_temp(&temp_prefix(flag), &Record::new(flag, who).to_line())?;
                let linked = linkat(
                    &self.dir,
                    temp.as_str(),
                    &self.dir,
                    name.as_str(),
                    AtFlags::empty(),
                );
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
        Ok(Verdict::of(who, &holder))
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let holder = self.read(flag)?;
        if holder.is_some() {
            self.settle()?;
        }
        Ok(holder)
    }

    fn check(&self) -> Result<(), ArbiterError> {
        self.absent()?;
        let temp = self.write_temp(CHECK_PREFIX, "a flag could be written here\n")?;
        self.remove(&temp);
        self.sweep(CHECK_PREFIX);
        self.settle()
    }
}

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
    use crate::{ViewNumber, VmId};

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
        let whole = Record::new(&flag("web", 1), &who("a")).to_line();
        let other = Record::new(&flag("web", 2), &who("a")).to_line();
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
                format!("temp.a.1.2.{hex}"),
                format!("temp.a.11.{hex}"),
                format!("temp.b.1.{hex}"),
            ]
        );
        disk.test_and_set(&flag("a.1", 2), &who("x")).unwrap();
        assert!(!names(dir.path()).contains(&format!("temp.a.1.2.{hex}")));
    }

    #[test]
    fn a_contender_whose_temporary_file_was_swept_reads_the_flag() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::open(dir.path()).unwrap();
        let (flag, b) = (flag("a", 1), who("b"));
        let line = Record::new(&flag, &b).to_line();
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
    fn a_check_sets_nothing_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = SharedDisk::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("check.0123456789abcdef"), "left").unwrap();
        disk.check().unwrap();
        assert!(names(dir.path()).is_empty());
    }
}
