//! TCP: what it does where segments are late, lost, or held up by a cut.
//!
//! ```text
//!   una          nxt                 end
//!   ├── in flight ┼── not sent yet ──┤       what an end has written and the other has not acknowledged
//!   arrival in order ─▶ the other end's buffer, and an ack back; out of order or lost: sent again from `una` on
//! ```
//!
//! A segment that is lost is sent again after 200 ms, and each time after twice as long. So a connection whose wire
//! was cut goes on some time after that is whole again. An ack can be lost, too: its sender goes on as if the
//! segment had been. A host without power answers nothing, and one that was without resets what it does not know.

use super::files::{File, Obj, ObjId, Readiness};
use super::{HostNo, Kernel, my_process};
use std::collections::{BTreeMap, VecDeque};

/// Bytes an end takes from its writer, and holds for its reader.
const BUFFER: usize = 256 << 10;
/// Most bytes of a segment.
const SEGMENT: usize = 32 << 10;
/// First and longest time until something is sent again.
const AGAIN_NS: (u64, u64) = (200_000_000, 120_000_000_000);
/// First time until a connection is asked for again.
const CONNECT_AGAIN_NS: u64 = 1_000_000_000;
const FIRST_PORT: u16 = 40_000;

/// A way from one host to another.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Nothing gets through.
    pub cut: bool,
    /// So many of a million segments are lost.
    pub loss_ppm: u64,
    /// Least time under way, in nanoseconds, and what may come on top.
    pub latency_ns: (u64, u64),
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            cut: false,
            loss_ppm: 0,
            latency_ns: (40_000, 60_000),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NetEvent {
    /// The call of connection `.0` arrives, for the `.1`th time.
    Syn(usize),
    SynAgain(usize, u32),
    SynAck(usize),
    /// Of what end `.1` has written: bytes from, how many.
    Segment(usize, usize, u64, u32),
    /// End `.1` hears that the other has all before `.2`.
    Ack(usize, usize, u64),
    /// End `.1` has heard no ack: timer generation `.2`.
    Again(usize, usize, u64),
    /// A reset for end `.1`.
    Reset(usize, usize),
}

/// An IPv4 address and a port.
pub(crate) type Address = (u32, u16);

/// What a TCP socket is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoint {
    pub bound: Option<Address>,
    pub listens: bool,
    pub backlog: VecDeque<ObjId>,
    /// Connection, and which end of it.
    pub conn: Option<(usize, usize)>,
    pub receive_ns: Option<u64>,
    pub send_ns: Option<u64>,
}

#[derive(Debug, Default)]
struct End {
    host: HostNo,
    boots: u64,
    address: Address,
    obj: Option<ObjId>,
    /// Its system knows the connection.
    known: bool,
    connected: bool,
    error: Option<i32>,
    /// What it has written, from `una` on.
    buffer: VecDeque<u8>,
    una: u64,
    nxt: u64,
    /// Nothing follows what is in the buffer.
    ended: bool,
    /// The other end knows that.
    end_acked: bool,
    timer: u64,
    armed: bool,
    again_ns: u64,
    /// Until when segments on their way from here arrive: none overtakes.
    arrives: u64,
    /// What came for it, how much came in all, and whether that was all.
    inbox: VecDeque<u8>,
    came: u64,
    all_came: bool,
    no_read: bool,
}

impl End {
    /// After the last byte that was written; one more is the end itself.
    fn end(&self) -> u64 {
        self.una + self.buffer.len() as u64
    }

    fn last(&self) -> u64 {
        self.end() + u64::from(self.ended && !self.end_acked)
    }

    fn is_acked(&self) -> bool {
        self.buffer.is_empty() && (!self.ended || self.end_acked)
    }
}

#[derive(Debug)]
struct Conn {
    ends: [End; 2],
    to: Address,
}

#[derive(Debug, Default)]
pub(crate) struct Tcp {
    conns: Vec<Conn>,
    listeners: BTreeMap<Address, ObjId>,
    wires: BTreeMap<(HostNo, HostNo), Wire>,
    next_port: u16,
}

