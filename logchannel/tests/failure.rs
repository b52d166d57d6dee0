//! Links over real TCP that fail: either end killed at any byte, changed bytes, silence, pauses.

mod common;

use common::{
    Backup, LIMIT, PATIENT, QUICK, Wire, ack_frame, backup, entries_frame, entry, pair, primary,
    until, wire,
};
use logchannel::framing::{Frame, FrameBuffer, FrameKind, frame};
use logchannel::{FrameError, LinkEnd, LinkLost, Next, ReceiverOptions, SenderOptions};
use replay::codec::Encoder;
use replay::{LogIndex, LogSink, Outlet, Output};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

/// Frames of a few entries each, and how many entries there are up to the end of each.
fn stream() -> (Vec<Vec<u8>>, Vec<u64>) {
    let mut encoder = Encoder::new();
    let (mut frames, mut ends) = (Vec::new(), vec![0]);
    for count in [1u16, 4, 3] {
        let first = *ends.last().unwrap();
        frames.push(entries_frame(&mut encoder, first, count));
        ends.push(first + u64::from(count));
    }
    (frames, ends)
}

/// How many entries lie in frames that end at or before byte `at`.
fn whole_before(frames: &[Vec<u8>], ends: &[u64], at: usize) -> u64 {
    let mut byte = 0;
    let whole = frames.iter().take_while(|frame| {
        byte += frame.len();
        byte <= at
    });
    ends[whole.count()]
}

fn lost(end: LinkEnd) -> LinkLost {
    match end {
        LinkEnd::Lost(lost) => lost,
        other => panic!("not lost: {other}"),
    }
}

/// Takes everything after the link ended: entries below `count`, in order, and then drained.
fn drained(backup: &mut Backup, count: u64) {
    let handle = backup.receiver.handle();
    for n in 0..count {
        assert_eq!(
            backup.receiver.next(true),
            Next::Entry(LogIndex(n), entry(n))
        );
    }
    handle.finish();
    assert_eq!(backup.receiver.next(true), Next::Drained);
    assert_eq!(handle.received(), LogIndex(count));
}

/// Sends `bytes` to a fresh backup and closes; says how its link was lost and checks that it has
/// exactly `count` entries.
fn fed(bytes: &[u8], count: u64, reset: bool) -> LinkLost {
    let Wire {
        primary,
        backup: connection,
        mut primary_socket,
        ..
    } = wire(PATIENT);
    let mut backup = backup(connection, ReceiverOptions::default());
    let handle = backup.receiver.handle();
    primary_socket.write_all(bytes).unwrap();
    if reset {
        until("entries arrive", || handle.received() == LogIndex(count));
        let now = Some(std::time::Duration::ZERO);
        socket2::SockRef::from(&primary_socket)
            .set_linger(now)
            .unwrap();
    } else {
        primary_socket.shutdown(Shutdown::Write).unwrap();
    }
    drop((primary, primary_socket));
    let end = backup.ended.recv_timeout(LIMIT).unwrap();
    drained(&mut backup, count);
    lost(end)
}

#[test]
fn a_primary_may_die_at_every_byte() {
    let (frames, ends) = stream();
    let bytes = frames.concat();
    for at in 0..=bytes.len() {
        let count = whole_before(&frames, &ends, at);
        let how = fed(&bytes[..at], count, at % 2 == 1);
        assert!(matches!(how, LinkLost::Closed), "cut at {at}: {how}");
    }
}

/// The queue is full when the link ends: what has come to this host is replayed before going live.
#[test]
fn what_came_before_the_end_is_replayed() {
    // The vCPU may find the queue empty before the reader has put the next entries in: a race.
    (0..20).for_each(|_| finish_with_a_full_queue());
}

