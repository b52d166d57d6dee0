//! Which engine runs the guest.

use crate::error::{Outcome, ReplicaError};
use replay::ClockKind;
use vmm::cpu::Offer;
use vmm::engine::{Engine, EngineKind};
use vmm::kvm::{Host, KvmKind, Vm};
use vmm::machine::{BoardKind, Machine, MachineConfig};
use vmm::memory::GuestMemory;
use vmm::soft::SoftEngine;

/// Which engine is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// KVM where the guest can be stopped exactly there, else the software engine.
    #[default]
    Auto,
    /// The host's KVM.
    Kvm,
    /// The software processor.
    Soft,
}

impl EngineChoice {
    /// What each is called.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("auto", Self::Auto),
        ("kvm", Self::Kvm),
        ("soft", Self::Soft),
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        }
    }

    /// What to take for following `engine`, on which a guest counts `clock`: instructions that single steps
    /// on KVM counted are counted so again.
    #[must_use]
    pub fn following(self, engine: EngineKind, clock: ClockKind) -> Self {
        let steps = clock == ClockKind::Instructions && engine != EngineKind::Soft;
        if self == Self::Auto && steps {
            return Self::Kvm;
        }
        self
    }
}

/// A machine on whichever engine.
pub type AnyMachine = Machine<Box<dyn Engine>>;

/// An engine that was chosen; the vCPU is made by the thread that runs it.
pub enum Chosen {
    /// KVM, with its virtual machine.
    Kvm(Vm),
    /// The software processor.
    Soft,
}

/// Whether KVM of this kind can stop a guest of this board at any instruction.
///
/// # Errors
/// If it cannot: Linux does not count for itself, and a software KVM does not single-step.
fn check_kvm(board: BoardKind, kind: KvmKind) -> Outcome {
    if board.is_pc() && kind == KvmKind::Software {
        return Err(ReplicaError::refused(
            "this host's KVM, a software one, cannot stop Linux at an exact instruction: \
             use --engine soft",
        ));
    }
    Ok(())
}

impl Chosen {
    /// Chooses.
    ///
    /// # Errors
    /// If KVM was asked for by name and cannot run this guest here.
    pub fn choose(
        arg: EngineChoice,
        config: &MachineConfig,
        memory: &GuestMemory,
    ) -> Outcome<Self> {
        let kvm = || -> Outcome<Self> {
            let vm = Host::open()?.create_vm(memory.clone(), config.cpu)?;
            Ok(Self::Kvm(vm))
        };
        match arg {
            EngineChoice::Kvm => {
                check_kvm(config.board, KvmKind::of_this_host())?;
                kvm()
            }
            EngineChoice::Soft => Ok(Self::Soft),
            // A guest that does not count for itself is stopped exactly only by single steps on KVM, a
            // hundred times slower than the software engine.
            EngineChoice::Auto if config.clock_kind != ClockKind::Blocks => Ok(Self::Soft),
            EngineChoice::Auto => match kvm() {
                Ok(kvm) => Ok(kvm),
                Err(why) => {
                    tracing::warn!("software engine: {why}");
                    Ok(Self::Soft)
                }
            },
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        match self {
            Self::Kvm(_) => KvmKind::of_this_host().into(),
            Self::Soft => EngineKind::Soft,
        }
    }

    /// The vCPU, on the thread that will run it.
    pub fn create(self, config: &MachineConfig, memory: &GuestMemory) -> Outcome<Box<dyn Engine>> {
        match self {
            Self::Kvm(vm) => {
                let mut engine = vm.create_engine()?;
                engine.set_clock_kind(config.clock_kind)?;
                Ok(Box::new(engine))
            }
            Self::Soft => Ok(Box::new(soft(config, memory)?)),
        }
    }
}

/// A vCPU on the software processor, on the thread that will run it.
pub fn soft(config: &MachineConfig, memory: &GuestMemory) -> Outcome<SoftEngine> {
    let offer = match config.board {
        BoardKind::Bare => Offer::Bare,
        BoardKind::FirstPc | BoardKind::Pc => Offer::Full,
    };
    SoftEngine::new(memory.clone(), config.cpu, offer, config.clock_kind)
        .map_err(|e| ReplicaError::refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_counts_as_the_one_before() {
        let auto = |engine, clock| EngineChoice::Auto.following(engine, clock);
        let hardware = EngineKind::KvmHardware;
        assert_eq!(auto(hardware, ClockKind::Instructions), EngineChoice::Kvm);
        assert_eq!(auto(hardware, ClockKind::Blocks), EngineChoice::Auto);
        let soft = auto(EngineKind::Soft, ClockKind::Instructions);
        assert_eq!(soft, EngineChoice::Auto);
        assert!(hardware.agrees_with(EngineKind::Soft, ClockKind::Blocks));
        assert!(!hardware.agrees_with(EngineKind::Soft, ClockKind::Instructions));
        assert!(!hardware.agrees_with(EngineKind::KvmSoftware, ClockKind::Blocks));
    }

    #[test]
    fn a_software_kvm_does_not_run_linux() {
        let refused = check_kvm(BoardKind::Pc, KvmKind::Software);
        assert!(refused.unwrap_err().to_string().contains("--engine soft"));
        assert!(check_kvm(BoardKind::Pc, KvmKind::Hardware).is_ok());
        assert!(check_kvm(BoardKind::Bare, KvmKind::Software).is_ok());
    }
}
