//! A TCP stack of our own on a port of a switch.

use super::super::Mac;
use super::super::netns::{HOST_ADDRESS, PREFIX};
use super::link::{Link, LinkStop};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{ConnectError, Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr};
use std::net::SocketAddrV4;

/// smoltcp's timers are made for the Internet: at least 1 s until something is sent again. On one
/// machine nothing takes as long, so time runs this much faster for it: 125 ms.
const HASTE: u32 = 8;
/// Bytes of each connection's buffers, one per direction.
const BUFFER_BYTES: usize = 32 << 10;
/// How long a guest has to take a connection: 20 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20 * HASTE as u64);
/// How often a guest is asked whether it is there, once its client has ended: 10 s.
pub(super) const ALIVE: Duration = Duration::from_secs(10 * HASTE as u64);
/// First of the ports for connections: the range that IANA leaves for this.
const PORT_FIRST: u16 = 49152;

/// An IPv4 host with TCP on a switch; calls never wait. Not for a vCPU thread: it reads the clock.
pub(super) struct Stack {
    device: LinkDevice,
    iface: Interface,
    pub sockets: SocketSet<'static>,
    start: std::time::Instant,
    next_port: u16,
}

impl Stack {
    /// A host with the address [`HOST_ADDRESS`]. `random` makes its sequence numbers and first port.
    #[expect(
        clippy::disallowed_methods,
        reason = "made before the vCPU runs, used on the forwarder's own thread"
    )]
    pub fn new(link: Link, mac: Mac, random: u64) -> Self {
        let mut device = LinkDevice {
            link,
            unsent: None,
            closed: false,
        };
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = random;
        let mut iface = Interface::new(config, &mut device, Instant::ZERO);
        iface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(HOST_ADDRESS.into(), PREFIX))
                .expect("there is room for one address");
        });
        Self {
            device,
            iface,
            sockets: SocketSet::new(Vec::new()),
            start: std::time::Instant::now(),
            next_port: PORT_FIRST | (random >> 48) as u16,
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "made before the vCPU runs, used on the forwarder's own thread"
    )]
    fn now(&self) -> Instant {
        let micros = (self.start.elapsed() * HASTE).as_micros();
        Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Begins a connection to `to`, from a port that no other connection has.
    pub fn connect(&mut self, to: SocketAddrV4) -> Result<SocketHandle, ConnectError> {
        let taken = |stack: &Self, port| {
            let mut sockets = stack.sockets.iter();
            sockets.any(|(_, smoltcp::socket::Socket::Tcp(socket))| {
                socket.local_endpoint().is_some_and(|end| end.port == port)
            })
        };
        while taken(self, self.next_port) {
            self.advance_port();
        }
        let buffer = || SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(CONNECT_TIMEOUT));
        let remote = (*to.ip(), to.port());
        socket.connect(self.iface.context(), remote, self.next_port)?;
        self.advance_port();
        Ok(self.sockets.add(socket))
    }

    fn advance_port(&mut self) {
        self.next_port = self.next_port.checked_add(1).unwrap_or(PORT_FIRST);
    }

    /// Takes in what came, and sends what there is.
    pub fn poll(&mut self) {
        let now = self.now();
        self.iface.poll(now, &mut self.device, &mut self.sockets);
    }

    /// Sends what there is; takes in nothing, so whoever looked at the sockets need not look again.
    pub fn send(&mut self) {
        let now = self.now();
        let Self {
            device,
            iface,
            sockets,
            ..
        } = self;
        while iface.poll_egress(now, device, sockets) == PollResult::SocketStateChanged {}
    }

    /// Real time until something has to be done without anything having come; `None`: never.
    pub fn delay(&mut self) -> Option<std::time::Duration> {
        let now = self.now();
        let delay = self.iface.poll_delay(now, &self.sockets)?;
        // What cannot be sent now is not due: the link says when it can.
        if self.device.unsent.is_some() && delay == Duration::ZERO {
            return None;
        }
        Some(std::time::Duration::from(delay) / HASTE)
    }

    /// The link, whether a frame waits for room in it, and whether it is closed.
    pub fn link(&self) -> (&Link, bool, bool) {
        let device = &self.device;
        (&device.link, device.unsent.is_some(), device.closed)
    }
}

/// A link as smoltcp wants it. Instead of dropping a frame it holds back all that follow.
struct LinkDevice {
    link: Link,
    unsent: Option<Vec<u8>>,
    closed: bool,
}

impl LinkDevice {
    fn send(&mut self, frame: Vec<u8>) {
        match self.link.send(&frame) {
            Ok(()) => {}
            Err(LinkStop::NotNow) => self.unsent = Some(frame),
            Err(LinkStop::Closed) => self.closed = true,
        }
    }

    /// Whether there is room for a frame.
    fn has_room(&mut self) -> bool {
        if let Some(frame) = self.unsent.take() {
            self.send(frame);
        }
        self.unsent.is_none()
    }
}

impl phy::Device for LinkDevice {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToSend<'_>)> {
        if !self.has_room() {
            return None;
        }
        match self.link.receive() {
            Ok(frame) => Some((Received(frame), ToSend(self))),
            Err(stop) => {
                self.closed |= stop == LinkStop::Closed;
                None
            }
        }
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        self.has_room().then_some(ToSend(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // MTU 1500 and the Ethernet header.
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct ToSend<'a>(&'a mut LinkDevice);

impl phy::TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.send(frame);
        result
    }
}
