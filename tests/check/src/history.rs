//! What the clients asked and what they saw: the evidence the checker judges.
//!
//! ```text
//! client 0   |--SET a=w0.1--|        |--GET a -> w1.1--|
//! client 1            |--SET a=w1.1 .......................... (no reply: may have happened)
//!            invoke_ns      return_ns
//! ```

use std::fmt;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// `return_ns` of an operation that got no reply.
pub const NEVER: u64 = u64::MAX;

/// The moment a run's times count from.
#[derive(Clone, Copy, Debug)]
pub struct Epoch(Instant);

impl Epoch {
    /// An epoch that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds from the epoch to `at`; 0 if `at` lies before it.
    #[must_use]
    pub fn ns_at(self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_nanos()).unwrap_or(NEVER)
    }

    /// Nanoseconds since the epoch.
    #[must_use]
    pub fn now_ns(self) -> u64 {
        self.ns_at(Instant::now())
    }
}

/// A string a key can hold, in a short form.
///
/// Invariant: one form for each string, so that equal strings are equal values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Value {
    /// A decimal number as INCR writes it.
    Int(i64),
    /// `w<client>.<number>`: what a client writes, each only once in a run.
    Token(u16, u32),
    /// Anything else, such as what APPEND makes.
    Text(Box<str>),
}

impl Value {
    /// The value of the string `bytes`; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let short = text.parse().map(Self::Int).ok().or_else(|| {
            let (client, number) = text.strip_prefix('w')?.split_once('.')?;
            Some(Self::Token(client.parse().ok()?, number.parse().ok()?))
        });
        match short {
            // "+1" and "007" parse too, but are other strings than the short form stands for.
            Some(value) if value.to_string() == text => value,
            _ => Self::Text(text.into()),
        }
    }

    /// The value holding `self` with `tail` appended.
    #[must_use]
    pub fn append(&self, tail: &Value) -> Self {
        Self::from_bytes(format!("{self}{tail}").as_bytes())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(n) => n.fmt(f),
            Self::Token(client, number) => write!(f, "w{client}.{number}"),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// What a client asked of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// GET.
    Get,
    /// SET, with NX (only if there is no value) and PX (expires after `ttl_ms`) as asked.
    Set {
        /// What to write.
        value: Value,
        /// Only if the key holds nothing.
        nx: bool,
        /// Milliseconds until it expires; 0 for never.
        ttl_ms: u32,
    },
    /// DEL.
    Del,
    /// INCR.
    Incr,
    /// APPEND.
    Append(Value),
}

impl Call {
    /// A plain SET.
    #[must_use]
    pub fn set(value: Value) -> Self {
        Self::Set {
            value,
            nx: false,
            ttl_ms: 0,
        }
    }

    /// A lease: `SET key value NX PX ttl_ms`.
    #[must_use]
    pub fn lease(value: Value, ttl_ms: u32) -> Self {
        Self::Set {
            value,
            nx: true,
            ttl_ms,
        }
    }

    /// Whether it can change the key.
    #[must_use]
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Get)
    }
}

/// What a client saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed {
    /// No reply came: it may have happened, or may yet.
    Unknown,
    /// `+OK`.
    Ok,
    /// Nil: no value, or a lease not granted.
    Nil,
    /// A value.
    Value(Value),
    /// A number.
    Int(i64),
    /// An error reply, or one of the wrong type; nothing is concluded from it.
    Refused,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Who asked.
    pub client: u16,
    /// Index of the key in [`History::keys`].
    pub key: u16,
    /// What was asked.
    pub call: Call,
    /// What came back.
    pub outcome: Observed,
    /// When it was sent, in nanoseconds since the run's epoch.
    pub invoke_ns: u64,
    /// When its reply had come; [`NEVER`] if none did. Invariant: not before `invoke_ns`.
    pub return_ns: u64,
}

impl Op {
    /// Whether a reply says that it was done (a lease not granted, say, changed nothing).
    #[must_use]
    pub fn acked_write(&self) -> bool {
        match (&self.call, &self.outcome) {
            (Call::Set { .. }, Observed::Ok) | (Call::Incr | Call::Append(_), Observed::Int(_)) => {
                true
            }
            (Call::Del, Observed::Int(n)) => *n > 0,
            _ => false,
        }
    }

