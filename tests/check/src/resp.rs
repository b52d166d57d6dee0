//! A small RESP2 client: the protocol of Redis, over one TCP connection that stays open.
//!
//! ```text
//! request   *<n>\r\n  then n times  $<len>\r\n<bytes>\r\n
//! reply     +text\r\n | -error\r\n | :int\r\n | $<len>\r\n<bytes>\r\n | $-1\r\n | *<n>\r\n <n replies>
//! ```
//!
//! A reply is scanned first, as far as it has come, and built only once it is whole: no length
//! the peer sends sizes an allocation.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Most bytes of one bulk string.
pub const MAX_BULK: usize = 1 << 20;
/// Most bytes of one whole reply.
pub const MAX_REPLY: usize = 4 << 20;
/// Most bytes of a line (a simple string, an error, a length).
const MAX_LINE: usize = 4096;
/// Deepest nesting of arrays.
const MAX_DEPTH: usize = 4;
/// Bytes asked of the socket at a time.
const READ_CHUNK: usize = 16 << 10;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RespError {
    /// No connection could be made.
    #[error("cannot connect to {addr}: {source}")]
    Connect {
        /// Whom we called.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket failed.
    #[error("cannot {op} the connection: {source}")]
    Io {
        /// What was being done.
        op: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer closed the connection.
    #[error("the server closed the connection with {missing} replies outstanding")]
    Closed {
        /// Replies still owed.
        missing: usize,
    },
    /// No whole reply within the limit.
    #[error("no reply within {limit_ms} ms")]
    TimedOut {
        /// The limit.
        limit_ms: u128,
    },
    /// Bytes that are no reply.
    #[error("not a RESP2 reply: {what}")]
    Protocol {
        /// What is wrong with them.
        what: &'static str,
    },
    /// A reply larger than we take.
    #[error("the {what} of a reply is larger than {max}")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// The bound.
        max: usize,
    },
}

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Simple(String),
    /// `-ERR ...`, without the dash.
    Error(String),
    /// `:n`.
    Int(i64),
    /// A bulk string; `None` is nil.
    Bulk(Option<Vec<u8>>),
    /// An array; `None` is nil.
    Array(Option<Vec<Reply>>),
}

/// A whole reply at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Its length in bytes.
    pub len: usize,
    /// Whether it is an error reply.
    pub error: bool,
}

