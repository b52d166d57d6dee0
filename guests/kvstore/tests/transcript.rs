//! Replays `redis.transcript`, which was recorded from Redis itself, and expects every byte of it.
//!
//! ```text
//! > SET a "x y"        a command of these words; "..." may hold spaces and the escapes \r \n \t \" \\ \xHH
//! >> PING\r\n          these bytes, with the same escapes but for \"
//! < +OK                a line of the reply, as it comes, with escapes; `?` stands for any
//! + 300                so many milliseconds pass
//! --                   a new connection
//! ~                    the other one of two connections
//! x                    the server has ended the connection
//! ```
//!
//! The same against a server that runs, be it `kv` or Redis itself:
//! `KVSTORE_SERVER=127.0.0.1:6379 cargo test --manifest-path guests/kvstore/Cargo.toml --test transcript -- --ignored`

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use kvstore::{Client, Limits, Server};

const TRANSCRIPT: &str = include_str!("redis.transcript");
const HEAP: usize = 32 << 20;
/// Some moment in ms since 1970.
const START_MS: u64 = 1_700_000_000_000;
/// How long a live server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a transcript is replayed against.
trait Peer {
    fn connect(&mut self);
    /// Goes on with the other connection.
    fn change(&mut self);
    fn send(&mut self, bytes: &[u8]);
    /// The next line of the reply without its end; `None` at the end of the connection.
    fn line(&mut self) -> Option<Vec<u8>>;
    fn pass(&mut self, time: Duration);
    /// Asserts that nothing more has been answered.
    fn assert_silent(&mut self, line: usize);
}

/// The library itself.
struct Library {
    server: Server,
    client: Client,
    other: Client,
    now_ms: Arc<AtomicU64>,
}

impl Peer for Library {
    fn connect(&mut self) {
        let client = self.server.connect();
        let old = std::mem::replace(&mut self.client, client);
        self.server.disconnect(old);
    }

    fn change(&mut self) {
        std::mem::swap(&mut self.client, &mut self.other);
    }

    fn send(&mut self, bytes: &[u8]) {
        assert_eq!(self.server.serve(&mut self.client, bytes), bytes.len());
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let output = self.client.output();
        let Some(end) = output.windows(2).position(|end| end == b"\r\n") else {
            assert!(
                output.is_empty() && self.client.is_closing(),
                "no whole line: {output:?}"
            );
            return None;
        };
        let line = output[..end].to_vec();
        self.server.sent(&mut self.client, end + 2);
        Some(line)
    }

    fn pass(&mut self, time: Duration) {
        let ms = time.as_millis() as u64;
        let now_ms = self.now_ms.fetch_add(ms, Relaxed) + ms;
        self.server.set_time(now_ms);
    }

    fn assert_silent(&mut self, line: usize) {
        assert_eq!(self.client.output(), b"", "more of a reply, line {line}");
    }
}

/// A server somewhere.
struct Live {
    address: String,
    stream: TcpStream,
    other: TcpStream,
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Peer for Live {
    fn connect(&mut self) {
        self.stream = connect(&self.address);
    }

    fn change(&mut self) {
        std::mem::swap(&mut self.stream, &mut self.other);
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            if self.stream.read(&mut byte).unwrap() == 0 {
                assert_eq!(line, b"", "the connection ended within a line");
                return None;
            }
            line.push(byte[0]);
        }
        line.truncate(line.len() - 2);
        Some(line)
    }

    fn pass(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    /// What comes too much shows up in place of the next reply.
    fn assert_silent(&mut self, _: usize) {}
}

#[test]
fn the_library_answers_as_redis_did() {
    let limits = Limits {
        bulk_bytes_max: 512 * 1024,
        ..Limits::for_heap(HEAP)
    };
    let now_ms = Arc::new(AtomicU64::new(START_MS));
    let clock = Arc::clone(&now_ms);
    let mut server = Server::new(limits, 7, Box::new(move || clock.load(Relaxed)));
    let client = server.connect();
    let other = server.connect();
    replay(&mut Library {
        server,
        client,
        other,
        now_ms,
    });
}

#[test]
#[ignore = "needs a server, and flushes it: KVSTORE_SERVER=address:port"]
fn a_live_server_answers_as_redis_did() {
    let address = std::env::var("KVSTORE_SERVER").expect("KVSTORE_SERVER=address:port is not set");
    let mut live = Live {
        stream: connect(&address),
        other: connect(&address),
        address,
    };
    live.send(b"FLUSHALL\r\n");
    assert_eq!(live.line().as_deref(), Some(&b"+OK"[..]));
    replay(&mut live);
}

fn replay(peer: &mut impl Peer) {
    let mut replies = 0;
    for (number, text) in TRANSCRIPT
        .lines()
        .enumerate()
        .map(|(at, text)| (at + 1, text))
    {
        if let Some(expected) = text.strip_prefix('<') {
            let expected = expected.strip_prefix(' ').unwrap_or(expected);
            let line = peer
                .line()
                .unwrap_or_else(|| panic!("no reply, line {number}"));
            let same = expected == "?" || line == unescape(expected);
            assert!(
                same,
                "line {number}: {:?}, not {expected:?}",
                String::from_utf8_lossy(&line)
            );
            replies += 1;
            continue;
        }
        peer.assert_silent(number);
        if let Some(raw) = text.strip_prefix(">> ") {
            peer.send(&unescape(raw));
        } else if let Some(command) = text.strip_prefix("> ") {
            peer.send(&encode(&words(command)));
        } else if let Some(ms) = text.strip_prefix("+ ") {
            peer.pass(Duration::from_millis(ms.parse().unwrap()));
        } else if text == "--" {
            peer.connect();
        } else if text == "~" {
            peer.change();
        } else if text == "x" {
            assert_eq!(peer.line(), None, "line {number}: still there");
        } else {
            assert!(
                text.is_empty() || text.starts_with('#'),
                "line {number}: {text}"
            );
        }
    }
    assert!(
        replies > 600,
        "only {replies} lines of replies: is the transcript whole?"
    );
}

fn encode(words: &[Vec<u8>]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = (0..quoted.len())
                    .find(|&at| quoted[at..].starts_with('"') && !quoted[..at].ends_with('\\'))
                    .expect("a quote is not closed");
                (&quoted[..end], &quoted[end + 1..])
            }
            None => rest.split_at(rest.find(' ').unwrap_or(rest.len())),
        };
        words.push(unescape(word));
        rest = after.trim_start();
    }
    words
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next().expect("nothing after a backslash") {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'x' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    out
}
