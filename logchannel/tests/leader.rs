//! What a sender tells its leader, and in which order.

mod common;

use common::{
    Call, LIMIT, Notes, PATIENT, Primary, backup, entry, from_every_base, nth, pair, wire,
};
use logchannel::{Bye, Leader, LinkEnd, ReceiverOptions, Sender, SenderOptions, Settled};
use replay::{Base, InputsError, LogIndex, LogSink};
use std::sync::{Arc, Mutex, mpsc};

/// A primary whose one entry is acked, and what its leader was told before that.
fn acked(base: Base) -> (Primary, common::Backup, Vec<Call>) {
    let wire = wire(base, PATIENT);
    let settled = Settled {
        settings: wire.primary.settings(),
        round_trip_us: wire.primary.round_trip_us(),
    };
    let mut primary = common::primary(wire.primary, SenderOptions::default());
    assert_eq!(primary.notes.calls()[0], Call::Begins(settled));
    let backup = backup(wire.backup, ReceiverOptions::default());
    primary.sender.append(&entry(base, 0)).unwrap();
    assert!(primary.sender.wait_acked());
    assert_eq!(primary.notes.acked(), Some(nth(base, 1)));
    (primary, backup, vec![Call::Begins(settled)])
}

/// All that a leader was told but for acks, whose number is a matter of time.
fn decisions(notes: &Notes) -> Vec<Call> {
    let mut calls = notes.calls();
    calls.retain(|call| !matches!(call, Call::Heard | Call::Acked(_)));
    calls
}

#[test]
fn a_lost_link_is_undecided_until_the_flag_is_won() {
    from_every_base(|base| {
        let (mut primary, backup, mut expected) = acked(base);
        drop(backup);
        let end = primary.ended.recv_timeout(LIMIT).unwrap();
        assert!(matches!(end, LinkEnd::Lost(_)), "{end}");
        expected.push(Call::Undecided);
        assert_eq!(
            decisions(&primary.notes),
            expected,
            "before the owner is told"
        );
        primary.sender.handle().solo().unwrap();
        expected.extend([Call::Solo, Call::Undisputed]);
        assert_eq!(decisions(&primary.notes), expected);
        assert_eq!(
            primary.sender.append(&entry(base, 1)).unwrap(),
            nth(base, 1)
        );
        let Primary { sender, notes, .. } = primary;
        drop(sender);
        assert_eq!(notes.calls().last(), Some(&Call::Closed));
    });
}

#[test]
fn a_halted_replica_hears_of_no_end_and_is_never_undisputed() {
    from_every_base(|base| {
        let (primary, _backup, mut expected) = acked(base);
        let handle = primary.sender.handle();
        handle.halt();
        expected.push(Call::Halted);
        assert_eq!(decisions(&primary.notes), expected);
        assert!(matches!(primary.ended.try_recv(), Ok(LinkEnd::Left)));
        handle.solo().unwrap();
        expected.push(Call::Solo);
        assert_eq!(decisions(&primary.notes), expected);
    });
}

#[test]
fn a_dropped_sender_closes_and_decides_nothing() {
    from_every_base(|base| {
        let (primary, _backup, mut expected) = acked(base);
        let Primary { sender, notes, .. } = primary;
        let handle = sender.handle();
        drop(sender);
        expected.push(Call::Closed);
        assert_eq!(decisions(&notes), expected);
        // Whoever has won the flag by now does not know yet.
        handle.solo().unwrap();
        expected.push(Call::Solo);
        assert_eq!(decisions(&notes), expected);
    });
}

#[test]
fn whoever_leaves_is_undisputed_before_the_link_ends() {
    from_every_base(|base| {
        let (mut primary, backup, mut expected) = acked(base);
        assert!(primary.sender.bye(Bye::Stop));
        expected.extend([Call::Undisputed, Call::Undecided]);
        assert_eq!(decisions(&primary.notes), expected);
        let end = backup.ended.recv_timeout(LIMIT).unwrap();
        assert!(matches!(end, LinkEnd::Bye(Bye::Stop)), "{end}");
    });
}

