//! The server and its clients: from bytes to replies.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::command::{self, Call};
use crate::error::CommandError;
use crate::frame::{Frame, FrameLimits};
use crate::reply::{Protocol, Reply};
use crate::store::Store;
use crate::transaction::Transaction;

/// What a client may always have of each buffer, whatever the others hold. Empty buffers of at most
/// this size are kept for the next use; while this much output is waiting, no further command of that
/// client is run.
const BUFFER_KEPT: usize = 16 * 1024;
/// Most bytes of the last reply to a client that is cut off.
const REFUSAL_MAX: usize = 256;
/// What a client is counted as holding besides its buffers.
const CLIENT_BYTES: usize = 256;

/// Tells the time, in ms since 1970.
pub type Clock = Box<dyn Fn() -> u64 + Send>;

/// What bounds the server's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of keys and values, overhead included. Beyond, commands that store are refused.
    pub store_bytes_max: usize,
    /// Most bytes of all clients' unfinished commands and unsent replies. Beyond, a client that needs
    /// more than 16 KiB is told so and cut off.
    pub buffer_bytes_max: usize,
    /// Most bytes of one argument, and of one value.
    pub bulk_bytes_max: usize,
    /// Most bytes of one command, and of one reply: more than twice `bulk_bytes_max`.
    pub command_bytes_max: usize,
    /// Most clients at once. Those beyond are told so and sent away.
    pub clients_max: usize,
}

/// [`Limits::clients_max`] if nobody says otherwise: Redis's own.
const CLIENTS_MAX: usize = 10_000;
/// Most bytes of a value, however much memory there is: it is copied in one piece, while all others wait.
const VALUE_MAX: usize = 8 << 20;

impl Limits {
    /// Limits for a server that has `bytes` of heap to itself: half for the store, a quarter for the
    /// buffers, and the rest for what outgrows them for a moment.
    #[must_use]
    pub fn for_heap(bytes: usize) -> Self {
        let bulk_bytes_max = (bytes / 32).min(VALUE_MAX);
        Self {
            store_bytes_max: bytes / 2,
            buffer_bytes_max: bytes / 4,
            bulk_bytes_max,
            command_bytes_max: 2 * bulk_bytes_max + 1024,
            clients_max: CLIENTS_MAX,
        }
    }
}

/// What commands see of the server besides the store.
pub(crate) struct State {
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) started_ms: u64,
    pub(crate) clients: usize,
    pub(crate) connections: u64,
    pub(crate) commands: u64,
    pub(crate) buffer_bytes: usize,
    pub(crate) shutdown: bool,
}

impl State {
    /// What is left for all clients' buffers.
    pub(crate) fn buffer_room(&self) -> usize {
        let max = self.limits.buffer_bytes_max;
        max.saturating_sub(self.buffer_bytes)
    }
}

/// What commands see of a client.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) name: Box<[u8]>,
    pub(crate) protocol: Protocol,
    pub(crate) closing: bool,
    pub(crate) transaction: Transaction,
}

/// One connection to a [`Server`].
///
/// Life: [`Server::connect`], then [`Server::serve`] with what arrives, while
/// [`output`](Self::output) is sent and [`Server::sent`] told, then [`Server::disconnect`].
#[derive(Debug)]
pub struct Client {
    session: Session,
    frame: Frame,
    /// The bytes of an unfinished command, and what came after them.
    pending: Vec<u8>,
    out: Vec<u8>,
    /// Bytes at the start of `out` that are sent.
    out_sent: usize,
    /// What the server has counted for this client.
    counted: usize,
    /// It is one of those that [`Limits::clients_max`] bounds.
    admitted: bool,
}

impl Client {
    /// Replies that are not sent yet.
    #[inline]
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.out[self.out_sent..]
    }

    /// Whether the connection is to be closed once the output is sent. Nothing more is read.
    #[inline]
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.session.closing
    }

    /// Whether there are bytes whose commands may be waiting for output to be sent:
    /// [`Server::serve`] is then worth calling without new input.
    #[inline]
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    fn is_blocked(&self) -> bool {
        self.out.len() - self.out_sent >= BUFFER_KEPT
    }

    fn footprint(&self) -> usize {
        CLIENT_BYTES
            + self.session.name.len()
            + self.session.transaction.footprint()
            + self.frame.footprint()
            + self.pending.capacity()
            + self.out.capacity()
    }
}

