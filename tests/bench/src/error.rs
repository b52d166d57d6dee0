//! How a measurement fails.

use crate::plot::PlotError;
use kit::KitError;
use replay::LogError;
use terminal::signals::SignalsError;

/// What a measurement returns.
pub type Outcome<T = ()> = Result<T, BenchError>;

/// Why something could not be measured, or shown.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// What was measured makes no sense, or was not there to be measured; in one line.
    #[error("{0}")]
    Said(String),
    /// The installation it was to be measured on failed.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// A recording could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is no plot of it.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// Nobody could clear away what is left when the benchmark is stopped.
    #[error(transparent)]
    Signals(#[from] SignalsError),
}

impl BenchError {
    /// [`BenchError::Said`].
    pub fn said(why: impl Into<String>) -> Self {
        Self::Said(why.into())
    }
}
