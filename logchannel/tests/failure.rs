//! Links over real TCP that fail: either end killed at any byte, changed bytes, silence, pauses.

mod common;

use common::{
    BASES, Backup, LIMIT, PATIENT, QUICK, Wire, ack_frame, backup, entries_frame, entry,
    from_every_base, lost, nth, pair, primary, read_entries, until, whole_before, wire,
};
use logchannel::framing::{FrameBuffer, FrameKind, frame};
use logchannel::{FrameError, LinkLost, Received, ReceiverOptions, SenderOptions};
use replay::codec::Encoder;
use replay::{Base, LogSink};
use std::io::Write;
use std::net::Shutdown;
use std::time::Instant;

/// Frames of a few entries each, and how many entries there are up to the end of each.
fn stream(base: Base) -> (Vec<Vec<u8>>, Vec<u64>) {
    let mut encoder = Encoder::at(base.place());
    let (mut frames, mut ends) = (Vec::new(), vec![0]);
    for count in [1u16, 4, 3] {
        let first = *ends.last().unwrap();
        frames.push(entries_frame(base, &mut encoder, first, count));
        ends.push(first + u64::from(count));
    }
    (frames, ends)
}

/// Takes everything after the link ended: entries below `count`, in order, and then drained.
fn drained(base: Base, backup: &mut Backup, count: u64) {
    let handle = backup.receiver.handle();
    for n in 0..count {
        assert_eq!(
            backup.receiver.next(true),
            Received::Entry(nth(base, n), entry(base, n))
        );
    }
    handle.finish();
    assert_eq!(backup.receiver.next(true), Received::Drained);
    assert_eq!(handle.received(), nth(base, count));
}

/// Sends `bytes` to a fresh backup and closes; says how its link was lost and checks that it has
/// exactly `count` entries.
fn fed(base: Base, bytes: &[u8], count: u64, reset: bool) -> LinkLost {
    let Wire {
        primary,
        backup: connection,
        mut primary_socket,
        ..
    } = wire(base, PATIENT);
    let mut backup = backup(connection, ReceiverOptions::default());
    let handle = backup.receiver.handle();
    primary_socket.write_all(bytes).unwrap();
    if reset {
        until("entries arrive", || handle.received() == nth(base, count));
        let now = Some(std::time::Duration::ZERO);
        socket2::SockRef::from(&primary_socket)
            .set_linger(now)
            .unwrap();
    } else {
        primary_socket.shutdown(Shutdown::Write).unwrap();
    }
    drop((primary, primary_socket));
    let end = backup.ended.recv_timeout(LIMIT).unwrap();
    drained(base, &mut backup, count);
    lost(end)
}

#[test]
fn a_primary_may_die_at_every_byte() {
    from_every_base(|base| {
        let (frames, ends) = stream(base);
        let bytes = frames.concat();
        for at in 0..=bytes.len() {
            let count = whole_before(&frames, &ends, at);
            let how = fed(base, &bytes[..at], count, at % 2 == 1);
            assert!(matches!(how, LinkLost::Closed), "cut at {at}: {how}");
        }
    });
}

/// The queue is full when the link ends: what has come to this host is replayed before going live.
#[test]
fn what_came_before_the_end_is_replayed() {
    from_every_base(|base| {
        // The vCPU may find the queue empty before the reader has put the next entries in: a race.
        (0..20).for_each(|_| finish_with_a_full_queue(base));
    });
}

fn finish_with_a_full_queue(base: Base) {
    let Wire {
        primary: _primary,
        backup: connection,
        mut primary_socket,
        backup_socket,
    } = wire(base, PATIENT);
    let options = ReceiverOptions { buffer_max: 1 };
    let mut backup = backup(connection, options);
    let handle = backup.receiver.handle();
    let mut encoder = Encoder::at(base.place());
    // 36 KiB, for which a new connection has room at once.
    let mut written = 0;
    for first in (0..400).step_by(10) {
        let frame = entries_frame(base, &mut encoder, first, 10);
        primary_socket.write_all(&frame).unwrap();
        written += frame.len();
    }
    until("the reader has no room", || handle.metrics().stalls > 0);
    until("everything has come to this host", || {
        let read = usize::try_from(handle.metrics().bytes_received).unwrap();
        read == written || read + backup_socket.peek(&mut vec![0; written]).unwrap() == written
    });
    handle.finish();
    drained(base, &mut backup, 400);
}

