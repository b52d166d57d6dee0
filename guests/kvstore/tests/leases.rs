//! Time: what a lock server's clients may rely on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kvstore::{Client, Limits, Server};

const START_MS: u64 = 1_700_000_000_000;

/// A server whose clock stands where `clock` says, at `START_MS` first.
fn server() -> (Server, Client, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(START_MS));
    let asked = Arc::clone(&clock);
    let mut server = Server::new(
        Limits::for_heap(1 << 20),
        1,
        Box::new(move || asked.load(Relaxed)),
    );
    let client = server.connect();
    (server, client, clock)
}

fn ask(server: &mut Server, client: &mut Client, line: &str) -> String {
    let line = format!("{line}\r\n");
    assert_eq!(server.serve(client, line.as_bytes()), line.len());
    let reply = String::from_utf8(client.output().to_vec()).unwrap();
    server.sent(client, reply.len());
    reply
}

#[test]
fn a_lease_is_never_cut_short_by_an_old_tick() {
    let commands = [
        "SET lock me NX PX 100",
        "PSETEX lock 100 me",
        "PEXPIRE lock 100",
    ];
    for command in commands {
        let (mut server, mut client, clock) = server();
        ask(&mut server, &mut client, "SET lock me");
        if command.contains("NX") {
            ask(&mut server, &mut client, "DEL lock");
        }
        // The last tick was 50 ms ago when the lease is granted.
        clock.store(START_MS + 50, Relaxed);
        let granted = ask(&mut server, &mut client, command);
        assert!(["+OK\r\n", ":1\r\n"].contains(&&*granted), "{granted}");
        for (at_ms, held) in [(50, true), (149, true), (150, true), (151, false)] {
            server.set_time(START_MS + at_ms);
            let reply = ask(&mut server, &mut client, "EXISTS lock");
            assert_eq!(
                reply,
                format!(":{}\r\n", u8::from(held)),
                "{command} {at_ms}"
            );
        }
    }
}

#[test]
fn an_ended_lease_is_free_for_exactly_one() {
    let (mut server, mut first, clock) = server();
    let mut second = server.connect();
    let lock = |name: &str| format!("SET lock {name} NX PX 60000");
    assert_eq!(ask(&mut server, &mut first, &lock("first")), "+OK\r\n");
    clock.store(START_MS + 60_000, Relaxed);
    server.set_time(START_MS + 60_000);
    assert_eq!(ask(&mut server, &mut second, &lock("second")), "$-1\r\n");
    clock.store(START_MS + 60_001, Relaxed);
    server.set_time(START_MS + 60_001);
    assert_eq!(ask(&mut server, &mut second, &lock("second")), "+OK\r\n");
    assert_eq!(ask(&mut server, &mut first, &lock("first")), "$-1\r\n");
    assert_eq!(ask(&mut server, &mut first, "GET lock"), "$6\r\nsecond\r\n");
    assert_eq!(ask(&mut server, &mut first, "PTTL lock"), ":60000\r\n");
}

#[test]
fn time_never_steps_back() {
    let (mut server, mut client, clock) = server();
    ask(&mut server, &mut client, "SET lock me PX 100");
    server.set_time(START_MS + 101);
    assert_eq!(ask(&mut server, &mut client, "GET lock"), "$-1\r\n");
    server.set_time(START_MS);
    clock.store(START_MS - 1000, Relaxed);
    assert_eq!(
        ask(&mut server, &mut client, "SET lock me PX 100"),
        "+OK\r\n"
    );
    assert_eq!(ask(&mut server, &mut client, "PTTL lock"), ":100\r\n");
    assert_eq!(server.store().now_ms(), START_MS + 101);
}

#[test]
fn what_has_ended_is_swept_away() {
    let (mut server, mut client, _) = server();
    for key in 0..100 {
        let time = if key < 60 { " PX 100" } else { "" };
        ask(
            &mut server,
            &mut client,
            &format!("SET key{key} value{time}"),
        );
    }
    server.sweep(1000);
    assert_eq!(
        (server.store().len(), server.store().volatile_len()),
        (100, 60)
    );
    server.set_time(START_MS + 101);
    for _ in 0..10 {
        server.sweep(10);
    }
    let store = server.store();
    assert_eq!(
        (store.len(), store.volatile_len(), store.expired()),
        (40, 0, 60)
    );
}
