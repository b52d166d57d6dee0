//! What a kill did: to the clients, and to the replica that is left.

use crate::error::{During, KitResult};
use crate::events::Line;
use crate::timeline::{Colour, Lane, Timeline, after};
use check::history::{Epoch, History, NEVER};
use check::stalls;
use std::path::Path;
use vmm::hostclock;

/// A kill, and what of the time after it counts as its doing. Times are the host's monotonic clock, in
/// nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Whether the backup was killed, and not the primary.
    pub of_backup: bool,
    /// When.
    pub at_ns: u64,
    /// Until when what happens is its doing.
    pub until_ns: u64,
}

/// What came of one kill.
pub struct Failover {
    /// Longest wait of each client around the kill, in microseconds.
    pub stalls_us: Vec<u64>,
    /// From the kill to the first reply any client got.
    pub first_reply_us: u64,
    /// Frames the dead primary had not logged.
    pub rescued_frames: u64,
    kill: Kill,
    clients: u16,
    events: Vec<Line>,
}

/// Where the host's monotonic clock stood at `epoch`, in nanoseconds: what replicas note counts by the one,
/// what clients note by the other.
#[must_use]
pub fn host_ns_at(epoch: Epoch) -> u64 {
    // A thread that is put aside between the two readings makes the difference too large, never too small.
    let difference = || {
        let since = epoch.now_ns();
        hostclock::monotonic_ns() - since
    };
    (0..8).map(|_| difference()).min().unwrap_or(0)
}

impl Failover {
    /// What `kill` did, by the clients' `history`, whose epoch was at `epoch_ns` of the host's clock, and by what
    /// the replicas noted: the one that was killed as `primary` or `backup`, the other as the other.
    #[must_use]
    pub fn of(history: &History, epoch_ns: u64, kill: Kill, mut events: Vec<Line>) -> Self {
        events.retain(|line| (kill.at_ns..=kill.until_ns).contains(&line.at_ns));
        let killed_at = kill.at_ns.saturating_sub(epoch_ns);
        let part = history.between(killed_at, kill.until_ns.saturating_sub(epoch_ns));
        let stalls = stalls(&part, killed_at, kill.until_ns - kill.at_ns);
        Self {
            stalls_us: stalls
                .iter()
                .map(|stall| stall.longest_op_ns / 1000)
                .collect(),
            first_reply_us: first_reply_us(&part, killed_at, open_ns(&events, kill.at_ns)),
            rescued_frames: rescued(&events),
            clients: history.clients,
            kill,
            events,
        }
    }

    /// Microseconds from the kill to the survivor's `event`.
    #[must_use]
    pub fn after_kill_us(&self, event: &str) -> Option<u64> {
        let line = self.events.iter().find(|line| line.event == event)?;
        Some((line.at_ns - self.kill.at_ns) / 1000)
    }

    /// The longest wait of any client, in microseconds.
    #[must_use]
    pub fn longest_us(&self) -> u64 {
        self.stalls_us.iter().copied().max().unwrap_or(0)
    }

    /// The failover as people can follow it.
    #[must_use]
    pub fn timeline(&self) -> String {
        self.events().render(Colour::of_stdout())
    }

    /// The same as a page for a browser.
    #[must_use]
    pub fn page(&self) -> String {
        self.events().page("A failover", "the kill")
    }

