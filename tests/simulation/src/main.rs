//! Whole installations of Tandem, simulated: hosts, their processes, clocks and disks, and the network between them.
//!
//! ```text
//!   main ──a process for each seed──▶ life ──▶ world: Tandem's own replicas, arbiter, viewservice, switch; clients
//!                                      │         │
//!                                      │         └─▶ kernel: threads, time, descriptors, TCP
//!                                      └─▶ faults          oracle ◀── what replicas tell, what clients are told
//! ```
//!
//! `tandem-simulation --seed N` lives one life; `--seeds N` so many, on as many processors as `--jobs` says.

mod breaks;
mod kernel;
mod life;
mod oracle;
mod report;
mod world;

use clap::Parser;
use life::Options;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use world::Break;

/// Longest time of the host's for one life.
const STUCK_S: u32 = 120;

/// Simulates installations of Tandem by seed.
#[derive(Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many lives, each with the next seed.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// How long faults are made in each, in simulated milliseconds.
    #[arg(long, default_value_t = 6000)]
    fault_ms: u64,
    /// A fault that is built in.
    #[arg(long)]
    broken: Option<Break>,
    /// Print all that is said, and the result of each life.
    #[arg(long, short)]
    verbose: bool,
    /// Go on after a life that failed.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The first use reads clocks, and looks what this processor can.
    let _ = vmm::soft::can_translate();
    let begun = Instant::now();
    let mut sums = Sums::default();
    let mut running = Vec::new();
    let mut next = 0;
    let mut failed = false;
    loop {
        while running.len() < args.jobs && next < args.seeds && (!failed || args.keep_going) {
            running.push(Child::start(args.seed + next, &args));
            next += 1;
        }
        if running.is_empty() {
            break;
        }
        let child = running.remove(0);
        let seed = child.seed;
        match child.wait() {
            Ok(line) => {
                sums.add(&line);
                if args.verbose {
                    println!("{line}");
                }
            }
            Err(said) => {
                failed = true;
                sums.failed += 1;
                println!("{said}");
                println!("seed {seed} failed; again: {}", again(seed, &args));
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{}", sums.told(seconds));
    ExitCode::from(u8::from(failed))
}

/// The command that lives a life again.
fn again(seed: u64, args: &Args) -> String {
    let broken = args.broken.map_or_else(String::new, |broken| {
        let name = clap::ValueEnum::to_possible_value(&broken).expect("it has a name");
        format!(" --broken {}", name.get_name())
    });
    format!(
        "cargo run --release -p tandem-simulation -- -v --seed {seed} --fault-ms {}{broken}",
        args.fault_ms
    )
}

/// A life in a process of its own.
struct Child {
    seed: u64,
    pid: nix::unistd::Pid,
    said: std::io::PipeReader,
    _folder: tempfile::TempDir,
}

impl Child {
    fn start(seed: u64, args: &Args) -> Self {
        let (said, out) = std::io::pipe().expect("a pipe");
        let folder = folder();
        let options = Options {
            seed,
            fault_ms: args.fault_ms,
            broken: args.broken,
            verbose: args.verbose,
        };
        // SAFETY: this process has one thread, so the child may do what it likes.
        let forked = unsafe { nix::unistd::fork() }.expect("a process");
        match forked {
            nix::unistd::ForkResult::Child => {
                // Its threads take turns: on one processor a turn is passed on fastest.
                let mut set = nix::sched::CpuSet::new();
                let processor = usize::try_from(seed).unwrap_or(0) % processors();
                if set.set(processor).is_ok() {
                    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
                }
                // SAFETY: both take plain numbers; the descriptor is open.
                unsafe {
                    libc::dup2(out.as_raw_fd(), 1);
                    libc::alarm(STUCK_S);
                }
                life::live(options, folder.path())
            }
            nix::unistd::ForkResult::Parent { child } => Self {
                seed,
                pid: child,
                said,
                _folder: folder,
            },
        }
    }

    /// The last line of a life that went well; all lines of one that did not.
    fn wait(mut self) -> Result<String, String> {
        let mut all = String::new();
        let read = self.said.read_to_string(&mut all);
        let status = nix::sys::wait::waitpid(self.pid, None);
        let last = all.lines().last().unwrap_or_default().to_owned();
        match (read, status) {
            (Ok(_), Ok(nix::sys::wait::WaitStatus::Exited(_, 0))) => {
                if all.lines().count() > 1 {
                    print!("{all}");
                }
                Ok(last)
            }
            (_, status) => Err(format!("{all}{status:?}")),
        }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// A folder for the files of a life: in memory, where there is room for it.
fn folder() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() {
        tempfile::tempdir_in(shm)
    } else {
        tempfile::tempdir()
    };
    made.expect("a folder")
}

/// What lives came to.
#[derive(Default)]
struct Sums {
    lives: u64,
    lost: u64,
    failed: u64,
    numbers: std::collections::BTreeMap<String, u64>,
}

impl Sums {
    fn add(&mut self, line: &str) {
        self.lives += 1;
        self.lost += u64::from(line.starts_with("lost"));
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        for pair in words.chunks_exact(2) {
            if let Ok(number) = pair[1].parse::<u64>() {
                *self.numbers.entry(pair[0].to_owned()).or_default() += number;
            }
        }
    }

    fn told(&self, seconds: f64) -> String {
        let number = |name: &str| self.numbers.get(name).copied().unwrap_or(0);
        let simulated = Duration::from_millis(number("ms")).as_secs();
        format!(
            "{} lives, {} of them lost with both hosts, {} failed; {} faults, {} flags won, {} joins, {} replies; \
             {simulated} simulated seconds in {seconds:.1} s: {:.0} a second",
            self.lives,
            self.lost,
            self.failed,
            number("faults"),
            number("failovers"),
            number("joins"),
            number("replies"),
            simulated as f64 / seconds.max(0.001),
        )
    }
}
