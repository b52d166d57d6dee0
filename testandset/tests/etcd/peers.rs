//! What answers there and is no etcd, or lies.

use crate::{flag, line, refusal, who};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use testandset::{Arbiter, ArbiterError, EtcdArbiter};

/// What a client says of a server that answers every request with `says` and closes.
fn told_by(says: &[u8]) -> ArbiterError {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 8192];
                // Nothing is asked by whoever wants this to end.
                if stream.read(&mut request).unwrap_or(0) == 0 {
                    return;
                }
                // A client may hang up on what it does not want.
                let _ = stream.write_all(says);
            }
        });
        let arbiter = EtcdArbiter::new(&address.to_string()).unwrap();
        let error = arbiter.test_and_set(&flag(1), &who("a")).unwrap_err();
        drop(arbiter);
        drop(TcpStream::connect(address).unwrap());
        serving.join().unwrap();
        error
    })
}

fn reply(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn what_is_no_etcd_is_told_in_one_line() {
    let long = vec![b'x'; 1 << 20];
    for (says, part) in [
        (
            reply("404 Not Found", b"404 page not found"),
            "it has no /v3 (etcd has, since version 3.4, with enable-grpc-gateway)",
        ),
        (reply("200 OK", b"<html>"), "its reply is none"),
        (reply("200 OK", b"{}"), "its reply to a transaction is none"),
        (reply("200 OK", br#"{"header":{}}"#), "its reply is empty"),
        (reply("200 OK", &long), "is no arbiter of this version"),
        (reply("500 Oh", b"\x1b[31m\r\nred\n"), "it says 500 [31m"),
        (reply("301 There", b""), "it says 301"),
        (
            reply("403 No", br#"{"code":7,"message":"no\nno"}"#),
            "may not read and write all keys",
        ),
        (
            reply("400 No", br#"{"code":3,"error":"no\r\nno"}"#),
            "refused: no no",
        ),
        (
            reply(
                "503 No",
                br#"{"code":14,"message":"etcdserver: no leader"}"#,
            ),
            "out of reach: etcdserver: no leader",
        ),
        (
            b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
            "is no HTTP, or was cut off",
        ),
        (b"".to_vec(), "out of reach"),
        (
            reply("200 OK", br#"{"header":{}}"#)[..60].to_vec(),
            "out of reach",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), long.clone()].concat(),
            "",
        ),
    ] {
        let line = line(&told_by(&says));
        assert!(line.contains(part), "{part}: {line}");
        assert!(
            line.len() < 1000 && !line.contains(char::is_control),
            "{line}"
        );
    }
}

#[test]
fn a_store_that_says_nonsense_has_no_verdict() {
    let store = |value: &str| {
        let kvs = format!(
            r#"{{"response_range":{{"kvs":[{{"key":"L3RhbmRlbS9zdG9yZQ==","value":"{value}"}}]}}}}"#
        );
        reply(
            "200 OK",
            format!(r#"{{"header":{{}},"responses":[{kvs}]}}"#).as_bytes(),
        )
    };
    for value in ["", "bm9uZQ==", "/////w==", "!"] {
        let line = line(&told_by(&store(value)));
        assert!(
            line.contains("damaged") || line.contains("no arbiter"),
            "{line}"
        );
    }
}

#[test]
fn a_silent_server_costs_a_bounded_time() {
    // It accepts, by its kernel, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let began = Instant::now();
    let line = refusal(&address);
    let took = began.elapsed();
    println!("{took:?}: {line}");
    assert!(line.contains("no answer within"), "{line}");
    assert!(
        took < Duration::from_secs(20),
        "two seconds and what the host adds: {took:?}"
    );
}

#[test]
fn nobody_there_is_told_with_every_address() {
    let gone = || {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string()
    };
    let (a, b) = (gone(), gone());
    let line = refusal(&format!("{a},{b}"));
    assert!(
        line.contains(&a) && line.contains(&b) && line.contains("refused"),
        "{line}"
    );
    let line = refusal("no-such-host.invalid:1");
    assert!(line.contains("out of reach"), "{line}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_reply_is_an_error_and_no_verdict(body: Vec<u8>, raw: bool) {
        let says = if raw { body } else { reply("200 OK", &body) };
        line(&told_by(&says));
    }
}
