//! What every arbiter keeps, run against each of them. A new one needs a [`Rig`] and one line at the
//! end of this file.

mod rigs;

use rigs::{DiskRig, Rig, ServerRig};
use std::collections::BTreeSet;
use std::sync::Barrier;
use testandset::{ArbiterError, Contender, Flag, Verdict, ViewNumber, VmId};

fn flag(vm: &str, view: u64) -> Flag {
    Flag {
        vm: VmId::new(vm).unwrap(),
        view: ViewNumber(view),
    }
}

fn who(name: &str) -> Contender {
    Contender::new(name).unwrap()
}

fn lost_to(name: &str) -> Verdict {
    Verdict::Lost { holder: who(name) }
}

fn an_unset_flag_has_no_holder_and_asking_sets_nothing<R: Rig>() {
    let rig = R::new();
    let arbiter = rig.arbiter();
    assert_eq!(arbiter.holder(&flag("web", 1)).unwrap(), None);
    arbiter.check().unwrap();
    assert_eq!(arbiter.holder(&flag("web", 1)).unwrap(), None);
}

fn the_first_wins_and_the_second_learns_who<R: Rig>() {
    let rig = R::new();
    let (a, b) = (rig.arbiter(), rig.arbiter());
    let flag = flag("web", 1);
    assert_eq!(a.test_and_set(&flag, &who("a")).unwrap(), Verdict::Won);
    assert_eq!(b.test_and_set(&flag, &who("b")).unwrap(), lost_to("a"));
    assert_eq!(b.holder(&flag).unwrap(), Some(who("a")));
}

fn asking_again_changes_nothing<R: Rig>() {
    let rig = R::new();
    let flag = flag("web", 1);
    for _ in 0..3 {
        let arbiter = rig.arbiter();
        assert_eq!(
            arbiter.test_and_set(&flag, &who("a")).unwrap(),
            Verdict::Won
        );
        assert_eq!(
            arbiter.test_and_set(&flag, &who("b")).unwrap(),
            lost_to("a")
        );
    }
}

fn views_and_vms_are_independent<R: Rig>() {
    let rig = R::new();
    let arbiter = rig.arbiter();
    let flags = [
        flag("web", 1),
        flag("web", 2),
        flag("web", 12),
        flag("web", u64::MAX),
        flag("web.1", 2),
        flag("web-1", 2),
        flag("WEB", 1),
        flag("..", 0),
        flag(&"x".repeat(VmId::MAX), u64::MAX),
    ];
    for (n, flag) in flags.iter().enumerate() {
        let winner = who(&format!("w{n}"));
        assert_eq!(arbiter.test_and_set(flag, &winner).unwrap(), Verdict::Won);
    }
    for (n, flag) in flags.iter().enumerate() {
        assert_eq!(arbiter.holder(flag).unwrap(), Some(who(&format!("w{n}"))));
    }
}

fn of_32_racing_one_wins_and_all_learn_who<R: Rig>() {
    let rig = R::new();
    for view in 0..8 {
        let flag = flag("web", view);
        let start = Barrier::new(32);
        let verdicts: Vec<(Contender, Verdict)> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..32)
                .map(|n| {
                    let (rig, flag, start) = (&rig, &flag, &start);
                    scope.spawn(move || {
                        let (arbiter, me) = (rig.arbiter(), who(&format!("r{n}")));
                        start.wait();
                        let verdict = arbiter.test_and_set(flag, &me).unwrap();
                        (me, verdict)
                    })
                })
                .collect();
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let winners: Vec<_> = verdicts
            .iter()
            .filter(|(_, verdict)| *verdict == Verdict::Won)
            .collect();
        let [(winner, _)] = winners.as_slice() else {
            panic!("view {view}: {} winners", winners.len());
        };
        let named: BTreeSet<_> = verdicts
            .iter()
            .filter_map(|(_, verdict)| match verdict {
                Verdict::Lost { holder } => Some(holder),
                Verdict::Won => None,
            })
            .collect();
        assert_eq!(named, BTreeSet::from([winner]));
        assert_eq!(rig.arbiter().holder(&flag).unwrap().as_ref(), Some(winner));
    }
}

