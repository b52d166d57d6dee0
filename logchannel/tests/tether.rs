//! The tether: a death noticed though the channel stays open, life told though the channel is silent, and no
//! tether at all.

mod common;

use common::{
    BASES, Backup, LIMIT, PATIENT, Primary, QUICK, entry, hello, pair, primary, until, wire,
};
use logchannel::{Bye, LinkEnd, LinkLost, ReceiverOptions, SenderOptions, Settings, Tether};
use replay::LogSink;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

fn start(settings: Settings) -> (Primary, Backup) {
    pair(
        BASES[0],
        settings,
        SenderOptions::default(),
        ReceiverOptions::default(),
    )
}

fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// What the primary has greeted with.
fn name() -> String {
    hello(BASES[0], PATIENT).incarnation
}

fn until_tied((primary, backup): &(Primary, Backup)) {
    let (sender, receiver) = (primary.sender.handle(), backup.receiver.handle());
    until("tied", || sender.is_tied() && receiver.is_tied());
}

/// Ties the pair at a port of its own.
fn tie(pair: &mut (Primary, Backup)) -> SocketAddr {
    let (listener, address) = listen();
    pair.1.receiver.tie(Tether::at(listener, &name())).unwrap();
    pair.0.sender.tie(Tether::to(address, &name())).unwrap();
    until_tied(pair);
    address
}

#[track_caller]
fn closed(end: &Receiver<LinkEnd>) {
    let end = end.recv_timeout(LIMIT).unwrap();
    assert!(matches!(end, LinkEnd::Lost(LinkLost::Closed)), "{end:?}");
}

