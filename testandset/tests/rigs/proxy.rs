//! A proxy in front of a server, which can keep its replies.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Passes on what clients and the server say, until it is to lose a reply.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    lost: Mutex<Receiver<usize>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: String,
    /// From now on replies are lost, and the connections they come on with them.
    loses: AtomicBool,
    ended: AtomicBool,
    accepted: AtomicUsize,
    lost: Mutex<Sender<usize>>,
}

impl Proxy {
    /// In front of `server`, passing on everything.
    pub fn new(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, lost) = channel();
        let shared = Arc::new(Shared {
            server: server.into(),
            loses: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            lost: Mutex::new(tell),
        });
        let accepting = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                accepting.accepted.fetch_add(1, Ordering::SeqCst);
                // A server that is down is a connection that closes.
                if let Ok(server) = TcpStream::connect(&accepting.server) {
                    let shared = Arc::clone(&accepting);
                    std::thread::spawn(move || shared.pass(client.unwrap(), server));
                }
            }
        });
        Self {
            address,
            shared,
            lost: Mutex::new(lost),
            thread: Some(thread),
        }
    }

    /// Whether replies are lost from now on.
    pub fn lose(&self, loses: bool) {
        self.shared.loses.store(loses, Ordering::SeqCst);
    }

    /// How many connections it was asked for.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Forgets what was lost until now.
    pub fn forget(&self) {
        self.lost.lock().unwrap().try_iter().for_each(drop);
    }

    /// Waits until a reply was lost, since it was told to forget: how many bytes of it came.
    pub fn lost(&self) -> usize {
        self.lost.lock().unwrap().recv().unwrap()
    }
}

impl Shared {
    /// One connection, to its end.
    fn pass(self: Arc<Self>, client: TcpStream, server: TcpStream) {
        let [(mut from, mut to), (mut back_from, mut back_to)] = [
            (client.try_clone().unwrap(), server.try_clone().unwrap()),
            (server, client),
        ];
        let asks = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let mut bytes = [0; 4096];
        while let Ok(read) = back_from.read(&mut bytes)
            && read > 0
        {
            if self.loses.load(Ordering::SeqCst) {
                let _ = self.lost.lock().unwrap().send(read);
                break;
            }
            if back_to.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        let _ = back_to.shutdown(Shutdown::Both);
        let _ = back_from.shutdown(Shutdown::Both);
        asks.join().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
