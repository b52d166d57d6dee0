//! What one key does, and the operations on it in the form the search works on.
//!
//! ```text
//!            SET v           INCR              DEL, or the lease runs out
//!  nothing --------> v    n -----> n + 1    v ----------------------------> nothing
//! ```
//!
//! A lease may run out at any moment from its SET's invocation plus its length on, less the slack
//! allowed for clocks; it need not. An operation whose outcome is unknown may have happened.

use std::collections::HashMap;

use super::history::{Call, NEVER, Observed, Op, Value};

/// A string, by its number in an [`Interner`].
pub type ValueId = u32;
/// The key holds nothing.
pub const NOTHING: ValueId = u32::MAX;
/// A value no key can hold.
const IMPOSSIBLE: ValueId = u32::MAX - 1;

/// The state of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What it holds.
    pub value: ValueId,
    /// When its lease may run out, in ns since the epoch; [`NEVER`] without one.
    pub expires_ns: u64,
}

impl State {
    /// Before anything happened, after DEL, and after a lease ran out.
    pub const EMPTY: State = State {
        value: NOTHING,
        expires_ns: NEVER,
    };
}

/// Numbers for the values that occur on one key.
#[derive(Debug, Default)]
pub struct Interner {
    ids: HashMap<Value, ValueId>,
    values: Vec<Value>,
}

impl Interner {
    /// The number of `value`.
    pub fn id(&mut self, value: &Value) -> ValueId {
        if let Some(&id) = self.ids.get(value) {
            return id;
        }
        let id = self.values.len() as ValueId;
        assert!(id < IMPOSSIBLE, "a history holds fewer than 2^32 values");
        self.ids.insert(value.clone(), id);
        self.values.push(value.clone());
        id
    }

    /// The value with number `id`; `None` for [`NOTHING`].
    #[must_use]
    pub fn value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id as usize)
    }
}

/// One operation with its outcome: what it needs of the state, and what it makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Saw this value; changes nothing.
    Saw(ValueId),
    /// Saw that there was some value; changes nothing.
    SawSome,
    /// Wrote over whatever was there.
    Write(State),
    /// Wrote where nothing was.
    WriteNew(State),
    /// Took away what was there.
    Remove,
    /// Counted from the first value to the second; `from_nothing` if the second is 1.
    Count {
        /// The number before.
        from: ValueId,
        /// The number after.
        to: ValueId,
        /// Whether the key may have held nothing before.
        from_nothing: bool,
    },
    /// Appended, after which the string was this long.
    Append(ValueId, i64),
    /// No reply: wrote over whatever was there, perhaps.
    MaybeWrite(State),
    /// No reply: wrote where nothing was, perhaps.
    MaybeWriteNew(State),
    /// No reply: took away what was there, perhaps.
    MaybeRemove,
    /// No reply: counted, perhaps.
    MaybeCount,
    /// No reply: appended, perhaps.
    MaybeAppend(ValueId),
    /// Can never be explained: a reply of a kind the operation does not give.
    Never,
}

impl Step {
    /// The step that `op` with its outcome stands for; `slack_ns` comes off its lease.
    pub fn of(op: &Op, slack_ns: u64, values: &mut Interner) -> Self {
        let open = op.open_ended();
        match (&op.call, &op.outcome) {
            (Call::Get, Observed::Nil) => Self::Saw(NOTHING),
            (Call::Get, Observed::Value(v)) => Self::Saw(values.id(v)),
            (Call::Set { value, nx, ttl_ms }, outcome) => {
                let expires_ns = match ttl_ms {
                    0 => NEVER,
                    ms => (op.invoke_ns + u64::from(*ms) * 1_000_000).saturating_sub(slack_ns),
                };
                let state = State {
                    value: values.id(value),
                    expires_ns,
                };
                match (nx, outcome) {
                    (false, Observed::Ok) => Self::Write(state),
                    (true, Observed::Ok) => Self::WriteNew(state),
                    (true, Observed::Nil) => Self::SawSome,
                    (false, _) if open => Self::MaybeWrite(state),
                    (true, _) if open => Self::MaybeWriteNew(state),
                    _ => Self::Never,
                }
            }
            (Call::Del, Observed::Int(0)) => Self::Saw(NOTHING),
            (Call::Del, Observed::Int(1)) => Self::Remove,
            (Call::Del, _) if open => Self::MaybeRemove,
            (Call::Incr, Observed::Int(n)) => Self::Count {
                from: n
                    .checked_sub(1)
                    .map_or(IMPOSSIBLE, |m| values.id(&Value::Int(m))),
                to: values.id(&Value::Int(*n)),
                from_nothing: *n == 1,
            },
            (Call::Incr, _) if open => Self::MaybeCount,
            (Call::Append(tail), Observed::Int(len)) => Self::Append(values.id(tail), *len),
            (Call::Append(tail), _) if open => Self::MaybeAppend(values.id(tail)),
            _ => Self::Never,
        }
    }

    /// Whether it leaves every state it fits as it is.
    #[must_use]
    pub fn observes(self) -> bool {
        matches!(self, Self::Saw(_) | Self::SawSome)
    }

    /// Whether it need never have happened.
    #[must_use]
    pub fn is_open_ended(self) -> bool {
        matches!(
            self,
            Self::MaybeWrite(_)
                | Self::MaybeWriteNew(_)
                | Self::MaybeRemove
                | Self::MaybeCount
                | Self::MaybeAppend(_)
        )
    }

    /// What `state` becomes; `None` if the outcome does not fit it.
    pub fn apply(self, state: State, values: &mut Interner) -> Option<State> {
        let fits = |fits: bool, then: State| fits.then_some(then);
        let there = state.value != NOTHING;
        match self {
            Self::Saw(value) => fits(state.value == value, state),
            Self::SawSome => fits(there, state),
            Self::Write(new) | Self::MaybeWrite(new) => Some(new),
            Self::WriteNew(new) => fits(!there, new),
            Self::MaybeWriteNew(new) => Some(if there { state } else { new }),
            Self::Remove => fits(there, State::EMPTY),
            Self::MaybeRemove => Some(State::EMPTY),
            Self::Count {
                from,
                to,
                from_nothing,
            } => {
                let fit = if there {
                    state.value == from
                } else {
                    from_nothing
                };
                fits(fit, State { value: to, ..state })
            }
            Self::MaybeCount => {
                let next = match values.value(state.value) {
                    None => Some(1),
                    Some(Value::Int(n)) => n.checked_add(1),
                    Some(_) => None,
                };
                let value = next.map_or(state.value, |n| values.id(&Value::Int(n)));
                Some(State { value, ..state })
            }
            Self::Append(tail, len) => {
                let next = appended(state, tail, values);
                let text_len = values.value(next.value).map_or(0, |v| v.to_string().len());
                fits(i64::try_from(text_len) == Ok(len), next)
            }
            Self::MaybeAppend(tail) => Some(appended(state, tail, values)),
            Self::Never => None,
        }
    }
}

fn appended(state: State, tail: ValueId, values: &mut Interner) -> State {
    let value = match (values.value(state.value), values.value(tail)) {
        (Some(head), Some(tail)) => {
            let whole = head.append(tail);
            values.id(&whole)
        }
        _ => tail,
    };
    State { value, ..state }
}
