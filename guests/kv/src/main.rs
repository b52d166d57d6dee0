//! A key-value server that speaks RESP: what redis-cli, redis-benchmark and client libraries talk to.
//!
//! ```text
//! frames ─▶ smoltcp ─▶ receive buffer ─▶ Server::serve ─▶ Client::output ─▶ send buffer ─▶ frames
//!                       (one Connection per socket; all sockets listen until someone comes)
//! ```
//!
//! Arguments: those of [`runtime::net`]; `port` (6379); `conns` clients at once (as many as a quarter of
//! the heap has sockets for, but no fewer than 128 and no more than 10,000).
//!
//! Sockets are made as clients come, some ahead of them. Each takes 32 KiB, and each packet and each
//! round of the server costs a look at all of them.
#![no_std]
#![no_main]

extern crate alloc;

mod connection;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use connection::{Connection, Spare};
use core::hint::black_box;
use kvstore::{Limits, Server};
use runtime::net::{QUEUE_SIZE, Stack, Verdict};
use runtime::{Args, control, println, rtc};
use smoltcp::iface::SocketSet;
use smoltcp::socket::Socket;
use smoltcp::time::Instant;

/// Entries looked at for their deadline at each tick: all of a full store within seconds, and a few
/// microseconds of work.
const SWEEP: usize = 1024;
/// Fewest clients at once, and most, if no argument says otherwise. The most is Redis's own default.
const CLIENTS: (usize, usize) = (128, 10_000);
/// Sockets beyond those of the clients, for telling others that there are too many.
const REFUSALS: usize = 32;
/// Sockets to begin with, and the fewest that are to listen: new ones are made in steps of as many.
const SOCKETS: usize = 128;
const LISTENING: usize = 64;

runtime::entry!(main);

fn main(args: &Args) -> u32 {
    let port: u16 = args.parse("port", 6379);
    assert!(port != 0, "port=0: nobody could connect");
    let mut stack = match Stack::new(args) {
        Ok(stack) => stack,
        Err(error) => {
            println!("kv: {error}");
            return 1;
        }
    };
    let heap = free_memory();
    let (least, most) = CLIENTS;
    let clients = (heap / 4 / connection::BYTES).clamp(least, most);
    let clients: usize = args.parse("conns", clients);
    if clients.saturating_add(REFUSALS) > heap / 2 / connection::BYTES {
        println!("kv: conns={clients} is too many for the memory there is");
        return 1;
    }
    let mut pool = Pool::new(port, clients.saturating_add(REFUSALS));
    // The wall clock is read once; from there the time goes on with the TSC.
    let started_ns = stack.now_ns();
    let started_ms = rtc::now().unix_seconds() * 1000;
    let wall_ms = move |now_ns: u64| started_ms + (now_ns - started_ns) / 1_000_000;
    let clock = Box::new(move || wall_ms(control::tsc()));
    let limits = Limits {
        clients_max: clients,
        // The sockets yet to come have their memory too.
        ..Limits::for_heap(heap.saturating_sub(pool.bytes_max()))
    };
    let mut server = Server::new(limits, started_ns, clock);
    println!("kv: ready");
    let mut seen_ns = started_ns;
    while !server.is_shut_down() {
        let mut busy = pool.receive(&mut stack);
        let now_ns = stack.now_ns();
        let ticked = now_ns != seen_ns;
        if ticked {
            seen_ns = now_ns;
            server.set_time(wall_ms(now_ns));
            server.sweep(SWEEP);
        }
        if busy || ticked {
            pool.serve(&mut server, stack.now());
        }
        busy |= stack.send(&mut pool.sockets);
        if !busy {
            stack.wait();
        }
    }
    // What was answered goes out, and every client learns that this is the end.
    for (_, Socket::Tcp(socket)) in pool.sockets.iter_mut() {
        socket.close();
    }
    stack.send(&mut pool.sockets);
    println!("kv: shut down");
    0
}

