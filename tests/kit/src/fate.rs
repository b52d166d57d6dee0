//! What replicas noted of their lives, judged: who lived in which view, and by which right.
//!
//! To be asked when all have ended: what a replica notes as its last is there then.

use crate::events::Line;
use std::collections::BTreeMap;

/// What became of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They are a pair still.
    Whole,
    /// One runs alone: "primary" or "backup".
    Alone(String),
}

/// The lines in which a replica says that it lost the other.
#[must_use]
pub fn lost(lines: &[Line]) -> Vec<&Line> {
    let lost = |line: &&Line| line.event == "link_end" && line.detail.starts_with("link lost");
    lines.iter().filter(lost).collect()
}

/// Judges what all replicas of a machine noted, in order of time, each under a name of its own: nobody diverged, no
/// flag was won twice, no view has two that lead in it, whoever leads in a view had won the flag of the one before,
/// and nobody leads who lost a flag, or has halted.
///
/// # Errors
/// What is wrong.
pub fn one_lives(lines: &[Line]) -> Result<(), String> {
    let (mut won, mut led) = (BTreeMap::new(), BTreeMap::new());
    for (nth, line) in lines.iter().enumerate() {
        let (who, view) = (&line.who, line.view());
        match line.event.as_str() {
            "diverged" | "failed" | "guest_broke" => {
                return Err(format!("{who}: {} {}", line.event, line.detail));
            }
            "flag_won" => {
                let view = view.ok_or_else(|| format!("{who} won a flag of no view"))?;
                if let Some(other) = won.insert(view, who) {
                    return Err(format!("{other} and {who} won the flag of view {view}"));
                }
            }
            "solo" | "protected" => {
                let view = view.ok_or_else(|| format!("{who} leads in no view"))?;
                if let Some(other) = led.insert(view, who) {
                    return Err(format!(
                        "two replicas live in view {view}: {other} and {who}"
                    ));
                }
                let has_flag = view.checked_sub(1).and_then(|before| won.get(&before));
                if has_flag != Some(&who) {
                    return Err(format!("{who} leads in view {view} without the flag"));
                }
                let mut before = lines[..nth].iter().filter(|line| line.who == *who);
                if before.any(|line| ["halted", "flag_lost"].contains(&line.event.as_str())) {
                    return Err(format!("{who} lost the flag and leads in view {view}"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Judges what the two replicas of a pair noted.
///
/// # Errors
/// What is wrong: as [`one_lives`], or one that runs alone and halted, a pair that parted and has nobody who runs
/// alone, or one who does so in a pair that did not part.
pub fn of_pair(lines: &[Line]) -> Result<Fate, String> {
    one_lives(lines)?;
    let those = |event: &str| -> Vec<&Line> { lines.iter().filter(|l| l.event == event).collect() };
    let (won, solo, lost) = (those("flag_won"), those("solo"), lost(lines));
    match solo.as_slice() {
        [] if won.is_empty() && lost.is_empty() => Ok(Fate::Whole),
        [one] if !lost.is_empty() => {
            let halted = |line: &Line| {
                line.who == one.who && ["halted", "flag_lost"].contains(&line.event.as_str())
            };
            match lines.iter().any(halted) {
                true => Err(format!("{} lost the flag and runs alone", one.who)),
                false => Ok(Fate::Alone(one.who.clone())),
            }
        }
        _ => Err(format!(
            "{} run alone, {} lost the other",
            solo.len(),
            lost.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ns: u64, who: &str, event: &str, detail: &str) -> Line {
        Line {
            at_ns,
            who: who.into(),
            event: event.into(),
            detail: detail.into(),
        }
    }

    fn parted() -> Vec<Line> {
        vec![
            line(
                10,
                "backup",
                "link_end",
                "link lost: nothing heard for 300 ms",
            ),
            line(
                11,
                "primary",
                "link_end",
                "link lost: the connection was closed",
            ),
            line(12, "backup", "flag_won", "view 1"),
            line(13, "primary", "flag_lost", "view 1, to backup"),
            line(14, "backup", "solo", "view 2"),
            line(15, "primary", "halted", "the flag"),
        ]
    }

    #[test]
    fn what_became_of_a_pair_is_seen_and_what_is_wrong() {
        assert_eq!(of_pair(&parted()), Ok(Fate::Alone("backup".into())));
        assert_eq!(of_pair(&[]), Ok(Fate::Whole));
        let wrong = |change: &dyn Fn(&mut Vec<Line>), what: &str| {
            let mut lines = parted();
            change(&mut lines);
            let why = of_pair(&lines).unwrap_err();
            assert!(why.contains(what), "{why}, not {what}");
        };
        let add = |event: &'static str, who: &'static str, detail: &'static str| {
            move |lines: &mut Vec<Line>| lines.push(line(16, who, event, detail))
        };
        wrong(
            &add("flag_won", "primary", "view 1"),
            "won the flag of view 1",
        );
        wrong(
            &add("solo", "primary", "view 2"),
            "two replicas live in view 2",
        );
        wrong(&add("solo", "primary", "view 3"), "without the flag");
        wrong(
            &add("halted", "backup", "why"),
            "lost the flag and runs alone",
        );
        wrong(&add("diverged", "backup", "entry 4"), "backup: diverged");
        wrong(&|lines| drop(lines.remove(2)), "without the flag");
        wrong(&|lines| lines.swap(2, 4), "without the flag");
        wrong(&|lines| lines.truncate(4), "0 run alone");
        // Nobody lost the other.
        wrong(&|lines| drop(lines.drain(..2)), "1 run alone, 0 lost");
    }

    #[test]
    fn a_machine_with_many_lives_has_one_leader_in_each_view() {
        let mut lines = parted();
        lines.extend([
            line(20, "backup", "flag_won", "view 2"),
            line(
                21,
                "backup",
                "protected",
                "view 3; the guest stood still 2 us",
            ),
            line(30, "backup", "flag_lost", "view 3, to third"),
            line(31, "third", "flag_won", "view 3"),
            line(32, "third", "solo", "view 4"),
        ]);
        assert_eq!(one_lives(&lines), Ok(()));
        let with = |more: Line| one_lives(&[&lines[..], &[more]].concat()).unwrap_err();
        let twice = with(line(40, "backup", "solo", "view 4"));
        assert!(twice.starts_with("two replicas live in view 4"), "{twice}");
        lines.push(line(33, "backup", "flag_won", "view 4"));
        let lost = one_lives(&[&lines[..], &[line(40, "backup", "solo", "view 5")]].concat());
        assert_eq!(
            lost.unwrap_err(),
            "backup lost the flag and leads in view 5"
        );
    }
}
