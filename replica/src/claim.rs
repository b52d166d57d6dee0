//! Which view a pair begins in, and the right to begin there.
//!
//! ```text
//!   flag 0      flag 1        flag 2          flag 3           flag 4
//!   begun by    won by        set by the      begun by         free
//!   primary A   backup B      end of the VM   primary C
//!      │           │                             │
//!      └▶ view 1   └▶ view 2 ──── ended          └▶ view 4
//! ```
//!
//! The rule: *who is live in view n has the flag of view n − 1*, whether it went live there or was
//! started there. A start is a test-and-set like any other, so of two primaries of one machine one is
//! refused. A start may take the flag of a view in which nobody is live: view 0, and the view after one
//! whose flag is marked as the machine's end.

use crate::error::{During, Outcome, ReplicaError};
use std::time::{Duration, Instant};
use testandset::{Arbiter, ArbiterError, Contender, Flag, NameError, Verdict, ViewNumber, VmId};

/// Longest time a replica that is to end asks an arbiter that is out of reach; a call under way then is waited
/// for.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two questions to it.
const RETRY: Duration = Duration::from_millis(100);

/// Who names the view of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nobody: the next one, if the machine is known to have ended.
    Next,
    /// The operator, who vouches for the view before it being over.
    Operator(ViewNumber),
    /// A viewservice, which leaves views out.
    Service(ViewNumber),
    /// A viewservice, to a host that was told to start the machine. That is an order which may be old, of a service
    /// which may have lost its state: so the machine must be known to have ended, or the operator vouches for that.
    Ordered {
        /// The view to begin in.
        view: ViewNumber,
        /// The operator's word.
        anew: bool,
    },
}

/// Why a machine's end is not at the arbiter.
#[derive(Debug, thiserror::Error)]
pub enum Unmarked {
    /// The flag is another's, who says himself how his machine ends.
    #[error("{holder} has the flag of view {view} already")]
    Taken {
        /// Who has it.
        holder: Contender,
        /// The machine's last view here.
        view: ViewNumber,
    },
    /// The arbiter gave no answer.
    #[error(
        "'{vm}' has ended, but the arbiter was not told: the flag of view {view} is left unmarked, so that it \
         counts as running, and its next start needs --view {} (a viewservice names that itself): {error}",
        view.next()
    )]
    Unreachable {
        /// The machine.
        vm: VmId,
        /// Its last view.
        view: ViewNumber,
        /// What the arbiter's side said last.
        error: ArbiterError,
    },
    /// This replica's name leaves no room for the mark.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The flags of one machine.
pub struct Claims<'a> {
    /// Who keeps them.
    pub arbiter: &'a dyn Arbiter,
    /// The machine.
    pub vm: &'a VmId,
    /// Who asks.
    pub who: &'a Contender,
}

