//! Child processes that end with their parent, whatever becomes of it.

use crate::error::{During, KitError, KitResult};
use crate::leftovers;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The program children are made of.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Makes children of `program`, which has the command line of `tandem`; once said, it stays.
pub fn use_program(program: impl Into<PathBuf>) {
    PROGRAM.get_or_init(|| program.into());
}

/// Options every child is started with, before its own arguments.
static OPTIONS: OnceLock<Vec<OsString>> = OnceLock::new();

/// Starts children of the program with these options before their own arguments; once said, it stays.
pub fn use_options<S: Into<OsString>>(options: impl IntoIterator<Item = S>) {
    OPTIONS.get_or_init(|| options.into_iter().map(Into::into).collect());
}

/// The program children are made of.
///
/// # Errors
/// [`KitError::NoProgram`] before [`use_program`].
pub fn program() -> KitResult<&'static Path> {
    PROGRAM
        .get()
        .map(PathBuf::as_path)
        .ok_or(KitError::NoProgram)
}

/// Longest time for a child to stand still that is told to: as for all else on the most loaded host.
const STILL: Duration = Duration::from_secs(60);
/// Lines of a child's output kept.
const LINES_MAX: usize = 10_000;

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    /// When each came, and how much processor time its writer had taken then.
    times: Vec<(Instant, Option<Duration>)>,
    ended: bool,
}

/// A line of a child.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When it came.
    pub at: Instant,
    /// How much processor time the child had taken when it came; none if the child was gone by then.
    pub cpu: Option<Duration>,
    /// Without its end.
    pub line: String,
}

/// The processor time a process has taken, all its threads together.
fn cpu_time(pid: Pid) -> Option<Duration> {
    let clock = nix::time::clock_getcpuclockid(pid).ok()?;
    Some(nix::time::clock_gettime(clock).ok()?.into())
}

/// What a child says, line by line.
#[derive(Default)]
struct Said {
    lines: Mutex<Lines>,
    changed: Condvar,
}

impl Said {
    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(
        self: &Arc<Self>,
        writer: Pid,
        from: impl std::io::Read + Send + 'static,
    ) -> KitResult {
        let said = self.clone();
        let listen = move || {
            for line in BufReader::new(from).lines() {
                let Ok(line) = line else { break };
                let (now, cpu) = (Instant::now(), cpu_time(writer));
                let mut lines = said.lock();
                if lines.lines.len() < LINES_MAX {
                    lines.lines.push(line);
                    lines.times.push((now, cpu));
                }
                said.changed.notify_all();
            }
            said.lock().ended = true;
            said.changed.notify_all();
        };
        std::thread::Builder::new()
            .name("listen".into())
            .spawn(listen)
            .during("cannot start a thread")?;
        Ok(())
    }
}

/// A child process of the program.
pub struct Daemon {
    name: String,
    child: Child,
    out: Arc<Said>,
    errors: PathBuf,
    status: Option<ExitStatus>,
}

