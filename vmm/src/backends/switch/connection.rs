//! One client, and its connection to the guest.
//!
//! ```text
//!  client ── read ──▶ socket to the guest      end ─▶ end, reset ─▶ reset,
//!         ◀─ write ──                          in both directions
//! ```

use super::tcp;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, Socket, State};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

/// A client and its connection to the guest, whose socket is kept elsewhere.
#[derive(Debug)]
pub(super) struct Connection {
    pub handle: SocketHandle,
    /// `None` once both directions of it have ended.
    client: Option<TcpStream>,
    /// Whether there may be something to read, so that it need not be waited for.
    readable: bool,
    /// Whether there may be room to write.
    writable: bool,
    /// The client has sent its end, and it was passed on.
    client_ended: bool,
    /// The guest has sent its end, and nothing before it is in the socket any more.
    guest_finished: bool,
    /// That end was passed on.
    guest_ended: bool,
    /// What the client has not taken of a connection that is over: the socket would forget it too soon.
    /// At most what fits in the socket's buffer.
    last: Vec<u8>,
}

impl Connection {
    /// For `client`, which does not block.
    pub fn new(handle: SocketHandle, client: TcpStream) -> Self {
        Self {
            handle,
            client: Some(client),
            readable: false,
            writable: true,
            client_ended: false,
            guest_finished: false,
            guest_ended: false,
            last: Vec::new(),
        }
    }

    /// What to wait for, if anything. Without, the client's errors are of no interest either.
    pub fn interest(&self) -> Option<PollFd<'_>> {
        let client = self.client.as_ref()?;
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, !self.readable && !self.client_ended);
        events.set(PollFlags::POLLOUT, !self.writable);
        (!events.is_empty()).then(|| PollFd::new(client.as_fd(), events))
    }

    /// What was waited for has happened.
    pub fn set_ready(&mut self) {
        self.readable = true;
        self.writable = true;
    }

    /// Whether all is done, and sent but for what is `unsent`.
    pub fn is_over(&self, socket: &Socket<'_>, unsent: bool) -> bool {
        self.client.is_none()
            && !unsent
            && matches!(socket.state(), State::Closed | State::TimeWait)
    }

    /// Moves what can be moved; whether anything was, or something else happened to `socket`.
    pub fn relay(&mut self, socket: &mut Socket<'_>) -> bool {
        if matches!(socket.state(), State::SynSent | State::SynReceived) {
            return false;
        }
        if socket.state() == State::Established {
            // From now on a guest may be silent, and even be gone for long.
            socket.set_timeout(None);
        }
        let Some(mut client) = self.client.take() else {
            return false;
        };
        let result = self
            .feed_guest(&mut client, socket)
            .and_then(|sent| Ok(sent | self.feed_client(&mut client, socket)?));
        let Ok(moved) = result else {
            // The client has reset its side, or is gone.
            socket.abort();
            return true;
        };
        let closed = socket.state() == State::Closed && !socket.can_recv();
        // A guest that has sent its end may still reset a client that has not.
        let reset = closed && !(self.guest_finished && self.client_ended);
        if reset {
            reset_client(client);
        } else if !(self.guest_ended && self.client_ended) {
            self.client = Some(client);
        }
        moved
    }

    fn feed_guest(&mut self, client: &mut TcpStream, socket: &mut Socket<'_>) -> io::Result<bool> {
        let mut moved = false;
        while self.readable && !self.client_ended && socket.can_send() {
            let read = |room: &mut [u8]| count(now(|| client.read(room)));
            match socket.send(read).map_err(io::Error::other)?? {
                Some(0) => {
                    self.client_ended = true;
                    end(socket);
                }
                Some(_) => {}
                None => self.readable = false,
            }
            moved = true;
        }
        Ok(moved)
    }

    fn feed_client(&mut self, client: &mut TcpStream, socket: &mut Socket<'_>) -> io::Result<bool> {
        let mut moved = false;
        while self.writable && socket.can_recv() {
            let write = |data: &mut [u8]| count(now(|| client.write(data)));
            let written = socket.recv(write).map_err(io::Error::other)??;
            self.writable = written.is_some();
            moved |= self.writable;
        }
        while socket.state() == State::TimeWait && socket.can_recv() {
            let keep = |data: &mut [u8]| (data.len(), self.last.extend_from_slice(data));
            socket.recv(keep).map_err(io::Error::other)?;
        }
        self.guest_finished |= socket.recv(|_| (0, ())) == Err(RecvError::Finished);
        while self.writable && !self.last.is_empty() {
            match now(|| client.write(&self.last))? {
                Some(written) => _ = self.last.drain(..written),
                None => self.writable = false,
            }
        }
        if self.guest_finished && !self.guest_ended && self.last.is_empty() {
            self.guest_ended = true;
            client.shutdown(Shutdown::Write)?;
        }
        Ok(moved)
    }

    /// Ends both directions without waiting for anything.
    pub fn reset(&mut self, socket: &mut Socket<'_>) {
        if let Some(client) = self.client.take() {
            reset_client(client);
        }
        socket.abort();
    }
}

