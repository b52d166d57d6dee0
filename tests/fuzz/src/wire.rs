//! What a replica is told by its peer.

use crate::Bytes;
use logchannel::framing::{Frame, FrameBuffer, FrameKind, PAYLOAD_MAX, frame};
use logchannel::{Caller, StateReader};
use replay::codec::{Decoder, Encoder};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

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

/// Takes all frames there are in `bytes`.
fn feed(mut bytes: &[u8]) {
    let mut buffer = FrameBuffer::new();
    while !bytes.is_empty() {
        let space = buffer.space();
        let count = bytes.len().min(space.len());
        assert!(count > 0, "no room for the rest of a frame");
        space[..count].copy_from_slice(&bytes[..count]);
        buffer.filled(count);
        bytes = &bytes[count..];
        loop {
            match buffer.next() {
                Ok(Some(frame)) => look_at(&frame),
                Ok(None) => break,
                Err(error) => {
                    let line = error.to_string();
                    return assert_eq!(line.lines().count(), 1, "{line:?}");
                }
            }
        }
    }
}

/// As whoever gets a frame does.
fn look_at(frame: &Frame<'_>) {
    drop(format!("{frame:?}"));
    if let Frame::Entries(entries) = frame {
        let mut rest = entries.bytes;
        let mut decoder = Decoder::new();
        while !rest.is_empty() && decoder.decode(&mut rest).is_ok() {}
    }
}

/// Frames with sound checksums: of each its kind, its length in two bytes, its payload.
fn sealed(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !bytes.is_empty() {
        let kind = KINDS[usize::from(bytes.u8()) % KINDS.len()];
        let length = usize::from(bytes.u16()).min(PAYLOAD_MAX);
        let payload = bytes.take(length);
        stream.extend(frame(kind, |out| out.extend_from_slice(payload)));
    }
    stream
}

/// Frames of the logging channel: as they come, or with their checksums put right.
pub(crate) fn frames(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    match bytes.u8() % 2 {
        0 => feed(bytes.0),
        _ => feed(&sealed(&mut bytes)),
    }
}

/// Entries of a log. What is decoded is encoded to something that decodes to the same.
pub(crate) fn entries(mut bytes: &[u8]) {
    let mut decoder = Decoder::new();
    let (mut again, mut encoded, mut entries) = (Encoder::new(), Vec::new(), Vec::new());
    while !bytes.is_empty()
        && let Ok(entry) = decoder.decode(&mut bytes)
    {
        again.encode(&entry, &mut encoded);
        entries.push(entry);
    }
    let (mut decoder, mut rest) = (Decoder::new(), &encoded[..]);
    for entry in entries {
        let same = decoder.decode(&mut rest).expect("it was encoded");
        assert_eq!(same, entry);
    }
}

/// A machine's state as a caller hands it over: frames behind its greeting, to the real answerer over a real socket.
pub(crate) fn handover(bytes: &[u8]) {
    const LIMIT: Duration = Duration::from_secs(20);
    let stream = sealed(&mut Bytes(bytes));
    // All of it is in the socket before anybody reads.
    if stream.len() > 60_000 {
        return;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let to = listener.local_addr().expect("its address");
    let mut socket = TcpStream::connect(to).expect("loopback");
    let (answerer, _) = listener.accept().expect("it was connected");
    socket.write_all(&stream).expect("there is room");
    socket.shutdown(Shutdown::Write).expect("it is open");
    let mut caller = Caller::new(answerer, LIMIT).expect("a socket");
    let hello = loop {
        match caller.listen() {
            Ok(Some(hello)) => break hello,
            Ok(None) => std::thread::yield_now(),
            Err(_) => return,
        }
    };
    let restore = |state: &mut StateReader<'_>| {
        let mut taken = 0;
        while state.step().map_err(|e| e.to_string())? {
            taken += state.take().len();
            // One that pretends to be larger than all machines there may be is its owner's, whom nobody protects.
            if taken > 64 << 20 {
                return Err("enough".into());
            }
        }
        state.base().map(drop)
    };
    let _ = caller.answer_running(&hello, LIMIT, |_| Ok(None), restore);
    let _ = socket.read(&mut [0; 4096]);
}
