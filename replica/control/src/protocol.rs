//! What is said over a control socket: lines of JSON, one to ask, one or more to answer.
//!
//! The other side is not believed: a line has a bound and a time, and what it holds is checked as it is read.

use names::VmId;
use replica::Told;
use replica::role::{Role, ViewNumber};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// Longest line that asks, in bytes.
pub const ASKING_MAX: usize = 4 << 10;
/// Longest line that answers.
pub const ANSWER_MAX: usize = 64 << 10;
/// Longest reason that is passed on: in JSON a byte may become six.
const REASON_MAX: usize = 8 << 10;
/// Bytes read at a time.
const CHUNK: usize = 1024;

/// What a replica is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Request {
    /// What it is.
    Status,
    /// To give its machine, which runs alone, a new backup.
    Protect {
        /// Where that waits, as HOST:PORT.
        backup: String,
    },
    /// To move its machine, which runs alone.
    Move {
        /// To the backup that waits there, as HOST:PORT.
        to: String,
    },
    /// To leave its machine to the backup.
    Failover {
        /// And to end. Else it waits to be that one's backup.
        #[serde(default)]
        leave: bool,
    },
}

/// What a replica is: the one line that answers [`Request::Status`]. To all else it answers with what it tells
/// ([`Told`]), a line each, to its end; to what it does not understand that it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename = "status")]
pub struct Status {
    /// The version of the protocol it speaks.
    pub version: u32,
    /// Its machine.
    pub vm: VmId,
    /// Its process.
    pub pid: u32,
    /// Its role; none before it has one, and after its end.
    pub role: Option<Role>,
    /// Its view.
    pub view: ViewNumber,
    /// How far execution lags behind, in milliseconds.
    pub lag_ms: u64,
}

/// That it is not done, for a reason that fits into a line.
pub fn failed(why: impl Into<String>) -> Told {
    let mut why = why.into();
    if why.len() > REASON_MAX {
        let at = (0..=REASON_MAX).rfind(|at| why.is_char_boundary(*at));
        why.truncate(at.unwrap_or(0));
    }
    Told::Failed { why }
}

/// Writes `what` as a line.
///
/// # Errors
/// If the other side is gone or does not read.
pub fn say(stream: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what).expect("messages are plain JSON");
    line.push(b'\n');
    stream.write_all(&line)
}

/// The lines that the other side of a socket writes.
pub struct Lines<'a> {
    stream: &'a UnixStream,
    /// What was read and not given out yet: at most a line and a chunk.
    held: Vec<u8>,
    max: usize,
}

impl<'a> Lines<'a> {
    /// Of `stream`; none has more than `max` bytes.
    pub fn of(stream: &'a UnixStream, max: usize) -> Self {
        let held = Vec::new();
        Self { stream, held, max }
    }

    /// The next line, without its end; `None` where they end. One that breaks off is none.
    ///
    /// # Errors
    /// If a line is too long, is not there at `deadline`, or the socket fails.
    pub fn next(&mut self, deadline: Option<Instant>) -> io::Result<Option<Vec<u8>>> {
        let mut looked = 0;
        loop {
            let end = self.held[looked..].iter().position(|byte| *byte == b'\n');
            let bytes = end.map_or(self.held.len(), |at| looked + at);
            if bytes > self.max {
                let why = format!("a line has more than {} bytes", self.max);
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
            if end.is_some() {
                let rest = self.held.split_off(bytes + 1);
                let mut line = std::mem::replace(&mut self.held, rest);
                line.pop();
                return Ok(Some(line));
            }
            looked = bytes;
            if self.read_more(deadline)? == 0 {
                return Ok(None);
            }
        }
    }

    fn read_more(&mut self, deadline: Option<Instant>) -> io::Result<usize> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let late = || io::Error::new(ErrorKind::TimedOut, "it said nothing in time");
        if left.is_some_and(|left| left.is_zero()) {
            return Err(late());
        }
        self.stream.set_read_timeout(left)?;
        let (mut stream, mut chunk) = (self.stream, [0; CHUNK]);
        match stream.read(&mut chunk) {
            Ok(count) => {
                self.held.extend_from_slice(&chunk[..count]);
                Ok(count)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => self.read_more(deadline),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Err(late()),
            Err(e) => Err(e),
        }
    }

    /// The next line, read as what it says.
    ///
    /// # Errors
    /// As [`Self::next`], or if it says nothing that is known here.
    pub fn next_as<T: for<'de> Deserialize<'de>>(
        &mut self,
        deadline: Option<Instant>,
    ) -> io::Result<Option<T>> {
        let Some(line) = self.next(deadline)? else {
            return Ok(None);
        };
        let said = serde_json::from_slice(&line);
        said.map(Some)
            .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("not understood: {e}")))
    }
}

