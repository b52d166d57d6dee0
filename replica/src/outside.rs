//! What stands behind the devices of one machine, and where its outputs go.

use crate::disk::Disk;
use crate::error::{During, Outcome};
use crate::last_words::LastWords;
use crate::lease::Lease;
use crate::reads::DiskReads;
use nix::sys::eventfd::EventFd;
use replay::{Arrival, InputsError, LogIndex, Outlet, Output};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vmm::backends::announce;
use vmm::backends::console::Console;
use vmm::backends::shadow::Shadow;
use vmm::backends::station::Station;
use vmm::backends::switch::SwitchPort;
use vmm::backends::tap::Tap;
use vmm::backends::{ArrivalSink, Attention, NetPort};
use vmm::machine::live::Inbox;

/// Longest time the end of a replica waits for somebody to read what its guest printed last.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

/// The backends of one machine.
pub struct Outside {
    net: Option<Box<dyn NetPort>>,
    /// What the guest's network card listens to.
    station: Arc<Station>,
    pub(crate) disk: Arc<Disk>,
    console: Option<Console>,
    said: Mutex<LastWords>,
    /// This replica is halted, or at its end.
    over: AtomicBool,
    /// It is halted: what its guest makes meanwhile is dropped.
    halted: AtomicBool,
}

impl Outside {
    /// Sends `output` where it belongs. A replica's never waits: threads that link the pair call it.
    /// `index`: of the entry that marks it, for one who asks what is [`Self::unprinted`].
    pub fn emit(&self, index: LogIndex, output: Output) {
        if self.halted.load(Ordering::SeqCst) {
            return;
        }
        match output {
            Output::Frame(frame) => {
                if let Some(net) = &self.net {
                    net.send(&frame);
                }
            }
            Output::Console(bytes) => {
                self.said().hear(&bytes);
                if let Some(console) = &self.console {
                    console.write_marked(index.0, &bytes);
                }
            }
            Output::DiskRead { .. } | Output::DiskWrite { .. } | Output::DiskFlush { .. } => {
                self.disk.submit(output);
            }
            Output::PowerOff { .. } => {}
        }
    }

    fn said(&self) -> std::sync::MutexGuard<'_, LastWords> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the guest gave up, if it said so on its console.
    pub fn why(&self) -> Option<String> {
        self.said().why().map(str::to_owned)
    }

    /// Where the vCPU waits after it has printed, if nobody reads its console. Reads no clock.
    pub fn wait_for_console(&self) {
        if let Some(console) = &self.console {
            console.wait_for_room();
        }
    }

    /// The guest is to end: it waits for no reader any more.
    pub fn hurry(&self) {
        if let Some(console) = &self.console {
            console.hurry();
        }
    }

    /// Bytes the console holds for its reader.
    pub fn console_held(&self) -> usize {
        self.console.as_ref().map_or(0, Console::held)
    }

    /// The first entry whose console bytes are still held for their reader.
    pub fn unprinted(&self) -> Option<LogIndex> {
        let console = self.console.as_ref()?;
        console.unwritten().map(LogIndex)
    }

    /// Waits for the console's reader, about `limit` at most and not a second time; the bytes that are not
    /// written then. Reads no clock.
    pub fn finish_console(&self, limit: Duration) -> usize {
        self.console
            .as_ref()
            .map_or(0, |console| console.finish(limit))
    }

    /// Nothing leaves any more.
    pub fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
        self.over.store(true, Ordering::SeqCst);
        if let Some(console) = &self.console {
            console.halt();
        }
    }

    /// Waits until every disk request that was let out is done, and a while for the console's reader. To
    /// be called before the process ends.
    pub fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
        match self.finish_console(LAST_WORDS) {
            0 => {}
            bytes => tracing::warn!("{bytes} bytes of the console are lost: nobody read them"),
        }
        self.disk.close();
    }

    /// What the guest's network card listens to, for the machine to tell.
    pub fn station(&self) -> Arc<Station> {
        self.station.clone()
    }

    /// Tells the network where the guest is now, by all addresses it uses: at once, and a few times more from a thread of its own,
    /// as long as these backends are there.
    pub fn announce(self: &Arc<Self>) {
        let Some(net) = &self.net else { return };
        net.announce(&self.station.now().in_use());
        let begun = Instant::now();
        let outside = Arc::downgrade(self);
        let again = move || {
            for after in announce::AGAIN {
                std::thread::sleep(after.saturating_sub(begun.elapsed()));
                let Some(outside) = outside.upgrade() else {
                    return;
                };
                if outside.over.load(Ordering::SeqCst) {
                    return;
                }
                if let Some(net) = &outside.net {
                    net.announce(&outside.station.now().in_use());
                }
            }
        };
        if let Err(e) = std::thread::Builder::new()
            .name("announce".into())
            .spawn(again)
        {
            tracing::warn!("the guest's address is announced once only: {e}");
        }
    }
}

