//! The port of a host: what its replicas printed and noted, a part at a time.
//!
//! ```text
//!   client: {"protocol":"tandem-host","version":1}
//!           {"op":"read","vm":"web","what":"console","from":1200}
//!   server: {"protocol":"tandem-host","version":1}
//!           {"reply":"part","text":"...","next":1734}
//! ```

use super::folder::{self, Folder};
use crate::failure::{During, Failure, Outcome};
use lines::{Answer, Answerer, Asker, Limits, Protocol, to_line};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tls::{Role, Security, Strangers};
use tokio::net::TcpListener;
use viewservice::VmId;

const PROTOCOL: Protocol = Protocol {
    name: "tandem-host",
    version: 1,
};
/// Longest line that asks.
const REQUEST_MAX: usize = 4 << 10;
/// Bytes of a file in one reply.
const PART: u64 = 64 << 10;
/// Longest line that answers: in JSON a byte may become six.
const REPLY_MAX: u64 = 6 * PART + (4 << 10);
/// Longest time for a host to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A file of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// What the guest printed.
    Console,
    /// What happened to it.
    Events,
    /// What it complained of.
    Errors,
}

impl What {
    fn file(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Events => "events",
            Self::Errors => "stderr",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Request {
    Read {
        vm: VmId,
        what: What,
        /// From this byte on; `None`: the last of it.
        #[serde(default)]
        from: Option<u64>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
enum Reply {
    Part { text: String, next: u64 },
    Refused { reason: String },
}

/// The port of a host.
pub struct Port {
    /// Its state.
    pub folder: Arc<Folder>,
}

struct Answers {
    folder: Arc<Folder>,
    refused: Strangers,
}

impl Port {
    /// Serves until `end`.
    pub async fn serve(
        self,
        listener: TcpListener,
        security: Security,
        end: impl Future<Output = ()>,
    ) {
        let answers = Answers {
            folder: self.folder,
            refused: Strangers::default(),
        };
        let limits = Limits::for_lines(REQUEST_MAX);
        lines::serve(listener, security, limits, Arc::new(answers), end).await;
    }
}

impl Answerer for Answers {
    fn answer(&self, asker: &Asker, line: Option<&[u8]>, first: bool) -> Answer {
        let refused = |reason: String| Answer::Last(to_line(&Reply::Refused { reason }));
        let Some(line) = line else {
            return refused(format!("a line is at most {REQUEST_MAX} bytes"));
        };
        if first {
            return match PROTOCOL.check(line) {
                Ok(()) => Answer::Reply(PROTOCOL.greeting()),
                Err(reason) => refused(format!("cannot talk to this client: {reason}")),
            };
        }
        // A console may hold anything: it is an operator's to read.
        if let Err(reason) = asker.may(&self.refused, |peer| Err(format!("{peer} is no operator")))
        {
            return refused(reason);
        }
        match serde_json::from_slice(line) {
            Ok(Request::Read { vm, what, from }) => {
                Answer::Reply(to_line(&self.read(&vm, what, from)))
            }
            Err(error) => refused(format!("no such request: {error}")),
        }
    }
}

impl Answers {
    fn read(&self, vm: &VmId, what: What, from: Option<u64>) -> Reply {
        let path = self.folder.of(vm);
        if !path.exists() {
            let reason = format!("no replica of '{vm}' was ever here");
            return Reply::Refused { reason };
        }
        match folder::part(&path.join(what.file()), from, PART) {
            Ok((bytes, next)) => Reply::Part {
                text: String::from_utf8_lossy(&bytes).into_owned(),
                next,
            },
            Err(e) => Reply::Refused {
                reason: e.to_string(),
            },
        }
    }
}

/// Reads a part of a replica's file at the host at `address`: from byte `from` on, or the last of it. What is there, and
/// from where on the next part is.
///
/// # Errors
/// If the host cannot be reached, or has none.
pub fn read(
    address: &str,
    security: &Security,
    vm: &VmId,
    what: What,
    from: Option<u64>,
) -> Outcome<(String, u64)> {
    let asking = format!("the host at {address}");
    let mut addresses = address.to_socket_addrs().during(&asking)?;
    let first = addresses
        .next()
        .ok_or_else(|| Failure::new(format!("{asking} has no address")))?;
    let socket = TcpStream::connect_timeout(&first, TIMEOUT).during(&asking)?;
    socket.set_read_timeout(Some(TIMEOUT)).during(&asking)?;
    socket.set_write_timeout(Some(TIMEOUT)).during(&asking)?;
    let stream = security.call(socket, Role::Host, |peer| match peer.host() {
        Some(_) => Ok(()),
        None => Err(format!("it is {peer}, and no host")),
    });
    let mut stream = stream.during(&asking)?;
    let vm = vm.clone();
    let request = to_line(&Request::Read { vm, what, from });
    let mut stream = stream.using(|_: &TcpStream| Ok(()));
    stream
        .write_all(&[&PROTOCOL.greeting()[..], &request].concat())
        .during(&asking)?;
    let mut said = BufReader::new(stream.take(REPLY_MAX));
    let mut line = || {
        let mut line = Vec::new();
        said.read_until(b'\n', &mut line).during(&asking)?;
        match line.pop() {
            Some(b'\n') => Ok(line),
            _ => Err(Failure::new(format!("{asking} broke off"))),
        }
    };
    let hello = line()?;
    let reply = match PROTOCOL.check(&hello) {
        Ok(()) => line()?,
        // It may be a refusal.
        Err(_) => hello,
    };
    match serde_json::from_slice(&reply).during(&asking)? {
        Reply::Part { text, next } => Ok((text, next)),
        Reply::Refused { reason } => Err(Failure::new(format!("{asking}: {reason}"))),
    }
}
