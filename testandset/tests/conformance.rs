//! What every arbiter keeps, run against each of them. A new one needs a [`Rig`] and one line at the
//! end of this file.

mod rigs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rigs::etcd::EtcdRig;
use rigs::proxy::Proxy;
use rigs::{DiskRig, Rig, ServerRig};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::time::Duration;
use testandset::{ArbiterError, Contender, Flag, Verdict, ViewNumber, VmId};
use testing::numbers::number;

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

fn of_two_that_ask_at_once_one_wins_each_view<R: Rig>() {
    let views = number("TANDEM_RACES").unwrap_or(100);
    let rig = R::new();
    let start = Barrier::new(2);
    let verdicts = std::thread::scope(|scope| {
        let racers = ["a", "b"].map(|name| {
            let (rig, start) = (&rig, &start);
            scope.spawn(move || -> Vec<Verdict> {
                let arbiter = rig.arbiter();
                let ask = |view| {
                    start.wait();
                    arbiter
                        .test_and_set(&flag("web", view), &who(name))
                        .unwrap()
                };
                (0..views).map(ask).collect()
            })
        });
        racers.map(|racer| racer.join().unwrap())
    });
    let [a, b] = &verdicts;
    let mut won = 0;
    for (view, pair) in a.iter().zip(b).enumerate() {
        match pair {
            (Verdict::Won, Verdict::Lost { holder }) if *holder == who("a") => won += 1,
            (Verdict::Lost { holder }, Verdict::Won) if *holder == who("b") => {}
            other => panic!("view {view}: {other:?}"),
        }
    }
    println!("of {views} views a won {won}");
    let newest = rig.arbiter().newest(&flag("web", 0).vm).unwrap();
    assert_eq!(newest.map(|(view, _)| view), Some(ViewNumber(views - 1)));
}

fn the_newest_flag_is_found_however_high_its_view<R: Rig>() {
    let rig = R::new();
    let (arbiter, other) = (rig.arbiter(), rig.arbiter());
    let newest = |vm: &str| arbiter.newest(&VmId::new(vm).unwrap()).unwrap();
    assert_eq!(newest("web"), None);
    let top = [u64::MAX - 1, u64::MAX];
    for view in [0, 1, 9, 10, 11, 10_000, 10_001, 1 << 40, top[0], top[1]] {
        let set = flag("web", view);
        assert_eq!(other.test_and_set(&set, &who("a")).unwrap(), Verdict::Won);
        assert_eq!(arbiter.test_and_set(&set, &who("b")).unwrap(), lost_to("a"));
        assert_eq!(newest("web"), Some((ViewNumber(view), who("a"))));
    }
    // Asked from above, what is below changes nothing.
    assert_eq!(
        other.test_and_set(&flag("web", 7), &who("b")).unwrap(),
        Verdict::Won
    );
    assert_eq!(newest("web"), Some((ViewNumber(u64::MAX), who("a"))));
    // Names that begin alike are others' names.
    for vm in ["web.1", "web-1", "web1", "we", "Web"] {
        assert_eq!(newest(vm), None, "{vm}");
    }
    other.test_and_set(&flag("web.1", 3), &who("c")).unwrap();
    assert_eq!(newest("web.1"), Some((ViewNumber(3), who("c"))));
}