/// Whether a machine runs alone, or is one of two replicas.
#[derive(Clone, Debug)]
pub enum Use {
    /// Alone: its disk is locked against other machines, its console written at once.
    Alone,
    /// A replica: its disk is shared, every write durable before the guest hears of it, and a primary writes to it
    /// by a lease; or it is its own ([`Plugs::disk_copy`]). Its console has a queue.
    Replica(Arc<Lease>, DiskReads),
}

/// Where a network device is plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetPlug {
    /// A TAP interface.
    Tap(String),
    /// The socket of a userspace switch.
    Switch(PathBuf),
}

impl std::str::FromStr for NetPlug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("tap", name)) if !name.is_empty() => Ok(Self::Tap(name.to_owned())),
            Some(("switch", path)) if !path.is_empty() => Ok(Self::Switch(path.into())),
            _ => Err("it takes tap:NAME or switch:SOCKET".into()),
        }
    }
}

impl std::fmt::Display for NetPlug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Switch(path) => write!(f, "switch:{}", path.display()),
        }
    }
}

/// What stands behind a machine's devices on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugs {
    /// Where the network device is plugged in.
    pub net: Option<NetPlug>,
    /// The raw disk image.
    pub disk: Option<PathBuf>,
    /// Of a replica: the disk is its own, and the other replica's has the same contents.
    pub disk_copy: bool,
    /// What the guest prints goes nowhere, not to standard output.
    pub quiet: bool,
}

impl Plugs {
    /// The disk image, if it is the replica's own.
    pub(crate) fn own_disk(&self) -> Option<&Path> {
        self.disk.as_deref().filter(|_| self.disk_copy)
    }
}

/// Plugs a machine in, whose network card is `station`; what arrives goes to `sink`.
///
/// # Errors
/// If one of the plugs does not fit.
pub fn plug_in(
    used: Use,
    plugs: &Plugs,
    station: &Arc<Station>,
    sink: &Arc<dyn ArrivalSink>,
) -> Outcome<Arc<Outside>> {
    let net: Option<Box<dyn NetPort>> = match &plugs.net {
        None => None,
        Some(NetPlug::Tap(name)) => Some(Box::new(Tap::open(name, station, sink.clone())?)),
        Some(NetPlug::Switch(path)) => {
            Some(Box::new(SwitchPort::connect(path, station, sink.clone())?))
        }
    };
    let disk = match (&plugs.disk, &used) {
        (None, _) => Disk::default(),
        (Some(path), Use::Alone) => Disk::alone(path, sink)?,
        (Some(path), Use::Replica(_, reads)) if plugs.disk_copy => Disk::own(path, sink, *reads)?,
        (Some(path), Use::Replica(lease, reads)) => {
            Disk::shared(path, sink, lease.clone(), *reads)?
        }
    };
    let console = match used {
        _ if plugs.quiet => None,
        Use::Alone => Some(Console::stdout()),
        Use::Replica(..) => Some(Console::queued_stdout().during("the console")?),
    };
    let disk = Arc::new(disk);
    Ok(Arc::new(Outside {
        net,
        station: station.clone(),
        disk,
        console,
        said: Mutex::default(),
        over: AtomicBool::new(false),
        halted: AtomicBool::new(false),
    }))
}

/// Sends released outputs to the backends, from whatever thread releases them.
pub(crate) struct Released(pub(crate) Arc<Outside>);

impl Outlet for Released {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.0.emit(index, output);
        Ok(())
    }
}

/// Outputs nobody wants, but for the console's if a reader asked for it.
pub struct Discard {
    /// Where console bytes go.
    pub console: Option<Console>,
}

impl Outlet for Discard {
    fn emit(&mut self, _: LogIndex, output: Output) -> Result<(), InputsError> {
        if let (Output::Console(bytes), Some(console)) = (output, &self.console) {
            console.write(&bytes);
        }
        Ok(())
    }
}

/// How often a backup looks at what the network brought. Nobody waits for it before it goes live, and to
/// wake up for every frame would cost a host that has both replicas a tenth of a core under load.
const LISTEN: Duration = Duration::from_millis(1);

/// Arrivals of a backup: frames are remembered, until it goes live and they reach the guest.
pub struct BackupSink {
    live: AtomicBool,
    inbox: Arc<Inbox>,
    station: Arc<Station>,
    shadow: Mutex<Shadow>,
}

impl BackupSink {
    /// For a backup whose guest will take arrivals from `inbox` once live, by the network card `station`.
    pub fn new(inbox: Arc<Inbox>, station: Arc<Station>) -> Arc<Self> {
        Arc::new(Self {
            live: AtomicBool::new(false),
            inbox,
            station,
            shadow: Mutex::default(),
        })
    }

    fn shadow(&self) -> std::sync::MutexGuard<'_, Shadow> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The primary's guest was given `frame`.
    pub fn replayed(&self, frame: &[u8]) {
        self.shadow().replayed(frame);
    }

