//! Links over real TCP that work: order, acks, outputs, backpressure, orderly ends, handshakes.

mod common;

use common::{
    BASES, LIMIT, PATIENT, backup, clock, entry, from_every_base, hello, nth, over_every_link,
    pair, primary, sockets, until, wire,
};
use logchannel::framing::{FrameKind, VERSION, frame};
use logchannel::{
    Bye, Delivered, FrameError, HandshakeError, LinkEnd, LinkLost, Received, Receiver,
    ReceiverOptions, SenderOptions, Settings, answer, offer,
};
use replay::{Base, BaseOrigin, Clock, Event, LogEntry, LogIndex, LogSink, ViewNumber};
use std::io::{Read, Write};
use std::sync::Arc;

#[test]
fn a_backup_that_executes_nothing_lags_more_and_more() {
    over_every_link(|base| {
        let options = (SenderOptions::default(), ReceiverOptions::default());
        let (mut primary, backup) = pair(base, PATIENT, options.0, options.1);
        let handle = backup.receiver.handle();
        primary.sender.append(&entry(base, 1)).unwrap();
        primary.sender.flush().unwrap();
        until("it lags", || handle.lag_us() > 3_000);
        handle.executed(nth(base, 1), clock(base, 10));
        assert_eq!(handle.lag_us(), 0);
    });
}

#[test]
fn without_a_flush_an_entry_stays_so_that_its_output_can_be_held() {
    over_every_link(|base| {
        let (mut primary, _backup) = pair(
            base,
            PATIENT,
            SenderOptions::default(),
            ReceiverOptions::default(),
        );
        let handle = primary.sender.handle();
        primary.sender.append(&entry(base, 0)).unwrap();
        let frames = handle.metrics().frames_sent;
        until("heartbeats pass", || {
            handle.metrics().frames_sent > frames + 3
        });
        assert_eq!(handle.cursors().sent, nth(base, 0));
        assert!(primary.sender.wait_acked());
        assert_eq!(handle.cursors().released, nth(base, 1));
    });
}

/// What a console's reader has not got yet is told apart from what was let out, and holds up nothing else.
#[test]
fn the_backup_is_told_what_was_printed() {
    over_every_link(|base| {
        let options = (SenderOptions::default(), ReceiverOptions::default());
        let (mut primary, backup) = pair(base, PATIENT, options.0, options.1);
        let notes = primary.notes.clone();
        let hold = |first: Option<u64>| {
            *notes.unprinted.lock().unwrap() = first.map(|first| nth(base, first));
        };
        hold(Some(3));
        let delivered = || backup.receiver.handle().delivered();
        let mut append = |count: u64, from: u64| {
            for n in from..from + count {
                primary.sender.append(&entry(base, n)).unwrap();
            }
            assert!(primary.sender.wait_acked(), "whatever is printed");
        };
        let is = |released: u64, printed: u64| {
            let wanted = Delivered {
                released: nth(base, released),
                printed: nth(base, printed),
            };
            until("the backup was told", || delivered() == wanted);
        };
        append(2, 0);
        is(2, 2);
        append(8, 2);
        is(10, 3);
        hold(Some(7));
        is(10, 7);
        hold(None);
        is(10, 10);
    });
}

/// Whoever waits for something else after the last ack may find the link gone, and the other side live.
#[test]
fn nobody_says_bye_on_a_link_that_was_lost() {
    over_every_link(|base| {
        let (mut primary, backup) = pair(
            base,
            PATIENT,
            SenderOptions::default(),
            ReceiverOptions::default(),
        );
        primary.sender.append(&entry(base, 0)).unwrap();
        assert!(primary.sender.wait_acked());
        drop(backup);
        let end = primary.ended.recv_timeout(LIMIT).unwrap();
        assert!(matches!(end, LinkEnd::Lost(_)), "{end}");
        assert!(!primary.sender.bye(Bye::Stop));
    });
}

