//! The server's flags on its own disk: an append-only file of checksummed lines.
//!
//! ```text
//!   DIR/lock        held while a server uses the store
//!   DIR/flags.log   the store's identity, and one line per set flag (see `record`)
//!
//!   test_and_set ──▶ append, sync (`log`) ──▶ in memory (`flags`) ──▶ reply
//!                        │ failed: the line is in doubt
//!                        ▼
//!                    no flag is set, and nothing said of that one, until the line is settled;
//!                    every request that needs it tries again
//! ```
//!
//! A line whose write failed may be on the disk, so it is never taken for absent. Once it is settled its flag
//! counts as set. The contender that set it was not told, and wins when it asks again. What was durable
//! before is answered all the while, so a full or read-only disk hides nothing that is known.
//!
//! At opening, a last line without its newline is a write that was never answered. It is kept if its checksum
//! fits, and cut if not. Any other damage is an error. Opening needs no room. Where nothing can be written
//! the store is open for reading until something can.

mod flags;
mod log;
#[cfg(test)]
mod tests;

use crate::record::{Entry, Identity, Record, from_line, to_line};
use crate::{ArbiterError, Contender, Flag, StoreId, Verdict, ViewNumber, VmId};
use flags::Flags;
use log::LogFile;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Most flags one store takes: a million failovers, and under 100 MiB of names as they usually are.
const MAX_FLAGS: usize = 1_000_000;

/// Largest store file that is read, in bytes. Lines that no longer matter are at most as many again.
const MAX_FILE: u64 = 2 * MAX_FLAGS as u64 * crate::record::MAX_LINE as u64;

/// Machines that are folded at a time: a failover that comes meanwhile waits for as many syncs.
const FOLD_AT_ONCE: usize = 16;

const LOG: &str = "flags.log";
const LOCK: &str = "lock";

/// How much a store takes, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most flags of one client. All flags of a machine that has ended count as one.
    pub flags_per_client: usize,
    /// How long the flags of a machine that ended can still be looked at one by one.
    pub keep_ended: Duration,
}

impl Default for Bounds {
    /// A client's flags fill 10 MiB of disk as names usually are, and a tenth of the store; a week.
    fn default() -> Self {
        Self {
            flags_per_client: 100_000,
            keep_ended: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// What opening a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There was no store: this one is new, and empty.
    pub made: bool,
    /// Flags that are set.
    pub flags: usize,
    /// Bytes of an unfinished last record that were cut.
    pub cut_bytes: usize,
    /// Why nothing can be written yet. Flags that are set are told meanwhile, and none is set.
    pub read_only: Option<String>,
}

/// The flags a server knows.
///
/// Invariant: what is in `flags` is durable; what is durable is in `flags` or is `doubt`.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    bounds: Bounds,
    log: LogFile,
    flags: Flags,
    /// What the line in doubt says, if there is one.
    doubt: Option<Entry>,
    /// Seconds since 1970.
    now_s: fn() -> u64,
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
        Self::open_in(dir, true)
    }

    /// As [`Self::open`], but makes nothing.
    ///
    /// # Errors
    /// Also [`ArbiterError::NoStore`].
    pub fn open_existing(dir: impl AsRef<Path>) -> Result<(Self, Recovery), ArbiterError> {
        let dir = dir.as_ref();
        if !dir.join(LOG).exists() {
            return Err(ArbiterError::NoStore { path: dir.into() });
        }
        Self::open_in(dir, false)
    }

    fn open_in(dir: &Path, may_make: bool) -> Result<(Self, Recovery), ArbiterError> {
        let found = dir.canonicalize();
        let dir = found.map_err(|e| ArbiterError::disk("find", dir, e))?;
        let lock = lock(&dir)?;
        let path = dir.join(LOG);
        let loaded = load(&path)?;
        let mut recovery = Recovery {
            made: loaded.flags.id.is_none() && loaded.flags.len() == 0 && loaded.last.is_none(),
            cut_bytes: loaded.cut_bytes,
            ..Recovery::default()
        };
        let mut store = Self {
            log: LogFile::open(&path, loaded.end, loaded.last_line),
            dir,
            bounds: Bounds::default(),
            flags: loaded.flags,
            doubt: loaded.last,
            now_s: host_now_s,
            _lock: lock,
        };
        if recovery.made {
            if !may_make {
                return Err(ArbiterError::NoStore { path: store.dir });
            }
            store.make(&path)?;
        }
        if let Err(error) = store.settle().and_then(|()| store.be_named()) {
            tracing::warn!(%error, "the store can be read only");
            recovery.read_only = Some(error.to_string());
        }
        recovery.flags =
            store.flags.len() + usize::from(matches!(store.doubt, Some(Entry::Flag(_))));
        Ok((store, recovery))
    }

