//! What a replica notes of itself: its files of events and counters, as they are read.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// One line of an events file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Nanoseconds of the host's monotonic clock.
    pub at_ns: u64,
    /// The replica.
    pub who: String,
    /// What happened, in one word.
    pub event: String,
    /// More about it.
    pub detail: String,
}

impl Line {
    /// What happened, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let detail = &self.detail;
        match self.event.as_str() {
            "link_end" => format!("noticed: {detail}"),
            "flag_won" => format!("won the flag of {detail}"),
            "drained" => format!("log drained, {detail}"),
            "announced" => "announced the guest's address".into(),
            "reemitted" => format!("re-emitted {detail} outputs"),
            "live" => format!("live; {detail}"),
            "solo" => format!("solo, {detail}"),
            "hold" => detail.clone(),
            other => format!("{other} {detail}"),
        }
    }

    /// The whole lines of an events file; none if there is no such file yet.
    #[must_use]
    pub fn all_in(path: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The same of several files, in order of time.
    #[must_use]
    pub fn all_of<P: AsRef<Path>>(paths: &[P]) -> Vec<Self> {
        let lines = paths.iter().flat_map(|path| Self::all_in(path.as_ref()));
        let mut lines: Vec<Self> = lines.collect();
        lines.sort_by_key(|line| line.at_ns);
        lines
    }

    /// The view that its detail begins with, as in `view 7, to host-a`.
    #[must_use]
    pub fn view(&self) -> Option<u64> {
        let digits = self.detail.strip_prefix("view ")?;
        let end = digits.find(|c: char| !c.is_ascii_digit());
        digits[..end.unwrap_or(digits.len())].parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_whole_yet_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.events");
        assert!(Line::all_in(&path).is_empty(), "there is no file");
        let whole = r#"{"at_ns":7,"who":"primary","event":"solo","detail":"view 1"}"#;
        std::fs::write(&path, format!("{whole}\n{}", &whole[..20])).unwrap();
        let line = Line {
            at_ns: 7,
            who: "primary".into(),
            event: "solo".into(),
            detail: "view 1".into(),
        };
        assert_eq!(Line::all_in(&path), std::slice::from_ref(&line));
        let earlier = folder.path().join("y.events");
        std::fs::write(&earlier, whole.replace('7', "3")).unwrap();
        let all = Line::all_of(&[path, earlier]);
        assert_eq!(
            all.iter().map(|line| line.at_ns).collect::<Vec<_>>(),
            [3, 7]
        );
        let says = |detail: &str| Line {
            detail: detail.into(),
            ..line.clone()
        };
        assert_eq!(line.view(), Some(1));
        assert_eq!(says("view 12, to host-a").view(), Some(12));
        assert_eq!(says("host-a").view(), None);
    }
}
