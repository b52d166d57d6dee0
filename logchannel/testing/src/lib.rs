//! Pairs over real TCP on loopback, whose logs begin at a boot or in the middle of a run.

#![allow(missing_docs, reason = "the names of these helpers say what they do")]

use logchannel::framing::{Frame, FrameBuffer};
use logchannel::{
    Connection, Hello, Leader, LinkEnd, LinkLost, Receiver, ReceiverOptions, Sender, SenderOptions,
    Settings, Settled, answer, offer,
};
use replay::codec::Encoder;
use replay::{
    Arrival, Base, BaseOrigin, Clock, Event, ExecPoint, Here, InputsError, LogEntry, LogIndex,
    RegisterDigest, ViewNumber,
};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(20);

/// For tests in which nobody is to be suspected, however loaded the machine is.
pub const PATIENT: Settings = Settings {
    heartbeat_ms: 10,
    suspect_ms: 30_000,
};

/// Short times, for tests that wait for suspicion.
pub const QUICK: Settings = Settings {
    heartbeat_ms: 10,
    suspect_ms: 150,
};

/// Where the logs of these tests begin: at a boot, and at a state in the middle of a run, there just before
/// the low half of an index is used up.
pub const BASES: [Base; 2] = [
    Base {
        view: ViewNumber(7),
        index: LogIndex(0),
        clock: Clock(0),
        digest: 0x1234_5678_9abc_def0,
        origin: BaseOrigin::Boot,
    },
    Base {
        view: ViewNumber(8),
        index: LogIndex((1 << 32) - 5),
        clock: Clock(1_000_000_000),
        digest: 0x0fed_cba9_8765_4321,
        origin: BaseOrigin::State,
    },
];

/// Runs `test` with logs from each of [`BASES`].
pub fn from_every_base(test: impl Fn(Base)) {
    BASES.into_iter().for_each(test);
}

thread_local! {
    static SECRET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// [`from_every_base`], and once over TLS: whatever wires `test` makes on this thread are secret then.
pub fn over_every_link(test: impl Fn(Base)) {
    from_every_base(&test);
    SECRET.set(true);
    test(BASES[1]);
    SECRET.set(false);
}

/// Both ends' identities, of a cluster of their own.
pub fn identities() -> [tls::Security; 2] {
    let folder = tempfile::tempdir().unwrap();
    let authority = tls::Authority::create(folder.path(), 2).unwrap();
    ["host-1", "host-2"].map(|name| {
        let member = tls::Member::host(name).unwrap();
        let identity = authority.issue(&member, &["kv".into()], 1, false).unwrap();
        tls::Security::Tls(tls::Tls::open(&identity).unwrap())
    })
}

/// The two ends of a connection: `near` called `far`.
pub fn secured(near: TcpStream, far: TcpStream) -> (tls::Stream, tls::Stream) {
    let of_kv = |peer: &tls::Peer| peer.is_host_of("kv");
    let [a, b] = identities();
    let near = a.call(near, tls::Role::Host, of_kv).unwrap();
    (near, b.answer(far, of_kv).unwrap())
}

/// The index of entry number `n` of a log that begins at `base`.
pub fn nth(base: Base, n: u64) -> LogIndex {
    LogIndex(base.index.0 + n)
}

/// The clock `counts` after `base`.
pub fn clock(base: Base, counts: u64) -> Clock {
    Clock(base.clock.0 + counts)
}

pub fn hello(base: Base, settings: Settings) -> Hello {
    Hello {
        vm: "kv".into(),
        incarnation: "host-1/42".into(),
        base,
        store: *b"where flags are.",
        settings,
        config: b"memory 64".to_vec(),
    }
}

pub fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Both ends after the handshake, and a second handle of either socket.
pub struct Wire {
    pub primary: Connection,
    pub backup: Connection,
    pub primary_socket: TcpStream,
    pub backup_socket: TcpStream,
}

pub fn wire(base: Base, settings: Settings) -> Wire {
    let (near, far) = sockets();
    let (primary_socket, backup_socket) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let (near, far) = if SECRET.get() {
        secured(near, far)
    } else {
        (near.into(), far.into())
    };
    let answering = std::thread::spawn(move || answer(far, LIMIT, |_| Ok(None)).unwrap().0);
    let primary = offer(near, &hello(base, settings), LIMIT).unwrap();
    Wire {
        primary,
        backup: answering.join().unwrap(),
        primary_socket,
        backup_socket,
    }
}

/// What a leader is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Begins(Settled),
    Heard,
    Acked(LogIndex),
    Undecided,
    Solo,
    Undisputed,
    Halted,
    Closed,
}

/// A leader that holds nothing back, and notes what it is told.
#[derive(Default)]
pub struct Notes {
    calls: Mutex<Vec<Call>>,
    /// What is still to be printed.
    pub unprinted: Mutex<Option<LogIndex>>,
}

impl Notes {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    /// All it was told so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The last ack it was told of.
    pub fn acked(&self) -> Option<LogIndex> {
        let calls = self.calls.lock().unwrap();
        calls.iter().rev().find_map(|call| match call {
            Call::Acked(upto) => Some(*upto),
            _ => None,
        })
    }
}

