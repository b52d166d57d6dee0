//! The ways to run a guest that are held beside each other.

/// The three ways to run a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `tandem run`: no log at all.
    Without,
    /// `tandem record`: the log goes to a file.
    Recording,
    /// Primary and backup.
    UnderFt,
}

impl Mode {
    /// In the order of a round.
    pub const ALL: [Mode; 3] = [Mode::Without, Mode::Recording, Mode::UnderFt];

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Without => "without FT",
            Self::Recording => "recording",
            Self::UnderFt => "under FT",
        }
    }
}
