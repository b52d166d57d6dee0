//! The machine: a replica on each of three hosts, started again whenever it has ended.
//!
//! ```text
//!  host-a   primary ✕ backup (waits) ── joins, follows ─────────────── leads ...
//!  host-b   backup ── leads, alone ── leads ──────── ✕ backup (waits) ── joins ...
//!  host-c   backup (waits) ─ joins, follows ─ leads, alone ...
//! ```
//!
//! Who leads and who follows is what they note themselves. The viewservice gives a machine that runs alone the replica
//! that waits.

use crate::hosts::{Host, Hosts, REPLICAS};
use kit::daemon::Daemon;
use kit::guest::Served;
use kit::{KitError, KitResult, Line};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest time for a process to get ready, or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at what replicas note, which is in files.
const LOOK: Duration = Duration::from_millis(5);

/// A replica, from its start to its end.
struct Life {
    host: Host,
    daemon: Daemon,
    events: PathBuf,
    killed: bool,
}

/// What a replica is, as far as it has noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// None, or no longer.
    None,
    /// The leader of a pair, in this view.
    Leads(u64),
    /// Its backup; the first one's view is 1.
    Follows(u64),
}

/// Two replicas that are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairedOn {
    /// Where its primary is.
    pub primary: Host,
    /// Where its backup is.
    pub backup: Host,
    /// Its view.
    pub view: u64,
}

/// What the replicas are told, beside who and where they are.
pub struct Words {
    /// The machine's name.
    pub vm: String,
    /// Of all of them: the services, and how they run the guest.
    pub all: Vec<OsString>,
}

/// A machine on three hosts.
pub struct Machine<'a> {
    hosts: &'a Hosts,
    folder: &'a Path,
    words: Words,
    /// All that ever were.
    lives: Vec<Life>,
    /// The last one of each host, by its number.
    at: [usize; 3],
}

impl<'a> Machine<'a> {
    /// Starts a pair that runs `guest`, and one more replica that waits; what they note is in `folder`.
    ///
    /// # Errors
    /// If one does not get ready.
    pub fn start(
        hosts: &'a Hosts,
        folder: &'a Path,
        words: Words,
        guest: &Served,
    ) -> KitResult<Self> {
        let mut machine = Self {
            hosts,
            folder,
            words,
            lives: Vec::new(),
            at: [0, 1, 2],
        };
        let [a, b, c] = REPLICAS;
        let backup = machine.backup(b)?;
        machine.lives.push(backup);
        let peer = machine.lives[0].wait("listening")?.detail;
        let mut words: Vec<OsString> = vec!["primary".into()];
        words.extend(guest.words.iter().cloned());
        words.extend(["--backup", &peer, "--backup-name", b.name()].map(OsString::from));
        let primary = machine.life(a, words)?;
        machine.lives.insert(0, primary);
        let primary = &machine.lives[0].daemon;
        primary.wait_line(guest.patience, |line| line.contains(guest.ready))?;
        let spare = machine.backup(c)?;
        machine.lives.push(spare);
        Ok(machine)
    }

    fn life(&self, host: Host, mut words: Vec<OsString>) -> KitResult<Life> {
        let number = self.lives.iter().filter(|life| life.host == host).count();
        let path = |end: &str| self.folder.join(format!("{}.{number}.{end}", host.name()));
        let events = path("events");
        words.extend(self.words.all.iter().cloned());
        let own = [
            "--vm",
            &self.words.vm,
            "--name",
            host.name(),
            "--net",
            "tap:tap0",
        ];
        words.extend(own.map(OsString::from));
        words.extend(["--events".into(), events.clone().into()]);
        let name = format!("replica on {}", host.name());
        Ok(Life {
            daemon: self.hosts.start(host, &name, words, &path("err"))?,
            host,
            events,
            killed: false,
        })
    }

    fn backup(&self, host: Host) -> KitResult<Life> {
        let any = host.address(0).to_string();
        self.life(host, vec!["backup".into(), "--listen".into(), any.into()])
    }

    fn on(&self, host: Host) -> &Life {
        &self.lives[self.at[host as usize]]
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.words.vm
    }

    /// Starts a new backup on each host whose replica has ended.
    ///
    /// # Errors
    /// If one cannot be started, or has ended in a way that none may.
    pub fn tend(&mut self) -> KitResult {
        for host in REPLICAS {
            let number = self.at[host as usize];
            let life = &mut self.lives[number];
            if !life.daemon.has_ended() {
                continue;
            }
            let status = life.daemon.wait(PATIENCE)?;
            let may_be = match (status.code(), status.signal()) {
                // One that was not needed any more, or has lost the flag.
                (Some(0 | 1), _) => true,
                (_, signal) => life.killed && signal == Some(Signal::SIGKILL as i32),
            };
            if !may_be {
                return Err(life.daemon.failed(format!("ended with {status}")));
            }
            let next = self.backup(host)?;
            self.at[host as usize] = self.lives.len();
            self.lives.push(next);
        }
        Ok(())
    }

    /// The pair there is, if all three know their parts.
    #[must_use]
    pub fn pair(&self) -> Option<PairedOn> {
        let parts = REPLICAS.map(|host| (host, self.on(host).part()));
        let leads = parts.iter().filter_map(|(host, part)| match part {
            Part::Leads(view) => Some((*view, *host)),
            _ => None,
        });
        let (view, primary) = leads.max_by_key(|(view, _)| *view)?;
        let follows = |part: &&(Host, Part)| part.1 == Part::Follows(view);
        let (backup, _) = *parts.iter().find(follows)?;
        Some(PairedOn {
            primary,
            backup,
            view,
        })
    }