    /// From now on what arrives reaches the guest, after the frames its primary did not log. Returns
    /// how many those are.
    pub fn go_live(&self) -> usize {
        // Under the lock, so that no frame can overtake those remembered.
        let mut shadow = self.shadow();
        let frames = shadow.take();
        let count = frames.len();
        for frame in frames {
            self.inbox.push(Arrival::Frame(frame));
        }
        self.live.store(true, Ordering::SeqCst);
        count
    }
}

impl ArrivalSink for BackupSink {
    fn push(&self, arrival: Arrival) -> bool {
        // Frames alone are remembered. The end of a re-issued disk request may come before the guest is
        // live, and waits for it in the inbox.
        let Arrival::Frame(frame) = arrival else {
            return self.inbox.push(arrival);
        };
        let mut shadow = self.shadow();
        if !self.live.load(Ordering::SeqCst) {
            // What its primary's guest sent is not for itself.
            if !self.station.now().have_sent(&frame) {
                shadow.saw(frame);
            }
            return true;
        }
        // The guest had those that the log told of before the network did.
        shadow.forget_early(&frame) || self.inbox.push(Arrival::Frame(frame))
    }

    fn tell_of_room(&self, room: &Arc<EventFd>) {
        self.inbox.tell_of_room(room);
    }

    fn settled(&self) -> Attention {
        if !self.live.load(Ordering::SeqCst) {
            return Attention::After(LISTEN);
        }
        self.inbox.settled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replay::{Situation, Source};
    use std::sync::mpsc::{Sender, channel};
    use vmm::machine::live::{GuestTime, Live};

    struct Told(Mutex<Sender<Instant>>);

    impl NetPort for Told {
        fn send(&self, _: &[u8]) {
            let _ = self.0.lock().unwrap().send(Instant::now());
        }

        fn dropped(&self) -> u64 {
            0
        }
    }

    fn outside() -> (Arc<Outside>, std::sync::mpsc::Receiver<Instant>) {
        let (tell, told) = channel();
        let net: Box<dyn NetPort> = Box::new(Told(Mutex::new(tell)));
        let outside = Outside {
            net: Some(net),
            station: Station::of([2; 6]),
            disk: Arc::default(),
            console: None,
            said: Mutex::default(),
            over: AtomicBool::new(false),
            halted: AtomicBool::new(false),
        };
        (Arc::new(outside), told)
    }

    #[test]
    fn an_address_is_announced_at_once_and_again_without_anyone_waiting() {
        let (outside, told) = outside();
        let begun = Instant::now();
        outside.announce();
        assert!(begun.elapsed() < announce::AGAIN[2], "nobody waits");
        let limit = Duration::from_secs(30);
        let times: Vec<Instant> = (0..4).map(|_| told.recv_timeout(limit).unwrap()).collect();
        for (after, at) in announce::AGAIN.iter().zip(&times[1..]) {
            assert!(*at - begun >= *after, "not before its time");
        }
    }

    #[test]
    fn a_replica_that_halted_announces_nothing_more() {
        let (outside, told) = outside();
        outside.announce();
        outside.halt();
        let limit = Duration::from_secs(30);
        assert!(told.recv_timeout(limit).is_ok(), "the one at once");
        drop(outside);
        // Its thread lets go of the backends, and with them of the sender, having told nothing.
        assert!(told.recv_timeout(limit).is_err());
    }

    #[test]
    fn nothing_leaves_a_replica_that_halted() {
        let (outside, told) = outside();
        let frame = || Output::Frame(vec![0; 60]);
        outside.emit(LogIndex(0), frame());
        outside.halt();
        outside.emit(LogIndex(1), frame());
        drop(outside);
        assert_eq!(told.iter().count(), 1);
    }

    #[test]
    fn a_backup_hears_the_network_now_and_then_and_no_frame_twice_or_never() {
        let inbox = Inbox::new();
        let sink = BackupSink::new(inbox.clone(), Station::of([2; 6]));
        let frame = |number: u8| vec![number; 60];
        let push = |number| sink.push(Arrival::Frame(frame(number)));
        assert_eq!(sink.settled(), Attention::After(LISTEN));
        // The log tells of frames 1 and 2 before the network does; of 3, heard, it never does.
        sink.replayed(&frame(1));
        sink.replayed(&frame(2));
        assert!(push(1) && push(3));
        assert_eq!(sink.go_live(), 1, "frame 3");
        assert!(push(2), "this one the guest has had");
        assert!(push(4));
        assert_ne!(sink.settled(), Attention::After(LISTEN), "it listens now");
        assert!(push(2), "and this one is new");
        let mut live = Live::new(inbox, GuestTime::default(), false).unwrap();
        let now = Situation {
            frames_room: 9,
            ..Situation::default()
        };
        let mut took = Vec::new();
        while let Some(Arrival::Frame(frame)) = live.poll(&now).unwrap() {
            took.push(frame[0]);
        }
        assert_eq!(took, [3, 4, 2]);
    }
}