    /// Whether its effect is open: no reply, or one that says nothing.
    #[must_use]
    pub fn open_ended(&self) -> bool {
        matches!(self.outcome, Observed::Unknown | Observed::Refused)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000);
        write!(f, "{:>10} ", ms(self.invoke_ns))?;
        match self.return_ns {
            NEVER => write!(f, "{:>10}", "...")?,
            at => write!(f, "{:>10}", ms(at))?,
        }
        write!(f, "  client {:<3} ", self.client)?;
        match &self.call {
            Call::Get => f.write_str("GET")?,
            Call::Del => f.write_str("DEL")?,
            Call::Incr => f.write_str("INCR")?,
            Call::Append(value) => write!(f, "APPEND {value}")?,
            Call::Set { value, nx, ttl_ms } => {
                write!(f, "SET {value}{}", if *nx { " NX" } else { "" })?;
                if *ttl_ms > 0 {
                    write!(f, " PX {ttl_ms}")?;
                }
            }
        }
        match &self.outcome {
            Observed::Unknown => f.write_str(" -> no reply"),
            Observed::Ok => f.write_str(" -> OK"),
            Observed::Nil => f.write_str(" -> nil"),
            Observed::Value(value) => write!(f, " -> {value}"),
            Observed::Int(n) => write!(f, " -> {n}"),
            Observed::Refused => f.write_str(" -> error"),
        }
    }
}

/// A connection that did not last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Break {
    /// Whose it was.
    pub client: u16,
    /// When it broke, in nanoseconds since the run's epoch.
    pub at_ns: u64,
    /// How.
    pub reason: String,
}

/// Everything the clients of one run did. Every key held nothing at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The keys, by the index operations name them with.
    pub keys: Vec<String>,
    /// How many clients there were; later readers have the numbers that follow.
    pub clients: u16,
    /// The seed they were started with.
    pub seed: u64,
    /// The operations, by `invoke_ns`.
    pub ops: Vec<Op>,
    /// The connections that broke.
    pub breaks: Vec<Break>,
    /// Whether recording stopped at its bound, and the clients with it.
    pub full: bool,
}

