//! The server among strangers who connect and hold, and the client's connection that is kept.

use api::{CallError, Client, Limits, Method, Stats};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as Listener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testing::strangers::{Strangers, compare, times};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const LIMIT: Duration = Duration::from_secs(60);
const BODY: usize = 64 << 10;

const ASK: &str = "GET /v1/ask HTTP/1.1\r\nHost: tandem\r\n\r\n";

/// The head of a request whose body is as long as one may be.
fn head() -> String {
    format!("POST /v1/length HTTP/1.1\r\nHost: tandem\r\nContent-Length: {BODY}\r\n\r\n")
}

/// So long that a test which waits for one of them fails.
fn patient() -> Limits {
    let never = Duration::from_secs(3600);
    Limits {
        connections: 200,
        silent: never,
        idle: never,
        transfer: never,
        ..Limits::for_bodies(BODY)
    }
}

struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Something that has no end, of which nothing comes.
fn stream() -> Response {
    struct Never;
    impl hyper::body::Body for Never {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Pending
        }
    }
    (
        [(header::CONTENT_TYPE, "text/event-stream")],
        Body::new(Never),
    )
        .into_response()
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
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let ask = async move || (count.fetch_add(1, Ordering::SeqCst) + 1).to_string();
        let router = Router::new()
            .route("/v1/ask", get(ask))
            .route(
                "/v1/length",
                post(async |body: Bytes| body.len().to_string()),
            )
            .route("/v1/stream", get(async || stream()));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let security = tls::Security::Loopback;
            let stats = Arc::new(Stats::default());
            let stopped = async {
                let _ = stopped.await;
            };
            runtime.block_on(api::serve(
                listener, security, limits, router, stats, stopped,
            ));
        });
        Self {
            address,
            asked,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn client(&self) -> Client {
        let client = Client::new(&self.address.to_string(), 100).unwrap();
        client.with_timeout(LIMIT)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "server panicked");
    }
}

fn ask(client: &Client) -> String {
    let reply = client.call(Method::GET, "/v1/ask", None::<&()>).unwrap();
    String::from_utf8(reply.body).unwrap()
}

fn ask_kept(client: &Client) -> Result<u16, CallError> {
    let reply = client.call_kept(Method::GET, "/v1/ask", None::<&()>);
    reply.map(|reply| reply.status)
}

/// Whether the server has not closed it.
fn is_open(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut said = [0; 4096];
    loop {
        match stream.read(&mut said) {
            Ok(n) if n > 0 => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
            _ => return false,
        }
    }
}

/// Waits until `done` says so.
#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_call_is_answered_whatever_strangers_hold() {
    let half = head() + "half a body";
    for said in ["", "GET /v1", &half, ASK] {
        let server = Server::start(patient());
        let client = server.client();
        let alone = times(|| drop(ask(&client)));
        let strangers = Strangers::at(server.address, said.as_bytes());
        let among = times(|| drop(ask(&client)));
        compare(&alone, &among);
        // The others are held as before: nobody was waited for.
        let max = patient().connections;
        until("too many are held", || strangers.held() <= max);
        assert!(strangers.held() > max / 2);
        assert!(strangers.count() > max);
    }
}

