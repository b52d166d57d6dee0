//! A key-value server that speaks RESP: what redis-cli, redis-benchmark and client libraries talk to.
//!
//! ```text
//! frames ─▶ smoltcp ─▶ receive buffer ─▶ Server::serve ─▶ Client::output ─▶ send buffer ─▶ frames
//!                       (one Connection per socket; all sockets listen until someone comes)
//! ```
//!
//! Arguments: those of [`runtime::net`]; `port` (6379); `conns` connections at once (128).
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
use runtime::net::Stack;
use runtime::{Args, control, println, rtc};
use smoltcp::iface::SocketSet;
use smoltcp::socket::Socket;

/// Entries looked at for their deadline at each tick: all of a full store within seconds, and a few
/// microseconds of work.
const SWEEP: usize = 1024;

runtime::entry!(main);

fn main(args: &Args) -> u32 {
    let port: u16 = args.parse("port", 6379);
    let count: usize = args.parse("conns", 128);
    assert!(port != 0, "port=0: nobody could connect");
    let mut stack = match Stack::new(args) {
        Ok(stack) => stack,
        Err(error) => {
            println!("kv: {error}");
            return 1;
        }
    };
    let mut sockets = SocketSet::new(vec![]);
    for _ in 0..count {
        sockets.add(connection::socket());
    }
    let mut connections: Vec<Connection> = (0..count).map(|_| Connection::new(port)).collect();
    // The wall clock is read once; from there the time goes on with the TSC.
    let started_ns = stack.now_ns();
    let started_ms = rtc::now().unix_seconds() * 1000;
    let wall_ms = move |now_ns: u64| started_ms + (now_ns - started_ns) / 1_000_000;
    let clock = Box::new(move || wall_ms(control::tsc()));
    let mut server = Server::new(Limits::for_heap(free_memory()), started_ns, clock);
    let mut listening = serve(&mut sockets, &mut connections, &mut server, count);
    println!("kv: ready");
    let mut seen_ns = started_ns;
    while !server.is_shut_down() {
        let mut busy = stack.receive(&mut sockets);
        let now_ns = stack.now_ns();
        let ticked = now_ns != seen_ns;
        if ticked {
            seen_ns = now_ns;
            server.set_time(wall_ms(now_ns));
            server.sweep(SWEEP);
        }
        if busy || ticked {
            listening = serve(&mut sockets, &mut connections, &mut server, listening);
        }
        busy |= stack.send(&mut sockets);
        if !busy {
            stack.wait();
        }
    }
    // What was answered goes out, and every client learns that this is the end.
    for (_, Socket::Tcp(socket)) in sockets.iter_mut() {
        socket.close();
    }
    stack.send(&mut sockets);
    println!("kv: shut down");
    0
}

/// Serves every connection once, and returns how many sockets listen then; `listening` is how many did
/// before.
fn serve(
    sockets: &mut SocketSet<'_>,
    connections: &mut [Connection],
    server: &mut Server,
    listening: usize,
) -> usize {
    let spare = Spare::new(listening, connections.len());
    let mut listening = 0;
    for ((_, Socket::Tcp(socket)), connection) in sockets.iter_mut().zip(connections) {
        connection.serve(socket, server, spare);
        listening += usize::from(socket.is_listening());
    }
    listening
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
