//! Handing a running machine to a new backup, and taking one over.
//!
//! ```text
//!  control      join thread                vCPU's thread                 joiner
//!    │ protect      │                           │                          │
//!    ├─────────────▶│ ── Hello ─────────────────────────────────────────▶ │ makes the machine's shell
//!    │              │ ◀────────────────────────────────────── welcome ─── │
//!    │              │ ── watch ───────────────▶ │ notes what is written    │
//!    │              │ ── all pages ─────────────────────────────────────▶ │ fills its memory
//!    │              │ ── written? ────────────▶ │                          │
//!    │              │ ◀── pages ─────────────── │                          │
//!    │              │ ── these again, until few are left ───────────────▶ │
//!    │              │ ── stand ───────────────▶ │ the guest stands still   │
//!    │              │ ◀── base, pages, rest ─── │                          │
//!    │              │ ── these, rest, base ─────────────────────────────▶ │ restores it, compares
//!    │              │ ◀───────────────────────────────────────── same ─── │
//!    │ ◀── joined ──│                           │                          │
//!    │ flag of this view: won                   │                          │
//!    ├── Welcome ────────────────────────────────────────────────────────▶│ may contend from here on
//!    ├── gate, channel ───────────────────────▶ │ the guest goes on        │
//! ```
//!
//! Where each replica has a disk of its own, all of that goes before memory, and what is written to it meanwhile
//! goes again with the pages that are. A request that is under way where the guest stands still may be on the copy
//! or not, or half: the joiner is told of it with the machine, and executes it once more.
//!
//! Memory is read while the guest writes it. A page that is read half written has been noted, and goes again;
//! the last of them go while the guest stands still. So the joiner is level when it has the state, and
//! nothing leaves ungated between the two. Whatever fails on the way, the guest goes on alone, as before.

use crate::address::HostPort;
use crate::disk::{Copying, Disk};
use crate::duty::{Duty, Leading};
use crate::error::{During, Outcome, ReplicaError};
use crate::journal::{Channel, Exit};
use crate::machine::AnyMachine;
use logchannel::{Connection, Given, Hello, StateReader, StateWriter, clock, offer_running};
use replay::recorder::StatePace;
use replay::{Base, BaseOrigin, LogSink, Output, Question, Source, ViewNumber};
use std::io::{self, BufReader, PipeReader, PipeWriter, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vmm::backends::disk::{BLOCK_BYTES, BlockSet};
use vmm::engine::Engine;
use vmm::machine::live::{GuestTime, Inbox};
use vmm::machine::snapshot::{Rest, SnapshotWriter};
use vmm::machine::{MachineConfig, MachineError};
use vmm::memory::{GuestMemory, PAGE_BYTES, PageSet, page_count};

/// Longest time for a backup to be reached.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time for a backup to make a machine's shell, as at a start.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// Longest time for a guest to come to a place where it can pause.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest time for what is sent while the guest stands still.
const STANDSTILL: Duration = Duration::from_secs(10);
/// So many pages, and blocks of a disk, are few enough to stand still for: 256 KiB.
const FEW: u64 = 64;
const _: () = assert!(PAGE_BYTES == BLOCK_BYTES, "they are counted together");
/// Most times that written pages are sent again while the guest runs. A guest that writes faster than they
/// are taken stands still for the rest, or is not handed over if that would take longer than [`STILL_MAX_US`].
const ROUNDS_MAX: u32 = 10;
/// Longest time a guest is to stand still for a new backup: a second, as the paper's.
const STILL_MAX_US: u64 = 1_000_000;
/// Time between two words of how much of a machine went.
const TELL_US: u64 = 200_000;
/// Bytes of a state that are taken together. As much again fits into a pipe (pipe(7)): so little, at most, is taken
/// by a joiner and not in its machine yet.
const PIECE: usize = 64 << 10;

/// What a vCPU's thread is asked to do where its machine pauses.
pub struct Orders {
    inbox: Arc<Inbox>,
    order: Mutex<Option<Order>>,
    /// The connection to a backup that is being given the machine.
    call: Mutex<Option<TcpStream>>,
}

/// What is done there. But for the last the guest goes on at once.
enum Order {
    /// To note from now on which pages of memory are written.
    Watch(Give<Watched>),
    /// To say which were, since it was last asked.
    Written(Give<PageSet>),
    /// To note none any more: the machine is given to nobody.
    Forget,
    /// To stand still until it is known what becomes of the machine.
    Stand {
        view: ViewNumber,
        give: Give<Standing>,
        resume: Receiver<Resume>,
    },
}

/// Where what was asked for goes, or why it is not to be had: the machine goes on without.
type Give<T> = SyncSender<Result<T, MachineError>>;

/// A machine whose memory can be sent.
struct Watched {
    config: MachineConfig,
    memory: GuestMemory,
}

/// A machine that stands still.
struct Standing {
    base: Base,
    /// The pages that were written since it was last asked.
    written: PageSet,
    rest: Rest,
    /// Where guest time stands.
    time: [u8; 16],
    since_us: u64,
}

/// How a machine that stood still goes on.
pub enum Resume {
    /// With a backup: entries go to the channel, outputs by its gate.
    Linked(Box<Channel>, Exit),
    /// As before.
    Alone,
}

/// What a machine's way to a joiner cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Microseconds the guest stood still, until it was told to go on.
    pub still_us: u64,
    /// Bytes the wire was given for its state, which may have been compressed.
    pub sent_bytes: u64,
    /// Bytes of memory that is not zero, in pages.
    pub full_bytes: u64,
}

