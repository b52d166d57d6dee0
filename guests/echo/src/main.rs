//! Sends back what it is sent: TCP streams on one port, whole frames of one EtherType, and what is
//! typed at the console.
//!
//! Arguments: those of [`runtime::net`]; `port` (7); `conns` TCP connections at once (32); `frames` to
//! switch off after (0: never).
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::net::{QUEUE_SIZE, Stack, Verdict};
use runtime::{Args, console, interrupt, println};
use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Duration;

/// The EtherType of frames that are sent back as they are: the first of IEEE 802's for experiments.
const ECHO_TYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes of each connection's buffers, one per direction.
const BUFFER: usize = 32 * 1024;

/// A silent peer is asked this often whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A connection ends when its peer has said nothing for so long.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Frames sent back.
static FRAMES: AtomicU64 = AtomicU64::new(0);

runtime::entry!(main);

fn main(args: &Args) -> u32 {
    let port: u16 = args.parse("port", 7);
    let frames_max: u64 = args.parse("frames", 0);
    let mut stack = match Stack::new(args) {
        Ok(stack) => stack,
        Err(error) => {
            println!("echo: {error}");
            return 1;
        }
    };
    stack.set_filter(Some(send_back));
    let mut sockets = SocketSet::new(vec![]);
    for _ in 0..args.parse("conns", 32) {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(TIMEOUT));
        sockets.add(socket);
    }
    let mut scratch = vec![0; BUFFER];
    console::enable_input();
    let mut typed = 0;
    println!("echo: ready");
    loop {
        let notes = interrupt::notes(abi::SERIAL_IRQ);
        if notes != typed {
            typed = notes;
            while let Some(byte) = console::read() {
                console::write(byte);
            }
        }
        let mut busy = stack.receive(&mut sockets, QUEUE_SIZE);
        for (_, socket) in sockets.iter_mut() {
            let smoltcp::socket::Socket::Tcp(socket) = socket;
            serve(socket, port, &mut scratch);
        }
        busy |= stack.send(&mut sockets);
        let frames = FRAMES.load(Relaxed);
        if frames_max != 0 && frames >= frames_max {
            println!("echo: frames={frames}");
            return 0;
        }
        if !busy {
            stack.wait();
        }
    }
}

/// Turns a frame of [`ECHO_TYPE`] round.
fn send_back(frame: &mut [u8]) -> Verdict {
    if frame.get(12..14) != Some(&ECHO_TYPE) {
        return Verdict::Pass;
    }
    let (to, from) = frame[..12].split_at_mut(6);
    to.swap_with_slice(from);
    FRAMES.fetch_add(1, Relaxed);
    Verdict::Send
}

/// Copies what `socket` received to what it will send; listens anew when a connection is over.
fn serve(socket: &mut Socket<'_>, port: u16, scratch: &mut [u8]) {
    if !socket.is_open() {
        socket.listen(port).expect("cannot listen: is the port 0?");
        return;
    }
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let room = room.min(scratch.len());
        // Both can only fail on a connection that is over, which the next call sees.
        let received = socket.recv_slice(&mut scratch[..room]).unwrap_or(0);
        let _ = socket.send_slice(&scratch[..received]);
    }
    if !socket.may_recv() && socket.may_send() && socket.recv_queue() == 0 {
        socket.close();
    }
}
