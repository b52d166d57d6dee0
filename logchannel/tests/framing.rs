//! Frames: every decoder against arbitrary, cut and changed bytes.

use logchannel::FrameError;
use logchannel::framing::{Frame, FrameBuffer, FrameKind, HEADER_LEN, PAYLOAD_MAX, frame};
use proptest::prelude::*;

/// Feeds `bytes` in pieces of `piece` and describes what comes out, to the first error.
fn cut(bytes: &[u8], piece: usize) -> (Vec<String>, Option<FrameError>, usize) {
    let mut buffer = FrameBuffer::new();
    let mut frames = Vec::new();
    for mut chunk in bytes.chunks(piece) {
        while !chunk.is_empty() {
            let space = buffer.space();
            assert!(!space.is_empty(), "no room for the rest of a frame");
            let count = chunk.len().min(space.len());
            space[..count].copy_from_slice(&chunk[..count]);
            buffer.filled(count);
            chunk = &chunk[count..];
            loop {
                match buffer.next() {
                    Ok(Some(frame)) => frames.push(format!("{frame:?}")),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error), 0),
                }
            }
        }
    }
    (frames, None, buffer.pending())
}

const KINDS: [FrameKind; 13] = [
    FrameKind::Hello,
    FrameKind::HelloReply,
    FrameKind::Entries,
    FrameKind::Ack,
    FrameKind::Heartbeat,
    FrameKind::Bye,
    FrameKind::Probe,
    FrameKind::Settled,
    FrameKind::Base,
    FrameKind::State,
    FrameKind::Welcome,
    FrameKind::Yield,
    FrameKind::Disk,
];

fn sealed(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    frame(kind, |out| out.extend_from_slice(payload))
}

/// A stream of sound frames of entries (whose payload is free but for its head) and acks.
fn stream() -> impl Strategy<Value = (Vec<u8>, usize)> {
    let entries = prop::collection::vec(any::<u8>(), 0..400).prop_map(|body| {
        let mut payload = vec![1, 2, 3, 4, 1, 0];
        payload.extend(body);
        sealed(FrameKind::Entries, &payload)
    });
    let ack = prop::collection::vec(any::<u8>(), 32).prop_map(|p| sealed(FrameKind::Ack, &p));
    prop::collection::vec(prop_oneof![entries, ack], 1..8)
        .prop_map(|frames| (frames.concat(), frames.len()))
}

#[test]
fn the_heartbeat_in_the_documents_is_one() {
    let documents = include_str!("../../docs/LOG_FORMAT.md");
    let kind = format!("`{:02x} ", FrameKind::Heartbeat as u8);
    let (_, example) = documents.split_once(&kind).expect("an example");
    let (rest, _) = example.split_once('`').expect("its end");
    let byte = |text| u8::from_str_radix(text, 16).expect("a byte");
    let rest: Vec<u8> = rest.split(' ').map(byte).collect();
    let bytes = [&[FrameKind::Heartbeat as u8], &rest[..]].concat();
    let mut buffer = FrameBuffer::new();
    buffer.space()[..bytes.len()].copy_from_slice(&bytes);
    buffer.filled(bytes.len());
    let Ok(Some(Frame::Heartbeat(heartbeat))) = buffer.next() else {
        panic!("no heartbeat: {bytes:02x?}")
    };
    let delivered = heartbeat.delivered;
    let says = (delivered.released.0, delivered.printed.0, heartbeat.call);
    assert_eq!(says, (300, 298, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..4096),
        piece in 1usize..64,
    ) {
        cut(&bytes, piece);
    }

    #[test]
    fn arbitrary_payloads_under_a_sound_header_never_panic(
        kind in 0..KINDS.len(),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        greeting in any::<bool>(),
    ) {
        let mut whole = if greeting { b"TANDEMLC\x01\x00".to_vec() } else { Vec::new() };
        whole.extend(payload);
        let (frames, error, _) = cut(&sealed(KINDS[kind], &whole), 4096);
        prop_assert_eq!(frames.len() + usize::from(error.is_some()), 1);
    }

    #[test]
    fn frames_come_out_alike_however_they_are_cut((bytes, count) in stream(), piece in 1usize..500) {
        let whole = cut(&bytes, bytes.len());
        prop_assert_eq!(whole.0.len(), count);
        prop_assert_eq!(whole.1.clone(), None);
        prop_assert_eq!(cut(&bytes, piece), whole);
    }

    #[test]
    fn a_torn_stream_gives_its_whole_frames((bytes, count) in stream(), at in any::<prop::sample::Index>()) {
        let at = at.index(bytes.len());
        let (frames, error, pending) = cut(&bytes[..at], 64);
        prop_assert!(frames.len() < count);
        prop_assert_eq!(error, None);
        prop_assert_eq!(&frames[..], &cut(&bytes, 64).0[..frames.len()]);
        prop_assert!(pending <= at);
    }

    #[test]
    fn no_changed_byte_gets_through(
        (bytes, _) in stream(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let whole = cut(&bytes, 64).0;
        let mut changed = bytes;
        let at = at.index(changed.len());
        changed[at] ^= flip;
        let (frames, _, _) = cut(&changed, 64);
        // Fewer frames come out (a changed length may look like a frame not yet whole), and those that
        // do are true.
        prop_assert!(frames.len() < whole.len());
        prop_assert_eq!(&frames[..], &whole[..frames.len()]);
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_anything_of_it_came() {
    let mut header = [0xff; HEADER_LEN];
    header[0] = FrameKind::Entries as u8;
    let (frames, error, _) = cut(&header, 1);
    assert!(frames.is_empty());
    let expected = FrameError::TooLong {
        length: 0xff_ffff,
        max: PAYLOAD_MAX,
    };
    assert_eq!(error, Some(expected));
}

#[test]
fn frames_of_the_largest_size_pass_one_after_the_other() {
    let mut payload = vec![7; PAYLOAD_MAX];
    payload[4..6].copy_from_slice(&[1, 0]);
    let largest = sealed(FrameKind::Entries, &payload);
    let mut buffer = FrameBuffer::new();
    let mut whole = 0;
    for piece in [&largest[..], &largest[..], &largest[..]]
        .concat()
        .chunks(60_000)
    {
        let space = buffer.space();
        space[..piece.len()].copy_from_slice(piece);
        buffer.filled(piece.len());
        while let Some(frame) = buffer.next().unwrap() {
            assert!(matches!(frame, Frame::Entries(e) if e.bytes.len() == PAYLOAD_MAX - 6));
            whole += 1;
        }
    }
    assert_eq!((whole, buffer.pending()), (3, 0));
}

#[test]
fn the_bytes_on_the_wire_are_these() {
    let bye = sealed(FrameKind::Bye, &[0, 3, 0, 0, 0]);
    assert_eq!(bye[..4], [6, 5, 0, 0]);
    assert_eq!(
        bye[4..8],
        crc32fast::hash(&[6, 5, 0, 0, 0, 3, 0, 0, 0]).to_le_bytes()
    );
    assert_eq!(bye[8..], [0, 3, 0, 0, 0]);
}