/// A joiner that has the machine, as its thread tells.
pub struct Joined {
    pub connection: Connection,
    pub backup: SocketAddr,
    pub stands: Stands,
}

/// How a machine that stands still is told to go on.
pub struct Stands {
    resume: SyncSender<Resume>,
    /// Since when it does, on [`clock`]'s scale.
    since_us: u64,
    cost: Cost,
}

impl Stands {
    /// It goes on so. What it cost.
    pub fn resume(self, how: Resume) -> Cost {
        // A vCPU that is gone has no use for it.
        let _ = self.resume.send(how);
        Cost {
            still_us: clock::now_us() - self.since_us,
            ..self.cost
        }
    }
}

impl Orders {
    /// None yet, for the machine whose arrivals come by `inbox`.
    pub fn new(inbox: Arc<Inbox>) -> Arc<Self> {
        Arc::new(Self {
            inbox,
            order: Mutex::default(),
            call: Mutex::default(),
        })
    }

    fn call(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks off what is under way to give the machine to a backup, so that its guest goes on.
    pub fn cancel(&self) {
        if let Some(call) = self.call().take() {
            // It may be closed already.
            let _ = call.shutdown(Shutdown::Both);
        }
    }

    /// Whether the machine is to pause.
    pub fn wait(&self) -> bool {
        self.inbox.pause_wanted()
    }

    fn place(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.inbox.want_pause(true);
    }

    fn take(&self) -> Option<Order> {
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.inbox.want_pause(false);
        order.take()
    }

    /// Has an order obeyed, which `order` makes of where its answer goes.
    fn ask<T>(&self, order: impl FnOnce(Give<T>) -> Order) -> Outcome<T> {
        let (give, given) = sync_channel(1);
        self.place(order(give));
        let given = given.recv_timeout(PAUSE).map_err(|_| {
            // It is withdrawn, if it was not obeyed.
            drop(self.take());
            ReplicaError::refused("the guest came to no place where it can pause")
        })?;
        Ok(given?)
    }

    /// Obeys, on the vCPU's thread, where `machine` has paused.
    ///
    /// # Errors
    /// If the machine cannot go on.
    pub fn obey(&self, machine: &mut AnyMachine, duty: &mut Duty) -> Result<(), MachineError> {
        let Some(leading) = duty.leading_mut() else {
            drop(self.take());
            return Ok(());
        };
        // A guest in the middle of an instruction has to come out of it first; the order waits.
        if !machine.can_be_saved()? {
            return Ok(());
        }
        // Whoever asked may have given up.
        match self.take() {
            None => {}
            Some(Order::Watch(give)) => {
                let noted = machine.note_written(true);
                leading.log_mut().begin_join();
                let _ = give.send(noted.map(|()| Watched {
                    config: machine.config().clone(),
                    memory: machine.memory().clone(),
                }));
            }
            Some(Order::Written(give)) => drop(give.send(machine.written())),
            Some(Order::Forget) => machine.note_written(false)?,
            Some(Order::Stand { view, give, resume }) => {
                let stands = stand(machine, leading, view);
                let is_there = stands.is_ok();
                machine.note_written(false)?;
                let _ = give.send(stands);
                if is_there {
                    let under_way = machine.outstanding_disk();
                    self.go_on(leading, &resume, &under_way);
                }
            }
        }
        Ok(())
    }

    /// Waits until it is known how a machine that stands still, with these disk requests under way, goes on, and has
    /// it go on so.
    fn go_on(&self, leading: &mut Leading, resume: &Receiver<Resume>, under_way: &[Output]) {
        if let Ok(Resume::Linked(channel, exit)) = resume.recv() {
            leading.set_pace(StatePace::default());
            leading.see_all_memory(channel.memory_seen());
            leading.log_mut().link(channel, under_way);
            *leading.outlet_mut() = exit;
            leading.source_mut().set_followed(true);
            self.inbox.gather_frames(true);
        }
    }
}

/// What there is to a machine where it stands still, in `view`, but the memory that went already.
fn stand(
    machine: &mut AnyMachine,
    leading: &mut Leading,
    view: ViewNumber,
) -> Result<Standing, MachineError> {
    let since_us = clock::now_us();
    machine.flush_for_join()?;
    let base = Base {
        view,
        index: leading.log_mut().place().index,
        clock: machine.engine().clock(),
        digest: machine.digest_for_join()?,
        origin: BaseOrigin::State,
    };
    let rest = machine.rest()?;
    let source = leading.source_mut();
    Ok(Standing {
        base,
        // Behind all that could write any.
        written: machine.written()?,
        rest,
        time: time_bytes(source.guest_ns(), source.answer(Question::WallClock)),
        since_us,
    })
}

/// The way to a joiner: as fast as it may be, and told of as it goes.
struct Way<'a, 'w> {
    out: &'a mut StateWriter<'w>,
    pace: &'a Pace<'a>,
    begun_us: u64,
    told_us: u64,
    /// The guest stands still: nothing is waited for.
    hurries: bool,
}

/// How fast a machine's state may go, and who is told how much of it went.
pub struct Pace<'a> {
    /// Most bytes a second of the wire while the guest runs.
    pub bytes_s: Option<NonZeroU64>,
    /// Told how many bytes the wire was given, now and then.
    pub tell: &'a dyn Fn(u64),
}

