//! What link a machine's log needs: `tandem log --sizing`.
//!
//! A recording has what would have gone to a backup, entry by entry, each with its time. A link that carries the
//! average is not enough: what waits for it holds back the outputs behind it.

use replay::{Arrival, Event, Kind};
use serde::Serialize;
use std::collections::BTreeMap;
use terminal::figures::mbit_s;
use terminal::table::{Align, Table};

/// Microseconds of the longer windows in which the most is looked for, and of the shorter.
const SECOND_US: u64 = 1_000_000;
const TENTH_US: u64 = 100_000;
/// What VMware's paper on VM-FT (section 2.4) multiplies the input by.
const PAPER: f64 = 1.2;

/// The most bytes that came within one window. Windows follow each other from the recording's begin on.
#[derive(Clone, Copy, Debug)]
struct Busiest {
    window_us: u64,
    window: u64,
    bytes: u64,
    most: u64,
}

impl Busiest {
    fn of(window_us: u64) -> Self {
        Self {
            window_us,
            window: 0,
            bytes: 0,
            most: 0,
        }
    }

    /// `bytes` more, no earlier than those before.
    fn add(&mut self, at_us: u64, bytes: u64) {
        let window = at_us / self.window_us;
        if window != self.window {
            (self.window, self.bytes) = (window, 0);
        }
        self.bytes += bytes;
        self.most = self.most.max(self.bytes);
    }

    fn mbit_s(&self) -> f64 {
        mbit_s(self.most, self.window_us)
    }
}

/// Counts a log's entries as they come.
#[derive(Debug)]
pub struct Counter {
    bytes: u64,
    network: u64,
    disk: u64,
    second: Busiest,
    tenth: Busiest,
    kinds: BTreeMap<Kind, (u64, Busiest)>,
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            bytes: 0,
            network: 0,
            disk: 0,
            second: Busiest::of(SECOND_US),
            tenth: Busiest::of(TENTH_US),
            kinds: BTreeMap::new(),
        }
    }
}

impl Counter {
    /// An entry of `bytes`, recorded `at_us`.
    pub fn add(&mut self, at_us: u64, event: &Event, bytes: u64) {
        self.bytes += bytes;
        self.second.add(at_us, bytes);
        self.tenth.add(at_us, bytes);
        let fresh = || (0, Busiest::of(SECOND_US));
        let (all, second) = self.kinds.entry(event.kind()).or_insert_with(fresh);
        *all += bytes;
        second.add(at_us, bytes);
        match event {
            Event::Arrival(Arrival::Frame(frame)) => self.network += frame.len() as u64,
            Event::Arrival(Arrival::DiskDone { data, .. }) => self.disk += data.len() as u64,
            _ => {}
        }
    }

    /// What they need, of a log that lasted so long.
    pub fn sizing(&self, us: u64) -> Sizing {
        let rates = self.kinds.iter().map(|(kind, (bytes, second))| {
            let rate = Rate {
                average: mbit_s(*bytes, us),
                second: second.mbit_s(),
            };
            (*kind, rate)
        });
        let (network, disk) = (mbit_s(self.network, us), mbit_s(self.disk, us));
        Sizing {
            average: mbit_s(self.bytes, us),
            second: self.second.mbit_s(),
            tenth: self.tenth.mbit_s(),
            network,
            disk,
            paper: PAPER * (network + disk),
            kinds: rates.collect(),
        }
    }
}

/// The bandwidth of a part of a log, in Mbit/s.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rate {
    /// Of all of it.
    average: f64,
    /// Of its busiest second.
    second: f64,
}

/// What link a log needs. All in Mbit/s.
#[derive(Clone, Debug, Serialize)]
pub struct Sizing {
    average: f64,
    /// Of the busiest second, and of the busiest tenth of one.
    second: f64,
    tenth: f64,
    /// What came to the guest by its network, and from its disk by the log.
    network: f64,
    disk: f64,
    /// What the paper's rule makes of that.
    paper: f64,
    kinds: BTreeMap<Kind, Rate>,
}

impl Sizing {
    /// The same in words.
    pub fn print(&self) {
        let columns = [
            ("kind", Align::Left),
            ("Mbit/s", Align::Right),
            ("busiest second", Align::Right),
        ];
        let mut table = Table::new(&columns);
        let row = |name: String, average: f64, second: f64| {
            [name, format!("{average:.3}"), format!("{second:.3}")]
        };
        for (kind, rate) in &self.kinds {
            table.row(row(kind.to_string(), rate.average, rate.second));
        }
        table.row(row("all".into(), self.average, self.second));
        terminal::say(&table.to_string());
        let Self {
            average,
            second,
            tenth,
            network,
            disk,
            paper,
            ..
        } = self;
        crate::sayln!(
            "its busiest second had {second:.1} Mbit/s, its busiest tenth of one {tenth:.1}:"
        );
        crate::sayln!("over a link that carries less, its outputs wait in such times");
        crate::sayln!(
            "{average:.2} Mbit/s on average; the paper's rule makes {paper:.2} of what came in:"
        );
        crate::sayln!("{PAPER} x ({network:.2} by the network + {disk:.2} from the disk)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize) -> Event {
        Event::Arrival(Arrival::Frame(vec![0; length]))
    }

    #[test]
    fn the_busiest_time_is_found_wherever_it_is() {
        let mut counter = Counter::default();
        // A quiet second, one with all in a tenth of it, one with as much spread out.
        counter.add(10, &frame(1000), 1025);
        for n in 0..10 {
            counter.add(SECOND_US + n, &frame(12_500), 12_500);
        }
        for n in 0..9 {
            counter.add(2 * SECOND_US + n * TENTH_US, &Event::Progress, 12_500);
        }
        let sizing = counter.sizing(3 * SECOND_US);
        assert_eq!((sizing.second, sizing.tenth), (1.0, 10.0));
        assert_eq!(sizing.kinds[&Kind::Progress].second, 0.9);
        assert_eq!(sizing.network, mbit_s(126_000, 3 * SECOND_US));
        assert_eq!(sizing.paper, 1.2 * sizing.network);
    }

    #[test]
    fn a_log_of_no_time_at_all_has_no_average() {
        let mut counter = Counter::default();
        counter.add(0, &frame(60), 80);
        assert_eq!(counter.sizing(0).average, 0.0);
    }
}
