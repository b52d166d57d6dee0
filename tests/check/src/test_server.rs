//! A RESP server in a thread, true to the model, with faults to order.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::resp::{self, Reply};

/// What a key holds, and until when.
pub type Store = HashMap<Vec<u8>, (Vec<u8>, Option<Instant>)>;

#[derive(Default)]
struct State {
    store: Store,
    held: bool,
    waiting: usize,
    ended: bool,
    streams: Vec<TcpStream>,
}

#[derive(Default)]
struct Guarded {
    state: Mutex<State>,
    changed: Condvar,
}

/// A server; dropping it ends it.
pub struct TestServer {
    pub addr: SocketAddr,
    shared: Arc<Guarded>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl TestServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Guarded::default());
        let server = shared.clone();
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut state = server.state.lock().unwrap();
                if state.ended {
                    return;
                }
                state.streams.push(stream.try_clone().unwrap());
                let server = server.clone();
                std::thread::spawn(move || server.serve(stream));
            }
        });
        Self {
            addr,
            shared,
            accepting: Some(accepting),
        }
    }

    /// From now on requests wait, unseen, until [`TestServer::release`].
    pub fn hold(&self) {
        self.shared.state.lock().unwrap().held = true;
    }

    pub fn release(&self) {
        self.shared.state.lock().unwrap().held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until `count` connections wait with a request.
    pub fn wait_held(&self, count: usize) {
        let state = self.shared.state.lock().unwrap();
        let limit = Duration::from_secs(30);
        let waited = |state: &mut State| state.waiting < count;
        let (_state, timeout) = self
            .shared
            .changed
            .wait_timeout_while(state, limit, waited)
            .unwrap();
        assert!(!timeout.timed_out(), "the clients do not ask");
    }

    /// Closes the `n`-th connection made.
    pub fn close(&self, n: usize) {
        self.shared.state.lock().unwrap().streams[n]
            .shutdown(Shutdown::Both)
            .unwrap();
    }

    pub fn store(&self) -> Store {
        self.shared.state.lock().unwrap().store.clone()
    }

    /// Puts the store back to what it was: acknowledged writes are lost.
    pub fn restore(&self, store: Store) {
        self.shared.state.lock().unwrap().store = store;
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap();
        state.ended = true;
        for stream in &state.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.release();
        let _ = TcpStream::connect(self.addr);
        self.accepting.take().unwrap().join().unwrap();
    }
}

impl Guarded {
    fn serve(&self, mut stream: TcpStream) {
        let mut inbox = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(n) = stream.read(&mut chunk) {
            if n == 0 {
                return;
            }
            inbox.extend_from_slice(&chunk[..n]);
            let mut out = Vec::new();
            while let Some((request, len)) = resp::parse(&inbox).expect("a request") {
                inbox.drain(..len);
                let mut state = self.state.lock().unwrap();
                state.waiting += 1;
                self.changed.notify_all();
                let mut state = self
                    .changed
                    .wait_while(state, |s| s.held && !s.ended)
                    .unwrap();
                state.waiting -= 1;
                execute(&mut state.store, &request, &mut out);
            }
            if stream.write_all(&out).is_err() {
                return;
            }
        }
    }
}

fn execute(store: &mut Store, request: &Reply, out: &mut Vec<u8>) {
    let Reply::Array(Some(items)) = request else {
        panic!("a request is an array")
    };
    let args: Vec<&[u8]> = items
        .iter()
        .map(|item| match item {
            Reply::Bulk(Some(bytes)) => bytes.as_slice(),
            _ => panic!("of bulk strings"),
        })
        .collect();
    let now = Instant::now();
    let key = args[1].to_vec();
    if store
        .get(&key)
        .is_some_and(|(_, until)| until.is_some_and(|until| until <= now))
    {
        store.remove(&key);
    }
    let there = store.get(&key).cloned();
    match args[0] {
        b"GET" => match there {
            Some((value, _)) => {
                write!(out, "${}\r\n", value.len()).unwrap();
                out.extend(value);
                out.extend(b"\r\n");
            }
            None => out.extend(b"$-1\r\n"),
        },
        b"SET" => {
            let nx = args.contains(&&b"NX"[..]);
            let px = args.iter().position(|arg| *arg == b"PX").map(|at| {
                let ms = String::from_utf8(args[at + 1].to_vec())
                    .unwrap()
                    .parse()
                    .unwrap();
                now + Duration::from_millis(ms)
            });
            if nx && there.is_some() {
                out.extend(b"$-1\r\n");
            } else {
                store.insert(key, (args[2].to_vec(), px));
                out.extend(b"+OK\r\n");
            }
        }
        b"DEL" => write!(out, ":{}\r\n", u8::from(store.remove(&key).is_some())).unwrap(),
        b"INCR" => {
            let (value, until) = there.unwrap_or((b"0".to_vec(), None));
            let next: i64 = String::from_utf8(value).unwrap().parse::<i64>().unwrap() + 1;
            store.insert(key, (next.to_string().into_bytes(), until));
            write!(out, ":{next}\r\n").unwrap();
        }
        b"APPEND" => {
            let (mut value, until) = there.unwrap_or_default();
            value.extend(args[2]);
            write!(out, ":{}\r\n", value.len()).unwrap();
            store.insert(key, (value, until));
        }
        _ => out.extend(b"-ERR unknown command\r\n"),
    }
}