/// A contender as a process, which sets flags as it is told.
struct Racer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Racer {
    fn start(rig: &impl Rig, name: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tandem-contend"))
            .args([rig.address().as_str(), "web", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn a_contender_that_slept_learns_who_won_meanwhile<R: Rig>() {
    let pause = Duration::from_millis(number("TANDEM_PAUSE_MS").unwrap_or(200));
    let rig = R::new();
    let mut sleeper = Racer::start(&rig, "sleeper");
    // It has what it needs for its next call: a connection, if there is one to have.
    sleeper.tell("1");
    assert_eq!(sleeper.hear(), "1 won\n");
    sleeper.signal(Signal::SIGSTOP);
    sleeper.tell("2");
    sleeper.tell("1");
    // The time is what is tested: servers give up connections, and clients calls, by theirs.
    std::thread::sleep(pause);
    let other = rig.arbiter();
    let verdict = other.test_and_set(&flag("web", 2), &who("other")).unwrap();
    assert_eq!(verdict, Verdict::Won);
    sleeper.signal(Signal::SIGCONT);
    assert_eq!(sleeper.hear(), "2 lost other\n");
    assert_eq!(sleeper.hear(), "1 won\n");
    sleeper.tell("3");
    assert_eq!(sleeper.hear(), "3 won\n");
}

fn a_reply_that_is_lost_after_the_write_is_asked_for_again<R: Rig>() {
    let rig = R::new();
    let proxy = Proxy::new(&rig.place());
    let through = proxy.address.to_string();
    let (a, b) = (rig.arbiter_at(&through).unwrap(), rig.arbiter());
    let [first, second] = [1, 2].map(|view| flag("web", view));
    assert_eq!(a.test_and_set(&first, &who("a")).unwrap(), Verdict::Won);
    proxy.lose(true);
    // However often it asks itself, all replies are lost.
    let error = a.test_and_set(&second, &who("a")).unwrap_err();
    assert!(error.to_string().contains(&through), "{error}");
    assert!(proxy.lost() > 0);
    // The server had answered, so it had written.
    assert_eq!(b.holder(&second).unwrap(), Some(who("a")));
    assert_eq!(b.test_and_set(&second, &who("b")).unwrap(), lost_to("a"));
    proxy.lose(false);
    assert_eq!(a.test_and_set(&second, &who("a")).unwrap(), Verdict::Won);
    // One reply is lost, and the call goes on by itself or says that it does not know.
    let third = flag("web", 3);
    proxy.forget();
    std::thread::scope(|scope| {
        proxy.lose(true);
        let asks = scope.spawn(|| a.test_and_set(&third, &who("a")));
        proxy.lost();
        proxy.lose(false);
        match asks.join().unwrap() {
            Ok(verdict) => assert_eq!(verdict, Verdict::Won),
            Err(error) => assert!(error.to_string().contains(&through), "{error}"),
        }
    });
    assert_eq!(b.holder(&third).unwrap(), Some(who("a")));
}

fn all_calls_use_one_connection_as_long_as_it_lasts<R: Rig>() {
    let mut rig = R::new();
    let proxy = Proxy::new(&rig.place());
    let arbiter = rig.arbiter_at(&proxy.address.to_string()).unwrap();
    let ask_all = |view| {
        let set = flag("web", view);
        assert_eq!(arbiter.test_and_set(&set, &who("a")).unwrap(), Verdict::Won);
        assert_eq!(arbiter.holder(&set).unwrap(), Some(who("a")));
        assert!(arbiter.newest(&set.vm).unwrap().is_some());
        arbiter.check().unwrap();
    };
    (0..5).for_each(ask_all);
    assert_eq!(proxy.accepted(), 1);
    rig.restart();
    (5..10).for_each(ask_all);
    assert_eq!(proxy.accepted(), 2);
}

fn a_server_that_ends_before_its_reply_has_set_the_flag<R: Rig>() {
    let mut rig = R::new();
    let proxy = Proxy::new(&rig.place());
    let a = rig.arbiter_at(&proxy.address.to_string()).unwrap();
    let [first, second] = [1, 2].map(|view| flag("web", view));
    assert_eq!(a.test_and_set(&first, &who("a")).unwrap(), Verdict::Won);
    proxy.lose(true);
    a.test_and_set(&second, &who("a")).unwrap_err();
    rig.restart();
    proxy.lose(false);
    let b = rig.arbiter();
    assert_eq!(b.test_and_set(&second, &who("b")).unwrap(), lost_to("a"));
    assert_eq!(a.test_and_set(&second, &who("a")).unwrap(), Verdict::Won);
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
                    arbiter.newest(&flag.vm).unwrap_err(),
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
            arbiter.newest(&flag.vm).unwrap_err(),
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
            use super::Rig;
            $(#[test] fn $test() {
                if super::$rig::is_here() {
                    super::$test::<super::$rig>();
                }
            })*
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
                of_two_that_ask_at_once_one_wins_each_view
                the_newest_flag_is_found_however_high_its_view
                a_contender_that_slept_learns_who_won_meanwhile
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
    EtcdRig as etcd;
}

macro_rules! conformance_of_servers {
    ($($rig:ident as $module:ident;)*) => {
        conformance! {$(
            $rig as $module:
                a_reply_that_is_lost_after_the_write_is_asked_for_again
                all_calls_use_one_connection_as_long_as_it_lasts
                a_server_that_ends_before_its_reply_has_set_the_flag;
        )*}
    };
}

// A shared directory has no replies: `processes.rs` kills its contenders between write and verdict.
conformance_of_servers! {
    ServerRig as server_replies;
    EtcdRig as etcd_replies;
}