impl<'a, 'w> Way<'a, 'w> {
    fn new(out: &'a mut StateWriter<'w>, pace: &'a Pace<'a>) -> Self {
        let now_us = clock::now_us();
        Self {
            out,
            pace,
            begun_us: now_us,
            told_us: now_us,
            hurries: false,
        }
    }

    /// From now on the guest stands still, and what is left of its state goes before other work of both hosts.
    fn hurry(&mut self) -> io::Result<()> {
        self.hurries = true;
        self.out.hurry(STANDSTILL)
    }

    /// Whether it is held back.
    fn is_limited(&self) -> bool {
        self.pace.bytes_s.is_some()
    }

    /// Microseconds there are to wait until what went may have gone.
    fn early_us(&self, now_us: u64) -> u64 {
        let due_us = self.pace.bytes_s.map_or(0, |bytes_s| {
            let due_us = u128::from(self.out.bytes()) * 1_000_000 / u128::from(bytes_s.get());
            u64::try_from(due_us).unwrap_or(u64::MAX)
        });
        due_us.saturating_sub(now_us - self.begun_us)
    }
}

impl Write for Way<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        let waited_us = self.went();
        self.out.held_back(waited_us);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Way<'_, '_> {
    /// Something went: the next waits its time, and it is told how much it is by now. How long was waited, in
    /// microseconds.
    fn went(&mut self) -> u64 {
        if self.hurries {
            return 0;
        }
        let now_us = clock::now_us();
        let early_us = self.early_us(now_us);
        std::thread::sleep(Duration::from_micros(early_us));
        if now_us - self.told_us > TELL_US {
            self.told_us = now_us;
            (self.pace.tell)(self.out.bytes());
        }
        early_us
    }

    /// Sends these blocks of `disk`.
    fn blocks(&mut self, disk: &Copying, blocks: Range<u64>) -> Outcome {
        disk.send(blocks, |part| {
            self.out.disk(part)?;
            self.went();
            Ok(())
        })
    }
}

