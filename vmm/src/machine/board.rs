//! The board: chips on two buses, their interrupt lines, and what goes in and out of them.
//!
//! Of its kinds ([`BoardKind`]) those for Linux have more chips (`Pc`), and put up with accesses to what is not
//! there: the first as far as [`legacy`] names them, today's wherever they go ([`absent`]).

pub mod absent;
mod chips;
pub mod legacy;

pub(super) use chips::SavedBoard;

use self::absent::Absent;
use super::config::{BoardKind, MachineConfig};
use super::run::HALT_STATUS;
use crate::backends::station::Station;
use crate::devices::DeviceError;
use crate::devices::acpi_pm::{self, AcpiPm, PmWrite};
use crate::devices::exit_status::ExitStatus;
use crate::devices::pic::Pic;
use crate::devices::pit::Pit;
use crate::devices::rtc::Rtc;
use crate::devices::rtc::ticking::Ticking;
use crate::devices::uart::Uart;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::mmio::VirtioMmio;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::nic::Nic;
use crate::devices::virtio::rng::Entropy;
use crate::engine::Bus;
use crate::memory::GuestMemory;
use replay::{Arrival, InputsError, Output, Question, TimerSpec};
use std::sync::Arc;

/// Console bytes that leave as one output, unless a line ends or the guest halts before.
const CONSOLE_CHUNK: usize = 256;

/// Console input that waits for the UART at most, in bytes.
const TYPED_MAX: usize = 64 << 10;

/// What the board cannot do.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// Nobody is there.
    #[error("the guest {verb} {size} bytes at {bus:?} {address:#x}, where there is no device")]
    Nobody {
        /// "reads" or "writes".
        verb: &'static str,
        /// Bytes.
        size: u8,
        /// Address space.
        bus: Bus,
        /// Address.
        address: u64,
    },
    /// A chip refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An answer could not be had.
    #[error(transparent)]
    Inputs(#[from] InputsError),
}

/// What a write led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// Nothing special.
    Done,
    /// The guest switched itself off with this status.
    PowerOff(u32),
    /// The guest reset the machine.
    Reset,
}

/// A write by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Address space.
    pub bus: Bus,
    /// Address.
    pub address: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The value, zero-extended.
    pub value: u64,
}

/// The way chips ask questions.
pub type Ask<'a> = dyn FnMut(Question) -> Result<u64, InputsError> + 'a;

/// What only the board for Linux has.
pub(super) struct Pc {
    pub(super) pm: AcpiPm,
    pub(super) rng: VirtioMmio<Entropy>,
    pub(super) exit: ExitStatus,
    /// Where nothing is there is an answer all the same; nobody saves it.
    absent: Option<Absent>,
}

impl Pc {
    fn new(kind: BoardKind) -> Self {
        Self {
            pm: AcpiPm::new(),
            rng: VirtioMmio::new(Entropy),
            exit: ExitStatus::new(),
            absent: (kind != BoardKind::FirstPc).then(Absent::default),
        }
    }
}

/// The real-time clock, with its interrupts or without.
pub(super) enum Clock {
    Silent(Rtc),
    Ticking(Box<Ticking>),
}

impl Clock {
    fn new(kind: BoardKind) -> Self {
        match kind {
            BoardKind::Bare => Self::Silent(Rtc::new()),
            BoardKind::FirstPc => Self::Silent(Rtc::started()),
            BoardKind::Pc => Self::Ticking(Box::default()),
        }
    }
}

/// The network card, with a control queue or without.
pub(super) enum Card {
    Plain(VirtioMmio<Net>),
    Controlled(Box<VirtioMmio<Nic>>),
}

/// Does `$do` with the card, whichever `$card` is.
macro_rules! with_card {
    ($card:expr, $name:ident => $do:expr) => {
        match $card {
            Card::Plain($name) => $do,
            Card::Controlled($name) => $do,
        }
    };
}

impl Card {
    fn new(config: &MachineConfig) -> Self {
        match config.board {
            BoardKind::Bare | BoardKind::FirstPc => {
                Self::Plain(VirtioMmio::new(Net::new(config.mac)))
            }
            BoardKind::Pc => Self::Controlled(Box::new(VirtioMmio::new(Nic::new(config.mac)))),
        }
    }
}

