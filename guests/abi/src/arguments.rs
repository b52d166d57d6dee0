//! What each guest takes on its command line: the one list, by which the host refuses what a guest could only
//! panic at. The defaults are the guests' own.

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A decimal number between these, both included.
    Number(u64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// An IPv4 address.
    Address,
    /// An IPv4 address and the length of its network's prefix, as 10.77.0.2/24.
    Network,
}

/// An argument: `key=value`.
pub type Argument = (&'static str, Value);

/// The rate of the tick, in 1/s; the PIT clips it.
const HZ: Argument = ("hz", Value::Number(0, u32::MAX as u64));
const PORT: Argument = ("port", Value::Number(1, u16::MAX as u64));
/// Connections at once. Each has buffers in the guest's memory, which may end before.
const CONNS: Argument = ("conns", Value::Number(1, u16::MAX as u64));
/// A time, which the guest counts in nanoseconds.
const MS: Argument = ("ms", Value::Number(0, u64::MAX / 1_000_000));
const MODE: Argument = ("mode", Value::Word(&["read", "write", "mixed"]));
/// What a guest that uses the network takes beside its own.
const NETWORK: [Argument; 3] = [HZ, ("ip", Value::Network), ("gw", Value::Address)];

const fn count(key: &'static str) -> Argument {
    (key, Value::Number(0, u64::MAX))
}

/// Each guest's arguments, in one or two parts.
const GUESTS: [(&str, [&[Argument]; 2]); 6] = [
    ("counter", [&[HZ, count("ticks"), count("iterations")], &[]]),
    (
        "clock",
        [&[HZ, count("ticks"), count("reads"), count("rtc")], &[]],
    ),
    ("echo", [&[PORT, CONNS, count("frames")], &NETWORK]),
    ("disk", [&[HZ, count("rounds"), MS, MODE], &[]]),
    ("kv", [&[PORT, CONNS], &NETWORK]),
    ("reset", [&[HZ, count("resets"), count("ticks")], &[]]),
];

/// The arguments of the guest called `guest`; `None` if none is called so.
#[must_use]
pub fn of(guest: &str) -> Option<impl Iterator<Item = Argument> + Clone> {
    let (_, parts) = GUESTS.iter().find(|(name, _)| *name == guest)?;
    Some(parts.iter().flat_map(|part| part.iter().copied()))
}