#[test]
fn a_full_backup_holds_the_primary_back_and_nobody_is_suspected() {
    over_every_link(|base| {
        const COUNT: u64 = 200_000;
        let sending = SenderOptions {
            buffer_max: 100_000,
        };
        let receiving = ReceiverOptions {
            buffer_max: 100_000,
        };
        let settings = Settings {
            heartbeat_ms: 5,
            suspect_ms: 700,
        };
        let (mut primary, mut backup) = pair(base, settings, sending, receiving);
        let (out, back) = (primary.sender.handle(), backup.receiver.handle());
        let sending = std::thread::spawn(move || {
            for n in 0..COUNT {
                primary.sender.append(&entry(base, n)).unwrap();
            }
            assert!(primary.sender.wait_acked());
            primary
        });
        until("both are full", || {
            out.metrics().stalls > 0 && back.metrics().stalls > 0
        });
        // Over the time to suspicion, counted in acks that served as heartbeats.
        let heard = out.metrics().frames_received;
        until("time passes", || {
            out.metrics().frames_received > heard + 200
        });
        assert!(!back.is_over() && backup.ended.try_recv().is_err());
        assert!(
            out.cursors().appended < nth(base, COUNT / 2),
            "{:?}",
            out.cursors()
        );
        for n in 0..COUNT {
            assert_eq!(
                backup.receiver.next(true),
                Received::Entry(nth(base, n), entry(base, n))
            );
        }
        let primary = sending.join().unwrap();
        assert!(primary.ended.try_recv().is_err());
    });
}

#[test]
fn a_socket_without_room_is_left_to_the_writer() {
    over_every_link(|base| {
        // The backup reads nothing for a while, the primary's buffer is large: flush must not wait.
        let wire = wire(base, PATIENT);
        let mut primary = primary(wire.primary, SenderOptions::default());
        let handle = primary.sender.handle();
        let mut sent = 0;
        while handle.metrics().socket_full == 0 {
            primary.sender.append(&entry(base, sent)).unwrap();
            primary.sender.flush().unwrap();
            sent += 1;
        }
        for n in sent..sent + 1000 {
            primary.sender.append(&entry(base, n)).unwrap();
            primary.sender.flush().unwrap();
        }
        assert!(handle.cursors().sent < handle.cursors().appended);
        let mut backup = backup(wire.backup, ReceiverOptions::default());
        for n in 0..sent + 1000 {
            assert_eq!(
                backup.receiver.next(true),
                Received::Entry(nth(base, n), entry(base, n))
            );
        }
        assert!(primary.sender.wait_acked());
    });
}

#[test]
fn a_backup_may_leave() {
    over_every_link(|base| {
        let (primary, backup) = pair(
            base,
            PATIENT,
            SenderOptions::default(),
            ReceiverOptions::default(),
        );
        backup.receiver.handle().bye(Bye::Stop);
        let told = primary.ended.recv_timeout(LIMIT);
        assert!(matches!(told, Ok(LinkEnd::Bye(Bye::Stop))), "{told:?}");
        assert!(matches!(
            backup.ended.recv_timeout(LIMIT),
            Ok(LinkEnd::Left)
        ));
    });
}

#[test]
fn a_stopped_backup_lets_go_of_its_vcpu() {
    over_every_link(|base| {
        let (_primary, mut backup) = pair(
            base,
            PATIENT,
            SenderOptions::default(),
            ReceiverOptions::default(),
        );
        let handle = backup.receiver.handle();
        let waiting = std::thread::spawn(move || backup.receiver.next(true));
        handle.stop();
        assert_eq!(waiting.join().unwrap(), Received::Stopped);
    });
}

#[test]
fn a_hello_tells_everything_and_a_refusal_says_why() {
    from_every_base(|base| {
        let (near, far) = sockets();
        let answering = std::thread::spawn(move || {
            answer(far, LIMIT, |hello| Err(format!("no VM {} here", hello.vm)))
        });
        let refused = offer(near, &hello(base, PATIENT), LIMIT).unwrap_err();
        assert_eq!(refused.to_string(), "the backup refused: no VM kv here");
        let refused = answering.join().unwrap().unwrap_err();
        assert!(matches!(refused, HandshakeError::Refused { reason } if reason == "no VM kv here"));

        let (near, far) = sockets();
        let offering =
            std::thread::spawn(move || offer(near, &hello(base, PATIENT), LIMIT).map(|_| ()));
        let (_, got) = answer(far, LIMIT, |_| Ok(None)).unwrap();
        assert_eq!(got, hello(base, PATIENT));
        offering.join().unwrap().unwrap();
    });
}

