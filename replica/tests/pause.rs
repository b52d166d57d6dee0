//! A primary that is paused (SIGSTOP) while its backup gives it up.

mod common;

use common::primary_before;
use common::wire::{BASES, LIMIT, ack_frame, entry, hello};
use logchannel::framing::{Frame, FrameBuffer};
use logchannel::{LinkEnd, LinkLost, SenderOptions, Settings, answer, offer};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use replay::{InputsError, LogIndex, LogSink, Outlet, Output};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ADDRESS: &str = "TANDEM_TEST_PAUSED_PRIMARY";

/// Long enough that a busy host keeps nobody silent so long.
const SETTINGS: Settings = Settings {
    heartbeat_ms: 10,
    suspect_ms: 1_000,
};

struct Print;
impl Outlet for Print {
    fn emit(&mut self, index: LogIndex, _: Output) -> Result<(), InputsError> {
        println!("emitted {index}");
        Ok(())
    }
}

/// The paused process: not a test of its own, does nothing unless started by the one below.
#[test]
fn paused_primary() {
    let Ok(address) = std::env::var(ADDRESS) else {
        return;
    };
    let socket = TcpStream::connect(address).unwrap();
    let connection = offer(socket, &hello(BASES[0], SETTINGS), LIMIT).unwrap();
    // Nothing is sent before the peer reads the socket itself: the end of the handshake may take more from it.
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let options = SenderOptions::default();
    let mut primary = primary_before(connection, options, Box::new(Print));
    for n in 0..2 {
        let index = primary.sender.append(&entry(BASES[0], n)).unwrap();
        primary
            .outlet()
            .emit(index, Output::Console(vec![0]))
            .unwrap();
        primary.sender.flush().unwrap();
    }
    match primary.ended.recv_timeout(LIMIT).unwrap() {
        LinkEnd::Lost(LinkLost::Silence { .. }) => println!("ended by silence"),
        other => println!("ended otherwise: {other}"),
    }
}

/// Reads what the child sends until it has sent `count` entries and released `released`, and tells it with
/// every read that so many entries have come: it gets signs of life.
fn wait_for(socket: &mut TcpStream, buffer: &mut FrameBuffer, count: u16, released: u64) {
    let (mut got, mut left) = (0, LogIndex(0));
    while got < count || left < LogIndex(released) {
        socket.write_all(&ack_frame(BASES[0], released, 0)).unwrap();
        let read = socket.read(buffer.space()).unwrap();
        assert!(read > 0);
        buffer.filled(read);
        while let Some(frame) = buffer.next().unwrap() {
            match frame {
                Frame::Entries(entries) => got += entries.count,
                Frame::Heartbeat(heartbeat) => left = heartbeat.delivered.released,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The acks it finds on waking are from a backup that may be live by now: it must not act on them.
#[test]
fn acks_found_after_a_pause_release_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "paused_primary", "--nocapture"])
        .env(ADDRESS, listener.local_addr().unwrap().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let mut socket = accepted.try_clone().unwrap();
    let (_connection, _) = answer(accepted, LIMIT, |_| Ok(None)).unwrap();
    let mut may_send = child.stdin.take().unwrap();
    may_send.write_all(b"\n").unwrap();
    let mut buffer = FrameBuffer::new();
    wait_for(&mut socket, &mut buffer, 2, 0);
    socket.write_all(&ack_frame(BASES[0], 1, 0)).unwrap();
    wait_for(&mut socket, &mut buffer, 0, 1);

    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    socket.write_all(&ack_frame(BASES[0], 2, 0)).unwrap();
    // The pause itself is what is tested: it has to last longer than the time to suspicion.
    let pause = Duration::from_millis(u64::from(SETTINGS.suspect_ms) + 50);
    let begun = Instant::now();
    while begun.elapsed() < pause {
        std::thread::sleep(pause - begun.elapsed().min(pause));
    }
    kill(pid, Signal::SIGCONT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("ended by silence"), "{text}");
    let emitted = ["emitted 0", "emitted 1"].map(|line| text.contains(line));
    assert_eq!(emitted, [true, false], "{text}");
}
