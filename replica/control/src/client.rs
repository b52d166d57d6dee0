//! The asking end: finds the replica that leads a machine, asks it, and waits for what comes of it.

use crate::folder::{self, Folder};
use crate::protocol::{ANSWER_MAX, Lines, Request, Status, VERSION, say};
use crate::socket::call;
use names::VmId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use replica::role::{Role, ViewNumber};
use replica::{During, Outcome, ReplicaError, Told};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time for the replicas of a machine to say what they are.
const STATUS: Duration = Duration::from_secs(5);
/// Longest time for the others, once one has said that it leads.
const OTHERS: Duration = Duration::from_millis(500);

/// The replica on this host that leads a machine.
pub struct Leader {
    vm: VmId,
    path: PathBuf,
}

/// What a replica says it is.
struct Found {
    path: PathBuf,
    role: Option<Role>,
    view: ViewNumber,
}

impl Leader {
    /// Asks the replicas of a machine on this host which of them leads it.
    ///
    /// `control` is the control folder, if it is not where it is by default.
    ///
    /// # Errors
    /// If none does, or they cannot be asked.
    pub fn find(vm: &VmId, control: Option<&Path>) -> Outcome<Self> {
        let folders = match control {
            Some(path) => vec![path.to_owned()],
            None => folder::to_look_in(),
        };
        let (mut found, mut silent) = (Vec::new(), None);
        for path in &folders {
            // As long as no replica has made its default folder, there is none.
            if control.is_some() || path.exists() {
                match Folder::open(path).and_then(|folder| replicas(&folder, vm)) {
                    Ok((more, failed)) => {
                        found.extend(more);
                        silent = silent.or(failed);
                    }
                    // Of two by default one may be another user's.
                    Err(e) if control.is_none() => silent = silent.or(Some(e)),
                    Err(e) => return Err(e),
                }
            }
        }
        if found.is_empty() {
            return Err(silent.unwrap_or_else(|| unknown(vm, &folders)));
        }
        // One that was stopped may not know yet that another goes on.
        let leader = (0..found.len())
            .filter(|at| leads(found[*at].role))
            .max_by_key(|at| found[*at].view);
        if let Some(at) = leader {
            let path = found.swap_remove(at).path;
            return Ok(Self {
                vm: vm.clone(),
                path,
            });
        }
        // It may be the one that leads.
        if let Some(silent) = silent {
            return Err(silent);
        }
        let is_backup = |found: &Found| found.role == Some(Role::Backup);
        Err(ReplicaError::refused(if found.iter().any(is_backup) {
            format!(
                "the replica of '{vm}' on this host is its backup: ask on the host of its primary"
            )
        } else {
            format!(
                "no replica of '{vm}' on this host leads it: what is here waits for its primary, or is ending"
            )
        }))
    }

    /// The machine.
    #[must_use]
    pub fn vm(&self) -> &VmId {
        &self.vm
    }

    /// Asks it for something to be done, and waits for an answer that is the `last` one; `tell` hears those before
    /// it.
    ///
    /// # Errors
    /// If it ends before that, or cannot be asked.
    pub fn ask(
        &self,
        request: &Request,
        last: impl Fn(&Told) -> bool,
        mut tell: impl FnMut(&Told),
    ) -> Outcome<Told> {
        let name = format!("the replica of '{}'", self.vm);
        let mut stream = call(&self.path)
            .during(&name)?
            .ok_or_else(|| ReplicaError::refused(format!("{name} ended before it was asked")))?;
        stream.set_write_timeout(Some(STATUS)).during(&name)?;
        say(&mut stream, request).during(&name)?;
        let mut lines = Lines::of(&stream, ANSWER_MAX);
        loop {
            match lines.next_as::<Told>(None).during(&name)? {
                Some(answer) if last(&answer) => return Ok(answer),
                Some(answer) => tell(&answer),
                None => {
                    return Err(ReplicaError::refused(format!(
                        "{name} ended before it told what came of it"
                    )));
                }
            }
        }
    }
}

