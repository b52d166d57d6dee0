//! The output gate over links of real TCP: order, acks before outputs, ends, either end's death at any byte.

mod common;

use common::wire::{
    LIMIT, PATIENT, QUICK, Wire, ack_frame, backup, clock, entry, from_every_base, lost, nth,
    read_entries, until, whole_before, wire,
};
use common::{pair, primary, primary_before};
use logchannel::framing::FrameBuffer;
use logchannel::{
    Bye, Delivered, Lag, LinkEnd, LinkLost, Received, ReceiverOptions, SenderOptions,
};
use replay::{Base, Event, LogEntry, LogIndex, LogSink, Outlet, Output};
use replica::Lease;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

fn frame_output(n: u64) -> Output {
    Output::Frame(n.to_le_bytes().to_vec())
}

/// What a primary knows of a backup that has executed all there is of a log that begins at `base`: nothing.
fn no_lag(base: Base) -> Lag {
    Lag {
        executed_clock: base.clock,
        ..Lag::default()
    }
}

#[test]
fn entries_arrive_in_order_and_outputs_leave_after_their_ack() {
    from_every_base(|base| {
        const COUNT: u64 = 20_000;
        let options = (SenderOptions::default(), ReceiverOptions::default());
        let (mut primary, mut backup) = pair(base, PATIENT, options.0, options.1);
        let watched = (primary.sender.handle(), backup.receiver.handle());
        assert_eq!(watched.0.lag(), no_lag(base), "whatever the clock says");
        assert_eq!(watched.1.delivered(), Delivered::before(base.index));
        let replaying = std::thread::spawn(move || {
            for n in 0..COUNT {
                if n % 3 == 0 {
                    let peeked = backup.receiver.peek();
                    assert!(
                        peeked
                            .is_none_or(|(index, e)| index == nth(base, n) && *e == entry(base, n))
                    );
                }
                assert_eq!(
                    backup.receiver.next(true),
                    Received::Entry(nth(base, n), entry(base, n))
                );
                backup
                    .receiver
                    .handle()
                    .executed(nth(base, n + 1), clock(base, n * 10));
            }
            backup
        });
        let mut outlet = primary.outlet();
        for n in 0..COUNT {
            let index = primary.sender.append(&entry(base, n)).unwrap();
            assert_eq!(index, nth(base, n));
            if n % 7 == 0 {
                outlet.emit(index, frame_output(n)).unwrap();
                primary.sender.flush().unwrap();
            }
            watched.0.cursors().verify();
        }
        for n in (0..COUNT).step_by(7) {
            let emitted = primary.emitted.recv_timeout(LIMIT).unwrap();
            assert_eq!(emitted, (nth(base, n), frame_output(n)));
            assert!(watched.1.received() > nth(base, n), "invariant 1");
        }
        assert!(primary.sender.wait_acked());
        let mut backup = replaying.join().unwrap();
        assert_eq!(backup.receiver.next(false), Received::Nothing);
        assert!(backup.receiver.peek().is_none());
        until("the released cursor gets to the backup", || {
            watched.1.delivered().released == nth(base, COUNT)
        });
        assert_eq!(watched.1.lag_us(), 0, "all is executed");
        until("execution is known to the primary", || {
            watched.0.lag().entries == 0
        });
        assert_eq!(
            watched.0.lag().executed_clock,
            clock(base, (COUNT - 1) * 10)
        );
        assert_eq!(watched.0.lag().us, 0);
        let (sent, got) = (watched.0.metrics(), watched.1.metrics());
        assert_eq!((sent.entries, got.entries), (COUNT, COUNT));
        assert_eq!(sent.kinds, got.kinds);
        assert!(primary.ended.try_recv().is_err() && backup.ended.try_recv().is_err());
    });
}

#[test]
fn power_off_ends_both_and_is_no_failure() {
    from_every_base(|base| {
        let (mut primary, mut backup) = pair(
            base,
            PATIENT,
            SenderOptions::default(),
            ReceiverOptions::default(),
        );
        let mut here = replay::Here::default();
        here.point.clock = clock(base, 3);
        let end = LogEntry::at(&here, Event::End { code: 3, digest: 9 });
        let index = primary.sender.append(&end).unwrap();
        let power_off = Output::PowerOff { code: 3 };
        primary.outlet().emit(index, power_off.clone()).unwrap();
        assert!(primary.sender.bye(Bye::PowerOff { code: 3 }));
        assert_eq!(primary.emitted.try_recv().unwrap(), (index, power_off));
        assert!(matches!(
            primary.ended.recv_timeout(LIMIT),
            Ok(LinkEnd::Left)
        ));
        let told = backup.ended.recv_timeout(LIMIT);
        assert!(
            matches!(told, Ok(LinkEnd::Bye(Bye::PowerOff { code: 3 }))),
            "{told:?}"
        );
        assert_eq!(backup.receiver.next(true), Received::Entry(index, end));
        assert_eq!(backup.receiver.next(true), Received::Stopped);
    });
}

