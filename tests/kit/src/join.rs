//! How a machine that ran alone got a new backup: what the replicas noted of it, and what clients saw.

use crate::events::Line;
use crate::timeline::{Colour, Lane, Timeline, after};
use check::history::{History, NEVER};

/// Bytes of a MiB.
const MIB: f64 = (1 << 20) as f64;

/// As far around a join replies are looked for: no client waits longer for one.
const AROUND_NS: u64 = 10_000_000_000;

/// What a replica that leads tells of a join in its event `protected`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// The view of the pair.
    pub view: u64,
    /// How long the guest stood still, in microseconds.
    pub still_us: u64,
    /// Bytes of the machine's state that were sent.
    pub sent_bytes: u64,
    /// Bytes of its memory that are not zero: the least there is to send.
    pub nonzero_bytes: u64,
}

impl Joined {
    /// Understands the event's detail, as in
    ///
    /// `view 3; the guest stood still 4123 us, 71303168 bytes were sent, 68000000 of memory are not zero`
    #[must_use]
    pub fn parse(detail: &str) -> Option<Self> {
        let rest = detail.strip_prefix("view ")?;
        let (view, rest) = rest.split_once("; the guest stood still ")?;
        let (still_us, rest) = rest.split_once(" us, ")?;
        let (sent_bytes, rest) = rest.split_once(" bytes were sent, ")?;
        let nonzero_bytes = rest.strip_suffix(" of memory are not zero")?;
        Some(Self {
            view: view.parse().ok()?,
            still_us: still_us.parse().ok()?,
            sent_bytes: sent_bytes.parse().ok()?,
            nonzero_bytes: nonzero_bytes.parse().ok()?,
        })
    }
}

/// A new backup's way into a pair.
pub struct Join {
    /// What the replica that leads told of it.
    pub told: Joined,
    /// From the moment the new backup listened until the machine was protected, in microseconds.
    pub protect_us: u64,
    /// The longest time in which no client got a reply while the machine was handed over, in microseconds: the
    /// guest stood still no longer than that.
    pub gap_us: u64,
    /// When that was over, counted as `protect_us`.
    gap_end_us: u64,
    listening_ns: u64,
    events: Vec<Line>,
}

impl Join {
    /// Of what the replicas noted, the one that leads as `primary` and the new one as `backup`, and of the clients'
    /// `history`, whose epoch was at `epoch_ns` of the host's clock. `None` if the backup never got there.
    #[must_use]
    pub fn of(history: &History, epoch_ns: u64, mut events: Vec<Line>) -> Option<Self> {
        let first = |who: &str, event: &str, from_ns: u64| {
            let mut lines = events.iter();
            lines.find(|line| line.who == who && line.event == event && line.at_ns >= from_ns)
        };
        let listening_ns = first("backup", "listening", 0)?.at_ns;
        let protected = first("primary", "protected", listening_ns)?;
        let (told, protected_ns) = (Joined::parse(&protected.detail)?, protected.at_ns);
        let joining = first("primary", "joining", listening_ns);
        let joining_ns = joining.map_or(listening_ns, |line| line.at_ns);
        let welcomed = first("backup", "welcomed", listening_ns);
        let end_ns = welcomed.map_or(protected_ns, |line| line.at_ns.max(protected_ns));
        events.retain(|line| (listening_ns..=end_ns).contains(&line.at_ns));
        let at = |ns: u64| ns.saturating_sub(epoch_ns);
        let (gap_ns, gap_end) = longest_gap(history, at(joining_ns), at(end_ns));
        Some(Self {
            told,
            protect_us: (protected_ns - listening_ns) / 1000,
            gap_us: gap_ns / 1000,
            gap_end_us: (gap_end + epoch_ns).saturating_sub(listening_ns) / 1000,
            listening_ns,
            events,
        })
    }

    /// The join as people can follow it.
    #[must_use]
    pub fn timeline(&self) -> String {
        let mut timeline = Timeline::default();
        for line in &self.events {
            let detail = &line.detail;
            let text = match line.event.as_str() {
                "listening" => "a new backup listens".into(),
                "joining" => "begins to give it the machine".into(),
                "backup" => "has the machine, and follows".into(),
                "flag_won" => format!("it is level; won the flag of {detail}"),
                "protected" => self.protected(),
                "welcomed" => format!("is the backup of {detail}"),
                other => format!("{other} {detail}"),
            };
            let at_us = (line.at_ns - self.listening_ns) / 1000;
            timeline.event(after(at_us), Lane::of(line), text);
        }
        let gap = format!(
            "no reply for {:.1} ms until here",
            self.gap_us as f64 / 1000.0
        );
        timeline.event(after(self.gap_end_us), Lane::Client, gap);
        timeline.render(Colour::of_stdout())
    }

