//! Histories that are linearizable by construction: every operation takes effect at one moment,
//! chosen at random between its call and its return, on one store.

use std::collections::HashMap;

use super::history::{Call, History, NEVER, Observed, Op, Value};
use super::rng::Rng;
use super::workload::{KeySpace, Mix, Script};

/// One store, in plain strings; independent of the checker's model.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub value: Option<String>,
    pub expires_ns: Option<u64>,
}

impl Key {
    /// Does `call`, asked at `asked_ns` for a lease.
    pub fn apply(&mut self, call: &Call, asked_ns: u64) -> Observed {
        match call {
            Call::Get => match &self.value {
                Some(text) => Observed::Value(Value::from_bytes(text.as_bytes())),
                None => Observed::Nil,
            },
            Call::Set { nx: true, .. } if self.value.is_some() => Observed::Nil,
            Call::Set { value, ttl_ms, .. } => {
                self.value = Some(value.to_string());
                self.expires_ns = (*ttl_ms > 0).then(|| asked_ns + u64::from(*ttl_ms) * 1_000_000);
                Observed::Ok
            }
            Call::Del => {
                self.expires_ns = None;
                Observed::Int(self.value.take().is_some().into())
            }
            Call::Incr => {
                let text = self.value.as_deref().unwrap_or("0");
                // As Redis does: "01" and "+1" are no numbers.
                let number = text.parse::<i64>().ok().filter(|n| n.to_string() == text);
                match number.and_then(|n| n.checked_add(1)) {
                    Some(next) => {
                        self.value = Some(next.to_string());
                        Observed::Int(next)
                    }
                    None => Observed::Refused,
                }
            }
            Call::Append(tail) => {
                let whole = self.value.clone().unwrap_or_default() + &tail.to_string();
                let len = whole.len() as i64;
                self.value = Some(whole);
                Observed::Int(len)
            }
        }
    }

    /// Forgets a lease that is over at `now_ns`.
    pub fn expire(&mut self, now_ns: u64) {
        if self.expires_ns.is_some_and(|at| at <= now_ns) {
            *self = Self::default();
        }
    }
}

/// `count` operations of `clients` clients; one in `unknown` gets no reply (0: all get one), and
/// half of those still happen.
pub fn simulate(seed: u64, clients: u16, keys: u16, count: usize, unknown: u64) -> History {
    let space = KeySpace::new(keys);
    let mut rng = Rng::new(seed, 0);
    let mix = Mix {
        brief_ttl_ms: 2,
        ..Mix::default()
    };
    let mut scripts: Vec<_> = (0..clients)
        .map(|client| Script::new(&space, mix, client, seed))
        .collect();
    let mut store: HashMap<u16, Key> = HashMap::new();
    // What each client has under way: call, key, invocation, moment of effect.
    let mut under_way: Vec<(u16, Call, u64, u64)> = Vec::new();
    let begin = |script: &mut Script<'_>, from: u64, rng: &mut Rng| {
        let (key, call) = script.next_op();
        let invoke_ns = from + 1 + rng.below(20_000);
        (key, call, invoke_ns, invoke_ns + 1 + rng.below(50_000))
    };
    under_way.extend(scripts.iter_mut().map(|script| begin(script, 0, &mut rng)));
    let mut ops = Vec::new();
    while ops.len() < count {
        let client = (0..under_way.len())
            .min_by_key(|&n| under_way[n].3)
            .unwrap();
        let (key, call, invoke_ns, effect_ns) = under_way[client].clone();
        let lost = unknown > 0 && rng.below(unknown) == 0;
        let held = store.entry(key).or_default();
        held.expire(effect_ns);
        let mut outcome = Observed::Unknown;
        if !lost || rng.below(2) == 0 {
            outcome = held.apply(&call, effect_ns);
        }
        let mut return_ns = effect_ns + 1 + rng.below(50_000);
        let next = begin(&mut scripts[client], return_ns, &mut rng);
        if lost {
            (outcome, return_ns) = (Observed::Unknown, NEVER);
        }
        scripts[client].note(key, &call, &outcome);
        ops.push(Op {
            client: client as u16,
            key,
            call,
            outcome,
            invoke_ns,
            return_ns,
        });
        under_way[client] = next;
    }
    ops.sort_by_key(|op| op.invoke_ns);
    History {
        keys: space.names().to_vec(),
        clients,
        seed,
        ops,
        ..History::default()
    }
}
