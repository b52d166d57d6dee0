//! A failover as people can follow it: who did what when, relative to the kill.
//!
//! ```text
//!       ms  client   primary  backup   arbiter
//!   -210.4     ●        │        │        │     8 clients connected
//!      0.0     │        ✕        │        │     killed with SIGKILL
//!     50.3     │                 ●        │     silence noticed
//! ```

use crate::events::Line;
use std::fmt::Write as _;
use std::io::IsTerminal;
use terminal::table::{WIDTH, wrap};

/// Who an event happened to; a lane of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The clients.
    Client,
    /// The replica that was killed, or that went on alone.
    Primary,
    /// The replica that followed.
    Backup,
    /// The arbiter.
    Arbiter,
}

impl Lane {
    /// That of the replica which noted `line`.
    #[must_use]
    pub fn of(line: &Line) -> Self {
        if line.who == "primary" {
            Self::Primary
        } else {
            Self::Backup
        }
    }
}

/// The lanes, from the left.
pub(crate) const LANES: [(Lane, &str, &str); 4] = [
    (Lane::Client, "client", "\x1b[36m"),
    (Lane::Primary, "primary", "\x1b[31m"),
    (Lane::Backup, "backup", "\x1b[32m"),
    (Lane::Arbiter, "arbiter", "\x1b[33m"),
];
/// Columns of the time, of a lane, and up to the text.
const TIME: usize = 9;
const LANE: usize = 9;
const TEXT: usize = TIME + LANES.len() * LANE + 1;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// On a terminal that can.
    Yes,
    /// On a pipe, in a file.
    No,
}

impl Colour {
    /// What standard output is fit for: no colour on a pipe, on a dumb terminal, or where
    /// `NO_COLOR` asks for none.
    #[must_use]
    pub fn of_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if std::io::stdout().is_terminal() && !unwanted {
            Self::Yes
        } else {
            Self::No
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct TimelineEvent {
    pub(crate) at_us: i64,
    pub(crate) lane: Lane,
    pub(crate) text: String,
    pub(crate) death: bool,
}

/// A time behind what a timeline is relative to.
pub(crate) fn after(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

/// Events in time, microseconds relative to the kill.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    events: Vec<TimelineEvent>,
}

impl Timeline {
    /// Adds an event.
    pub fn event(&mut self, at_us: i64, lane: Lane, text: impl Into<String>) -> &mut Self {
        self.events.push(TimelineEvent {
            at_us,
            lane,
            text: text.into(),
            death: false,
        });
        self
    }

    /// Adds an event with which `lane` ends.
    pub fn death(&mut self, at_us: i64, lane: Lane, text: impl Into<String>) -> &mut Self {
        self.events.push(TimelineEvent {
            at_us,
            lane,
            text: text.into(),
            death: true,
        });
        self
    }

    /// The same as a page for a browser, with this title; the times are from `zero` on.
    #[must_use]
    pub fn page(&self, title: &str, zero: &str) -> String {
        let mut events = self.events.clone();
        events.sort_by_key(|event| event.at_us);
        crate::page::page(title, zero, &events)
    }

    /// The picture: events by time (of equal times, in the order added), 80 columns at most.
    #[must_use]
    pub fn render(&self, colour: Colour) -> String {
        let mut events = self.events.clone();
        events.sort_by_key(|event| event.at_us);
        let mut out = format!("{:>TIME$}", "ms");
        for (_, name, code) in LANES {
            out += &painted(&format!("{name:^LANE$}"), code, colour);
        }
        let mut out = out.trim_end().to_owned() + "\n";
        let mut dead = Vec::new();
        for event in &events {
            let lines = wrap(&event.text, WIDTH - TEXT);
            for (n, line) in lines.iter().enumerate() {
                let time = if n == 0 {
                    ms(event.at_us)
                } else {
                    String::new()
                };
                let _ = write!(out, "{time:>TIME$}");
                for (lane, _, code) in LANES {
                    let mark = match lane == event.lane && n == 0 {
                        true if event.death => "✕",
                        true => "●",
                        false if dead.contains(&lane) => " ",
                        false => "│",
                    };
                    out += &painted(&format!("{mark:^LANE$}"), code, colour);
                }
                let _ = writeln!(out, " {line}");
                if event.death {
                    dead.push(event.lane);
                }
            }
        }
        out
    }
}

fn painted(text: &str, code: &str, colour: Colour) -> String {
    match colour {
        Colour::Yes => format!("{code}{text}\x1b[0m"),
        Colour::No => text.into(),
    }
}

/// Microseconds as milliseconds with one decimal, rounded toward zero.
pub(crate) fn ms(us: i64) -> String {
    let sign = if us <= -100 { "-" } else { "" };
    let tenths = us.unsigned_abs() / 100;
    format!("{sign}{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failover() -> Timeline {
        let mut timeline = Timeline::default();
        timeline
            .event(50_340, Lane::Backup, "silence noticed")
            .event(-210_400, Lane::Client, "8 clients connected")
            .death(0, Lane::Primary, "killed with SIGKILL")
            .event(50_900, Lane::Arbiter, "flag of view 1 set by the backup");
        timeline
    }

    #[test]
    fn events_stand_in_order_in_their_lanes() {
        let expected = "       ms client   primary  backup   arbiter
   -210.4    ●        │        │        │     8 clients connected
      0.0    │        ✕        │        │     killed with SIGKILL
     50.3    │                 ●        │     silence noticed
     50.9    │                 │        ●     flag of view 1 set by the backup
";
        assert_eq!(failover().render(Colour::No), expected);
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        let mut plain = failover().render(Colour::Yes);
        assert!(plain.contains("\x1b[31m"));
        for code in ["\x1b[36m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"] {
            plain = plain.replace(code, "");
        }
        let trim = |text: &str| {
            text.lines()
                .map(str::trim_end)
                .collect::<Vec<_>>()
                .join("\n")
        };
        assert_eq!(trim(&plain), trim(&failover().render(Colour::No)));
    }

    #[test]
    fn long_texts_are_wrapped_within_the_width() {
        let mut timeline = Timeline::default();
        let word = "x".repeat(100);
        timeline.event(
            99,
            Lane::Client,
            format!("first to \x1b[31m last {word} end"),
        );
        let text = timeline.render(Colour::No);
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert_eq!(text.matches('x').count(), 100);
        assert!(!text.contains('\x1b'));
        assert_eq!(text.matches('●').count(), 1);
    }

    #[test]
    fn times_are_rounded_toward_the_kill() {
        assert_eq!(ms(-99), "0.0");
        assert_eq!(ms(-100), "-0.1");
        assert_eq!(ms(123_456), "123.4");
    }
}