impl Daemon {
    /// Starts the program with `args`; what it says on stderr goes to `errors`.
    ///
    /// The child is killed when the thread that calls this ends, so call it from one that stays.
    pub fn start<I, S>(name: &str, args: I, errors: PathBuf) -> KitResult<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let options = OPTIONS.get().into_iter().flatten().cloned();
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        Self::start_other(name, program()?, options.chain(args), errors)
    }

    /// The same behind `before`: a program and its words, which is to become the one whose words follow, as nsenter(1)
    /// does.
    ///
    /// # Errors
    /// As [`Self::start`].
    ///
    /// # Panics
    /// If there are no words in `before`.
    pub fn start_behind(
        name: &str,
        before: &[OsString],
        args: Vec<OsString>,
        errors: PathBuf,
    ) -> KitResult<Self> {
        let (first, before) = before.split_first().expect("a program");
        let options = OPTIONS.get().into_iter().flatten().cloned();
        let words = before.iter().cloned();
        let words = words.chain([program()?.into()]).chain(options).chain(args);
        Self::start_other(name, Path::new(first), words, errors)
    }

    /// Starts `program` in the same way.
    pub fn start_other<I, S>(
        name: &str,
        program: &Path,
        args: I,
        errors: PathBuf,
    ) -> KitResult<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&errors)
            .during(format_args!("cannot write {}", errors.display()))?;
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        // SAFETY: it has no preconditions.
        let parent = unsafe { libc::getpid() };
        // SAFETY: between fork and exec only system calls are made: the child dies with its parent, and
        // takes signals again that the parent blocks.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // The parent may have died before that, and then nobody is left whose death would count.
                if libc::getppid() != parent {
                    libc::_exit(1);
                }
                let mut none: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut none);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
                Ok(())
            });
        }
        let mut child =
            leftovers::start(&mut command).during(format_args!("cannot start the {name}"))?;
        let out = Arc::new(Said::default());
        if let Some(stdout) = child.stdout.take() {
            let pid = i32::try_from(child.id()).during("a process id")?;
            out.listen(Pid::from_raw(pid), stdout)?;
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            out,
            errors,
            status: None,
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has closed its stdout, as it does when it ends.
    pub fn has_ended(&self) -> bool {
        self.out.lock().ended
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processor time it has taken, all its threads together; none once it is gone.
    pub fn cpu(&self) -> Option<Duration> {
        cpu_time(Pid::from_raw(i32::try_from(self.child.id()).ok()?))
    }

    /// Waits for a line on its stdout that `wanted` says yes to.
    pub fn wait_line(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> KitResult<String> {
        self.wait_nth_line(limit, 0, wanted)
    }

    /// The same for the line after `others` such lines.
    ///
    /// # Errors
    /// If it does not say so many within `limit`, or ends.
    pub fn wait_nth_line(
        &self,
        limit: Duration,
        others: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> KitResult<String> {
        let deadline = Instant::now() + limit;
        let mut lines = self.out.lock();
        loop {
            let mut such = lines.lines.iter().filter(|line| wanted(line));
            if let Some(line) = such.nth(others) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.ended || left.is_zero() {
                drop(lines);
                let what = if left.is_zero() {
                    "said nothing in time"
                } else {
                    "ended early"
                };
                return Err(self.failed(what));
            }
            lines = self
                .out
                .changed
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// What it last said on stderr, to be put behind a failure.
    pub fn complaint(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        match text.lines().last() {
            Some(line) => format!(": {}", line.trim_start_matches("tandem: ")),
            None => String::new(),
        }
    }

    /// That it did `what` instead of what it was to do, with its complaint.
    pub fn failed(&self, what: impl Into<String>) -> KitError {
        KitError::Process {
            name: self.name.clone(),
            what: what.into(),
            complaint: self.complaint(),
        }
    }

    /// Kills it with SIGKILL, and waits until it is gone. The time just before the signal.
    pub fn kill(&mut self) -> Instant {
        let at = Instant::now();
        // A child that has ended cannot be killed, which is what is wanted.
        let _ = self.child.kill();
        at
    }

    /// Asks it to end (SIGTERM).
    pub fn ask_to_end(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // A child that has ended has no use for it.
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        }
    }

    /// Has it stand still (SIGSTOP) until `SIGCONT`, and waits until it does: the system calls under way have
    /// ended by then, and what it was about to send is sent.
    ///
    /// # Errors
    /// If it has ended, or does not stand still.
    pub fn stand_still(&self) -> KitResult {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).during("a process id")?);
        self.signal(Signal::SIGSTOP);
        // Told when the last of its threads stands still; its end stays to be waited for.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let deadline = Instant::now() + STILL;
        loop {
            match waitid(Id::Pid(pid), flags | WaitPidFlag::WNOHANG) {
                Ok(WaitStatus::Stopped(..)) => return Ok(()),
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return Err(self.failed(format!("does not stand still: {other:?}"))),
            }
        }
    }

    /// What it has said on stdout so far.
    pub fn said(&self) -> Vec<String> {
        self.out.lock().lines.clone()
    }

    /// The same, each line with the time it came.
    pub fn heard(&self) -> Vec<Heard> {
        let lines = self.out.lock();
        let with_time = |(line, (at, cpu)): (&String, &(Instant, Option<Duration>))| Heard {
            at: *at,
            cpu: *cpu,
            line: line.clone(),
        };
        lines
            .lines
            .iter()
            .zip(&lines.times)
            .map(with_time)
            .collect()
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> KitResult<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        // stdout closes when the process ends: nothing else of it holds the other end.
        let deadline = Instant::now() + limit;
        let mut lines = self.out.lock();
        while !lines.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(lines);
                return Err(self.failed("does not end"));
            }
            lines = self
                .out
                .changed
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(lines);
        leftovers::ended(&self.child);
        let status = self
            .child
            .wait()
            .during(format_args!("cannot wait for the {}", self.name))?;
        self.status = Some(status);
        Ok(status)
    }

    /// Whether it was ended by SIGKILL.
    pub fn was_killed(&self) -> bool {
        self.status.and_then(|status| status.signal()) == Some(libc::SIGKILL)
    }

    /// Largest resident memory it has had, in KiB; none once it is gone.
    pub fn peak_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
            leftovers::ended(&self.child);
            let _ = self.child.wait();
        }
    }
}