    /// Writes both to files in `folder` that are called `timeline-NUMBER`; `more` stands behind the text.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn keep(&self, folder: &Path, number: usize, more: &str) -> KitResult {
        let path = folder.join(format!("timeline-{number}"));
        for (extension, text) in [("txt", self.timeline() + more), ("html", self.page())] {
            let path = path.with_extension(extension);
            std::fs::write(&path, text).during(format_args!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn events(&self) -> Timeline {
        let mut timeline = Timeline::default();
        let victim = if self.kill.of_backup {
            Lane::Backup
        } else {
            Lane::Primary
        };
        timeline.death(0, victim, "killed with SIGKILL, under load");
        for line in &self.events {
            let at_us = after((line.at_ns - self.kill.at_ns) / 1000);
            timeline.event(at_us, Lane::of(line), line.words());
        }
        let first = after(self.first_reply_us);
        timeline.event(first, Lane::Client, "first byte to a client");
        let longest = self.longest_us();
        let text = format!(
            "all {} clients go on; longest wait {:.1} ms",
            self.clients,
            longest as f64 / 1000.0
        );
        timeline.event(after(longest), Lane::Client, text);
        timeline
    }
}

/// Nanoseconds from the kill until the survivor let anything out: not before a backup has announced itself, or a
/// primary has won the flag.
fn open_ns(events: &[Line], killed_at_ns: u64) -> u64 {
    let at = |event: &str| events.iter().find(|line| line.event == event);
    let opened = at("announced").or_else(|| at("flag_won"));
    opened.map_or(0, |event| event.at_ns - killed_at_ns)
}

/// From the kill to the first reply that the survivor let out: replies that the dead primary had sent
/// still come in before that.
fn first_reply_us(history: &History, killed_at: u64, open_ns: u64) -> u64 {
    let replies = history
        .ops
        .iter()
        .map(|op| op.return_ns)
        .filter(|at| *at != NEVER);
    let first = replies.filter(|at| *at > killed_at + open_ns).min();
    first.map_or(0, |at| (at - killed_at) / 1000)
}

fn rescued(events: &[Line]) -> u64 {
    let live = events.iter().find(|line| line.event == "live");
    live.and_then(|line| line.detail.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use check::history::{Call, Observed, Op};

    /// A machine that is killed twice: what belongs to the other kill is not this one's.
    #[test]
    fn a_kill_is_judged_by_its_own_time() {
        let line = |at_ns, event: &str, detail: &str| Line {
            at_ns,
            who: "backup".into(),
            event: event.into(),
            detail: detail.into(),
        };
        let ms = |n: u64| n * 1_000_000;
        // The epoch is at 1 s of the host's clock.
        let events = |at: u64| {
            [
                line(at + ms(1), "link_end", "lost"),
                line(at + ms(3), "announced", ""),
                line(at + ms(4), "live", "3 frames"),
            ]
        };
        let all = [events(ms(1100)), events(ms(2100))].concat();
        let op = |invoke_ns, return_ns| Op {
            client: 0,
            key: 0,
            call: Call::Get,
            outcome: Observed::Nil,
            invoke_ns,
            return_ns,
        };
        let history = History {
            clients: 1,
            ops: vec![
                op(ms(98), ms(102)),
                op(ms(99), ms(107)),
                op(ms(500), ms(900)),
                op(ms(1099), ms(1105)),
            ],
            ..History::default()
        };
        let kill = |at_ns| Kill {
            of_backup: false,
            at_ns,
            until_ns: at_ns + ms(300),
        };
        let [first, second] =
            [1100, 2100].map(|at| Failover::of(&history, ms(1000), kill(ms(at)), all.clone()));
        assert_eq!((first.longest_us(), second.longest_us()), (8000, 6000));
        assert_eq!((first.first_reply_us, second.first_reply_us), (7000, 5000));
        assert_eq!(
            [&first, &second].map(|kill| kill.after_kill_us("live")),
            [Some(4000); 2]
        );
        assert_eq!((first.rescued_frames, second.rescued_frames), (3, 3));
        assert_eq!(first.timeline().matches("noticed").count(), 1);
    }

    #[test]
    fn the_epoch_of_a_history_stands_on_the_hosts_clock() {
        let before = hostclock::monotonic_ns();
        let epoch = Epoch::start();
        let after = hostclock::monotonic_ns();
        let at = host_ns_at(epoch);
        assert!(before <= at && at <= after + 1_000_000);
    }
}