/// The store, its clients' accounts, and the commands.
///
/// Commands: PING ECHO SELECT QUIT HELLO AUTH SHUTDOWN, SET SETNX SETEX PSETEX GET GETSET GETDEL MGET
/// MSET APPEND STRLEN INCR DECR INCRBY DECRBY, DEL UNLINK EXISTS TYPE KEYS DBSIZE FLUSHALL FLUSHDB,
/// EXPIRE PEXPIRE EXPIREAT PEXPIREAT TTL PTTL EXPIRETIME PEXPIRETIME PERSIST, INFO COMMAND CONFIG
/// CLIENT TIME, SCAN, MULTI EXEC DISCARD WATCH UNWATCH. There is one database, and all values are
/// strings.
pub struct Server {
    store: Store,
    state: State,
}

impl Server {
    /// An empty server. `seed` is as for [`Store::new`]. `clock` tells the time, in ms since 1970; as
    /// that may be dear, it is asked only now and when a deadline is set that counts from now.
    ///
    /// Invariant: a lease never ends early. Its deadline is counted from a fresh look at the clock,
    /// and compared with the time of the last [`set_time`](Self::set_time), which may be old.
    #[must_use]
    pub fn new(limits: Limits, seed: u64, clock: Clock) -> Self {
        let mut store = Store::new(limits.store_bytes_max, seed);
        let now_ms = clock();
        store.set_time(now_ms);
        Self {
            store,
            state: State {
                limits,
                clock,
                started_ms: now_ms,
                clients: 0,
                connections: 0,
                commands: 0,
                buffer_bytes: 0,
                shutdown: false,
            },
        }
    }

    /// Sets the time for what follows, in ms since 1970, as read from the clock. It does not step back.
    pub fn set_time(&mut self, now_ms: u64) {
        self.store.set_time(now_ms);
    }

    /// Looks at `slots` more entries for those past their deadline and gives back their memory. To be
    /// called now and then; expiry itself does not depend on it.
    pub fn sweep(&mut self, slots: usize) {
        self.store.sweep(slots);
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Bytes that all clients' buffers take.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.state.buffer_bytes
    }