fn finish_with_a_full_queue() {
    let Wire {
        primary: _primary,
        backup: connection,
        mut primary_socket,
        backup_socket,
    } = wire(PATIENT);
    let options = ReceiverOptions { buffer_max: 1 };
    let mut backup = backup(connection, options);
    let handle = backup.receiver.handle();
    let mut encoder = Encoder::new();
    // 36 KiB, for which a new connection has room at once.
    let mut written = 0;
    for first in (0..400).step_by(10) {
        let frame = entries_frame(&mut encoder, first, 10);
        primary_socket.write_all(&frame).unwrap();
        written += frame.len();
    }
    until("the reader has no room", || handle.metrics().stalls > 0);
    until("everything has come to this host", || {
        let read = usize::try_from(handle.metrics().bytes_received).unwrap();
        read == written || read + backup_socket.peek(&mut vec![0; written]).unwrap() == written
    });
    handle.finish();
    drained(&mut backup, 400);
}

#[test]
fn no_entry_passes_a_changed_byte() {
    let (frames, ends) = stream();
    let bytes = frames.concat();
    let mut checksums = 0;
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        let how = fed(&changed, whole_before(&frames, &ends, at), false);
        match how {
            LinkLost::Frame(FrameError::Checksum { .. }) => checksums += 1,
            // A length or a kind changed.
            LinkLost::Closed
            | LinkLost::Frame(FrameError::TooLong { .. } | FrameError::UnknownKind { .. }) => {}
            other => panic!("byte {at}: {other}"),
        }
    }
    assert!(
        checksums > bytes.len() - 5 * frames.len(),
        "{checksums} of {}",
        bytes.len()
    );
}

#[test]
fn missing_and_repeated_entries_are_told_apart() {
    let (frames, _) = stream();
    let missing = [&frames[0][..], &frames[2]].concat();
    let how = fed(&missing, 1, false);
    let expected = LogIndex(1);
    assert!(
        matches!(how, LinkLost::Gap { expected: e, found } if e == expected && found.0 == 5),
        "{how}"
    );
    let repeated = [&frames[0][..], &frames[1], &frames[1]].concat();
    let how = fed(&repeated, 5, false);
    assert!(
        matches!(how, LinkLost::Repeat { found, .. } if found == expected),
        "{how}"
    );
}

#[test]
fn sound_frames_with_wrong_content_are_refused() {
    let entries = |count: u16, body: &[u8]| {
        frame(FrameKind::Entries, |out| {
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&count.to_le_bytes());
            out.extend_from_slice(body);
        })
    };
    let how = fed(&entries(1, &[3, 99, 0, 0]), 0, false);
    assert!(matches!(how, LinkLost::Entry(_)), "{how}");
    let how = fed(&entries(u16::MAX, &[]), 0, false);
    assert!(matches!(how, LinkLost::Entry(_)), "{how}");
    let mut one = Vec::new();
    Encoder::new().encode(&entry(0), &mut one);
    let how = fed(&entries(1, &[&one[..], &[0]].concat()), 0, false);
    assert!(
        matches!(how, LinkLost::Frame(FrameError::Malformed { .. })),
        "{how}"
    );
    let how = fed(&ack_frame(0, 0), 0, false);
    assert!(
        matches!(how, LinkLost::OutOfPlace { frame: "ack" }),
        "{how}"
    );
    let beat = |released: u64, printed: u64| {
        frame(FrameKind::Heartbeat, |out| {
            for value in [released, printed, 0] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        })
    };
    // Ahead of what was received or let out, and steps back.
    let cases = [
        ("released", beat(9, 0)),
        ("printed", beat(4, 5)),
        ("released", [beat(4, 4), beat(3, 3)].concat()),
        ("printed", [beat(4, 4), beat(4, 3)].concat()),
    ];
    for (cursor, beats) in cases {
        let how = fed(&[stream().0.concat(), beats].concat(), 8, false);
        assert!(
            matches!(how, LinkLost::Cursor { cursor: which, .. } if which == cursor),
            "{cursor}: {how}"
        );
    }
}

/// A backup played by the test: reads frames until it has `count` entries.
fn read_entries(socket: &mut TcpStream, buffer: &mut FrameBuffer, count: u64) {
    let mut got = 0;
    while got < count {
        let read = socket.read(buffer.space()).unwrap();
        assert!(read > 0, "closed after {got} entries");
        buffer.filled(read);
        while let Some(frame) = buffer.next().unwrap() {
            if let Frame::Entries(entries) = frame {
                got += u64::from(entries.count);
            }
        }
    }
}

