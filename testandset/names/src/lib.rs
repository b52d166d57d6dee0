//! Who is who: the words that log, arbiter, viewservice and replica have in common.
//!
//! ```text
//!   VmId          "web"                        which machine
//!   ViewNumber     1     2     3     4         which of its views; each names a primary, and a backup or none
//!   Role           P+B   Solo  P+B   Solo      what a replica is in its view
//! ```
//!
//! They are defined here once, so that a value goes from one of them to another as it is. Their encodings are
//! part of every format that holds them, and so must not change: a view is its number, a name is its text, a
//! role is its word in lower case.
//!
//! # Example
//!
//! ```
//! use names::{Role, ViewNumber, VmId};
//!
//! let vm = VmId::new("web-1")?;
//! assert!(VmId::new("web/1").is_err());
//! let view = ViewNumber(1).next();
//! assert_eq!(format!("{vm} is {} in view {view}", Role::Solo), "web-1 is solo in view 2");
//!
//! // A value is encoded alike wherever it is held.
//! assert_eq!(serde_json::to_string(&(&vm, Role::Solo, view))?, r#"["web-1","solo",2]"#);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod checked;

pub use checked::{NameError, check, check_length};

use serde::{Deserialize, Serialize};
use std::fmt;

name! {
    /// The name of a protected VM: 1 to 64 of letters, digits, '.', '_' and '-'.
    VmId, "a VM's name", 64
}

/// Who is primary and backup of one VM; only grows. A machine that never had a backup is in view 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ViewNumber(pub u64);

impl ViewNumber {
    /// The view after this one. The greatest number there is has none after it and stays: a peer that sends it
    /// makes nobody go back to view 0.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for ViewNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a replica is in its view. A joining replica, and one that is over, is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the guest, has a backup.
    Primary,
    /// Re-executes the guest.
    Backup,
    /// Runs the guest alone.
    Solo,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Solo => "solo",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_what_the_formats_hold() {
        let json = |value: serde_json::Result<String>| value.unwrap();
        assert_eq!(json(serde_json::to_string(&ViewNumber(7))), "7");
        assert_eq!(serde_json::from_str::<ViewNumber>("7").unwrap().0, 7);
        let words = [
            (Role::Primary, "primary"),
            (Role::Backup, "backup"),
            (Role::Solo, "solo"),
        ];
        for (role, word) in words {
            assert_eq!(role.to_string(), word);
            let quoted = format!("\"{word}\"");
            assert_eq!(json(serde_json::to_string(&role)), quoted);
            assert_eq!(serde_json::from_str::<Role>(&quoted).unwrap(), role);
        }
    }

    #[test]
    fn no_peer_is_taken_for_one_that_has_no_role_in_a_view() {
        for word in ["joining", "halted", "Primary", ""] {
            assert!(serde_json::from_str::<Role>(&format!("\"{word}\"")).is_err());
        }
    }

    #[test]
    fn a_view_never_goes_back() {
        assert_eq!(ViewNumber(1).next(), ViewNumber(2));
        assert_eq!(ViewNumber(u64::MAX).next(), ViewNumber(u64::MAX));
    }
}
