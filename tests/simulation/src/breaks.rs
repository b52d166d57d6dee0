//! Faults that are built in, each of which a few lives have to find.

use crate::world::Break;
use logchannel::framing::{FrameKind, HEADER_LEN, seal};
use std::collections::BTreeMap;
use std::path::Path;
use testandset::{Arbiter, ArbiterError, Contender, Flag, StoreId, Verdict, ViewNumber, VmId};

/// An arbiter that takes no answer for a win.
struct Guesses(Box<dyn Arbiter>);

impl Arbiter for Guesses {
    fn store(&self) -> Result<StoreId, ArbiterError> {
        self.0.store()
    }

    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        self.0.test_and_set(flag, who).or(Ok(Verdict::Won))
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        self.0.holder(flag)
    }

    fn newest(&self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError> {
        self.0.newest(vm)
    }

    fn check(&self) -> Result<(), ArbiterError> {
        self.0.check()
    }
}

/// The arbiter, as `broken` has it.
pub fn arbiter(real: Box<dyn Arbiter>, broken: Option<Break>) -> Box<dyn Arbiter> {
    match broken {
        Some(Break::ArbiterGuessed) => Box::new(Guesses(real)),
        _ => real,
    }
}

/// Has a store's file end before its last flag.
pub fn forget_last_flag(path: &Path) {
    let Ok(lines) = std::fs::read_to_string(path) else {
        return;
    };
    let kept: Vec<&str> = lines.split_inclusive('\n').collect();
    // The first line is the store's identity.
    if kept.len() > 1 {
        std::fs::write(path, kept[..kept.len() - 1].concat()).expect("a store's file");
    }
}

/// Who stands between two replicas, and changes what one sends to the other.
pub struct Tamper {
    broken: Break,
    /// After the last entry that was sent on each connection.
    framed: BTreeMap<usize, u64>,
}

impl Tamper {
    /// As `broken` has it; none if that has nobody there.
    pub fn of(broken: Option<Break>) -> Option<Self> {
        let broken =
            broken.filter(|broken| matches!(broken, Break::AckAhead | Break::WelcomeAhead))?;
        let framed = BTreeMap::new();
        Some(Self { broken, framed })
    }

    /// What goes instead of `bytes`, which are written to connection `conn`.
    pub fn change(&mut self, conn: usize, bytes: &[u8]) -> Option<Vec<u8>> {
        let (kind, payload) = (*bytes.first()?, bytes.get(HEADER_LEN..)?);
        let number = |at: usize| {
            Some(u64::from_le_bytes(
                payload.get(at..at + 8)?.try_into().ok()?,
            ))
        };
        let is_whole = payload.len() == usize::from(bytes[1]) + (usize::from(bytes[2]) << 8);
        if kind == FrameKind::Entries as u8 && payload.len() > 6 {
            let first = u32::from_le_bytes(payload[..4].try_into().ok()?);
            let count = u16::from_le_bytes(payload[4..6].try_into().ok()?);
            self.framed
                .insert(conn, u64::from(first) + u64::from(count));
        }
        if self.broken == Break::AckAhead
            && kind == FrameKind::Ack as u8
            && is_whole
            && payload.len() == 32
        {
            let ahead = number(0)?.max(*self.framed.get(&conn)?);
            let mut frame = bytes.to_vec();
            frame[HEADER_LEN..HEADER_LEN + 8].copy_from_slice(&ahead.to_le_bytes());
            seal(FrameKind::Ack, &mut frame);
            return Some(frame);
        }
        if self.broken == Break::WelcomeAhead && kind == FrameKind::Base as u8 && is_whole {
            let mut welcome = vec![0; HEADER_LEN];
            welcome.extend((number(0)? + 1).to_le_bytes());
            seal(FrameKind::Welcome, &mut welcome);
            return Some([bytes, &welcome].concat());
        }
        None
    }
}
