//! From arguments, or a peer's word, to a machine that has not run yet.

use super::arguments;
use super::engine::{self, AnyMachine, Chosen, EngineArg};
use crate::cli::MachineArgs;
use crate::failure::{During, Failure, Outcome};
use crate::images::{self, Image};
use replay::ClockKind;
use replay::codec::from_bytes;
use replay::file::LogReader;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::Path;
use vmm::engine::Engine;
use vmm::engine::EngineKind;
use vmm::machine::{BoardKind, Machine, MachineConfig, TSC_HZ, TscMode, boot};
use vmm::memory::GuestMemory;
use vmm::processor::HostProcessor;
use vmm::soft::SoftEngine;

/// The guest's network address unless its arguments say otherwise.
pub const GUEST_ADDRESS: &str = "10.77.0.2/24";
/// And its gateway: the host's side of the demo's bridge.
pub const GATEWAY: &str = "10.77.0.1";

/// Guest memory unless the command line or the image says otherwise.
const MEMORY_MIB: u32 = 64;

/// A Linux kernel's command line unless another is given: messages on the serial port.
const LINUX_CMDLINE: &str = "console=ttyS0";

/// First log format whose machine comes with its processor.
const PROCESSOR_SINCE: u32 = 5;

/// A machine as one host tells another, or a log its reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// What the first state depends on.
    pub config: MachineConfig,
    /// What runs it there.
    pub engine: EngineKind,
    /// The processor that carries out the guest's instructions there. `None` on the software engine, which
    /// does the same on every host, and in logs of formats before 5.
    pub processor: Option<HostProcessor>,
}

/// An [`Origin`] before log format 5.
#[derive(Deserialize)]
struct OriginBefore5 {
    config: MachineConfig,
    engine: EngineKind,
}

impl Origin {
    /// A machine that `engine` runs on a host with this processor.
    #[must_use]
    pub fn new(config: MachineConfig, engine: EngineKind, host: HostProcessor) -> Self {
        Self {
            config,
            engine,
            processor: (engine != EngineKind::Soft).then_some(host),
        }
    }

    /// What `log` says of its machine.
    ///
    /// # Errors
    /// If it says nothing that makes sense.
    pub fn of_log(log: &LogReader, path: &Path) -> Outcome<Self> {
        let bytes = &log.header().config;
        let origin = if log.version() < PROCESSOR_SINCE {
            from_bytes(bytes).map(|OriginBefore5 { config, engine }| Self {
                config,
                engine,
                processor: None,
            })
        } else {
            from_bytes(bytes)
        };
        origin.during(format_args!("{}: machine configuration", path.display()))
    }
}

/// What a primary proposes to its backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The machine.
    pub origin: Origin,
    /// Its operator knows that processors of different makers do the same for this guest.
    pub unlike_hosts: bool,
}

/// A machine's configuration, with its image.
pub struct Blueprint {
    /// What replicas must agree on.
    pub config: MachineConfig,
    /// The guest.
    pub image: Image,
}

/// What becomes of a machine that its guest resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnReset {
    /// It starts over: memory cleared, the image loaded again
    Restart,
    /// It ends, with status 3321
    End,
}

/// What the command line asks for.
pub fn blueprint(args: &MachineArgs) -> Outcome<Blueprint> {
    let initrd = args.initrd.as_deref();
    let image = images::load(&args.guest, initrd)?;
    let board = image.bytes().board()?;
    if image.manifest.as_ref().is_some_and(|m| !m.tells_status) {
        crate::complain!(
            "tandem: {}: made by an older version, whose guests end with status 0 whatever their command's is \
             (tandem image makes it anew)",
            args.guest
        );
    }
    let disk_sectors = args.disk.as_deref().map(disk_sectors).transpose()?;
    let clock_kind = args.clock.unwrap_or(match board {
        BoardKind::Bare => ClockKind::Blocks,
        BoardKind::Pc => ClockKind::Instructions,
    });
    if (board, clock_kind) == (BoardKind::Pc, ClockKind::Blocks) {
        return Err(Failure::usage(
            "--clock blocks is for guests that count their own blocks, which Linux does not: \
             use --clock instructions",
        ));
    }
    let counted = clock_kind == ClockKind::Instructions && args.engine != EngineArg::Kvm;
    let config = MachineConfig {
        guest: args.guest.clone(),
        image_digest: image.digest,
        memory_mib: args
            .memory
            .unwrap_or(image.manifest.as_ref().map_or(MEMORY_MIB, |m| m.memory_mib)),
        cmdline: cmdline(args, board, &image)?,
        cpu: args.cpu,
        clock_kind,
        // KVM counts no RDTSC: it leaves the guest.
        tsc: args.tsc.unwrap_or(TscMode::usual(counted)),
        mac: args.mac.0,
        disk_sectors,
        initrd: initrd.map(str::to_owned),
        board,
        reboots: args.on_reset.unwrap_or(match image.manifest {
            None => OnReset::Restart,
            Some(_) => OnReset::End,
        }) == OnReset::Restart,
    };
    config.check()?;
    Ok(Blueprint { config, image })
}

