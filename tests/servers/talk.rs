//! Clients of the servers: each speaks its server's own protocol on one connection that is never made again, asks
//! questions whose answers depend on all it asked before, and finds wrong any answer that is not the right one.

use super::LIMIT;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Most bytes of an answer.
const ANSWER_MAX: usize = 1 << 20;

/// One conversation with a server.
pub trait Talk {
    /// Asks the `n`th question, counted from 1, and checks the answer.
    fn ask(&mut self, n: u32) -> Result<()>;
}

/// Opens a conversation. The folder has what belongs to the test.
pub type Open = fn(SocketAddr, &Path) -> Result<Box<dyn Talk>>;

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

/// Whether what was answered is what is right.
fn check(answer: &str, right: &str) -> Result<()> {
    match answer == right {
        true => Ok(()),
        false => Err(wrong(format!("'{answer}', not '{right}'"))),
    }
}

/// A connection that was made once.
struct Wire {
    from: BufReader<TcpStream>,
    to: TcpStream,
}

impl Wire {
    fn open(server: SocketAddr) -> Result<Self> {
        let to = TcpStream::connect_timeout(&server, LIMIT)?;
        to.set_nodelay(true)?;
        to.set_read_timeout(Some(LIMIT))?;
        let from = BufReader::new(to.try_clone()?);
        Ok(Self { from, to })
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        if length > ANSWER_MAX {
            return Err(wrong(format!("{length} bytes at once")));
        }
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A number in network order.
    fn number(&mut self) -> Result<u32> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.from.by_ref().take(8 << 10).read_line(&mut line)?;
        match read {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

/// HTTP/1.1 with keep-alive.
struct Http {
    wire: Wire,
    /// The request for a question, its body if it has one, and what the answer has in it.
    question: fn(u32) -> Vec<(String, String, String)>,
}

impl Http {
    fn request(&mut self, line: &str, body: &str) -> Result<String> {
        let length = body.len();
        write!(
            self.wire.to,
            "{line} HTTP/1.1\r\nHost: guest\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let status = self.wire.line()?;
        let mut length = None;
        loop {
            let line = self.wire.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok();
            }
            if line == "connection: close" {
                return Err(wrong(format!("{status}: the server closes the connection")));
            }
        }
        let body = self
            .wire
            .bytes(length.ok_or_else(|| wrong("no Content-Length"))?)?;
        check(&status, "HTTP/1.1 200 OK")?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn open(
        server: SocketAddr,
        question: fn(u32) -> Vec<(String, String, String)>,
    ) -> Result<Box<dyn Talk>> {
        let wire = Wire::open(server)?;
        Ok(Box::new(Self { wire, question }))
    }
}

impl Talk for Http {
    fn ask(&mut self, n: u32) -> Result<()> {
        for (line, body, right) in (self.question)(n) {
            let answer = self.request(&line, &body)?;
            if !answer.contains(&right) {
                return Err(wrong(format!("no '{right}' in '{answer}'")));
            }
        }
        Ok(())
    }
}

fn get(path: String, right: String) -> (String, String, String) {
    (format!("GET {path}"), String::new(), right)
}

/// What node's script answers: the path.
pub fn node(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    Http::open(server, |n| {
        vec![get(format!("/{n}"), format!("asked for /{n}"))]
    })
}

/// A page of the server behind haproxy.
pub fn haproxy(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    Http::open(server, |_| {
        vec![get("/".into(), "served through haproxy".into())]
    })
}

/// A query that Prometheus computes.
pub fn prometheus(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    Http::open(server, |n| {
        let path = format!("/api/v1/query?query=vector({n})*2");
        vec![get(path, format!("\"{}\"]", 2 * n))]
    })
}

/// Puts a value, and reads it back (etcd's JSON gateway: keys and values in base64, of which four digits are some).
pub fn etcd(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    Http::open(server, |n| {
        let put = format!("{{\"key\":\"a2V5\",\"value\":\"{n:04}\"}}");
        let range = "{\"key\":\"a2V5\"}".to_owned();
        let right = format!("\"value\":\"{n:04}\"");
        vec![
            ("POST /v3/kv/put".into(), put, "\"revision\"".into()),
            ("POST /v3/kv/range".into(), range, right),
        ]
    })
}

/// PostgreSQL's protocol, version 3 (its manual, "Frontend/Backend Protocol").
struct Postgres(Wire);

pub fn postgresql(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    let mut wire = Wire::open(server)?;
    let words = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let length = words.len() as u32 + 4;
    wire.to
        .write_all(&[&length.to_be_bytes()[..], words].concat())?;
    let mut postgres = Postgres(wire);
    postgres.rows()?;
    postgres.query("create table if not exists asked (n int); truncate asked")?;
    Ok(Box::new(postgres))
}

impl Postgres {
    /// The first value of each row, up to where the server is ready for the next query.
    fn rows(&mut self) -> Result<Vec<String>> {
        let mut rows = Vec::new();
        loop {
            let kind = self.0.bytes(1)?[0];
            let length = self.0.number()? as usize;
            let body = self.0.bytes(length.saturating_sub(4))?;
            match kind {
                b'E' => return Err(wrong(String::from_utf8_lossy(&body))),
                // Number of columns (2 bytes), length of the first (4).
                b'D' => rows.push(String::from_utf8_lossy(&body[6..]).into_owned()),
                b'Z' => return Ok(rows),
                _ => {}
            }
        }
    }

    fn query(&mut self, text: &str) -> Result<Vec<String>> {
        let length = text.len() as u32 + 5;
        let query = [b"Q", &length.to_be_bytes()[..], text.as_bytes(), b"\0"].concat();
        self.0.to.write_all(&query)?;
        self.rows()
    }
}

impl Talk for Postgres {
    fn ask(&mut self, n: u32) -> Result<()> {
        self.query(&format!("insert into asked values ({n})"))?;
        let rows = self.query("select count(*) || '/' || max(n) from asked")?;
        check(&rows.join(","), &format!("{n}/{n}"))
    }
}

/// MySQL's protocol (its manual, "Client/Server Protocol").
struct Mysql(Wire);

pub fn mariadb(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    let mut mysql = Mysql(Wire::open(server)?);
    let (_, greeting) = mysql.packet()?;
    if greeting.first() != Some(&10) {
        return Err(wrong(String::from_utf8_lossy(&greeting)));
    }
    // Long passwords, protocol 4.1, transactions, its authentication; packets of 16 MiB; UTF-8; no password.
    let capabilities = (1u32 | 1 << 9 | 1 << 13 | 1 << 15).to_le_bytes();
    let most = (1u32 << 24).to_le_bytes();
    let hello = [&capabilities[..], &most, &[33], &[0; 23], b"tandem\0\0"].concat();
    mysql.send(1, &hello)?;
    let (number, answer) = mysql.packet()?;
    if answer.first() == Some(&0xfe) {
        // Another way to say that there is no password.
        mysql.send(number + 1, b"")?;
        mysql.done()?;
    } else if answer.first() != Some(&0) {
        return Err(wrong(String::from_utf8_lossy(&answer)));
    }
    for line in [
        "create database if not exists d",
        "create table if not exists d.asked (n int)",
        "delete from d.asked",
    ] {
        mysql.query(line)?;
        mysql.done()?;
    }
    Ok(Box::new(mysql))
}

impl Mysql {
    /// A packet's number and what is in it.
    fn packet(&mut self) -> Result<(u8, Vec<u8>)> {
        let head = self.0.bytes(4)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        Ok((head[3], self.0.bytes(length as usize)?))
    }

    fn send(&mut self, number: u8, body: &[u8]) -> Result<()> {
        let mut head = (body.len() as u32).to_le_bytes();
        head[3] = number;
        self.0.to.write_all(&[&head[..], body].concat())
    }

    fn query(&mut self, text: &str) -> Result<()> {
        self.send(0, &[b"\x03", text.as_bytes()].concat())
    }

    fn done(&mut self) -> Result<()> {
        let (_, answer) = self.packet()?;
        match answer.first() {
            Some(0) => Ok(()),
            _ => Err(wrong(String::from_utf8_lossy(&answer))),
        }
    }
}

impl Talk for Mysql {
    fn ask(&mut self, n: u32) -> Result<()> {
        self.query(&format!("insert into d.asked values ({n})"))?;
        self.done()?;
        self.query("select concat(count(*), '/', max(n)) from d.asked")?;
        // Number of columns, the column, an end, the row, an end.
        self.packet()?;
        self.packet()?;
        self.packet()?;
        let (_, row) = self.packet()?;
        self.packet()?;
        let answer = String::from_utf8_lossy(row.get(1..).unwrap_or_default()).into_owned();
        check(&answer, &format!("{n}/{n}"))
    }
}

/// STOMP 1.2, which RabbitMQ speaks beside its own: what is sent to a queue comes back from it.
struct Stomp(Wire);

pub fn rabbitmq(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    let mut stomp = Stomp(Wire::open(server)?);
    let head = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n";
    stomp.frame(head, "")?;
    stomp.read("CONNECTED")?;
    stomp.frame("SUBSCRIBE\nid:0\ndestination:/queue/asked\n", "")?;
    Ok(Box::new(stomp))
}

impl Stomp {
    fn frame(&mut self, head: &str, body: &str) -> Result<()> {
        write!(self.0.to, "{head}\n{body}\0")
    }

    /// The body of a frame that has to be of this kind.
    fn read(&mut self, kind: &str) -> Result<String> {
        let mut frame = Vec::new();
        self.0
            .from
            .by_ref()
            .take(64 << 10)
            .read_until(0, &mut frame)?;
        let text = String::from_utf8_lossy(&frame).into_owned();
        let text = text.trim_start().trim_end_matches('\0');
        let (head, body) = text.split_once("\n\n").ok_or_else(|| wrong(text))?;
        check(head.lines().next().unwrap_or_default(), kind)?;
        Ok(body.to_owned())
    }
}

impl Talk for Stomp {
    fn ask(&mut self, n: u32) -> Result<()> {
        self.frame("SEND\ndestination:/queue/asked\n", &n.to_string())?;
        check(&self.read("MESSAGE")?, &n.to_string())
    }
}

/// DNS over TCP (RFC 1035): the address of `localhost`.
struct Dns(Wire);

pub fn bind9(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    Ok(Box::new(Dns(Wire::open(server)?)))
}

impl Talk for Dns {
    fn ask(&mut self, n: u32) -> Result<()> {
        let id = (n as u16).to_be_bytes();
        // One question: type A, class IN.
        let query = [
            &id[..],
            &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            b"\x09localhost\0\0\x01\0\x01",
        ]
        .concat();
        let length = (query.len() as u16).to_be_bytes();
        self.0.to.write_all(&[&length[..], &query].concat())?;
        let length = self.0.bytes(2)?;
        let answer = self
            .0
            .bytes(u16::from_be_bytes([length[0], length[1]]).into())?;
        let has_address = answer.windows(6).any(|w| w == [0, 4, 127, 0, 0, 1]);
        match answer.starts_with(&id) && has_address {
            true => Ok(()),
            false => Err(wrong(format!("{answer:02x?}"))),
        }
    }
}

/// ZooKeeper's protocol (zookeeper.jute in its sources).
struct Zookeeper(Wire);

pub fn zookeeper(server: SocketAddr, _: &Path) -> Result<Box<dyn Talk>> {
    let mut zookeeper = Zookeeper(Wire::open(server)?);
    // While it starts it takes connections that it never answers: those are no server's yet.
    let starting = Some(std::time::Duration::from_secs(20));
    zookeeper.0.to.set_read_timeout(starting)?;
    // Version, last zxid, timeout in ms, session, a password of 16 bytes, not read-only.
    let hello = [
        &[0; 12][..],
        &30_000u32.to_be_bytes(),
        &[0; 8],
        &text(&[0; 16]),
        &[0],
    ]
    .concat();
    zookeeper.send(&hello)?;
    zookeeper.answer()?;
    // A node anybody may do anything with.
    let everybody = [
        &1u32.to_be_bytes()[..],
        &31u32.to_be_bytes(),
        &text(b"world"),
        &text(b"anyone"),
    ];
    let create = [
        &text(b"/asked")[..],
        &text(b"0"),
        &everybody.concat(),
        &[0; 4],
    ]
    .concat();
    // It may be there since a connection before this one asked for it.
    let exists = (-110i32).to_be_bytes();
    let (error, _) = zookeeper.request(1, 1, &create)?;
    if error != [0; 4] && error != exists {
        return Err(wrong(format!("{error:02x?}")));
    }
    zookeeper.0.to.set_read_timeout(Some(LIMIT))?;
    Ok(Box::new(zookeeper))
}

/// Bytes behind their number.
fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

impl Zookeeper {
    fn send(&mut self, body: &[u8]) -> Result<()> {
        self.0.to.write_all(&text(body))
    }

    fn answer(&mut self) -> Result<Vec<u8>> {
        let length = self.0.number()? as usize;
        self.0.bytes(length)
    }

    /// Asks for the operation `kind`, and gives the error's number of the answer to it, and what is behind its head.
    fn request(&mut self, xid: u32, kind: u32, body: &[u8]) -> Result<([u8; 4], Vec<u8>)> {
        self.send(&[&xid.to_be_bytes()[..], &kind.to_be_bytes(), body].concat())?;
        let answer = self.answer()?;
        // Number of the request, zxid, an error's number.
        match (answer.get(12..16), answer.get(16..)) {
            (Some(error), Some(rest)) if answer.starts_with(&xid.to_be_bytes()) => {
                Ok(([error[0], error[1], error[2], error[3]], rest.to_vec()))
            }
            _ => Err(wrong(format!("{answer:02x?}"))),
        }
    }
}

impl Talk for Zookeeper {
    fn ask(&mut self, n: u32) -> Result<()> {
        let value = n.to_string().into_bytes();
        let set = [&text(b"/asked")[..], &text(&value), &u32::MAX.to_be_bytes()].concat();
        let (error, _) = self.request(2 * n, 5, &set)?;
        let get = [&text(b"/asked")[..], &[0]].concat();
        let (_, answer) = self.request(2 * n + 1, 4, &get)?;
        match error == [0; 4] && answer.starts_with(&text(&value)) {
            true => Ok(()),
            false => Err(wrong(format!("{error:02x?} {answer:02x?}"))),
        }
    }
}

/// OpenSSH's own client, whose session runs `cat`.
struct Ssh {
    client: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

pub fn ssh(server: SocketAddr, folder: &Path) -> Result<Box<dyn Talk>> {
    let port = server.port().to_string();
    let mut client = Command::new("ssh")
        .args(["-p", &port, "-i"])
        .arg(folder.join("key"))
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-F", "none"])
        .arg(format!("root@{}", server.ip()))
        .arg("echo begun; exec cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (to, from) = (client.stdin.take(), client.stdout.take());
    let (Some(to), Some(from)) = (to, from) else {
        unreachable!("both are pipes");
    };
    let from = BufReader::new(from);
    let mut ssh = Ssh { client, to, from };
    check(&ssh.line()?, "begun")?;
    Ok(Box::new(ssh))
}

impl Ssh {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Talk for Ssh {
    fn ask(&mut self, n: u32) -> Result<()> {
        writeln!(self.to, "line {n}")?;
        check(&self.line()?, &format!("line {n}"))
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