/// A leader whose outputs take until the test lets them go, or fail.
struct Slow {
    entered: mpsc::Sender<LogIndex>,
    go: Mutex<mpsc::Receiver<Result<(), InputsError>>>,
}

impl Leader for Slow {
    fn begins(&self, _: Settled) {}

    fn heard(&self, _: u64) {}

    fn acked(&self, upto: LogIndex) -> Result<(), InputsError> {
        self.entered.send(upto).unwrap();
        self.go.lock().unwrap().recv().unwrap()
    }

    fn unprinted(&self) -> Option<LogIndex> {
        None
    }

    fn undecided(&self) {}

    fn solo(&self) -> Result<(), InputsError> {
        Ok(())
    }

    fn undisputed(&self) {}

    fn halted(&self) {}

    fn closed(&self) {}
}

/// Takes acks until one is of all entries below `upto`; that one is not let go.
fn let_go_before(
    upto: LogIndex,
    entered: &mpsc::Receiver<LogIndex>,
    go: &mpsc::Sender<Result<(), InputsError>>,
) {
    while entered.recv_timeout(LIMIT).unwrap() < upto {
        go.send(Ok(())).unwrap();
    }
}

#[test]
fn what_is_held_counts_until_its_outputs_have_left() {
    from_every_base(|base| {
        let wire = wire(base, PATIENT);
        let _backup = backup(wire.backup, ReceiverOptions::default());
        let (tell_entered, entered) = mpsc::channel();
        let (go, gone) = mpsc::channel();
        let leader = Arc::new(Slow {
            entered: tell_entered,
            go: Mutex::new(gone),
        });
        let options = SenderOptions { buffer_max: 1_000 };
        let (tell_end, ended) = mpsc::channel();
        let on_end = move |end| tell_end.send(end).unwrap();
        let mut sender = Sender::start(wire.primary, leader, options, on_end).unwrap();
        let handle = sender.handle();
        let first = sender.append(&entry(base, 3)).unwrap();
        handle.hold_cost(1_000);
        sender.flush().unwrap();
        let_go_before(nth(base, 1), &entered, &go);
        let cursors = handle.cursors();
        assert_eq!((cursors.acked, cursors.released), (nth(base, 1), first));
        let vcpu = std::thread::spawn(move || {
            sender.append(&entry(base, 3)).unwrap();
            sender
        });
        common::until("the vCPU waits for room", || handle.metrics().stalls > 0);
        assert!(!vcpu.is_finished());
        go.send(Ok(())).unwrap();
        let mut sender = vcpu.join().unwrap();
        common::until("they have left", || {
            handle.cursors().released == nth(base, 1)
        });
        sender.flush().unwrap();
        let_go_before(nth(base, 2), &entered, &go);
        go.send(Err(InputsError::Backend("gone".into()))).unwrap();
        let end = ended.recv_timeout(LIMIT).unwrap();
        assert!(
            matches!(&end, LinkEnd::OutletFailed(why) if why == "gone"),
            "{end}"
        );
        assert_eq!(handle.cursors().released, nth(base, 1));
    });
}

#[test]
fn acks_are_told_in_order_each_after_it_was_heard() {
    from_every_base(|base| {
        let options = (SenderOptions::default(), ReceiverOptions::default());
        let (mut primary, _backup) = pair(base, PATIENT, options.0, options.1);
        for n in 0..1_000 {
            primary.sender.append(&entry(base, n)).unwrap();
            primary.sender.flush().unwrap();
        }
        assert!(primary.sender.wait_acked());
        let calls = primary.notes.calls();
        let mut last = base.index;
        for (call, next) in calls.iter().zip(&calls[1..]) {
            if *call == Call::Heard {
                assert!(matches!(next, Call::Acked(_)), "{next:?} after an ack");
            }
            if let Call::Acked(upto) = next {
                assert!(*upto >= last, "{upto} after {last}");
                last = *upto;
            }
        }
        assert_eq!(last, nth(base, 1_000));
    });
}
