//! What the host did beside the benchmark: figures of a busy host are not to be trusted.

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// Processor time of the whole host, in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HostTime {
    busy: u64,
    all: u64,
}

/// A stretch of time, from when it was made on.
pub struct Others {
    host: Option<HostTime>,
    own_us: u64,
}

impl Others {
    /// From now on.
    #[must_use]
    pub fn watch() -> Self {
        Self {
            host: host_time(),
            own_us: own_us(),
        }
    }

    /// Percent of the host's processor time since then that neither this process took nor a child of it
    /// that has ended; none if the host does not tell.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        let (begun, now) = (self.host?, host_time()?);
        // USER_HZ, which is 100 on every x86 kernel.
        let own = (own_us() - self.own_us) / 10_000;
        Some(percent(begun, now, own))
    }
}

fn percent(begun: HostTime, now: HostTime, own: u64) -> u64 {
    let others = now.busy.saturating_sub(begun.busy).saturating_sub(own);
    others * 100 / now.all.saturating_sub(begun.all).max(1)
}

fn own_us() -> u64 {
    let us = |usage: Usage| (usage.user_time() + usage.system_time()).num_microseconds();
    let of = |who| getrusage(who).map_or(0, us);
    let all = of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN);
    u64::try_from(all).unwrap_or(0)
}

fn host_time() -> Option<HostTime> {
    parse(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// The first line: user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
fn parse(stat: &str) -> Option<HostTime> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = line
        .split_whitespace()
        .take(8)
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    let all = times.iter().sum();
    Some(HostTime {
        busy: all - times.get(3)? - times.get(4)?,
        all,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_are_not_busy_and_guests_count_once() {
        let stat = "cpu  100 10 20 300 50 1 2 17 90 5\ncpu0 1 2 3\n";
        assert_eq!(
            parse(stat),
            Some(HostTime {
                busy: 150,
                all: 500
            })
        );
        assert_eq!(parse("cpu  1 2 x"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn what_is_not_ours_is_the_others() {
        let begun = HostTime { busy: 50, all: 100 };
        let now = HostTime {
            busy: 150,
            all: 300,
        };
        assert_eq!(percent(begun, now, 60), 20);
        assert_eq!(percent(begun, now, 101), 0, "rounding is no others' time");
        assert_eq!(percent(begun, begun, 0), 0);
    }

    #[test]
    fn this_host_tells() {
        assert!(Others::watch().percent().is_some_and(|p| p <= 100));
    }
}