    /// Whether a client has asked to shut the server down.
    #[inline]
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.state.shutdown
    }

    /// Begins a connection. If there are too many it is [closing](Client::is_closing) from the start,
    /// and its output says why.
    #[must_use]
    pub fn connect(&mut self) -> Client {
        self.state.connections += 1;
        let admitted = self.state.clients < self.state.limits.clients_max;
        self.state.clients += usize::from(admitted);
        let mut client = Client {
            session: Session {
                id: self.state.connections,
                name: Box::default(),
                protocol: Protocol::Two,
                closing: false,
                transaction: Transaction::default(),
            },
            frame: Frame::new(),
            pending: Vec::new(),
            out: Vec::new(),
            out_sent: 0,
            counted: 0,
            admitted,
        };
        if !admitted {
            Self::cut_off(&mut client, &CommandError::TooManyClients);
        }
        self.count(&mut client);
        client
    }

    /// Ends a connection.
    pub fn disconnect(&mut self, mut client: Client) {
        client.session.transaction.unwatch(&mut self.store);
        self.state.clients -= usize::from(client.admitted);
        self.state.buffer_bytes -= client.counted;
    }

    /// Runs the commands in what `client` sent, `input` being the bytes that come next, and returns
    /// how many of these it took. The rest is to be offered again once output has been sent: a client
    /// that does not take its replies gets no more work done.
    pub fn serve(&mut self, client: &mut Client, input: &[u8]) -> usize {
        if client.session.closing {
            return input.len();
        }
        if client.is_blocked() {
            return 0;
        }
        client.out.drain(..client.out_sent);
        client.out_sent = 0;
        let taken = if client.pending.is_empty() {
            self.serve_in_place(client, input)
        } else {
            self.serve_pending(client, input)
        };
        if client.session.closing {
            client.pending = Vec::new();
        }
        self.count(client);
        taken
    }

    /// Notes that the first `bytes` of `client`'s [`output`](Client::output) are sent.
    ///
    /// # Panics
    /// If there are not that many.
    #[inline]
    pub fn sent(&mut self, client: &mut Client, bytes: usize) {
        assert!(
            bytes <= client.out.len() - client.out_sent,
            "{bytes} bytes sent that were not there"
        );
        client.out_sent += bytes;
        if client.out_sent == client.out.len() {
            client.out.clear();
            client.out_sent = 0;
            if client.out.capacity() > BUFFER_KEPT {
                client.out = Vec::new();
                self.count(client);
            }
        }
    }

    /// Runs the commands in `input`, and keeps the start of an unfinished one.
    fn serve_in_place(&mut self, client: &mut Client, input: &[u8]) -> usize {
        let done = self.run(client, input);
        if done < input.len() && !client.session.closing {
            if client.is_blocked() {
                return done;
            }
            self.keep(client, &input[done..]);
        }
        input.len()
    }

    /// Runs the commands in what was kept, and then in `input`.
    fn serve_pending(&mut self, client: &mut Client, input: &[u8]) -> usize {
        self.run_pending(client);
        if client.is_blocked() {
            return 0;
        }
        if client.pending.is_empty() {
            return self.serve_in_place(client, input);
        }
        self.keep(client, input);
        self.run_pending(client);
        input.len()
    }

    /// Runs the commands in what was kept, and keeps the rest.
    fn run_pending(&mut self, client: &mut Client) {
        let mut pending = core::mem::take(&mut client.pending);
        let done = self.run(client, &pending);
        if done == pending.len() && pending.capacity() > BUFFER_KEPT {
            pending = Vec::new();
        }
        pending.drain(..done.min(pending.len()));
        client.pending = pending;
    }

    /// Appends to a client's pending bytes, or cuts it off if there is no room.
    fn keep(&mut self, client: &mut Client, bytes: &[u8]) {
        let length = client.pending.len() + bytes.len();
        if length > BUFFER_KEPT && bytes.len() > self.state.buffer_room()
            || client.pending.try_reserve(bytes.len()).is_err()
        {
            Self::cut_off(client, &CommandError::OutOfMemory);
            return;
        }
        client.pending.extend_from_slice(bytes);
    }

    /// Tells a client why, and reads nothing more of it.
    fn cut_off(client: &mut Client, error: &CommandError<'_>) {
        Reply::new(&mut client.out, Protocol::Two, REFUSAL_MAX).error(error);
        client.session.closing = true;
    }

    /// Runs the commands in `data`, until it ends or the client is blocked or closing, and returns
    /// how many bytes are done.
    fn run(&mut self, client: &mut Client, data: &[u8]) -> usize {
        let limits = FrameLimits {
            bulk_max: self.state.limits.bulk_bytes_max,
            command_max: self.state.limits.command_bytes_max,
        };
        let mut done = 0;
        while !client.session.closing && !client.is_blocked() {
            let command = &data[done..];
            match client.frame.parse(command, limits) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    self.execute(client, command);
                    client.frame.reset();
                    done += length;
                }
                Err(error) => {
                    Self::cut_off(client, &CommandError::Protocol(error));
                }
            }
        }
        done
    }

    /// Runs the command that `client.frame` found in `data`.
    #[inline]
    fn execute(&mut self, client: &mut Client, data: &[u8]) {
        let args = client.frame.args(data);
        if args.len() == 0 {
            return;
        }
        self.state.commands += 1;
        let start = client.out.len();
        let prepared = client.session.transaction.footprint();
        let room = self.state.buffer_room().max(BUFFER_KEPT);
        let reply_max = self.state.limits.command_bytes_max.min(room);
        let reply = Reply::new(&mut client.out, client.session.protocol, reply_max);
        let mut call = Call {
            store: &mut self.store,
            state: &mut self.state,
            session: &mut client.session,
            args,
            reply,
        };
        command::run(&mut call);
        if call.reply.overflowed() {
            client.out.truncate(start);
            Self::cut_off(client, &CommandError::TooBigReply);
        }
        // Counted at once, as the next command may add to it.
        let now_prepared = client.session.transaction.footprint();
        if now_prepared != prepared {
            client.counted = client.counted - prepared + now_prepared;
            self.state.buffer_bytes = self.state.buffer_bytes - prepared + now_prepared;
        }
    }

    /// Brings the account of a client's buffers up to date.
    #[inline]
    fn count(&mut self, client: &mut Client) {
        let footprint = client.footprint();
        self.state.buffer_bytes = self.state.buffer_bytes - client.counted + footprint;
        client.counted = footprint;
    }
}
