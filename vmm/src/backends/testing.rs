//! What the tests of several backends share: a process of their own, a listener, a small guest.

use super::{ArrivalSink, Mac, NetPort};
use replay::Arrival;
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait of a test for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `body`, as the test that calls this, in a process that has one thread and is thrown away: it may
/// change what belongs to the whole process.
pub fn isolated(body: impl FnOnce()) {
    const INSIDE: &str = "TANDEM_TEST_ISOLATED";
    if std::env::var_os(INSIDE).is_some() {
        return forked(body);
    }
    let current = std::thread::current();
    let name = current.name().expect("tests run in threads of their name");
    let output = std::process::Command::new("/proc/self/exe")
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("this binary can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    for line in text.lines().filter(|line| line.contains("SKIPPED")) {
        println!("{line}");
    }
    assert!(text.contains("1 passed"), "{text}\n{errors}");
    assert!(output.status.success(), "{text}\n{errors}");
}

/// Forks while all other threads of the process only wait for this one.
fn forked(body: impl FnOnce()) {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, alarm, fork};
    // SAFETY: the harness's main thread waits for this test and holds no lock the child could need.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            // Ends the child should it hang.
            alarm::set(60);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            let _ = std::io::stdout().flush();
            // SAFETY: ends the process here, without the harness's own ending.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
}

/// What this process has of threads and descriptors.
pub fn threads_and_fds() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).expect("procfs").count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

/// It has as many of them as `before`. A thread that was joined leaves `/proc` a moment later; a descriptor that was
/// closed is gone.
#[track_caller]
pub fn has_again(before: (usize, usize)) {
    let (threads, fds) = before;
    assert_eq!(threads_and_fds().1, fds, "descriptors");
    let begun = std::time::Instant::now();
    while threads_and_fds().0 != threads {
        let now = threads_and_fds().0;
        assert!(
            begun.elapsed() < PATIENCE,
            "{now} threads, {threads} before"
        );
        std::thread::yield_now();
    }
}

/// A sink that keeps all that arrives.
#[derive(Default)]
pub struct Heard {
    arrivals: Mutex<Vec<Arrival>>,
    more: Condvar,
}

impl Heard {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals
            .lock()
            .expect("no test panics with it")
            .clone()
    }

    /// All arrivals, once there are `count`.
    pub fn wait_for_arrivals(&self, count: usize) -> Vec<Arrival> {
        let arrivals = self.arrivals.lock().expect("no test panics with it");
        let few = |arrivals: &mut Vec<Arrival>| arrivals.len() < count;
        let (arrivals, timeout) = self
            .more
            .wait_timeout_while(arrivals, PATIENCE, few)
            .expect("no test panics with it");
        assert!(
            !timeout.timed_out(),
            "{} of {count} arrived",
            arrivals.len()
        );
        arrivals.clone()
    }

    pub fn frames(&self) -> Vec<Vec<u8>> {
        frames_of(self.arrivals())
    }

    /// All frames, once there are `count` arrivals.
    pub fn wait_for(&self, count: usize) -> Vec<Vec<u8>> {
        frames_of(self.wait_for_arrivals(count))
    }
}

fn frames_of(arrivals: Vec<Arrival>) -> Vec<Vec<u8>> {
    let frame = |arrival| match arrival {
        Arrival::Frame(frame) => Some(frame),
        _ => None,
    };
    arrivals.into_iter().filter_map(frame).collect()
}

impl ArrivalSink for Heard {
    fn push(&self, arrival: Arrival) -> bool {
        self.arrivals
            .lock()
            .expect("no test panics with it")
            .push(arrival);
        self.more.notify_all();
        true
    }
}

/// Sends `bytes` bytes over `client` and reads them back, all at once and then in small pieces.
pub fn exchange(client: &mut TcpStream, bytes: usize) {
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / 251) as u8).collect();
    let mut writer = client.try_clone().expect("a second handle");
    let data = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&data));
    let mut received = vec![0; bytes];
    client.read_exact(&mut received).expect("all comes back");
    writing.join().expect("no panic").expect("all is sent");
    assert!(received == sent, "what comes back is what was sent");
    for piece in sent.chunks(100).take(20) {
        client.write_all(piece).expect("sent");
        let mut received = vec![0; piece.len()];
        client.read_exact(&mut received).expect("comes back");
        assert_eq!(received, piece);
    }
}

struct Wires {
    queue: VecDeque<Vec<u8>>,
    heard: Vec<usize>,
    live: usize,
    stop: bool,
}

struct Wiring {
    wires: Mutex<Wires>,
    changed: Condvar,
}

struct Wire {
    shared: Arc<Wiring>,
    number: usize,
}

impl ArrivalSink for Wire {
    fn push(&self, arrival: Arrival) -> bool {
        let Arrival::Frame(frame) = arrival else {
            return false;
        };
        let mut wires = self.shared.wires.lock().expect("no panic");
        wires.heard[self.number] += 1;
        if wires.live == self.number {
            wires.queue.push_back(frame);
            self.shared.changed.notify_all();
        }
        true
    }
}