/// Why a history could not be kept or read back.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file failed.
    #[error("cannot {op} the history {path}: {source}")]
    File {
        /// What was being done.
        op: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It does not hold a history.
    #[error("{path} does not hold a history: {source}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl History {
    /// The part that concerns one key: what it takes to show its verdict again.
    #[must_use]
    pub fn only(&self, key: u16) -> History {
        History {
            keys: self.keys.clone(),
            clients: self.clients,
            seed: self.seed,
            ops: self
                .ops
                .iter()
                .filter(|op| op.key == key)
                .cloned()
                .collect(),
            breaks: self.breaks.clone(),
            full: self.full,
        }
    }

    /// The operations under way at some time from `from_ns` to `to_ns`, both since the epoch: what it takes to
    /// see what happened then.
    #[must_use]
    pub fn between(&self, from_ns: u64, to_ns: u64) -> History {
        let end = self.ops.partition_point(|op| op.invoke_ns < to_ns);
        History {
            keys: self.keys.clone(),
            clients: self.clients,
            seed: self.seed,
            ops: self.ops[..end]
                .iter()
                .filter(|op| op.return_ns > from_ns)
                .cloned()
                .collect(),
            breaks: self.breaks.clone(),
            full: self.full,
        }
    }

    /// Writes it to `path` as JSON.
    ///
    /// # Errors
    /// [`HistoryError::File`].
    pub fn dump(&self, path: &Path) -> Result<(), HistoryError> {
        let failed = |op| {
            move |source| HistoryError::File {
                op,
                path: path.into(),
                source,
            }
        };
        let mut file = BufWriter::new(std::fs::File::create(path).map_err(failed("create"))?);
        serde_json::to_writer(&mut file, self).map_err(|e| failed("write")(io::Error::from(e)))?;
        file.flush().map_err(failed("write"))
    }

    /// Writes the operations to `path`, each as one JSON object on a line of its own, by the time of their call: what
    /// other checkers of linearizability want to know. The keys are `client`, `kind` (`get`, `set`, `setnx`, `del`,
    /// `incr` or `append`), `key`, `value` (what was to be written, or null), `ttl_ms` (0: never), `outcome` (`ok`,
    /// `nil`, `value`, `int`, `unknown` or `refused`), `output` (of `value` and `int`, else null), and `call` and
    /// `return`, in nanoseconds. `return` is null where no reply came: it may have happened at any later time.
    ///
    /// # Errors
    /// [`HistoryError::File`].
    pub fn write_lines(&self, path: &Path) -> Result<(), HistoryError> {
        let failed = |op| {
            move |source| HistoryError::File {
                op,
                path: path.into(),
                source,
            }
        };
        let mut file = BufWriter::new(std::fs::File::create(path).map_err(failed("create"))?);
        for op in &self.ops {
            let (kind, value, ttl_ms) = match &op.call {
                Call::Get => ("get", None, 0),
                Call::Set { value, nx, ttl_ms } => {
                    (if *nx { "setnx" } else { "set" }, Some(value), *ttl_ms)
                }
                Call::Del => ("del", None, 0),
                Call::Incr => ("incr", None, 0),
                Call::Append(value) => ("append", Some(value), 0),
            };
            let (outcome, output) = match &op.outcome {
                Observed::Unknown => ("unknown", None),
                Observed::Ok => ("ok", None),
                Observed::Nil => ("nil", None),
                Observed::Value(value) => ("value", Some(value.to_string())),
                Observed::Int(n) => ("int", Some(n.to_string())),
                Observed::Refused => ("refused", None),
            };
            let line = serde_json::json!({
                "client": op.client,
                "kind": kind,
                "key": self.keys[usize::from(op.key)],
                "value": value.map(ToString::to_string),
                "ttl_ms": ttl_ms,
                "outcome": outcome,
                "output": output,
                "call": op.invoke_ns,
                "return": (op.return_ns != NEVER).then_some(op.return_ns),
            });
            writeln!(file, "{line}").map_err(failed("write"))?;
        }
        file.flush().map_err(failed("write"))
    }

    /// Reads back what [`History::dump`] wrote.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn read(path: &Path) -> Result<Self, HistoryError> {
        let file = std::fs::File::open(path).map_err(|source| HistoryError::File {
            op: "open",
            path: path.into(),
            source,
        })?;
        let history: Self = serde_json::from_reader(BufReader::new(file)).map_err(|source| {
            HistoryError::Format {
                path: path.into(),
                source,
            }
        })?;
        let sound =
            |op: &Op| op.invoke_ns <= op.return_ns && usize::from(op.key) < history.keys.len();
        if history.ops.iter().all(sound) {
            return Ok(history);
        }
        let what = "an operation ends before it begins, or names no key";
        let source = serde::de::Error::custom(what);
        Err(HistoryError::Format {
            path: path.into(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_its_string(text in "(w?[0-9.+-]{1,12})|[a-z]{0,6}") {
            prop_assert_eq!(Value::from_bytes(text.as_bytes()).to_string(), text);
        }

        #[test]
        fn tokens_and_numbers_are_short(client: u16, number: u32, n: i64) {
            for value in [Value::Token(client, number), Value::Int(n)] {
                prop_assert_eq!(Value::from_bytes(value.to_string().as_bytes()), value);
            }
        }
    }

    #[test]
    fn operations_are_compact() {
        assert!(size_of::<Op>() <= 80, "{} bytes", size_of::<Op>());
    }

    #[test]
    fn what_was_under_way_at_a_time_is_found() {
        let op = |invoke_ns, return_ns| Op {
            client: 0,
            key: 0,
            call: Call::Get,
            outcome: Observed::Nil,
            invoke_ns,
            return_ns,
        };
        let ops = [
            op(0, 4),
            op(1, NEVER),
            op(3, 6),
            op(6, 7),
            op(9, 12),
            op(10, 11),
        ];
        let history = History {
            ops: ops.to_vec(),
            ..History::default()
        };
        assert_eq!(history.between(5, 10).ops, ops[1..5]);
        assert_eq!(history.between(20, 30).ops, ops[1..2]);
    }

    #[test]
    fn each_operation_is_a_line_for_other_checkers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let op = |call, outcome, return_ns| Op {
            client: 3,
            key: 0,
            call,
            outcome,
            invoke_ns: 5,
            return_ns,
        };
        let history = History {
            keys: vec!["a".into()],
            ops: vec![
                op(Call::lease(Value::Token(1, 2), 60), Observed::Ok, 9),
                op(Call::Get, Observed::Value(Value::Int(7)), 9),
                op(Call::Incr, Observed::Unknown, NEVER),
            ],
            ..History::default()
        };
        history.write_lines(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let line = |kind: &str,
                    value: Option<&str>,
                    ttl_ms: u32,
                    out: (&str, Option<&str>),
                    at: Option<u64>| {
            serde_json::json!({
                "client": 3, "kind": kind, "key": "a", "value": value, "ttl_ms": ttl_ms,
                "outcome": out.0, "output": out.1, "call": 5, "return": at,
            })
        };
        assert_eq!(
            lines,
            [
                line("setnx", Some("w1.2"), 60, ("ok", None), Some(9)),
                line("get", None, 0, ("value", Some("7")), Some(9)),
                line("incr", None, 0, ("unknown", None), None),
            ]
        );
    }

    #[test]
    fn a_dumped_history_reads_back_and_a_broken_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        let op = |key, invoke_ns, return_ns| Op {
            client: 1,
            key,
            call: Call::lease(Value::Token(1, 2), 60_000),
            outcome: Observed::Unknown,
            invoke_ns,
            return_ns,
        };
        let mut history = History {
            keys: vec!["a".into(), "b".into()],
            clients: 2,
            ops: vec![op(0, 5, NEVER), op(1, 6, 9)],
            breaks: vec![Break {
                client: 1,
                at_ns: 7,
                reason: "reset".into(),
            }],
            ..History::default()
        };
        history.dump(&path).unwrap();
        assert_eq!(History::read(&path).unwrap(), history);
        assert_eq!(history.only(1).ops, [op(1, 6, 9)]);

        for broken in [op(2, 6, 9), op(1, 9, 6)] {
            history.ops[1] = broken;
            history.dump(&path).unwrap();
            assert!(matches!(
                History::read(&path),
                Err(HistoryError::Format { .. })
            ));
        }
    }
}
