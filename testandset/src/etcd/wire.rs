//! What is said to etcd and what it says, by the JSON form of its third API (`/v3/kv/txn`, one object each).
//!
//! ```text
//!   keys                                 values
//!   PREFIX store                         51d3..         which store this is
//!   PREFIX flags/VM/VIEW (20 digits)     host-b.771     whose the flag is
//! ```
//!
//! So a machine's flags are in the order of their views, and no name of a machine, which has no slash, is another's
//! beginning. Keys and values are bytes, in base64; numbers are text. A field that has its type's first value
//! (false, 0, nothing) is left out.

use crate::{Contender, Flag, StoreId, ViewNumber, VmId};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize, Serializer};

/// Digits of a view in a key: as many as the greatest view has.
const VIEW_DIGITS: usize = 20;

/// Bytes as etcd takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bytes(String);

impl Bytes {
    pub(super) fn of(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    pub(super) fn store(&self) -> String {
        format!("{}store", self.prefix)
    }

    pub(super) fn flag(&self, flag: &Flag) -> String {
        let Flag { vm, view } = flag;
        format!("{}flags/{vm}/{:0VIEW_DIGITS$}", self.prefix, view.0)
    }

    /// The keys of all flags of `vm`: from the first to before the second.
    fn flags(&self, vm: &VmId) -> [String; 2] {
        // The character behind a slash.
        ["/", "0"].map(|end| format!("{}flags/{vm}{end}", self.prefix))
    }

    /// The view of a flag of `vm`, by its key.
    pub(super) fn view(&self, vm: &VmId, key: &str) -> Option<ViewNumber> {
        let digits = key.strip_prefix(&self.flags(vm)[0])?;
        let flag = Flag {
            vm: vm.clone(),
            view: ViewNumber(digits.parse().ok()?),
        };
        (self.flag(&flag) == key).then_some(flag.view)
    }
}

/// A condition.
#[derive(Debug, Serialize)]
#[serde(tag = "target")]
enum Compare {
    /// Of a key that is not there both this and its opposite are false.
    #[serde(rename = "VALUE")]
    Value {
        result: &'static str,
        key: Bytes,
        value: Bytes,
    },
    /// Of a key that is not there the revision is 0.
    #[serde(rename = "CREATE")]
    Created {
        result: &'static str,
        key: Bytes,
        create_revision: &'static str,
    },
}

impl Compare {
    fn is(key: &str, value: &str) -> Self {
        Self::Value {
            result: "EQUAL",
            key: Bytes::of(key),
            value: Bytes::of(value),
        }
    }

    /// Whether there is a key (`GREATER`) or none (`EQUAL`).
    fn created(key: &str, result: &'static str) -> Self {
        Self::Created {
            result,
            key: Bytes::of(key),
            create_revision: "0",
        }
    }
}

/// Something to do.
#[derive(Debug, Serialize)]
enum Operation {
    #[serde(rename = "request_put")]
    Put { key: Bytes, value: Bytes },
    #[serde(rename = "request_range")]
    Range(Range),
}

/// Keys to read: linearizably, as etcd does unless it is told otherwise.
#[derive(Debug, Serialize)]
struct Range {
    key: Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    range_end: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sort_order: Option<&'static str>,
    limit: &'static str,
}

impl Operation {
    fn put(key: &str, value: &str) -> Self {
        Self::Put {
            key: Bytes::of(key),
            value: Bytes::of(value),
        }
    }

    fn get(key: &str) -> Self {
        Self::Range(Range {
            key: Bytes::of(key),
            range_end: None,
            sort_order: None,
            limit: "1",
        })
    }

    fn last([from, to]: [String; 2]) -> Self {
        Self::Range(Range {
            key: Bytes::of(&from),
            range_end: Some(Bytes::of(&to)),
            sort_order: Some("DESCEND"),
            limit: "1",
        })
    }
}

/// A transaction. Whatever it does else, it reads the store's identity last if its conditions fail.
#[derive(Debug, Serialize)]
pub(super) struct Txn {
    compare: Vec<Compare>,
    success: Vec<Operation>,
    failure: Vec<Operation>,
}

impl Txn {
    /// Makes the store `id`, unless there is one.
    pub(super) fn make_store(keys: &Keys, id: StoreId) -> Self {
        let store = keys.store();
        Self {
            compare: vec![Compare::created(&store, "EQUAL")],
            success: vec![Operation::put(&store, &id.to_string())],
            failure: vec![Operation::get(&store)],
        }
    }