/// A guest that echoes TCP streams, with several ports of which it uses one at a time: as a pair of
/// replicas appears from outside.
pub struct EchoGuest {
    shared: Arc<Wiring>,
    ports: Vec<Box<dyn NetPort>>,
    mac: Mac,
    ip: Ipv4Addr,
}

/// An [`EchoGuest`] at work; ends with this.
pub struct RunningGuest {
    shared: Arc<Wiring>,
    thread: Option<JoinHandle<()>>,
}

impl EchoGuest {
    /// Where it echoes.
    pub const PORT: u16 = 7;
    /// Where it ends the connection with a reset at the first byte.
    pub const RESET_PORT: u16 = 8;

    pub fn new(mac: Mac, ip: Ipv4Addr) -> Self {
        let wires = Wires {
            queue: VecDeque::new(),
            heard: Vec::new(),
            live: 0,
            stop: false,
        };
        let shared = Arc::new(Wiring {
            wires: Mutex::new(wires),
            changed: Condvar::new(),
        });
        Self {
            shared,
            ports: Vec::new(),
            mac,
            ip,
        }
    }

    /// The sink for the port that is plugged in next.
    pub fn sink(&self) -> Arc<dyn ArrivalSink> {
        let mut wires = self.shared.wires.lock().expect("no panic");
        wires.heard.push(0);
        Arc::new(Wire {
            shared: self.shared.clone(),
            number: wires.heard.len() - 1,
        })
    }

    pub fn plug(&mut self, port: Box<dyn NetPort>) {
        self.ports.push(port);
    }

    pub fn run(self) -> RunningGuest {
        let shared = self.shared.clone();
        let thread = std::thread::spawn(move || self.serve());
        RunningGuest {
            shared,
            thread: Some(thread),
        }
    }

    fn serve(self) {
        let start = std::time::Instant::now();
        let now = || Instant::from_micros(start.elapsed().as_micros() as i64);
        let mut device = Plugged { guest: &self };
        let mut config = Config::new(EthernetAddress(self.mac).into());
        config.random_seed = 1;
        let mut iface = Interface::new(config, &mut device, now());
        iface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(self.ip.into(), 24))
                .expect("room for one");
        });
        let mut sockets = SocketSet::new(Vec::new());
        for number in 0..40 {
            let buffer = || SocketBuffer::new(vec![0; 32 << 10]);
            let mut socket = Socket::new(buffer(), buffer());
            let port = if number < 36 {
                Self::PORT
            } else {
                Self::RESET_PORT
            };
            socket.listen(port).expect("a port");
            sockets.add(socket);
        }
        loop {
            iface.poll(now(), &mut device, &mut sockets);
            for (_, socket) in sockets.iter_mut() {
                let smoltcp::socket::Socket::Tcp(socket) = socket;
                echo(socket);
            }
            // Only sends: what came in meanwhile is for the next round.
            while iface.poll_egress(now(), &mut device, &mut sockets) != PollResult::None {}
            let delay = iface
                .poll_delay(now(), &sockets)
                .map_or(PATIENCE, Into::into);
            let wires = self.shared.wires.lock().expect("no panic");
            let idle = |wires: &mut Wires| wires.queue.is_empty() && !wires.stop;
            let (wires, _) = self
                .shared
                .changed
                .wait_timeout_while(wires, delay, idle)
                .expect("no panic");
            if wires.stop {
                return;
            }
        }
    }
}

fn echo(socket: &mut Socket<'_>) {
    if !socket.is_open() {
        let port = socket.listen_endpoint().port;
        socket.listen(port).expect("a port");
    }
    let resets = socket
        .local_endpoint()
        .is_some_and(|end| end.port == EchoGuest::RESET_PORT);
    if resets && socket.can_recv() {
        return socket.abort();
    }
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let mut piece = vec![0; room];
        let received = socket.recv_slice(&mut piece).expect("it can");
        socket
            .send_slice(&piece[..received])
            .expect("there is room");
    }
    if !socket.may_recv() && socket.may_send() {
        socket.close();
    }
}

impl RunningGuest {
    /// The guest goes on behind port `number`. What it had received and not looked at is lost.
    pub fn go_live(&self, number: usize) {
        let mut wires = self.shared.wires.lock().expect("no panic");
        wires.live = number;
        wires.queue.clear();
    }

    /// How many frames port `number` brought.
    pub fn heard(&self, number: usize) -> usize {
        self.shared.wires.lock().expect("no panic").heard[number]
    }
}

impl Drop for RunningGuest {
    fn drop(&mut self) {
        self.shared.wires.lock().expect("no panic").stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the guest did not panic");
        }
    }
}

struct Plugged<'a> {
    guest: &'a EchoGuest,
}

struct Rx(Vec<u8>);

struct Tx<'a>(&'a EchoGuest);

impl Device for Plugged<'_> {
    type RxToken<'a>
        = Rx
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self
            .guest
            .shared
            .wires
            .lock()
            .expect("no panic")
            .queue
            .pop_front()?;
        Some((Rx(frame), Tx(self.guest)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(self.guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        let live = self.0.shared.wires.lock().expect("no panic").live;
        if let Some(port) = self.0.ports.get(live) {
            port.send(&frame);
        }
        result
    }
}