/// Appends the request `args` to `out`.
pub fn encode(out: &mut Vec<u8>, args: &[&[u8]]) {
    // Writing to a `Vec` cannot fail.
    let _ = write!(out, "*{}\r\n", args.len());
    for arg in args {
        let _ = write!(out, "${}\r\n", arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether `buf` starts with a whole reply; `None` if more bytes must come.
///
/// # Errors
/// [`RespError::Protocol`] or [`RespError::TooLarge`] if it can never become one.
pub fn scan(buf: &[u8]) -> Result<Option<Scanned>, RespError> {
    match scan_at(buf, 0, 0)? {
        Some(len) => Ok(Some(Scanned {
            len,
            error: buf[0] == b'-',
        })),
        None if buf.len() >= MAX_REPLY => Err(RespError::TooLarge {
            what: "length",
            max: MAX_REPLY,
        }),
        None => Ok(None),
    }
}

/// The first reply in `buf` and its length; `None` if more bytes must come.
///
/// # Errors
/// As [`scan`].
pub fn parse(buf: &[u8]) -> Result<Option<(Reply, usize)>, RespError> {
    match scan(buf)? {
        Some(scanned) => build(buf).map(|(reply, _)| Some((reply, scanned.len))),
        None => Ok(None),
    }
}

/// The line starting at `at`, without its end, and where the next begins.
fn line(buf: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, RespError> {
    let rest = buf.get(at..).unwrap_or_default();
    let window = &rest[..rest.len().min(MAX_LINE)];
    match window.iter().position(|&b| b == b'\n') {
        Some(end) if end > 0 && window[end - 1] == b'\r' => {
            Ok(Some((&window[..end - 1], at + end + 1)))
        }
        Some(_) => Err(RespError::Protocol {
            what: "a line ends without a carriage return",
        }),
        None if window.len() == MAX_LINE => Err(RespError::TooLarge {
            what: "line",
            max: MAX_LINE,
        }),
        None => Ok(None),
    }
}

fn number(text: &[u8]) -> Result<i64, RespError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|t| t.parse().ok())
        .ok_or(RespError::Protocol {
            what: "a number is none",
        })
}

/// A length of at most `max`; `None` is nil (`-1`).
fn length(text: &[u8], what: &'static str, max: usize) -> Result<Option<usize>, RespError> {
    match number(text)? {
        -1 => Ok(None),
        n => match usize::try_from(n) {
            Ok(n) if n <= max => Ok(Some(n)),
            Ok(_) => Err(RespError::TooLarge { what, max }),
            Err(_) => Err(RespError::Protocol {
                what: "a length is negative",
            }),
        },
    }
}

/// Where the reply starting at `at` ends.
fn scan_at(buf: &[u8], at: usize, depth: usize) -> Result<Option<usize>, RespError> {
    let Some((head, mut next)) = line(buf, at)? else {
        return match buf.get(at) {
            None | Some(b'+' | b'-' | b':' | b'$' | b'*') => Ok(None),
            Some(_) => Err(RespError::Protocol {
                what: "unknown type byte",
            }),
        };
    };
    match head.split_first() {
        Some((b'+' | b'-', _)) => Ok(Some(next)),
        Some((b':', digits)) => number(digits).map(|_| Some(next)),
        Some((b'$', digits)) => {
            let Some(len) = length(digits, "bulk string", MAX_BULK)? else {
                return Ok(Some(next));
            };
            let Some(tail) = buf.get(next + len..next + len + 2) else {
                return Ok(None);
            };
            if tail != b"\r\n" {
                return Err(RespError::Protocol {
                    what: "a bulk string is longer than it says",
                });
            }
            Ok(Some(next + len + 2))
        }
        Some((b'*', digits)) => {
            if depth == MAX_DEPTH {
                return Err(RespError::TooLarge {
                    what: "nesting",
                    max: MAX_DEPTH,
                });
            }
            // The least element takes three bytes, so this bound also bounds the loop.
            let count = length(digits, "array", MAX_REPLY / 3)?.unwrap_or(0);
            for _ in 0..count {
                let Some(end) = scan_at(buf, next, depth + 1)? else {
                    return Ok(None);
                };
                next = end;
            }
            Ok(Some(next))
        }
        _ => Err(RespError::Protocol {
            what: "unknown type byte",
        }),
    }
}

/// Builds the reply at the start of `buf`, which [`scan`] found whole.
fn build(buf: &[u8]) -> Result<(Reply, usize), RespError> {
    let torn = RespError::Protocol {
        what: "a reply ends early",
    };
    let Some((head, mut next)) = line(buf, 0)? else {
        return Err(torn);
    };
    let Some((&kind, text)) = head.split_first() else {
        return Err(torn);
    };
    let string = || String::from_utf8_lossy(text).into_owned();
    let reply = match kind {
        b'+' => Reply::Simple(string()),
        b'-' => Reply::Error(string()),
        b':' => Reply::Int(number(text)?),
        b'$' => match length(text, "bulk string", MAX_BULK)? {
            None => Reply::Bulk(None),
            Some(len) => {
                let bytes = buf.get(next..next + len).ok_or(torn)?;
                next += len + 2;
                Reply::Bulk(Some(bytes.to_vec()))
            }
        },
        b'*' => match length(text, "array", MAX_REPLY / 3)? {
            None => Reply::Array(None),
            Some(count) => {
                let mut items = Vec::new();
                for _ in 0..count {
                    let (item, len) = build(buf.get(next..).unwrap_or_default())?;
                    items.push(item);
                    next += len;
                }
                Reply::Array(Some(items))
            }
        },
        _ => {
            return Err(RespError::Protocol {
                what: "unknown type byte",
            });
        }
    };
    Ok((reply, next))
}

/// One connection to a RESP server.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    inbox: Vec<u8>,
    taken: usize,
    owed: usize,
    limit: Duration,
}

/// Has `connect` try within the time it is given, and again while the host is not to be reached, as long
/// as `limit` allows.
///
/// Why: a guest on a TAP answers ARP itself. On a host so loaded that it does not within three seconds,
/// the kernel gives the connection up, though the guest is only slow.
fn when_reachable<T>(
    limit: Duration,
    mut connect: impl FnMut(Duration) -> io::Result<T>,
) -> io::Result<T> {
    /// The kernel has waited already, mostly.
    const PAUSE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + limit;
    loop {
        // None of it is no time that can be given.
        let left = deadline.saturating_duration_since(Instant::now());
        match connect(left.max(PAUSE)) {
            Err(error) if error.kind() == ErrorKind::HostUnreachable && left > PAUSE => {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

impl Client {
    /// Connects to `addr`, waiting `connect` at most; each later reply may take `limit`.
    ///
    /// # Errors
    /// [`RespError::Connect`] or [`RespError::Io`].
    pub fn connect(
        addr: SocketAddr,
        connect: Duration,
        limit: Duration,
    ) -> Result<Self, RespError> {
        let stream = when_reachable(connect, |left| TcpStream::connect_timeout(&addr, left))
            .map_err(|source| RespError::Connect { addr, source })?;
        let set_up = |r: io::Result<()>| {
            r.map_err(|source| RespError::Io {
                op: "set up",
                source,
            })
        };
        set_up(stream.set_nodelay(true))?;
        set_up(stream.set_read_timeout(Some(limit)))?;
        set_up(stream.set_write_timeout(Some(limit)))?;
        Ok(Self {
            stream,
            inbox: Vec::new(),
            taken: 0,
            owed: 0,
            limit,
        })
    }

    /// Another handle of the connection.
    ///
    /// # Errors
    /// [`RespError::Io`] if the system has no descriptors left.
    pub fn wire(&self) -> Result<TcpStream, RespError> {
        self.stream.try_clone().map_err(|source| RespError::Io {
            op: "set up",
            source,
        })
    }

    /// Sends bytes holding `requests` encoded requests in one write.
    ///
    /// # Errors
    /// [`RespError::Io`], or [`RespError::TimedOut`] if the peer takes no more bytes.
    pub fn send(&mut self, bytes: &[u8], requests: usize) -> Result<(), RespError> {
        self.owed += requests;
        self.stream
            .write_all(bytes)
            .map_err(|e| self.io_error("write to", e))
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// Any [`RespError`] but `Connect`; the connection is of no further use then.
    pub fn receive(&mut self) -> Result<Reply, RespError> {
        let asked = Instant::now();
        loop {
            if let Some((reply, len)) = parse(&self.inbox[self.taken..])? {
                self.taken += len;
                self.owed = self.owed.saturating_sub(1);
                if self.taken == self.inbox.len() {
                    self.inbox.clear();
                    self.taken = 0;
                }
                return Ok(reply);
            }
            if asked.elapsed() >= self.limit {
                return Err(RespError::TimedOut {
                    limit_ms: self.limit.as_millis(),
                });
            }
            self.fill()?;
        }
    }

    /// One request, one reply.
    ///
    /// # Errors
    /// As [`Client::receive`].
    pub fn command(&mut self, args: &[&[u8]]) -> Result<Reply, RespError> {
        let mut bytes = Vec::new();
        encode(&mut bytes, args);
        self.send(&bytes, 1)?;
        self.receive()
    }

    fn fill(&mut self) -> Result<(), RespError> {
        self.inbox.drain(..self.taken);
        self.taken = 0;
        let mut chunk = [0; READ_CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(RespError::Closed { missing: self.owed }),
            Ok(n) => {
                self.inbox.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(self.io_error("read from", e)),
        }
    }

    fn io_error(&self, op: &'static str, source: io::Error) -> RespError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => RespError::TimedOut {
                limit_ms: self.limit.as_millis(),
            },
            _ => RespError::Io { op, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(reply: &Reply) -> Vec<u8> {
        let mut out = Vec::new();
        match reply {
            Reply::Simple(s) => out.extend(format!("+{s}\r\n").bytes()),
            Reply::Error(s) => out.extend(format!("-{s}\r\n").bytes()),
            Reply::Int(n) => out.extend(format!(":{n}\r\n").bytes()),
            Reply::Bulk(None) => out.extend(b"$-1\r\n"),
            Reply::Bulk(Some(b)) => {
                out.extend(format!("${}\r\n", b.len()).bytes());
                out.extend(b);
                out.extend(b"\r\n");
            }
            Reply::Array(None) => out.extend(b"*-1\r\n"),
            Reply::Array(Some(items)) => {
                out.extend(format!("*{}\r\n", items.len()).bytes());
                items.iter().for_each(|i| out.extend(wire(i)));
            }
        }
        out
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            "[ -~]{0,20}".prop_map(Reply::Simple),
            "[ -~]{0,20}".prop_map(Reply::Error),
            any::<i64>().prop_map(Reply::Int),
            any::<Option<Vec<u8>>>().prop_map(Reply::Bulk),
        ];
        leaf.prop_recursive(3, 20, 5, |item| {
            prop::option::of(prop::collection::vec(item, 0..5)).prop_map(Reply::Array)
        })
    }

    proptest! {
        #[test]
        fn every_reply_parses_back_and_no_prefix_does(reply in any_reply(), extra: Vec<u8>) {
            let mut bytes = wire(&reply);
            let len = bytes.len();
            for cut in 0..len {
                prop_assert!(parse(&bytes[..cut]).unwrap().is_none());
            }
            bytes.extend(extra);
            prop_assert_eq!(parse(&bytes).unwrap(), Some((reply, len)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn a_request_is_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        encode(&mut out, &[b"SET", b"k", b"a\r\nb"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn sizes_beyond_the_bounds_are_refused_before_the_bytes_come() {
        for bytes in [
            &b"$99999999\r\n"[..],
            b"*999999999\r\n",
            b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
        ] {
            assert!(
                matches!(parse(bytes), Err(RespError::TooLarge { .. })),
                "{bytes:?}"
            );
        }
        assert!(matches!(
            parse(&[b'+'; MAX_LINE]),
            Err(RespError::TooLarge { .. })
        ));
    }

    #[test]
    fn malformed_replies_are_refused() {
        for bytes in [
            &b"?\r\n"[..],
            b"x",
            b":1x\r\n",
            b"$-2\r\n",
            b"$1\r\nabc",
            b"+a\n",
            b"\r\n",
        ] {
            assert!(
                matches!(parse(bytes), Err(RespError::Protocol { .. })),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn a_host_that_is_not_reached_yet_is_tried_again() {
        let limit = Duration::from_secs(600);
        let mut tries = 0;
        let result = when_reachable(limit, |_| {
            tries += 1;
            if tries < 4 {
                Err(ErrorKind::HostUnreachable.into())
            } else {
                Ok(tries)
            }
        });
        assert_eq!(result.unwrap(), 4);
        // What waiting does not help against.
        let refused = when_reachable(limit, |_| {
            io::Result::<()>::Err(ErrorKind::ConnectionRefused.into())
        });
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        // Not for ever, but once at least.
        let mut tries = 0;
        let never = when_reachable(Duration::ZERO, |_| {
            tries += 1;
            io::Result::<()>::Err(ErrorKind::HostUnreachable.into())
        });
        assert_eq!(never.unwrap_err().kind(), ErrorKind::HostUnreachable);
        assert_eq!(tries, 1);
    }
}
