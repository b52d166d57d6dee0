//! A TCP proxy that can be cut: bytes are held up in both directions, connections stay open.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

static CUT: AtomicBool = AtomicBool::new(false);

/// Starts a proxy to `target` and says where it listens. For one connection.
pub fn start(target: SocketAddr) -> SocketAddr {
    CUT.store(false, SeqCst);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(target).unwrap();
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        let (a, b) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || relay(a, b));
        relay(far, near);
    });
    address
}

/// From now on nothing passes.
pub fn cut() {
    CUT.store(true, SeqCst);
}

fn relay(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if CUT.load(SeqCst) {
            // Swallowed: whoever waits hears nothing, and nothing closes.
            continue;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    if !CUT.load(SeqCst) {
        let _ = to.shutdown(std::net::Shutdown::Both);
    } else {
        std::thread::park();
    }
}
