//! What a seed says about a pair.

use super::host::{HostPlan, Pause};
use check::rng::Rng;
use std::time::Duration;

/// The guests.
pub const GUESTS: [Guest; 5] = [
    Guest::Counter,
    Guest::Clock,
    Guest::Echo,
    Guest::Disk,
    Guest::Kv,
];

/// One of the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    Counter,
    Clock,
    Echo,
    Disk,
    Kv,
}

impl Guest {
    /// What the program calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Clock => "clock",
            Self::Echo => "echo",
            Self::Disk => "disk",
            Self::Kv => "kv",
        }
    }

    /// The guest of this name.
    pub fn called(name: &str) -> Self {
        let found = GUESTS.into_iter().find(|guest| guest.name() == name);
        found.unwrap_or_else(|| panic!("there is no guest called '{name}'"))
    }

    /// Where it serves clients, if it does.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Echo => Some(7),
            Self::Kv => Some(6379),
            _ => None,
        }
    }
}

/// A recording and its replay.
pub struct Plan {
    /// What all this follows from.
    pub seed: u64,
    /// The guest.
    pub guest: Guest,
    /// Its arguments, as the command line takes them.
    pub words: Vec<String>,
    /// Entries between two state digests.
    pub digest_every: u64,
    /// Entries there are at the very least.
    pub entries_min: u64,
    /// What else the host does.
    pub host: HostPlan,
}

impl Plan {
    /// What `seed` says.
    pub fn new(guest: Guest, seed: u64) -> Self {
        let mut rng = Rng::new(seed, guest as u64);
        let (args, entries_min) = arguments(guest, &mut rng);
        let words = args.iter().flat_map(|(key, value)| {
            let word = format!("{key}={value}");
            ["--arg".to_owned(), word]
        });
        Self {
            seed,
            guest,
            words: words.collect(),
            digest_every: 8 << rng.below(6),
            entries_min,
            host: host(&mut rng),
        }
    }

    /// A generator for what clients do.
    pub fn clients(&self) -> Rng {
        Rng::new(self.seed, 16 + self.guest as u64)
    }
}

/// The guest's arguments, and the entries they make at least.
fn arguments(guest: Guest, rng: &mut Rng) -> (Vec<(&'static str, u64)>, u64) {
    match guest {
        Guest::Counter => {
            let hz = [100, 250, 1000, 2000, 4000][rng.below(5) as usize];
            let ticks = 1 + hz / 10 + rng.below(hz / 10);
            (vec![("hz", hz), ("ticks", ticks)], ticks)
        }
        Guest::Clock => {
            let reads = 50 + rng.below(1500);
            let hz = 100 + rng.below(1900);
            let args = vec![
                ("reads", reads),
                ("rtc", rng.below(9)),
                ("hz", hz),
                ("ticks", rng.below(20)),
            ];
            (args, reads)
        }
        Guest::Disk => {
            let rounds = 3 + rng.below(40);
            (
                vec![("rounds", rounds), ("hz", 500 * rng.below(3))],
                rounds * 8,
            )
        }
        Guest::Echo => (vec![], 10),
        Guest::Kv => (vec![], 50),
    }
}

/// What else the host does.
fn host(rng: &mut Rng) -> HostPlan {
    let spinners = (0..rng.below(3)).map(|_| nice(rng)).collect();
    let machine_nice = nice(rng);
    let mut pause = || Pause {
        after: Duration::from_micros(rng.below(80_000)),
        length: Duration::from_micros(200 + rng.below(15_000)),
    };
    let pauses = [pause(), pause(), pause()];
    let count = rng.below(4) as usize;
    HostPlan {
        spinners,
        machine_nice,
        pauses: pauses[..count].to_vec(),
    }
}

/// How much nicer than the test something is: mostly nothing. At 5, a third of a CPU is left beside a
/// spinner; more would take time and show nothing new.
fn nice(rng: &mut Rng) -> i32 {
    [0, 0, 0, 1, 3, 5][rng.below(6) as usize]
}