#[test]
fn a_backup_may_die_at_every_byte_of_its_acks() {
    let acks = [ack_frame(2, 0), ack_frame(3, 1), ack_frame(6, 6)];
    let ends = [0, 2, 3, 6];
    let bytes = acks.concat();
    for at in 0..=bytes.len() {
        let Wire {
            primary: connection,
            backup,
            mut backup_socket,
            ..
        } = wire(PATIENT);
        let mut primary = primary(connection, SenderOptions::default());
        let handle = primary.sender.handle();
        let mut outlet = primary.sender.outlet();
        for n in 0..8 {
            let index = primary.sender.append(&entry(n)).unwrap();
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
            .map(|(index, _)| index.0)
            .collect();
        assert_eq!(
            emitted,
            (0..acked).collect::<Vec<_>>(),
            "invariant 1, cut at {at}"
        );
        assert_eq!(handle.cursors().released, LogIndex(acked));
        // The flag is won: the rest leaves, in order, and the log goes nowhere.
        assert!(primary.sender.is_followed());
        handle.solo().unwrap();
        let rest: Vec<u64> = primary
            .emitted
            .try_iter()
            .map(|(index, _)| index.0)
            .collect();
        assert_eq!(
            rest,
            (acked..8).collect::<Vec<_>>(),
            "invariant 4, cut at {at}"
        );
        assert_eq!(primary.sender.append(&entry(8)).unwrap(), LogIndex(8));
        primary.sender.flush().unwrap();
        assert!(!primary.sender.is_followed());
        outlet.emit(LogIndex(8), Output::Console(vec![1])).unwrap();
        assert_eq!(primary.emitted.try_recv().unwrap().0, LogIndex(8));
    }
}

#[test]
fn acks_that_cannot_be_are_refused() {
    let cases: [(&str, Vec<u8>); 5] = [
        ("received", ack_frame(9, 0)),
        ("executed", ack_frame(2, 3)),
        ("received", [ack_frame(5, 0), ack_frame(4, 0)].concat()),
        ("executed", [ack_frame(5, 5), ack_frame(5, 4)].concat()),
        (
            "",
            frame(FrameKind::Heartbeat, |out| out.extend_from_slice(&[0; 24])),
        ),
    ];
    for (cursor, bytes) in cases {
        let Wire {
            primary: connection,
            backup: _backup,
            mut backup_socket,
            ..
        } = wire(PATIENT);
        let mut primary = primary(connection, SenderOptions::default());
        for n in 0..8 {
            primary.sender.append(&entry(n)).unwrap();
        }
        primary.sender.flush().unwrap();
        read_entries(&mut backup_socket, &mut FrameBuffer::new(), 8);
        // The first by itself, so that a later one is not coalesced with it.
        for part in bytes.chunks(ack_frame(0, 0).len()) {
            let frames = primary.sender.handle().metrics().frames_received;
            backup_socket.write_all(part).unwrap();
            until("the frame is taken", || {
                primary.sender.handle().metrics().frames_received > frames
            });
        }
        match lost(primary.ended.recv_timeout(LIMIT).unwrap()) {
            LinkLost::Cursor { cursor: which, .. } => assert_eq!(which, cursor),
            LinkLost::OutOfPlace { frame } => assert_eq!((frame, cursor), ("heartbeat", "")),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_silent_backup_is_suspected_and_a_waiting_vcpu_let_go() {
    let Wire {
        primary: connection,
        backup: _silent,
        ..
    } = wire(QUICK);
    let options = SenderOptions {
        buffer_max: 50_000,
        ..SenderOptions::default()
    };
    let mut primary = primary(connection, options);
    let handle = primary.sender.handle();
    let begun = Instant::now();
    let mut outlet = primary.sender.outlet();
    let vcpu = std::thread::spawn(move || {
        let held = primary.sender.append(&entry(0)).unwrap();
        outlet.emit(held, Output::Console(vec![0])).unwrap();
        let last = (1..100_000)
            .map(|n| primary.sender.append(&entry(n)).unwrap())
            .last();
        assert_eq!(last, Some(LogIndex(99_999)));
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
    assert_eq!(primary.emitted.try_recv().unwrap().0, LogIndex(0));
}

#[test]
fn held_outputs_count_against_the_buffer() {
    let Wire {
        primary: connection,
        backup: _silent,
        ..
    } = wire(QUICK);
    let options = SenderOptions {
        buffer_max: 1 << 20,
        ..SenderOptions::default()
    };
    let mut primary = primary(connection, options);
    let handle = primary.sender.handle();
    let mut outlet = primary.sender.outlet();
    let vcpu = std::thread::spawn(move || {
        while let Ok(index) = primary.sender.append(&entry(3)) {
            let frame = Output::Frame(vec![0; 64 << 10]);
            outlet.emit(index, frame).unwrap();
        }
    });
    primary.ended.recv_timeout(LIMIT).unwrap();
    assert_eq!(
        (handle.cursors().appended, handle.held()),
        (LogIndex(16), 16)
    );
    handle.halt();
    vcpu.join().unwrap();
    assert_eq!(handle.held(), 0);
}

#[test]
fn a_silent_primary_is_suspected() {
    let Wire {
        primary: _silent,
        backup: connection,
        mut primary_socket,
        ..
    } = wire(QUICK);
    let mut backup = backup(connection, ReceiverOptions::default());
    let (frames, _) = stream();
    primary_socket.write_all(&frames[0]).unwrap();
    let begun = Instant::now();
    let how = lost(backup.ended.recv_timeout(LIMIT).unwrap());
    assert!(
        matches!(how, LinkLost::Silence { silence_ms } if silence_ms >= 150),
        "{how}"
    );
    println!(
        "a silent primary was suspected after {} ms (set: 150)",
        begun.elapsed().as_millis()
    );
    drained(&mut backup, 1);
}

#[test]
fn nothing_leaves_a_halted_primary() {
    let (mut primary, _backup) = pair(
        PATIENT,
        SenderOptions::default(),
        ReceiverOptions::default(),
    );
    let handle = primary.sender.handle();
    let mut outlet = primary.sender.outlet();
    let index = primary.sender.append(&entry(0)).unwrap();
    outlet.emit(index, Output::Console(vec![0])).unwrap();
    handle.halt();
    assert!(primary.sender.append(&entry(1)).is_err());
    primary.sender.flush().unwrap();
    outlet.emit(LogIndex(1), Output::Console(vec![1])).unwrap();
    let read = Output::DiskRead {
        tag: 1,
        offset: 0,
        len: 512,
    };
    outlet.emit(LogIndex(2), read).unwrap();
    handle.solo().unwrap();
    assert!(primary.sender.append(&entry(1)).is_err(), "halted for ever");
    assert!(primary.emitted.try_recv().is_err());
    assert!(matches!(primary.ended.try_recv(), Ok(LinkEnd::Left)));
}

#[test]
#[should_panic(expected = "a primary with a backup cannot be solo")]
fn a_primary_with_a_backup_cannot_be_solo() {
    let (primary, _backup) = pair(
        PATIENT,
        SenderOptions::default(),
        ReceiverOptions::default(),
    );
    let _ = primary.sender.handle().solo();
}

struct Broken;
impl Outlet for Broken {
    fn emit(&mut self, _: LogIndex, _: Output) -> Result<(), replay::InputsError> {
        Err(replay::InputsError::Backend("no space on disk".into()))
    }
}

#[test]
fn a_failed_outlet_ends_the_link() {
    let wire = wire(PATIENT);
    let _backup = backup(wire.backup, ReceiverOptions::default());
    let (tell, ended) = std::sync::mpsc::channel();
    let on_end = move |end| tell.send(end).unwrap();
    let options = SenderOptions::default();
    let mut sender =
        logchannel::Sender::start(wire.primary, Box::new(Broken), options, on_end).unwrap();
    let index = sender.append(&entry(0)).unwrap();
    sender
        .outlet()
        .emit(index, Output::Console(vec![0]))
        .unwrap();
    assert!(!sender.wait_acked(), "it was not released");
    let end = ended.recv_timeout(LIMIT).unwrap();
    assert!(
        matches!(&end, LinkEnd::OutletFailed(why) if why == "no space on disk"),
        "{end}"
    );
}