/// The sockets and what belongs to them.
struct Pool {
    port: u16,
    sockets: SocketSet<'static>,
    /// One for each socket, in the same order.
    connections: Vec<Connection>,
    /// How many sockets listen.
    listening: usize,
    /// Most sockets there may be.
    most: usize,
}

impl Pool {
    /// Sockets to begin with, of `most` at most.
    fn new(port: u16, most: usize) -> Self {
        let mut pool = Self {
            port,
            sockets: SocketSet::new(vec![]),
            connections: Vec::new(),
            listening: 0,
            most,
        };
        pool.grow(SOCKETS);
        pool
    }

    /// Bytes all sockets take once there are as many as there may be.
    fn bytes_max(&self) -> usize {
        self.most.saturating_mul(connection::BYTES)
    }

    /// Makes `count` more sockets, as far as may be.
    fn grow(&mut self, count: usize) {
        for _ in 0..count.min(self.most - self.connections.len()) {
            let Some((connection, socket)) = Connection::new(self.port) else {
                // There is no more memory, and there will not be.
                self.most = self.connections.len();
                return;
            };
            self.sockets.add(socket);
            self.connections.push(connection);
            self.listening += 1;
        }
    }

    /// Takes in what has come. Returns whether a socket may have changed.
    ///
    /// A client that nobody listens for is reset, which tells it that there is no server. So no more
    /// frames are taken in at once than sockets listen, and with none, new clients are not heard at all:
    /// they ask again, a second later the first time, and some socket is free by then.
    fn receive(&mut self, stack: &mut Stack) -> bool {
        let deaf = self.listening == 0;
        stack.set_filter(deaf.then_some(without_new_clients));
        let frames = if deaf { QUEUE_SIZE } else { self.listening };
        stack.receive(&mut self.sockets, frames)
    }

    /// Serves every connection once, and sees to it that sockets listen.
    fn serve(&mut self, server: &mut Server, now: Instant) {
        let spare = Spare::new(self.listening, LISTENING);
        self.listening = 0;
        for ((_, Socket::Tcp(socket)), connection) in
            self.sockets.iter_mut().zip(&mut self.connections)
        {
            connection.serve(socket, server, spare, now);
            self.listening += usize::from(socket.is_listening());
        }
        if self.listening < LISTENING {
            self.grow(LISTENING);
        }
    }
}

/// Drops what asks for a new TCP connection over IPv4.
fn without_new_clients(frame: &mut [u8]) -> Verdict {
    /// Where the header of IPv4 begins, its field for the protocol, and TCP's number there.
    const IP: usize = 14;
    const PROTOCOL: usize = IP + 9;
    const TCP: u8 = 6;
    /// Where TCP's header has its flags, and those that tell: SYN without ACK.
    const FLAGS: usize = 13;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let asks = || {
        let ip = frame.get(12..=PROTOCOL)?;
        let length = usize::from(frame[IP] & 0xf) * 4;
        let flags = frame.get(IP + length + FLAGS)?;
        let tcp = ip[..2] == [0x08, 0x00] && frame[PROTOCOL] == TCP;
        Some(tcp && flags & (SYN | ACK) == SYN)
    };
    if asks() == Some(true) {
        Verdict::Drop
    } else {
        Verdict::Pass
    }
}

/// Most bytes the heap gives in one piece: nearly all of it, this early.
fn free_memory() -> usize {
    let fits = |bytes| {
        let mut piece = Vec::<u8>::new();
        // The compiler may not take it as given that an allocation nobody looks at succeeds.
        piece.try_reserve_exact(bytes).is_ok() && black_box(piece).capacity() >= bytes
    };
    let bits = (12..usize::BITS - 1).rev().map(|bit| 1 << bit);
    bits.fold(0, |bytes, bit| {
        if fits(bytes + bit) {
            bytes + bit
        } else {
            bytes
        }
    })
}
