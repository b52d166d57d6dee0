//! The first line of either side.

use serde::{Deserialize, Serialize};

/// What is spoken, and in which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its name.
    pub name: &'static str,
    /// Its version; two versions do not talk.
    pub version: u32,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    protocol: String,
    version: u32,
}

impl Protocol {
    /// The greeting, as a line.
    #[must_use]
    pub fn greeting(&self) -> Vec<u8> {
        crate::to_line(&Hello {
            protocol: self.name.into(),
            version: self.version,
        })
    }

    /// Checks the other side's first line.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn check(&self, line: &[u8]) -> Result<(), String> {
        let Self { name, version } = self;
        match serde_json::from_slice::<Hello>(line) {
            Ok(hello) if hello.protocol == *name && hello.version == *version => Ok(()),
            Ok(hello) => Err(format!(
                "it speaks {:.32} version {}, not {name} version {version}",
                hello.protocol, hello.version
            )),
            Err(_) => Err(format!("its first line is no {name} greeting")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Protocol = Protocol {
        name: "tandem-test",
        version: 2,
    };

    #[test]
    fn its_own_greeting_is_taken_and_no_other() {
        assert_eq!(OURS.check(OURS.greeting().trim_ascii_end()), Ok(()));
        let older = Protocol { version: 1, ..OURS };
        let why = OURS.check(&older.greeting()).unwrap_err();
        assert!(
            why.contains("version 1, not tandem-test version 2"),
            "{why}"
        );
        let other = Protocol {
            name: "tandem-other",
            ..OURS
        };
        assert!(OURS.check(&other.greeting()).is_err());
        for bad in ["", "{}", "GET / HTTP/1.1", "\u{0}"] {
            assert!(OURS.check(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
