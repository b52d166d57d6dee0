//! How an installation fails.

use check::LoadError;
use check::history::HistoryError;
use std::error::Error;
use std::fmt::Display;
use vmm::backends::switch::{ForwardError, SwitchError};

/// What the kit returns.
pub type KitResult<T = ()> = Result<T, KitError>;

/// Why an installation, or something done with it, failed.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// Something else failed.
    #[error("{what}: {why}")]
    During {
        /// What was being done.
        what: String,
        /// What went wrong.
        why: Box<dyn Error + Send + Sync>,
    },
    /// A process is to be started, and nobody said of which program.
    #[error("it was not said which program to start")]
    NoProgram,
    /// A process did not do what it was to do.
    #[error("the {name} {what}{complaint}")]
    Process {
        /// What it is called.
        name: String,
        /// What it did instead.
        what: String,
        /// What it last said on stderr, behind a colon; or nothing.
        complaint: String,
    },
    /// A guest runs, and does not serve.
    #[error("the guest does not answer its clients")]
    Silent,
    /// The clients stopped where no more of what they see is recorded.
    #[error("the clients have done as many operations as are recorded at most")]
    Full,
    /// The program could not build the image of a Linux guest.
    #[error("no Linux guest can be made: {0}")]
    NoImage(String),
    /// There is no userspace switch.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The switch leads nowhere.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The clients could not do their work.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A history could not be written.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// Says what was being done when something failed.
pub trait During<T> {
    /// Puts `what` in front of the error's line.
    ///
    /// # Errors
    /// [`KitError::During`], with the error in it.
    fn during(self, what: impl Display) -> KitResult<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> During<T> for Result<T, E> {
    fn during(self, what: impl Display) -> KitResult<T> {
        self.map_err(|why| KitError::During {
            what: what.to_string(),
            why: why.into(),
        })
    }
}
