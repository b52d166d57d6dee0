//! A TCP proxy on the logging channel, and on the tether beside it, of which one direction can be cut without
//! the other. For one pair at a time. It stands for a network, which has no other work: so its threads go before
//! the host's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// What becomes of the bytes of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// They go on.
    Open,
    /// They wait, as TCP keeps them for a network that may come back.
    Held,
    /// They are gone.
    Swallowed,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToBackup,
    ToPrimary,
}

pub const WAYS: [Way; 2] = [Way::ToBackup, Way::ToPrimary];

struct Valve {
    flows: Mutex<[Flow; 2]>,
    changed: Condvar,
}

/// That of the pair that was started last.
static VALVE: Mutex<Option<Arc<Valve>>> = Mutex::new(None);

/// Connections of a pair: the channel, and the tether.
const CONNECTIONS: usize = 2;

/// Starts a proxy to `target` and says where it listens.
pub fn start(target: SocketAddr) -> SocketAddr {
    let valve = Arc::new(Valve {
        flows: Mutex::new([Flow::Open; 2]),
        changed: Condvar::new(),
    });
    let before = VALVE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .replace(valve.clone());
    if let Some(before) = before {
        // Its pair is gone.
        for way in WAYS {
            before.set(way, Flow::Open);
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for primary in listener.incoming().take(CONNECTIONS) {
            let primary = primary.unwrap();
            // A tether that comes too late finds nobody.
            let Ok(backup) = TcpStream::connect(target) else {
                continue;
            };
            for socket in [&primary, &backup] {
                socket.set_nodelay(true).unwrap();
            }
            let (from, to) = (primary.try_clone().unwrap(), backup.try_clone().unwrap());
            valve.clone().start(Way::ToBackup, from, to);
            valve.clone().start(Way::ToPrimary, backup, primary);
        }
    });
    address
}

/// Sets what becomes of a direction from now on.
pub fn set(way: Way, flow: Flow) {
    let valve = VALVE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    valve.expect("a pair was started").set(way, flow);
}

impl Valve {
    fn set(&self, way: Way, flow: Flow) {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)[way as usize] = flow;
        self.changed.notify_all();
    }

    /// What becomes of bytes that are there: waits while they are held.
    fn goes_on(&self, way: Way) -> bool {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let flows = self
            .changed
            .wait_while(flows, |flows| flows[way as usize] == Flow::Held)
            .unwrap_or_else(PoisonError::into_inner);
        flows[way as usize] == Flow::Open
    }

    fn start(self: Arc<Self>, way: Way, from: TcpStream, to: TcpStream) {
        std::thread::spawn(move || {
            logchannel::be_punctual();
            self.relay(way, from, to);
        });
    }

    fn relay(&self, way: Way, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if self.goes_on(way) && to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // An end goes the way of bytes: a cut lets none through.
        if self.goes_on(way) {
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}
