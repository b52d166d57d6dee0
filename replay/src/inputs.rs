//! The one door through which nondeterminism enters the machine (invariant 5).

use crate::anchor::Anchor;
use crate::divergence::Divergence;
use crate::event::{Arrival, Output, Question};
use crate::point::{Clock, Here};

/// Where the vCPU has to stop at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nowhere: run until the guest exits or somebody kicks.
    Never,
    /// At the next place the engine can stop at, whichever that is.
    Soon,
    /// Where an interrupt that is pending can be taken. An engine that sees by itself where that is, at no
    /// cost, may run on to there; any other stops as for `Soon`.
    Window,
    /// Exactly there.
    At(Clock),
}

/// How the programmable timer is set, so that whoever plays the hardware knows when it is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerSpec {
    /// Period of PIT channel 0 in nanoseconds; 0 while it is not programmed.
    pub period_ns: u64,
    /// How often channel 0 was programmed. When this changes, the period starts anew.
    pub generation: u64,
    /// One-shot (mode 0) instead of periodic.
    pub one_shot: bool,
}

/// What the machine tells its inputs at a stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Where the vCPU stands.
    pub here: Here,
    /// Whether the vCPU can take an interrupt here.
    pub interruptible: bool,
    /// Whether the interrupt controller has an interrupt for the vCPU.
    pub interrupt_pending: bool,
    /// Whether the guest left by itself here, as it does in every run. If it did not, another replica stops
    /// here only if the log says so.
    pub natural: bool,
    /// Whether the guest halted, waiting for an interrupt.
    pub halted: bool,
    /// The timer.
    pub timer: TimerSpec,
    /// From which wall-clock time on (nanoseconds since 1970) the real-time clock wants to be told it
    /// ([`Arrival::Clock`]); `None` while no interrupt of its is enabled.
    pub clock_due_ns: Option<u64>,
    /// How many more frames the network device can take.
    pub frames_room: u16,
    /// How many more bytes of console input it can hold.
    pub typed_room: usize,
    /// Guest time here in nanoseconds, if it is derived. `None` if it is asked for and logged.
    pub time_ns: Option<u64>,
}

/// What [`Inputs::arrival`] brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What is to be delivered.
    pub arrival: Arrival,
    /// How far derived guest time moves before the arrival is delivered; [`Anchor::NONE`] where time is
    /// logged.
    pub anchor: Anchor,
}

/// Why inputs could not be had.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// Replay differs from the recording.
    #[error(transparent)]
    Diverged(#[from] Box<Divergence>),
    /// The log ended without an end entry (cut, or its writer died) and nobody goes on from here.
    #[error("the log ends at entry {entries} ({at}) without an end entry")]
    LogEnded {
        /// Index of the first entry that is missing.
        entries: u64,
        /// Where the guest stands.
        at: crate::point::ExecPoint,
    },
    /// The recording ends here, as its last entry says, though the machine ran on: all was as recorded, and
    /// this replay is done.
    #[error("the recording ends here, at entry {entries} ({at}); the machine ran on")]
    Left {
        /// Index of the first entry that was not recorded.
        entries: u64,
        /// Where the guest stands.
        at: crate::point::ExecPoint,
        /// Digest of the whole machine, as recorded and as found.
        digest: u64,
    },
    /// This replica has to stop: it lost the flag, or was told to.
    #[error("replica stopped: {0}")]
    Halted(String),
    /// The machine is wanted to pause while its guest is halted. Nothing has changed: it is asked the same
    /// again when it goes on.
    #[error("the machine is to pause here")]
    Paused,
    /// The log could not be written or read.
    #[error(transparent)]
    Log(#[from] crate::LogError),
    /// A backend failed.
    #[error("{0}")]
    Backend(String),
}

/// Where all input comes from and all output goes: live, recorded or replayed. The machine and its
/// devices cannot tell which.
pub trait Inputs {
    /// Answers a question of the guest, asked at `here`.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn answer(&mut self, here: &Here, question: Question) -> Result<u64, InputsError>;

    /// The next arrival to deliver right here, if any. The machine asks until the answer is `None`. While the
    /// guest is halted and no interrupt is pending, the call waits for an arrival.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn arrival(&mut self, now: &Situation) -> Result<Option<Delivery>, InputsError>;

    /// Takes an output made at `here`.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn output(&mut self, here: &Here, output: Output) -> Result<(), InputsError>;

    /// Where the vCPU has to stop next. It is the last thing asked before the vCPU is entered at `now`.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn next_stop(&mut self, now: &Situation) -> Result<Stop, InputsError>;

    /// Takes note that the vCPU was kicked out between two stoppable places, after it had reached `clock`.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn kicked(&mut self, clock: Clock) -> Result<(), InputsError>;

    /// Whether the state is to be digested here: the vCPU, the devices and the window of memory returned.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn state_due(&mut self, here: &Here) -> Result<Option<StateWindow>, InputsError>;

    /// The digest asked for by [`Inputs::state_due`], which is to be asked again then.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn state(&mut self, here: &Here, window: StateWindow, digest: u64) -> Result<(), InputsError>;

    /// Takes note that the machine ended here with `code`. `digest` covers all memory and devices.
    ///
    /// # Errors
    /// See [`InputsError`].
    fn end(&mut self, here: &Here, code: u32, digest: u64) -> Result<(), InputsError>;
}

/// A run of guest pages (4 KiB each) to digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateWindow {
    /// First page.
    pub first_page: u64,
    /// Number of pages; the machine clips the window at the end of memory.
    pub pages: u32,
}

impl StateWindow {
    /// All memory.
    pub const ALL: Self = Self {
        first_page: 0,
        pages: u32::MAX,
    };
}