/// Passes connections on to a server, and counts them.
fn counted(server: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = Listener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            counting.fetch_add(1, Ordering::SeqCst);
            let Ok(far) = TcpStream::connect(server) else {
                continue;
            };
            let ways = [
                (near.try_clone().unwrap(), far.try_clone().unwrap()),
                (far, near),
            ];
            for (mut from, mut to) in ways {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    (address, count)
}

#[test]
fn a_connection_that_is_kept_outlasts_silent_strangers() {
    let server = Server::start(patient());
    let (address, connections) = counted(server.address);
    let client = Client::new(&address.to_string(), 100)
        .unwrap()
        .with_timeout(LIMIT);
    for _ in 0..10 {
        assert_eq!(ask_kept(&client), Ok(200));
    }
    let strangers = Strangers::at(server.address, b"");
    for _ in 0..10 {
        assert_eq!(ask_kept(&client), Ok(200));
    }
    drop(strangers);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_connection_that_was_closed_meanwhile_is_made_anew_within_the_call() {
    let limits = Limits {
        idle: Duration::from_millis(20),
        ..patient()
    };
    let server = Server::start(limits);
    let (address, connections) = counted(server.address);
    let client = Client::new(&address.to_string(), 100)
        .unwrap()
        .with_timeout(LIMIT);
    for calls in 1..=5 {
        ask_kept(&client).unwrap();
        assert!(connections.load(Ordering::SeqCst) <= calls);
        std::thread::sleep(Duration::from_millis(60));
    }
    assert!(connections.load(Ordering::SeqCst) > 1, "it was not closed");
    drop(server);
    assert!(ask_kept(&client).is_err());
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
                    assert_eq!(ask_kept(&client), Ok(200));
                }
            });
        }
    });
    assert_eq!(server.asked.load(Ordering::SeqCst), 400);
}

#[test]
fn a_request_that_comes_a_byte_at_a_time_ends() {
    let limits = Limits {
        transfer: Duration::from_millis(200),
        ..patient()
    };
    let server = Server::start(limits);
    for before in [String::new(), ASK.into(), head(), ASK.to_owned() + &head()] {
        let mut slow = TcpStream::connect(server.address).unwrap();
        slow.write_all(before.as_bytes()).unwrap();
        let mut reader = slow.try_clone().unwrap();
        let ended = std::thread::spawn(move || reader.read_to_end(&mut Vec::new()).map(|_| ()));
        let begun = Instant::now();
        while !ended.is_finished() {
            assert!(begun.elapsed() < LIMIT, "it is still listened to: {before}");
            let _ = slow.write_all(b"x");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn who_says_nothing_or_reads_nothing_is_hung_up_on() {
    let limits = Limits {
        silent: Duration::from_millis(100),
        idle: Duration::from_millis(200),
        transfer: Duration::from_millis(200),
        ..patient()
    };
    let server = Server::start(limits);
    let silent = TcpStream::connect(server.address).unwrap();
    let idle = TcpStream::connect(server.address).unwrap();
    (&idle).write_all(ASK.as_bytes()).unwrap();
    until("the silent one is held", || !is_open(&silent));
    until("the idle one is held", || !is_open(&idle));
    // It asks, and never reads what it is told: more than sockets hold.
    let deaf = TcpStream::connect(server.address).unwrap();
    deaf.set_nonblocking(true).unwrap();
    until("the one that does not read is held", || {
        loop {
            // Part of a request may go: what counts is that nothing more does.
            if let Err(e) = (&deaf).write_all(ASK.as_bytes()) {
                return e.kind() != std::io::ErrorKind::WouldBlock;
            }
        }
    });
    // A stream has no end, and is no reason to hang up; nor does it hold the server's end up.
    let listens = TcpStream::connect(server.address).unwrap();
    (&listens)
        .write_all(ASK.replace("ask", "stream").as_bytes())
        .unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert!(is_open(&listens));
    drop(server);
    until("the stream goes on", || !is_open(&listens));
}

#[test]
fn unfinished_requests_are_bounded_in_all() {
    let unread = 10 * BODY;
    let server = Server::start(Limits {
        unread,
        ..patient()
    });
    let half = [head().as_bytes(), &[b'x'; BODY / 2]].concat();
    let connect = |_| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        let _ = stream.write_all(&half);
        stream
    };
    let streams: Vec<_> = (0..100).map(connect).collect();
    // Twenty halves are what there may be: the others are closed.
    let open = || streams.iter().filter(|stream| is_open(stream)).collect();
    let mut left: Vec<&TcpStream> = open();
    until("too many are open", || {
        left = open();
        left.len() <= 20
    });
    ask(&server.client());
    // Those that are left may finish.
    let mut last = *left.last().expect("not all were closed");
    last.set_nonblocking(false).unwrap();
    last.set_read_timeout(Some(LIMIT)).unwrap();
    last.write_all(&[b'x'; BODY / 2]).unwrap();
    let mut said = [0; 12];
    last.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"HTTP/1.1 200");
}
