//! Names of hosts, and where they are.

use names::{NameError, check_length, name};
use serde::{Deserialize, Serialize};
use std::fmt;

name! {
    /// The name of a host: 1 to 64 of letters, digits, '.', '_' and '-'.
    HostId, "a host's name", 64
}

/// Where a host's daemon listens, as it says itself: 1 to 255 printable ASCII characters, no space.
///
/// The service hands it on and never uses it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

impl Address {
    /// Longest address, in bytes.
    pub const MAX: usize = 255;

    /// Takes `address` if it is well-formed.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn new(address: impl Into<String>) -> Result<Self, NameError> {
        let address = address.into();
        let what = "a host's address";
        check_length(what, Self::MAX, &address)?;
        match address.chars().find(|c| !c.is_ascii_graphic()) {
            Some(found) => Err(NameError::Character { what, found }),
            None => Ok(Self(address)),
        }
    }

    /// The address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Address {
    type Error = NameError;
    fn try_from(address: String) -> Result<Self, NameError> {
        Self::new(address)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_by_length_and_character() {
        assert!(Address::new("10.0.0.1:7000").is_ok());
        assert!(Address::new("[::1]:7000").is_ok());
        assert!(Address::new("x".repeat(256)).is_err());
        assert!(Address::new("a b").is_err());
        assert!(Address::new("a\n").is_err());
        assert!(HostId::new("x".repeat(65)).is_err());
        assert!(serde_json::from_str::<HostId>("\"../x\"").is_err());
    }
}
