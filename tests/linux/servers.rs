//! Clients that keep one connection open: memcached's text protocol, and HTTP/1.1 with keep-alive.

use super::LIMIT;
use check::rng::Rng;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Instant;

/// Bytes of a reply's line, and of a body, at most.
const LINE_MAX: u64 = 8 << 10;
const BODY_MAX: usize = 1 << 20;

/// A connection that was made once.
struct Connection {
    from: BufReader<TcpStream>,
    to: TcpStream,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

impl Connection {
    fn open(server: SocketAddr) -> Result<Self> {
        let to = TcpStream::connect_timeout(&server, LIMIT)?;
        to.set_nodelay(true)?;
        to.set_read_timeout(Some(LIMIT))?;
        to.set_write_timeout(Some(LIMIT))?;
        let from = BufReader::new(to.try_clone()?);
        Ok(Self { from, to })
    }

    /// A line without its CR LF.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.from.by_ref().take(LINE_MAX).read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(Error::new(ErrorKind::UnexpectedEof, format!("'{line}'"))),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        if length > BODY_MAX {
            return Err(wrong(format!("{length} bytes at once")));
        }
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// One client's conversation with a server.
pub trait Talk: Send + 'static {
    /// Makes the connection of the client with this number.
    fn open(server: SocketAddr, client: u64) -> Result<Self>
    where
        Self: Sized;
    /// One request and its reply, which must be right.
    fn ask(&mut self) -> Result<()>;
    /// At the end: all that was acked is still there.
    fn settle(&mut self) -> Result<()>;
}

/// Sets and gets of keys of its own: what was stored last must come back.
pub struct Memcached {
    connection: Connection,
    client: u64,
    rng: Rng,
    acked: HashMap<u64, String>,
}

impl Memcached {
    fn get(&mut self, key: u64) -> Result<Option<String>> {
        write!(self.connection.to, "get c{}-{key}\r\n", self.client)?;
        let head = self.connection.line()?;
        if head == "END" {
            return Ok(None);
        }
        // VALUE <key> <flags> <bytes> (memcached's doc/protocol.txt, "Retrieval commands")
        let length = head.rsplit(' ').next().and_then(|text| text.parse().ok());
        let length: usize = match length {
            Some(length) if head.starts_with("VALUE ") => length,
            _ => return Err(wrong(format!("get: {head}"))),
        };
        let value = self.connection.bytes(length)?;
        let rest = (self.connection.line()?, self.connection.line()?);
        if (rest.0.as_str(), rest.1.as_str()) != ("", "END") {
            return Err(wrong(format!("get: {rest:?}")));
        }
        String::from_utf8(value)
            .map(Some)
            .map_err(|e| wrong(e.to_string()))
    }

    fn check(&mut self, key: u64) -> Result<()> {
        let found = self.get(key)?;
        if found.as_ref() == self.acked.get(&key) {
            return Ok(());
        }
        let acked = self.acked.get(&key);
        Err(wrong(format!(
            "key {key}: {acked:?} was acked, {found:?} is there"
        )))
    }
}

impl Talk for Memcached {
    fn open(server: SocketAddr, client: u64) -> Result<Self> {
        Ok(Self {
            connection: Connection::open(server)?,
            client,
            rng: Rng::new(client, 7),
            acked: HashMap::new(),
        })
    }

    fn ask(&mut self) -> Result<()> {
        let key = self.rng.below(100);
        if self.rng.below(2) == 0 {
            return self.check(key);
        }
        let value = format!("{:016x}", self.rng.next_u64()).repeat(1 + self.rng.below(20) as usize);
        let head = format!("set c{}-{key} 0 0 {}", self.client, value.len());
        write!(self.connection.to, "{head}\r\n{value}\r\n")?;
        match self.connection.line()?.as_str() {
            "STORED" => {
                self.acked.insert(key, value);
                Ok(())
            }
            other => Err(wrong(format!("set: {other}"))),
        }
    }

    fn settle(&mut self) -> Result<()> {
        (0..100).try_for_each(|key| self.check(key))
    }
}

/// GETs of the page, which must be the same each time.
pub struct Http {
    connection: Connection,
    page: Vec<u8>,
}

impl Http {
    fn get(&mut self, path: &str) -> Result<(String, Vec<u8>)> {
        write!(
            self.connection.to,
            "GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n"
        )?;
        let status = self.connection.line()?;
        let mut length = None;
        loop {
            let line = self.connection.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok();
            }
            if line == "connection: close" {
                return Err(wrong("the server closes the connection"));
            }
        }
        let length = length.ok_or_else(|| wrong("no Content-Length"))?;
        Ok((status, self.connection.bytes(length)?))
    }
}

impl Talk for Http {
    fn open(server: SocketAddr, _: u64) -> Result<Self> {
        let connection = Connection::open(server)?;
        let mut http = Self {
            connection,
            page: Vec::new(),
        };
        let (status, page) = http.get("/")?;
        if status != "HTTP/1.1 200 OK" || page.is_empty() {
            return Err(wrong(status));
        }
        http.page = page;
        Ok(http)
    }

    fn ask(&mut self) -> Result<()> {
        let (status, page) = self.get("/")?;
        if status == "HTTP/1.1 200 OK" && page == self.page {
            return Ok(());
        }
        Err(wrong(format!("{status}, {} bytes", page.len())))
    }

    fn settle(&mut self) -> Result<()> {
        match self.get("/nowhere")? {
            (status, _) if status.starts_with("HTTP/1.1 404") => self.ask(),
            (status, _) => Err(wrong(status)),
        }
    }
}

/// Clients at work, each on a thread and one connection.
pub struct Clients {
    replies: std::sync::Arc<Vec<AtomicU64>>,
    stop: std::sync::Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Clients {
    /// Starts `count` of them.
    pub fn start<T: Talk>(server: SocketAddr, count: usize) -> Self {
        let replies: std::sync::Arc<Vec<_>> =
            std::sync::Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let work = |client: usize| {
            let (replies, stop) = (replies.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut talk = T::open(server, client as u64)?;
                while !stop.load(Relaxed) {
                    talk.ask()?;
                    replies[client].fetch_add(1, Relaxed);
                }
                talk.settle()
            })
        };
        let threads = (0..count).map(work).collect();
        Self {
            replies,
            stop,
            threads,
        }
    }

    /// Waits until each has had `more` replies from now on, and panics if one breaks or it takes too long.
    pub fn wait_each(&self, more: u64) {
        let now = || self.replies.iter().map(|count| count.load(Relaxed));
        let goals: Vec<u64> = now().map(|count| count + more).collect();
        let deadline = Instant::now() + LIMIT;
        while now().zip(&goals).any(|(count, goal)| count < *goal) {
            let over = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!over, "a client's connection broke");
            assert!(Instant::now() < deadline, "too few replies in time");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Lets them end, each after a last look at what was acked; what went wrong with each.
    pub fn stop(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        let ends = self.threads.into_iter().map(|thread| match thread.join() {
            Ok(end) => end.map_err(|e| e.to_string()),
            Err(_) => Err("it panicked".to_owned()),
        });
        ends.filter_map(std::result::Result::err).collect()
    }
}