#[test]
fn no_entry_passes_a_changed_byte() {
    from_every_base(|base| {
        let (frames, ends) = stream(base);
        let bytes = frames.concat();
        let mut checksums = 0;
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let how = fed(base, &changed, whole_before(&frames, &ends, at), false);
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
    });
}

#[test]
fn missing_and_repeated_entries_are_told_apart() {
    from_every_base(|base| {
        let (frames, _) = stream(base);
        let missing = [&frames[0][..], &frames[2]].concat();
        let how = fed(base, &missing, 1, false);
        let expected = nth(base, 1);
        assert!(
            matches!(how, LinkLost::Gap { expected: e, found } if e == expected && found == nth(base, 5)),
            "{how}"
        );
        let repeated = [&frames[0][..], &frames[1], &frames[1]].concat();
        let how = fed(base, &repeated, 5, false);
        assert!(
            matches!(how, LinkLost::Repeat { found, .. } if found == expected),
            "{how}"
        );
    });
}

#[test]
fn sound_frames_with_wrong_content_are_refused() {
    from_every_base(|base| {
        let entries = |count: u16, body: &[u8]| {
            frame(FrameKind::Entries, |out| {
                out.extend_from_slice(&nth(base, 0).0.to_le_bytes()[..4]);
                out.extend_from_slice(&count.to_le_bytes());
                out.extend_from_slice(body);
            })
        };
        let how = fed(base, &entries(1, &[3, 99, 0, 0]), 0, false);
        assert!(matches!(how, LinkLost::Entry(_)), "{how}");
        let how = fed(base, &entries(u16::MAX, &[]), 0, false);
        assert!(matches!(how, LinkLost::Entry(_)), "{how}");
        let mut one = Vec::new();
        Encoder::at(base.place()).encode(&entry(base, 0), &mut one);
        let how = fed(base, &entries(1, &[&one[..], &[0]].concat()), 0, false);
        assert!(
            matches!(how, LinkLost::Frame(FrameError::Malformed { .. })),
            "{how}"
        );
        let how = fed(base, &ack_frame(base, 0, 0), 0, false);
        assert!(
            matches!(how, LinkLost::OutOfPlace { frame: "ack" }),
            "{how}"
        );
        let beat = |released: u64, printed: u64| {
            frame(FrameKind::Heartbeat, |out| {
                for value in [nth(base, released).0, nth(base, printed).0, 0] {
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
            let how = fed(base, &[stream(base).0.concat(), beats].concat(), 8, false);
            assert!(
                matches!(how, LinkLost::Cursor { cursor: which, .. } if which == cursor),
                "{cursor}: {how}"
            );
        }
    });
}

#[test]
fn acks_that_cannot_be_are_refused() {
    from_every_base(|base| {
        let cases: [(&str, Vec<u8>); 5] = [
            ("received", ack_frame(base, 9, 0)),
            ("executed", ack_frame(base, 2, 3)),
            (
                "received",
                [ack_frame(base, 5, 0), ack_frame(base, 4, 0)].concat(),
            ),
            (
                "executed",
                [ack_frame(base, 5, 5), ack_frame(base, 5, 4)].concat(),
            ),
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
            } = wire(base, PATIENT);
            let mut primary = primary(connection, SenderOptions::default());
            for n in 0..8 {
                primary.sender.append(&entry(base, n)).unwrap();
            }
            primary.sender.flush().unwrap();
            read_entries(&mut backup_socket, &mut FrameBuffer::new(), 8);
            // The first by itself, so that a later one is not coalesced with it.
            for part in bytes.chunks(ack_frame(base, 0, 0).len()) {
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
    });
}

#[test]
fn a_silent_primary_is_suspected() {
    from_every_base(|base| {
        let Wire {
            primary: _silent,
            backup: connection,
            mut primary_socket,
            ..
        } = wire(base, QUICK);
        let mut backup = backup(connection, ReceiverOptions::default());
        let (frames, _) = stream(base);
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
        drained(base, &mut backup, 1);
    });
}

#[test]
#[should_panic(expected = "a primary with a backup cannot be solo")]
fn a_primary_with_a_backup_cannot_be_solo() {
    let (primary, _backup) = pair(
        BASES[0],
        PATIENT,
        SenderOptions::default(),
        ReceiverOptions::default(),
    );
    let _ = primary.sender.handle().solo();
}
