//! What the clients do: which operation on which key, and how it goes over the wire.
//!
//! Few keys, so that operations meet; each kind of value has keys of its own, so that no reply is
//! an error: `r:` registers, `c:` counters, `a:` strings that grow, `lock:` leases that outlive
//! the run, `brief:` leases that run out in it.

use super::history::{Call, Observed, Value};
use super::resp::{self, Reply};
use super::rng::Rng;

/// A grown string longer than this is deleted rather than appended to.
const GROWN_MAX: i64 = 160;
/// Shares of each kind of key of the whole, in 64ths.
const SHARES: [(&str, usize); 5] = [("r", 32), ("c", 12), ("a", 4), ("lock", 8), ("brief", 8)];

/// How often each operation is chosen: weights, relative to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// GET of any key.
    pub get: u32,
    /// SET of a register.
    pub set: u32,
    /// INCR of a counter.
    pub incr: u32,
    /// DEL of a register. Counters only go up, so that a count that is gone shows.
    pub del: u32,
    /// APPEND to a growing string.
    pub append: u32,
    /// `SET lock:k me NX PX ttl`, or DEL by its holder.
    pub lease: u32,
    /// The lease of a lock, in ms: a minute, as the paper's lock server gives.
    pub lock_ttl_ms: u32,
    /// The shortest of the leases that run out, in ms; the longest is four times it.
    pub brief_ttl_ms: u32,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            get: 40,
            set: 28,
            incr: 16,
            del: 2,
            append: 4,
            lease: 10,
            lock_ttl_ms: 60_000,
            brief_ttl_ms: 100,
        }
    }
}

impl Mix {
    fn total(&self) -> u64 {
        [
            self.get,
            self.set,
            self.incr,
            self.del,
            self.append,
            self.lease,
        ]
        .iter()
        .map(|&weight| u64::from(weight))
        .sum()
    }

    /// Whether anything can be chosen from it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.total() > 0 && self.lock_ttl_ms > 0 && self.brief_ttl_ms > 0
    }
}

/// The keys of a run, by kind.
#[derive(Clone, Debug)]
pub struct KeySpace {
    names: Vec<String>,
    /// Where each kind of [`SHARES`] begins in `names`, and where the last ends.
    starts: [usize; SHARES.len() + 1],
}

/// Kinds of keys, as indices of [`SHARES`].
const REGISTERS: usize = 0;
const COUNTERS: usize = 1;
const GROWN: usize = 2;
const LOCKS: usize = 3;
const BRIEF: usize = 4;

impl KeySpace {
    /// About `keys` keys, at least one of each kind.
    #[must_use]
    pub fn new(keys: u16) -> Self {
        let mut names = Vec::new();
        let mut starts = [0; SHARES.len() + 1];
        for (kind, (prefix, share)) in SHARES.iter().enumerate() {
            let count = (usize::from(keys) * share / 64).max(1);
            names.extend((0..count).map(|n| format!("{prefix}:{n}")));
            starts[kind + 1] = names.len();
        }
        Self { names, starts }
    }

    /// Their names, by index.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    fn pick(&self, kind: usize, rng: &mut Rng) -> u16 {
        let (from, to) = (self.starts[kind], self.starts[kind + 1]);
        (from as u64 + rng.below((to - from) as u64)) as u16
    }

    fn is_brief(&self, key: u16) -> bool {
        usize::from(key) >= self.starts[BRIEF]
    }
}

/// What one client does next, and what it has to remember for that.
#[derive(Debug)]
pub struct Script<'a> {
    keys: &'a KeySpace,
    mix: Mix,
    client: u16,
    rng: Rng,
    written: u32,
    held: Vec<u16>,
    grown: Vec<u16>,
}

impl<'a> Script<'a> {
    /// The script of client number `client`.
    #[must_use]
    pub fn new(keys: &'a KeySpace, mix: Mix, client: u16, seed: u64) -> Self {
        let rng = Rng::new(seed, u64::from(client) + 1);
        Self {
            keys,
            mix,
            client,
            rng,
            written: 0,
            held: Vec::new(),
            grown: Vec::new(),
        }
    }

