//! Pairs whose ends are far apart: bytes take long, however fast they come one after the other.

mod common;
use common::{BASES, LIMIT, backup, entry, hello, primary};
use logchannel::{
    Connection, HandshakeError, Received, ReceiverOptions, SenderOptions, Settings, answer, offer,
};
use replay::{Clock, LogIndex, LogSink};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Shorter than an answer takes over [`ONE_WAY`].
const SHORT: Settings = Settings {
    heartbeat_ms: 10,
    suspect_ms: 150,
};
const ONE_WAY: Duration = Duration::from_millis(100);

/// Both ends after the handshake, so far apart.
fn shake_hands(
    one_way: Duration,
    settings: Settings,
) -> (
    Result<Connection, HandshakeError>,
    Result<Connection, HandshakeError>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = testing::distance::start(listener.local_addr().unwrap(), one_way);
    let offering = std::thread::spawn(move || {
        let socket = TcpStream::connect(proxy).unwrap();
        offer(socket, &hello(BASES[0], settings), LIMIT)
    });
    let (socket, _) = listener.accept().unwrap();
    let answered = answer(socket, LIMIT, |_| Ok(None)).map(|(connection, _)| connection);
    (offering.join().unwrap(), answered)
}

#[test]
fn a_pair_on_a_long_link_forms_and_is_patient() {
    let (near, far) = shake_hands(ONE_WAY, SHORT);
    let (near, far) = (near.unwrap(), far.unwrap());
    assert!(near.round_trip_us() >= 200_000, "{near:?}");
    assert!(near.settings().suspect_ms >= 800, "{near:?}");
    assert_eq!(near.settings(), far.settings());
    assert_eq!(near.settings().heartbeat_ms, SHORT.heartbeat_ms);

    // It holds for longer than what was wished for, quiet and at work.
    let mut primary = primary(near, SenderOptions::default());
    let mut backup = backup(far, ReceiverOptions::default());
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < 5 * Duration::from_millis(SHORT.suspect_ms.into()) {
        primary.sender.append(&entry(BASES[0], n)).unwrap();
        primary.sender.flush().unwrap();
        let next = backup.receiver.next(true);
        assert_eq!(next, Received::Entry(LogIndex(n), entry(BASES[0], n)));
        backup
            .receiver
            .handle()
            .executed(LogIndex(n + 1), Clock(n * 10));
        assert!(primary.sender.wait_acked());
        assert_eq!(primary.notes.acked(), Some(LogIndex(n + 1)));
        n += 1;
    }
    assert!(primary.ended.try_recv().is_err() && backup.ended.try_recv().is_err());
}

#[test]
fn a_pair_at_hand_keeps_what_was_set() {
    let patient = Settings {
        suspect_ms: 20_000,
        ..SHORT
    };
    let (near, far) = shake_hands(Duration::ZERO, patient);
    assert_eq!(near.unwrap().settings(), patient);
    assert_eq!(far.unwrap().settings(), patient);
}

#[test]
fn a_backup_beyond_all_patience_is_not_taken() {
    for (round_trip_us, suspect_ms) in
        [(0, 150), (37_500, 150), (37_501, 151), (15_000_000, 60_000)]
    {
        let settled = SHORT.over(round_trip_us).unwrap();
        assert_eq!(settled.suspect_ms, suspect_ms, "{round_trip_us} us");
    }
    for round_trip_us in [15_000_001, u32::MAX] {
        let error = SHORT.over(round_trip_us).unwrap_err();
        assert!(matches!(error, HandshakeError::TooFar { .. }), "{error}");
    }
}

#[test]
fn a_primary_that_dies_before_it_settled_leaves_no_machine_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Cut off right behind its greeting: it is welcome, and never settles.
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(proxy.local_addr().unwrap()).unwrap();
    let (mut seen, _) = proxy.accept().unwrap();
    let offering =
        std::thread::spawn(move || offer(near, &hello(BASES[0], SHORT), Duration::from_millis(50)));
    let mut greeting = vec![0; 4096];
    let count = std::io::Read::read(&mut seen, &mut greeting).unwrap();
    offering.join().unwrap().unwrap_err();
    let mut caller = TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut caller, &greeting[..count]).unwrap();
    caller.shutdown(std::net::Shutdown::Write).unwrap();
    let (socket, _) = listener.accept().unwrap();
    let error = answer(socket, LIMIT, |_| Ok(None)).unwrap_err();
    assert!(matches!(error, HandshakeError::Io { .. }), "{error}");
}