    /// Makes a new, empty store.
    fn make(&mut self, path: &Path) -> Result<(), ArbiterError> {
        let identity = new_identity(path)?;
        self.log = LogFile::create(path, &to_line(&identity))?;
        self.take(Entry::Identity(identity))
    }

    /// Gives a store of an older version its identity.
    fn be_named(&mut self) -> Result<(), ArbiterError> {
        match self.flags.id {
            Some(_) => Ok(()),
            None => self.append(Entry::Identity(new_identity(&self.dir)?)),
        }
    }

    /// Limits it to `bounds`.
    #[must_use]
    pub fn with_bounds(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// Which store this is.
    ///
    /// # Errors
    /// What the disk said, while a store of an older version cannot be given an identity.
    pub fn id(&mut self) -> Result<StoreId, ArbiterError> {
        if self.flags.id.is_none() {
            self.settle()?;
            self.be_named()?;
        }
        Ok(self.flags.id.expect("it has one now"))
    }

    /// How many flags are known to be set, those that were folded into an end mark as one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.flags.len()
    }

    /// Sets `flag` for `who` unless it is set, durably, and says whose it is. `client` is whose bound
    /// it counts for.
    ///
    /// # Errors
    /// [`ArbiterError::TooManyFlags`]: it is not set. What the disk said: the flag is then in doubt, and
    /// no other is set before it is durable.
    pub fn test_and_set(
        &mut self,
        flag: &Flag,
        who: &Contender,
        client: Option<IpAddr>,
    ) -> Result<Verdict, ArbiterError> {
        if let Some(holder) = self.flags.holder(flag) {
            return Ok(Verdict::of(who, holder));
        }
        self.settle()?;
        if let Some(holder) = self.flags.holder(flag) {
            return Ok(Verdict::of(who, holder));
        }
        self.check_bounds(client)?;
        self.append(Entry::Flag(Record {
            at_s: Some((self.now_s)()),
            by: client,
            ..Record::new(flag, who)
        }))?;
        Ok(Verdict::Won)
    }

    fn check_bounds(&self, client: Option<IpAddr>) -> Result<(), ArbiterError> {
        let too_many = |reason| ArbiterError::TooManyFlags {
            arbiter: self.dir.display().to_string(),
            reason,
        };
        if self.flags.len() >= MAX_FLAGS {
            return Err(too_many(format!("it has {MAX_FLAGS}, and takes no more")));
        }
        let bound = self.bounds.flags_per_client;
        match client {
            Some(client) if self.flags.set_by(client) >= bound => Err(too_many(format!(
                "{client} has set {bound}, the most for one client (tandem arbiter --flags-per-client)"
            ))),
            _ => Ok(()),
        }
    }

    /// Whose `flag` is.
    ///
    /// # Errors
    /// What the disk said, while this flag is in doubt.
    pub fn holder(&mut self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let in_doubt = match &self.doubt {
            Some(Entry::Flag(record)) => record.flag() == *flag,
            Some(Entry::Ended(ended)) => ended.vm == flag.vm && flag.view <= ended.through,
            Some(Entry::Identity(_)) | None => false,
        };
        if in_doubt {
            self.settle()?;
        }
        Ok(self.flags.holder(flag).cloned())
    }

