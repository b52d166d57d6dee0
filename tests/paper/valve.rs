//! A proxy on the logging channel that lets through as many entries as it is told, and all else at
//! once: greetings, heartbeats and acks. It writes down what acks say. For one pair at a time.

use logchannel::Ack;
use logchannel::framing::{Frame, FrameBuffer, FrameKind, HEADER_LEN, frame};
use logchannel::messages::Heartbeat;
use replay::Clock;
use replay::codec::Decoder;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static STATE: Mutex<State> = Mutex::new(State::new());
static CHANGED: Condvar = Condvar::new();

/// An entry as the primary encoded it.
struct Encoded {
    clock: Clock,
    bytes: Vec<u8>,
}

/// What has passed, what waits, and what came back.
struct State {
    backup: Option<TcpStream>,
    waiting: VecDeque<Encoded>,
    allowed: usize,
    /// Clocks of the entries the backup was given.
    passed: Vec<Clock>,
    /// What the primary last said it released and printed, and its last call.
    released: u64,
    printed: u64,
    call: u64,
    acks: Vec<Ack>,
}

impl State {
    const fn new() -> Self {
        Self {
            backup: None,
            waiting: VecDeque::new(),
            allowed: 0,
            passed: Vec::new(),
            released: 0,
            printed: 0,
            call: 0,
            acks: Vec::new(),
        }
    }

    /// Sends what may pass, an entry a frame.
    fn pump(&mut self) {
        while self.passed.len() < self.allowed
            && let Some(entry) = self.waiting.pop_front()
        {
            let first_low = self.passed.len() as u32;
            let bytes = frame(FrameKind::Entries, |out| {
                out.extend_from_slice(&first_low.to_le_bytes());
                out.extend_from_slice(&1u16.to_le_bytes());
                out.extend_from_slice(&entry.bytes);
            });
            self.passed.push(entry.clock);
            self.send(&bytes);
        }
    }

    /// Says that the primary lives, whatever waits here.
    fn beat(&mut self) {
        let said = [self.released, self.printed, self.call].map(u64::to_le_bytes);
        self.send(&frame(FrameKind::Heartbeat, |out| {
            out.extend(said.as_flattened());
        }));
    }

    fn send(&mut self, bytes: &[u8]) {
        let backup = self.backup.as_mut().expect("connected first");
        // A backup that is gone is noticed by whoever waits for its acks.
        let _ = backup.write_all(bytes);
    }
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a proxy to `target`, closed for entries, and says where it listens.
pub fn start(target: SocketAddr) -> SocketAddr {
    *lock() = State::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (primary, _) = listener.accept().unwrap();
        let backup = TcpStream::connect(target).unwrap();
        primary.set_nodelay(true).unwrap();
        backup.set_nodelay(true).unwrap();
        lock().backup = Some(backup.try_clone().unwrap());
        let back = primary.try_clone().unwrap();
        std::thread::spawn(move || acks(backup, back));
        entries(primary);
    });
    address
}

/// Lets the first `count` entries through, as soon as they are there.
pub fn open_to(count: usize) {
    let mut state = lock();
    state.allowed = count;
    state.pump();
}

/// Entries the primary has sent.
pub fn sent() -> usize {
    let state = lock();
    state.passed.len() + state.waiting.len()
}

/// The clock of the last entry the backup was given; none before the first.
pub fn last_passed() -> Option<Clock> {
    lock().passed.last().copied()
}

/// Waits until `what` holds of the acks so far and the number of entries the primary has sent.
#[track_caller]
pub fn wait(limit: Duration, why: &str, what: impl Fn(&[Ack], usize) -> bool) {
    let deadline = Instant::now() + limit;
    let mut state = lock();
    while !what(&state.acks, state.passed.len() + state.waiting.len()) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(
            !left.is_zero(),
            "{why}: {} acks, the last {:?}, {} entries sent",
            state.acks.len(),
            state.acks.last(),
            state.passed.len() + state.waiting.len()
        );
        state = CHANGED
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

/// The acks so far.
pub fn acks_so_far() -> Vec<Ack> {
    lock().acks.clone()
}

/// One frame, header and all; none at the end of the stream.
fn read_frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; HEADER_LEN];
    from.read_exact(&mut bytes).ok()?;
    let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], 0]);
    bytes.resize(HEADER_LEN + length as usize, 0);
    from.read_exact(&mut bytes[HEADER_LEN..]).ok()?;
    Some(bytes)
}

/// What a frame is, by the library the replicas use too.
fn parse(buffer: &mut FrameBuffer, bytes: &[u8]) -> Parsed {
    buffer.space()[..bytes.len()].copy_from_slice(bytes);
    buffer.filled(bytes.len());
    match buffer.next().expect("a sound frame").expect("a whole one") {
        Frame::Entries(entries) => Parsed::Entries(entries.count, entries.bytes.to_vec()),
        Frame::Ack(ack) => Parsed::Ack(ack),
        Frame::Heartbeat(heartbeat) => Parsed::Heartbeat(heartbeat),
        _ => Parsed::Other,
    }
}

enum Parsed {
    Entries(u16, Vec<u8>),
    Ack(Ack),
    Heartbeat(Heartbeat),
    Other,
}

/// From the primary to the backup.
fn entries(mut primary: TcpStream) {
    let (mut buffer, mut decoder) = (FrameBuffer::new(), Decoder::new());
    while let Some(bytes) = read_frame(&mut primary) {
        let parsed = parse(&mut buffer, &bytes);
        let mut state = lock();
        if let Parsed::Entries(count, encoded) = parsed {
            let mut rest = &encoded[..];
            for _ in 0..count {
                let before = rest;
                let entry = decoder.decode(&mut rest).expect("a sound entry");
                state.waiting.push_back(Encoded {
                    clock: entry.clock,
                    bytes: before[..before.len() - rest.len()].to_vec(),
                });
            }
            state.pump();
            state.beat();
        } else {
            if let Parsed::Heartbeat(heartbeat) = parsed {
                state.released = heartbeat.delivered.released.0;
                state.printed = heartbeat.delivered.printed.0;
                state.call = heartbeat.call;
            }
            state.send(&bytes);
        }
        CHANGED.notify_all();
    }
    if let Some(backup) = &lock().backup {
        let _ = backup.shutdown(Shutdown::Both);
    }
}

/// From the backup to the primary.
fn acks(mut backup: TcpStream, mut primary: TcpStream) {
    let mut buffer = FrameBuffer::new();
    while let Some(bytes) = read_frame(&mut backup) {
        if let Parsed::Ack(ack) = parse(&mut buffer, &bytes) {
            lock().acks.push(ack);
            CHANGED.notify_all();
        }
        if primary.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = primary.shutdown(Shutdown::Both);
}