/// All chips of one machine.
pub struct Board {
    pub(super) pic: Pic,
    pub(super) pit: Pit,
    pub(super) clock: Clock,
    pub(super) uart: Uart,
    pub(super) net: Card,
    pub(super) block: Option<VirtioMmio<Block>>,
    pub(super) pc: Option<Pc>,
    /// Bytes the guest sent to the console that have not left yet.
    pub(super) console: Vec<u8>,
    /// Console input the UART has no room for yet.
    pub(super) typed: Vec<u8>,
    /// Who is to know the card's addresses, and which change of them was told last; nobody saves it.
    station: Option<(Arc<Station>, u64)>,
}

impl Board {
    /// The board of a machine that was just switched on.
    #[must_use]
    pub fn new(config: &MachineConfig) -> Self {
        let pc = config.board.is_pc();
        Self {
            pic: if pc { Pic::started() } else { Pic::new() },
            pit: if pc { Pit::started() } else { Pit::new() },
            clock: Clock::new(config.board),
            uart: Uart::new(),
            net: Card::new(config),
            block: config
                .disk_sectors
                .map(|sectors| VirtioMmio::new(Block::new(sectors))),
            pc: pc.then(|| Pc::new(config.board)),
            console: Vec::new(),
            typed: Vec::new(),
            station: None,
        }
    }

    /// Everything as it was switched on, but the disk's requests under way and what was typed.
    pub(super) fn reset(&mut self, config: &MachineConfig) {
        let mut board = Self::new(config);
        board.pit.follows(&self.pit);
        if let Some(mut block) = self.block.take() {
            block.reset();
            board.block = Some(block);
        }
        board.typed = std::mem::take(&mut self.typed);
        let station = self.station.take();
        *self = board;
        if let Some((station, _)) = station {
            self.tell(station);
        }
    }

    /// Tells `station` the network card's addresses, now and whenever they change.
    pub(super) fn tell(&mut self, station: Arc<Station>) {
        if let Card::Controlled(card) = &self.net {
            station.tell(card.device().addresses());
            self.station = Some((station, card.device().changes()));
        }
    }

    /// The network card's driver did something.
    fn follow_card(&mut self) {
        if let (Card::Controlled(card), Some((station, told))) = (&self.net, &mut self.station)
            && card.device().changes() != *told
        {
            *told = card.device().changes();
            station.tell(card.device().addresses());
        }
    }

    /// Whether the interrupt controller has an interrupt for the vCPU.
    #[must_use]
    pub fn interrupt_pending(&self) -> bool {
        self.pic.pending()
    }