impl Leader for Notes {
    fn begins(&self, settled: Settled) {
        self.note(Call::Begins(settled));
    }

    fn heard(&self, _: u64) {
        self.note(Call::Heard);
    }

    fn acked(&self, upto: LogIndex) -> Result<(), InputsError> {
        self.note(Call::Acked(upto));
        Ok(())
    }

    fn unprinted(&self) -> Option<LogIndex> {
        *self.unprinted.lock().unwrap()
    }

    fn undecided(&self) {
        self.note(Call::Undecided);
    }

    fn solo(&self) -> Result<(), InputsError> {
        self.note(Call::Solo);
        Ok(())
    }

    fn undisputed(&self) {
        self.note(Call::Undisputed);
    }

    fn halted(&self) {
        self.note(Call::Halted);
    }

    fn closed(&self) {
        self.note(Call::Closed);
    }
}

pub struct Primary {
    pub sender: Sender,
    pub ended: mpsc::Receiver<LinkEnd>,
    pub notes: Arc<Notes>,
}

pub fn primary(connection: Connection, options: SenderOptions) -> Primary {
    let (tell_end, ended) = mpsc::channel();
    let on_end = move |end| tell_end.send(end).unwrap();
    let notes = Arc::new(Notes::default());
    Primary {
        sender: Sender::start(connection, notes.clone(), options, on_end).unwrap(),
        ended,
        notes,
    }
}

pub struct Backup {
    pub receiver: Receiver,
    pub ended: mpsc::Receiver<LinkEnd>,
}

pub fn backup(connection: Connection, options: ReceiverOptions) -> Backup {
    let (tell_end, ended) = mpsc::channel();
    let on_end = move |end| tell_end.send(end).unwrap();
    Backup {
        receiver: Receiver::start(connection, options, on_end).unwrap(),
        ended,
    }
}

pub fn pair(
    base: Base,
    settings: Settings,
    sending: SenderOptions,
    receiving: ReceiverOptions,
) -> (Primary, Backup) {
    let wire = wire(base, settings);
    (
        primary(wire.primary, sending),
        backup(wire.backup, receiving),
    )
}

/// Entry number `n` of a log that begins at `base`: all kinds, small and large.
pub fn entry(base: Base, n: u64) -> LogEntry {
    let here = Here {
        point: ExecPoint {
            clock: clock(base, n * 10),
            rip: 0x40_0000 + n * 3,
            rcx: 0,
        },
        registers: RegisterDigest(u32::try_from(n % 1000).unwrap()),
    };
    let event = match n % 5 {
        0 => return LogEntry::progress(here.point.clock),
        1 => Event::Arrival(Arrival::Timer { periods: 1 }),
        2 => Event::Arrival(Arrival::Frame(vec![n.to_le_bytes()[0]; (n % 97) as usize])),
        3 => Event::Output { digest: 77 },
        _ => Event::Arrival(Arrival::DiskDone {
            tag: 1,
            ok: true,
            data: vec![3; (n % 777) as usize],
        }),
    };
    LogEntry::at(&here, event)
}

/// A frame of entries as a primary would send it.
pub fn entries_frame(base: Base, encoder: &mut Encoder, first: u64, count: u16) -> Vec<u8> {
    logchannel::framing::frame(logchannel::framing::FrameKind::Entries, |out| {
        out.extend_from_slice(&nth(base, first).0.to_le_bytes()[..4]);
        out.extend_from_slice(&count.to_le_bytes());
        for n in first..first + u64::from(count) {
            encoder.encode(&entry(base, n), out);
        }
    })
}

/// An ack of so many entries of a log that begins at `base`.
pub fn ack_frame(base: Base, received: u64, executed: u64) -> Vec<u8> {
    ack_answering(base, received, executed, 0)
}

/// The same of a backup that has heard the call `answers` last.
pub fn ack_answering(base: Base, received: u64, executed: u64, answers: u64) -> Vec<u8> {
    logchannel::framing::frame(logchannel::framing::FrameKind::Ack, |out| {
        let (received, executed) = (nth(base, received).0, nth(base, executed).0);
        for value in [received, executed, base.clock.0, answers] {
            out.extend_from_slice(&value.to_le_bytes());
        }
    })
}

/// Waits until `condition` holds, for at most [`LIMIT`].
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// How many entries lie in frames that end at or before byte `at`.
pub fn whole_before(frames: &[Vec<u8>], ends: &[u64], at: usize) -> u64 {
    let mut byte = 0;
    let whole = frames.iter().take_while(|frame| {
        byte += frame.len();
        byte <= at
    });
    ends[whole.count()]
}

pub fn lost(end: LinkEnd) -> LinkLost {
    match end {
        LinkEnd::Lost(lost) => lost,
        other => panic!("not lost: {other}"),
    }
}

/// A backup played by the test: reads frames until it has `count` entries.
pub fn read_entries(socket: &mut TcpStream, buffer: &mut FrameBuffer, count: u64) {
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