/// A primary may be gone by the time its greeting is over: its backup knows all the same who it was, and hears of
/// the end as of any other.
#[test]
fn a_primary_that_has_gone_by_the_end_of_the_handshake_was_somebody() {
    from_every_base(|base| {
        let (near, far) = sockets();
        let was_at = near.local_addr().unwrap();
        // Closed so, it resets the connection (socket(7), SO_LINGER).
        let resets = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::Linger, &resets).unwrap();
        let witness = far.try_clone().unwrap();
        let offering = std::thread::spawn(move || drop(offer(near, &hello(base, PATIENT), LIMIT)));
        let (connection, _) = answer(far, LIMIT, |_| Ok(None)).unwrap();
        offering.join().unwrap();
        until("it was reset", || witness.peer_addr().is_err());
        assert_eq!(connection.peer(), was_at);
        let (tell, told) = std::sync::mpsc::channel();
        let options = ReceiverOptions::default();
        let on_end = move |end| tell.send(end).unwrap();
        let _receiver = Receiver::start(connection, options, on_end).unwrap();
        let end: LinkEnd = told.recv_timeout(LIMIT).unwrap();
        assert!(matches!(end, LinkEnd::Lost(_)), "{end:?}");
    });
}

#[test]
fn a_welcome_may_come_with_a_remark_of_one_line() {
    from_every_base(|base| {
        let remark = |said: Option<String>| {
            let (near, far) = sockets();
            let answering = std::thread::spawn(move || answer(far, LIMIT, |_| Ok(said)).unwrap());
            let connection = offer(near, &hello(base, PATIENT), LIMIT).unwrap();
            answering.join().unwrap();
            connection.remark().map(str::to_owned)
        };
        assert_eq!(remark(None), None);
        let said = |text: &str| remark(Some(text.into()));
        assert_eq!(said("mind the step").as_deref(), Some("mind the step"));
        // Whatever the peer says stays one line, and writes nothing but text to a terminal.
        let cleaned = said("a\nb\x1b[31mc").unwrap();
        assert_eq!(cleaned, "a\u{fffd}b\u{fffd}[31mc");
        let long = said(&"ä".repeat(4000)).unwrap();
        assert_eq!(long.len(), logchannel::messages::REASON_MAX);
        // And a peer that sends more than it may is no peer.
        let (near, mut far) = sockets();
        let reply = frame(FrameKind::HelloReply, |out| {
            out.extend_from_slice(b"TANDEMLC");
            out.extend_from_slice(&VERSION.to_le_bytes());
            out.push(0);
            out.extend_from_slice(&[b'x'; logchannel::messages::REASON_MAX + 1]);
        });
        far.write_all(&reply).unwrap();
        let error = offer(near, &hello(base, PATIENT), LIMIT).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    });
}

/// What a joiner is told of a link on which its primary says this and is gone, all before the joiner listens.
fn joiner_hears(base: Base, said: &[Vec<u8>]) -> Vec<Result<ViewNumber, LinkEnd>> {
    let wire = wire(base, PATIENT);
    (&wire.primary_socket).write_all(&said.concat()).unwrap();
    let gone = wire.primary_socket.shutdown(std::net::Shutdown::Write);
    gone.unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let tell_welcome = tell.clone();
    let on_end = move |end| tell.send(Err(end)).unwrap();
    let on_welcome = move |view| tell_welcome.send(Ok(view)).unwrap();
    let options = ReceiverOptions::default();
    let receiver = Receiver::start_joiner(wire.backup, options, on_end, on_welcome).unwrap();
    let mut heard = Vec::new();
    loop {
        match told.recv_timeout(LIMIT) {
            Ok(one) => heard.push(one),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("it does not end: {heard:?}"),
        }
    }
    drop(receiver);
    heard
}