    /// The vector of that interrupt, which the vCPU takes now.
    pub fn acknowledge(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// How the timer stands.
    #[must_use]
    pub fn timer(&self) -> TimerSpec {
        self.pit.timer()
    }

    /// What a guest ends with that halts its processor for good; `None` where that is a fault of the guest's.
    #[must_use]
    pub fn halted_status(&self) -> Option<u32> {
        let pc = self.pc.as_ref().filter(|pc| pc.absent.is_some())?;
        let written = pc.exit.read();
        Some(if written == 0 {
            HALT_STATUS
        } else {
            written.into()
        })
    }

    /// From which wall-clock time on the real-time clock wants to be told it, if it does.
    #[must_use]
    pub fn clock_due_ns(&self) -> Option<u64> {
        match &self.clock {
            Clock::Silent(_) => None,
            Clock::Ticking(clock) => clock.due_ns(),
        }
    }

    /// How many frames the network device can take.
    #[must_use]
    pub fn frames_room(&self, memory: &GuestMemory) -> u16 {
        with_card!(&self.net, card => card.rx_room(memory))
    }

    /// How many more bytes of console input wait here without being lost.
    #[must_use]
    pub fn typed_room(&self) -> usize {
        TYPED_MAX.saturating_sub(self.typed.len())
    }

    /// Disk requests under way, as the outputs that made them, oldest first.
    #[must_use]
    pub fn outstanding_disk(&self) -> Vec<Output> {
        self.block
            .as_ref()
            .map(|block| block.device().outstanding())
            .unwrap_or_default()
    }

    /// Puts an arrival into its chip.
    ///
    /// # Errors
    /// If there is no such device or request.
    pub fn deliver(&mut self, memory: &GuestMemory, arrival: Arrival) -> Result<(), BoardError> {
        match arrival {
            Arrival::Timer { .. } => self.pic.pulse(abi::TIMER_IRQ),
            Arrival::Frame(frame) => {
                if with_card!(&mut self.net, card => card.receive(memory, &frame)) {
                    self.pic.pulse(abi::NET_IRQ);
                }
                self.follow_card();
            }
            Arrival::DiskDone { tag, ok, data } => {
                let block = self.block.as_mut().ok_or(DeviceError::UnknownTag(tag))?;
                if block.complete(memory, tag, ok, &data)? {
                    self.pic.pulse(abi::BLOCK_IRQ);
                }
            }
            // Its data is the follower's to find, and was not found.
            Arrival::DiskRead { tag } => return Err(DeviceError::UnknownTag(tag).into()),
            Arrival::Console(bytes) => {
                // Beyond the bound, which live inputs keep to, input is lost; on both replicas alike.
                let room = self.typed_room();
                self.typed
                    .extend_from_slice(&bytes[..bytes.len().min(room)]);
                self.feed_uart();
            }
            Arrival::Clock { wall_ns } => {
                if let Clock::Ticking(clock) = &mut self.clock
                    && clock.told(wall_ns)
                {
                    self.pic.pulse(abi::RTC_IRQ);
                }
            }
            Arrival::IrqWindow | Arrival::Stop => {}
        }
        Ok(())
    }

    fn feed_uart(&mut self) {
        let count = self.uart.room().min(self.typed.len());
        self.uart.receive(&self.typed[..count]);
        self.typed.drain(..count);
        if self.uart.take_interrupt() {
            self.pic.pulse(abi::SERIAL_IRQ);
        }
    }

    /// Lets out what the guest has sent to the console so far.
    pub fn flush_console(&mut self, out: &mut Vec<Output>) {
        if !self.console.is_empty() {
            out.push(Output::Console(std::mem::take(&mut self.console)));
        }
    }

    /// The guest reads.
    ///
    /// # Errors
    /// If nobody is there, or the answer cannot be had.
    pub fn read(
        &mut self,
        bus: Bus,
        address: u64,
        size: u8,
        ask: &mut Ask<'_>,
    ) -> Result<u64, BoardError> {
        let nobody = BoardError::Nobody {
            verb: "reads",
            size,
            bus,
            address,
        };
        let offset = address % abi::WINDOW;
        let value = match bus {
            Bus::Port => match u16::try_from(address) {
                Ok(port) => self.read_ports(port, size, ask)?,
                Err(_) => None,
            },
            Bus::Tsc if address == 0 && size == 8 => Some(ask(Question::Tsc)?),
            Bus::Tsc => None,
            Bus::Mmio => match (address - offset, &mut self.pc) {
                (abi::NET_PAGE, _) => {
                    Some(with_card!(&mut self.net, card => card.read(offset, size)))
                }
                (abi::BLOCK_PAGE, _) => Some(match &mut self.block {
                    Some(block) => block.read(offset, size),
                    // An empty virtio-mmio slot: a driver finds magic number 0 (virtio 1.2, 4.2.2.1).
                    None => 0,
                }),
                (abi::RNG_PAGE, Some(pc)) => Some(pc.rng.read(offset, size)),
                (abi::CONTROL_PAGE, Some(pc))
                    if offset == abi::control::EXIT_STATUS && size == 1 =>
                {
                    Some(pc.exit.read().into())
                }
                (abi::CONTROL_PAGE, None) if offset == abi::control::TSC && size == 8 => {
                    Some(ask(Question::Tsc)?)
                }
                _ => None,
            },
        };
        match value.or_else(|| self.read_nothing("reads", bus, address, size)) {
            Some(value) => Ok(value),
            None => Err(nobody),
        }
    }

    /// An access that no chip claims: what a read sees, and that a write is done with; `None` where it ends the
    /// machine.
    fn read_nothing(
        &mut self,
        verb: &'static str,
        bus: Bus,
        address: u64,
        size: u8,
    ) -> Option<u64> {
        let absent = self.pc.as_mut()?.absent.as_mut()?;
        absent.touched(verb, bus, address, size);
        Some(absent::ones(size))
    }

    /// The ports of an access that no chip claims as a whole, one by one, as a PC's bus splits it for chips that
    /// are a byte wide; `None` where that is not done.
    fn split(&self, port: u16, size: u8) -> Option<impl Iterator<Item = Option<u16>> + use<>> {
        self.pc.as_ref()?.absent.as_ref()?;
        (size > 1).then(|| (0..u16::from(size)).map(move |n| port.checked_add(n)))
    }

    /// The guest reads ports; `None`: nobody is there.
    fn read_ports(
        &mut self,
        port: u16,
        size: u8,
        ask: &mut Ask<'_>,
    ) -> Result<Option<u64>, InputsError> {
        if size == 1
            && let Some(value) = self.read_port(port, ask)?
        {
            return Ok(Some(value.into()));
        }
        let Some(pc) = &self.pc else {
            return Ok(None);
        };
        if let acpi_pm::EVENT_PORT..=acpi_pm::LAST_PORT = port {
            let value = pc.pm.read(port, size, &mut || ask(Question::PmElapsed))?;
            return Ok(Some(value.into()));
        }
        if legacy::why_tolerated(port, size).is_some() {
            return Ok(Some(absent::ones(size)));
        }
        let Some(ports) = self.split(port, size) else {
            return Ok(None);
        };
        let mut value = 0;
        for (n, port) in ports.enumerate() {
            let byte = match port {
                Some(port) => self.read_ports(port, 1, ask)?,
                None => None,
            };
            let last = u64::from(port.unwrap_or(u16::MAX));
            let byte = byte.or_else(|| self.read_nothing("reads", Bus::Port, last, 1));
            value |= byte.unwrap_or(0xff) << (8 * n);
        }
        Ok(Some(value))
    }

    fn read_port(&mut self, port: u16, ask: &mut Ask<'_>) -> Result<Option<u8>, InputsError> {
        Ok(Some(match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.read(port),
            0x40..=0x43 | 0x61 => self
                .pit
                .read(port, &mut |channel| ask(Question::PitElapsed(channel)))?,
            0x70 | 0x71 => {
                let wall_ns = &mut || ask(Question::WallClock);
                match &mut self.clock {
                    Clock::Silent(clock) => clock.read(port, wall_ns)?,
                    Clock::Ticking(clock) => clock.read(port, wall_ns)?,
                }
            }
            0x3f8..=0x3ff => {
                let value = self.uart.read((port - abi::SERIAL_PORT) as u8);
                self.feed_uart();
                value
            }
            _ => return Ok(None),
        }))
    }

