//! A TCP proxy far away: what comes in goes out a set time later, in either direction.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Starts a proxy to `target` that takes `one_way` for either direction, and says where it listens. For
/// one connection.
pub fn start(target: SocketAddr, one_way: Duration) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(target).unwrap();
        for socket in [&near, &far] {
            socket.set_nodelay(true).unwrap();
        }
        let (a, b) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || relay(a, b, one_way));
        relay(far, near, one_way);
    });
    address
}

fn relay(mut from: TcpStream, mut to: TcpStream, one_way: Duration) {
    let (under_way, arriving) = mpsc::channel::<(Instant, Vec<u8>)>();
    let arrival = std::thread::spawn(move || {
        for (due, bytes) in arriving {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut buffer = [0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let parcel = (Instant::now() + one_way, buffer[..count].to_vec());
        if under_way.send(parcel).is_err() {
            break;
        }
    }
    drop(under_way);
    let _ = arrival.join();
}
