//! Places in a guest's instruction stream.
//!
//! ```text
//!   clock ──┬── natural exit: the guest asked (port, MMIO, halt); counts one
//!           └── block / instruction / branch: counted by the engine
//! ```
//!
//! Every stoppable place of one run has a clock value of its own, so a clock value alone names a
//! place; RIP and RCX travel along as a check.

use serde::{Deserialize, Serialize};

/// What the guest has executed so far, in units of the run's [`ClockKind`].
///
/// Invariant: two stoppable places of one run never share a value; natural exits count one each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Clock(pub u64);

impl Clock {
    /// How far `self` lies past `earlier`; `None` if it lies before it.
    #[must_use]
    pub fn since(self, earlier: Clock) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl std::fmt::Display for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What an instruction clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockKind {
    /// Basic blocks, counted down by the guest's own code in one memory word.
    Blocks,
    /// Instructions, by single-step or by an engine that counts.
    Instructions,
    /// Retired conditional branches, by performance counter.
    Branches,
}

/// Those that a machine can be asked to have: performance counters are none's to choose yet.
impl std::str::FromStr for ClockKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "blocks" => Ok(Self::Blocks),
            "instructions" => Ok(Self::Instructions),
            _ => Err("there are 'blocks' and 'instructions'".into()),
        }
    }
}

impl std::fmt::Display for ClockKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blocks => "blocks",
            Self::Instructions => "instructions",
            Self::Branches => "branches",
        })
    }
}

/// A place in the guest's instruction stream: clock, RIP, RCX.
///
/// RCX tells apart the iterations of one REP instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ExecPoint {
    /// Instruction clock.
    pub clock: Clock,
    /// Instruction pointer.
    pub rip: u64,
    /// RCX.
    pub rcx: u64,
}

impl std::fmt::Display for ExecPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "clock {} rip {:#x} rcx {:#x}",
            self.clock, self.rip, self.rcx
        )
    }
}

/// 32 bits over RIP, RCX, every general register and RFLAGS (see [`crate::digest::registers`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RegisterDigest(pub u32);

/// Where the vCPU stands when the machine turns to its [`crate::Inputs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The place.
    pub point: ExecPoint,
    /// Digest of the registers there.
    pub registers: RegisterDigest,
}
