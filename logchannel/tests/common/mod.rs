//! Pairs over real TCP on loopback.

#![allow(dead_code, reason = "no test file uses all of it")]

use logchannel::{
    Connection, Hello, LinkEnd, Receiver, ReceiverOptions, Sender, SenderOptions, Settings,
    ViewNumber, answer, offer,
};
use replay::codec::Encoder;
use replay::{
    Arrival, Clock, Event, ExecPoint, Here, InputsError, LogEntry, LogIndex, Outlet, Output,
    RegisterDigest,
};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
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

pub fn hello(settings: Settings) -> Hello {
    Hello {
        vm: "kv".into(),
        incarnation: "host-1/42".into(),
        view: ViewNumber(7),
        first_digest: 0x1234_5678_9abc_def0,
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

pub fn wire(settings: Settings) -> Wire {
    let (near, far) = sockets();
    let (primary_socket, backup_socket) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let answering = std::thread::spawn(move || answer(far, LIMIT, |_| Ok(None)).unwrap().0);
    let primary = offer(near, &hello(settings), LIMIT).unwrap();
    Wire {
        primary,
        backup: answering.join().unwrap(),
        primary_socket,
        backup_socket,
    }
}

/// Tells a test what came out.
pub struct Told(pub mpsc::Sender<(LogIndex, Output)>);

impl Outlet for Told {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.0
            .send((index, output))
            .map_err(|e| InputsError::Backend(e.to_string()))
    }
}

pub struct Primary {
    pub sender: Sender,
    pub ended: mpsc::Receiver<LinkEnd>,
    pub emitted: mpsc::Receiver<(LogIndex, Output)>,
}

pub fn primary(connection: Connection, options: SenderOptions) -> Primary {
    let (tell_end, ended) = mpsc::channel();
    let (tell_output, emitted) = mpsc::channel();
    let outlet = Box::new(Told(tell_output));
    let on_end = move |end| tell_end.send(end).unwrap();
    Primary {
        sender: Sender::start(connection, outlet, options, on_end).unwrap(),
        ended,
        emitted,
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
    settings: Settings,
    sending: SenderOptions,
    receiving: ReceiverOptions,
) -> (Primary, Backup) {
    let wire = wire(settings);
    (
        primary(wire.primary, sending),
        backup(wire.backup, receiving),
    )
}

/// Entry number `n` of a run: all kinds, small and large.
pub fn entry(n: u64) -> LogEntry {
    let here = Here {
        point: ExecPoint {
            clock: Clock(n * 10),
            rip: 0x40_0000 + n * 3,
            rcx: 0,
        },
        registers: RegisterDigest(u32::try_from(n % 1000).unwrap()),
    };
    let event = match n % 5 {
        0 => return LogEntry::progress(Clock(n * 10)),
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
pub fn entries_frame(encoder: &mut Encoder, first: u64, count: u16) -> Vec<u8> {
    logchannel::framing::frame(logchannel::framing::FrameKind::Entries, |out| {
        out.extend_from_slice(&first.to_le_bytes()[..4]);
        out.extend_from_slice(&count.to_le_bytes());
        for n in first..first + u64::from(count) {
            encoder.encode(&entry(n), out);
        }
    })
}

pub fn ack_frame(received: u64, executed: u64) -> Vec<u8> {
    logchannel::framing::frame(logchannel::framing::FrameKind::Ack, |out| {
        for value in [received, executed, 0, 0] {
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
