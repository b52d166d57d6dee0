//! Links over real TCP that work: order, acks, outputs, backpressure, orderly ends, handshakes.

mod common;

use common::{LIMIT, PATIENT, backup, entry, hello, pair, primary, sockets, until, wire};
use logchannel::framing::{FrameKind, VERSION, frame};
use logchannel::{
    Bye, Delivered, FrameError, HandshakeError, LinkEnd, Next, ReceiverOptions, SenderOptions,
    Settings, answer, offer,
};
use replay::{Clock, Event, LogEntry, LogIndex, LogSink, Outlet, Output};
use std::io::{Read, Write};
use std::sync::Arc;

fn frame_output(n: u64) -> Output {
    Output::Frame(n.to_le_bytes().to_vec())
}

#[test]
fn entries_arrive_in_order_and_outputs_leave_after_their_ack() {
    const COUNT: u64 = 20_000;
    let options = (SenderOptions::default(), ReceiverOptions::default());
    let (mut primary, mut backup) = pair(PATIENT, options.0, options.1);
    let watched = (primary.sender.handle(), backup.receiver.handle());
    let replaying = std::thread::spawn(move || {
        for n in 0..COUNT {
            if n % 3 == 0 {
                let peeked = backup.receiver.peek();
                assert!(peeked.is_none_or(|(index, e)| index.0 == n && *e == entry(n)));
            }
            assert_eq!(
                backup.receiver.next(true),
                Next::Entry(LogIndex(n), entry(n))
            );
            backup
                .receiver
                .handle()
                .executed(LogIndex(n + 1), Clock(n * 10));
        }
        backup
    });
    let mut outlet = primary.sender.outlet();
    for n in 0..COUNT {
        let index = primary.sender.append(&entry(n)).unwrap();
        assert_eq!(index, LogIndex(n));
        if n % 7 == 0 {
            outlet.emit(index, frame_output(n)).unwrap();
            primary.sender.flush().unwrap();
        }
        watched.0.cursors().verify();
    }
    for n in (0..COUNT).step_by(7) {
        let emitted = primary.emitted.recv_timeout(LIMIT).unwrap();
        assert_eq!(emitted, (LogIndex(n), frame_output(n)));
        assert!(watched.1.received() > LogIndex(n), "invariant 1");
    }
    assert!(primary.sender.wait_acked());
    let mut backup = replaying.join().unwrap();
    assert_eq!(backup.receiver.next(false), Next::Nothing);
    assert!(backup.receiver.peek().is_none());
    until("the released cursor gets to the backup", || {
        watched.1.delivered().released == LogIndex(COUNT)
    });
    assert_eq!(watched.1.lag_us(), 0, "all is executed");
    until("execution is known to the primary", || {
        watched.0.lag().entries == 0
    });
    assert_eq!(watched.0.lag().executed_clock, Clock((COUNT - 1) * 10));
    assert_eq!(watched.0.lag().us, 0);
    let (sent, got) = (watched.0.metrics(), watched.1.metrics());
    assert_eq!((sent.entries, got.entries), (COUNT, COUNT));
    assert_eq!(sent.kinds, got.kinds);
    assert!(primary.ended.try_recv().is_err() && backup.ended.try_recv().is_err());
}

#[test]
fn a_backup_that_executes_nothing_lags_more_and_more() {
    let options = (SenderOptions::default(), ReceiverOptions::default());
    let (mut primary, backup) = pair(PATIENT, options.0, options.1);
    let handle = backup.receiver.handle();
    primary.sender.append(&entry(1)).unwrap();
    primary.sender.flush().unwrap();
    until("it lags", || handle.lag_us() > 3_000);
    handle.executed(LogIndex(1), Clock(10));
    assert_eq!(handle.lag_us(), 0);
}

#[test]
fn without_a_flush_an_entry_stays_so_that_its_output_can_be_held() {
    let (mut primary, _backup) = pair(
        PATIENT,
        SenderOptions::default(),
        ReceiverOptions::default(),
    );
    let handle = primary.sender.handle();
    primary.sender.append(&entry(0)).unwrap();
    let frames = handle.metrics().frames_sent;
    until("heartbeats pass", || {
        handle.metrics().frames_sent > frames + 3
    });
    assert_eq!(handle.cursors().sent, LogIndex(0));
    assert!(primary.sender.wait_acked());
    assert_eq!(handle.cursors().released, LogIndex(1));
}