/// Ends our direction of the connection to the guest, since the client has ended its own.
fn end(socket: &mut Socket<'_>) {
    socket.close();
    // So that the guest's end is acknowledged at once, and the connection can be let go.
    socket.set_ack_delay(None);
    // Nothing more is sent, so only this finds a guest that has been started anew.
    socket.set_keep_alive(Some(tcp::ALIVE));
}

/// Closes `client` with a reset.
fn reset_client(client: TcpStream) {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    if let Err(error) = setsockopt(&client, sockopt::Linger, &at_once) {
        tracing::debug!(%error, "forward: SO_LINGER");
    }
}

/// The result of a call that may be interrupted; `None` if it would have to wait.
fn now(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            result => return result.map(Some),
        }
    }
}

/// How many bytes were moved, as smoltcp asks for it, and the result itself.
fn count(result: io::Result<Option<usize>>) -> (usize, io::Result<Option<usize>>) {
    let moved = *result.as_ref().ok().and_then(Option::as_ref).unwrap_or(&0);
    (moved, result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::iface::{Config, Interface, SocketSet};
    use smoltcp::phy::{Loopback, Medium};
    use smoltcp::socket::tcp::SocketBuffer;
    use smoltcp::time::{Duration, Instant};
    use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};
    use std::net::TcpListener;

    /// A connection, its client, and the guest's end of it: all on one loopback interface, with a clock
    /// that the test moves.
    struct Fixture {
        now: Instant,
        device: Loopback,
        iface: Interface,
        sockets: SocketSet<'static>,
        guest: SocketHandle,
        connection: Connection,
        client: TcpStream,
    }

    impl Fixture {
        fn new() -> Self {
            let mut device = Loopback::new(Medium::Ethernet);
            let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 1]).into());
            let mut iface = Interface::new(config, &mut device, Instant::ZERO);
            let ip = Ipv4Address::new(127, 0, 0, 1);
            iface.update_ip_addrs(|ips| ips.push(IpCidr::new(ip.into(), 8)).expect("room"));
            let mut sockets = SocketSet::new(Vec::new());
            let mut socket = || {
                let buffer = || SocketBuffer::new(vec![0; 4096]);
                sockets.add(Socket::new(buffer(), buffer()))
            };
            let (guest, handle) = (socket(), socket());
            sockets.get_mut::<Socket>(guest).listen(7).expect("a port");
            let connecting = sockets.get_mut::<Socket>(handle);
            connecting
                .connect(iface.context(), (ip, 7), 50_000)
                .expect("it can");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("an address");
            let client = TcpStream::connect(address).expect("it listens");
            let (accepted, _) = listener.accept().expect("it connects");
            accepted.set_nonblocking(true).expect("settings");
            let mut fixture = Self {
                now: Instant::ZERO,
                device,
                iface,
                sockets,
                guest,
                connection: Connection::new(handle, accepted),
                client,
            };
            fixture.run();
            fixture
        }

        /// Lets 100 ms pass for the guest's connection.
        fn run(&mut self) {
            for _ in 0..100 {
                self.now += Duration::from_millis(1);
                self.iface
                    .poll(self.now, &mut self.device, &mut self.sockets);
                self.connection.set_ready();
                let socket = self.sockets.get_mut::<Socket>(self.connection.handle);
                self.connection.relay(socket);
            }
        }

        fn guest(&mut self) -> &mut Socket<'static> {
            self.sockets.get_mut::<Socket>(self.guest)
        }

        fn is_over(&self) -> bool {
            let socket = self.sockets.get::<Socket>(self.connection.handle);
            self.connection.is_over(socket, false)
        }

        /// Writes on the client's side of the relay until the kernel takes no more.
        fn stuff(&mut self) -> usize {
            let accepted = self.connection.client.as_mut().expect("it is there");
            setsockopt(accepted, sockopt::SndBuf, &8192).expect("settings");
            let mut bytes = 0;
            loop {
                while let Ok(written) = accepted.write(&[b'.'; 100_000]) {
                    bytes += written;
                }
                let mut fds = [PollFd::new(accepted.as_fd(), PollFlags::POLLOUT)];
                if nix::poll::poll(&mut fds, 300u16).expect("poll") == 0 {
                    return bytes;
                }
            }
        }
    }

    #[test]
    fn what_a_slow_client_has_not_taken_outlives_the_guests_connection() {
        slow_client(true);
    }

    #[test]
    fn so_it_does_if_the_guest_ends_first() {
        slow_client(false);
    }

    fn slow_client(client_ends_first: bool) {
        let mut fixture = Fixture::new();
        let stuffed = fixture.stuff();
        if client_ends_first {
            fixture.client.shutdown(Shutdown::Write).expect("its end");
            fixture.run();
            assert!(!fixture.guest().may_recv(), "the end has come through");
        }
        let guest = fixture.guest();
        assert_eq!(guest.send_slice(&[b'g'; 3000]), Ok(3000));
        guest.close();
        fixture.run();
        if !client_ends_first {
            fixture.client.shutdown(Shutdown::Write).expect("its end");
        }
        // Much longer than smoltcp remembers a connection.
        for _ in 0..150 {
            fixture.run();
        }
        assert!(!fixture.guest().is_open());
        let handle = fixture.connection.handle;
        assert!(!fixture.sockets.get::<Socket>(handle).is_open());
        assert!(!fixture.is_over(), "the client has not got it yet");
        let mut reader = fixture.client.try_clone().expect("a second handle");
        let reading = std::thread::spawn(move || {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).map(|_| received)
        });
        while !fixture.is_over() {
            fixture.run();
        }
        let received = reading.join().expect("no panic").expect("no reset");
        assert_eq!(received.len(), stuffed + 3000);
        assert!(received[stuffed..].iter().all(|byte| *byte == b'g'));
    }

    #[test]
    fn a_guest_that_has_ended_may_still_reset_a_client_that_goes_on_sending() {
        let mut fixture = Fixture::new();
        let guest = fixture.guest();
        assert_eq!(guest.send_slice(b"go away"), Ok(7));
        guest.close();
        fixture.run();
        // The guest reads no more, so the client cannot send for ever.
        fixture.client.set_nonblocking(true).expect("settings");
        while fixture.client.write(&[b'c'; 100_000]).is_ok() {
            fixture.run();
        }
        assert!(!fixture.is_over());
        fixture.guest().abort();
        fixture.run();
        assert!(fixture.is_over());
        // What Linux calls a reset after an end.
        let error = fixture.client.write(b"c").expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        let mut received = [0; 8];
        assert_eq!(fixture.client.read(&mut received).expect("it came"), 7);
        assert_eq!(&received, b"go away\0");
    }

    #[test]
    fn a_guest_gone_for_an_hour_is_waited_for() {
        let mut fixture = Fixture::new();
        fixture.client.write_all(b"hello").expect("sent");
        for _ in 0..3600 {
            fixture.now += Duration::from_secs(1);
            // All that is sent is lost.
            fixture.device = Loopback::new(Medium::Ethernet);
            let (now, device) = (fixture.now, &mut fixture.device);
            fixture.iface.poll_egress(now, device, &mut fixture.sockets);
            fixture.connection.set_ready();
            let socket = fixture.sockets.get_mut(fixture.connection.handle);
            fixture.connection.relay(socket);
        }
        fixture.device = Loopback::new(Medium::Ethernet);
        while !fixture.guest().can_recv() {
            fixture.run();
        }
        let mut received = [0; 6];
        assert_eq!(fixture.guest().recv_slice(&mut received), Ok(5));
        assert_eq!(&received, b"hello\0");
    }

    #[test]
    fn a_guest_started_anew_is_found_out_after_the_client_has_ended() {
        let mut fixture = Fixture::new();
        fixture.client.shutdown(Shutdown::Write).expect("its end");
        fixture.run();
        assert!(!fixture.guest().may_recv());
        // It forgets all, and tells nobody.
        fixture.sockets.remove(fixture.guest);
        while !fixture.is_over() {
            fixture.run();
        }
        let error = fixture.client.read(&mut [0; 1]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}
