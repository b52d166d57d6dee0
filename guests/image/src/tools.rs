//! The system's own tools, run as children: found, waited for, ended when the user asks to end.

use crate::error::{self, During, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Folders looked into beside `PATH`: users' seldom has them.
const MORE_PATHS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The tools used, and the Debian package each is in.
const TOOLS: [(&str, &str); 10] = [
    ("mmdebstrap", "mmdebstrap"),
    ("newuidmap", "uidmap"),
    ("apt-get", "apt"),
    ("apt-cache", "apt"),
    ("dpkg-deb", "dpkg"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("qemu-img", "qemu-utils"),
    ("sfdisk", "fdisk"),
    ("xorriso", "xorriso"),
];

/// Whether the user has asked to end, and the children to end then.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Mutex<StopState>>);

#[derive(Debug, Default)]
struct StopState {
    asked: bool,
    waits: bool,
    /// Each with the signal that ends it.
    children: Vec<(Pid, Signal)>,
}

impl Stop {
    /// Asks to end: ends the children that run, and lets no other start. True if the build waits for another
    /// one to end, which nothing but the end of this process cuts short; there is nothing it would leave
    /// behind.
    #[must_use]
    pub fn ask(&self) -> bool {
        let mut state = self.state();
        state.asked = true;
        for (child, signal) in &state.children {
            // The child is not reaped while it stands here, so the number is still its own.
            let _ = kill(*child, *signal);
        }
        state.waits
    }

    /// Runs `wait`, which has nothing to leave behind and heeds nobody: [`Stop::ask`] says so meanwhile.
    pub(crate) fn while_waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.state().waits = true;
        let waited = wait();
        self.state().waits = false;
        waited
    }

    /// # Errors
    /// [`Error::Interrupted`] if it was asked to end.
    pub(crate) fn check(&self) -> Result {
        if self.state().asked {
            return Err(error::Error::Interrupted);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, StopState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, command: &mut Command, signal: Signal) -> Result<Child> {
        let mut state = self.state();
        if state.asked {
            return Err(error::Error::Interrupted);
        }
        let child = command.spawn().during(format_args!(
            "cannot start {}",
            command.get_program().display()
        ))?;
        state
            .children
            .push((Pid::from_raw(child.id() as i32), signal));
        Ok(child)
    }

    /// Waits for the child, and forgets it before it is reaped.
    fn wait(&self, child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
        let pid = Pid::from_raw(child.id() as i32);
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(nix::Error::EINTR) {}
        self.state().children.retain(|(other, _)| *other != pid);
        child.wait()
    }
}

/// What a tool that failed had to say.
#[derive(Debug, Error)]
#[error("{tool} failed: {}", self.line())]
pub struct ToolFailure {
    /// The tool.
    pub tool: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl ToolFailure {
    /// The line that says what is wrong: the first error, or else the last line.
    pub fn line(&self) -> &str {
        let lines = || self.stderr.lines().filter(|line| !line.trim().is_empty());
        let error = lines().find_map(|line| line.strip_prefix("E: "));
        error
            .or_else(|| lines().next_back())
            .unwrap_or("no word")
            .trim()
    }
}

/// A tool to run; a missing one is named with the package it is in.
pub fn tool(name: &str) -> Result<Command> {
    let found = find(name).ok_or_else(|| {
        let package = TOOLS.iter().find(|(tool, _)| *tool == name);
        let package = package.map_or(name, |(_, package)| package);
        error::Error::ToolMissing {
            tool: name.to_owned(),
            package: package.to_owned(),
        }
    })?;
    let mut command = Command::new(found);
    // Messages are compared, and times must not end up in images.
    command.env("LC_ALL", "C").env("TZ", "UTC");
    command.stdin(Stdio::null());
    Ok(command)
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE_PATHS.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file()
}

/// Runs a tool and gives what it writes to `consume`, as it comes. `Err` within `Ok` is the tool's own
/// failure, for the caller to put into words.
///
/// # Errors
/// If it cannot be run, if it was asked to end, or what `consume` fails with.
pub fn stream<T>(
    stop: &Stop,
    command: &mut Command,
    consume: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<std::result::Result<T, ToolFailure>> {
    stream_ended_by(Signal::SIGKILL, stop, command, consume)
}

/// As [`stream`], of a tool that has to clean up when the user asks to end: `signal` has it do so.
///
/// # Errors
/// As there.
pub fn stream_ended_by<T>(
    signal: Signal,
    stop: &Stop,
    command: &mut Command,
    consume: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<std::result::Result<T, ToolFailure>> {
    let tool = Path::new(command.get_program())
        .file_name()
        .map_or_else(String::new, |name: &OsStr| name.display().to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = stop.start(command, signal)?;
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let words = std::thread::spawn(move || {
        let mut words = Vec::new();
        let read = stderr.map(|mut stderr| stderr.read_to_end(&mut words));
        drop(read);
        String::from_utf8_lossy(&words).into_owned()
    });
    let mut stdout = stdout.expect("standard output is a pipe");
    let consumed = consume(&mut stdout);
    // A tool whose output is no longer read ends by itself.
    drop(stdout);
    let status = stop
        .wait(&mut child)
        .during(format_args!("wait for {tool}"));
    let stderr = words.join().unwrap_or_default();
    stop.check()?;
    if !status?.success() {
        return Ok(Err(ToolFailure { tool, stderr }));
    }
    consumed.map(Ok)
}

/// Runs a tool and gives all it writes.
///
/// # Errors
/// As [`stream`].
pub fn output(
    stop: &Stop,
    command: &mut Command,
) -> Result<std::result::Result<String, ToolFailure>> {
    stream(stop, command, |pipe| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes)
            .during("cannot read what a tool writes")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn shell(script: &str) -> Command {
        let mut command = tool("sh").unwrap();
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_tool_gives_its_output_or_its_own_words() {
        let stop = Stop::default();
        let said = output(&stop, &mut shell("echo hello")).unwrap().unwrap();
        assert_eq!(said, "hello\n");
        let failed = output(
            &stop,
            &mut shell("echo 'W: a' >&2; echo 'E: b' >&2; exit 3"),
        );
        let failed = failed.unwrap().unwrap_err();
        assert_eq!((failed.tool.as_str(), failed.line()), ("sh", "b"));
    }

    #[test]
    fn a_missing_tool_is_named() {
        let missing = tool("no-such-tool").unwrap_err().to_string();
        assert!(missing.contains("no-such-tool is missing"), "{missing}");
    }

    #[test]
    fn a_child_ends_when_the_user_asks_to() {
        let stop = Stop::default();
        let asker = stop.clone();
        let asks = std::thread::spawn(move || {
            while asker.state().children.is_empty() {
                std::thread::yield_now();
            }
            assert!(!asker.ask(), "no other build is waited for");
        });
        let begun = Instant::now();
        let ended = output(&stop, &mut shell("exec sleep 60")).unwrap_err();
        assert_eq!(ended.to_string(), "interrupted");
        assert!(begun.elapsed() < Duration::from_secs(30));
        asks.join().unwrap();
        assert!(
            output(&stop, &mut shell("true")).is_err(),
            "none starts after"
        );
    }
}