/// What a console's reader has not got yet is told apart from what was let out, and holds up nothing else.
#[test]
fn the_backup_is_told_what_was_printed() {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    const ALL: u64 = u64::MAX;
    let held = Arc::new(AtomicU64::new(3));
    let asked = held.clone();
    let options = SenderOptions {
        unprinted: Arc::new(move || match asked.load(SeqCst) {
            ALL => None,
            first => Some(LogIndex(first)),
        }),
        ..SenderOptions::default()
    };
    let (mut primary, backup) = pair(PATIENT, options, ReceiverOptions::default());
    let delivered = || backup.receiver.handle().delivered();
    let mut append = |count: u64, from: u64| {
        for n in from..from + count {
            primary.sender.append(&entry(n)).unwrap();
        }
        assert!(primary.sender.wait_acked(), "whatever is printed");
    };
    let is = |released: u64, printed: u64| {
        let wanted = Delivered {
            released: LogIndex(released),
            printed: LogIndex(printed),
        };
        until("the backup was told", || delivered() == wanted);
    };
    append(2, 0);
    is(2, 2);
    append(8, 2);
    is(10, 3);
    held.store(7, SeqCst);
    is(10, 7);
    held.store(ALL, SeqCst);
    is(10, 10);
}

/// Whoever waits for something else after the last ack may find the link gone, and the other side live.
#[test]
fn nobody_says_bye_on_a_link_that_was_lost() {
    let (mut primary, backup) = pair(
        PATIENT,
        SenderOptions::default(),
        ReceiverOptions::default(),
    );
    primary.sender.append(&entry(0)).unwrap();
    assert!(primary.sender.wait_acked());
    drop(backup);
    let end = primary.ended.recv_timeout(LIMIT).unwrap();
    assert!(matches!(end, LinkEnd::Lost(_)), "{end}");
    assert!(!primary.sender.bye(Bye::Stop));
}