impl Tcp {
    pub fn wire(&mut self, from: HostNo, to: HostNo) -> &mut Wire {
        self.wires.entry((from, to)).or_default()
    }
}

impl Kernel {
    /// When what is sent now from `from` to `to` arrives, if it does.
    fn arrival(&mut self, from: HostNo, to: HostNo) -> Option<u64> {
        if from == to {
            return Some(self.now + 5_000 + self.rng.below(5_000));
        }
        let wire = *self.tcp.wire(from, to);
        let lost = wire.loss_ppm > 0 && self.rng.below(1_000_000) < wire.loss_ppm;
        let (least, more) = wire.latency_ns;
        let when = self.now + least + self.rng.below(more + 1);
        (!wire.cut && !lost && self.hosts[from].up).then_some(when)
    }

    fn host_at(&self, address: u32) -> Option<HostNo> {
        self.hosts.iter().position(|host| host.address == address)
    }

    fn here(&self) -> HostNo {
        self.processes[my_process()].host
    }

    fn endpoint(&mut self, obj: ObjId) -> Option<&mut Endpoint> {
        match self.files.get(obj)? {
            File {
                obj: Obj::Tcp(endpoint),
                ..
            } => Some(endpoint),
            _ => None,
        }
    }

    fn free_port(&mut self) -> u16 {
        self.tcp.next_port = self.tcp.next_port.wrapping_add(1) % 20_000;
        FIRST_PORT + self.tcp.next_port
    }

    pub(crate) fn bind(&mut self, obj: ObjId, address: Address) -> Result<(), i32> {
        let here = self.hosts[self.here()].address;
        let (ip, port) = address;
        let ip = if ip == 0 { here } else { ip };
        if ip != here {
            return Err(libc::EADDRNOTAVAIL);
        }
        let port = if port == 0 { self.free_port() } else { port };
        if self.tcp.listeners.contains_key(&(ip, port)) {
            return Err(libc::EADDRINUSE);
        }
        self.endpoint(obj).ok_or(libc::ENOTSOCK)?.bound = Some((ip, port));
        Ok(())
    }

    pub(crate) fn listen(&mut self, obj: ObjId) -> Result<(), i32> {
        let endpoint = self.endpoint(obj).ok_or(libc::ENOTSOCK)?;
        let bound = endpoint.bound.ok_or(libc::EINVAL)?;
        endpoint.listens = true;
        self.tcp.listeners.insert(bound, obj);
        Ok(())
    }

    /// Begins to connect.
    pub(crate) fn connect(&mut self, obj: ObjId, to: Address) -> Result<(), i32> {
        let here = self.here();
        let port = self.free_port();
        let (address, boots) = (self.hosts[here].address, self.hosts[here].boots);
        let Some(there) = self.host_at(to.0) else {
            return Err(libc::EHOSTUNREACH);
        };
        let near = End {
            host: here,
            boots,
            address: (address, port),
            obj: Some(obj),
            known: true,
            again_ns: AGAIN_NS.0,
            ..End::default()
        };
        let far = End {
            host: there,
            address: to,
            again_ns: AGAIN_NS.0,
            ..End::default()
        };
        self.tcp.conns.push(Conn {
            ends: [near, far],
            to,
        });
        let conn = self.tcp.conns.len() - 1;
        let endpoint = self.endpoint(obj).ok_or(libc::ENOTSOCK)?;
        if endpoint.conn.is_some() {
            return Err(libc::EISCONN);
        }
        endpoint.conn = Some((conn, 0));
        self.call(conn, 0);
        Ok(())
    }

    fn call(&mut self, conn: usize, times: u32) {
        let [near, far] = [0, 1].map(|end| self.tcp.conns[conn].ends[end].host);
        if let Some(when) = self.arrival(near, far) {
            self.net_at(when, NetEvent::Syn(conn));
        }
        let again = self.now + (CONNECT_AGAIN_NS << times.min(6));
        self.net_at(again, NetEvent::SynAgain(conn, times + 1));
    }

