//! gdb at a replay: its remote protocol over TCP.
//!
//! gdb may look at everything and change nothing: what it writes is refused.

use super::kernel;
use super::registers::{File, X86};
use super::travel::{Arrived, Place, Travel};
use crate::failure::{During, Failure, Outcome};
use gdbstub::common::Signal;
use gdbstub::conn::{Connection, ConnectionExt};
use gdbstub::outputln;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use vmm::engine::Engine;
use vmm::soft::looking::{Data, Debuggable, Kind, Pause, Watch};

/// What gdb asks for and does not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It writes to a register or to memory.
    #[error("a replay cannot be changed")]
    Unchangeable,
    /// It reads where the guest has nothing mapped, or no RAM.
    #[error("there is no memory at {0:#x}")]
    NoMemory(u64),
}

impl From<Refused> for TargetError<Failure> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unchangeable => {
                crate::complain!("tandem: gdb: {refused}");
                Self::Errno(nix::errno::Errno::EROFS as u8)
            }
            Refused::NoMemory(_) => Self::Errno(nix::errno::Errno::EFAULT as u8),
        }
    }
}

/// Most bytes of a packet; gdb is told, and whoever sends more is hung up on.
const PACKET_MAX: usize = 4096;

/// Whether gdb left the replay to itself, or ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It detached: the replay goes on to its end.
    Detached,
    /// It killed the replay.
    Killed,
}

/// Serves one gdb after another on 127.0.0.1:`port` until one leaves in an orderly way; says on standard error
/// where it waits.
///
/// Whoever else connects (a port scanner, a browser, a gdb that dies) costs its own connection: that is told,
/// and the next is waited for. The replay stays where it was taken.
///
/// # Errors
/// If the port cannot be had, or the replay cannot be moved about in.
pub fn serve(travel: &mut Travel, port: u16) -> Outcome<Left> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .during(format_args!("cannot wait for gdb on port {port}"))?;
    let address = listener.local_addr().during("gdb's port")?;
    crate::complain!("tandem: gdb: target remote {address}");
    if let Some(offset) = kernel::offset(travel.engine()) {
        crate::complain!("tandem: gdb: {}", kernel::words(offset));
    }
    loop {
        let (stream, peer) = listener.accept().during("cannot take gdb's connection")?;
        match converse(travel, stream) {
            Ok(left) => return Ok(left),
            Err(Broken::Replay(why)) => return Err(Failure::new(format!("gdb: {why}"))),
            Err(Broken::Connection(why)) => {
                crate::complain!("tandem: gdb: {peer} is hung up on: {why}; waiting for the next");
            }
        }
    }
}

/// What a connection ends by, if nobody left.
enum Broken {
    /// It is lost, or who is there is no gdb.
    Connection(String),
    /// The replay itself.
    Replay(Failure),
}

/// Serves whoever is at `stream`.
fn converse(travel: &mut Travel, stream: TcpStream) -> Result<Left, Broken> {
    stream
        .set_nodelay(true)
        .map_err(|e| Broken::Connection(e.to_string()))?;
    let out = Vec::new();
    let mut session = Session {
        travel,
        software: Vec::new(),
        hardware: Vec::new(),
        data: Vec::new(),
        spaces: Vec::new(),
        motion: Motion::Forward,
    };
    let mut packet = [0; PACKET_MAX];
    let stub = GdbStub::builder(Link { stream, out })
        .with_packet_buffer(&mut packet)
        .build()
        .map_err(|e| Broken::Connection(e.to_string()))?;
    match stub.run_blocking::<Loop<'_>>(&mut session) {
        Ok(DisconnectReason::Kill) => Ok(Left::Killed),
        Ok(_) => Ok(Left::Detached),
        Err(error) => {
            let why = error.to_string();
            Err(match error.into_target_error() {
                Some(failure) => Broken::Replay(failure),
                None => Broken::Connection(why),
            })
        }
    }
}

/// The connection; what is written leaves when it is flushed.
struct Link {
    stream: TcpStream,
    out: Vec<u8>,
}

impl Connection for Link {
    type Error = std::io::Error;

    fn write(&mut self, byte: u8) -> Result<(), Self::Error> {
        self.out.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        self.stream.set_nonblocking(false)?;
        Write::write_all(&mut self.stream, &self.out)?;
        self.out.clear();
        Ok(())
    }
}

