//! The store behind an ordinary TCP socket of the host, to try it with real clients without a machine.
//!
//! `cargo run --release --example server --manifest-path guests/kvstore/Cargo.toml -- 127.0.0.1:6380`

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kvstore::{Client, Limits, Server};

/// Heap of the guest this stands for.
const HEAP: usize = 56 << 20;
/// What the guest's receive buffer holds.
const CHUNK: usize = 16 * 1024;
/// Slots swept with each read.
const SWEEP: usize = 16;

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_millis() as u64)
}

fn lock(server: &Mutex<Server>) -> MutexGuard<'_, Server> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one connection until it ends.
fn converse(
    mut stream: TcpStream,
    client: &mut Client,
    server: &Mutex<Server>,
) -> std::io::Result<()> {
    let mut chunk = [0; CHUNK];
    while !client.is_closing() {
        let bytes = stream.read(&mut chunk)?;
        if bytes == 0 {
            break;
        }
        let mut input = &chunk[..bytes];
        loop {
            let taken = {
                let mut server = lock(server);
                server.set_time(now_ms());
                server.sweep(SWEEP);
                let taken = server.serve(client, input);
                if server.is_shut_down() {
                    std::process::exit(0);
                }
                taken
            };
            input = &input[taken..];
            let sent = client.output().len();
            stream.write_all(client.output())?;
            lock(server).sent(client, sent);
            // Output makes room for more: until there is none, nothing is waiting.
            if sent == 0 && input.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:6380".into());
    let listener = TcpListener::bind(&address)?;
    println!("kvstore: serving on {address}");
    let server = Server::new(Limits::for_heap(HEAP), now_ms(), Box::new(now_ms));
    let server = Arc::new(Mutex::new(server));
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        let server = Arc::clone(&server);
        std::thread::spawn(move || {
            let mut client = lock(&server).connect();
            if let Err(error) = converse(stream, &mut client, &server) {
                eprintln!("kvstore: a connection broke: {error}");
            }
            lock(&server).disconnect(client);
        });
    }
    Ok(())
}
