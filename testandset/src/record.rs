//! A line of JSON with its checksum. Everything the arbiters keep on a disk has this form, in the files of a
//! shared directory and in the server's store alike.
//!
//! ```text
//!   1a2b3c4d {"vm":"web","view":3,"holder":"host-a.8812"}\n     a set flag
//!   5e6f7a8b {"store":"51d3..."}\n                             which store this is
//!   9a0b1c2d {"vm":"web","through":3,"holder":"x.ended"}\n     all flags up to that view (`store/flags.rs`)
//!   └ CRC-32 of the JSON, 8 hex digits
//! ```

use crate::{Contender, Flag, StoreId, ViewNumber, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Longest line: two names of the greatest length, an address, numbers, and the JSON about them.
pub(crate) const MAX_LINE: usize = 512;

/// A set flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) vm: VmId,
    pub(crate) view: ViewNumber,
    /// Whose it is.
    pub(crate) holder: Contender,
    /// When it was set, in seconds since 1970 by the host's clock. Servers only.
    #[serde(rename = "at", default, skip_serializing_if = "Option::is_none")]
    pub(crate) at_s: Option<u64>,
    /// The client that set it. Servers only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<IpAddr>,
}

impl Record {
    pub(crate) fn new(flag: &Flag, holder: &Contender) -> Self {
        Self {
            vm: flag.vm.clone(),
            view: flag.view,
            holder: holder.clone(),
            at_s: None,
            by: None,
        }
    }

    pub(crate) fn flag(&self) -> Flag {
        Flag {
            vm: self.vm.clone(),
            view: self.view,
        }
    }
}

/// A machine that ended: all its flags up to that of a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ended {
    pub(crate) vm: VmId,
    pub(crate) through: ViewNumber,
    /// The mark of the end.
    pub(crate) holder: Contender,
    /// The client that set the mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<IpAddr>,
}

/// Which store this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) store: StoreId,
}

/// What a line of the server's store says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Entry {
    /// A flag is set.
    Flag(Record),
    /// A machine has ended.
    Ended(Ended),
    /// Which store this is.
    Identity(Identity),
}

/// `value` as a line, with its newline.
pub(crate) fn to_line(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("a struct of strings and numbers is JSON");
    let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    assert!(line.len() <= MAX_LINE, "names are bounded");
    line
}

/// Reads a line without its newline.
pub(crate) fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not text".to_owned())?;
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (crc, json) = text
        .split_once(' ')
        .filter(|(crc, _)| crc.len() == 8)
        .ok_or("it has no checksum")?;
    let expected = u32::from_str_radix(crc, 16).map_err(|_| "it has no checksum")?;
    let found = crc32fast::hash(json.as_bytes());
    if expected != found {
        return Err(format!("its checksum is {found:08x}, not {expected:08x}"));
    }
    serde_json::from_str(json).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn record() -> Record {
        let flag = Flag {
            vm: VmId::new("x".repeat(VmId::MAX)).unwrap(),
            view: ViewNumber(u64::MAX),
        };
        Record {
            at_s: Some(u64::MAX),
            by: Some(IpAddr::from([0xffff; 8])),
            ..Record::new(&flag, &Contender::new("y".repeat(Contender::MAX)).unwrap())
        }
    }

    #[test]
    fn the_longest_record_fits_and_comes_back() {
        let line = to_line(&record());
        let read = from_line::<Record>(line.trim_end().as_bytes()).unwrap();
        assert_eq!(read, record());
    }

    #[test]
    fn no_changed_byte_passes() {
        let line = to_line(&record());
        for at in 0..line.len() - 1 {
            let mut bytes = line.trim_end().as_bytes().to_vec();
            bytes[at] ^= 1;
            if let Ok(read) = from_line::<Record>(&bytes) {
                // Only the case of a checksum's hex digit may change unseen.
                assert_eq!(read, record(), "byte {at}");
            }
            assert!(from_line::<Record>(&line.as_bytes()[..at]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = from_line::<Record>(&bytes);
        }
    }
}
