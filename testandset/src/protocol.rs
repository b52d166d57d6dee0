//! What client and server say to each other: HTTP with JSON (`docs/API.md`).
//!
//! ```text
//!   GET /v1/store                    200 {"store":"51d3.."}
//!   PUT /v1/flags/VM/VIEW            200 {"verdict":"won"}
//!       {"store":"51d3..",           200 {"verdict":"lost","holder":"host-b.771"}
//!        "who":"host-a.8812"}        409 {"error":"..","store":"e07a.."}   it has another store, and does nothing
//!   GET /v1/flags/VM/VIEW?store=..   200 {"holder":"host-b.771"} or {"holder":null}
//!   GET /v1/flags/VM?store=..        200 {"newest":{"view":3,"holder":"host-b.771"}} or {"newest":null}
//!   GET /v1/ready?store=..           200 {"ready":true}
//! ```
//!
//! Whoever sets a flag names the store it is meant for; who reads may. Only a status of 200 with a body that is read
//! to its end says anything of a flag. Everything else is an error with `{"error": ...}`, and means *unknown*.

use crate::{Contender, Flag, StoreId, ViewNumber, VmId};
use serde::{Deserialize, Serialize};

/// Longest body of a request, in bytes.
pub(crate) const MAX_BODY: usize = 4096;
/// Longest body of a reply, in bytes.
pub(crate) const MAX_REPLY: usize = 8192;

/// The path of what is asked of any store.
pub(crate) const STORE: &str = "/v1/store";

/// Where a flag is.
pub(crate) fn flag_path(flag: &Flag) -> String {
    format!("/v1/flags/{}/{}", flag.vm, flag.view.0)
}

/// The body of a request to set a flag.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Set {
    pub(crate) store: StoreId,
    pub(crate) who: Contender,
}

/// What reading may be bound to.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Bound {
    pub(crate) store: Option<StoreId>,
}

/// Which store there is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Here {
    pub(crate) store: StoreId,
}

/// What became of a request to set a flag.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(crate) enum Decided {
    /// The flag is the asker's.
    Won,
    /// The flag is another's.
    Lost { holder: Contender },
}

/// Whose a flag is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    // It is said, be it null: a body without it says nothing.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) holder: Option<Contender>,
}

/// Which flag of a VM is the newest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Newest {
    #[serde(deserialize_with = "Option::deserialize")]
    pub(crate) newest: Option<NewestFlag>,
}

/// A flag that is set, of the VM that was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewestFlag {
    pub(crate) view: ViewNumber,
    pub(crate) holder: Contender,
}

/// A flag could be set.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) ready: bool,
}

/// The flag at these places of a path.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn flag_of(vm: &str, view: &str) -> Result<Flag, String> {
    let vm = VmId::new(vm).map_err(|e| e.to_string())?;
    let digits = !view.is_empty() && view.bytes().all(|b| b.is_ascii_digit());
    let view = view.parse().ok().filter(|_| digits);
    let view = view.ok_or("a view is a number from 0 to 18446744073709551615")?;
    let view = ViewNumber(view);
    Ok(Flag { vm, view })
}
