//! The server's flags on its own disk: an append-only file of checksummed lines.
//!
//! ```text
//!   DIR/lock        held while a server uses the store
//!   DIR/flags.log   the store's identity, and one line per set flag (see `record`)
//!
//!   test_and_set ──▶ append, fsync ──▶ in memory ──▶ reply
//!                        │ failed: the record is in doubt
//!                        ▼
//!                    every request fails, until the whole file could be written anew,
//!                    the record in doubt among the others
//! ```
//!
//! A record whose write failed may be on the disk. It is never taken for absent: it counts as set, by
//! a contender that was not told, who wins when it asks again.
//!
//! At opening, a last line without its newline is a write that was never answered, and is cut; it is
//! kept if its checksum fits. Any other damage is an error. The file is then written anew, because
//! what a failed fsync left in the kernel's cache may be readable without being durable.

use crate::record::{Entry, Identity, Record, from_line, to_line};
use crate::{ArbiterError, Contender, Flag, StoreId, Verdict};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Most flags one store takes: a million failovers, and under 100 MiB of names as they usually are.
const MAX_FLAGS: usize = 1_000_000;

/// Largest store file that is read, in bytes.
const MAX_FILE: u64 = MAX_FLAGS as u64 * crate::record::MAX_LINE as u64;

const LOG: &str = "flags.log";
const NEW: &str = "flags.log.new";
const LOCK: &str = "lock";

/// What opening a store found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There was no store: this one is new, and empty.
    pub made: bool,
    /// Flags that are set.
    pub flags: usize,
    /// Bytes of an unfinished last record that were cut.
    pub cut_bytes: usize,
}

/// The flags a server knows.
///
/// Invariant: unless `in_doubt`, what is in memory is durable, and the other way round.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    id: StoreId,
    file: File,
    flags: BTreeMap<Flag, Contender>,
    /// A write failed: memory has the record, the disk may not.
    in_doubt: bool,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the store in `dir`, creating both if need be.
    ///
    /// # Errors
    /// [`ArbiterError::InUse`] if another process has it; [`ArbiterError::Corrupt`] if it is damaged
    /// other than by an unfinished last record; else what the disk said.
    pub fn open(dir: impl AsRef<Path>) -> Result<(Self, Recovery), ArbiterError> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(|e| ArbiterError::disk("create", dir, e))?;
        Self::open_in(dir.to_path_buf(), true)
    }

    /// As [`Self::open`], but makes nothing.
    ///
    /// # Errors
    /// Also [`ArbiterError::NoStore`].
    pub fn open_existing(dir: impl AsRef<Path>) -> Result<(Self, Recovery), ArbiterError> {
        let dir = dir.as_ref().to_path_buf();
        if !dir.join(LOG).exists() {
            return Err(ArbiterError::NoStore { path: dir });
        }
        Self::open_in(dir, false)
    }

    fn open_in(dir: PathBuf, may_make: bool) -> Result<(Self, Recovery), ArbiterError> {
        let lock = lock(&dir)?;
        let path = dir.join(LOG);
        let Loaded {
            id,
            flags,
            cut_bytes,
        } = load(&path)?;
        let made = id.is_none() && flags.is_empty();
        if made && !may_make {
            return Err(ArbiterError::NoStore { path: dir });
        }
        // A store of a version before this has none yet.
        let id = match id {
            Some(id) => id,
            None => StoreId::random().map_err(|e| ArbiterError::disk("name", &path, e))?,
        };
        let file = rewrite(&dir, id, &flags)?;
        if let Some(parent) = dir.canonicalize().ok().as_deref().and_then(Path::parent) {
            sync_dir(parent)?;
        }
        if cut_bytes > 0 {
            tracing::warn!(cut_bytes, dir = %dir.display(), "cut an unfinished record off the store");
        }
        let recovery = Recovery {
            made,
            flags: flags.len(),
            cut_bytes,
        };
        let store = Self {
            dir,
            id,
            file,
            flags,
            in_doubt: false,
            _lock: lock,
        };
        Ok((store, recovery))
    }

    /// Which store this is.
    #[must_use]
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// Sets `flag` for `who` unless it is set, durably, and says whose it is.
    ///
    /// # Errors
    /// What the disk said; the flag is then in doubt, and nothing else is answered before it is
    /// durable.
    pub fn test_and_set(&mut self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        self.repair()?;
        if let Some(holder) = self.flags.get(flag) {
            return Ok(Verdict::of(who, holder));
        }
        if self.flags.len() >= MAX_FLAGS {
            return Err(ArbiterError::Refused {
                arbiter: self.dir.display().to_string(),
                reason: format!("it has {MAX_FLAGS} flags, and takes no more"),
            });
        }
        let line = to_line(&Record::new(flag, who));
        self.flags.insert(flag.clone(), who.clone());
        self.in_doubt = true;
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| ArbiterError::disk("write", &self.dir.join(LOG), e))?;
        self.in_doubt = false;
        Ok(Verdict::Won)
    }

    /// Whose `flag` is.
    ///
    /// # Errors
    /// What the disk said, while a record is in doubt.
    pub fn holder(&mut self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        self.repair()?;
        Ok(self.flags.get(flag).cloned())
    }

    /// Whether records can be made durable.
    ///
    /// # Errors
    /// What the disk said.
    pub fn check(&mut self) -> Result<(), ArbiterError> {
        self.repair()?;
        let probe = self.dir.join("probe");
        let mut file = File::create(&probe).map_err(|e| ArbiterError::disk("create", &probe, e))?;
        let written = file
            .write_all(b"a flag could be written here\n")
            .and_then(|()| file.sync_all());
        let removed = std::fs::remove_file(&probe);
        written
            .and(removed)
            .map_err(|e| ArbiterError::disk("write", &probe, e))
    }

    /// Settles a record in doubt by writing every record anew.
    fn repair(&mut self) -> Result<(), ArbiterError> {
        if self.in_doubt {
            self.file = rewrite(&self.dir, self.id, &self.flags)?;
            self.in_doubt = false;
        }
        Ok(())
    }
}