#[test]
fn a_backup_may_die_at_every_byte_of_its_acks() {
    from_every_base(|base| {
        let acks = [
            ack_frame(base, 2, 0),
            ack_frame(base, 3, 1),
            ack_frame(base, 6, 6),
        ];
        let ends = [0, 2, 3, 6];
        let bytes = acks.concat();
        for at in 0..=bytes.len() {
            let Wire {
                primary: connection,
                backup,
                mut backup_socket,
                ..
            } = wire(base, PATIENT);
            let mut primary = primary(connection, SenderOptions::default());
            let handle = primary.sender.handle();
            let mut outlet = primary.outlet();
            for n in 0..8 {
                let index = primary.sender.append(&entry(base, n)).unwrap();
                outlet.emit(index, Output::Console(vec![0])).unwrap();
                primary.sender.flush().unwrap();
            }
            read_entries(&mut backup_socket, &mut FrameBuffer::new(), 8);
            backup_socket.write_all(&bytes[..at]).unwrap();
            backup_socket.shutdown(Shutdown::Both).unwrap();
            drop(backup);
            let how = lost(primary.ended.recv_timeout(LIMIT).unwrap());
            assert!(matches!(how, LinkLost::Closed), "cut at {at}: {how}");

            let acked = whole_before(&acks, &ends, at);
            let emitted: Vec<u64> = primary
                .emitted
                .try_iter()
                .map(|(index, _)| index.0 - base.index.0)
                .collect();
            assert_eq!(
                emitted,
                (0..acked).collect::<Vec<_>>(),
                "invariant 1, cut at {at}"
            );
            assert_eq!(handle.cursors().released, nth(base, acked));
            // The flag is won: the rest leaves, in order, and the log goes nowhere.
            assert!(primary.sender.is_followed());
            handle.solo().unwrap();
            let rest: Vec<u64> = primary
                .emitted
                .try_iter()
                .map(|(index, _)| index.0 - base.index.0)
                .collect();
            assert_eq!(
                rest,
                (acked..8).collect::<Vec<_>>(),
                "invariant 4, cut at {at}"
            );
            assert_eq!(
                primary.sender.append(&entry(base, 8)).unwrap(),
                nth(base, 8)
            );
            primary.sender.flush().unwrap();
            assert!(!primary.sender.is_followed());
            outlet.emit(nth(base, 8), Output::Console(vec![1])).unwrap();
            assert_eq!(primary.emitted.try_recv().unwrap().0, nth(base, 8));
        }
    });
}

#[test]
fn a_silent_backup_is_suspected_and_a_waiting_vcpu_let_go() {
    from_every_base(|base| {
        let Wire {
            primary: connection,
            backup: _silent,
            ..
        } = wire(base, QUICK);
        let options = SenderOptions { buffer_max: 50_000 };
        let mut primary = primary(connection, options);
        let handle = primary.sender.handle();
        let begun = Instant::now();
        let mut outlet = primary.outlet();
        let vcpu = std::thread::spawn(move || {
            let held = primary.sender.append(&entry(base, 0)).unwrap();
            outlet.emit(held, Output::Console(vec![0])).unwrap();
            let last = (1..100_000)
                .map(|n| primary.sender.append(&entry(base, n)).unwrap())
                .last();
            assert_eq!(last, Some(nth(base, 99_999)));
        });
        let how = lost(primary.ended.recv_timeout(LIMIT).unwrap());
        let elapsed_ms = begun.elapsed().as_millis();
        assert!(
            matches!(how, LinkLost::Silence { silence_ms } if silence_ms >= 150),
            "{how}"
        );
        println!("a silent backup was suspected after {elapsed_ms} ms (set: 150)");
        assert!(handle.metrics().stalls > 0, "the vCPU waited for room");
        assert!(!vcpu.is_finished(), "and now for the flag");
        assert!(primary.emitted.try_recv().is_err(), "invariant 1");
        handle.solo().unwrap();
        vcpu.join().unwrap();
        assert_eq!(primary.emitted.try_recv().unwrap().0, nth(base, 0));
    });
}

#[test]
fn held_outputs_count_against_the_buffer() {
    from_every_base(|base| {
        let Wire {
            primary: connection,
            backup: _silent,
            ..
        } = wire(base, QUICK);
        let options = SenderOptions {
            buffer_max: 1 << 20,
        };
        let mut primary = primary(connection, options);
        let keeper = primary.keeper.clone();
        let handle = primary.sender.handle();
        let mut outlet = primary.outlet();
        let vcpu = std::thread::spawn(move || {
            while let Ok(index) = primary.sender.append(&entry(base, 3)) {
                let frame = Output::Frame(vec![0; 64 << 10]);
                outlet.emit(index, frame).unwrap();
            }
        });
        primary.ended.recv_timeout(LIMIT).unwrap();
        assert_eq!(
            (handle.cursors().appended, keeper.held()),
            (nth(base, 16), 16)
        );
        handle.halt();
        vcpu.join().unwrap();
        assert_eq!(keeper.held(), 0);
    });
}