/// A moment `after` now.
pub fn deadline(after: Duration) -> Option<Instant> {
    Some(Instant::now() + after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(what: &impl Serialize) -> String {
        serde_json::to_string(what).unwrap()
    }

    #[test]
    fn what_is_said_is_what_the_protocol_says() {
        let backup = || "b:7".to_owned();
        for (request, line) in [
            (Request::Status, r#"{"ask":"status"}"#),
            (
                Request::Protect { backup: backup() },
                r#"{"ask":"protect","backup":"b:7"}"#,
            ),
            (
                Request::Move { to: backup() },
                r#"{"ask":"move","to":"b:7"}"#,
            ),
            (
                Request::Failover { leave: true },
                r#"{"ask":"failover","leave":true}"#,
            ),
        ] {
            assert_eq!(json(&request), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
        let view = ViewNumber(3);
        let status = Status {
            version: VERSION,
            vm: VmId::new("web").unwrap(),
            pid: 7,
            role: Some(Role::Solo),
            view,
            lag_ms: 0,
        };
        let line =
            r#"{"is":"status","version":1,"vm":"web","pid":7,"role":"solo","view":3,"lag_ms":0}"#;
        assert_eq!(json(&status), line);
        assert_eq!(serde_json::from_str::<Status>(line).unwrap(), status);
        for (told, line) in [
            (
                Told::Joining { backup: backup() },
                r#"{"is":"joining","backup":"b:7"}"#,
            ),
            (Told::Sent { bytes: 4096 }, r#"{"is":"sent","bytes":4096}"#),
            (
                Told::Protected {
                    view,
                    backup: backup(),
                },
                r#"{"is":"protected","view":3,"backup":"b:7"}"#,
            ),
            (
                Told::Left {
                    view,
                    to: backup(),
                    follows: true,
                },
                r#"{"is":"left","view":3,"to":"b:7","follows":true}"#,
            ),
            (
                Told::Failed { why: "no".into() },
                r#"{"is":"failed","why":"no"}"#,
            ),
        ] {
            assert_eq!(json(&told), line);
            assert_eq!(serde_json::from_str::<Told>(line).unwrap(), told);
            assert!(serde_json::from_str::<Status>(line).is_err());
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for nonsense in [
            "",
            "status",
            "{}",
            r#"{"ask":"reboot"}"#,
            r#"{"ask":"protect"}"#,
            r#"{"ask":"move","to":7}"#,
            r#"{"ask":["status"]}"#,
            "\u{0}\u{1}",
            &"[".repeat(ASKING_MAX),
        ] {
            assert!(
                serde_json::from_str::<Request>(nonsense).is_err(),
                "{nonsense}"
            );
        }
    }

    #[test]
    fn a_reason_of_any_length_fits_into_a_line() {
        for letter in ["\u{1}", "ä", "\u{1f980}"] {
            let answer = failed(letter.repeat(100_000));
            assert!(json(&answer).len() < ANSWER_MAX, "{letter:?}");
        }
    }

    #[test]
    fn lines_come_as_they_were_said_whatever_the_pieces() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let saying = std::thread::spawn(move || {
            for piece in [&b"on"[..], b"e\ntwo\n\nth", b"ree\nbroken o"] {
                there.write_all(piece).unwrap();
            }
        });
        let mut lines = Lines::of(&here, 8);
        for line in ["one", "two", "", "three"] {
            assert_eq!(lines.next(None).unwrap().unwrap(), line.as_bytes());
        }
        assert!(lines.next(None).unwrap().is_none());
        saying.join().unwrap();
    }

    #[test]
    fn a_line_has_a_bound_and_a_time() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let late = Lines::of(&here, 8).next(deadline(Duration::from_millis(10)));
        assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
        there.write_all(b"exactly8\nnine long\n").unwrap();
        let mut lines = Lines::of(&here, 8);
        assert_eq!(lines.next(None).unwrap().unwrap(), b"exactly8");
        assert!(lines.next(None).is_err());
        there.write_all(&[b'x'; 3 * CHUNK]).unwrap();
        let mut lines = Lines::of(&here, 8);
        let why = lines.next(None).unwrap_err();
        assert!(why.to_string().contains("more than 8 bytes"), "{why}");
        assert!(lines.held.len() <= 8 + CHUNK, "it read on");
    }
}
