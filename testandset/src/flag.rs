//! What is arbitrated, and between whom.

use names::{NameError, ViewNumber, VmId, name};
use serde::{Deserialize, Serialize};
use std::fmt;

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
    /// The name of one incarnation of a replica on `host`: no two share one.
    ///
    /// # Errors
    /// [`NameError`] if `host` does not fit into one.
    pub fn of(host: &str, role: &str, pid: u32, started_ns: u64) -> Result<Self, NameError> {
        Self::new(format!("{host}.{role}.{pid}.{started_ns}"))
    }

    /// The host in a name that [`Self::of`] made, or in the [`Self::end_mark`] of one.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        let name = self.as_str();
        let name = name.strip_suffix(END_MARK).unwrap_or(name);
        // From behind: a host's name may have dots.
        let mut parts = name.rsplitn(4, '.');
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !parts.next().is_some_and(is_number) || !parts.next().is_some_and(is_number) {
            return None;
        }
        parts.nth(1).filter(|host| !host.is_empty())
    }

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
    fn a_contenders_host_is_what_stands_before_role_and_numbers() {
        for host in ["a", "a.b", "a.primary.1.2", "host-7_x"] {
            let who = Contender::of(host, "backup", 71, 99).unwrap();
            assert_eq!(who.host(), Some(host), "{who}");
            assert_eq!(who.end_mark().unwrap().host(), Some(host), "{who}");
        }
        for other in ["a", "a.1.2", "a.b.c", "a.primary.1", ".primary.1.2"] {
            let other = Contender::new(other).ok();
            assert_eq!(other.as_ref().and_then(Contender::host), None, "{other:?}");
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
}
