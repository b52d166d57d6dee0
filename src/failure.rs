//! How a command fails: one clear line, and an exit code.

use replica::ReplicaError;
use std::fmt::Display;

/// A command's failure.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

/// Exit code of a command that failed.
const FAILED: u8 = 1;
/// Exit code of wrong usage.
const WRONG_USAGE: u8 = 2;

/// What a command returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with this line.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: FAILED,
        }
    }

    /// Wrong usage, with this line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: WRONG_USAGE,
        }
    }

    /// The failure of a guest that ended with `status`, which is not 0. What a process can have as its exit
    /// code becomes this one's.
    pub fn of_guest(status: u32, message: impl Into<String>) -> Self {
        let code = u8::try_from(status).ok().filter(|code| *code != 0);
        Self {
            message: message.into(),
            code: code.unwrap_or(FAILED),
        }
    }

    /// What is said of a guest that ended well, though not as usual: a line, and exit code 0.
    pub fn none(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 0,
        }
    }

    /// The exit code of a command that fails so.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let line = error.to_string();
        let error: &dyn std::error::Error = &error;
        match error.downcast_ref() {
            Some(ReplicaError::Usage(_)) => Self::usage(line),
            Some(ReplicaError::Guest { well: true, .. }) => Self::none(line),
            Some(ReplicaError::Guest { status, .. }) => Self::of_guest(*status, line),
            _ => Self::new(line),
        }
    }
}

/// Says what was being done when something failed.
pub trait During<T> {
    /// Puts `what` in front of the failure's line.
    ///
    /// # Errors
    /// The failure, with more to it.
    fn during(self, what: impl Display) -> Outcome<T>;
}

impl<T, E: Display> During<T> for Result<T, E> {
    fn during(self, what: impl Display) -> Outcome<T> {
        self.map_err(|e| Failure::new(format!("{what}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_status_is_the_exit_code_where_it_can_be() {
        let code = |status| Failure::of_guest(status, "it ended").code();
        assert_eq!([1, 2, 3, 130, 255].map(code), [1, 2, 3, 130, 255]);
        // No process has these: a reset, a guest that could not go on, and what a bare guest makes up.
        assert_eq!([256, 3321, 0xfa17, u32::MAX].map(code), [1; 4]);
        assert_eq!(Failure::new("it failed").code(), 1);
        let replicas = |error: ReplicaError| Failure::from(error).code();
        let said = String::new();
        let halted = ReplicaError::Guest {
            status: 0xf4f4,
            said: said.clone(),
            well: true,
        };
        assert_eq!(replicas(halted), 0);
        let ended = ReplicaError::Guest {
            status: 7,
            said,
            well: false,
        };
        assert_eq!(replicas(ended), 7);
        assert_eq!(replicas(ReplicaError::refused("no")), 1);
    }
}
