//! Connections of strangers to a server: many, and held.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How many strangers there are, where this process may have so many descriptors: server and strangers are
/// both in it.
const MANY: u64 = 2000;

/// Calls whose times are compared.
const CALLS: usize = 20;

/// Connections that are held.
pub struct Strangers(Vec<TcpStream>);

impl Strangers {
    /// Many of them at `address`; each says `said` and then nothing.
    pub fn at(address: SocketAddr, said: &[u8]) -> Self {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let most = most.min(16_384);
        setrlimit(
            Resource::RLIMIT_NOFILE,
            most,
            getrlimit(Resource::RLIMIT_NOFILE).unwrap().1,
        )
        .unwrap();
        // Some are for the harness and for other tests of this process.
        let many = MANY.min((most - 500) / 4);
        let connect = |nth| {
            // What a listener takes at a time is bounded, and who is not taken tries again a second later.
            if nth % 50 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            let mut stream = TcpStream::connect(address).unwrap();
            // The server may have closed it already, for another.
            let _ = stream.write_all(said);
            stream
        };
        Self((0..many).map(connect).collect())
    }

    /// How many the server has not closed.
    pub fn held(&self) -> usize {
        let is_open = |mut stream: &TcpStream| {
            stream.set_nonblocking(true).unwrap();
            let mut said = [0; 4096];
            loop {
                match stream.read(&mut said) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(e) => return e.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        };
        self.0.iter().filter(|stream| is_open(stream)).count()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// How long each of some calls takes, the shortest first.
pub fn times(mut call: impl FnMut()) -> Vec<Duration> {
    let mut times: Vec<_> = (0..CALLS)
        .map(|_| {
            let begun = Instant::now();
            call();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times
}

/// Checks that calls among strangers take no more than some times as long as calls alone do, and half a
/// second for what else a loaded host does. A call that waits for strangers to go takes seconds, and some
/// thousand times as long.
pub fn compare(alone: &[Duration], among: &[Duration]) {
    let (longest, middle) = (alone[alone.len() - 1], among[among.len() / 2]);
    println!("alone at most {longest:?}; among strangers half of the calls at most {middle:?}");
    assert!(
        middle < 50 * longest + Duration::from_millis(500),
        "alone {alone:?}, among strangers {among:?}"
    );
}