    fn is_known(&self, conn: usize, end: usize) -> bool {
        let it = &self.tcp.conns[conn].ends[end];
        let host = &self.hosts[it.host];
        it.known && host.up && host.boots == it.boots
    }

    pub(crate) fn net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Syn(conn) => self.called(conn),
            NetEvent::SynAgain(conn, times) => {
                let near = &self.tcp.conns[conn].ends[0];
                let waits = !near.connected && near.error.is_none();
                if waits && self.is_known(conn, 0) {
                    self.call(conn, times);
                }
            }
            NetEvent::SynAck(conn) => {
                if !self.is_known(conn, 0) {
                    return self.send_reset(conn, 1);
                }
                let near = &mut self.tcp.conns[conn].ends[0];
                if !near.connected && near.error.is_none() {
                    near.connected = true;
                    self.tell(conn, 0, false, true);
                    self.transmit(conn, 0);
                }
            }
            NetEvent::Segment(conn, from, at, count) => self.came(conn, from, at, count),
            NetEvent::Ack(conn, end, upto) => self.acked(conn, end, upto),
            NetEvent::Again(conn, end, timer) => self.again(conn, end, timer),
            NetEvent::Reset(conn, end) => self.was_reset(conn, end),
        }
    }

    fn called(&mut self, conn: usize) {
        let there = self.tcp.conns[conn].ends[1].host;
        if !self.hosts[there].up {
            return;
        }
        if self.tcp.conns[conn].ends[1].known {
            if self.is_known(conn, 1) {
                self.answer_call(conn);
            } else {
                self.send_reset(conn, 0);
            }
            return;
        }
        let to = self.tcp.conns[conn].to;
        let Some(listener) = self.tcp.listeners.get(&to).copied() else {
            return self.send_reset(conn, 0);
        };
        let endpoint = Endpoint {
            conn: Some((conn, 1)),
            bound: Some(to),
            ..Endpoint::default()
        };
        let obj = self.add_obj(Obj::Tcp(endpoint), false);
        let boots = self.hosts[there].boots;
        let far = &mut self.tcp.conns[conn].ends[1];
        (far.known, far.connected, far.obj, far.boots) = (true, true, Some(obj), boots);
        if let Some(endpoint) = self.endpoint(listener) {
            endpoint.backlog.push_back(obj);
        }
        self.became_ready(listener, true, false);
        self.answer_call(conn);
    }

    fn answer_call(&mut self, conn: usize) {
        let [near, far] = [0, 1].map(|end| self.tcp.conns[conn].ends[end].host);
        if let Some(when) = self.arrival(far, near) {
            self.net_at(when, NetEvent::SynAck(conn));
        }
    }

    fn tell(&mut self, conn: usize, end: usize, readable: bool, writable: bool) {
        if let Some(obj) = self.tcp.conns[conn].ends[end].obj {
            self.became_ready(obj, readable, writable);
        }
    }

    /// Sends a reset to an end.
    fn send_reset(&mut self, conn: usize, to: usize) {
        let hosts = [to, 1 - to].map(|end| self.tcp.conns[conn].ends[end].host);
        if let Some(when) = self.arrival(hosts[1], hosts[0]) {
            self.net_at(when, NetEvent::Reset(conn, to));
        }
    }

    fn was_reset(&mut self, conn: usize, end: usize) {
        if !self.is_known(conn, end) {
            return;
        }
        let it = &mut self.tcp.conns[conn].ends[end];
        if it.error.is_some() {
            return;
        }
        it.error = Some(if it.connected {
            libc::ECONNRESET
        } else {
            libc::ECONNREFUSED
        });
        it.known = false;
        it.buffer.clear();
        it.armed = false;
        self.tell(conn, end, true, true);
    }

    /// Sends what may be sent.
    fn transmit(&mut self, conn: usize, end: usize) {
        if !self.is_known(conn, end) || !self.tcp.conns[conn].ends[end].connected {
            return;
        }
        loop {
            let other = &self.tcp.conns[conn].ends[1 - end];
            let (to, held) = (other.host, other.inbox.len());
            let it = &self.tcp.conns[conn].ends[end];
            let (from, at, last) = (it.host, it.nxt, it.last());
            let window = BUFFER.saturating_sub(held + (it.nxt - it.una) as usize);
            let mut count = (last - at).min(SEGMENT as u64).min(window as u64);
            if count == 0 {
                break;
            }
            if self.rng.below(8) == 0 {
                count = 1 + self.rng.below(count);
            }
            let arrives = self.arrival(from, to);
            let it = &mut self.tcp.conns[conn].ends[end];
            it.nxt += count;
            if let Some(when) = arrives {
                let when = when.max(it.arrives + 1);
                it.arrives = when;
                self.net_at(when, NetEvent::Segment(conn, end, at, count as u32));
            }
        }
        self.arm(conn, end);
    }

    /// What is not acknowledged is sent again after a while.
    fn arm(&mut self, conn: usize, end: usize) {
        let it = &mut self.tcp.conns[conn].ends[end];
        if it.armed || it.is_acked() {
            return;
        }
        it.armed = true;
        it.timer += 1;
        let (when, timer) = (self.now + it.again_ns, it.timer);
        self.net_at(when, NetEvent::Again(conn, end, timer));
    }

    fn again(&mut self, conn: usize, end: usize, timer: u64) {
        let it = &mut self.tcp.conns[conn].ends[end];
        if !it.armed || it.timer != timer {
            return;
        }
        it.armed = false;
        it.nxt = it.una;
        it.again_ns = (it.again_ns * 2).min(AGAIN_NS.1);
        let known = self.is_known(conn, end);
        if !known {
            return;
        }
        // The other end may have no room: something is sent all the same, to find out.
        self.transmit(conn, end);
        self.arm(conn, end);
    }

    fn came(&mut self, conn: usize, from: usize, at: u64, count: u32) {
        let end = 1 - from;
        if !self.hosts[self.tcp.conns[conn].ends[end].host].up {
            return;
        }
        if !self.is_known(conn, end) {
            return self.send_reset(conn, from);
        }
        let sender = &self.tcp.conns[conn].ends[from];
        let (una, written_end, ended) = (sender.una, sender.end(), sender.ended);
        if at + u64::from(count) > sender.last().max(una) {
            // Its sender was reset meanwhile, and what it had written is gone.
            return;
        }
        let receiver = &self.tcp.conns[conn].ends[end];
        if !receiver.connected {
            return;
        }
        // What was acknowledged meanwhile is in no buffer any more, and is here.
        if at <= receiver.came && at + u64::from(count) > receiver.came && receiver.came >= una {
            let (first, last) = (receiver.came, at + u64::from(count));
            let bytes = (first..last.min(written_end)).map(|n| sender.buffer[(n - una) as usize]);
            let bytes: Vec<u8> = bytes.collect();
            let all = ended && last > written_end;
            let receiver = &mut self.tcp.conns[conn].ends[end];
            receiver.inbox.extend(&bytes);
            receiver.came = last;
            receiver.all_came |= all;
            let orphan = receiver.obj.is_none() && !bytes.is_empty();
            if orphan {
                // Nobody will read it.
                receiver.known = false;
                return self.send_reset(conn, from);
            }
            self.tell(conn, end, true, false);
        }
        self.ack(conn, end);
    }

    /// Tells the other end how much came at `end`.
    fn ack(&mut self, conn: usize, end: usize) {
        let hosts = [end, 1 - end].map(|end| self.tcp.conns[conn].ends[end].host);
        let came = self.tcp.conns[conn].ends[end].came;
        if let Some(when) = self.arrival(hosts[0], hosts[1]) {
            self.net_at(when, NetEvent::Ack(conn, 1 - end, came));
        }
    }

    fn acked(&mut self, conn: usize, end: usize, upto: u64) {
        if !self.is_known(conn, end) {
            return;
        }
        let it = &mut self.tcp.conns[conn].ends[end];
        if upto > it.una {
            let bytes = (upto - it.una).min(it.buffer.len() as u64) as usize;
            it.buffer.drain(..bytes);
            if upto > it.una + bytes as u64 {
                it.end_acked = true;
            }
            it.una = upto;
            it.nxt = it.nxt.max(upto);
            it.armed = false;
            it.again_ns = AGAIN_NS.0;
            self.tell(conn, end, false, true);
        }
        self.transmit(conn, end);
    }

    pub(crate) fn tcp_readiness(&mut self, endpoint: &Endpoint) -> Readiness {
        if endpoint.listens {
            return Readiness {
                readable: !endpoint.backlog.is_empty(),
                ..Readiness::default()
            };
        }
        let Some((conn, end)) = endpoint.conn else {
            return Readiness {
                writable: true,
                hung_up: true,
                ..Readiness::default()
            };
        };
        let it = &self.tcp.conns[conn].ends[end];
        let error = it.error.is_some();
        let ended = it.all_came || it.no_read;
        Readiness {
            readable: !it.inbox.is_empty() || ended || error,
            writable: it.connected && it.buffer.len() < BUFFER || error,
            ended: ended || error,
            hung_up: error || it.all_came && it.ended,
            error,
        }
    }

    /// Whether an end is connected; an error if it never will be.
    pub(crate) fn is_connected(&mut self, obj: ObjId) -> Result<bool, i32> {
        let Some((conn, end)) = self.endpoint(obj).and_then(|it| it.conn) else {
            return Err(libc::ENOTCONN);
        };
        let it = &mut self.tcp.conns[conn].ends[end];
        match it.error.take() {
            Some(error) => {
                it.error = Some(error);
                Err(error)
            }
            None => Ok(it.connected),
        }
    }

    pub(crate) fn socket_error(&mut self, obj: ObjId) -> i32 {
        self.is_connected(obj)
            .err()
            .filter(|e| *e != libc::ENOTCONN)
            .unwrap_or(0)
    }

    /// This end's address, and the other's.
    pub(crate) fn addresses(&mut self, obj: ObjId) -> (Option<Address>, Option<Address>) {
        let Some(endpoint) = self.endpoint(obj) else {
            return (None, None);
        };
        let (bound, conn) = (endpoint.bound, endpoint.conn);
        let Some((conn, end)) = conn else {
            return (bound, None);
        };
        let ends = &self.tcp.conns[conn].ends;
        let there = ends[end].connected && ends[end].error.is_none();
        (
            Some(ends[end].address),
            there.then_some(ends[1 - end].address),
        )
    }

    pub(crate) fn accept(&mut self, obj: ObjId) -> Result<Option<ObjId>, i32> {
        let endpoint = self.endpoint(obj).ok_or(libc::ENOTSOCK)?;
        if !endpoint.listens {
            return Err(libc::EINVAL);
        }
        Ok(endpoint.backlog.pop_front())
    }

    /// Takes what came, up to the length of `into`; none if nothing is here yet.
    pub(crate) fn tcp_take(&mut self, obj: ObjId, into: &mut [u8]) -> Result<Option<usize>, i32> {
        let conn = self.endpoint(obj).ok_or(libc::ENOTSOCK)?.conn;
        let (conn, end) = conn.ok_or(libc::ENOTCONN)?;
        let it = &mut self.tcp.conns[conn].ends[end];
        if it.inbox.is_empty() {
            return match it.error {
                Some(error) => Err(error),
                None if it.all_came || it.no_read => Ok(Some(0)),
                None => Ok(None),
            };
        }
        let was_full = it.inbox.len() > BUFFER / 2;
        let count = into.len().min(it.inbox.len());
        for (to, byte) in into.iter_mut().zip(it.inbox.drain(..count)) {
            *to = byte;
        }
        if was_full && it.inbox.len() <= BUFFER / 2 && self.is_known(conn, end) {
            // There is room again.
            self.ack(conn, end);
        }
        Ok(Some(count))
    }

    /// Takes bytes to be sent: how many; none if there is no room.
    pub(crate) fn tcp_put(&mut self, obj: ObjId, bytes: &[u8]) -> Result<Option<usize>, i32> {
        let conn = self.endpoint(obj).ok_or(libc::ENOTSOCK)?.conn;
        let (conn, end) = conn.ok_or(libc::ENOTCONN)?;
        let it = &mut self.tcp.conns[conn].ends[end];
        match it.error {
            Some(libc::ECONNRESET) => return Err(libc::ECONNRESET),
            Some(_) => return Err(libc::EPIPE),
            None if it.ended || !it.known => return Err(libc::EPIPE),
            None if !it.connected => return Err(libc::EAGAIN),
            None => {}
        }
        let room = BUFFER - it.buffer.len().min(BUFFER);
        let count = room.min(bytes.len());
        if count == 0 {
            return Ok(None);
        }
        let changed = self
            .tamper
            .as_mut()
            .and_then(|tamper| tamper.change(conn, bytes));
        let it = &mut self.tcp.conns[conn].ends[end];
        match changed {
            Some(changed) => it.buffer.extend(&changed),
            None => it.buffer.extend(&bytes[..count]),
        }
        self.transmit(conn, end);
        Ok(Some(count))
    }

    pub(crate) fn tcp_shutdown(&mut self, obj: ObjId, how: i32) -> Result<(), i32> {
        let conn = self.endpoint(obj).ok_or(libc::ENOTSOCK)?.conn;
        let (conn, end) = conn.ok_or(libc::ENOTCONN)?;
        let it = &mut self.tcp.conns[conn].ends[end];
        if it.error.is_some() || !it.connected {
            return Err(libc::ENOTCONN);
        }
        if how != libc::SHUT_WR {
            it.no_read = true;
        }
        let writes = how != libc::SHUT_RD && !it.ended && it.known;
        if writes {
            it.ended = true;
            self.transmit(conn, end);
        }
        self.tell(conn, end, true, true);
        Ok(())
    }

    /// The last descriptor of a socket was closed.
    pub(crate) fn close_endpoint(&mut self, obj: ObjId, endpoint: Endpoint) {
        if endpoint.listens {
            self.tcp.listeners.retain(|_, listener| *listener != obj);
        }
        for waiting in endpoint.backlog {
            if let Some(Endpoint {
                conn: Some((conn, end)),
                ..
            }) = self.endpoint(waiting).cloned()
            {
                self.hang_up(conn, end, true);
            }
        }
        if let Some((conn, end)) = endpoint.conn {
            let unread = !self.tcp.conns[conn].ends[end].inbox.is_empty();
            self.hang_up(conn, end, unread);
        }
    }

    fn hang_up(&mut self, conn: usize, end: usize, resets: bool) {
        let known = self.is_known(conn, end);
        let it = &mut self.tcp.conns[conn].ends[end];
        it.obj = None;
        if !known {
            it.known = false;
            return;
        }
        if resets || !it.connected {
            it.known = false;
            self.send_reset(conn, 1 - end);
            return;
        }
        // Its system sends what is left, and the end.
        if !it.ended && it.error.is_none() {
            it.ended = true;
            self.transmit(conn, end);
        }
    }

    pub(crate) fn reset(&mut self, a: HostNo, b: HostNo, both: bool) {
        for conn in 0..self.tcp.conns.len() {
            for end in 0..2 {
                let hosts = [end, 1 - end].map(|end| self.tcp.conns[conn].ends[end].host);
                if hosts == [a, b] || both && hosts == [b, a] {
                    self.was_reset(conn, end);
                }
            }
        }
    }
}
