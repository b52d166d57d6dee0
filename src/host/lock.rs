//! One process of a machine under a supervisor, whatever becomes of that.
//!
//! Each replica that a supervisor starts locks a file, and holds it to its end. So whether there is a process of a
//! machine is never a matter of what somebody wrote down: the kernel says so, and it lets go of the lock of a process
//! that was killed. Number and start of the process are written in the file by itself, for whoever has to send it a
//! signal. A number that was given to another process meanwhile is found by the start.

use crate::failure::{During, Outcome};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Most bytes of such a file that are read.
const FILE_MAX: u64 = 4 << 10;

/// The process that holds a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its number.
    pub pid: i32,
    /// When it began, in ticks of the kernel since its boot.
    pub start: u64,
    /// Which boot that was.
    pub boot: String,
}

/// A file that this process holds. Its end, however it comes, lets it go.
pub struct Held {
    _file: File,
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("a small constant"),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Holds the file at `path`, made if need be; `None`: another process does.
///
/// # Errors
/// If it cannot be had.
pub fn hold(path: &Path) -> Outcome<Option<Held>> {
    let shown = path.display();
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .during(format_args!("cannot open {shown}"))?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
        Err(e) => return Err(e).during(format_args!("cannot lock {shown}")),
    }
    let this =
        Holder::of(std::process::id().try_into().during("this process")?).during("this process")?;
    let line = serde_json::to_string(&this).during("this process")? + "\n";
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(line.as_bytes()))
        .during(format_args!("cannot write {shown}"))?;
    Ok(Some(Held { _file: file }))
}

/// Whether a process holds the file at `path`. Asking takes nothing, so it is in nobody's way.
///
/// # Errors
/// If that cannot be found out.
pub fn is_held(path: &Path) -> Outcome<bool> {
    let asking = format!("cannot ask for the lock of {}", path.display());
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e).during(asking),
    };
    let mut lock = whole_file(libc::F_WRLCK);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).during(asking)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// Who holds the file at `path`, by its own word; `None` if nobody does, or has not said so yet.
#[must_use]
pub fn holder(path: &Path) -> Option<Holder> {
    if !is_held(path).ok()? {
        return None;
    }
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(FILE_MAX)
        .read_to_string(&mut text)
        .ok()?;
    let holder: Holder = serde_json::from_str(&text).ok()?;
    (Holder::of(holder.pid).ok()? == holder).then_some(holder)
}

/// Asks the process that holds the file at `path` to end (SIGTERM); whether there was one.
#[must_use]
pub fn ask_to_end(path: &Path) -> bool {
    let Some(holder) = holder(path) else {
        return false;
    };
    let Some(pid) = Pid::from_raw(holder.pid) else {
        return false;
    };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // The descriptor is of whoever has the number now: is that still the one?
    Holder::of(holder.pid).is_ok_and(|now| now == holder)
        && pidfd_send_signal(process, Signal::TERM).is_ok()
}

impl Holder {
    /// The process with this number.
    fn of(pid: i32) -> std::io::Result<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may have anything in it. Behind it come the state and 18 numbers, then the start.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let start = behind.split_whitespace().nth(19);
        let start = start.and_then(|start| start.parse().ok());
        Ok(Self {
            pid,
            start: start.ok_or_else(|| std::io::Error::other("its start is not told"))?,
            boot: boot.trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_one_holders_until_that_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!is_held(&path).unwrap());
        assert_eq!(holder(&path), None);
        let held = hold(&path).unwrap().expect("it is free");
        assert!(is_held(&path).unwrap());
        assert!(hold(&path).unwrap().is_none());
        let this = holder(&path).expect("this process holds it");
        assert_eq!(this.pid, i32::try_from(std::process::id()).unwrap());
        drop(held);
        assert!(!is_held(&path).unwrap());
        assert_eq!(holder(&path), None, "what is written there is old");
        assert!(!ask_to_end(&path));
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_not_taken_for_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let _held = hold(&path).unwrap().expect("it is free");
        let this = holder(&path).unwrap();
        for other in [
            Holder {
                start: this.start + 1,
                ..this.clone()
            },
            Holder {
                boot: "another".into(),
                ..this.clone()
            },
        ] {
            std::fs::write(&path, serde_json::to_string(&other).unwrap()).unwrap();
            assert_eq!(holder(&path), None, "{other:?}");
            assert!(!ask_to_end(&path));
        }
        std::fs::write(&path, "{\"pid\":").unwrap();
        assert_eq!(holder(&path), None);
    }
}