#[test]
fn a_joiner_hears_of_its_welcome_before_it_hears_that_its_primary_is_gone() {
    let base = BASES[1];
    let view = base.view.next();
    let welcome = |view: ViewNumber| {
        frame(FrameKind::Welcome, |out| {
            out.extend_from_slice(&view.0.to_le_bytes());
        })
    };
    let heard = joiner_hears(base, &[welcome(view)]);
    assert!(
        matches!(&heard[..], [Ok(told), Err(LinkEnd::Lost(LinkLost::Closed))] if *told == view),
        "{heard:?}"
    );
    let heard = joiner_hears(base, &[]);
    assert!(
        matches!(&heard[..], [Err(LinkEnd::Lost(LinkLost::Closed))]),
        "{heard:?}"
    );
    let out_of_place =
        |end: &Result<_, LinkEnd>| matches!(end, Err(LinkEnd::Lost(LinkLost::OutOfPlace { .. })));
    // It is said once, and of the next view.
    let heard = joiner_hears(base, &[welcome(view), welcome(view)]);
    assert!(
        matches!(&heard[..], [Ok(told), end] if *told == view && out_of_place(end)),
        "{heard:?}"
    );
    let heard = joiner_hears(base, &[welcome(view.next())]);
    assert!(heard.len() == 1 && out_of_place(&heard[0]), "{heard:?}");
    // Whoever follows from the start is a backup already.
    let wire = wire(base, PATIENT);
    let follower = backup(wire.backup, ReceiverOptions::default());
    (&wire.primary_socket).write_all(&welcome(view)).unwrap();
    let end = follower.ended.recv_timeout(LIMIT).unwrap();
    assert!(out_of_place(&Err(end)));
}

#[test]
fn two_versions_name_each_other() {
    from_every_base(|base| {
        let newer = VERSION + 1;
        let greeting = |kind| {
            frame(kind, |out| {
                out.extend_from_slice(b"TANDEMLC");
                out.extend_from_slice(&newer.to_le_bytes());
                out.extend_from_slice(b"something new");
            })
        };
        let (mut near, far) = sockets();
        near.write_all(&greeting(FrameKind::Hello)).unwrap();
        let error = answer(far, LIMIT, |_| Ok(None)).unwrap_err();
        let text = format!(
            "the peer speaks version {newer} of the logging channel, this is version {VERSION}"
        );
        assert!(error.to_string().starts_with(&text), "{error}");
        let mut reply = Vec::new();
        near.read_to_end(&mut reply).unwrap();
        let ours = [&b"TANDEMLC"[..], &VERSION.to_le_bytes()].concat();
        assert_eq!(reply[8..18], ours, "the other side learns ours");

        let (near, mut far) = sockets();
        far.write_all(&greeting(FrameKind::HelloReply)).unwrap();
        let error = offer(near, &hello(base, PATIENT), LIMIT).unwrap_err();
        assert!(error.to_string().starts_with(&text), "{error}");
    });
}

#[test]
fn strangers_are_told_apart() {
    let attempt = |bytes: &[u8]| {
        let (mut near, far) = sockets();
        near.write_all(bytes).unwrap();
        drop(near);
        answer(far, LIMIT, |_| Ok(None)).unwrap_err()
    };
    let stranger = frame(FrameKind::Hello, |out| {
        out.extend_from_slice(b"hello there")
    });
    let error = attempt(&stranger);
    assert!(
        matches!(error, HandshakeError::Frame(FrameError::NotTandem)),
        "{error}"
    );
    let error = attempt(b"GET / HTTP/1.1\r\n\r\n");
    assert!(
        matches!(error, HandshakeError::Frame(FrameError::UnknownKind { .. })),
        "{error}"
    );
    let error = attempt(&common::ack_frame(BASES[0], 0, 0));
    assert!(
        matches!(error, HandshakeError::OutOfPlace { frame: "ack" }),
        "{error}"
    );
    let error = attempt(b"");
    assert!(matches!(error, HandshakeError::Io { .. }), "{error}");

    let (_near, far) = sockets();
    let error = answer(far, std::time::Duration::from_millis(20), |_| Ok(None)).unwrap_err();
    let timed_out = matches!(&error, HandshakeError::Io { source, .. }
        if source.kind() == std::io::ErrorKind::TimedOut);
    assert!(timed_out, "{error}");
}

