//! Which store flags are kept in.
//!
//! A store that was lost and made anew has forgotten every flag, and would let a second replica win a flag
//! that is another's. The store cannot know that itself. So whoever asks it remembers which store it was:
//!
//! ```text
//!   replica: store?        ──▶  arbiter, store 51d3..   remembered by the replica
//!   replica: set, in 51d3  ──▶  arbiter, store 51d3..   a verdict
//!                (the arbiter is started again, on an empty folder)
//!   replica: set, in 51d3  ──▶  arbiter, store e07a..   no verdict, nothing set: `OtherStore`
//! ```

use crate::ArbiterError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::sync::OnceLock;

/// The identity of a store: random, made when the store is made, and kept in it.
///
/// Two stores have two identities. A copy of a store has that of its original.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreId([u8; Self::BYTES]);

impl StoreId {
    /// Bytes of an identity: enough that no two stores ever share one.
    pub const BYTES: usize = 16;

    /// A new one.
    ///
    /// # Errors
    /// If the kernel gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; Self::BYTES];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// From its bytes, as a peer sent them.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}

impl From<StoreId> for String {
    fn from(id: StoreId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for StoreId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a store's identity is 32 hexadecimal digits";
        if text.len() != 2 * Self::BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        let number = u128::from_str_radix(&text, 16).map_err(|_| WRONG)?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// The store an arbiter's client has talked to: the first one, for as long as the client lives.
#[derive(Debug, Default)]
pub(crate) struct Known(OnceLock<StoreId>);

impl Known {
    /// The store talked to, if any was.
    pub(crate) fn get(&self) -> Option<StoreId> {
        self.0.get().copied()
    }

    /// `arbiter` is found to keep its flags in `found` (`None`: the store it had is gone).
    ///
    /// # Errors
    /// [`ArbiterError::OtherStore`] if that is not the store talked to before.
    pub(crate) fn check(
        &self,
        arbiter: &str,
        found: Option<StoreId>,
    ) -> Result<Option<StoreId>, ArbiterError> {
        let known = match found {
            Some(found) => Some(*self.0.get_or_init(|| found)),
            None => self.get(),
        };
        match known {
            Some(known) if found != Some(known) => Err(ArbiterError::OtherStore {
                arbiter: arbiter.into(),
                known,
                found,
            }),
            known => Ok(known),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_from_its_text_and_nothing_else_is_one() {
        let id = StoreId::random().unwrap();
        assert_ne!(id, StoreId::random().unwrap());
        assert_eq!(StoreId::try_from(id.to_string()), Ok(id));
        assert_eq!(StoreId::from_bytes(id.to_bytes()), id);
        let text = id.to_string();
        for bad in [
            "",
            &text[1..],
            &format!("{text}0"),
            &format!("+{}", &text[1..]),
        ] {
            assert!(StoreId::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_first_store_is_the_one_that_counts() {
        let [first, other] = [1, 2].map(|byte| StoreId::from_bytes([byte; StoreId::BYTES]));
        let known = Known::default();
        assert_eq!(known.check("here", None).unwrap(), None);
        assert_eq!(known.check("here", Some(first)).unwrap(), Some(first));
        for found in [Some(other), None] {
            let error = known.check("here", found).unwrap_err();
            assert!(matches!(error, ArbiterError::OtherStore { .. }), "{error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
        assert_eq!(known.check("here", Some(first)).unwrap(), Some(first));
    }
}
