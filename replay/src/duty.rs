//! A replica's duty: where its guest's inputs come from, and what becomes of its outputs.
//!
//! ```text
//!   Following   inputs from a log; outputs are kept, not let out
//!      │ the log has ended, and its succession allows it to lead
//!      ▼
//!   Leading     inputs from the live world; outputs go out
//! ```
//!
//! The duty changes at a stop of the run loop: where the machine turns to its inputs, the guest standing
//! still. A replayer that finds its log ended has changed nothing, so the live world is asked the same
//! question, and the machine cannot tell which duty answered.

use crate::base::LogPlace;
use crate::event::{LogIndex, Output, Question};
use crate::inputs::{Delivery, Inputs, InputsError, Situation, StateWindow, Stop};
use crate::point::{Clock, Here};
use crate::replayer::Replayer;
use crate::sink::{LogSource, Outlet};

/// What a follower keeps up with, and how it comes to lead.
pub trait Succession {
    /// Keeps the outputs of a follower.
    type Kept: Outlet;
    /// The inputs of a leader.
    type Leading: Inputs;

    /// The log was executed below entry `upto`, and the guest stands at `clock`.
    fn executed(&mut self, upto: LogIndex, clock: Clock) {
        let _ = (upto, clock);
    }

    /// The log answered `question` with `value`.
    fn answered(&mut self, question: Question, value: u64) {
        let _ = (question, value);
    }

    /// The log brought `delivery` in the situation `now`. What the log leaves to its follower to find is put in here.
    ///
    /// # Errors
    /// If that is not to be had.
    fn delivered(
        &mut self,
        now: &Situation,
        delivery: &mut Delivery,
        kept: &mut Self::Kept,
    ) -> Result<(), InputsError> {
        let _ = (now, delivery, kept);
        Ok(())
    }

    /// The log is executed to its end: waits until it is decided who leads from there, and makes this
    /// replica's inputs if it does. Its own log goes on at `from`.
    ///
    /// # Errors
    /// [`InputsError::Halted`] if it may not lead.
    fn lead(&mut self, from: LogPlace, kept: &mut Self::Kept)
    -> Result<Self::Leading, InputsError>;
}

/// The inputs of a replica, whatever its duty.
pub enum Duty<L, S: Succession> {
    /// It executes a log.
    Following(Box<Following<L, S>>),
    /// It takes live inputs.
    Leading(Box<S::Leading>),
}

/// The duty of a follower.
pub struct Following<L, S: Succession> {
    replayer: Replayer<L, S::Kept>,
    succession: S,
}

impl<L: LogSource, S: Succession> Duty<L, S> {
    /// A follower of the log of `replayer`, which has replayed nothing yet.
    pub fn follow(replayer: Replayer<L, S::Kept>, succession: S) -> Self {
        Self::Following(Box::new(Following {
            replayer,
            succession,
        }))
    }

    /// A leader.
    pub fn lead(leading: S::Leading) -> Self {
        Self::Leading(Box::new(leading))
    }

    /// The inputs of a leader.
    pub fn leading_mut(&mut self) -> Option<&mut S::Leading> {
        match self {
            Self::Leading(leading) => Some(leading),
            Self::Following(_) => None,
        }
    }

    /// What a follower's outputs are kept in.
    pub fn kept_mut(&mut self) -> Option<&mut S::Kept> {
        match self {
            Self::Following(following) => Some(following.replayer.suppressed_mut()),
            Self::Leading(_) => None,
        }
    }

    /// From following to leading.
    fn succeed(&mut self) -> Result<(), InputsError> {
        if let Self::Following(following) = self {
            let from = following.replayer.place();
            let kept = following.replayer.suppressed_mut();
            let leading = following.succession.lead(from, kept)?;
            *self = Self::lead(leading);
        }
        Ok(())
    }

    /// Asks whoever answers now.
    fn ask<T>(
        &mut self,
        mut question: impl FnMut(&mut dyn Inputs) -> Result<T, InputsError>,
    ) -> Result<T, InputsError> {
        match self {
            Self::Leading(leading) => question(&mut **leading),
            Self::Following(following) => match question(&mut following.replayer) {
                Err(InputsError::LogEnded { .. }) => {
                    self.succeed()?;
                    self.ask(question)
                }
                result => result,
            },
        }
    }
}

impl<L: LogSource, S: Succession> Inputs for Duty<L, S> {
    fn answer(&mut self, here: &Here, question: Question) -> Result<u64, InputsError> {
        let value = self.ask(|inputs| inputs.answer(here, question))?;
        if let Self::Following(following) = self {
            following.succession.answered(question, value);
        }
        Ok(value)
    }

    fn arrival(&mut self, now: &Situation) -> Result<Option<Delivery>, InputsError> {
        let mut delivery = self.ask(|inputs| inputs.arrival(now))?;
        if let (Self::Following(following), Some(delivery)) = (self, &mut delivery) {
            let kept = following.replayer.suppressed_mut();
            following.succession.delivered(now, delivery, kept)?;
        }
        Ok(delivery)
    }

    fn output(&mut self, here: &Here, output: Output) -> Result<(), InputsError> {
        if let Self::Following(following) = self {
            match following.replayer.check_output(here, &output) {
                Ok(index) => return following.replayer.suppressed_mut().emit(index, output),
                Err(InputsError::LogEnded { .. }) => self.succeed()?,
                Err(error) => return Err(error),
            }
        }
        let leading = self
            .leading_mut()
            .expect("it leads since just now at least");
        leading.output(here, output)
    }

    fn next_stop(&mut self, now: &Situation) -> Result<Stop, InputsError> {
        if let Self::Following(following) = self {
            let upto = following.replayer.index();
            following.succession.executed(upto, now.here.point.clock);
        }
        self.ask(|inputs| inputs.next_stop(now))
    }

    fn kicked(&mut self, clock: Clock) -> Result<(), InputsError> {
        self.ask(|inputs| inputs.kicked(clock))
    }

    fn state_due(&mut self, here: &Here) -> Result<Option<StateWindow>, InputsError> {
        self.ask(|inputs| inputs.state_due(here))
    }

    fn state(&mut self, here: &Here, window: StateWindow, digest: u64) -> Result<(), InputsError> {
        self.ask(|inputs| inputs.state(here, window, digest))
    }

    fn end(&mut self, here: &Here, code: u32, digest: u64) -> Result<(), InputsError> {
        self.ask(|inputs| inputs.end(here, code, digest))?;
        // No stop comes after it: what was delivered right before would never be known to be executed.
        if let Self::Following(following) = self {
            let upto = following.replayer.index();
            following.succession.executed(upto, here.point.clock);
        }
        Ok(())
    }
}
