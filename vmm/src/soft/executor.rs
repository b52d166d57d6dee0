//! How software processors of this process carry out what is run often.

use soft::{CODE_MEMORY, Soft};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// How a software processor carries out blocks.
///
/// What a guest does, what its clock reads and what a log of it says are the same with either: it belongs to the
/// process, not to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Executor {
    /// Those that run often as host code, where the host lets that be written and run.
    #[default]
    Translate,
    /// Instruction by instruction.
    Interpret,
}

/// An [`Executor`] by its number.
static OF_PROCESS: AtomicU8 = AtomicU8::new(Executor::Translate as u8);

impl Executor {
    /// All, as the command line has them.
    pub const ALL: [Self; 2] = [Self::Translate, Self::Interpret];

    /// What the engines of this process take that are made from now on.
    pub fn use_in_process(self) {
        OF_PROCESS.store(self as u8, Ordering::Relaxed);
    }

    /// What engines made now take.
    #[must_use]
    pub fn of_process() -> Self {
        if OF_PROCESS.load(Ordering::Relaxed) == Self::Interpret as u8 {
            return Self::Interpret;
        }
        Self::Translate
    }

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Translate => "translate",
            Self::Interpret => "interpret",
        }
    }

    /// Has `soft` be run so. Where the host forbids it, it goes on interpreting, which a line says.
    pub(super) fn prepare(self, soft: &mut Soft) {
        if self == Self::Translate
            && let Err(why) = soft.translate(CODE_MEMORY)
        {
            tracing::warn!("interpreting, since this host runs no code that was written: {why}");
        }
    }
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Executor {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL
            .into_iter()
            .find(|executor| executor.name() == name);
        known.ok_or_else(|| "it is translate or interpret".to_owned())
    }
}

/// Whether this host lets code be written and run.
///
/// # Errors
/// Why not.
pub fn can_translate() -> std::io::Result<()> {
    soft::can_translate()
}
