//! What clients do to a server while it is recorded.

use super::LIMIT;
use super::plan::{Guest, Plan};
use check::rng::Rng;
use check::{Load, LoadOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

/// Talks to the server as `plan` says, and checks what it answers.
pub fn clients(plan: &Plan, server: SocketAddr) -> Result<(), String> {
    let mut rng = plan.clients();
    connect(server).map_err(|e| format!("no connection: {e}"))?;
    match plan.guest {
        Guest::Echo => echo(server, &mut rng),
        Guest::Kv => kv(server, &mut rng),
        other => unreachable!("{} serves nobody", other.name()),
    }
}

/// Connects. A machine that gets little of the CPU may leave even ARP requests unanswered for a while.
fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect_timeout(&server, LIMIT) {
            Err(e) if e.kind() == ErrorKind::HostUnreachable && begun.elapsed() < LIMIT => {}
            result => return result,
        }
    }
}

fn kv(server: SocketAddr, rng: &mut Rng) -> Result<(), String> {
    let options = LoadOptions {
        clients: 1 + rng.below(8) as u16,
        pipeline: 1 + rng.below(4) as u16,
        seed: rng.next_u64(),
        reply_limit: LIMIT,
        ..LoadOptions::default()
    };
    let load = Load::start(server, options).map_err(|e| e.to_string())?;
    let enough = load.wait_replies(50 + rng.below(600), LIMIT);
    let history = load.stop();
    if !history.breaks.is_empty() {
        return Err(format!("connections broke: {:?}", history.breaks));
    }
    if enough {
        Ok(())
    } else {
        Err("clients got too few replies in time".into())
    }
}

/// A few connections one after the other, each with bytes of its own both ways at once.
fn echo(server: SocketAddr, rng: &mut Rng) -> Result<(), String> {
    for connection in 0..1 + rng.below(3) {
        let bytes: Vec<u8> = (0..1 + rng.below(50_000))
            .map(|_| rng.next_u64() as u8)
            .collect();
        let chunk = 1 + rng.below(8000) as usize;
        let back = send_and_receive(server, &bytes, chunk)
            .map_err(|e| format!("echo, connection {connection}: {e}"))?;
        if back != bytes {
            return Err(format!(
                "echo, connection {connection}: other bytes came back"
            ));
        }
    }
    Ok(())
}

fn send_and_receive(server: SocketAddr, bytes: &[u8], chunk: usize) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut back = vec![0; bytes.len()];
    let mut reader = stream.try_clone()?;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| reader.read_exact(&mut back));
        for part in bytes.chunks(chunk) {
            stream.write_all(part)?;
        }
        reading.join().expect("reading does not panic")
    })?;
    Ok(back)
}