#[test]
fn what_cannot_work_is_not_offered() {
    from_every_base(|base| {
        let (near, _far) = sockets();
        let mut large = hello(base, PATIENT);
        large.config = vec![0; logchannel::messages::CONFIG_MAX + 1];
        let error = offer(near, &large, LIMIT).unwrap_err();
        assert!(
            matches!(error, HandshakeError::TooLong { length: 65_537, .. }),
            "{error}"
        );
        for (heartbeat_ms, suspect_ms) in [(0, 300), (200, 300), (20, 60_001)] {
            let (near, _far) = sockets();
            let settings = Settings {
                heartbeat_ms,
                suspect_ms,
            };
            let error = offer(near, &hello(base, settings), LIMIT).unwrap_err();
            assert!(matches!(error, HandshakeError::Settings { .. }), "{error}");
        }
    });
}

/// What a primary says first.
fn greeting(base: Base) -> Vec<u8> {
    let (near, mut far) = sockets();
    // It waits for an answer in vain, and only until all is said.
    offer(
        near,
        &hello(base, PATIENT),
        std::time::Duration::from_millis(50),
    )
    .unwrap_err();
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).unwrap();
    bytes
}

/// A greeting with another base in it: view, digest, index, clock, and what it is of.
fn greeting_with(numbers: [u64; 4], origin: u8) -> Vec<u8> {
    /// Where the base is in a greeting: behind magic number, version and settings.
    const PLACE: usize = logchannel::framing::HEADER_LEN + 8 + 2 + 2 * 4;
    let mut bytes = greeting(BASES[1]);
    for (place, number) in (PLACE..).step_by(8).zip(numbers) {
        bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
    }
    bytes[PLACE + 32] = origin;
    logchannel::framing::seal(FrameKind::Hello, &mut bytes);
    bytes
}

#[test]
fn a_base_that_makes_no_sense_is_refused() {
    const BOOT: u8 = 0;
    const STATE: u8 = 1;
    let heard = |bytes: &[u8]| {
        let (mut near, far) = sockets();
        near.write_all(bytes).unwrap();
        drop(near);
        let mut heard = None;
        let refused = answer(far, LIMIT, |hello| {
            heard = Some(hello.base);
            Err("no".into())
        });
        (heard, refused.unwrap_err())
    };
    let (sound, _) = heard(&greeting_with([9, 77, 1_000, 1_000_000_000], STATE));
    let expected = Base {
        view: ViewNumber(9),
        index: LogIndex(1_000),
        clock: Clock(1_000_000_000),
        digest: 77,
        origin: BaseOrigin::State,
    };
    assert_eq!(sound, Some(expected));
    let (sound, _) = heard(&greeting_with([9, 77, 0, 0], BOOT));
    assert_eq!(sound, Some(Base::boot(ViewNumber(9), 77)));

    for (numbers, origin, why) in [
        ([9, 77, 0, 1], BOOT, "a boot after the guest has run"),
        ([9, 77, 1, 0], BOOT, "a boot after entries"),
        ([u64::MAX, 77, 0, 0], BOOT, "a view too large"),
        ([9, 77, u64::MAX, 5], STATE, "an index too large"),
        ([9, 77, 5, u64::MAX], STATE, "a clock too large"),
        ([9, 77, 0, 0], 2, "a base of unknown origin"),
    ] {
        let (heard, error) = heard(&greeting_with(numbers, origin));
        assert_eq!(heard, None, "{why}: nobody is asked");
        assert!(
            matches!(&error, HandshakeError::Frame(FrameError::Malformed { frame: "hello", what })
                if *what == why),
            "{why}: {error}"
        );
    }

    let (near, _far) = sockets();
    let origin = BaseOrigin::Boot;
    let nonsense = Base { origin, ..BASES[1] };
    let error = offer(near, &hello(nonsense, PATIENT), LIMIT).unwrap_err();
    assert!(matches!(error, HandshakeError::Base(_)), "{error}");
}

/// Only files are left before their machine ends.
#[test]
fn the_end_of_a_recording_has_no_place_on_a_link() {
    from_every_base(|base| {
        let (mut primary, mut backup) = pair(
            base,
            PATIENT,
            SenderOptions::default(),
            ReceiverOptions::default(),
        );
        let mut here = replay::Here::default();
        here.point.clock = base.clock;
        let left = LogEntry::at(&here, Event::Left { digest: 1 });
        primary.sender.append(&left).unwrap();
        primary.sender.flush().unwrap();
        let end = backup.ended.recv_timeout(LIMIT).unwrap();
        assert!(end.to_string().contains("the end of a recording"), "{end}");
        backup.receiver.handle().finish();
        assert_eq!(
            backup.receiver.next(true),
            Received::Drained,
            "none was taken"
        );
    });
}

