//! Which acknowledged writes a later reply proves gone, on a key that is not linearizable.
//!
//! ```text
//!  SET a -> OK            SET b -> OK            GET -> a
//!             returned  <  invoked    returned  <  invoked      b was acknowledged and is gone
//! ```
//!
//! A reply that shows what a key held also shows since when it held that, at the latest; writes
//! acknowledged wholly between that moment and the reply did not last. A reply that is merely late
//! is told apart from a loss by the replies after it: if they show the write, or one after it that
//! was there already, it was not lost.

use std::collections::HashMap;

use super::history::{Call, NEVER, Observed, Op, Value};

/// Whether `op` can have made the key hold `value`.
#[must_use]
pub fn wrote(op: &Op, value: &Value) -> bool {
    match (&op.call, &op.outcome) {
        (Call::Set { value: new, .. }, _) => new == value && op.outcome != Observed::Nil,
        (Call::Incr, Observed::Int(n)) => matches!(value, Value::Int(m) if m == n),
        (Call::Append(tail), _) => value.to_string().ends_with(&tail.to_string()),
        _ => false,
    }
}

/// Counts the acknowledged writes among `ops`, all of one key and by `invoke_ns`, that are gone.
///
/// Exact where a key is only SET (each value once), deleted, leased and read, or only counted and
/// read; a lower bound elsewhere. A lease counts as there until its length less `slack_ns` is over.
#[must_use]
pub fn lost_writes(ops: &[&Op], slack_ns: u64) -> usize {
    if ops
        .iter()
        .all(|op| matches!(op.call, Call::Incr | Call::Get))
    {
        return lost_counts(ops);
    }
    let writers = writers(ops);
    let shown_last = shown_last(ops);
    let mut lost = vec![false; ops.len()];
    for reply in ops {
        let Some(shown) = shows(reply) else { continue };
        let still_since = match shown.map(|value| writers.get(value)) {
            Some(None) => continue, // no plain SET: nothing follows
            Some(Some(&at)) => Some(at),
            None => last_removal(ops, reply, slack_ns),
        };
        let gone = contradicted(ops, reply, still_since, shown);
        let seen_later = |op: &Op| {
            written(op)
                .and_then(|v| shown_last.get(&v))
                .is_some_and(|&at| at > reply.return_ns)
        };
        let there_since = gone
            .iter()
            .filter(|&&n| seen_later(ops[n]))
            .map(|&n| ops[n].invoke_ns)
            .max();
        for n in gone {
            let late = there_since.is_some_and(|at| ops[n].return_ns < at);
            lost[n] |= !late && !seen_later(ops[n]);
        }
    }
    lost.into_iter().filter(|lost| *lost).count()
}

/// On a counter that is only counted up: the most a reply falls short of the counts before it.
fn lost_counts(ops: &[&Op]) -> usize {
    let mut acked: Vec<u64> = ops
        .iter()
        .filter(|op| op.call == Call::Incr && op.acked_write())
        .map(|op| op.return_ns)
        .collect();
    acked.sort_unstable();
    let short = ops.iter().filter_map(|op| {
        let held = match (&op.call, &op.outcome) {
            (Call::Get, Observed::Nil) => 0,
            (Call::Get, Observed::Value(Value::Int(n))) => *n,
            (Call::Incr, Observed::Int(n)) => n.saturating_sub(1),
            _ => return None,
        };
        let before = acked.partition_point(|&at| at < op.invoke_ns);
        Some(before.saturating_sub(usize::try_from(held).unwrap_or(0)))
    });
    short.max().unwrap_or(0)
}

/// What `op` made the key hold, where that is plain: `Some(None)` is nothing.
fn written(op: &Op) -> Option<Option<&Value>> {
    match (&op.call, &op.outcome) {
        (Call::Set { value, .. }, outcome) if *outcome != Observed::Nil => Some(Some(value)),
        (Call::Del, Observed::Int(1) | Observed::Unknown | Observed::Refused) => Some(None),
        _ => None,
    }
}

/// What the key held just before `op`, if its reply shows it: `Some(None)` is nothing.
fn shows(op: &Op) -> Option<Option<&Value>> {
    match (&op.call, &op.outcome) {
        (Call::Get, Observed::Value(value)) => Some(Some(value)),
        (Call::Get, Observed::Nil) | (Call::Del, Observed::Int(0)) => Some(None),
        (Call::Set { nx: true, .. }, Observed::Ok) => Some(None),
        _ => None,
    }
}

/// When it was over with `op`; [`NEVER`] if no reply says.
fn over_ns(op: &Op) -> u64 {
    if op.open_ended() { NEVER } else { op.return_ns }
}

/// When each value was written at the latest.
fn writers<'a>(ops: &[&'a Op]) -> HashMap<&'a Value, u64> {
    let mut writers = HashMap::new();
    for op in ops {
        if let Some(Some(value)) = written(op) {
            let latest = writers.entry(value).or_insert(0);
            *latest = over_ns(op).max(*latest);
        }
    }
    writers
}

/// When each content was asked for last, among the replies that show it.
fn shown_last<'a>(ops: &[&'a Op]) -> HashMap<Option<&'a Value>, u64> {
    ops.iter()
        .filter_map(|op| Some((shows(op)?, op.invoke_ns)))
        .collect()
}

/// When the last operation was over whose end `reply` may see as nothing: a DEL, or a lease that
/// may have run out by then. `None` if there was none.
fn last_removal(ops: &[&Op], reply: &Op, slack_ns: u64) -> Option<u64> {
    let removes = |op: &&&Op| match &op.call {
        Call::Del => op.outcome != Observed::Int(0),
        Call::Set { ttl_ms, .. } if *ttl_ms > 0 && op.outcome != Observed::Nil => {
            let lease_ns = u64::from(*ttl_ms) * 1_000_000;
            op.invoke_ns + lease_ns <= reply.return_ns.saturating_add(slack_ns)
        }
        _ => false,
    };
    let before = ops.partition_point(|op| op.invoke_ns <= reply.return_ns);
    ops[..before]
        .iter()
        .filter(removes)
        .map(|op| over_ns(op))
        .max()
}

/// Acknowledged writes wholly between `still_since` (`None`: the start) and `reply`, which
/// `shown` belies.
fn contradicted(
    ops: &[&Op],
    reply: &Op,
    still_since: Option<u64>,
    shown: Option<&Value>,
) -> Vec<usize> {
    let from = still_since.map_or(0, |at| ops.partition_point(|op| op.invoke_ns <= at));
    let to = ops.partition_point(|op| op.invoke_ns < reply.invoke_ns);
    (from..to.max(from))
        .filter(|&n| {
            let op = ops[n];
            op.acked_write() && op.return_ns < reply.invoke_ns && written(op) != Some(shown)
        })
        .collect()
}
