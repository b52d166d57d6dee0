//! What is arbitrated, and between whom: names that came from outside are checked here, once.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, or longer than allowed.
    #[error("{what} must have 1 to {max} characters, not {length}")]
    Length {
        /// What was to be named.
        what: &'static str,
        /// Longest allowed, in bytes.
        max: usize,
        /// What was given, in bytes.
        length: usize,
    },
    /// A character that is not allowed.
    #[error("{what} has the character {found:?}; letters, digits, '.', '_' and '-' are allowed")]
    Character {
        /// What was to be named.
        what: &'static str,
        /// The first such character.
        found: char,
    },
}

fn check(what: &'static str, max: usize, name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > max {
        return Err(NameError::Length {
            what,
            max,
            length: name.len(),
        });
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|c| !allowed(c)) {
        Some(found) => Err(NameError::Character { what, found }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Longest name, in bytes.
            pub const MAX: usize = $max;

            /// Takes `name` if it is well-formed.
            ///
            /// # Errors
            /// [`NameError`] if it is empty, too long, or has other than letters, digits, '.',
            /// '_' and '-'.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check($what, Self::MAX, &name)?;
                Ok(Self(name))
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// The name of a protected VM: 1 to 64 of letters, digits, '.', '_' and '-'.
    VmId, "a VM's name", 64
}

name! {
    /// One incarnation of a replica: 1 to 128 of letters, digits, '.', '_' and '-'.
    ///
    /// Invariant, kept by the caller: no two incarnations share a name, for two contenders of one
    /// name would both win.
    Contender, "a contender's name", 128
}

/// What a contender's name ends with when it sets a flag to say that the VM has ended.
const END_MARK: &str = ".ended";

impl Contender {
    /// The name under which this contender says that the VM has ended in a view, by setting its flag:
    /// nobody goes live after that view any more, and a new start may follow.
    ///
    /// # Errors
    /// [`NameError`] if the name has no room left for it.
    pub fn end_mark(&self) -> Result<Self, NameError> {
        Self::new(format!("{self}{END_MARK}"))
    }

    /// Whether this is the name of an [`Self::end_mark`]. An incarnation's own name must not be.
    #[must_use]
    pub fn is_end_mark(&self) -> bool {
        self.as_str().ends_with(END_MARK)
    }
}

/// Who is primary and backup of one VM; only grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ViewNumber(pub u64);

impl fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is raced for when a pair breaks: the right to go live after `view`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flag {
    /// The VM.
    pub vm: VmId,
    /// The view whose pair broke.
    pub view: ViewNumber,
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the flag of VM {}, view {}", self.vm, self.view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_by_length_and_character() {
        assert!(VmId::new("a").is_ok());
        assert!(VmId::new("web-1.eu_A").is_ok());
        assert!(VmId::new("x".repeat(64)).is_ok());
        assert!(VmId::new("x".repeat(65)).is_err());
        assert!(Contender::new("x".repeat(128)).is_ok());
        assert!(Contender::new("x".repeat(129)).is_err());
        for bad in ["", "a/b", "a b", "a\n", "ä", "a\0"] {
            assert!(VmId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_end_mark_is_told_from_an_incarnation() {
        let who = Contender::new("a.primary.1.2").unwrap();
        assert!(!who.is_end_mark());
        assert!(who.end_mark().unwrap().is_end_mark());
        let long = Contender::new("x".repeat(Contender::MAX)).unwrap();
        assert!(long.end_mark().is_err());
    }

    #[test]
    fn a_name_is_checked_when_it_comes_as_json_too() {
        assert!(serde_json::from_str::<VmId>("\"../x\"").is_err());
        assert_eq!(
            serde_json::from_str::<VmId>("\"x\"").unwrap(),
            VmId::new("x").unwrap()
        );
    }
}
