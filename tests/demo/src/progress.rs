//! How far a demo is, on standard error.

use std::time::{Duration, Instant};

/// Tells on stderr how far a demo of several kills is.
pub(crate) enum Progress {
    /// There is one kill only.
    None,
    /// On a terminal.
    Bar(indicatif::ProgressBar),
    /// Elsewhere: a line now and then.
    Lines(Lines),
}

/// Progress as lines.
pub(crate) struct Lines {
    done: u32,
    all: u32,
    begun: Instant,
    last: Instant,
}

/// The least time between two lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(15);

impl Progress {
    /// Of a demo with so many kills.
    pub(crate) fn new(kills: u32) -> Self {
        use std::io::IsTerminal;
        if kills < 2 {
            return Self::None;
        }
        if !std::io::stderr().is_terminal() {
            let begun = Instant::now();
            return Self::Lines(Lines {
                done: 0,
                all: kills,
                begun,
                last: begun,
            });
        }
        let style =
            indicatif::ProgressStyle::with_template("{bar:40} {pos}/{len} kills, {eta} left");
        match style {
            Ok(style) => Self::Bar(indicatif::ProgressBar::new(kills.into()).with_style(style)),
            Err(_) => Self::None,
        }
    }

    /// One more kill is done.
    pub(crate) fn step(&mut self) {
        match self {
            Self::None => {}
            Self::Bar(bar) => bar.inc(1),
            Self::Lines(lines) => {
                if let Some(line) = lines.step(Instant::now()) {
                    terminal::complain!("{line}");
                }
            }
        }
    }

    /// Nothing is shown any more.
    pub(crate) fn end(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    /// One more kill is done at the time `now`; the line for it, if one is due.
    fn step(&mut self, now: Instant) -> Option<String> {
        self.done += 1;
        if now - self.last < LINE_EVERY || self.done == self.all {
            return None;
        }
        self.last = now;
        let took = now - self.begun;
        let left = took * (self.all - self.done) / self.done;
        let (done, all) = (self.done, self.all);
        Some(format!(
            "tandem: {done} of {all} kills, {} s left",
            left.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_line_now_and_then() {
        let begun = Instant::now();
        let mut lines = Lines {
            done: 0,
            all: 40,
            begun,
            last: begun,
        };
        // A kill a second.
        let at = |second: u32| begun + Duration::from_secs(second.into());
        let said: Vec<(u32, String)> = (1..=40)
            .filter_map(|second| Some((second, lines.step(at(second))?)))
            .collect();
        let expected = [
            (15, "tandem: 15 of 40 kills, 25 s left".to_owned()),
            (30, "tandem: 30 of 40 kills, 10 s left".to_owned()),
        ];
        assert_eq!(said, expected);
    }
}