impl ConnectionExt for Link {
    fn read(&mut self) -> Result<u8, Self::Error> {
        self.flush()?;
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// At the connection's end there is something to read, too: the error.
    fn peek(&mut self) -> Result<Option<u8>, Self::Error> {
        self.flush()?;
        self.stream.set_nonblocking(true)?;
        let mut byte = [0];
        match self.stream.peek(&mut byte) {
            Ok(_) => Ok(Some(byte[0])),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What gdb asked for last.
#[derive(Clone, Copy, Debug)]
enum Motion {
    Forward,
    Step,
    Backward,
    StepBack,
}

struct Session<'a> {
    travel: &'a mut Travel,
    software: Vec<u64>,
    hardware: Vec<u64>,
    data: Vec<Watched>,
    /// The address spaces (CR3) in which data of user programs was watched first. gdb takes its watchpoints out at
    /// each stop, and puts them back wherever it goes on from.
    spaces: Vec<(Watched, u64)>,
    motion: Motion,
}

/// Data that is watched: its address, bytes, and the accesses.
type Watched = (u64, u64, WatchKind);

/// End of user programs' addresses; behind it is what all address spaces have in common.
const USER_END: u64 = 1 << 47;

impl Session<'_> {
    fn watch(&self) -> Watch {
        let data = self.data.iter().filter_map(|watched| {
            let &(address, len, kind) = watched;
            let kind = match kind {
                WatchKind::Read => Kind::Read,
                WatchKind::Write => Kind::Write,
                WatchKind::ReadWrite => Kind::Access,
            };
            let data = Data::new(address, len, kind)?;
            let space = self.spaces.iter().find(|(known, _)| known == watched);
            Some(match space {
                Some((_, cr3)) => data.in_space(*cr3),
                None => data,
            })
        });
        let breakpoints = [&self.software[..], &self.hardware].concat();
        Watch::new(breakpoints, data.collect())
    }

    fn go(&mut self, poll: &mut dyn FnMut() -> bool) -> Outcome<Arrived> {
        let mut watch = self.watch();
        match self.motion {
            Motion::Forward => self.travel.forward(&mut watch, poll),
            Motion::Backward => self.travel.backward(&watch, poll),
            Motion::StepBack => self.travel.step_back(),
            Motion::Step => {
                watch.one = true;
                self.travel.forward(&mut watch, poll)
            }
        }
    }

    /// What gdb is told; `None` if it interrupts.
    fn reason(&self, arrived: Arrived) -> Option<SingleThreadStopReason<u64>> {
        let at = |pos| SingleThreadStopReason::ReplayLog { tid: None, pos };
        Some(match arrived {
            Arrived::Interrupted => return None,
            Arrived::Begin => at(ReplayLogPosition::Begin),
            Arrived::End => {
                if let Some(Err(why)) = self.travel.result() {
                    crate::complain!("tandem: the replay goes no further: {why}");
                }
                at(ReplayLogPosition::End)
            }
            Arrived::Paused(Pause::Reached | Pause::Transfer(_)) => {
                SingleThreadStopReason::DoneStep
            }
            Arrived::Paused(Pause::Breakpoint) => {
                if self.hardware.contains(&self.travel.place().rip) {
                    SingleThreadStopReason::HwBreak(())
                } else {
                    SingleThreadStopReason::SwBreak(())
                }
            }
            Arrived::Paused(Pause::Data(hit)) => SingleThreadStopReason::Watch {
                tid: (),
                kind: match hit.kind {
                    Kind::Read => WatchKind::Read,
                    Kind::Write => WatchKind::Write,
                    Kind::Access => WatchKind::ReadWrite,
                },
                addr: hit.address,
            },
        })
    }
}

struct Loop<'a>(std::marker::PhantomData<&'a ()>);

impl<'a> BlockingEventLoop for Loop<'a> {
    type Target = Session<'a>;
    type Connection = Link;
    type StopReason = SingleThreadStopReason<u64>;