/// A relay of one connection, as a middlebox: it can be broken without either end doing anything.
fn middlebox(target: SocketAddr) -> (SocketAddr, Receiver<[TcpStream; 2]>) {
    let (listener, address) = listen();
    let (tell, hear) = channel();
    std::thread::spawn(move || {
        let near = listener.accept().unwrap().0;
        let far = TcpStream::connect(target).unwrap();
        tell.send([near.try_clone().unwrap(), far.try_clone().unwrap()])
            .unwrap();
        let (mut from, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let _ = std::io::copy(&mut &near, &mut &far);
    });
    (address, hear)
}

#[test]
fn a_tether_that_ends_ends_the_link_though_its_channel_is_open() {
    let mut pair = start(PATIENT);
    let (listener, address) = listen();
    let (there, wires) = middlebox(address);
    pair.1.receiver.tie(Tether::at(listener, &name())).unwrap();
    pair.0.sender.tie(Tether::to(there, &name())).unwrap();
    until_tied(&pair);
    for socket in wires.recv_timeout(LIMIT).unwrap() {
        match socket.shutdown(Shutdown::Both) {
            // The end of the first went through both replicas already, and came out here.
            Err(e) if e.kind() == ErrorKind::NotConnected => {}
            done => done.unwrap(),
        }
    }
    closed(&pair.1.ended);
    closed(&pair.0.ended);
}

#[test]
fn the_port_is_closed_once_the_pair_is_tied() {
    let mut pair = start(PATIENT);
    let address = tie(&mut pair);
    until("closed", || TcpStream::connect(address).is_err());
    assert!(pair.0.sender.handle().is_linked());
}

#[test]
fn a_stranger_is_no_tether() {
    let mut pair = start(PATIENT);
    let (listener, address) = listen();
    pair.1.receiver.tie(Tether::at(listener, &name())).unwrap();
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.write_all(&[9; 300]).unwrap();
    stranger.set_read_timeout(Some(LIMIT)).unwrap();
    // It is hung up on, and the primary's tether is taken after it.
    let heard = stranger.read(&mut [0]);
    let reset = |e: &std::io::Error| e.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(
        matches!(&heard, Ok(0)) || heard.as_ref().is_err_and(reset),
        "{heard:?}"
    );
    assert!(!pair.1.receiver.handle().is_tied());
    pair.0.sender.tie(Tether::to(address, &name())).unwrap();
    until_tied(&pair);
    assert!(!pair.1.receiver.handle().is_over());
}

#[test]
fn a_pair_whose_tether_cannot_be_made_is_a_pair() {
    let (mut primary, backup) = start(PATIENT);
    let (listener, address) = listen();
    drop(listener);
    primary.sender.tie(Tether::to(address, &name())).unwrap();
    assert!(primary.sender.bye(Bye::Stop));
    let end = backup.ended.recv_timeout(LIMIT).unwrap();
    assert!(matches!(end, LinkEnd::Bye(Bye::Stop)), "{end:?}");
}

#[test]
fn a_goodbye_is_heard_though_the_tether_ends_first() {
    for _ in 0..50 {
        let mut pair = start(PATIENT);
        tie(&mut pair);
        assert!(pair.0.sender.bye(Bye::Stop));
        let end = pair.1.ended.recv_timeout(LIMIT).unwrap();
        assert!(matches!(end, LinkEnd::Bye(Bye::Stop)), "{end:?}");
    }
}

#[test]
fn a_backups_goodbye_is_heard_too() {
    for _ in 0..50 {
        let mut pair = start(PATIENT);
        tie(&mut pair);
        pair.1.receiver.handle().bye(Bye::Stop);
        let end = pair.0.ended.recv_timeout(LIMIT).unwrap();
        assert!(matches!(end, LinkEnd::Bye(Bye::Stop)), "{end:?}");
    }
}

/// The primary is played: it sends entries and beats, and then its tether ends, while its channel stays open.
#[test]
fn what_lies_in_the_channel_is_read_before_the_end() {
    let mut encoder = replay::codec::Encoder::new();
    let frame = common::entries_frame(BASES[0], &mut encoder, 0, 100);
    for _ in 0..50 {
        let wire = wire(BASES[0], PATIENT);
        let mut backup = common::backup(wire.backup, ReceiverOptions::default());
        let (listener, address) = listen();
        backup.receiver.tie(Tether::at(listener, &name())).unwrap();
        let mut tether = TcpStream::connect(address).unwrap();
        let length = u8::try_from(name().len()).unwrap();
        tether.write_all(&[length]).unwrap();
        tether.write_all(name().as_bytes()).unwrap();
        let handle = backup.receiver.handle();
        until("tied", || handle.is_tied());
        (&wire.primary_socket).write_all(&frame).unwrap();
        drop(tether);
        closed(&backup.ended);
        assert_eq!(handle.received().0, 100);
    }
}

/// The primary is played: its tether ends, and then its channel.
#[test]
fn a_tether_of_life_only_ends_no_link() {
    let wire = wire(BASES[0], PATIENT);
    let mut backup = common::backup(wire.backup, ReceiverOptions::default());
    let (listener, address) = listen();
    let tether = Tether::at(listener, &name()).of_life_only();
    backup.receiver.tie(tether).unwrap();
    let mut tether = TcpStream::connect(address).unwrap();
    let length = u8::try_from(name().len()).unwrap();
    tether.write_all(&[length]).unwrap();
    tether.write_all(name().as_bytes()).unwrap();
    let handle = backup.receiver.handle();
    until("tied", || handle.is_tied());
    drop(tether);
    until("untied", || !handle.is_tied());
    let mut encoder = replay::codec::Encoder::new();
    let frame = common::entries_frame(BASES[0], &mut encoder, 0, 1);
    (&wire.primary_socket).write_all(&frame).unwrap();
    until("received", || handle.received().0 == 1);
    assert!(!handle.is_over());
    wire.primary_socket.shutdown(Shutdown::Both).unwrap();
    closed(&backup.ended);
}

/// The backup is played: it beats, and says nothing on the channel.
#[test]
fn a_peer_that_beats_over_a_dead_channel_is_suspected_in_the_end() {
    let wire = wire(BASES[0], QUICK);
    let mut primary = primary(wire.primary, SenderOptions::default());
    primary.sender.append(&entry(BASES[0], 0)).unwrap();
    let (listener, address) = listen();
    primary.sender.tie(Tether::to(address, &name())).unwrap();
    let mut tether = listener.accept().unwrap().0;
    let (tied, beat) = ([1], [2]);
    tether.write_all(&tied).unwrap();
    let end = loop {
        match primary
            .ended
            .recv_timeout(std::time::Duration::from_millis(10))
        {
            Ok(end) => break end,
            Err(_) => tether.write_all(&beat).unwrap(),
        }
    };
    let LinkEnd::Lost(LinkLost::Silence { silence_ms }) = end else {
        panic!("{end:?}");
    };
    assert!(silence_ms >= 150, "{silence_ms}");
    println!("suspected after {silence_ms} ms (set: 150)");
}