/// Whether a replica in this role leads its machine.
fn leads(role: Option<Role>) -> bool {
    matches!(role, Some(Role::Primary | Role::Solo))
}

/// That there is no such machine in any of `folders`.
fn unknown(vm: &VmId, folders: &[PathBuf]) -> ReplicaError {
    let folders: Vec<_> = folders
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    if folders.is_empty() {
        return ReplicaError::refused(
            "there is no control folder by default, since this is not root and XDG_RUNTIME_DIR is not set: \
             --control names the one the replica was given",
        );
    }
    ReplicaError::refused(format!(
        "there is no replica of '{vm}' on this host, going by the control folder {}",
        folders.join(" and ")
    ))
}

/// What the replicas of `vm` with a socket in `folder` are; and, if one of them gave no answer, that.
fn replicas(folder: &Folder, vm: &VmId) -> Outcome<(Vec<Found>, Option<ReplicaError>)> {
    let mut silent = None;
    let mut called = Vec::new();
    // All are called first: one that is stopped costs its time only once.
    for (_, path) in folder.sockets()?.into_iter().filter(|(of, _)| of == vm) {
        match call_for_status(&path) {
            Ok(Some(stream)) => called.push((path, stream)),
            Ok(None) => {}
            Err(e) => silent = Some(no_answer(vm, &path, &e)),
        }
    }
    let mut until = Instant::now() + STATUS;
    let mut found = Vec::new();
    while let Some(at) = first_to_say(&called, until)? {
        let (path, stream) = called.swap_remove(at);
        match Lines::of(&stream, ANSWER_MAX).next_as(Some(until)) {
            Ok(Some(Status {
                version,
                role,
                view,
                ..
            })) if version == VERSION => {
                if leads(role) {
                    // Whoever is stopped or hangs is not waited for.
                    until = until.min(Instant::now() + OTHERS);
                }
                found.push(Found { path, role, view });
            }
            Ok(Some(Status { version, .. })) => {
                let why =
                    format!("it speaks version {version} of the protocol, and this is {VERSION}");
                silent = Some(no_answer(vm, &path, &why));
            }
            // It ended just now.
            Ok(None) => {}
            Err(e) => silent = Some(no_answer(vm, &path, &e)),
        }
    }
    if let Some((path, _)) = called.first() {
        silent = Some(no_answer(vm, path, &"it said nothing in time"));
    }
    Ok((found, silent))
}

/// Which of `called` is the first to say something; none if nobody does until then.
fn first_to_say(called: &[(PathBuf, UnixStream)], until: Instant) -> Outcome<Option<usize>> {
    let polling = "cannot wait for a replica";
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if called.is_empty() || left.is_zero() {
            return Ok(None);
        }
        let mut fds: Vec<_> = called
            .iter()
            .map(|(_, stream)| PollFd::new(stream.as_fd(), PollFlags::POLLIN))
            .collect();
        // Rounded up: it is not to look again and again in the last millisecond.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).during(polling)?;
        match poll(&mut fds, left) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e).during(polling),
            Ok(_) => {
                if let Some(at) = fds.iter().position(|fd| fd.any() != Some(false)) {
                    return Ok(Some(at));
                }
            }
        }
    }
}

fn call_for_status(path: &Path) -> std::io::Result<Option<UnixStream>> {
    let Some(mut stream) = call(path)? else {
        return Ok(None);
    };
    stream.set_write_timeout(Some(STATUS))?;
    say(&mut stream, &Request::Status)?;
    Ok(Some(stream))
}

fn no_answer(vm: &VmId, path: &Path, why: &dyn std::fmt::Display) -> ReplicaError {
    ReplicaError::refused(format!(
        "the replica of '{vm}' at {} cannot be asked: {why}",
        path.display()
    ))
}
