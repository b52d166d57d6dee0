//! From arguments, or a peer's word, to a machine that has not run yet.

use super::engine::{AnyMachine, Chosen, EngineArg};
use crate::cli::MachineArgs;
use crate::failure::{During, Failure, Outcome};
use crate::images::{self, Image};
use replay::ClockKind;
use std::path::Path;
use vmm::machine::{BoardKind, Machine, MachineConfig, TscMode, boot};
use vmm::memory::GuestMemory;

/// The guest's network address unless its arguments say otherwise.
pub const GUEST_ADDRESS: &str = "10.77.0.2/24";
/// And its gateway: the host's side of the demo's bridge.
pub const GATEWAY: &str = "10.77.0.1";

/// Guest memory unless the command line or the image says otherwise.
const MEMORY_MIB: u32 = 64;

/// A Linux kernel's command line unless another is given: messages on the serial port.
const LINUX_CMDLINE: &str = "console=ttyS0";

/// A machine's configuration, with its image.
pub struct Blueprint {
    /// What replicas must agree on.
    pub config: MachineConfig,
    /// The guest.
    pub image: Image,
}

/// What the command line asks for.
pub fn blueprint(args: &MachineArgs) -> Outcome<Blueprint> {
    let initrd = args.initrd.as_deref();
    let image = images::load(&args.guest, initrd)?;
    let board = image.bytes().board()?;
    let disk_sectors = args.disk.as_deref().map(disk_sectors).transpose()?;
    let clock_kind = args.clock.unwrap_or(match board {
        BoardKind::Bare => ClockKind::Blocks,
        BoardKind::Pc => ClockKind::Instructions,
    });
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
        return Ok(words.join(" "));
    }
    if args.append.is_some() {
        return Err(Failure::new(
            "--append is for Linux kernels; this guest takes --arg KEY=VALUE",
        ));
    }
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
}

/// Gets engine and memory.
pub fn prepare(blueprint: Blueprint, engine: EngineArg) -> Outcome<Prepared> {
    let memory = boot::memory(&blueprint.config)?;
    let engine = Chosen::choose(engine, &blueprint.config, &memory)?;
    Ok(Prepared {
        blueprint,
        memory,
        engine,
    })
}

impl Prepared {
    /// The machine, about to run its first instruction, and the digest of that state. On the vCPU thread.
    pub fn boot(self) -> Outcome<(AnyMachine, u64)> {
        let config = self.blueprint.config;
        let engine = self.engine.create(&config, &self.memory)?;
        let mut machine =
            Machine::boot(engine, self.memory, config, &self.blueprint.image.bytes())?;
        let first_state = machine.digest(None)?;
        Ok((machine, first_state))
    }

    /// Its configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.blueprint.config
    }
}