    /// Sets `flag` for `who` if it is unset, and the store is `id`; else reads both.
    pub(super) fn set(keys: &Keys, id: StoreId, flag: &Flag, who: &Contender) -> Self {
        let (store, flag) = (keys.store(), keys.flag(flag));
        Self {
            compare: vec![
                Compare::is(&store, &id.to_string()),
                Compare::created(&flag, "EQUAL"),
            ],
            success: vec![Operation::put(&flag, who.as_str())],
            failure: vec![Operation::get(&flag), Operation::get(&store)],
        }
    }

    /// Reads `flag`.
    pub(super) fn read(keys: &Keys, flag: &Flag) -> Self {
        Self::reads(keys, Operation::get(&keys.flag(flag)))
    }

    /// Reads the newest flag of `vm`.
    pub(super) fn newest(keys: &Keys, vm: &VmId) -> Self {
        Self::reads(keys, Operation::last(keys.flags(vm)))
    }

    /// Reads the store's identity.
    pub(super) fn look(keys: &Keys) -> Self {
        Self::reads(keys, Operation::get(&keys.store()))
    }

    /// `reads`, and the store's identity.
    fn reads(keys: &Keys, reads: Operation) -> Self {
        Self {
            // One that always fails, so that there is one answer to look for.
            compare: vec![
                Compare::created(&keys.store(), "EQUAL"),
                Compare::created(&keys.store(), "GREATER"),
            ],
            success: Vec::new(),
            failure: vec![reads, Operation::get(&keys.store())],
        }
    }

    /// Reads the store's identity, if keys could be written as well. etcd looks whether it would do all that
    /// a transaction may come to, before it looks at the conditions.
    pub(super) fn check(keys: &Keys) -> Self {
        Self {
            success: vec![Operation::put(&format!("{}check", keys.prefix), "")],
            ..Self::look(keys)
        }
    }
}

/// What etcd says to a transaction.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Reply {
    pub(super) succeeded: bool,
    responses: Vec<Response>,
    /// There is one whatever else is.
    header: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Response {
    #[serde(alias = "responseRange")]
    response_range: Option<Found>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    kvs: Vec<Pair>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pair {
    key: String,
    value: String,
}

/// A key and its value.
pub(super) type Read = Option<(String, String)>;

impl Reply {
    /// What the `n`-th operation read, of one key at most.
    ///
    /// # Errors
    /// What is wrong with the reply.
    pub(super) fn read(&self, n: usize) -> Result<Read, String> {
        let found = self
            .responses
            .get(n)
            .and_then(|r| r.response_range.as_ref());
        let Found { kvs } = found.ok_or("a part of its reply is missing")?;
        let text = |base64: &str| -> Result<String, String> {
            let bytes = STANDARD.decode(base64).map_err(|e| e.to_string())?;
            String::from_utf8(bytes).map_err(|_| "a key or value is no text".into())
        };
        match kvs.as_slice() {
            [] => Ok(None),
            [pair] => Ok(Some((text(&pair.key)?, text(&pair.value)?))),
            _ => Err("its reply has more than was asked for".into()),
        }
    }

    /// The last thing it read: the store's identity, where conditions failed.
    ///
    /// # Errors
    /// What is wrong with the reply.
    pub(super) fn store(&self) -> Result<Read, String> {
        let last = self.responses.len().checked_sub(1);
        self.read(last.ok_or("its reply is empty")?)
    }

    /// Whether it is a reply at all.
    pub(super) fn is_whole(&self) -> bool {
        self.header.is_some()
    }
}

/// What etcd says where it does nothing. Older versions have both texts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) code: u32,
    message: String,
    error: String,
}

impl Refusal {
    pub(super) fn text(&self) -> &str {
        match self.message.as_str() {
            "" => &self.error,
            text => text,
        }
    }
}

/// `/v3/auth/authenticate`.
#[derive(Debug, Serialize)]
pub(super) struct Authenticate<'a> {
    pub(super) name: &'a str,
    pub(super) password: &'a str,
}