/// Takes the store for this process.
fn lock(dir: &Path) -> Result<Flock<File>, ArbiterError> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|e| ArbiterError::disk("open", &path, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => ArbiterError::InUse { path: dir.into() },
        errno => ArbiterError::disk("lock", &path, errno.into()),
    })
}

/// What a store file says.
#[derive(Default)]
struct Loaded {
    id: Option<StoreId>,
    flags: BTreeMap<Flag, Contender>,
    /// Bytes of an unfinished last record, which are left out.
    cut_bytes: usize,
}

impl Loaded {
    fn take(&mut self, entry: Entry) -> Result<(), String> {
        match entry {
            Entry::Flag(record) => {
                let flag = record.flag();
                let before = self.flags.insert(flag.clone(), record.holder.clone());
                if before.is_some_and(|holder| holder != record.holder) {
                    return Err(format!("{flag} is set a second time"));
                }
            }
            Entry::Identity(Identity { store }) => {
                if self.id.replace(store).is_some_and(|before| before != store) {
                    return Err("it names another store than the one it is in".into());
                }
            }
        }
        Ok(())
    }
}

/// Reads the store file, if there is one.
fn load(path: &Path) -> Result<Loaded, ArbiterError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| ArbiterError::disk("read", path, e))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::default()),
        Err(e) => return Err(ArbiterError::disk("open", path, e)),
    };
    let corrupt = |reason: String| ArbiterError::Corrupt {
        path: path.into(),
        reason,
    };
    if bytes.len() as u64 > MAX_FILE {
        return Err(corrupt(format!("it is longer than {MAX_FILE} bytes")));
    }
    let mut loaded = Loaded::default();
    for (number, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let (line, whole) = match line.split_last() {
            Some((b'\n', line)) => (line, true),
            _ => (line, false),
        };
        let wrong = |reason: String| corrupt(format!("line {}: {reason}", number + 1));
        match from_line(line) {
            Ok(entry) => loaded.take(entry).map_err(wrong)?,
            Err(_) if !whole => loaded.cut_bytes = line.len(),
            Err(reason) => return Err(wrong(reason)),
        }
    }
    Ok(loaded)
}

/// Replaces the store file by a durable one with exactly `flags`; returns it, open for appending.
fn rewrite(
    dir: &Path,
    id: StoreId,
    flags: &BTreeMap<Flag, Contender>,
) -> Result<File, ArbiterError> {
    let (path, new) = (dir.join(LOG), dir.join(NEW));
    let mut file = File::create(&new).map_err(|e| ArbiterError::disk("create", &new, e))?;
    let mut lines = to_line(&Identity { store: id });
    for (flag, holder) in flags {
        lines.push_str(&to_line(&Record::new(flag, holder)));
    }
    file.write_all(lines.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| ArbiterError::disk("write", &new, e))?;
    std::fs::rename(&new, &path).map_err(|e| ArbiterError::disk("rename", &new, e))?;
    sync_dir(dir)?;
    Ok(file)
}

