//! From a peer's word, or a log's, to a machine that has not run yet.

use super::engine::{self, AnyMachine, Chosen, EngineChoice};
use crate::error::{During, Outcome, ReplicaError};
use crate::reads::DiskReads;
use replay::codec::from_bytes;
use replay::file::LogReader;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;
use vmm::engine::{Engine, EngineKind};
use vmm::machine::snapshot::Snapshot;
use vmm::machine::{GuestImage, ImageSource, Machine, MachineConfig, boot};
use vmm::memory::GuestMemory;
use vmm::processor::HostProcessor;
use vmm::soft::SoftEngine;

/// First log format whose machine comes with its processor.
const PROCESSOR_SINCE: u32 = 5;

/// A guest's image, in memory.
pub trait Image: Send {
    /// The name it was asked for by.
    fn name(&self) -> &str;

    /// Its bytes.
    fn bytes(&self) -> GuestImage<'_>;

    /// [`GuestImage::digest`] of its bytes.
    fn digest(&self) -> u64;

    /// Drops the bytes; what is left can read them again when the guest resets its machine, and tells its
    /// operator each time if it `tells`.
    fn into_source(self: Box<Self>, tells: bool) -> Box<dyn ImageSource>;
}

/// Where a replica that follows another, or a log, finds the image it is told of.
pub trait Images: Send {
    /// The image called `name`, with the initial file system at `initrd`.
    ///
    /// # Errors
    /// Why it is not to be had, in one line.
    fn load(&self, name: &str, initrd: Option<&str>) -> Result<Box<dyn Image>, String>;
}

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
    /// Its disk is its own, and so must be that of its backup.
    pub own_disk: bool,
    /// Where its backup has from what the guest read from the disk.
    pub disk_reads: DiskReads,
    /// Where it boots: the digest of what is on that disk, which the backup's must have, too.
    pub disk_digest: Option<u64>,
}

impl Proposal {
    /// Checks that a backup of such a primary can use its own `disk` as that uses its.
    ///
    /// # Errors
    /// Why not.
    pub fn check_disk(&self, disk: Option<&Path>, is_own: bool) -> Outcome {
        let sectors = disk.map(disk_sectors).transpose()?;
        let theirs = self.origin.config.disk_sectors;
        let refused = |why| Err(ReplicaError::Refused(why));
        if theirs.is_some() && sectors.is_some() && self.own_disk != is_own {
            let (has, lacks) = match is_own {
                true => ("this backup", "its primary"),
                false => ("the primary", "this backup"),
            };
            return refused(format!(
                "{has} was given --disk-copy and {lacks} was not: both share one disk, or each has a copy of it"
            ));
        }
        if theirs != sectors {
            let what = match self.own_disk {
                true => "--disk must name an image of the same size",
                false => "--disk must name the shared disk",
            };
            return refused(format!(
                "the primary's disk has {} sectors, this backup's {} ({what})",
                theirs.unwrap_or(0),
                sectors.unwrap_or(0)
            ));
        }
        Ok(())
    }

    /// Checks that a disk with this `digest` has what the primary's has, where that boots with it.
    ///
    /// # Errors
    /// If it has not, and what is to be done.
    pub fn check_contents(&self, digest: Option<u64>) -> Outcome {
        match (self.disk_digest, digest) {
            (Some(theirs), Some(here)) if theirs != here => Err(ReplicaError::refused(format!(
                "this backup's disk image is not a copy of the primary's (digest {here:016x} here, {theirs:016x} \
                 there): copy the primary's image here while nobody uses it, or begin with another backup and \
                 have the machine handed to this one, which is sent its disk then (tandem protect)"
            ))),
            _ => Ok(()),
        }
    }
}

/// A machine's configuration, with its image.
pub struct Blueprint {
    /// What replicas must agree on.
    pub config: MachineConfig,
    /// The guest.
    pub image: Box<dyn Image>,
}

/// Size of the raw disk image at `path`, in sectors of 512 bytes.
///
/// # Errors
/// If it is not to be had.
pub fn disk_sectors(path: &Path) -> Outcome<u64> {
    let meta = std::fs::metadata(path).during(format_args!(
        "cannot use {} as the guest's disk",
        path.display()
    ))?;
    Ok(meta.len() / 512)
}

/// What a log or a peer asks for, its image found among `images`; `image` and `initrd` say where instead.
///
/// # Errors
/// If the configuration is none, or the image found is not the one meant.
pub fn follow(
    config: MachineConfig,
    images: &dyn Images,
    image: Option<&str>,
    initrd: Option<&str>,
) -> Outcome<Blueprint> {
    config.check()?;
    let initrd = initrd.or(config.initrd.as_deref());
    let image = images
        .load(image.unwrap_or(&config.guest), initrd)
        .map_err(ReplicaError::Refused)?;
    if image.digest() != config.image_digest {
        return Err(ReplicaError::refused(format!(
            "guest '{}' here is not the one meant: its image has digest {:016x}, not {:016x} \
             (another version of it? name the right one with --image, --initrd)",
            image.name(),
            image.digest(),
            config.image_digest
        )));
    }
    Ok(Blueprint { config, image })
}

/// A blueprint with an engine and memory to run it; the vCPU is made by the thread that runs it.
pub struct Prepared {
    blueprint: Blueprint,
    memory: GuestMemory,
    engine: Chosen,
    remark: Option<&'static str>,
    tells: bool,
}