    /// The flag of `vm` with the highest view that is set, and whose it is.
    ///
    /// # Errors
    /// What the disk said, while a flag of this VM is in doubt.
    pub fn newest(&mut self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError> {
        let in_doubt = match &self.doubt {
            Some(Entry::Flag(record)) => record.vm == *vm,
            Some(Entry::Ended(ended)) => ended.vm == *vm,
            Some(Entry::Identity(_)) | None => false,
        };
        if in_doubt {
            self.settle()?;
        }
        Ok(self.flags.newest(vm))
    }

    /// Whether a flag could be set.
    ///
    /// # Errors
    /// What the disk said.
    pub fn check(&mut self) -> Result<(), ArbiterError> {
        self.settle()?;
        self.log.check()
    }

    /// Folds the flags of some machines that ended long enough ago (see `flags` for why no flag is ever
    /// dropped), and writes the file anew when it pays and there is room. Returns whether there is more to
    /// do.
    ///
    /// # Errors
    /// What the disk said; the store is as good as before.
    pub fn tidy(&mut self) -> Result<bool, ArbiterError> {
        self.settle()?;
        let keep = self.bounds.keep_ended;
        let ended = self.flags.foldable((self.now_s)(), keep, FOLD_AT_ONCE);
        if ended.is_empty() {
            if self.flags.is_wasteful() && self.log.compact(&self.flags.to_lines())? {
                self.flags.were_written();
            }
            return Ok(false);
        }
        for ended in ended {
            self.append(Entry::Ended(ended))?;
        }
        Ok(true)
    }

    /// Adds a line, durably. Everything before must be settled.
    fn append(&mut self, entry: Entry) -> Result<(), ArbiterError> {
        let line = to_line(&entry);
        self.doubt = Some(entry);
        self.log.append(&line)?;
        self.settle()
    }

    /// Settles the line in doubt.
    fn settle(&mut self) -> Result<(), ArbiterError> {
        self.log.settle()?;
        match self.doubt.take() {
            Some(entry) => self.take(entry),
            None => Ok(()),
        }
    }

    /// Takes what a durable line says.
    fn take(&mut self, entry: Entry) -> Result<(), ArbiterError> {
        self.flags
            .take(entry)
            .map_err(|reason| ArbiterError::Corrupt {
                path: self.dir.join(LOG),
                reason,
            })
    }
}

fn new_identity(path: &Path) -> Result<Identity, ArbiterError> {
    let store = StoreId::random().map_err(|e| ArbiterError::disk("name", path, e))?;
    Ok(Identity { store })
}

fn host_now_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Takes the store for this process.
fn lock(dir: &Path) -> Result<Flock<File>, ArbiterError> {
    let path = dir.join(LOCK);
    let file = File::options().create(true).append(true).open(&path);
    let file = match file {
        // It is locked as well if it can be read only.
        Err(e) if e.raw_os_error() == Some(Errno::EROFS as i32) => File::open(&path),
        file => file,
    };
    let file = file.map_err(|e| ArbiterError::disk("open", &path, e))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => ArbiterError::InUse { path: dir.into() },
        errno => ArbiterError::disk("lock", &path, errno.into()),
    })
}

/// What a store file says.
#[derive(Default)]
struct Loaded {
    /// By all lines but the last.
    flags: Flags,
    /// Where those lines end, in bytes.
    end: u64,
    /// The last line: nobody knows whether it is durable.
    last: Option<Entry>,
    /// Its bytes, with a newline.
    last_line: Vec<u8>,
    /// Bytes of an unfinished line behind it, which are left out.
    cut_bytes: usize,
}

impl Loaded {
    /// Takes a line; the one before is not the last then.
    fn take(&mut self, entry: Entry, line: &[u8]) -> Result<(), String> {
        self.end += self.last_line.len() as u64;
        self.last_line = [line, b"\n"].concat();
        match self.last.replace(entry) {
            Some(before) => self.flags.take(before),
            None => Ok(()),
        }
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
    let mut number = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        number += 1;
        let (line, whole) = match line.split_last() {
            Some((b'\n', line)) => (line, true),
            _ => (line, false),
        };
        let wrong = |number, reason: String| corrupt(format!("line {number}: {reason}"));
        match from_line(line) {
            Ok(entry) => loaded
                .take(entry, line)
                .map_err(|reason| wrong(number - 1, reason))?,
            Err(_) if !whole => loaded.cut_bytes = line.len(),
            Err(reason) => return Err(wrong(number, reason)),
        }
    }
    if let Some(last) = loaded.last.clone() {
        // It must not contradict the others, durable or not.
        let all = loaded.flags.clone().take(last);
        all.map_err(|reason| corrupt(format!("its last line: {reason}")))?;
    }
    Ok(loaded)
}