/// A console's reader may be behind by more than the whole log.
#[test]
fn what_was_printed_before_the_log_is_no_concern_of_the_backup() {
    let base = BASES[1];
    let options = (SenderOptions::default(), ReceiverOptions::default());
    let (mut primary, backup) = pair(base, PATIENT, options.0, options.1);
    *primary.notes.unprinted.lock().unwrap() = Some(LogIndex(base.index.0 - 10));
    for n in 0..3 {
        primary.sender.append(&entry(base, n)).unwrap();
    }
    assert!(primary.sender.wait_acked());
    let expected = Delivered {
        released: nth(base, 3),
        printed: base.index,
    };
    until("the backup was told", || {
        backup.receiver.handle().delivered() == expected
    });
}

#[test]
fn callers_are_listened_to_without_waiting_for_any() {
    from_every_base(|base| {
        use logchannel::Caller;
        let (mut near, far) = sockets();
        let mut caller = Caller::new(far, LIMIT).unwrap();
        let bytes = greeting(base);
        let (last, first) = bytes.split_last().unwrap();
        assert!(caller.listen().unwrap().is_none(), "nothing said yet");
        near.write_all(first).unwrap();
        assert!(caller.listen().unwrap().is_none(), "not all of it");
        near.write_all(&[*last]).unwrap();
        let mut heard = None;
        until("the greeting is whole", || {
            heard = caller.listen().unwrap();
            heard.is_some()
        });
        let heard = heard.unwrap();
        assert_eq!(heard, hello(base, PATIENT));
        let refused = caller.answer(&heard, LIMIT, |_| Err("no".into()));
        assert!(matches!(refused, Err(HandshakeError::Refused { .. })));
        let mut reply = Vec::new();
        near.read_to_end(&mut reply).unwrap();
        assert!(!reply.is_empty(), "it is told");
    });
}

#[test]
fn callers_who_are_no_primaries_or_take_too_long_are_errors() {
    use logchannel::Caller;
    let (mut near, far) = sockets();
    let mut caller = Caller::new(far, LIMIT).unwrap();
    near.write_all(b"GET / HTTP/1.0\r\n\r\n and what else a browser says")
        .unwrap();
    let mut error = None;
    until("it is refused", || {
        error = caller.listen().err();
        error.is_some()
    });
    assert!(matches!(error, Some(HandshakeError::Frame(_))), "{error:?}");
    let (_near, far) = sockets();
    let mut caller = Caller::new(far, std::time::Duration::from_millis(5)).unwrap();
    until("its time is over", || caller.listen().is_err());
}

#[test]
fn a_guest_that_ended_is_not_told_of_before_the_lost_link() {
    from_every_base(|base| {
        use logchannel::Sender;
        use std::sync::mpsc;
        let wire = wire(base, PATIENT);
        let (tell_end, ended) = mpsc::channel();
        let (let_on, may_go_on) = mpsc::channel::<()>();
        let on_end = move |end: LinkEnd| {
            tell_end.send(end).unwrap();
            // Whoever is told takes his time.
            may_go_on.recv().unwrap();
        };
        let options = SenderOptions::default();
        let leader = Arc::new(common::Notes::default());
        let mut sender = Sender::start(wire.primary, leader, options, on_end).unwrap();
        sender.append(&entry(base, 0)).unwrap();
        let (tell_left, left) = mpsc::channel();
        let vcpu = std::thread::spawn(move || {
            let said = sender.bye(Bye::Stop);
            tell_left.send(said).unwrap();
            // Dropped here: it waits for the link's threads.
        });
        // The backup acks nothing and is gone.
        drop((wire.backup, wire.backup_socket));
        assert!(matches!(ended.recv().unwrap(), LinkEnd::Lost(_)));
        let early = left.recv_timeout(std::time::Duration::from_millis(300));
        assert_eq!(
            early,
            Err(mpsc::RecvTimeoutError::Timeout),
            "told too early"
        );
        let_on.send(()).unwrap();
        assert!(!left.recv().unwrap(), "the link was lost before");
        vcpu.join().unwrap();
    });
}