    fn wait_for_stop_reason(
        session: &mut Session<'a>,
        link: &mut Link,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<Failure, std::io::Error>> {
        // A connection that failed is read from, and fails again there.
        let mut poll = || !matches!(link.peek(), Ok(None));
        let arrived = session
            .go(&mut poll)
            .map_err(WaitForStopReasonError::Target)?;
        if let Some(reason) = session.reason(arrived) {
            return Ok(Event::TargetStopped(reason));
        }
        let byte = link.read().map_err(WaitForStopReasonError::Connection)?;
        Ok(Event::IncomingData(byte))
    }

    fn on_interrupt(_: &mut Session<'a>) -> Result<Option<Self::StopReason>, Failure> {
        Ok(Some(SingleThreadStopReason::Signal(Signal::SIGINT)))
    }
}

impl Target for Session<'_> {
    type Arch = X86;
    type Error = Failure;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Failure> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadBase for Session<'_> {
    fn read_registers(&mut self, file: &mut File) -> TargetResult<(), Self> {
        *file = File::from(&self.travel.engine().view());
        Ok(())
    }

    fn write_registers(&mut self, _: &File) -> TargetResult<(), Self> {
        Err(Refused::Unchangeable.into())
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        match self.travel.engine().look(address, data) {
            0 if !data.is_empty() => Err(Refused::NoMemory(address).into()),
            there => Ok(there),
        }
    }

    fn write_addrs(&mut self, _: u64, _: &[u8]) -> TargetResult<(), Self> {
        Err(Refused::Unchangeable.into())
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadResume for Session<'_> {
    fn resume(&mut self, _: Option<Signal>) -> Outcome {
        self.motion = Motion::Forward;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, (), Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, (), Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Session<'_> {
    fn step(&mut self, _: Option<Signal>) -> Outcome {
        self.motion = Motion::Step;
        Ok(())
    }
}

impl ReverseStep<()> for Session<'_> {
    fn reverse_step(&mut self, (): ()) -> Outcome {
        self.motion = Motion::StepBack;
        Ok(())
    }
}

impl ReverseCont<()> for Session<'_> {
    fn reverse_cont(&mut self) -> Outcome {
        self.motion = Motion::Backward;
        Ok(())
    }
}

impl Breakpoints for Session<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

fn remove<T: PartialEq>(list: &mut Vec<T>, item: &T) -> bool {
    let at = list.iter().position(|there| there == item);
    at.map(|at| list.swap_remove(at)).is_some()
}

// Neither kind of breakpoint changes memory.
impl SwBreakpoint for Session<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.software.push(address);
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(remove(&mut self.software, &address))
    }
}

impl HwBreakpoint for Session<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.hardware.push(address);
        Ok(true)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(remove(&mut self.hardware, &address))
    }
}

impl HwWatchpoint for Session<'_> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let possible = Data::new(address, len, Kind::Access).is_some();
        if possible {
            let watched = (address, len, kind);
            self.data.push(watched);
            if address < USER_END && !self.spaces.iter().any(|(known, _)| *known == watched) {
                self.spaces
                    .push((watched, self.travel.engine().view().control[2]));
            }
        }
        Ok(possible)
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(remove(&mut self.data, &(address, len, kind)))
    }
}

impl MonitorCmd for Session<'_> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Failure> {
        let travel = &self.travel;
        match command {
            b"where" => {
                let Place { steps, rip } = travel.place();
                let (clock, kind) = (travel.engine().clock(), travel.clock_kind());
                outputln!(
                    out,
                    "clock {clock} ({kind}), {steps} instructions, rip {rip:#x}"
                );
                for line in travel.replayer().last() {
                    outputln!(out, "  replayed {line}");
                }
                outputln!(out, "  next: entry {}", travel.replayer().index());
            }
            b"checkpoints" => {
                let (places, bytes) = travel.kept();
                outputln!(out, "{} checkpoints, {} MiB", places.len(), bytes >> 20);
                for Place { steps, rip } in places {
                    outputln!(out, "  after {steps} instructions, rip {rip:#x}");
                }
            }
            b"kernel" => match kernel::offset(travel.engine()) {
                Some(offset) => outputln!(out, "{}", kernel::words(offset)),
                None => outputln!(out, "no Linux kernel is mapped here (yet)"),
            },
            b"spaces" => {
                for ((address, len, _), cr3) in &self.spaces {
                    outputln!(out, "{len} bytes at {address:#x} where CR3 is {cr3:#x}");
                }
            }
            b"here" => {
                self.spaces.clear();
                outputln!(
                    out,
                    "watchpoints of programs are from now on in the space gdb goes on in"
                );
            }
            _ => outputln!(
                out,
                "monitor where, monitor checkpoints, monitor kernel, monitor spaces, monitor here"
            ),
        }
        Ok(())
    }
}