fn a_restart_changes_nothing<R: Rig>() {
    let mut rig = R::new();
    let set = flag("web", 1);
    let before = rig.arbiter();
    assert_eq!(before.test_and_set(&set, &who("a")).unwrap(), Verdict::Won);
    rig.restart();
    let after = rig.arbiter();
    assert_eq!(after.holder(&set).unwrap(), Some(who("a")));
    assert_eq!(after.test_and_set(&set, &who("b")).unwrap(), lost_to("a"));
    assert_eq!(after.test_and_set(&set, &who("a")).unwrap(), Verdict::Won);
    assert_eq!(after.holder(&flag("web", 2)).unwrap(), None);
}

fn all_who_ask_one_arbiter_see_one_store_and_another_has_another<R: Rig>() {
    let mut rig = R::new();
    let ids: BTreeSet<_> = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| rig.arbiter().store().unwrap().to_bytes()))
            .collect();
        askers.into_iter().map(|a| a.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    rig.restart();
    let after = rig.arbiter().store().unwrap().to_bytes();
    assert!(ids.contains(&after), "a restart changes no identity");
    let other = R::new().arbiter().store().unwrap().to_bytes();
    assert!(!ids.contains(&other));
}

fn no_word_of_another_store_is_taken<R: Rig>() {
    let mut rig = R::new();
    let (set, unset) = (flag("web", 1), flag("web", 2));
    // Bound by a verdict, and by having asked.
    let (by_verdict, by_asking) = (rig.arbiter(), rig.arbiter());
    let verdict = by_verdict.test_and_set(&set, &who("a")).unwrap();
    assert_eq!(verdict, Verdict::Won);
    let known = by_asking.store().unwrap();
    rig.lose_store();
    // Also once the new store is in use.
    for round in 0..2 {
        for arbiter in [&by_verdict, &by_asking] {
            for flag in [&set, &unset] {
                for error in [
                    arbiter.test_and_set(flag, &who("b")).unwrap_err(),
                    arbiter.holder(flag).unwrap_err(),
                    arbiter.check().unwrap_err(),
                ] {
                    let other = matches!(error, ArbiterError::OtherStore { .. });
                    assert!(other, "round {round}: {error}");
                    let line = error.to_string();
                    assert_eq!(line.lines().count(), 1, "{line}");
                    assert!(line.contains(&rig.place()), "{line}");
                    assert!(line.contains(&known.to_string()), "{line}");
                }
            }
            assert_eq!(arbiter.store().unwrap(), known);
        }
        let fresh = rig.arbiter();
        assert_ne!(fresh.store().unwrap(), known);
        for flag in [&set, &unset] {
            assert_eq!(fresh.holder(flag).unwrap(), None, "nothing was set");
        }
    }
}

fn out_of_reach_is_an_error_not_an_answer<R: Rig>() {
    let mut rig = R::new();
    let arbiter = rig.arbiter();
    let (set, unset) = (flag("web", 1), flag("web", 2));
    assert_eq!(arbiter.test_and_set(&set, &who("a")).unwrap(), Verdict::Won);
    rig.cut();
    for flag in [&set, &unset] {
        for error in [
            arbiter.test_and_set(flag, &who("a")).unwrap_err(),
            arbiter.holder(flag).unwrap_err(),
            arbiter.check().unwrap_err(),
        ] {
            let line = error.to_string();
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(line.contains(&rig.place()), "{line}");
        }
    }
}

macro_rules! conformance {
    ($($rig:ident as $module:ident: $($test:ident)*;)*) => {$(
        mod $module {
            $(#[test] fn $test() { super::$test::<super::$rig>(); })*
        }
    )*};
}

macro_rules! conformance_of {
    ($($rig:ident as $module:ident;)*) => {
        conformance! {$(
            $rig as $module:
                an_unset_flag_has_no_holder_and_asking_sets_nothing
                the_first_wins_and_the_second_learns_who
                asking_again_changes_nothing
                views_and_vms_are_independent
                of_32_racing_one_wins_and_all_learn_who
                a_restart_changes_nothing
                all_who_ask_one_arbiter_see_one_store_and_another_has_another
                no_word_of_another_store_is_taken
                out_of_reach_is_an_error_not_an_answer;
        )*}
    };
}

conformance_of! {
    DiskRig as shared_disk;
    ServerRig as server;
}