/// A bare-metal guest's arguments, with its addresses; or a Linux kernel's command line.
fn cmdline(args: &MachineArgs, board: BoardKind, image: &Image) -> Outcome<String> {
    if board == BoardKind::Pc {
        let append = args.append.clone();
        let mut words = match &image.manifest {
            Some(manifest) => vec![manifest.cmdline.clone(), append.unwrap_or_default()],
            None => vec![append.unwrap_or(LINUX_CMDLINE.to_owned())],
        };
        words.extend(args.args.iter().cloned());
        return Ok(with_tsc_rate(&words.join(" ")));
    }
    if args.append.is_some() {
        return Err(Failure::usage(
            "--append is for Linux kernels; this guest takes --arg KEY=VALUE",
        ));
    }
    arguments::check(&args.guest, &args.args)?;
    let mut words = Vec::new();
    for (key, value) in [("ip", GUEST_ADDRESS), ("gw", GATEWAY)] {
        if !args
            .args
            .iter()
            .any(|arg| arg.split_once('=').is_some_and(|(k, _)| k == key))
        {
            words.push(format!("{key}={value}"));
        }
    }
    words.extend(args.args.iter().cloned());
    Ok(words.join(" "))
}

/// A Linux kernel's command line that says how fast the time-stamp counter runs, unless it does already.
///
/// Otherwise the kernel measures that against the PIT, and where the host keeps the vCPU from running in the
/// midst of it, guest time steps on there: one guest found 5 MHz, and its clocks ran two hundred times too
/// fast (`tsc_early_khz` in the kernel's list of parameters).
fn with_tsc_rate(cmdline: &str) -> String {
    const WORD: &str = "tsc_early_khz=";
    if cmdline.split(' ').any(|word| word.starts_with(WORD)) {
        return cmdline.to_owned();
    }
    // In front: what follows a "--" is the first program's.
    format!("{WORD}{} {cmdline}", TSC_HZ / 1000)
}

/// The address a guest with these arguments has.
///
/// # Errors
/// If `ip=` is no address.
pub fn guest_ip(words: &[String]) -> Outcome<Ipv4Addr> {
    let given = words.iter().rev().find_map(|word| word.strip_prefix("ip="));
    let text = given.unwrap_or(GUEST_ADDRESS);
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address
        .parse()
        .during(format_args!("the guest's argument ip={text}"))
}

/// Size of a raw disk image.
pub fn disk_sectors(path: &Path) -> Outcome<u64> {
    let meta = std::fs::metadata(path).during(format_args!(
        "cannot use {} as the guest's disk",
        path.display()
    ))?;
    Ok(meta.len() / 512)
}

/// What a log or a peer asks for; `image` and `initrd` override where its guest is found.
pub fn follow(
    config: MachineConfig,
    image: Option<&str>,
    initrd: Option<&str>,
) -> Outcome<Blueprint> {
    config.check()?;
    let initrd = initrd.or(config.initrd.as_deref());
    let image = images::load(image.unwrap_or(&config.guest), initrd)?;
    if image.digest != config.image_digest {
        return Err(Failure::new(format!(
            "guest '{}' here is not the one meant: its image has digest {:016x}, not {:016x} \
             (another version of it? name the right one with --image, --initrd)",
            image.name, image.digest, config.image_digest
        )));
    }
    Ok(Blueprint { config, image })
}

/// A blueprint with an engine and memory to run it; the vCPU is made by the thread that runs it.
pub struct Prepared {
    blueprint: Blueprint,
    memory: GuestMemory,
    engine: Chosen,
    tells: bool,
}

/// Gets engine and memory.
pub fn prepare(blueprint: Blueprint, engine: EngineArg) -> Outcome<Prepared> {
    let memory = boot::memory(&blueprint.config)?;
    let engine = Chosen::choose(engine, &blueprint.config, &memory)?;
    Ok(Prepared {
        blueprint,
        memory,
        engine,
        tells: true,
    })
}

impl Prepared {
    /// The same, without a word when its guest resets it: for replays, which may go through it many times.
    #[must_use]
    pub fn silent(self) -> Self {
        Self {
            tells: false,
            ..self
        }
    }

    /// The machine, about to run its first instruction, and the digest of that state. On the vCPU thread.
    pub fn boot(self) -> Outcome<(AnyMachine, u64)> {
        let engine = self.engine.create(&self.blueprint.config, &self.memory)?;
        booted(engine, self.blueprint, self.memory, self.tells)
    }

    /// The same on the software engine, whichever was chosen.
    pub fn boot_soft(self) -> Outcome<(Machine<SoftEngine>, u64)> {
        let engine = engine::soft(&self.blueprint.config, &self.memory)?;
        booted(engine, self.blueprint, self.memory, self.tells)
    }