    /// The next operation and its key.
    pub fn next_op(&mut self) -> (u16, Call) {
        let mix = self.mix;
        let mut at = self.rng.below(mix.total());
        let mut chosen = |weight: u32| match at.checked_sub(u64::from(weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        };
        if chosen(mix.get) {
            let any = self.rng.below(self.keys.names.len() as u64);
            (any as u16, Call::Get)
        } else if chosen(mix.set) {
            (
                self.keys.pick(REGISTERS, &mut self.rng),
                Call::set(self.token()),
            )
        } else if chosen(mix.incr) {
            (self.keys.pick(COUNTERS, &mut self.rng), Call::Incr)
        } else if chosen(mix.del) {
            (self.keys.pick(REGISTERS, &mut self.rng), Call::Del)
        } else if chosen(mix.append) {
            if let Some(key) = self.grown.pop() {
                return (key, Call::Del);
            }
            (
                self.keys.pick(GROWN, &mut self.rng),
                Call::Append(self.token()),
            )
        } else {
            self.lease()
        }
    }

    fn lease(&mut self) -> (u16, Call) {
        if self.rng.below(2) == 0 {
            let ttl_ms = u64::from(self.mix.brief_ttl_ms) * (1 + self.rng.below(4));
            let ttl_ms = u32::try_from(ttl_ms).unwrap_or(u32::MAX);
            return (
                self.keys.pick(BRIEF, &mut self.rng),
                Call::lease(self.token(), ttl_ms),
            );
        }
        if let Some(key) = self.held.pop() {
            return (key, Call::Del);
        }
        let key = self.keys.pick(LOCKS, &mut self.rng);
        (key, Call::lease(self.token(), self.mix.lock_ttl_ms))
    }

    /// Takes note of what an operation brought.
    pub fn note(&mut self, key: u16, call: &Call, outcome: &Observed) {
        match (call, outcome) {
            (Call::Set { nx: true, .. }, Observed::Ok) if !self.keys.is_brief(key) => {
                self.held.push(key);
            }
            (Call::Append(_), Observed::Int(len)) if *len > GROWN_MAX => self.grown.push(key),
            _ => {}
        }
    }

    /// A value nobody else writes, and this client only once.
    fn token(&mut self) -> Value {
        self.written += 1;
        Value::Token(self.client, self.written)
    }
}

/// Appends the request for `call` on `key` to `out`.
pub fn encode(out: &mut Vec<u8>, key: &str, call: &Call) {
    let key = key.as_bytes();
    match call {
        Call::Get => resp::encode(out, &[b"GET", key]),
        Call::Del => resp::encode(out, &[b"DEL", key]),
        Call::Incr => resp::encode(out, &[b"INCR", key]),
        Call::Append(value) => {
            resp::encode(out, &[b"APPEND", key, value.to_string().as_bytes()]);
        }
        Call::Set { value, nx, ttl_ms } => {
            let (value, ttl) = (value.to_string(), ttl_ms.to_string());
            let mut args = vec![b"SET", key, value.as_bytes()];
            if *nx {
                args.push(b"NX");
            }
            if *ttl_ms > 0 {
                args.extend([&b"PX"[..], ttl.as_bytes()]);
            }
            resp::encode(out, &args);
        }
    }
}

/// What `reply` says; a reply of a type that no operation gets counts as refused.
#[must_use]
pub fn outcome(reply: &Reply) -> Observed {
    match reply {
        Reply::Simple(text) if text == "OK" => Observed::Ok,
        Reply::Int(n) => Observed::Int(*n),
        Reply::Bulk(None) => Observed::Nil,
        Reply::Bulk(Some(bytes)) => Observed::Value(Value::from_bytes(bytes)),
        Reply::Simple(_) | Reply::Error(_) | Reply::Array(_) => Observed::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_script_is_its_seed_and_writes_no_value_twice() {
        let keys = KeySpace::new(64);
        let run = |seed| {
            let mut script = Script::new(&keys, Mix::default(), 3, seed);
            (0..2000).map(|_| script.next_op()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));

        let ops = run(1);
        let written = ops.iter().filter_map(|(_, call)| match call {
            Call::Set { value, .. } | Call::Append(value) => Some(value.clone()),
            _ => None,
        });
        let written: Vec<_> = written.collect();
        assert_eq!(written.iter().collect::<HashSet<_>>().len(), written.len());
        assert!(
            ops.iter()
                .all(|(key, _)| usize::from(*key) < keys.names().len())
        );
    }

    #[test]
    fn a_holder_gives_its_lock_back_and_a_grown_string_goes() {
        let keys = KeySpace::new(5);
        let only = |mix: Mix| Script::new(&keys, mix, 0, 9);
        let none = Mix {
            get: 0,
            set: 0,
            incr: 0,
            del: 0,
            append: 0,
            lease: 0,
            ..Mix::default()
        };

        let mut locks = only(Mix { lease: 1, ..none });
        let mut held = None;
        let mut given_back = 0;
        for _ in 0..100 {
            let (key, call) = locks.next_op();
            match call {
                Call::Del => {
                    assert_eq!(held.take(), Some(key));
                    given_back += 1;
                }
                _ if keys.is_brief(key) => locks.note(key, &call, &Observed::Ok),
                _ => {
                    assert_eq!(held.replace(key), None, "asked again while holding");
                    locks.note(key, &call, &Observed::Ok);
                }
            }
        }
        assert!(given_back > 10);

        let mut grown = only(Mix { append: 1, ..none });
        let (key, call) = grown.next_op();
        grown.note(key, &call, &Observed::Int(GROWN_MAX + 1));
        assert_eq!(grown.next_op(), (key, Call::Del));
    }

    #[test]
    fn requests_are_what_redis_expects() {
        let mut out = Vec::new();
        encode(&mut out, "lock:1", &Call::lease(Value::Token(2, 7), 60_000));
        let text = String::from_utf8(out).unwrap().replace("\r\n", " ");
        assert_eq!(text, "*6 $3 SET $6 lock:1 $4 w2.7 $2 NX $2 PX $5 60000 ");
    }
}