fn sync_dir(dir: &Path) -> Result<(), ArbiterError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| ArbiterError::disk("sync", dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ViewNumber, VmId};

    fn flag(view: u64) -> Flag {
        Flag {
            vm: VmId::new("web").unwrap(),
            view: ViewNumber(view),
        }
    }

    fn who(name: &str) -> Contender {
        Contender::new(name).unwrap()
    }

    fn filled(dir: &Path, flags: u64) -> Vec<u8> {
        let (mut store, _) = Store::open(dir).unwrap();
        for view in 0..flags {
            assert_eq!(
                store.test_and_set(&flag(view), &who("a")).unwrap(),
                Verdict::Won
            );
        }
        std::fs::read(dir.join(LOG)).unwrap()
    }

    /// Where the lines end.
    fn ends(bytes: &[u8]) -> Vec<usize> {
        let newlines = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n');
        newlines.map(|(at, _)| at + 1).collect()
    }

    #[test]
    fn a_store_cut_at_any_byte_opens_with_what_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = filled(dir.path(), 3);
        let ends = ends(&bytes);
        for cut in 0..=bytes.len() {
            std::fs::write(dir.path().join(LOG), &bytes[..cut]).unwrap();
            let (mut store, recovery) = Store::open(dir.path()).unwrap();
            // A line that lacks its newline only is whole. The first is the identity.
            let lines = ends.iter().filter(|end| **end <= cut + 1).count();
            let whole = lines.saturating_sub(1);
            assert_eq!(recovery.flags, whole, "cut at {cut}");
            let end = lines.checked_sub(1).map_or(0, |last| ends[last]);
            assert_eq!(recovery.cut_bytes, cut.saturating_sub(end));
            for view in 0..3 {
                let set = (view as usize) < whole;
                let holder = store.holder(&flag(view)).unwrap();
                assert_eq!(holder.is_some(), set, "cut at {cut}");
            }
        }
    }

    #[test]
    fn damage_before_the_end_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = filled(dir.path(), 3);
        let ends = ends(&bytes);
        for at in 0..ends[ends.len() - 2] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            std::fs::write(dir.path().join(LOG), &damaged).unwrap();
            let error = Store::open(dir.path()).unwrap_err();
            assert!(matches!(error, ArbiterError::Corrupt { .. }), "byte {at}");
            assert!(error.to_string().contains(LOG), "{error}");
        }
    }

    #[test]
    fn a_flag_set_twice_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let lines = [who("a"), who("b")].map(|who| to_line(&Record::new(&flag(1), &who)));
        std::fs::write(dir.path().join(LOG), lines.concat()).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(ArbiterError::Corrupt { .. })
        ));
    }

    #[test]
    fn a_store_keeps_its_identity_and_one_of_an_older_version_is_given_one() {
        let dir = tempfile::tempdir().unwrap();
        let (store, recovery) = Store::open(dir.path()).unwrap();
        assert!(recovery.made);
        let id = store.id();
        drop(store);
        let (store, recovery) = Store::open(dir.path()).unwrap();
        assert!(!recovery.made);
        assert_eq!(store.id(), id);
        drop(store);
        let old = to_line(&Record::new(&flag(1), &who("a")));
        std::fs::write(dir.path().join(LOG), old).unwrap();
        let (mut store, recovery) = Store::open(dir.path()).unwrap();
        assert_eq!((recovery.made, recovery.flags), (false, 1));
        let given = store.id();
        assert_ne!(given, id);
        assert_eq!(store.holder(&flag(1)).unwrap(), Some(who("a")));
        drop(store);
        assert_eq!(Store::open(dir.path()).unwrap().0.id(), given);
    }

    #[test]
    fn nothing_is_made_where_a_store_is_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let missing = || {
            matches!(
                Store::open_existing(&path),
                Err(ArbiterError::NoStore { .. })
            )
        };
        assert!(missing());
        assert!(!path.exists());
        std::fs::create_dir(&path).unwrap();
        assert!(missing());
        // As a crash leaves one that was about to be made.
        std::fs::write(path.join(LOG), "").unwrap();
        assert!(missing());
        let id = Store::open(&path).unwrap().0.id();
        assert_eq!(Store::open_existing(&path).unwrap().0.id(), id);
    }

    #[test]
    fn two_identities_in_one_store_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let line = || {
            let store = StoreId::random().unwrap();
            to_line(&Identity { store })
        };
        std::fs::write(dir.path().join(LOG), line() + &line()).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(ArbiterError::Corrupt { .. })
        ));
    }

    #[test]
    fn a_failed_write_is_in_doubt_never_absent() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = Store::open(dir.path()).unwrap();
        store.test_and_set(&flag(1), &who("a")).unwrap();
        store.file = File::options().write(true).open("/dev/full").unwrap();
        let block = dir.path().join(NEW);
        std::fs::create_dir(&block).unwrap();

        let error = store.test_and_set(&flag(2), &who("a")).unwrap_err();
        assert!(matches!(error, ArbiterError::DiskFull { .. }), "{error}");
        for view in [1, 2, 3] {
            assert!(store.holder(&flag(view)).is_err());
            assert!(store.test_and_set(&flag(view), &who("b")).is_err());
        }
        assert!(store.check().is_err());

        std::fs::remove_dir(&block).unwrap();
        assert_eq!(
            store.test_and_set(&flag(2), &who("b")).unwrap(),
            Verdict::Lost { holder: who("a") }
        );
        assert_eq!(
            store.test_and_set(&flag(2), &who("a")).unwrap(),
            Verdict::Won
        );
        assert_eq!(
            store.test_and_set(&flag(3), &who("b")).unwrap(),
            Verdict::Won
        );
        drop(store);
        let (mut store, recovery) = Store::open(dir.path()).unwrap();
        assert_eq!(recovery.flags, 3);
        assert_eq!(store.holder(&flag(2)).unwrap(), Some(who("a")));
        assert_eq!(store.holder(&flag(3)).unwrap(), Some(who("b")));
    }

    #[test]
    fn one_server_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(ArbiterError::InUse { .. })
        ));
        drop(first);
        assert!(Store::open(dir.path()).is_ok());
    }
}
