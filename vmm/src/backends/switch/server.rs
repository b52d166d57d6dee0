//! The switch itself: one thread, which passes packets from socket to socket.
//!
//! ```text
//!  accept ─▶ port without address ─ hello ─▶ port ─ frame ─▶ every port it is for
//!                    └── anything else: closed           └─ no room: queue, then drop
//! ```

use super::super::worker::{Worker, is_ready, retry, wait};
use super::super::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, Mac, is_for};
use super::{HELLO, SOCKET_BUFFER_BYTES, WELCOME};
use crate::devices::virtio::addresses::Addresses;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen,
    recv, send, setsockopt, socket, sockopt,
};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Ports at most.
const PORTS_MAX: usize = 64;
/// Frames a port may have waiting, beyond what the kernel holds for it.
const QUEUE_MAX: usize = 1024;
/// Frames taken from one port before the others have their turn.
const BURST_MAX: usize = 64;
/// While no connection can be accepted (no descriptors left), it is tried again after so many ms.
const ACCEPT_AGAIN_MS: u16 = 100;

/// Why a switch cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// Another switch answers there.
    #[error("a switch is running at {} already", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is there.
    #[error("{} is there already and is no socket of a switch", .0.display())]
    Occupied(PathBuf),
    /// Something else.
    #[error("switch {}: {operation}: {source}", .path.display())]
    Io {
        /// The switch's socket.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A running switch. On drop, all its connections and its socket are gone.
#[derive(Debug)]
pub struct Switch {
    path: PathBuf,
    dropped: Arc<AtomicU64>,
    worker: Option<Worker>,
}

impl Switch {
    /// Starts a switch whose ports connect to a socket at `path`. A socket left there by a switch that is
    /// no more is replaced.
    ///
    /// # Errors
    /// See [`SwitchError`].
    pub fn start(path: &Path) -> Result<Self, SwitchError> {
        let failed = |operation| {
            move |source: io::Error| SwitchError::Io {
                path: path.to_owned(),
                operation,
                source,
            }
        };
        let listener = listen_at(path, &failed)?;
        let dropped = Arc::new(AtomicU64::new(0));
        let ports = Ports {
            ports: Vec::new(),
            dropped: dropped.clone(),
        };
        let worker = Worker::start("switch", move |stop| serve(stop, &listener, ports))
            .map_err(failed("cannot start a thread"))?;
        Ok(Self {
            path: path.to_owned(),
            dropped,
            worker: Some(worker),
        })
    }

    /// Frames dropped so far, because their receiver was too slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.worker = None;
        // It may have been removed already, together with its folder.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn new_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

fn listen_at<F>(path: &Path, failed: &impl Fn(&'static str) -> F) -> Result<OwnedFd, SwitchError>
where
    F: FnOnce(io::Error) -> SwitchError,
{
    let address = UnixAddr::new(path).map_err(|e| failed("socket's path")(e.into()))?;
    let listener = new_socket(SockFlag::SOCK_NONBLOCK).map_err(|e| failed("socket")(e.into()))?;
    let mut bound = bind(listener.as_raw_fd(), &address);
    if bound == Err(Errno::EADDRINUSE) {
        let probe = new_socket(SockFlag::empty()).map_err(|e| failed("socket")(e.into()))?;
        match retry(|| connect(probe.as_raw_fd(), &address)) {
            Err(Errno::ECONNREFUSED) if is_socket(path) => {}
            Ok(()) | Err(Errno::EAGAIN) => return Err(SwitchError::InUse(path.to_owned())),
            Err(_) => return Err(SwitchError::Occupied(path.to_owned())),
        }
        std::fs::remove_file(path).map_err(failed("remove the old socket"))?;
        bound = bind(listener.as_raw_fd(), &address);
    }
    bound.map_err(|e| failed("bind")(e.into()))?;
    listen(&listener, Backlog::MAXALLOWABLE).map_err(|e| failed("listen")(e.into()))?;
    Ok(listener)
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

fn serve(stop: BorrowedFd<'_>, listener: &OwnedFd, mut ports: Ports) {
    let mut may_accept = true;
    let mut ready = Vec::new();
    loop {
        {
            let accepting = may_accept && ports.ports.len() < PORTS_MAX;
            let events = if accepting {
                PollFlags::POLLIN
            } else {
                PollFlags::empty()
            };
            let mut fds = vec![
                PollFd::new(stop, PollFlags::POLLIN),
                PollFd::new(listener.as_fd(), events),
            ];
            fds.extend(ports.ports.iter().map(Port::interest));
            let timeout = if may_accept {
                PollTimeout::NONE
            } else {
                ACCEPT_AGAIN_MS.into()
            };
            wait(&mut fds, timeout);
            if is_ready(&fds[0]) {
                return;
            }
            may_accept = true;
            ready.clear();
            ready.extend(fds[1..].iter().map(is_ready));
        }
        for (number, _) in ready[1..].iter().enumerate().filter(|(_, ready)| **ready) {
            ports.serve(number);
        }
        ports.ports.retain(|port| port.open);
        if ready[0] {
            may_accept = ports.accept(listener);
        }
    }
}

struct Port {
    fd: OwnedFd,
    /// Known after its hello.
    mine: Option<Addresses>,
    queue: VecDeque<Vec<u8>>,
    open: bool,
}

struct Ports {
    ports: Vec<Port>,
    dropped: Arc<AtomicU64>,
}

impl Ports {
    /// Takes all who want to connect; `false` if that is not possible now.
    fn accept(&mut self, listener: &OwnedFd) -> bool {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        while self.ports.len() < PORTS_MAX {
            let fd = match retry(|| accept4(listener.as_raw_fd(), flags)) {
                // SAFETY: accept4 has just made this descriptor, and nobody else has it.
                Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
                Err(Errno::EAGAIN) => return true,
                Err(Errno::ECONNABORTED) => continue,
                Err(error) => {
                    tracing::warn!(%error, "switch: a port cannot be accepted now");
                    return false;
                }
            };
            if let Err(error) = setsockopt(&fd, sockopt::SndBuf, &SOCKET_BUFFER_BYTES) {
                tracing::debug!(%error, "switch: SO_SNDBUF");
            }
            self.ports.push(Port {
                fd,
                mine: None,
                queue: VecDeque::new(),
                open: true,
            });
        }
        true
    }

    /// Does what port `number` has become ready for.
    fn serve(&mut self, number: usize) {
        self.ports[number].flush();
        // One byte more than fits, to tell packets that are too long: the kernel cuts them.
        let mut buffer = [0; FRAME_BYTES_MAX + 1];
        for _ in 0..BURST_MAX {
            let port = &mut self.ports[number];
            if !port.open {
                return;
            }
            match retry(|| recv(port.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)) {
                Ok(length @ 1..) if port.mine.is_none() => port.greet(&buffer[..length]),
                Ok(length @ FRAME_BYTES_MIN..=FRAME_BYTES_MAX) => {
                    self.pass_on(number, &buffer[..length]);
                }
                // Shorter than any frame: whether the port wants all frames.
                Ok(1) => {
                    if let Some(mine) = &mut port.mine {
                        mine.set_promiscuous(buffer[0] != 0);
                    }
                }
                Ok(0) => port.open = false,
                Ok(_) => _ = self.dropped.fetch_add(1, Ordering::Relaxed),
                Err(Errno::EAGAIN) => return,
                Err(_) => port.open = false,
            }
        }
    }

    fn pass_on(&mut self, from: usize, frame: &[u8]) {
        for (number, port) in self.ports.iter_mut().enumerate() {
            let hears =
                number != from && port.mine.as_ref().is_some_and(|mine| is_for(frame, mine));
            if hears && !port.send(frame) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Port {
    fn interest(&self) -> PollFd<'_> {
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, !self.queue.is_empty());
        PollFd::new(self.fd.as_fd(), events)
    }

    fn greet(&mut self, hello: &[u8]) {
        let mac = hello
            .strip_prefix(HELLO)
            .and_then(|mac| Mac::try_from(mac).ok());
        self.mine = mac.map(Addresses::only);
        self.open = mac.is_some() && self.try_send(WELCOME) == Ok(());
    }

    fn try_send(&self, packet: &[u8]) -> nix::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        retry(|| send(self.fd.as_raw_fd(), packet, flags)).map(drop)
    }

    /// Sends `frame`, or keeps it for later; `false` if it is lost.
    fn send(&mut self, frame: &[u8]) -> bool {
        if self.queue.is_empty() {
            match self.try_send(frame) {
                Ok(()) => return true,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => {}
                // Found closed, and removed, when it is read from.
                Err(_) => return false,
            }
        }
        if self.queue.len() == QUEUE_MAX {
            return false;
        }
        self.queue.push_back(frame.to_vec());
        true
    }

    fn flush(&mut self) {
        while let Some(frame) = self.queue.front() {
            match self.try_send(frame) {
                Ok(()) => _ = self.queue.pop_front(),
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return,
                Err(_) => {
                    self.queue.clear();
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LinkError, SwitchPort};
    use super::*;
    use crate::backends::NetPort;
    use crate::backends::station::Station;
    use crate::backends::testing::{Heard, has_again, isolated, threads_and_fds};

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];

    fn frame(to: Mac, from: Mac, number: u32) -> Vec<u8> {
        [
            &to[..],
            &from,
            &[0x88, 0xb5],
            &number.to_le_bytes(),
            &[0; 42],
        ]
        .concat()
    }

    struct Fixture {
        folder: tempfile::TempDir,
        switch: Switch,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let switch = Switch::start(&folder.path().join("switch")).expect("a switch");
            Self { folder, switch }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("switch")
        }

        fn port(&self, mac: Mac) -> (SwitchPort, Arc<Heard>) {
            let heard = Heard::new();
            let port = SwitchPort::connect(&self.path(), &Station::of(mac), heard.clone())
                .expect("a port");
            (port, heard)
        }
    }

    #[test]
    fn both_replicas_hear_what_is_for_their_address_and_not_each_other() {
        let fixture = Fixture::new();
        let (client, client_heard) = fixture.port(A);
        let (primary, primary_heard) = fixture.port(B);
        let (_backup, backup_heard) = fixture.port(B);
        let sent: Vec<_> = (0..500).map(|number| frame(B, A, number)).collect();
        for frame in &sent {
            client.send(frame);
        }
        assert_eq!(primary_heard.wait_for(500), sent);
        assert_eq!(backup_heard.wait_for(500), sent);
        let all = frame([0xff; 6], B, 1);
        primary.send(&all);
        primary.send(&frame(A, B, 2));
        assert_eq!(client_heard.wait_for(2), [all, frame(A, B, 2)]);
        client.send(&frame(B, A, 501));
        assert_eq!(backup_heard.wait_for(501).last(), Some(&frame(B, A, 501)));
        assert_eq!(backup_heard.frames().len(), 501, "none of its primary's");
        assert_eq!(client.dropped() + fixture.switch.dropped(), 0);
    }

    #[test]
    fn a_slow_port_drops_and_holds_up_nobody() {
        let fixture = Fixture::new();
        let (sender, _) = fixture.port(A);
        let (_fast, fast_heard) = fixture.port(B);
        let slow = super::super::link::Link::connect(&fixture.path(), B).expect("a port");
        let long = |number: u32| {
            let mut frame = frame(B, A, number);
            frame.resize(1514, 7);
            frame
        };
        let mut sent = 0;
        while fixture.switch.dropped() == 0 {
            assert!(
                sent < 100_000,
                "a port that is never read must drop at some time"
            );
            sender.send(&long(sent));
            sent += 1;
            fast_heard.wait_for(sent as usize);
        }
        let mut received = 0;
        while let Ok(frame) = slow.receive() {
            assert_eq!(frame, long(received), "the oldest are kept, in order");
            received += 1;
        }
        assert!(received > 0);
    }

    #[test]
    fn who_does_not_say_hello_is_closed() {
        let fixture = Fixture::new();
        let address = UnixAddr::new(&fixture.path()).expect("a path");
        let too_long = [&HELLO[..], &[0; 7]].concat();
        for first in [&b"hello"[..], &HELLO[..], &too_long, &[0xff; 1514]] {
            let peer = new_socket(SockFlag::empty()).expect("a socket");
            connect(peer.as_raw_fd(), &address).expect("connected");
            send(peer.as_raw_fd(), first, MsgFlags::MSG_NOSIGNAL).expect("sent");
            let mut answer = [0; 16];
            let end = recv(peer.as_raw_fd(), &mut answer, MsgFlags::empty());
            assert!(matches!(end, Ok(0) | Err(Errno::ECONNRESET)), "{end:?}");
        }
        let (port, _) = fixture.port(A);
        let (_other, heard) = fixture.port(B);
        port.send(&frame(B, A, 1));
        assert_eq!(heard.wait_for(1).len(), 1, "others are served on");
    }

    #[test]
    fn one_switch_at_a_path_and_a_dead_ones_socket_is_replaced() {
        let fixture = Fixture::new();
        let path = fixture.path();
        assert!(matches!(Switch::start(&path), Err(SwitchError::InUse(_))));
        let stale = fixture.folder.path().join("stale");
        let dead = new_socket(SockFlag::empty()).expect("a socket");
        bind(dead.as_raw_fd(), &UnixAddr::new(&stale).expect("a path")).expect("bound");
        drop(dead);
        assert!(stale.exists());
        drop(Switch::start(&stale).expect("a switch in its place"));
        assert!(!stale.exists());
        let file = fixture.folder.path().join("file");
        std::fs::write(&file, "precious").expect("a file");
        assert!(matches!(
            Switch::start(&file),
            Err(SwitchError::Occupied(_))
        ));
        assert!(file.exists());
    }

    #[test]
    fn no_switch_no_port() {
        let folder = tempfile::tempdir().expect("a folder");
        let connect = |name: &str| {
            SwitchPort::connect(&folder.path().join(name), &Station::of(A), Heard::new())
                .err()
                .expect("no switch there")
        };
        assert!(matches!(connect("nothing"), LinkError::NoSwitch(_)));
        std::os::unix::net::UnixListener::bind(folder.path().join("stream")).expect("bound");
        let other = connect("stream");
        assert!(
            matches!(other, LinkError::Refused(_) | LinkError::NoSwitch(_)),
            "{other}"
        );
        let long = connect(&"x".repeat(200));
        assert!(matches!(long, LinkError::Io { .. }), "{long}");
    }

    #[test]
    fn a_port_outlives_its_switch_and_drops() {
        let fixture = Fixture::new();
        let (port, _) = fixture.port(A);
        drop(fixture);
        port.send(&frame(B, A, 1));
        assert_eq!(port.dropped(), 1);
    }

    #[test]
    fn leaves_no_thread_and_no_descriptor() {
        isolated(|| {
            let before = threads_and_fds();
            let fixture = Fixture::new();
            let ports: Vec<_> = (0..PORTS_MAX).map(|_| fixture.port(A)).collect();
            assert!(threads_and_fds().0 > PORTS_MAX);
            drop(ports);
            drop(fixture);
            has_again(before);
        });
    }
}