/// Calls `backup` with `hello`, whose base names the view only, and hands over the machine that obeys
/// `orders`, and with it `disk`, if that is this replica's own. Returns how the machine, which then stands still, is
/// told how it goes on. On a thread of its own.
///
/// # Errors
/// Why the backup has not got the machine, which goes on alone.
pub fn hand_over(
    backup: &HostPort,
    partners: &crate::partners::Partners,
    hello: &Hello,
    orders: &Orders,
    disk: &Arc<Disk>,
    pace: &Pace<'_>,
) -> Outcome<Joined> {
    let socket = backup
        .connect(CONNECT)
        .during(format_args!("cannot reach the backup at {backup}"))?;
    let there = socket.peer_addr().during("the link to the backup")?;
    *orders.call() = Some(socket.try_clone().during("the link to the backup")?);
    let mut stands = None;
    let give = |out: &mut StateWriter<'_>| {
        let way = Way::new(out, pace);
        let given = give(way, hello.base.view, orders, disk.copying(), &mut stands);
        if stands.is_none() {
            orders.place(Order::Forget);
        }
        given.map_err(|e| e.to_string())
    };
    let socket = partners.call(socket).during("the link to the backup")?;
    let connection = offer_running(socket, hello, HANDSHAKE, give);
    // From here on the link is the control thread's to end.
    orders.call().take();
    let connection = connection?;
    Ok(Joined {
        connection,
        backup: there,
        stands: stands.expect("all was given"),
    })
}

/// What of a machine was written since it was sent.
#[derive(Default)]
struct Left {
    pages: PageSet,
    blocks: BlockSet,
}

impl Left {
    /// What was written since this was last asked.
    fn ask(orders: &Orders, disk: Option<&Copying>) -> Outcome<Self> {
        // Of the two, the disk is asked last: what is under way at the end is told with the machine.
        Ok(Self {
            pages: orders.ask(Order::Written)?,
            blocks: disk.map(Copying::written).unwrap_or_default(),
        })
    }

    /// How many pages and blocks.
    fn len(&self) -> u64 {
        self.pages.len() + self.blocks.len()
    }

    fn send(
        &self,
        writer: &mut SnapshotWriter<Way<'_, '_>>,
        memory: &GuestMemory,
        disk: Option<&Copying>,
    ) -> Outcome {
        for run in self.pages.runs() {
            writer.pages(memory, run)?;
        }
        if let Some(disk) = disk {
            for run in self.blocks.runs() {
                writer.out_mut().blocks(disk, run)?;
            }
        }
        Ok(())
    }
}

/// Gives the machine that obeys `orders`: its memory while the guest runs, for which this thread stands back, and what
/// is left where it `stands`. Before that all of its `disk`, if that is to be copied.
fn give(
    mut way: Way<'_, '_>,
    view: ViewNumber,
    orders: &Orders,
    disk: Option<Copying>,
    stands: &mut Option<Stands>,
) -> Outcome<Given> {
    let disk = disk.as_ref();
    // It is prompt from where the guest stands still, and then ends.
    std::mem::forget(logchannel::stand_back());
    if let Some(disk) = disk {
        way.blocks(disk, disk.all())?;
    }
    // Memory goes from here on: what was written before is read as it is then.
    let Watched { config, memory } = orders.ask(Order::Watch)?;
    let mut writer = SnapshotWriter::begin(way, &config)?;
    writer.pages(&memory, 0..page_count(&memory))?;
    let mut left = send_again(&mut writer, orders, &memory, disk)?;
    let (resume, resumed) = sync_channel(1);
    let standing = orders.ask(|give| Order::Stand {
        view,
        give,
        resume: resumed,
    })?;
    let stands = stands.insert(Stands {
        resume,
        since_us: standing.since_us,
        cost: Cost::default(),
    });
    let hurried = writer.out_mut().hurry();
    hurried.during("the machine's state")?;
    left.pages.extend(&standing.written);
    if let Some(disk) = disk {
        left.blocks.extend(&disk.written());
    }
    left.send(&mut writer, &memory, disk)?;
    stands.cost.full_bytes = writer.full_pages() * PAGE_BYTES;
    let way = writer.end(&standing.rest)?;
    stands.cost.sent_bytes = way.out.bytes();
    Ok(Given {
        base: standing.base,
        beside: standing.time.into(),
    })
}

