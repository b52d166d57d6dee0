//! Names that come from outside, checked here, once.

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
    #[error("{what} may not have the character {found:?}")]
    Character {
        /// What was to be named.
        what: &'static str,
        /// The first such character.
        found: char,
    },
}

/// Checks the length of a name.
///
/// # Errors
/// [`NameError::Length`].
pub fn check_length(what: &'static str, max: usize, name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > max {
        return Err(NameError::Length {
            what,
            max,
            length: name.len(),
        });
    }
    Ok(())
}

/// Checks a name: 1 to `max` of letters, digits, '.', '_' and '-'.
///
/// # Errors
/// [`NameError`].
pub fn check(what: &'static str, max: usize, name: &str) -> Result<(), NameError> {
    check_length(what, max, name)?;
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|c| !allowed(c)) {
        Some(found) => Err(NameError::Character { what, found }),
        None => Ok(()),
    }
}

/// A type of names: `name! { /// docs  Type, "what it names", longest }`.
#[macro_export]
macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Longest name, in bytes.
            pub const MAX: usize = $max;

            /// Takes `name` if it is well-formed.
            ///
            /// # Errors
            /// [`NameError`]($crate::NameError) if it is empty, too long, or has other than letters, digits, '.',
            /// '_' and '-'.
            pub fn new(name: impl Into<String>) -> Result<Self, $crate::NameError> {
                let name = name.into();
                $crate::check($what, Self::MAX, &name)?;
                Ok(Self(name))
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = $crate::NameError;
            fn try_from(name: String) -> Result<Self, $crate::NameError> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use crate::VmId;

    #[test]
    fn names_are_checked_by_length_and_character() {
        assert!(VmId::new("a").is_ok());
        assert!(VmId::new("web-1.eu_A").is_ok());
        assert!(VmId::new("x".repeat(64)).is_ok());
        assert!(VmId::new("x".repeat(65)).is_err());
        for bad in ["", "a/b", "a b", "a\n", "ä", "a\0"] {
            assert!(VmId::new(bad).is_err(), "{bad:?}");
        }
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