    /// The machine as it was saved, whichever engine ran it then. On the vCPU thread.
    pub fn restore(self, snapshot: &[u8]) -> Outcome<AnyMachine> {
        let engine = self.engine.create(&self.blueprint.config, &self.memory)?;
        let machine = switched_on(engine, self.blueprint, self.memory, self.tells)?;
        Ok(machine.restored_from(snapshot)?)
    }

    /// What will run it.
    pub fn engine_kind(&self) -> EngineKind {
        self.engine.kind()
    }

    /// Its configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.blueprint.config
    }

    /// What another host, or a log's reader, is told of it.
    pub fn origin(&self) -> Origin {
        let host = HostProcessor::of_this_host();
        Origin::new(self.config().clone(), self.engine_kind(), host)
    }
}

/// A machine that has not run yet, and can start over.
fn switched_on<E: Engine>(
    engine: E,
    blueprint: Blueprint,
    memory: GuestMemory,
    tells: bool,
) -> Outcome<Machine<E>> {
    let mut machine = Machine::boot(engine, memory, blueprint.config, &blueprint.image.bytes())?;
    machine.starts_over_from(blueprint.image.into_source(tells))?;
    Ok(machine)
}

fn booted<E: Engine>(
    engine: E,
    blueprint: Blueprint,
    memory: GuestMemory,
    tells: bool,
) -> Outcome<(Machine<E>, u64)> {
    let mut machine = switched_on(engine, blueprint, memory, tells)?;
    let first_state = machine.digest(None)?;
    Ok((machine, first_state))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use replay::codec::to_bytes;
    use replay::file::{LogHeader, LogWriter};

    #[test]
    fn linux_is_told_how_fast_its_time_stamps_run() {
        let said = with_tsc_rate("console=ttyS0 -- single");
        assert_eq!(said, "tsc_early_khz=1000000 console=ttyS0 -- single");
        assert_eq!(with_tsc_rate(&said), said, "once");
        let own = "quiet tsc_early_khz=7";
        assert_eq!(with_tsc_rate(own), own);
    }

    pub(crate) fn config() -> MachineConfig {
        MachineConfig {
            guest: "counter".into(),
            image_digest: 1,
            memory_mib: 64,
            cmdline: String::new(),
            cpu: Default::default(),
            clock_kind: replay::ClockKind::Blocks,
            tsc: TscMode::Logged,
            mac: [2, 0, 0, 0, 0, 1],
            disk_sectors: None,
            initrd: None,
            board: BoardKind::Bare,
            reboots: true,
        }
    }

    fn log(path: &Path, config: Vec<u8>) {
        let header = LogHeader {
            cpu_model: "v1".into(),
            clock_kind: replay::ClockKind::Blocks,
            config,
            first_state: 0,
        };
        LogWriter::create(path, &header, || 0).unwrap();
    }

    #[test]
    fn a_guest_has_the_address_it_is_given() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(Into::into).collect() };
        let ip = |text| guest_ip(&words(text)).map_err(|e| e.to_string());
        assert_eq!(ip("ticks=3"), Ok(Ipv4Addr::new(10, 77, 0, 2)));
        assert_eq!(
            ip("gw=10.0.0.1 ip=10.0.0.7/8"),
            Ok(Ipv4Addr::new(10, 0, 0, 7))
        );
        assert_eq!(ip("ip=10.0.0.9"), Ok(Ipv4Addr::new(10, 0, 0, 9)));
        assert!(ip("ip=guest").unwrap_err().contains("ip=guest"));
    }

    #[test]
    fn a_log_says_what_ran_its_machine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for engine in [EngineKind::Soft, EngineKind::KvmHardware] {
            let origin = Origin::new(config(), engine, HostProcessor::of_this_host());
            assert_eq!(origin.processor.is_some(), engine != EngineKind::Soft);
            log(&path, to_bytes(&origin));
            let reader = LogReader::open(&path).unwrap();
            assert_eq!(Origin::of_log(&reader, &path).unwrap(), origin);
        }

        log(&path, to_bytes(&config()));
        let reader = LogReader::open(&path).unwrap();
        assert!(Origin::of_log(&reader, &path).is_err(), "no engine named");
    }

    #[test]
    fn a_log_from_before_processors_were_told_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        log(&path, to_bytes(&(config(), EngineKind::KvmSoftware)));
        let mut bytes = std::fs::read(&path).unwrap();
        for version in 3..PROCESSOR_SINCE {
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let reader = LogReader::open(&path).unwrap();
            let origin = Origin::of_log(&reader, &path).unwrap();
            assert_eq!(
                (origin.config, origin.engine),
                (config(), EngineKind::KvmSoftware)
            );
            assert_eq!(origin.processor, None);
        }
        bytes[8..12].copy_from_slice(&PROCESSOR_SINCE.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let reader = LogReader::open(&path).unwrap();
        assert!(Origin::of_log(&reader, &path).is_err(), "no processor");
    }
}