/// Gets engine and memory.
///
/// # Errors
/// If one of them is not to be had.
pub fn prepare(blueprint: Blueprint, engine: EngineChoice) -> Outcome<Prepared> {
    let memory = boot::memory(&blueprint.config)?;
    let is_linux = blueprint.config.board.is_pc();
    let by_itself = engine == EngineChoice::Auto;
    let engine = Chosen::choose(engine, &blueprint.config, &memory)?;
    let soft = engine.kind() == EngineKind::Soft;
    let remark = (is_linux && by_itself && soft).then_some("Linux runs on the software engine");
    Ok(Prepared {
        blueprint,
        memory,
        engine,
        remark,
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
    ///
    /// # Errors
    /// If it does not boot.
    pub fn boot(self) -> Outcome<(AnyMachine, u64)> {
        let engine = self.engine.create(&self.blueprint.config, &self.memory)?;
        booted(engine, self.blueprint, self.memory, self.tells)
    }

    /// The same on the software engine, whichever was chosen.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn boot_soft(self) -> Outcome<(Machine<SoftEngine>, u64)> {
        let engine = engine::soft(&self.blueprint.config, &self.memory)?;
        booted(engine, self.blueprint, self.memory, self.tells)
    }

    /// The machine as it was saved, whichever engine ran it then. On the vCPU thread.
    ///
    /// # Errors
    /// If `snapshot` is not of such a machine.
    pub fn restore(self, snapshot: impl Read) -> Outcome<AnyMachine> {
        let engine = self.engine.create(&self.blueprint.config, &self.memory)?;
        let machine = switched_on(engine, self.blueprint, self.memory, self.tells)?;
        Ok(machine.restored_from(Snapshot::open(snapshot)?)?)
    }

    /// The same on the software engine, whichever was chosen.
    ///
    /// # Errors
    /// As [`Prepared::restore`].
    pub fn restore_soft(self, snapshot: impl Read) -> Outcome<Machine<SoftEngine>> {
        let engine = engine::soft(&self.blueprint.config, &self.memory)?;
        let machine = switched_on(engine, self.blueprint, self.memory, self.tells)?;
        Ok(machine.restored_from(Snapshot::open(snapshot)?)?)
    }

    /// What its operator is to know of the engine that was chosen.
    #[must_use]
    pub fn remark(&self) -> Option<&'static str> {
        self.remark
    }

    /// What will run it.
    #[must_use]
    pub fn engine_kind(&self) -> EngineKind {
        self.engine.kind()
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.blueprint.config
    }

    /// What another host, or a log's reader, is told of it.
    #[must_use]
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
    use vmm::machine::TscMode;

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
            board: vmm::machine::BoardKind::Bare,
            reboots: true,
        }
    }

    fn log(path: &Path, config: Vec<u8>) {
        let header = LogHeader {
            cpu_model: "v1".into(),
            clock_kind: replay::ClockKind::Blocks,
            config,
            base: replay::Base::alone(0),
        };
        LogWriter::create(path, &header, || 0).unwrap();
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
    fn both_disks_are_shared_or_both_are_copies_of_one_size() {
        let folder = tempfile::tempdir().unwrap();
        let disk = |name: &str, bytes: u64| {
            let path = folder.path().join(name);
            let made = std::fs::File::create(&path).unwrap();
            made.set_len(bytes).unwrap();
            path
        };
        let (fits, other) = (disk("fits", 4096), disk("other", 8192));
        let proposal = |own_disk, disk_sectors| Proposal {
            origin: Origin::new(
                MachineConfig {
                    disk_sectors,
                    ..config()
                },
                EngineKind::Soft,
                HostProcessor::of_this_host(),
            ),
            unlike_hosts: false,
            own_disk,
            disk_reads: DiskReads::Log,
            disk_digest: own_disk.then_some(7),
        };
        for own in [false, true] {
            let primary = proposal(own, Some(8));
            primary.check_disk(Some(&fits), own).unwrap();
            let refused = |disk, is_own| {
                let refused = primary.check_disk(disk, is_own);
                refused.unwrap_err().to_string()
            };
            let has = if own {
                "the primary was"
            } else {
                "this backup was"
            };
            let why = refused(Some(&fits), !own);
            assert!(why.starts_with(has), "{why}");
            let why = refused(Some(&other), own);
            assert!(why.contains("8 sectors, this backup's 16"), "{why}");
            assert_eq!(why.contains("same size"), own);
            refused(None, false);
            // Whose a disk is does not matter where there is none.
            proposal(own, None).check_disk(None, !own).unwrap();
        }
        let own = proposal(true, Some(8));
        own.check_contents(Some(7)).unwrap();
        let why = own.check_contents(Some(8)).unwrap_err().to_string();
        assert!(why.contains("digest 0000000000000008 here"), "{why}");
        proposal(false, Some(8)).check_contents(None).unwrap();
    }

    #[test]
    fn a_log_from_before_processors_were_told_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        // A header of theirs: CPU model, clock, configuration, and the digest of the first state.
        let config_then = to_bytes(&(config(), EngineKind::KvmSoftware));
        let header = to_bytes(&("v1", replay::ClockKind::Blocks, config_then, 0u64));
        let length = u32::try_from(header.len()).unwrap();
        let mut bytes = replay::file::MAGIC.to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        bytes.extend_from_slice(&header);
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