    /// The guest writes. What leaves the machine goes to `out`.
    ///
    /// # Errors
    /// If nobody is there, or an answer the chip needs cannot be had.
    pub fn write(
        &mut self,
        memory: &GuestMemory,
        Write {
            bus,
            address,
            size,
            value,
        }: Write,
        ask: &mut Ask<'_>,
        out: &mut Vec<Output>,
    ) -> Result<Wrote, BoardError> {
        let nobody = BoardError::Nobody {
            verb: "writes",
            size,
            bus,
            address,
        };
        let wrote = match bus {
            Bus::Tsc => None,
            Bus::Port => match u16::try_from(address) {
                Ok(port) => self.write_ports(port, size, value, ask, out)?,
                Err(_) => None,
            },
            Bus::Mmio => self.write_memory(memory, address, size, value, ask, out)?,
        };
        match wrote {
            Some(wrote) => Ok(wrote),
            None => match self.read_nothing("writes", bus, address, size) {
                Some(_) => Ok(Wrote::Done),
                None => Err(nobody),
            },
        }
    }

    /// The guest writes memory-mapped registers; `None`: nobody is there.
    fn write_memory(
        &mut self,
        memory: &GuestMemory,
        address: u64,
        size: u8,
        value: u64,
        ask: &mut Ask<'_>,
        out: &mut Vec<Output>,
    ) -> Result<Option<Wrote>, InputsError> {
        let offset = address % abi::WINDOW;
        match (address - offset, &mut self.block, &mut self.pc) {
            (abi::NET_PAGE, ..) => {
                let pulses = with_card!(&mut self.net, card => {
                    card.write(offset, size, value, memory, out)
                });
                if pulses {
                    self.pic.pulse(abi::NET_IRQ);
                }
                self.follow_card();
            }
            (abi::BLOCK_PAGE, Some(block), _) => {
                if block.write(offset, size, value, memory, out) {
                    self.pic.pulse(abi::BLOCK_IRQ);
                }
            }
            (abi::RNG_PAGE, _, Some(pc)) => {
                let pulse = pc.rng.write(offset, size, value, memory, out);
                let word = &mut || ask(Question::Entropy);
                if pc.rng.serve(memory, word)? || pulse {
                    self.pic.pulse(abi::RNG_IRQ);
                }
            }
            (abi::CONTROL_PAGE, _, None) if offset == abi::control::POWER_OFF && size == 4 => {
                return Ok(Some(self.power_off((value & 0xffff_ffff) as u32, out)));
            }
            (abi::CONTROL_PAGE, _, None) if offset == abi::control::RESET && size == 4 => {
                self.flush_console(out);
                return Ok(Some(Wrote::Reset));
            }
            (abi::CONTROL_PAGE, _, Some(pc))
                if offset == abi::control::EXIT_STATUS && size == 1 =>
            {
                pc.exit.write((value & 0xff) as u8);
            }
            _ => return Ok(None),
        }
        Ok(Some(Wrote::Done))
    }

