//! What client and server say to each other: one JSON object a line.
//!
//! ```text
//!   client: {"protocol":"tandem-arbiter","version":1}
//!           {"op":"test_and_set","vm":"web","view":3,"who":"host-a.8812"}
//!   server: {"protocol":"tandem-arbiter","version":1}
//!           {"reply":"lost","holder":"host-b.771"}
//! ```
//!
//! The client need not wait for the server's first line. A server of another version answers the
//! first line with a refusal and closes.

use crate::{Contender, ViewNumber, VmId};
use serde::{Deserialize, Serialize};

/// Longest line either side takes, newline included, in bytes.
pub(crate) const MAX_LINE: usize = 4096;

const PROTOCOL: &str = "tandem-arbiter";
const VERSION: u32 = 1;

/// The first line of either side.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    protocol: String,
    version: u32,
}

impl Hello {
    /// What this build says.
    pub(crate) fn ours() -> Self {
        Self {
            protocol: PROTOCOL.into(),
            version: VERSION,
        }
    }

    /// Checks the other side's first line; the error is for a person.
    pub(crate) fn check(line: &[u8]) -> Result<(), String> {
        match serde_json::from_slice::<Self>(line) {
            Ok(hello) if hello == Self::ours() => Ok(()),
            Ok(hello) => Err(format!(
                "it speaks {:.32} version {}, not {PROTOCOL} version {VERSION}",
                hello.protocol, hello.version
            )),
            Err(_) => Err(format!("its first line is no {PROTOCOL} greeting")),
        }
    }
}

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// [`crate::Arbiter::test_and_set`].
    TestAndSet {
        vm: VmId,
        view: ViewNumber,
        who: Contender,
    },
    /// [`crate::Arbiter::holder`].
    Holder { vm: VmId, view: ViewNumber },
    /// [`crate::Arbiter::check`].
    Check,
}

/// What the server answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The flag is the asker's.
    Won,
    /// The flag is another's.
    Lost { holder: Contender },
    /// Whose the flag is.
    Holder { holder: Option<Contender> },
    /// A flag could be set.
    Ready,
    /// The request was not taken.
    Refused { reason: String },
    /// The answer could not be made durable; whose the flag is, is unknown.
    StoreFailed { reason: String },
}

/// A message as a line.
pub(crate) fn to_line<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages are plain JSON");
    line.push(b'\n');
    line
}
