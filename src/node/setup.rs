//! From arguments, or a peer's word, to a machine that has not run yet.

use crate::cli::MachineArgs;
use crate::failure::{During, Failure, Outcome};
use crate::images::{self, Image};
use replay::codec::from_bytes;
use replay::file::LogReader;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::Path;
use vm_memory::GuestMemoryMmap;
use vmm::engine::EngineKind;
use vmm::kvm::{Host, KvmEngine, KvmKind, Vm};
use vmm::machine::{Machine, MachineConfig, boot};

/// The guest's network address unless its arguments say otherwise.
pub const GUEST_ADDRESS: &str = "10.77.0.2/24";
/// And its gateway: the host's side of the demo's bridge.
pub const GATEWAY: &str = "10.77.0.1";

/// A machine as one host tells another, or a log its reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// What the first state depends on.
    pub config: MachineConfig,
    /// What runs it there.
    pub engine: EngineKind,
}

impl Origin {
    /// `config`, run on this host.
    #[must_use]
    pub fn here(config: &MachineConfig) -> Self {
        Self {
            config: config.clone(),
            engine: engine_here(),
        }
    }

    /// What `log` says of its machine. Logs of version 1 did not name the engine.
    ///
    /// # Errors
    /// If it says nothing that makes sense.
    pub fn of_log(log: &LogReader, path: &Path) -> Outcome<(MachineConfig, Option<EngineKind>)> {
        let bytes = &log.header().config;
        let read = if log.version() == 1 {
            from_bytes(bytes).map(|config| (config, None))
        } else {
            from_bytes(bytes).map(|origin: Self| (origin.config, Some(origin.engine)))
        };
        read.during(format_args!("{}: machine configuration", path.display()))
    }
}

/// What runs guests on this host.
#[must_use]
pub fn engine_here() -> EngineKind {
    KvmKind::of_this_host().into()
}

/// A machine's configuration, with its image.
pub struct Blueprint {
    /// What replicas must agree on.
    pub config: MachineConfig,
    /// The guest.
    pub image: Image,
}

/// What the command line asks for.
pub fn blueprint(args: &MachineArgs) -> Outcome<Blueprint> {
    let image = images::load(&args.guest)?;
    let disk_sectors = args.disk.as_deref().map(disk_sectors).transpose()?;
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
    let config = MachineConfig {
        guest: args.guest.clone(),
        image_digest: image.digest,
        memory_mib: args.memory,
        cmdline: words.join(" "),
        cpu: args.cpu,
        clock_kind: args.clock,
        mac: args.mac.0,
        disk_sectors,
    };
    config.check()?;
    Ok(Blueprint { config, image })
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

/// What a log or a peer asks for; `image` overrides where its guest is found.
pub fn follow(config: MachineConfig, image: Option<&str>) -> Outcome<Blueprint> {
    config.check()?;
    let image = images::load(image.unwrap_or(&config.guest))?;
    if image.digest != config.image_digest {
        return Err(Failure::new(format!(
            "guest '{}' here is not the one meant: its image has digest {:016x}, not {:016x} \
             (another version of it? name the right one with --image)",
            image.name, image.digest, config.image_digest
        )));
    }
    Ok(Blueprint { config, image })
}

/// A blueprint with KVM and memory to run it; the vCPU is made by the thread that runs it.
pub struct Prepared {
    blueprint: Blueprint,
    memory: GuestMemoryMmap,
    vm: Vm,
}

/// Gets KVM and memory.
pub fn prepare(blueprint: Blueprint) -> Outcome<Prepared> {
    let host = Host::open()?;
    let memory = boot::memory(&blueprint.config)?;
    let vm = host.create_vm(memory.clone(), blueprint.config.cpu)?;
    Ok(Prepared {
        blueprint,
        memory,
        vm,
    })
}

impl Prepared {
    /// The machine, about to run its first instruction, and the digest of that state. On the vCPU thread.
    pub fn boot(self) -> Outcome<(Machine<KvmEngine>, u64)> {
        let mut engine = self.vm.create_engine()?;
        let config = self.blueprint.config;
        engine.set_clock_kind(config.clock_kind)?;
        let mut machine = Machine::boot(engine, self.memory, config, &self.blueprint.image.bytes)?;
        let first_state = machine.digest(None)?;
        Ok((machine, first_state))
    }

    /// Its configuration.
    pub fn config(&self) -> &MachineConfig {
        &self.blueprint.config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replay::codec::to_bytes;
    use replay::file::{LogHeader, LogWriter};

    fn config() -> MachineConfig {
        MachineConfig {
            guest: "counter".into(),
            image_digest: 1,
            memory_mib: 64,
            cmdline: String::new(),
            cpu: Default::default(),
            clock_kind: replay::ClockKind::Blocks,
            mac: [2, 0, 0, 0, 0, 1],
            disk_sectors: None,
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
    fn a_log_says_what_ran_its_machine_and_an_old_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        log(&path, to_bytes(&Origin::here(&config())));
        let reader = LogReader::open(&path).unwrap();
        let said = Origin::of_log(&reader, &path).unwrap();
        assert_eq!(said, (config(), Some(engine_here())));

        log(&path, to_bytes(&config()));
        let reader = LogReader::open(&path).unwrap();
        assert!(Origin::of_log(&reader, &path).is_err(), "no engine named");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 1;
        std::fs::write(&path, bytes).unwrap();
        let reader = LogReader::open(&path).unwrap();
        let said = Origin::of_log(&reader, &path).unwrap();
        assert_eq!(said, (config(), None));
    }
}
