//! TCP/IP for guests: smoltcp on the network device.
//!
//! ```text
//! loop {
//!     stack.receive(&mut sockets, n);   frames -> sockets, as many as are there (n at most)
//!     ... serve the sockets ...
//!     stack.send(&mut sockets);         sockets -> frames; one notification for all of them
//!     if nothing was done { stack.wait() }   until a frame or a tick comes
//! }
//! ```
//!
//! Arguments: `ip` address and prefix (10.77.0.2/24), `gw` gateway (none), `hz` timer tick (100).
//!
//! Time comes from the timer tick: the first look after a tick reads the TSC once, everybody uses
//! that value until the next. A TSC read is an exit and a log entry, and a packet is not worth one.

pub use crate::virtio::net::QUEUE_SIZE;
use crate::virtio::{
    Error,
    net::{FRAME_MAX, Net, Received, Receiver, Sender},
};
use crate::{Args, control, pit};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, Ipv4Address, Ipv4Cidr};

/// What becomes of a frame a [`Filter`] has looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to TCP/IP.
    Pass,
    /// It is sent as it now stands.
    Send,
    /// It is as if it had been lost on the way.
    Drop,
}

/// Looks at each frame before TCP/IP does, and may change it.
pub type Filter = fn(&mut [u8]) -> Verdict;

/// The time of the last timer tick.
#[derive(Clone, Copy, Debug)]
pub struct TickClock {
    ticks: u64,
    now_ns: u64,
}

impl TickClock {
    /// Starts the timer at `hz`, and with it the clock.
    #[must_use]
    pub fn start(hz: u32) -> Self {
        pit::start(hz);
        Self {
            ticks: pit::ticks(),
            now_ns: control::tsc(),
        }
    }

    /// Takes the time anew if the timer has ticked since. Returns whether it has.
    #[inline]
    pub fn update(&mut self) -> bool {
        let ticks = pit::ticks();
        let ticked = ticks != self.ticks;
        if ticked {
            self.ticks = ticks;
            self.now_ns = control::tsc();
        }
        ticked
    }

    /// The time-stamp counter at the last tick: nanoseconds since the machine started.
    #[inline]
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }
}

/// The network device, an interface on it, and its clock.
pub struct Stack {
    /// smoltcp's interface; its `context()` is needed to connect sockets.
    pub interface: Interface,
    device: Port,
    clock: TickClock,
}

impl Stack {
    /// Sets up device, address, route and timer as the command line says.
    ///
    /// # Errors
    /// If there is no usable network device.
    ///
    /// # Panics
    /// If an argument makes no sense.
    pub fn new(args: &Args) -> Result<Self, Error> {
        let mut device = Port {
            net: Net::open()?,
            filter: None,
        };
        let clock = TickClock::start(args.parse("hz", 100));
        let mac = HardwareAddress::Ethernet(EthernetAddress(device.net.mac));
        let mut config = Config::new(mac);
        config.random_seed = clock.now_ns();
        let mut interface = Interface::new(config, &mut device, instant(clock));
        let address = args.get("ip").unwrap_or("10.77.0.2/24");
        let address: Ipv4Cidr = match address.parse() {
            Ok(address) => address,
            Err(_) => panic!("ip={address}: not an IPv4 address with prefix length"),
        };
        interface.update_ip_addrs(|all| {
            // The list has room for one at least.
            let _ = all.push(address.into());
        });
        if let Some(text) = args.get("gw") {
            let gateway: Ipv4Address = match text.parse() {
                Ok(gateway) => gateway,
                Err(error) => panic!("gw={text}: {error}"),
            };
            // The table has room for one at least.
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        Ok(Self {
            interface,
            device,
            clock,
        })
    }

    /// Shows every frame to `filter` from now on, or to none.
    pub fn set_filter(&mut self, filter: Option<Filter>) {
        self.device.filter = filter;
    }

    /// The time of the last tick, as smoltcp counts it.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Instant {
        instant(self.clock)
    }

    /// The time of the last tick, in nanoseconds since the machine started.
    #[inline]
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Hands the frames that have come to `sockets`, `frames` and a queue full of them at most. Returns
    /// whether a socket may have changed.
    pub fn receive(&mut self, sockets: &mut SocketSet<'_>, frames: usize) -> bool {
        self.clock.update();
        let now = self.now();
        let mut changed = false;
        for _ in 0..frames.min(QUEUE_SIZE) {
            match self
                .interface
                .poll_ingress_single(now, &mut self.device, sockets)
            {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => changed = true,
            }
        }
        changed
    }

    /// Sends what `sockets` have to send, as far as the device has room, and notifies the device.
    /// Returns whether a socket may have changed.
    pub fn send(&mut self, sockets: &mut SocketSet<'_>) -> bool {
        let now = self.now();
        let mut changed = false;
        while self.device.net.sender.can_send()
            && self.interface.poll_egress(now, &mut self.device, sockets)
                == PollResult::SocketStateChanged
        {
            changed = true;
        }
        self.device.net.sender.flush();
        changed
    }

    /// Sleeps until a frame or a tick comes, or returns at once if one has.
    pub fn wait(&mut self) {
        self.device.net.wait();
    }
}

/// A tick as smoltcp counts time, in microseconds.
fn instant(clock: TickClock) -> Instant {
    Instant::from_micros((clock.now_ns() / 1000) as i64)
}

/// The network device, as smoltcp sees it.
struct Port {
    net: Net,
    filter: Option<Filter>,
}

impl Device for Port {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    #[inline]
    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let Net {
            receiver, sender, ..
        } = &mut self.net;
        loop {
            if !sender.can_send() {
                return None;
            }
            let received = receiver.receive()?;
            let frame = receiver.frame(&received);
            match self.filter.map_or(Verdict::Pass, |filter| filter(frame)) {
                Verdict::Pass => {
                    let token = RxToken {
                        receiver,
                        received: Some(received),
                    };
                    return Some((token, TxToken(sender)));
                }
                Verdict::Send => {
                    sender.send(frame.len(), |buffer| buffer.copy_from_slice(frame));
                }
                Verdict::Drop => {}
            }
            receiver.release(received);
        }
    }

    #[inline]
    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        let sender = &mut self.net.sender;
        sender.can_send().then_some(TxToken(sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_MAX;
        capabilities
    }
}

/// A frame received; its buffer goes back to the device when this is dropped.
struct RxToken<'a> {
    receiver: &'a mut Receiver,
    received: Option<Received>,
}

impl phy::RxToken for RxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        match &self.received {
            Some(received) => look(self.receiver.frame(received)),
            None => look(&[]),
        }
    }
}

impl Drop for RxToken<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(received) = self.received.take() {
            self.receiver.release(received);
        }
    }
}

/// Room for one frame to send.
struct TxToken<'a>(&'a mut Sender);

impl phy::TxToken for TxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.send(len, fill)
    }
}