#[test]
fn a_full_backup_holds_the_primary_back_and_nobody_is_suspected() {
    const COUNT: u64 = 200_000;
    let sending = SenderOptions {
        buffer_max: 100_000,
        ..SenderOptions::default()
    };
    let receiving = ReceiverOptions {
        buffer_max: 100_000,
    };
    let settings = Settings {
        heartbeat_ms: 5,
        suspect_ms: 700,
    };
    let (mut primary, mut backup) = pair(settings, sending, receiving);
    let (out, back) = (primary.sender.handle(), backup.receiver.handle());
    let sending = std::thread::spawn(move || {
        for n in 0..COUNT {
            primary.sender.append(&entry(n)).unwrap();
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
        out.cursors().appended < LogIndex(COUNT / 2),
        "{:?}",
        out.cursors()
    );
    for n in 0..COUNT {
        assert_eq!(
            backup.receiver.next(true),
            Next::Entry(LogIndex(n), entry(n))
        );
    }
    let primary = sending.join().unwrap();
    assert!(primary.ended.try_recv().is_err());
}

#[test]
fn a_socket_without_room_is_left_to_the_writer() {
    // The backup reads nothing for a while, the primary's buffer is large: flush must not wait.
    let wire = wire(PATIENT);
    let mut primary = primary(wire.primary, SenderOptions::default());
    let handle = primary.sender.handle();
    let mut sent = 0;
    while handle.metrics().socket_full == 0 {
        primary.sender.append(&entry(sent)).unwrap();
        primary.sender.flush().unwrap();
        sent += 1;
    }
    for n in sent..sent + 1000 {
        primary.sender.append(&entry(n)).unwrap();
        primary.sender.flush().unwrap();
    }
    assert!(handle.cursors().sent < handle.cursors().appended);
    let mut backup = backup(wire.backup, ReceiverOptions::default());
    for n in 0..sent + 1000 {
        assert_eq!(
            backup.receiver.next(true),
            Next::Entry(LogIndex(n), entry(n))
        );
    }
    assert!(primary.sender.wait_acked());
}

#[test]
fn power_off_ends_both_and_is_no_failure() {
    let (mut primary, mut backup) = pair(
        PATIENT,
        SenderOptions::default(),
        ReceiverOptions::default(),
    );
    let end = LogEntry::at(&replay::Here::default(), Event::End { code: 3, digest: 9 });
    let index = primary.sender.append(&end).unwrap();
    let power_off = Output::PowerOff { code: 3 };
    primary
        .sender
        .outlet()
        .emit(index, power_off.clone())
        .unwrap();
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
    assert_eq!(backup.receiver.next(true), Next::Entry(index, end));
    assert_eq!(backup.receiver.next(true), Next::Stopped);
}

#[test]
fn a_backup_may_leave() {
    let (primary, backup) = pair(
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
}

#[test]
fn a_stopped_backup_lets_go_of_its_vcpu() {
    let (_primary, mut backup) = pair(
        PATIENT,
        SenderOptions::default(),
        ReceiverOptions::default(),
    );
    let handle = backup.receiver.handle();
    let waiting = std::thread::spawn(move || backup.receiver.next(true));
    handle.stop();
    assert_eq!(waiting.join().unwrap(), Next::Stopped);
}

#[test]
fn a_hello_tells_everything_and_a_refusal_says_why() {
    let (near, far) = sockets();
    let answering = std::thread::spawn(move || {
        answer(far, LIMIT, |hello| Err(format!("no VM {} here", hello.vm)))
    });
    let refused = offer(near, &hello(PATIENT), LIMIT).unwrap_err();
    assert_eq!(refused.to_string(), "the backup refused: no VM kv here");
    let refused = answering.join().unwrap().unwrap_err();
    assert!(matches!(refused, HandshakeError::Refused { reason } if reason == "no VM kv here"));

    let (near, far) = sockets();
    let offering = std::thread::spawn(move || offer(near, &hello(PATIENT), LIMIT).map(|_| ()));
    let (_, got) = answer(far, LIMIT, |_| Ok(None)).unwrap();
    assert_eq!(got, hello(PATIENT));
    offering.join().unwrap().unwrap();
}

#[test]
fn a_welcome_may_come_with_a_remark_of_one_line() {
    let remark = |said: Option<String>| {
        let (near, far) = sockets();
        let answering = std::thread::spawn(move || answer(far, LIMIT, |_| Ok(said)).unwrap());
        let connection = offer(near, &hello(PATIENT), LIMIT).unwrap();
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
    let error = offer(near, &hello(PATIENT), LIMIT).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn two_versions_name_each_other() {
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
    let error = offer(near, &hello(PATIENT), LIMIT).unwrap_err();
    assert!(error.to_string().starts_with(&text), "{error}");
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
    let error = attempt(&common::ack_frame(0, 0));
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
    let (near, _far) = sockets();
    let mut large = hello(PATIENT);
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
        let error = offer(near, &hello(settings), LIMIT).unwrap_err();
        assert!(matches!(error, HandshakeError::Settings { .. }), "{error}");
    }
}

/// What a primary says first.
fn greeting() -> Vec<u8> {
    let (near, mut far) = sockets();
    // It waits for an answer in vain, and only until all is said.
    offer(near, &hello(PATIENT), std::time::Duration::from_millis(50)).unwrap_err();
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn callers_are_listened_to_without_waiting_for_any() {
    use logchannel::Caller;
    let (mut near, far) = sockets();
    let mut caller = Caller::new(far, LIMIT).unwrap();
    let bytes = greeting();
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
    assert_eq!(heard, hello(PATIENT));
    let refused = caller.answer(&heard, LIMIT, |_| Err("no".into()));
    assert!(matches!(refused, Err(HandshakeError::Refused { .. })));
    let mut reply = Vec::new();
    near.read_to_end(&mut reply).unwrap();
    assert!(!reply.is_empty(), "it is told");
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
    use logchannel::Sender;
    use std::sync::mpsc;
    let wire = wire(PATIENT);
    let (tell_end, ended) = mpsc::channel();
    let (let_on, may_go_on) = mpsc::channel::<()>();
    let on_end = move |end: LinkEnd| {
        tell_end.send(end).unwrap();
        // Whoever is told takes his time.
        may_go_on.recv().unwrap();
    };
    let (told, _outputs) = mpsc::channel();
    let outlet = Box::new(common::Told(told));
    let options = SenderOptions::default();
    let mut sender = Sender::start(wire.primary, outlet, options, on_end).unwrap();
    sender.append(&entry(0)).unwrap();
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
}