/// Sends again and again what was written meanwhile. What is left then, to be sent while the guest stands still.
fn send_again(
    writer: &mut SnapshotWriter<Way<'_, '_>>,
    orders: &Orders,
    memory: &GuestMemory,
    disk: Option<&Copying>,
) -> Outcome<Left> {
    let mut left = Left::default();
    let (mut sent_us, mut sent) = (0, 0);
    for round in 0..=ROUNDS_MAX {
        writer.out_mut().out.wait_taken()?;
        let took_us = clock::now_us() - sent_us;
        left = Left::ask(orders, disk)?;
        if left.len() <= FEW {
            break;
        }
        if round == ROUNDS_MAX {
            // As fast as the last pages went, unless that was held back.
            let still_us = took_us.saturating_mul(left.len()) / sent;
            if !writer.out_mut().is_limited() && still_us > STILL_MAX_US {
                return Err(ReplicaError::refused(format!(
                    "the guest writes faster than it can be sent: it would stand still for {} ms",
                    still_us / 1000
                )));
            }
            break;
        }
        (sent_us, sent) = (clock::now_us(), left.len());
        left.send(writer, memory, disk)?;
    }
    Ok(left)
}

/// The way of a state that arrives to the vCPU's thread, which makes a machine of it.
pub struct Arriving(PipeWriter);

/// The other end of that way.
pub type Arrived = BufReader<PipeReader>;

impl Arriving {
    /// Both ends.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn new() -> Outcome<(Self, Arrived)> {
        let (state, to) = io::pipe().during("cannot make a pipe")?;
        Ok((Self(to), BufReader::with_capacity(PIECE, state)))
    }

    /// Passes on all of `state`, unless this replica `is_over` meanwhile: that is asked for each piece, and for each
    /// part of a disk. Where it breaks off, the snapshot in it does.
    ///
    /// # Errors
    /// If it does not come, or nobody wants more of it.
    pub fn pass(
        mut self,
        state: &mut StateReader<'_>,
        mut is_over: impl FnMut() -> bool,
    ) -> Outcome {
        let during = "the machine's state";
        while state.step().during(during)? {
            let mut rest = state.take();
            loop {
                if is_over() {
                    return Err(ReplicaError::refused("this backup was asked to stop"));
                }
                let (piece, more) = rest.split_at(rest.len().min(PIECE));
                self.0.write_all(piece).during(during)?;
                if more.is_empty() {
                    break;
                }
                rest = more;
            }
        }
        Ok(())
    }
}

/// Where guest time stands, as it is said beside the base.
fn time_bytes(guest_ns: u64, wall_ns: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&guest_ns.to_le_bytes());
    bytes[8..].copy_from_slice(&wall_ns.to_le_bytes());
    bytes
}

/// Where guest time stood, as it was said `beside` the base.
///
/// # Errors
/// If it was not.
pub fn guest_time(beside: &[u8]) -> Outcome<GuestTime> {
    let bytes: &[u8; 16] = beside.try_into().during("where guest time stood")?;
    let [guest_ns, wall_ns] =
        [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 of 16 bytes")));
    Ok(GuestTime {
        tsc: (guest_ns, vmm::hostclock::monotonic_ns()),
        wall_ns,
    })
}