#[test]
fn nothing_leaves_a_halted_primary() {
    from_every_base(|base| {
        let (mut primary, _backup) = pair(
            base,
            PATIENT,
            SenderOptions::default(),
            ReceiverOptions::default(),
        );
        let handle = primary.sender.handle();
        let mut outlet = primary.outlet();
        let index = primary.sender.append(&entry(base, 0)).unwrap();
        outlet.emit(index, Output::Console(vec![0])).unwrap();
        handle.halt();
        assert!(primary.sender.append(&entry(base, 1)).is_err());
        primary.sender.flush().unwrap();
        outlet.emit(nth(base, 1), Output::Console(vec![1])).unwrap();
        let read = Output::DiskRead {
            tag: 1,
            offset: 0,
            len: 512,
        };
        outlet.emit(nth(base, 2), read).unwrap();
        handle.solo().unwrap();
        assert!(
            primary.sender.append(&entry(base, 1)).is_err(),
            "halted for ever"
        );
        assert!(primary.emitted.try_recv().is_err());
        assert!(matches!(primary.ended.try_recv(), Ok(LinkEnd::Left)));
    });
}

struct Broken;
impl Outlet for Broken {
    fn emit(&mut self, _: LogIndex, _: Output) -> Result<(), replay::InputsError> {
        Err(replay::InputsError::Backend("no space on disk".into()))
    }
}

#[test]
fn a_failed_outlet_ends_the_link() {
    from_every_base(|base| {
        let wire = wire(base, PATIENT);
        let _backup = backup(wire.backup, ReceiverOptions::default());
        let options = SenderOptions::default();
        let mut primary = primary_before(wire.primary, options, Box::new(Broken));
        let index = primary.sender.append(&entry(base, 0)).unwrap();
        primary
            .outlet()
            .emit(index, Output::Console(vec![0]))
            .unwrap();
        assert!(!primary.sender.wait_acked(), "it was not released");
        let end = primary.ended.recv_timeout(LIMIT).unwrap();
        assert!(
            matches!(&end, LinkEnd::OutletFailed(why) if why == "no space on disk"),
            "{end}"
        );
    });
}

/// Whether something may be written, once that is decided.
fn asked(lease: &Arc<Lease>) -> JoinHandle<bool> {
    let lease = lease.clone();
    std::thread::spawn(move || lease.wait())
}

#[test]
fn the_lease_of_a_lost_link_is_the_flags_winners() {
    from_every_base(|base| {
        for wins in [true, false] {
            let options = (SenderOptions::default(), ReceiverOptions::default());
            let (mut primary, backup) = pair(base, PATIENT, options.0, options.1);
            primary.sender.append(&entry(base, 0)).unwrap();
            assert!(primary.sender.wait_acked());
            assert!(primary.lease.wait(), "linked");
            drop(backup);
            lost(primary.ended.recv_timeout(LIMIT).unwrap());
            let writer = asked(&primary.lease);
            let handle = primary.sender.handle();
            if wins {
                handle.solo().unwrap();
            } else {
                handle.halt();
            }
            assert_eq!(writer.join().unwrap(), wins);
            drop(primary.sender);
            assert_eq!(primary.lease.wait(), wins, "for ever");
        }
    });
}

#[test]
fn a_halted_primary_writes_nothing_though_its_link_was_up() {
    from_every_base(|base| {
        let options = (SenderOptions::default(), ReceiverOptions::default());
        let (primary, _backup) = pair(base, PATIENT, options.0, options.1);
        let handle = primary.sender.handle();
        handle.halt();
        assert!(!primary.lease.wait());
        handle.solo().unwrap();
        assert!(!primary.lease.wait());
    });
}

#[test]
fn what_was_let_out_before_a_goodbye_may_be_written_after_it() {
    from_every_base(|base| {
        let options = (SenderOptions::default(), ReceiverOptions::default());
        let (mut primary, _backup) = pair(base, PATIENT, options.0, options.1);
        primary.sender.append(&entry(base, 0)).unwrap();
        assert!(primary.sender.bye(Bye::Stop));
        assert!(primary.lease.wait());
        drop(primary.sender);
        assert!(primary.lease.wait());
    });
}

/// The vCPU's thread drops its sender when the guest could not go on. The control thread may win the flag
/// before it hears of that.
#[test]
fn nothing_leaves_once_the_sender_is_dropped() {
    from_every_base(|base| {
        let options = (SenderOptions::default(), ReceiverOptions::default());
        let (mut primary, _backup) = pair(base, PATIENT, options.0, options.1);
        let handle = primary.sender.handle();
        let mut outlet = primary.outlet();
        let index = primary.sender.append(&entry(base, 0)).unwrap();
        outlet.emit(index, Output::Console(vec![0])).unwrap();
        drop(primary.sender);
        assert_eq!(primary.keeper.held(), 0);
        handle.solo().unwrap();
        outlet.emit(nth(base, 1), Output::Console(vec![1])).unwrap();
        assert!(primary.emitted.try_recv().is_err());
    });
}