/// What comes of it.
#[derive(Deserialize)]
pub(super) struct Authenticated {
    pub(super) token: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flag(vm: &str, view: u64) -> Flag {
        Flag {
            vm: VmId::new(vm).unwrap(),
            view: ViewNumber(view),
        }
    }

    #[test]
    fn keys_are_in_the_order_of_views_and_come_back() {
        let keys = Keys::new("/t/".into());
        let views = [0, 1, 9, 10, 99, 1 << 40, u64::MAX];
        let all: Vec<_> = views.iter().map(|v| keys.flag(&flag("web", *v))).collect();
        assert!(all.is_sorted());
        let [from, to] = keys.flags(&VmId::new("web").unwrap());
        for (view, key) in views.iter().zip(&all) {
            assert!(from < *key && *key < to);
            let web = VmId::new("web").unwrap();
            assert_eq!(keys.view(&web, key), Some(ViewNumber(*view)));
            assert_eq!(keys.view(&VmId::new("web2").unwrap(), key), None);
        }
        for other in ["web.", "web-1", "we", "WEB", "web0"] {
            let key = keys.flag(&flag(other, 5));
            assert!(key < from || key >= to, "{other}");
        }
        let web = VmId::new("web").unwrap();
        for bad in [
            "/t/flags/web/1",
            "/t/flags/web/+0000000000000000001",
            "/t/store",
        ] {
            assert_eq!(keys.view(&web, bad), None);
        }
    }

    #[test]
    fn a_transaction_is_what_etcd_takes() {
        let keys = Keys::new("/t/".into());
        let id = StoreId::from_bytes([1; StoreId::BYTES]);
        let txn = Txn::set(&keys, id, &flag("v", 7), &Contender::new("a").unwrap());
        let said = serde_json::to_value(&txn).unwrap();
        let key = STANDARD.encode("/t/flags/v/00000000000000000007");
        assert_eq!(said["compare"][0]["target"], "VALUE");
        assert_eq!(
            said["compare"][0]["value"],
            STANDARD.encode("01".repeat(16))
        );
        assert_eq!(said["compare"][1]["create_revision"], "0");
        assert_eq!(said["compare"][1]["key"], key);
        assert_eq!(said["success"][0]["request_put"]["value"], "YQ==");
        assert_eq!(said["failure"][0]["request_range"]["key"], key);
        // Reads are linearizable unless this says otherwise.
        assert!(!said.to_string().contains("serializable"));
    }

    #[test]
    fn what_is_left_out_is_nothing_and_what_is_wrong_is_told() {
        let reply = |text: &str| serde_json::from_str::<Reply>(text).unwrap();
        let none = reply(r#"{"header":{},"responses":[{"response_range":{"header":{}}}]}"#);
        assert!(none.is_whole() && !none.succeeded);
        assert_eq!(none.read(0), Ok(None));
        let newer = reply(
            r#"{"header":{},"responses":[{"responseRange":{"kvs":[{"key":"YQ==","value":"Yg=="}]}}]}"#,
        );
        assert_eq!(newer.store(), Ok(Some(("a".into(), "b".into()))));
        assert!(!reply("{}").is_whole());
        for bad in [
            r#"{"responses":[]}"#,
            r#"{"responses":[{"response_put":{}}]}"#,
            r#"{"responses":[{"response_range":{"kvs":[{},{}]}}]}"#,
            r#"{"responses":[{"response_range":{"kvs":[{"key":"!"}]}}]}"#,
            r#"{"responses":[{"response_range":{"kvs":[{"value":"/w=="}]}}]}"#,
        ] {
            assert!(reply(bad).store().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(reply) = serde_json::from_slice::<Reply>(&bytes) {
                let _ = (reply.read(0), reply.store());
            }
        }
    }
}
