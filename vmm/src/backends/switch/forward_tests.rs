use super::super::{Switch, SwitchPort};
use super::*;
use crate::backends::netns::GUEST_ADDRESS;
use crate::backends::station::Station;
use crate::backends::testing::{
    EchoGuest, RunningGuest, exchange, has_again, isolated, threads_and_fds,
};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

const GUEST: Mac = [0x52, 0x54, 0, 0, 0, 2];

/// A guest with two ports on a switch, and a port of this host that leads to it.
struct Fixture {
    forward: Forward,
    guest: RunningGuest,
    _switch: Switch,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new(port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("switch");
        let switch = Switch::start(&path).expect("a switch");
        let mut guest = EchoGuest::new(GUEST, GUEST_ADDRESS);
        for _ in 0..2 {
            let port =
                SwitchPort::connect(&path, &Station::of(GUEST), guest.sink()).expect("a port");
            guest.plug(Box::new(port));
        }
        let listen = "127.0.0.1:0".parse().expect("an address");
        let to = SocketAddrV4::new(GUEST_ADDRESS, port);
        Self {
            forward: Forward::start(&path, listen, to).expect("a forward"),
            guest: guest.run(),
            _switch: switch,
            _folder: folder,
        }
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.forward.local_addr()).expect("it listens");
        let patience = Some(Duration::from_secs(30));
        client.set_read_timeout(patience).expect("a timeout");
        client
    }
}

#[test]
fn relays_both_ways_with_backpressure() {
    let fixture = Fixture::new(EchoGuest::PORT);
    let mut client = fixture.client();
    exchange(&mut client, 2_000_000);
    // Nobody reads what comes back: all buffers on the way fill up, the kernel's too, and nothing is lost.
    let chunk: Vec<u8> = (0..241 * 1000).map(|i| (i % 241) as u8).collect();
    let patience = Some(Duration::from_millis(500));
    client.set_write_timeout(patience).expect("a timeout");
    let mut written = 0;
    while let Ok(count) = client.write(&chunk[written % 241..]) {
        written += count;
        assert!(written < 256 << 20, "writing must be held up");
    }
    client.shutdown(Shutdown::Write).expect("the end");
    let mut received = Vec::new();
    client
        .read_to_end(&mut received)
        .expect("all, then the end");
    assert_eq!(received.len(), written);
    assert!(
        received
            .chunks(chunk.len())
            .all(|part| part == &chunk[..part.len()])
    );
}

#[test]
fn half_close_passes_and_the_rest_still_comes() {
    let fixture = Fixture::new(EchoGuest::PORT);
    for size in [0, 1, 100_000] {
        let mut client = fixture.client();
        let mut writer = client.try_clone().expect("a second handle");
        let writing = std::thread::spawn(move || {
            writer.write_all(&vec![7; size]).expect("sent");
            writer.shutdown(Shutdown::Write).expect("the end");
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).expect("the guest's end");
        writing.join().expect("no panic");
        assert_eq!(received.len(), size);
    }
}

#[test]
fn a_connection_survives_that_its_guest_moves() {
    let fixture = Fixture::new(EchoGuest::PORT);
    let mut clients: Vec<_> = (0..8).map(|_| fixture.client()).collect();
    for client in &mut clients {
        exchange(client, 10_000);
    }
    for round in 0..4 {
        std::thread::scope(|scope| {
            for client in &mut clients {
                scope.spawn(|| exchange(client, 400_000));
            }
            // In the middle of it.
            let before = fixture.guest.heard(0);
            while fixture.guest.heard(0) < before + 50 {
                std::thread::yield_now();
            }
            fixture.guest.go_live(1 - round % 2);
        });
    }
}

#[test]
fn a_guest_silent_for_a_while_costs_little_more_than_that() {
    let fixture = Fixture::new(EchoGuest::PORT);
    let mut client = fixture.client();
    exchange(&mut client, 1000);
    // No port 2: the guest hears nothing.
    fixture.guest.go_live(2);
    client.write_all(b"lost").expect("sent");
    let heard = fixture.guest.heard(1);
    while fixture.guest.heard(1) == heard {
        std::thread::yield_now();
    }
    fixture.guest.go_live(1);
    let back = Instant::now();
    let mut received = [0; 4];
    client.read_exact(&mut received).expect("it was sent again");
    assert_eq!(&received, b"lost");
    let stall = back.elapsed();
    assert!(
        stall < Duration::from_millis(900),
        "{stall:?}: an ordinary stack's second"
    );
}

#[test]
fn resets_pass_both_ways() {
    let fixture = Fixture::new(EchoGuest::RESET_PORT);
    let mut client = fixture.client();
    client.write_all(b"x").expect("sent");
    let error = client.read(&mut [0; 1]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let refused = Fixture::new(9);
    let error = refused
        .client()
        .read(&mut [0; 1])
        .expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    // The guest has room for 36 connections: were those not reset there, this would not end.
    let fixture = Fixture::new(EchoGuest::PORT);
    for _ in 0..150 {
        let mut client = fixture.client();
        client.write_all(b"x").expect("sent");
        client.read_exact(&mut [0; 1]).expect("an echo");
        let at_once = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&client, sockopt::Linger, &at_once).expect("settings");
    }
}

#[test]
fn more_clients_than_connections_wait_their_turn() {
    let fixture = Fixture::new(EchoGuest::PORT);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut client = fixture.client();
                    client.write_all(b"hello").expect("sent");
                    client.shutdown(Shutdown::Write).expect("the end");
                    let mut received = Vec::new();
                    client.read_to_end(&mut received).expect("the guest's end");
                    assert_eq!(received, b"hello");
                }
            });
        }
    });
}