    /// Waits until it is protected, and a replica waits on the third host; starts those again that have ended. Since
    /// one that was lost may still look like one that follows, to be called when all clients were served again.
    ///
    /// # Errors
    /// If that takes longer than `limit`, or as [`Self::tend`].
    pub fn wait_protected(&mut self, limit: Duration) -> KitResult<PairedOn> {
        let deadline = Instant::now() + limit;
        loop {
            self.tend()?;
            if let Some(pair) = self.pair()
                && self.spare(pair).is_some_and(|spare| self.waits(spare))
            {
                return Ok(pair);
            }
            if Instant::now() > deadline {
                return Err(KitError::During {
                    what: format!(
                        "the machine is not protected again within {} s",
                        limit.as_secs()
                    ),
                    why: format!("{:?}", REPLICAS.map(|host| self.on(host).part())).into(),
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The host whose replica has no part in `pair`.
    #[must_use]
    pub fn spare(&self, pair: PairedOn) -> Option<Host> {
        let in_it = [pair.primary, pair.backup];
        REPLICAS.into_iter().find(|host| !in_it.contains(host))
    }

    fn waits(&self, host: Host) -> bool {
        let life = self.on(host);
        let lines = Line::all_in(&life.events);
        !life.daemon.has_ended() && lines.iter().any(|line| line.event == "listening")
    }

    /// Waits for `limit` at most until the replica of `host` notes that it begins to give the machine to a new backup,
    /// at `from_ns` of the host's clock or later. Whether it has.
    #[must_use]
    pub fn wait_joining(&self, host: Host, from_ns: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let begins = |line: &Line| line.event == "joining" && line.at_ns >= from_ns;
        while !Line::all_in(&self.on(host).events).iter().any(begins) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Kills the replica of `host` (SIGKILL).
    ///
    /// # Errors
    /// If it is not gone then.
    pub fn kill(&mut self, host: Host) -> KitResult {
        let life = &mut self.lives[self.at[host as usize]];
        life.killed = true;
        life.daemon.kill();
        life.daemon.wait(PATIENCE).map(drop)
    }

    /// Stops the replica of `host` (SIGSTOP) for so long.
    ///
    /// # Errors
    /// If it does not stand still.
    pub fn stop_for(&self, host: Host, length: Duration) -> KitResult {
        let daemon = &self.on(host).daemon;
        daemon.stand_still()?;
        std::thread::sleep(length);
        daemon.signal(Signal::SIGCONT);
        Ok(())
    }

    /// Ends the machine in an orderly way, and those that only wait in any. All that all its replicas noted, as
    /// [`Self::noted`] tells.
    ///
    /// # Errors
    /// If a replica of the pair ends badly; with what they noted.
    pub fn end(mut self, pair: PairedOn) -> Result<Vec<Line>, (Vec<Line>, KitError)> {
        let ended = self.end_all(pair);
        let noted = self.noted();
        match ended {
            Ok(()) => Ok(noted),
            Err(why) => Err((noted, why)),
        }
    }

    fn end_all(&mut self, pair: PairedOn) -> KitResult {
        self.on(pair.primary).daemon.ask_to_end();
        for host in [pair.primary, pair.backup] {
            let daemon = &mut self.lives[self.at[host as usize]].daemon;
            if !daemon.wait(PATIENCE)?.success() {
                return Err(daemon.failed("ended badly"));
            }
        }
        self.spare(pair).map_or(Ok(()), |spare| self.kill(spare))
    }

    /// All that all its replicas noted so far, in order of time, each under the name of its host and its number there.
    #[must_use]
    pub fn noted(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for life in &self.lives {
            let name = life
                .events
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy();
            lines.extend(Line::all_in(&life.events).into_iter().map(|line| Line {
                who: name.to_string(),
                ..line
            }));
        }
        lines.sort_by_key(|line| line.at_ns);
        lines
    }
}

impl Life {
    /// What it is now.
    fn part(&self) -> Part {
        match self.daemon.has_ended() {
            true => Part::None,
            false => part(&Line::all_in(&self.events)),
        }
    }

    /// Waits until it has noted `event`.
    fn wait(&self, event: &str) -> KitResult<Line> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = Line::all_in(&self.events);
            if let Some(line) = lines.into_iter().find(|line| line.event == event) {
                return Ok(line);
            }
            if self.daemon.has_ended() || Instant::now() > deadline {
                return Err(self.daemon.failed(format!("never got to '{event}'")));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What a replica is that noted `lines`.
fn part(lines: &[Line]) -> Part {
    let mut part = Part::None;
    for line in lines {
        let view = line.view().unwrap_or(1);
        part = match line.event.as_str() {
            "primary" => Part::Leads(1),
            "protected" => Part::Leads(view),
            "welcomed" => Part::Follows(view),
            // One that is given a running machine is not yet one: nobody leads a pair in view 1 then.
            "backup" => Part::Follows(1),
            "link_end" | "halted" | "ended" => Part::None,
            _ => part,
        };
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: &str, detail: &str) -> Line {
        Line {
            at_ns: 0,
            who: "replica".into(),
            event: event.into(),
            detail: detail.into(),
        }
    }

    #[test]
    fn a_replicas_part_is_what_it_noted_last() {
        let mut lines = vec![line("listening", "10.93.0.2:7")];
        assert_eq!(part(&lines), Part::None);
        lines.push(line("backup", "kv of host-a"));
        lines.push(line("welcomed", "view 3"));
        assert_eq!(part(&lines), Part::Follows(3));
        lines.push(line("link_end", "link lost: nothing heard for 300 ms"));
        assert_eq!(part(&lines), Part::None);
        lines.extend([line("flag_won", "view 3"), line("solo", "view 4")]);
        assert_eq!(part(&lines), Part::None);
        lines.push(line("protected", "view 5; the guest stood still 9 us"));
        assert_eq!(part(&lines), Part::Leads(5));
    }
}
