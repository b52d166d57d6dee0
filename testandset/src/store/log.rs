//! The store's file: lines, only ever added at its end.
//!
//! ```text
//!   ┌──────────────────────────────┬─────────────┬ ─ ─ ─ ─ ─ ┐
//!   │ whole lines, durable         │ in doubt    │  torn
//!   └──────────────────────────────┴─────────────┴ ─ ─ ─ ─ ─ ┘
//!                                 end
//!   append:   write a line at `end` ── fdatasync ── `end` moves behind it
//!   failed:   the line is in doubt, and stays so until
//!   settle:   the same bytes written again at `end`, what is behind cut off ── fsync
//! ```
//!
//! *Why the same bytes are written again, and not only synced again:* a failed fsync leaves pages behind
//! that count as clean. They can be read and are not on the disk, and the next fsync finds nothing to
//! do and succeeds. Writing makes them dirty, so that its fsync vouches for them. All pages before
//! `end` are vouched for by an fsync of their own; of the last page the disk has at least the older
//! content. That content is the same up to `end`, so no torn write can harm it.
//!
//! For the same reason the last line of a file that is opened counts as in doubt: the process before
//! may have died after a failed fsync. Nothing is ever added behind a line in doubt, so there is one at
//! most.
//!
//! A line is added without room for a second file. The file is written anew, without lines that no
//! longer matter, only where there is room for that.

use crate::ArbiterError;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Room that is to be left on the disk by a file written anew, in bytes.
const LEFT: u64 = 1 << 20;

/// Room a check asks for, in bytes: a block of most file systems, for some 30 flags.
const CHECK: u64 = 4096;

/// A file of lines.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    /// `None` while it can only be read.
    pub(super) file: Option<File>,
    /// Bytes that are whole lines and durable.
    end: u64,
    /// What may be behind them, or in part.
    doubt: Vec<u8>,
    /// There may be something behind `end`.
    unclean: bool,
    /// The file has taken another's place, and the directory may not say so durably.
    replaced: bool,
}

impl LogFile {
    /// The file at `path`, of which `end` bytes are durable; `doubt` follows them, then anything. Does
    /// not settle that.
    pub(super) fn open(path: &Path, end: u64, doubt: Vec<u8>) -> Self {
        Self {
            path: path.into(),
            file: None,
            end,
            doubt,
            unclean: true,
            // Nobody knows whether the process before got to that.
            replaced: true,
        }
    }

    /// Makes the file at `path` one with these `lines`, durably.
    pub(super) fn create(path: &Path, lines: &str) -> Result<Self, ArbiterError> {
        let mut log = Self::open(path, 0, Vec::new());
        log.replace(lines)?;
        log.settle()?;
        // The directory may be new as well.
        path.parent().map_or(Ok(()), sync_parent)?;
        Ok(log)
    }

    /// Adds `line` durably. Everything before must be settled.
    ///
    /// # Errors
    /// What the disk said. The line is in doubt then.
    pub(super) fn append(&mut self, line: &str) -> Result<(), ArbiterError> {
        assert!(!self.unclean && !self.replaced, "settled first");
        self.doubt = line.as_bytes().to_vec();
        self.unclean = true;
        self.write(false)
    }

    /// Makes durable what is in doubt, and cuts off what is behind it.
    ///
    /// # Errors
    /// What the disk said; it is still in doubt.
    pub(super) fn settle(&mut self) -> Result<(), ArbiterError> {
        if self.replaced {
            sync_parent(&self.path)?;
            self.replaced = false;
        }
        if self.unclean {
            self.write(true)?;
        }
        Ok(())
    }

    /// Writes what is in doubt behind the rest, and syncs it; `cut`: so that nothing follows it.
    fn write(&mut self, cut: bool) -> Result<(), ArbiterError> {
        let bytes = self.doubt.len() as u64;
        let failed = |e| ArbiterError::disk_for("write", &self.path, bytes, e);
        if self.file.is_none() {
            let file = File::options().read(true).write(true).open(&self.path);
            self.file = Some(file.map_err(failed)?);
        }
        let file = self.file.as_ref().expect("it was opened");
        file.write_all_at(&self.doubt, self.end).map_err(failed)?;
        let end = self.end + bytes;
        if cut {
            file.set_len(end).map_err(failed)?;
            file.sync_all().map_err(failed)?;
        } else {
            file.sync_data().map_err(failed)?;
        }
        // What is in no directory is as good as not written.
        if file.metadata().map_err(failed)?.nlink() == 0 {
            return Err(ArbiterError::Unreachable {
                arbiter: self.path.display().to_string(),
                reason: "the file was removed".into(),
            });
        }
        self.end = end;
        self.doubt.clear();
        self.unclean = false;
        Ok(())
    }

    /// Whether a line could be added.
    ///
    /// # Errors
    /// What the disk said.
    pub(super) fn check(&mut self) -> Result<(), ArbiterError> {
        self.settle()?;
        let file = self.file.as_ref().expect("what is settled was written to");
        let Ok(end) = i64::try_from(self.end) else {
            return Ok(());
        };
        // Room behind the end, which is kept for the lines to come.
        let room = fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, end, CHECK as i64);
        match room {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.probe(),
            Err(errno) => Err(ArbiterError::disk_for(
                "write",
                &self.path,
                CHECK,
                errno.into(),
            )),
        }
    }

    /// [`Self::check`] where no room can be kept.
    fn probe(&self) -> Result<(), ArbiterError> {
        let probe = self.path.with_extension("probe");
        let mut file = File::create(&probe).map_err(|e| ArbiterError::disk("create", &probe, e))?;
        let written = file.write_all(&[0; CHECK as usize]);
        let written = written.and_then(|()| file.sync_all());
        let removed = std::fs::remove_file(&probe);
        written
            .and(removed)
            .map_err(|e| ArbiterError::disk_for("write", &probe, CHECK, e))
    }

    /// Makes `lines` the file's content, if there is room for both; says whether.
    ///
    /// # Errors
    /// What the disk said. The file is what it was, or nothing can be added to it before that is settled.
    pub(super) fn compact(&mut self, lines: &str) -> Result<bool, ArbiterError> {
        self.settle()?;
        let stat = nix::sys::statvfs::statvfs(&self.path)
            .map_err(|errno| ArbiterError::disk("read", &self.path, errno.into()))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if free < lines.len() as u64 + LEFT {
            return Ok(false);
        }
        self.replace(lines)?;
        self.settle()?;
        Ok(true)
    }

    fn replace(&mut self, lines: &str) -> Result<(), ArbiterError> {
        let new = self.path.with_extension("log.new");
        let written = File::create(&new)
            .and_then(|mut file| file.write_all(lines.as_bytes()).map(|()| file))
            .and_then(|file| file.sync_all().map(|()| file));
        let file = match written {
            Ok(file) => file,
            Err(e) => {
                // Room that is needed, if it is there at all.
                let _ = std::fs::remove_file(&new);
                return Err(ArbiterError::disk_for("write", &new, lines.len() as u64, e));
            }
        };
        std::fs::rename(&new, &self.path).map_err(|e| ArbiterError::disk("rename", &new, e))?;
        self.file = Some(file);
        self.end = lines.len() as u64;
        self.doubt.clear();
        self.unclean = false;
        self.replaced = true;
        Ok(())
    }
}

/// Makes durable what the directory of `path` has in it.
fn sync_parent(path: &Path) -> Result<(), ArbiterError> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    let sync = || -> io::Result<()> { File::open(dir)?.sync_all() };
    sync().map_err(|e| ArbiterError::disk("sync", dir, e))
}
