//! Whether a link that was lost had a cause.

use kit::Line;
use kit::fate::{self, Fate};

/// The time to suspicion of all pairs here, the default.
pub const SUSPECT_MS: u64 = 300;
/// A silence made on purpose that is no longer than this is no cause to part. The rest of the time to
/// suspicion is for a host that has other work.
pub const HARMLESS_MS: u64 = SUSPECT_MS / 2;

/// What a trial did that may part a pair. Times in nanoseconds of the host's monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Causes {
    /// When a replica was killed.
    pub killed_ns: Option<u64>,
    /// When one replica first was kept from hearing the other for longer than [`HARMLESS_MS`].
    pub silenced_ns: Option<u64>,
    /// When the channel first lost bytes, and then went on.
    pub torn_ns: Option<u64>,
    /// When all was well again: what parts a pair later was not the trial.
    pub calm_ns: Option<u64>,
}

impl Causes {
    /// Notes that one replica could not hear the other from `from_ns` to `to_ns`.
    pub fn silence(&mut self, from_ns: u64, to_ns: u64) {
        if to_ns - from_ns > HARMLESS_MS * 1_000_000 {
            self.silenced_ns.get_or_insert(from_ns);
        }
    }

    /// Whether one of them explains why the links of `lost` ended. The end seen by one replica is what the
    /// other one then finds closed; which of the two notes it first is chance.
    fn explain(&self, lost: &[&Line]) -> bool {
        let Some(first_ns) = lost.iter().map(|line| line.at_ns).min() else {
            return true;
        };
        let silent = lost
            .iter()
            .any(|line| line.detail.contains("nothing heard"));
        let closed = lost.iter().all(|line| {
            let detail = &line.detail;
            detail.contains("closed") || detail.contains("receive") || detail.contains("send")
        });
        let then = |at: Option<u64>| at.is_some_and(|at| at <= first_ns);
        let explained = then(self.torn_ns)
            || (silent && then(self.silenced_ns))
            || (closed && !silent && then(self.killed_ns));
        explained && self.calm_ns.is_none_or(|calm_ns| first_ns <= calm_ns)
    }
}

/// Judges what the replicas of a pair noted, whose disturbance was `causes`.
///
/// # Errors
/// What is wrong.
pub fn judge(lines: &[Line], causes: &Causes) -> Result<Fate, String> {
    let fate = fate::of_pair(lines)?;
    match causes.explain(&fate::lost(lines)) {
        true => Ok(fate),
        false => Err(format!(
            "the pair parted without a cause; there were {causes:?}"
        )),
    }
}

#[test]
fn a_pair_that_parted_without_a_cause_is_seen() {
    let line = |at_ns: u64, who: &str, event: &str, detail: &str| Line {
        at_ns,
        who: who.into(),
        event: event.into(),
        detail: detail.into(),
    };
    let silent = "link lost: nothing heard for 300 ms";
    let parted = vec![
        line(10, "backup", "link_end", silent),
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
    ];
    let silenced = Causes {
        silenced_ns: Some(5),
        ..Causes::default()
    };
    let alone = Ok(Fate::Alone("backup".into()));
    assert_eq!(judge(&parted, &silenced), alone);
    assert_eq!(judge(&[], &Causes::default()), Ok(Fate::Whole));
    let says = |lines: &[Line], causes: &Causes, what: &str| {
        let why = judge(lines, causes).unwrap_err();
        assert!(why.starts_with(what), "{why}");
    };
    // Nothing was done, it was done later, or it was over; or something else was done.
    let later = Causes {
        silenced_ns: Some(11),
        ..Causes::default()
    };
    let over = Causes {
        calm_ns: Some(9),
        ..silenced.clone()
    };
    let killed = Causes {
        killed_ns: Some(5),
        ..Causes::default()
    };
    for causes in [Causes::default(), later, over, killed.clone()] {
        says(&parted, &causes, "the pair parted without a cause");
    }
    let mut harmless = Causes::default();
    harmless.silence(0, HARMLESS_MS * 1_000_000);
    assert_eq!(harmless.silenced_ns, None);
    says(&parted[..4], &silenced, "0 run alone");
    // A kill closes the connection, and nothing else.
    let mut closed = parted[1..].to_vec();
    assert_eq!(judge(&closed, &killed), alone);
    says(
        &closed,
        &Causes::default(),
        "the pair parted without a cause",
    );
    closed[0].detail = "link lost: entries 3 to 4 are missing".into();
    says(&closed, &killed, "the pair parted without a cause");
}
