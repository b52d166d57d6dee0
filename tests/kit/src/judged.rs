//! What clients saw, judged.

use crate::guest::Served;
use check::history::History;
use check::{CheckOptions, Verdict, check};

/// What the clients of a machine saw.
pub struct Judged {
    /// What the history comes to.
    pub verdict: Verdict,
    /// Connections that broke.
    pub broken: usize,
    breaks: Vec<String>,
}

impl Judged {
    /// Judges the `history` of a machine that ran `guest`.
    #[must_use]
    pub fn of(history: &History, guest: &Served) -> Self {
        let options = CheckOptions {
            lease_slack_ms: guest.lease_slack_ms,
            ..CheckOptions::default()
        };
        Self {
            verdict: check(history, options),
            broken: history.breaks.len(),
            breaks: history
                .breaks
                .iter()
                .map(|b| format!("client {}: {}", b.client, b.reason))
                .collect(),
        }
    }

    /// Whether no client can have noticed more than a pause.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.broken == 0 && self.verdict.lost_writes == 0 && self.verdict.linearizable()
    }

    /// What went wrong, for people.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.verdict.explain();
        for line in &self.breaks {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}
