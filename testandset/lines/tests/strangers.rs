//! The server among strangers who connect and hold, and the client's connection that is kept.

use lines::{Answer, Answerer, Asker, Client, Limits, Protocol};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testing::strangers::{Strangers, compare, times};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const OURS: Protocol = Protocol {
    name: "tandem-test",
    version: 1,
};
const LIMIT: Duration = Duration::from_secs(60);
const LINE: usize = 64 << 10;

/// So long that a test which waits for one of them fails.
fn patient() -> Limits {
    let never = Duration::from_secs(3600);
    Limits {
        connections: 200,
        silent: never,
        idle: never,
        transfer: never,
        ..Limits::for_lines(LINE)
    }
}

/// Answers every request with the number of connections that have greeted.
#[derive(Default)]
struct Greeted(AtomicUsize);

impl Answerer for Greeted {
    fn answer(&self, _: &Asker, _: Option<&[u8]>, first: bool) -> Answer {
        if first {
            self.0.fetch_add(1, Ordering::SeqCst);
            return Answer::Reply(OURS.greeting());
        }
        Answer::Reply(format!("{}\n", self.0.load(Ordering::SeqCst)).into_bytes())
    }
}

struct Server {
    address: SocketAddr,
    greeted: Arc<Greeted>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = runtime.block_on(TcpListener::bind(any)).unwrap();
        let address = listener.local_addr().unwrap();
        let greeted = Arc::new(Greeted::default());
        let answerer = Arc::clone(&greeted);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let security = tls::Security::Loopback;
            runtime.block_on(lines::serve(listener, security, limits, answerer, async {
                let _ = stopped.await;
            }));
        });
        Self {
            address,
            greeted,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn client(&self) -> Client {
        let client = Client::new(&self.address.to_string(), OURS, 100).unwrap();
        client.with_timeout(LIMIT)
    }

    fn greeted(&self) -> usize {
        self.greeted.0.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What strangers say before they are silent.
fn sayings() -> [Vec<u8>; 4] {
    let half = [OURS.greeting(), b"\"half a".to_vec()].concat();
    let asked = [OURS.greeting(), b"\"ask\"\n".to_vec()].concat();
    [Vec::new(), b"{\"proto".to_vec(), half, asked]
}

#[test]
fn a_call_is_answered_whatever_strangers_hold() {
    for said in sayings() {
        let server = Server::start(patient());
        let client = server.client();
        let alone = times(|| drop(client.call(&"ask").unwrap()));
        let strangers = Strangers::at(server.address, &said);
        let among = times(|| drop(client.call(&"ask").unwrap()));
        compare(&alone, &among);
        // The others are held as before: nobody was waited for.
        let begun = Instant::now();
        while strangers.held() > patient().connections {
            assert!(begun.elapsed() < LIMIT, "{} are held", strangers.held());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(strangers.held() > patient().connections / 2);
        assert!(strangers.count() > patient().connections);
    }
}

#[test]
fn a_connection_that_is_kept_outlasts_silent_strangers() {
    let server = Server::start(patient());
    let client = server.client();
    let ask = || client.call_kept(&"ask").unwrap();
    for _ in 0..10 {
        assert_eq!(ask(), b"1");
    }
    let strangers = Strangers::at(server.address, b"");
    for _ in 0..10 {
        assert_eq!(ask(), b"1", "over the same connection");
    }
    drop(strangers);
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_made_anew_within_the_call() {
    let limits = Limits {
        idle: Duration::from_millis(20),
        ..patient()
    };
    let server = Server::start(limits);
    let client = server.client();
    for calls in 1..=5 {
        client.call_kept(&"ask").unwrap();
        assert!(server.greeted() <= calls);
        std::thread::sleep(Duration::from_millis(60));
    }
    let before = server.greeted();
    assert!(before > 1, "it was not closed");
    drop(server);
    assert!(client.call_kept(&"ask").is_err());
}

#[test]
fn clones_that_call_at_once_each_have_their_answer() {
    let server = Server::start(patient());
    let client = server.client();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for _ in 0..50 {
                    client.call_kept(&"ask").unwrap();
                }
            });
        }
    });
}

#[test]
fn a_line_that_comes_a_byte_at_a_time_ends() {
    let limits = Limits {
        transfer: Duration::from_millis(200),
        ..patient()
    };
    let server = Server::start(limits);
    for before in [Vec::new(), OURS.greeting()] {
        let mut slow = TcpStream::connect(server.address).unwrap();
        slow.write_all(&before).unwrap();
        let mut reader = slow.try_clone().unwrap();
        let ended = std::thread::spawn(move || reader.read_to_end(&mut Vec::new()).map(|_| ()));
        let begun = Instant::now();
        while !ended.is_finished() {
            assert!(begun.elapsed() < LIMIT, "it is still listened to");
            let _ = slow.write_all(b"x");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn unfinished_lines_are_bounded_in_all() {
    let unread = 10 * LINE;
    let server = Server::start(Limits {
        unread,
        ..patient()
    });
    let half = [OURS.greeting(), vec![b'x'; LINE / 2]].concat();
    let connect = |_| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        let _ = stream.write_all(&half);
        stream
    };
    let streams: Vec<_> = (0..100).map(connect).collect();
    let is_open = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let mut said = [0; 4096];
        loop {
            match stream.read(&mut said) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                _ => return false,
            }
        }
    };
    // Twenty halves are what there may be: the others are closed.
    let begun = Instant::now();
    let open = loop {
        let open: Vec<_> = streams.iter().filter(|stream| is_open(stream)).collect();
        if open.len() <= 20 {
            break open;
        }
        assert!(begun.elapsed() < LIMIT, "{} are open", open.len());
        std::thread::sleep(Duration::from_millis(5));
    };
    server.client().call(&"ask").unwrap();
    // Those that are left may finish.
    let mut last = *open.last().expect("not all were closed");
    last.set_nonblocking(false).unwrap();
    last.set_read_timeout(Some(LIMIT)).unwrap();
    last.write_all(b"\n").unwrap();
    let mut said = [0; 1];
    last.read_exact(&mut said).unwrap();
    assert!(said[0].is_ascii_digit());
}
