//! A busy machine that is given a new backup again and again, each time at another moment of its run.
//!
//! A short version runs with the tests. `TANDEM_JOINS=1000 cargo test --release -p tandem-replica --test joins --
//! --nocapture` runs a long one and prints what the joins cost; `TANDEM_SEED` repeats one, `TANDEM_MIB` is the
//! machine's memory, `TANDEM_WIRE_MIB_S` is what the wire to each new backup takes a second, and of how many joins one
//! is waited for until all memory was compared is `TANDEM_PROVED_OF` (0: none is).

mod lives;

use check::latencies::quantile;
use check::resp::{Client, Reply};
use check::rng::Rng;
use lives::{LIMIT, Life, NET, Served, Site, blueprint, cost, through, value};
use replica::HostPort;
use replica::machine::EngineChoice;
use socket2::SockRef;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testing::numbers::number;

/// So many values, over and over: some 16 MiB are written in turn.
const VALUES: u64 = 1_000;

/// Writes values in turn, and reads each back before it is written again.
struct Writer {
    writes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(server: SocketAddr) -> Self {
        let (writes, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (written, stopped) = (writes.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(server, LIMIT, LIMIT).unwrap();
            let mut number = 0;
            while !stopped.load(SeqCst) {
                let key = format!("key{}", number % VALUES).into_bytes();
                if let Some(before) = number.checked_sub(VALUES) {
                    let said = client.command(&[b"GET", &key]).unwrap();
                    assert!(said == Reply::Bulk(Some(value(before))), "{before}");
                }
                let said = client.command(&[b"SET", &key, &value(number)]).unwrap();
                assert_eq!(said, Reply::Simple("OK".into()));
                number += 1;
                written.store(number, SeqCst);
            }
        });
        Self {
            writes,
            stop,
            thread,
        }
    }

    /// Waits until it has written `more` values.
    fn wait(&self, more: u64) {
        let until = self.writes.load(SeqCst) + more;
        while self.writes.load(SeqCst) < until {
            assert!(!self.thread.is_finished(), "a client is wrong");
            std::thread::yield_now();
        }
    }

    /// Values it writes a second while `something` is done.
    fn rate(&self, something: impl FnOnce()) -> f64 {
        let (writes, begun) = (self.writes.load(SeqCst), Instant::now());
        something();
        (self.writes.load(SeqCst) - writes) as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Where `backup` is found over a wire that takes `mib_s` MiB a second on the way there.
fn slow_wire(backup: &HostPort, mib_s: u64) -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // A wire holds less than the system's buffers.
    let little = SockRef::from(&listener).set_recv_buffer_size(64 << 10);
    little.unwrap();
    through(listener, backup, move |from, to| {
        pass_slowly(from, to, mib_s)
    })
}

/// Passes on what comes, a moment later each time: as long as it is on the wire.
fn pass_slowly(mut from: &TcpStream, mut to: &TcpStream, mib_s: u64) -> io::Result<()> {
    let mut some = [0; 16 << 10];
    let mut free = Instant::now();
    loop {
        let count = from.read(&mut some)?;
        if count == 0 {
            return Ok(());
        }
        free = free.max(Instant::now()) + Duration::from_secs(count as u64) / (mib_s << 20) as u32;
        std::thread::sleep(free.saturating_duration_since(Instant::now()));
        to.write_all(&some[..count])?;
    }
}

/// Hands a machine over `joins` times, from host to host, and prints what it cost.
fn hand_on(engine: EngineChoice, joins: u64, seed: u64) {
    let mut rng = Rng::new(seed, 0);
    let mut site = Site::new();
    let served = Served::start(&mut site);
    let mut machine = blueprint("kv", NET);
    let mib = number("TANDEM_MIB").map_or(256, |mib| u32::try_from(mib).expect("so many"));
    machine.config.memory_mib = mib;
    let mut backup = site.backup_of(engine);
    let address = backup.address();
    let mut primary = site.primary_of(machine, address, engine);
    backup.hears("Backup");
    let writer = Writer::start(served.at());
    writer.wait(VALUES);
    let mut costs: [Vec<u64>; 3] = Default::default();
    let (mut speeds, mut times) = (Vec::new(), Vec::new());
    let wire = number("TANDEM_WIRE_MIB_S");
    let proved_of = number("TANDEM_PROVED_OF").unwrap_or(2);
    for join in 1..=joins {
        writer.wait(rng.below(200));
        primary.replica.handle().halt("the host died");
        backup.hears("Live");
        writer.wait(rng.below(200));
        let alone = writer.rate(|| writer.wait(100));
        let mut next: Life = site.backup_of(engine);
        let address = next.address();
        let address = wire.map_or_else(|| address.clone(), |mib_s| slow_wire(&address, mib_s));
        let mut told = String::new();
        let begun = Instant::now();
        let meanwhile = writer.rate(|| {
            backup.replica.handle().protect(address);
            told = backup.hears("Protected");
        });
        times.push(begun.elapsed().as_millis() as u64);
        speeds.push((meanwhile * 100.0 / alone) as u64);
        for (all, one) in costs.iter_mut().zip(cost(&told)) {
            all.push(one);
        }
        next.hears("Welcomed");
        // Not each time: a machine may be lost before, and it takes some seconds. With more memory it takes minutes.
        if proved_of > 0 && rng.below(proved_of) == 0 && mib <= 256 {
            backup.hears("Proved");
        }
        assert!(primary.ends().is_err());
        if join % 100 == 0 {
            eprintln!("{join} joins ({engine:?})");
        }
        (primary, backup) = (backup, next);
    }
    writer.wait(VALUES);
    writer.stop.store(true, SeqCst);
    writer.thread.join().unwrap();
    primary.replica.handle().stop();
    assert_eq!(
        (primary.ends(), backup.ends()),
        (Ok(()), Ok(())),
        "seed {seed}"
    );
    let [still, sent, full] = costs
        .each_mut()
        .map(|all| [500, 990, 1000].map(|of| quantile(all, of)));
    println!(
        "{joins} joins of a busy machine of {mib} MiB ({engine:?}): it stood still for {} us in the median, {} at p99, \
         {} at most; {} KiB sent in the median, {} not zero; protected after {} ms in the median, {} at p99; \
         meanwhile it ran at {} % of its speed in the median",
        still[0],
        still[1],
        still[2],
        sent[0] >> 10,
        full[0] >> 10,
        quantile(&mut times, 500),
        quantile(&mut times, 990),
        quantile(&mut speeds, 500),
    );
}

fn hand_on_as_asked(engine: EngineChoice) {
    let (joins, seed) = (
        number("TANDEM_JOINS").unwrap_or(3),
        number("TANDEM_SEED").unwrap_or(1),
    );
    hand_on(engine, joins, seed);
}

#[test]
fn a_busy_machine_is_handed_on_at_any_moment() {
    hand_on_as_asked(EngineChoice::Soft);
}

#[test]
fn a_busy_machine_on_kvm_is_handed_on_at_any_moment() {
    if let Err(why) = vmm::kvm::Host::open() {
        return testing::skipped::skip_this(&why);
    }
    hand_on_as_asked(EngineChoice::Kvm);
}
