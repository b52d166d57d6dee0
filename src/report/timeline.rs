//! A failover as people can follow it: who did what when, relative to the kill.
//!
//! ```text
//!       ms  client   primary  backup   arbiter
//!   -210.4     ●        │        │        │     8 clients connected
//!      0.0     │        ✕        │        │     killed with SIGKILL
//!     50.3     │                 ●        │     silence noticed
//! ```

use std::fmt::Write as _;
use std::io::IsTerminal;

use super::table::WIDTH;

/// Who an event happened to; a lane of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The clients.
    Client,
    /// The replica that was killed, or that went on alone.
    Primary,
    /// The replica that followed.
    Backup,
    /// The arbiter.
    Arbiter,
}

/// The lanes, from the left.
const LANES: [(Source, &str, &str); 4] = [
    (Source::Client, "client", "\x1b[36m"),
    (Source::Primary, "primary", "\x1b[31m"),
    (Source::Backup, "backup", "\x1b[32m"),
    (Source::Arbiter, "arbiter", "\x1b[33m"),
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
struct Event {
    at_us: i64,
    source: Source,
    text: String,
    death: bool,
}

/// Events in time, microseconds relative to the kill.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    events: Vec<Event>,
}

impl Timeline {
    /// Adds an event.
    pub fn event(&mut self, at_us: i64, source: Source, text: impl Into<String>) -> &mut Self {
        self.events.push(Event {
            at_us,
            source,
            text: text.into(),
            death: false,
        });
        self
    }

    /// Adds the end of `source`: its lane ends there.
    pub fn death(&mut self, at_us: i64, source: Source, text: impl Into<String>) -> &mut Self {
        self.events.push(Event {
            at_us,
            source,
            text: text.into(),
            death: true,
        });
        self
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
                for (source, _, code) in LANES {
                    let mark = match source == event.source && n == 0 {
                        true if event.death => "✕",
                        true => "●",
                        false if dead.contains(&source) => " ",
                        false => "│",
                    };
                    out += &painted(&format!("{mark:^LANE$}"), code, colour);
                }
                let _ = writeln!(out, " {line}");
                if event.death {
                    dead.push(event.source);
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
fn ms(us: i64) -> String {
    let sign = if us <= -100 { "-" } else { "" };
    let tenths = us.unsigned_abs() / 100;
    format!("{sign}{}.{}", tenths / 10, tenths % 10)
}

/// `text` in lines of at most `width` columns, broken at spaces where there are any; control
/// characters become spaces.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            let line = lines.last_mut().expect("there is always a line");
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + word.len() <= width {
                line.push_str(&" ".repeat(gap));
                line.extend(word.drain(..));
            } else if used == 0 {
                line.extend(word.drain(..width));
            } else {
                lines.push(String::new());
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failover() -> Timeline {
        let mut timeline = Timeline::default();
        timeline
            .event(50_340, Source::Backup, "silence noticed")
            .event(-210_400, Source::Client, "8 clients connected")
            .death(0, Source::Primary, "killed with SIGKILL")
            .event(50_900, Source::Arbiter, "flag of view 1 set by the backup");
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
            Source::Client,
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
