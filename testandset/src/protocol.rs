//! What client and server say to each other: one JSON object a line.
//!
//! ```text
//!   client: {"protocol":"tandem-arbiter","version":2}
//!           {"op":"store"}
//!   server: {"protocol":"tandem-arbiter","version":2}
//!           {"reply":"store","store":"51d3..."}
//!   client: {"op":"test_and_set","store":"51d3...","vm":"web","view":3,"who":"host-a.8812"}
//!   server: {"reply":"lost","holder":"host-b.771"}
//! ```
//!
//! A request names the store it is meant for; a server that has another one says so and does nothing.
//!
//! The client need not wait for the server's first line. A server of another version answers the
//! first line with a refusal and closes. A request may be added without a new version: a server that does not
//! know it refuses that request alone, and goes on giving verdicts to replicas that were started before it.

use crate::{Contender, StoreId, ViewNumber, VmId};
use serde::{Deserialize, Serialize};

/// Longest line either side takes, newline included, in bytes.
pub(crate) const MAX_LINE: usize = 4096;

/// What is spoken here.
pub(crate) const PROTOCOL: lines::Protocol = lines::Protocol {
    name: "tandem-arbiter",
    version: 2,
};

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// [`crate::Arbiter::store`].
    Store,
    /// [`crate::Arbiter::test_and_set`].
    TestAndSet {
        store: StoreId,
        vm: VmId,
        view: ViewNumber,
        who: Contender,
    },
    /// [`crate::Arbiter::holder`].
    Holder {
        store: StoreId,
        vm: VmId,
        view: ViewNumber,
    },
    /// [`crate::Arbiter::newest`].
    Newest { store: StoreId, vm: VmId },
    /// [`crate::Arbiter::check`].
    Check { store: StoreId },
}

/// A flag that is set, of the VM that was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Newest {
    pub(crate) view: ViewNumber,
    pub(crate) holder: Contender,
}

/// What the server answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// Which store there is.
    Store { store: StoreId },
    /// The request is for another store than the one there is; nothing was done.
    OtherStore { store: StoreId },
    /// The flag is the asker's.
    Won,
    /// The flag is another's.
    Lost { holder: Contender },
    /// Whose the flag is.
    Holder { holder: Option<Contender> },
    /// Which flag of the VM is the newest.
    Newest { newest: Option<Newest> },
    /// A flag could be set.
    Ready,
    /// No flag was set: this client, or the store, has its bound.
    TooManyFlags { reason: String },
    /// The request was not taken.
    Refused { reason: String },
    /// The answer could not be made durable; whose the flag is, is unknown.
    StoreFailed { reason: String },
}
