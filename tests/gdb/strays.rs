//! Whoever connects to the port for gdb and is none costs its own connection, not the replay.

use crate::common::{machine, text};
use crate::drive::Gdb;
use crate::{assert_same_end, record_counter};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

#[test]
fn strays_at_gdbs_port_are_hung_up_on_and_the_next_is_served() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let recorded = record_counter(&log, &[]);
    let gdb = Gdb::start(&log);
    let long = [b'x'; 100_000];
    let long_packet = [b"$", &long[..]].concat();
    let strays: [&[u8]; 11] = [
        b"",
        b"hello\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff\xfe\x00\x01",
        b"$#00",
        b"$qSupported#ff",
        b"$p\xff\xff#zz",
        b"$m0,ffffffffffffffff#5e",
        b"$c#63hello",
        b"$vCont;x#00-----",
        &long_packet,
    ];
    for stray in strays {
        let mut socket = TcpStream::connect(gdb.address()).expect("the replay waits");
        // It may hang up before it has read all, which ends the connection for both.
        let sent = socket.write_all(stray);
        if sent.is_ok() {
            let _ = socket.shutdown(Shutdown::Write);
        }
        let _ = socket.read_to_end(&mut Vec::new());
    }
    // As gdb leaves: packet D, checksum 44.
    let mut socket = TcpStream::connect(gdb.address()).expect("the replay still waits");
    socket.write_all(b"$D#44").unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    assert_eq!(String::from_utf8_lossy(&answer), "+$OK#9a");
    let (errors, replayed) = gdb.end();
    assert_same_end(&recorded, &replayed);
    let hung_up = errors.lines().filter(|line| line.contains("hung up on"));
    assert_eq!(hung_up.count(), strays.len(), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn a_taken_port_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record_counter(&log, &[]);
    let output = crate::tandem(&["replay", text(&log), "--gdb", &port]);
    crate::common::assert_one_line(&output, 1, &["gdb", &port]);
}
