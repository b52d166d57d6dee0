//! Whether this host has more to do than it can.

use std::fmt;

/// What wants to run on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Tasks that run or want to: now, or on average over the last minute, whichever is more.
    tasks: u64,
    cpus: u64,
}

/// The load now; `None` if the system does not say.
pub fn now() -> Option<Load> {
    let cpus = std::thread::available_parallelism().ok()?.get() as u64;
    Load::parse(&std::fs::read_to_string("/proc/loadavg").ok()?, cpus)
}

impl Load {
    /// Understands `/proc/loadavg` (proc(5)): three averages, tasks that want to run now out of all, a
    /// process id.
    pub fn parse(text: &str, cpus: u64) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        // Hundredths are no matter.
        let average: u64 = words.next()?.split('.').next()?.parse().ok()?;
        let running: u64 = words.nth(2)?.split('/').next()?.parse().ok()?;
        let tasks = average.max(running);
        Some(Self { tasks, cpus })
    }

    /// Whether a demo may fail for it: its replicas and clients are themselves three or four tasks that
    /// want to run.
    pub fn is_too_much(&self) -> bool {
        self.tasks > 2 * self.cpus
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tasks, cpus } = self;
        write!(f, "{tasks} tasks want to run on {cpus} CPUs")
    }
}
