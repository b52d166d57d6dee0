//! What must not outlive this process when it is stopped in the midst: children, and folders of theirs.
//!
//! A process that ends by a signal drops nothing. Children die with it (`PR_SET_PDEATHSIG`), and a private
//! network with the last of them, but folders would stay. So Ctrl-C is waited for by a thread that clears
//! away what is on this list.

use crate::failure::Outcome;
use crate::signals;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
pub(super) fn start(command: &mut Command) -> std::io::Result<Child> {
    // Under the lock, so that there is none that the list does not have.
    let mut leftovers = leftovers();
    let child = command.spawn()?;
    leftovers.children.extend(pid_of(&child));
    Ok(child)
}

/// A child is about to be waited for: its process id will be free.
pub(super) fn ended(child: &Child) {
    let pid = pid_of(child);
    leftovers().children.retain(|other| Some(*other) != pid);
}

/// A folder that lasts as long as this, and no longer than the process, unless that is killed.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Makes a folder for temporary files.
    ///
    /// # Errors
    /// If the system makes none.
    pub fn new() -> std::io::Result<Self> {
        // Under the lock, as above.
        let mut leftovers = leftovers();
        let folder = tempfile::Builder::new().prefix("tandem-").tempdir()?;
        leftovers.folders.push(folder.path().to_owned());
        Ok(Self(folder))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path = self.0.path();
        leftovers().folders.retain(|other| other != path);
    }
}

/// From now on a signal that asks this process to end clears everything away, and ends it with the exit
/// code 130. To be called while it has one thread only; the thread that waits is started by what it
/// returns.
///
/// # Errors
/// If signals cannot be blocked.
pub fn guard() -> Outcome<impl FnOnce() -> Outcome> {
    let set = signals::block()?;
    Ok(move || {
        signals::watch(set, || {
            clear_away();
            crate::complain!("tandem: stopped; nothing is left running");
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
            crate::complain!("tandem: {} is left behind: {e}", folder.display());
        }
    }
    std::mem::forget(leftovers);
}