impl Claims<'_> {
    fn flag(&self, view: ViewNumber) -> Flag {
        Flag {
            vm: self.vm.clone(),
            view,
        }
    }

    fn newest(&self) -> Outcome<Option<(ViewNumber, Contender)>> {
        self.arbiter
            .newest(self.vm)
            .during("the arbiter, asked where the machine stands")
    }

    fn set(&self, view: ViewNumber) -> Outcome<Verdict> {
        self.arbiter
            .test_and_set(&self.flag(view), self.who)
            .during("the arbiter, asked for the right to begin")
    }

    /// The first view behind all whose flags are set, and who has the last of these. A viewservice may have left
    /// out views before it: as far as it knows nobody is live in those any more.
    fn first_free(&self) -> Outcome<(ViewNumber, Option<Contender>)> {
        let Some((view, holder)) = self.newest()? else {
            return Ok((ViewNumber(0), None));
        };
        // A start takes the flag of this view, and begins in the next one.
        if view.0 >= u64::MAX - 1 {
            return Err(ReplicaError::refused(format!(
                "'{}' has used up its views: {holder} has the flag of view {view}; choose another --vm",
                self.vm
            )));
        }
        Ok((view.next(), Some(holder)))
    }

    /// The view whose flag a start as `wish` says has to take.
    fn before(&self, wish: Wish) -> Outcome<ViewNumber> {
        let vm = self.vm;
        if let Wish::Ordered { view, anew } = wish
            && !anew
            && let Some((newest, holder)) = self.newest()?
            && !holder.is_end_mark()
        {
            return Err(ReplicaError::refused(format!(
                "'{vm}' may be running in view {}, and is not begun in view {view}: {holder} has the flag of view \
                 {newest} (if all its replicas are surely gone, `tandem up --anew` begins it all the same)",
                newest.next()
            )));
        }
        if let Wish::Service(view) | Wish::Ordered { view, .. } = wish {
            // Whoever starts the machine without the service finds it begun.
            self.set(ViewNumber(0))?;
            return Ok(ViewNumber(view.0.saturating_sub(1)));
        }
        let (free, last) = self.first_free()?;
        match (wish, last) {
            (Wish::Operator(view), _) if view.0.checked_sub(1) != Some(free.0) => {
                Err(ReplicaError::refused(format!(
                    "'{vm}' cannot begin in view {view}: by its flags the next is view {}",
                    free.next()
                )))
            }
            (Wish::Next, Some(holder)) if !holder.is_end_mark() => {
                Err(ReplicaError::refused(format!(
                    "'{vm}' may be running in view {free}: {holder} has the flag of view {} (if all \
                     its replicas are surely gone, --view {} begins anew, and lets none of them go live)",
                    free.0 - 1,
                    free.next()
                )))
            }
            _ => Ok(free),
        }
    }

    /// Claims the right to begin, and says in which view.
    ///
    /// # Errors
    /// If the machine may be running, another primary was faster, or the arbiter gives no answer.
    pub fn begin(&self, wish: Wish) -> Outcome<ViewNumber> {
        let before = self.before(wish)?;
        let view = before.next();
        if let Verdict::Lost { holder } = self.set(before)? {
            return Err(ReplicaError::refused(format!(
                "'{}' is not begun twice: {holder} has the right to view {view}",
                self.vm
            )));
        }
        // Flags of a machine whose start left no mark, or of views a service named, perhaps only just now.
        if let Some((newest, holder)) = self.newest()?
            && newest > before
        {
            return Err(ReplicaError::refused(format!(
                "'{}' cannot begin in view {view}: {holder} has the flag of view {newest} already",
                self.vm
            )));
        }
        Ok(view)
    }

    /// Marks the machine's end in `view`, so that it may be started again. An arbiter out of reach is
    /// asked for a while.
    ///
    /// # Errors
    /// With what to do then.
    pub fn mark_end(&self, view: ViewNumber) -> Result<(), Unmarked> {
        let mark = self.who.end_mark()?;
        let deadline = Instant::now() + PATIENCE;
        let mut view = view;
        loop {
            match self.arbiter.test_and_set(&self.flag(view), &mark) {
                Ok(Verdict::Won) => return Ok(()),
                Ok(Verdict::Lost { holder }) if holder.is_end_mark() => return Ok(()),
                // Taken for a view that it never shared with a backup: nobody else may be live there.
                Ok(Verdict::Lost { holder }) if holder == *self.who => view = view.next(),
                Ok(Verdict::Lost { holder }) => {
                    return Err(Unmarked::Taken { holder, view });
                }
                Err(error) if Instant::now() >= deadline => {
                    let vm = self.vm.clone();
                    return Err(Unmarked::Unreachable { vm, view, error });
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testandset::SharedDisk;

    struct Rig {
        _folder: tempfile::TempDir,
        arbiter: SharedDisk,
        vm: VmId,
    }

    impl Rig {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let arbiter = SharedDisk::open(folder.path()).unwrap();
            let vm = VmId::new("vm").unwrap();
            Self {
                _folder: folder,
                arbiter,
                vm,
            }
        }

        fn claims<T>(&self, who: &str, does: impl FnOnce(Claims) -> T) -> T {
            let who = Contender::new(who).unwrap();
            does(Claims {
                arbiter: &self.arbiter,
                vm: &self.vm,
                who: &who,
            })
        }

        fn begin(&self, who: &str, wish: Wish) -> Result<u64, String> {
            let begun = self.claims(who, |claims| claims.begin(wish));
            begun.map(|view| view.0).map_err(|e| e.to_string())
        }

        fn end(&self, who: &str, view: u64) {
            self.claims(who, |claims| claims.mark_end(ViewNumber(view)))
                .unwrap();
        }

        fn wins(&self, who: &str, view: u64) -> bool {
            let verdict = self
                .claims(who, |claims| claims.set(ViewNumber(view)))
                .unwrap();
            verdict == Verdict::Won
        }
    }

    #[test]
    fn of_two_starts_one_is_refused() {
        let rig = Rig::new();
        assert_eq!(rig.begin("a", Wish::Next), Ok(1));
        let why = rig.begin("b", Wish::Next).unwrap_err();
        assert!(
            why.contains("may be running in view 1") && why.contains("--view 2"),
            "{why}"
        );
        assert!(rig.begin("b", Wish::Operator(ViewNumber(1))).is_err());
    }

    #[test]
    fn an_order_begins_no_machine_that_may_be_running() {
        let ordered = |view, anew| Wish::Ordered {
            view: ViewNumber(view),
            anew,
        };
        let rig = Rig::new();
        assert_eq!(rig.begin("a", ordered(1, false)), Ok(1));
        // The same again, one of a service that lost its state, and one of a service that skipped views.
        for view in [1, 1, 7] {
            let why = rig.begin("b", ordered(view, false)).unwrap_err();
            assert!(why.contains("may be running in view 1"), "{why}");
        }
        assert!(!rig.wins("b", 0), "a has it");
        // What an operator vouches for stands above all that was set before.
        assert!(rig.begin("b", ordered(1, true)).is_err());
        assert_eq!(rig.begin("b", ordered(4, true)), Ok(4));
        rig.end("b", 4);
        let behind = rig.begin("c", ordered(4, false)).unwrap_err();
        assert!(behind.contains("not begun twice"), "{behind}");
        assert_eq!(rig.begin("c", ordered(6, false)), Ok(6));
    }

    #[test]
    fn of_two_starts_at_a_time_one_is_refused() {
        let rig = Rig::new();
        let both = std::thread::scope(|scope| {
            let threads = ["a", "b"].map(|who| {
                let rig = &rig;
                scope.spawn(move || rig.begin(who, Wish::Next).is_ok())
            });
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(both[0] != both[1], "{both:?}");
    }

    #[test]
    fn after_its_end_a_machine_is_started_again() {
        let rig = Rig::new();
        assert_eq!(rig.begin("a", Wish::Next), Ok(1));
        rig.end("a", 1);
        rig.end("its-backup", 1);
        assert_eq!(rig.begin("b", Wish::Next), Ok(3));
        assert!(rig.begin("c", Wish::Next).is_err());
        assert!(rig.wins("b-backup", 3), "the backup went live");
        assert!(rig.begin("c", Wish::Next).is_err());
        rig.end("b-backup", 4);
        assert_eq!(rig.begin("c", Wish::Next), Ok(6));
    }

    #[test]
    fn the_operator_may_vouch_for_the_view_before() {
        let rig = Rig::new();
        assert_eq!(rig.begin("a", Wish::Next), Ok(1));
        assert_eq!(rig.begin("b", Wish::Operator(ViewNumber(2))), Ok(2));
        assert!(!rig.wins("a-backup", 1), "none of the old pair goes live");
        assert!(
            rig.begin("c", Wish::Operator(ViewNumber(2))).is_err(),
            "once only"
        );
        assert!(rig.begin("c", Wish::Operator(ViewNumber(0))).is_err());
        let why = rig.begin("c", Wish::Operator(ViewNumber(9))).unwrap_err();
        assert!(why.contains("the next is view 3"), "{why}");
    }

    #[test]
    fn a_view_named_by_a_service_is_claimed_too() {
        let rig = Rig::new();
        assert_eq!(rig.begin("a", Wish::Service(ViewNumber(7))), Ok(7));
        assert!(
            rig.begin("b", Wish::Service(ViewNumber(7))).is_err(),
            "another service"
        );
        assert!(rig.begin("b", Wish::Next).is_err(), "without the service");
        rig.end("a", 7);
        assert_eq!(rig.begin("b", Wish::Service(ViewNumber(9))), Ok(9));
    }

    #[test]
    fn a_machine_goes_on_from_wherever_its_views_are() {
        let rig = Rig::new();
        let high = 1 << 40;
        assert_eq!(rig.begin("a", Wish::Service(ViewNumber(high))), Ok(high));
        let why = rig.begin("b", Wish::Next).unwrap_err();
        assert!(why.contains(&format!("--view {}", high + 1)), "{why}");
        rig.end("a", high);
        assert_eq!(rig.begin("b", Wish::Next), Ok(high + 2));
        let next = Wish::Operator(ViewNumber(high + 3));
        assert_eq!(rig.begin("c", next), Ok(high + 3));
    }

    #[test]
    fn a_machine_without_a_next_view_is_refused() {
        for last in [u64::MAX - 1, u64::MAX] {
            let rig = Rig::new();
            assert!(rig.wins("a.ended", last));
            for wish in [Wish::Next, Wish::Operator(ViewNumber(u64::MAX))] {
                let why = rig.begin("b", wish).unwrap_err();
                assert!(why.contains("used up its views"), "{why}");
            }
        }
        let rig = Rig::new();
        assert!(rig.wins("a.ended", u64::MAX - 2));
        assert_eq!(rig.begin("b", Wish::Next), Ok(u64::MAX));
    }

    #[test]
    fn a_view_that_is_over_is_not_begun() {
        let rig = Rig::new();
        assert!(rig.wins("an-older-version", 1));
        assert!(rig.begin("a", Wish::Next).is_err());
    }

    #[test]
    fn an_end_cannot_be_marked_where_another_went_live() {
        let rig = Rig::new();
        assert!(rig.wins("b", 1));
        assert!(
            rig.claims("a", |claims| claims.mark_end(ViewNumber(1)))
                .is_err()
        );
    }

    #[test]
    fn whoever_has_taken_the_next_view_marks_its_end_there() {
        let rig = Rig::new();
        assert_eq!(rig.begin("a", Wish::Next), Ok(1));
        assert!(
            rig.wins("a", 1),
            "for a backup that was lost before it came"
        );
        rig.end("a", 1);
        assert_eq!(rig.begin("b", Wish::Next), Ok(4));
    }

    #[test]
    fn an_arbiter_out_of_reach_is_no_answer() {
        let rig = Rig::new();
        std::fs::remove_dir(rig._folder.path()).unwrap();
        assert!(rig.begin("a", Wish::Next).is_err());
    }
}