    fn protected(&self) -> String {
        let Joined {
            view,
            still_us,
            sent_bytes,
            nonzero_bytes,
        } = self.told;
        format!(
            "protected, view {view}; the guest stood still {:.1} ms; {:.1} MiB sent, {:.1} MiB of memory are not zero",
            still_us as f64 / 1000.0,
            mib(sent_bytes),
            mib(nonzero_bytes)
        )
    }
}

/// Bytes in MiB.
#[must_use]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

/// The longest time between two replies, to whichever clients, that has a moment from `from_ns` to `to_ns` in it;
/// and when it ended.
fn longest_gap(history: &History, from_ns: u64, to_ns: u64) -> (u64, u64) {
    let around = history.between(from_ns.saturating_sub(AROUND_NS), to_ns + AROUND_NS);
    let mut replies: Vec<u64> = around
        .ops
        .iter()
        .map(|op| op.return_ns)
        .filter(|at| *at != NEVER)
        .collect();
    replies.sort_unstable();
    let before = replies.partition_point(|at| *at <= from_ns);
    let pairs = replies[before.saturating_sub(1)..].windows(2);
    let gaps = pairs
        .take_while(|pair| pair[0] < to_ns)
        .map(|pair| (pair[1] - pair[0], pair[1]));
    gaps.max().unwrap_or((0, to_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use check::history::{Call, Observed, Op};

    const TOLD: &str = "view 4; the guest stood still 8000 us, 71303168 bytes were sent, 68000000 of memory are not zero";

    #[test]
    fn what_is_told_of_a_join_is_understood_and_nothing_else() {
        let told = Joined {
            view: 4,
            still_us: 8000,
            sent_bytes: 71_303_168,
            nonzero_bytes: 68_000_000,
        };
        assert_eq!(Joined::parse(TOLD), Some(told));
        for other in [
            "",
            "view 4",
            &TOLD[1..],
            &TOLD[..TOLD.len() - 1],
            &TOLD.replace('8', "x"),
        ] {
            assert_eq!(Joined::parse(other), None, "{other}");
        }
    }

    fn replies(at_ms: &[u64]) -> History {
        let op = |at: &u64| Op {
            client: 0,
            key: 0,
            call: Call::Get,
            outcome: Observed::Nil,
            invoke_ns: at * 1_000_000 - 500_000,
            return_ns: at * 1_000_000,
        };
        History {
            clients: 1,
            ops: at_ms.iter().map(op).collect(),
            ..History::default()
        }
    }

    fn line(at_ms: u64, who: &str, event: &str, detail: &str) -> Line {
        Line {
            at_ns: at_ms * 1_000_000,
            who: who.into(),
            event: event.into(),
            detail: detail.into(),
        }
    }

    #[test]
    fn a_join_is_measured_from_listening_to_protected() {
        // The epoch is at 100 ms of the host's clock. 10 to 40 lies before the join, 90 to 150 behind it.
        let history = replies(&[10, 40, 41, 50, 61, 62, 70, 90, 150]);
        let events = vec![
            line(90, "primary", "joining", "an earlier one"),
            line(95, "primary", "protected", "view 2"),
            line(145, "backup", "listening", "127.0.0.1:7"),
            line(151, "primary", "joining", "127.0.0.1:7"),
            line(160, "backup", "backup", "kv of host"),
            line(162, "primary", "protected", TOLD),
            line(163, "backup", "welcomed", "view 4"),
            line(400, "backup", "link_end", "lost"),
        ];
        let join = Join::of(&history, 100_000_000, events.clone()).expect("it came to an end");
        assert_eq!((join.protect_us, join.gap_us), (17_000, 11_000));
        assert_eq!((join.told.view, join.told.still_us), (4, 8000));
        let picture = join.timeline();
        let times: Vec<&str> = picture
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|word| word.contains('.'))
            .collect();
        assert_eq!(times, ["0.0", "6.0", "15.0", "16.0", "17.0", "18.0"]);
        assert!(picture.contains("8.0 ms"), "{picture}");
        assert!(!picture.contains("lost"), "{picture}");
        let never = events[..5].to_vec();
        assert!(Join::of(&history, 100_000_000, never).is_none());
    }
}