    /// The machine ends with this status.
    fn power_off(&mut self, code: u32, out: &mut Vec<Output>) -> Wrote {
        self.flush_console(out);
        out.push(Output::PowerOff { code });
        Wrote::PowerOff(code)
    }

    /// The guest writes ports; `None`: nobody is there.
    fn write_ports(
        &mut self,
        port: u16,
        size: u8,
        value: u64,
        ask: &mut Ask<'_>,
        out: &mut Vec<Output>,
    ) -> Result<Option<Wrote>, InputsError> {
        if size == 1 && self.write_port(port, (value & 0xff) as u8, ask, out)? {
            return Ok(Some(Wrote::Done));
        }
        let Some(pc) = &mut self.pc else {
            return Ok(None);
        };
        if let acpi_pm::EVENT_PORT..=acpi_pm::LAST_PORT = port {
            let value = (value & 0xffff_ffff) as u32;
            return Ok(Some(match pc.pm.write(port, size, value) {
                PmWrite::Done => Wrote::Done,
                PmWrite::Off => {
                    let status = pc.exit.read().into();
                    self.power_off(status, out)
                }
            }));
        }
        if legacy::resets(port, size, value) {
            self.flush_console(out);
            return Ok(Some(Wrote::Reset));
        }
        if legacy::why_tolerated(port, size).is_some() {
            return Ok(Some(Wrote::Done));
        }
        let Some(ports) = self.split(port, size) else {
            return Ok(None);
        };
        for (port, byte) in ports.zip(value.to_le_bytes()) {
            let wrote = match port {
                Some(port) => self.write_ports(port, 1, byte.into(), ask, out)?,
                None => None,
            };
            match wrote {
                Some(Wrote::Done) => {}
                // The machine ends here, or begins anew.
                Some(other) => return Ok(Some(other)),
                None => {
                    let last = u64::from(port.unwrap_or(u16::MAX));
                    self.read_nothing("writes", Bus::Port, last, 1);
                }
            }
        }
        Ok(Some(Wrote::Done))
    }

    /// Whether there is such a port.
    fn write_port(
        &mut self,
        port: u16,
        value: u8,
        ask: &mut Ask<'_>,
        out: &mut Vec<Output>,
    ) -> Result<bool, InputsError> {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.write(port, value),
            0x40..=0x43 | 0x61 => self.pit.write(port, value, &mut |channel| {
                ask(Question::PitElapsed(channel))
            })?,
            0x70 | 0x71 => match &mut self.clock {
                Clock::Silent(clock) => clock.write(port, value),
                Clock::Ticking(clock) => {
                    let wall_ns = &mut || ask(Question::WallClock);
                    if clock.write(port, value, wall_ns)? {
                        self.pic.pulse(abi::RTC_IRQ);
                    }
                }
            },
            0x3f8..=0x3ff => {
                if let Some(byte) = self.uart.write((port - abi::SERIAL_PORT) as u8, value) {
                    self.console.push(byte);
                    if byte == b'\n' || self.console.len() >= CONSOLE_CHUNK {
                        self.flush_console(out);
                    }
                }
                self.feed_uart();
            }
            0x80 => {} // POST codes: writes are a customary delay
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
