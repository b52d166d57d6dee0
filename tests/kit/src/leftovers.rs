//! What must not outlive this process when it is stopped in the midst: children, and folders of theirs.
//!
//! A process that ends by a signal drops nothing. Children die with it (`PR_SET_PDEATHSIG`), and a private
//! network with the last of them, but folders would stay. So Ctrl-C is waited for by a thread that clears
//! away what is on this list. Against SIGKILL nothing helps: what such a process leaves, the next one
//! removes. It knows a folder as forsaken by its lock, which ends with the process that holds it. A child that
//! was just forked shares the lock until it runs its program, or finds its parent gone.

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::fs::{DirEntry, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use terminal::signals::{self, SignalsError};

#[derive(Default)]
struct Leftovers {
    /// Children that nobody has waited for: their process ids are theirs.
    children: Vec<Pid>,
    folders: Vec<PathBuf>,
}

static LEFTOVERS: Mutex<Leftovers> = Mutex::new(Leftovers {
    children: Vec::new(),
    folders: Vec::new(),
});

fn leftovers() -> MutexGuard<'static, Leftovers> {
    LEFTOVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().map(Pid::from_raw)
}

/// Starts a child.
///
/// # Errors
/// As [`Command::spawn`].
pub(crate) fn start(command: &mut Command) -> std::io::Result<Child> {
    // Under the lock, so that there is none that the list does not have.
    let mut leftovers = leftovers();
    let child = command.spawn()?;
    leftovers.children.extend(pid_of(&child));
    Ok(child)
}

/// A child is about to be waited for: its process id will be free.
pub(crate) fn ended(child: &Child) {
    let pid = pid_of(child);
    leftovers().children.retain(|other| Some(*other) != pid);
}

/// What the names of folders begin with.
const PREFIX: &str = "tandem-";
/// The file in a folder that is locked as long as it is in use.
const LOCK: &str = ".lock";
/// Its name until it is locked.
const LOCK_TO_BE: &str = ".lock-to-be";

/// A folder that lasts as long as this, and no longer than the process, unless that is killed.
pub struct Folder {
    folder: tempfile::TempDir,
    /// Tells others that the folder is in use. Children's programs do not inherit it.
    _lock: Flock<File>,
}

impl Folder {
    /// Makes a folder for temporary files, and removes those of processes that are gone.
    ///
    /// # Errors
    /// If the system makes none.
    pub fn new() -> std::io::Result<Self> {
        let all = std::env::temp_dir();
        remove_forsaken(&all);
        // Under the lock, as above.
        let mut leftovers = leftovers();
        let folder = Self::new_in(&all)?;
        leftovers.folders.push(folder.path().to_owned());
        Ok(folder)
    }

    fn new_in(all: &Path) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(all)?;
        let unlocked = folder.path().join(LOCK_TO_BE);
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&unlocked)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e)?;
        // Only now can anybody find it.
        std::fs::rename(unlocked, folder.path().join(LOCK))?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    /// Has the folder stay when this is gone, and after that, for whoever wants to know what happened.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        // Without its lock it is nobody's forsaken one.
        let _ = std::fs::remove_file(self.folder.path().join(LOCK));
        let path = self.folder.path();
        leftovers().folders.retain(|other| other != path);
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders in `all` whose process is gone, as far as that goes.
fn remove_forsaken(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let Some(_lock) = forsaken(&entry) else {
            continue;
        };
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            let folder = entry.path();
            tracing::debug!(%error, "{} cannot be removed", folder.display());
        }
    }
}

/// If `entry` is a folder of ours that nobody uses any more: its lock.
fn forsaken(entry: &DirEntry) -> Option<Flock<File>> {
    if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
        return None;
    }
    // Not through a link, and not what somebody else has put there.
    let folder = entry.metadata().ok()?;
    if !folder.is_dir() || folder.uid() != nix::unistd::geteuid().as_raw() {
        return None;
    }
    let path = entry.path().join(LOCK);
    let file = File::options()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .ok()?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    // Another process may have removed the folder meanwhile, and a third have made one of that name.
    let (locked, there) = (lock.metadata().ok()?, std::fs::metadata(&path).ok()?);
    let same = (locked.dev(), locked.ino()) == (there.dev(), there.ino());
    (same && locked.is_file()).then_some(lock)
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path = self.folder.path();
        leftovers().folders.retain(|other| other != path);
    }
}

/// From now on a signal that asks this process to end clears everything away, and ends it with the exit
/// code 130. To be called while it has one thread only; the thread that waits is started by what it
/// returns.
///
/// # Errors
/// If signals cannot be blocked.
pub fn guard() -> Result<impl FnOnce() -> Result<(), SignalsError>, SignalsError> {
    let set = signals::block()?;
    Ok(move || {
        signals::watch(set, || {
            clear_away();
            terminal::complain!("tandem: stopped; nothing is left running");
            std::process::exit(130);
        })
    })
}

fn clear_away() {
    // Held until the end: nothing is started or waited for any more.
    let leftovers = leftovers();
    for child in &leftovers.children {
        // One that has ended has no use for it.
        let _ = kill(*child, Signal::SIGKILL);
    }
    for child in &leftovers.children {
        // Until it is gone, with its files; the process id stays taken.
        let _ = waitid(Id::Pid(*child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    }
    for folder in &leftovers.folders {
        // Under another name, another thread of this process makes nothing more in it.
        let gone = folder.with_extension("gone");
        let folder = match std::fs::rename(folder, &gone) {
            Ok(()) => &gone,
            Err(_) => folder,
        };
        if let Err(e) = std::fs::remove_dir_all(folder) {
            terminal::complain!("tandem: {} is left behind: {e}", folder.display());
        }
    }
    std::mem::forget(leftovers);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_removed_once_nobody_uses_them_and_no_others() {
        let all = tempfile::tempdir().unwrap();
        let at = |name: &str| all.path().join(name);
        let used = Folder::new_in(all.path()).unwrap();
        // As a process leaves it that was killed: the lock is gone, and all else there.
        let forsaken = at("tandem-forsaken");
        std::fs::create_dir_all(forsaken.join("views")).unwrap();
        std::fs::write(forsaken.join(LOCK), "").unwrap();
        std::fs::write(forsaken.join("views/file"), "x").unwrap();
        // Being made just now, another program's, no folder, a link to one.
        for other in ["tandem-new", "other-1"] {
            std::fs::create_dir(at(other)).unwrap();
        }
        std::fs::write(at("tandem-new").join(LOCK_TO_BE), "").unwrap();
        std::fs::write(at("other-1").join(LOCK), "").unwrap();
        std::fs::write(at("tandem-file"), "").unwrap();
        std::os::unix::fs::symlink(at("other-1"), at("tandem-link")).unwrap();
        remove_forsaken(all.path());
        assert!(!forsaken.exists());
        assert!(used.path().join(LOCK).exists());
        assert!(at("tandem-new").join(LOCK_TO_BE).exists());
        assert!(at("other-1").join(LOCK).exists());
        assert!(at("tandem-file").exists() && at("tandem-link").exists());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
        let mut kept = Folder::new_in(all.path()).unwrap();
        kept.keep();
        let path = kept.path().to_owned();
        drop(kept);
        remove_forsaken(all.path());
        assert!(path.exists());
    }
}