#[test]
fn each_port_leads_to_its_own() {
    let Fixture {
        forward,
        guest: _guest,
        _switch,
        _folder,
    } = Fixture::new(EchoGuest::PORT);
    drop(forward);
    let bound = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners = [bound(), bound(), bound()];
    let at = [0, 1, 2].map(|n: usize| listeners[n].local_addr().expect("its address"));
    // Nobody is at the second one's.
    let to =
        [EchoGuest::PORT, 1, EchoGuest::PORT].map(|port| SocketAddrV4::new(GUEST_ADDRESS, port));
    let both = listeners.into_iter().zip(to).collect();
    let forward = Forward::of(&_folder.path().join("switch"), both).expect("a forward");
    assert_eq!(forward.local_addr(), at[0]);
    let connected = |at: SocketAddr| {
        let client = TcpStream::connect(at).expect("it listens");
        let patience = Some(Duration::from_secs(30));
        client.set_read_timeout(patience).expect("a timeout");
        client
    };
    let mut clients = [at[2], at[0], at[2]].map(connected);
    for client in &mut clients {
        exchange(client, 5000);
    }
    let refused = connected(at[1]).read(&mut [0; 1]);
    assert!(!matches!(refused, Ok(1)), "{refused:?}");
    exchange(&mut clients[1], 5000);
}

#[test]
fn says_what_is_wrong() {
    let fixture = Fixture::new(EchoGuest::PORT);
    let path = fixture._folder.path().join("switch");
    let to = SocketAddrV4::new(GUEST_ADDRESS, 7);
    let taken = Forward::start(&path, fixture.forward.local_addr(), to);
    assert!(matches!(taken, Err(ForwardError::Listen { .. })));
    let any = "127.0.0.1:0".parse().expect("an address");
    let nobody = Forward::start(&path, any, SocketAddrV4::new(GUEST_ADDRESS, 0));
    assert!(matches!(nobody, Err(ForwardError::Guest(_))));
    let nowhere = Forward::start(&path.join("x"), any, to);
    assert!(matches!(nowhere, Err(ForwardError::Link(_))));
}

#[test]
fn leaves_no_thread_and_no_descriptor() {
    isolated(|| {
        let before = threads_and_fds();
        let fixture = Fixture::new(EchoGuest::PORT);
        let mut clients: Vec<_> = (0..10).map(|_| fixture.client()).collect();
        for client in &mut clients {
            exchange(client, 5000);
        }
        drop(fixture);
        for mut client in clients {
            let end = client.read(&mut [0; 1]);
            assert!(end.is_err(), "a reset, since the forward is gone");
        }
        has_again(before);
    });
}
