//! The command line.

mod cluster;

pub use cluster::{DownArgs, DrainArgs, HostArgs, LogsArgs, ServiceArgs, StatusArgs, UpArgs};

use crate::look::point::Point;
use crate::look::trace::Source;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use replay::ClockKind;
use replica::machine::EngineChoice;
use replica::outside::NetPlug;
use replica::{DieAt, DiskReads, HostPort};
use std::net::Ipv4Addr;
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use tls::{Security, Tls, TlsError};
use vmm::backends::switch::ForwardedPort;
use vmm::cpu::CpuModel;
use vmm::machine::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, TscMode, parse_mac};
use vmm::processor::HostProcessor;
use vmm::soft::Executor;

/// A fault-tolerant virtual machine: a guest outlives its host.
#[derive(Debug, Parser)]
#[command(
    name = "tandem",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    /// How software engines run what is run often: translate (as host code) or interpret. It changes nothing
    /// but their speed
    #[arg(long, global = true, default_value_t = Executor::Translate, help_heading = "Engine")]
    pub executor: Executor,
    /// Tell of each port and address a Linux guest touches where nothing is, once (64 places at most)
    #[arg(long, global = true, help_heading = "Engine")]
    pub report_absent: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one guest, without replication
    Run(RunArgs),
    /// Run one guest and record everything it could not have computed
    Record(RecordArgs),
    /// Re-execute a recording exactly, every entry and digest checked
    Replay(ReplayArgs),
    /// What the guest's kernel did in a recording, by an exact replay: a profile, system calls, switches of tasks
    Trace(TraceArgs),
    /// What is in a log, by kind of entry
    Log(LogArgs),
    /// What replicas noted of a failover, as a page for a browser
    Timeline(TimelineArgs),
    /// Where two logs first differ: exit code 0 only if nowhere
    Diff(DiffArgs),
    /// Run a guest as primary, replicated to a backup that listens
    Primary(PrimaryArgs),
    /// Follow a primary, and go live when it dies
    Backup(BackupArgs),
    /// Give a machine that runs alone on this host a new backup
    Protect(ProtectArgs),
    /// Move a machine that runs alone on this host to another one
    Move(MoveArgs),
    /// Have a machine's primary, on this host, and its backup change roles
    Failover(FailoverArgs),
    /// Make the cluster's certificates: its authority, and an identity for each member
    Init(InitArgs),
    /// Serve test-and-set flags to replicas
    Arbiter(ArbiterArgs),
    /// Keep the views: who is primary and backup of each machine
    Viewservice(ViewserviceArgs),
    /// Run the replicas that a viewservice gives this host, each in a process that outlives this one
    Host(HostArgs),
    /// Start a machine on two hosts of a viewservice that have room for it
    Up(UpArgs),
    /// Ask a viewservice for machines and hosts
    Status(StatusArgs),
    /// What a machine's replicas said on their hosts: the guest's console, events, errors
    Logs(LogsArgs),
    /// Have all replicas leave a host, one by one
    Drain(DrainArgs),
    /// Have a protected machine stopped, by its viewservice
    Down(DownArgs),
    /// On this machine alone: a pair, real clients, kill -9, and the verdict
    Demo(DemoArgs),
    /// On this machine alone: three hosts, real clients, and faults of every kind for an hour, or as long as asked
    Chaos(ChaosArgs),
    /// Measure fault tolerance against none: speed, log bandwidth, latency
    Bench(BenchArgs),
    /// Build a bootable Linux guest from Debian packages, without root
    Image(ImageArgs),
    /// What this host can do, and why not
    Doctor(DoctorArgs),
    /// Write the manual's pages and completions for shells into a folder
    #[command(hide = true)]
    Generate(GenerateArgs),
}

/// `tandem generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The folder; made if it is not there
    pub to: PathBuf,
}

/// MiB of memory a machine may have.
const MEMORY_RANGE: RangeInclusive<i64> = MEMORY_MIB_MIN as i64..=MEMORY_MIB_MAX as i64;

/// The machine.
#[derive(Clone, Debug, Args)]
pub struct MachineArgs {
    /// A built-in guest (counter, clock, echo, disk, kv, reset), or a file: an ELF64 image, a Linux kernel,
    /// what `tandem image` makes, or a state that `tandem replay --save` made
    pub guest: String,
    /// A Linux kernel's initial file system
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// A Linux kernel's command line [default: console=ttyS0]; for what `tandem image` makes, more of it
    #[arg(long, value_name = "TEXT")]
    pub append: Option<String>,
    /// Guest memory in MiB [default: 64, or what the image asks for]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(MEMORY_RANGE))]
    pub memory: Option<u32>,
    /// Arguments for the guest, as key=value; may be repeated
    #[arg(long = "arg", value_name = "KEY=VALUE")]
    pub args: Vec<String>,
    /// CPU model: v1 (x86-64, to SSE2) or v2 (x86-64-v2, to SSE4.2); there is no v3: AVX is not offered
    /// [default: v1]
    #[arg(long)]
    pub cpu: Option<CpuModel>,
    /// Instruction clock: blocks (guests that count for themselves) or instructions (software engine, or
    /// single-step where KVM can) [default: blocks for the built-in guests, instructions for Linux]
    #[arg(long)]
    pub clock: Option<ClockKind>,
    /// What runs the guest: auto takes KVM where it can stop this guest exactly, else the software engine
    #[arg(long, default_value = "auto", value_name = "ENGINE", value_parser = engine())]
    pub engine: EngineChoice,
    /// Guest time: logged (each value read is in the log) or derived (from the instruction clock, with
    /// anchors on arrivals) [default: derived where the software engine counts instructions]
    #[arg(long, value_name = "MODE")]
    pub tsc: Option<TscMode>,
    /// When the guest resets the machine: start it over, or end with status 3321 [default: restart; end
    /// for what `tandem image` makes, which resets when it cannot go on]
    #[arg(long, value_name = "WHAT")]
    pub on_reset: Option<OnReset>,
    /// Hardware address of the guest's network device [default: 52:54:00:7a:4d:01]
    #[arg(long, value_parser = parse_mac)]
    pub mac: Option<[u8; 6]>,
    /// A raw disk image for the guest
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// The TCP ports its image exposes, once that was read
    #[arg(skip)]
    pub ports: Vec<u16>,
    /// Where the network device is plugged in: tap:NAME or switch:SOCKET
    #[arg(long, value_name = "WHERE")]
    pub net: Option<NetPlug>,
    /// Send what the guest prints nowhere
    #[arg(long)]
    pub quiet: bool,
}

/// What becomes of a machine that its guest resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnReset {
    /// It starts over: memory cleared, the image loaded again
    Restart,
    /// It ends, with status 3321
    End,
}

/// Which engine, by name.
fn engine() -> impl TypedValueParser<Value = EngineChoice> {
    PossibleValuesParser::new(EngineChoice::NAMES.map(|(name, _)| name)).map(|name| {
        let named = EngineChoice::NAMES.iter().find(|(known, _)| *known == name);
        named.expect("one of the names").1
    })
}

/// Most seconds of a part of a run: 30 years.
const SECONDS_MAX: f64 = 1e9;

/// What the demo is told of its arbiter.
fn demo_arbiter(text: &str) -> Result<String, String> {
    let is_address = ["file:", "tcp:", "etcd:"]
        .iter()
        .any(|kind| text.starts_with(kind));
    match text {
        "file" | "server" => Ok(text.into()),
        _ if is_address => Ok(text.into()),
        _ => Err("it takes file, server, file:DIR, tcp:HOST:PORT or etcd:HOST:PORT".into()),
    }
}

/// A time more than none.
fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("it takes seconds, more than 0 and at most {SECONDS_MAX}, as 0.5");
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return Err(wrong());
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(wrong()),
    }
}

/// A time with its unit: seconds, minutes or hours.
fn duration(text: &str) -> Result<Duration, String> {
    let unit_s = match text.chars().last() {
        Some('s') => 1.0,
        Some('m') => 60.0,
        Some('h') => 3600.0,
        _ => return Err("it takes a number with its unit, as 90s, 5m or 2h".into()),
    };
    let number: f64 = text[..text.len() - 1]
        .parse()
        .map_err(|_| "it takes a number with its unit, as 90s, 5m or 2h".to_string())?;
    seconds(&(number * unit_s).to_string())
}

/// `tandem run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Forward a TCP port of this host to the guest, over a switch in this process; HOST:GUEST; may be repeated.
    /// A container's image has those forwarded that it exposes, unless this or --net says otherwise
    #[arg(long, value_name = "PORT[:PORT]", conflicts_with = "net")]
    pub forward: Vec<ForwardedPort>,
    /// Forward none of the ports that a container's image exposes
    #[arg(long, conflicts_with = "forward")]
    pub no_forward: bool,
    /// The guest's address for --forward, if it is not that of its argument ip=
    #[arg(long, value_name = "ADDRESS", requires = "forward")]
    pub guest_ip: Option<Ipv4Addr>,
    /// Type to the guest's console (on a terminal each key goes to it; Ctrl-A x ends the machine)
    #[arg(long)]
    pub input: bool,
}

/// `tandem record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// How it runs
    #[command(flatten)]
    pub run: RunArgs,
    /// The log file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Entries between two state digests; 0 for none
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub digest_every: u64,
    /// Let the machine run unrecorded for so long, and begin with its state there (fractions too: 0.5)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub after: Option<Duration>,
    /// End the recording after so long; the machine runs on unrecorded
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    pub lasts: Option<Duration>,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The log file
    pub log: PathBuf,
    /// Show what the guest prints
    #[arg(long)]
    pub console: bool,
    /// What runs the guest: auto takes KVM where it can stop this guest exactly, else the software engine
    #[arg(long, default_value = "auto", value_name = "ENGINE", value_parser = engine())]
    pub engine: EngineChoice,
    /// The guest's image, if it is not where the recording found it
    #[arg(long, value_name = "FILE")]
    pub image: Option<String>,
    /// Its initrd, likewise
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// Replay to this point and show what is there: a clock value, entry:N, or end (software engine)
    #[arg(long, value_name = "POINT")]
    pub at: Option<Point>,
    /// With --at: write the machine there to an ELF core file, which crash, drgn and gdb read
    #[arg(long, value_name = "FILE", requires = "at", conflicts_with = "gdb")]
    pub core: Option<PathBuf>,
    /// Replay to this point, a clock value or entry:N, and save the machine there, or where it next can be
    #[arg(long, value_name = "POINT", requires = "save", conflicts_with_all = ["at", "gdb", "pcap", "cast", "console"])]
    pub to: Option<Point>,
    /// Where to: a file that `tandem run` goes on from, live
    #[arg(long, value_name = "STATE", requires = "to")]
    pub save: Option<PathBuf>,
    /// With --save: a copy of the guest's disk as it was when the recording began, brought up to the point
    #[arg(long, value_name = "COPY", requires = "save")]
    pub disk: Option<PathBuf>,
    /// Wait for gdb on 127.0.0.1:PORT, which may look at everything, forward and backward (software
    /// engine); with --at, from there
    #[arg(long, value_name = "PORT")]
    pub gdb: Option<u16>,
    /// Write the guest's network traffic to a capture file (pcapng), which Wireshark reads
    #[arg(long, value_name = "FILE", conflicts_with_all = ["at", "gdb"])]
    pub pcap: Option<PathBuf>,
    /// Write what the guest printed, and when, to an asciicast file, which asciinema plays
    #[arg(long, value_name = "FILE", conflicts_with_all = ["at", "gdb"])]
    pub cast: Option<PathBuf>,
    /// With --console: print it no faster than so many times as it was recorded
    #[arg(long, value_name = "TIMES", requires = "console", conflicts_with_all = ["at", "gdb"])]
    pub speed: Option<NonZeroU32>,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The log file
    pub log: PathBuf,
    /// Where the kernel's symbols are from: a System.map or a vmlinux; without a file, the guest's own memory
    #[arg(long, value_name = "SOURCE", num_args = 0..=1, default_value = "memory", default_missing_value = "memory")]
    pub symbols: Source,
    /// Instructions between two looks at what runs
    #[arg(long, value_name = "N", default_value = "100000")]
    pub every: NonZeroU64,
    /// Write the stacks to a file, a line each, of which flame graphs are made
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,
    /// Write them to a file for pprof
    #[arg(long, value_name = "FILE")]
    pub pprof: Option<PathBuf>,
    /// Write which task ran when, its system calls, interrupts and page faults to a trace for the Perfetto viewer
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// The guest's image, if it is not where the recording found it
    #[arg(long, value_name = "FILE")]
    pub image: Option<String>,
    /// Its initrd, likewise
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The log file
    pub log: PathBuf,
    /// Print every entry
    #[arg(long)]
    pub entries: bool,
    /// Write the entries to a trace for the Perfetto viewer
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// Say what link such a machine needs to its backup
    #[arg(long, conflicts_with = "entries")]
    pub sizing: bool,
    /// One JSON object on stdout instead of words
    #[arg(long, conflicts_with = "entries")]
    pub json: bool,
}

/// `tandem timeline`.
#[derive(Debug, Args)]
pub struct TimelineArgs {
    /// Events files, of replicas on one host (--events of tandem primary and tandem backup)
    #[arg(required = true)]
    pub events: Vec<PathBuf>,
    /// Write a page for a browser: one file, with nothing from elsewhere
    #[arg(
        short,
        long,
        value_name = "FILE.html",
        required_unless_present = "perfetto"
    )]
    pub output: Option<PathBuf>,
    /// Write a trace for the Perfetto viewer
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// With --perfetto: the primary's counters, too: lag, and what waits in the gate (its --metrics)
    #[arg(long, value_name = "FILE", requires = "perfetto")]
    pub metrics: Option<PathBuf>,
}

/// `tandem diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// One log file
    pub left: PathBuf,
    /// The other
    pub right: PathBuf,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// Milliseconds of silence after which one replica suspects the other, unless told otherwise.
const SUSPECT_MS: u32 = 300;
/// What it may be: two heartbeats at least ([`logchannel::Settings::check`]), a minute at most.
const SUSPECT_RANGE: RangeInclusive<i64> = 40..=60_000;

/// How connections to other machines are protected.
#[derive(Clone, Debug, Default, Args)]
pub struct SecurityArgs {
    /// Speak TLS, and only with members of the cluster: the folder with this one's identity, which `tandem init`
    /// made. Without it there is plaintext, within this machine only
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// Speak plaintext to other machines, too: anyone on the way can read and forge it
    #[arg(long, conflicts_with = "tls")]
    pub insecure: bool,
}

impl SecurityArgs {
    /// What they come to; certificates are read.
    ///
    /// # Errors
    /// If the folder holds no identity.
    pub fn open(&self) -> Result<Security, TlsError> {
        Ok(match &self.tls {
            Some(folder) => Security::Tls(Tls::open(folder)?),
            None if self.insecure => Security::Insecure,
            None => Security::Loopback,
        })
    }
}

/// `tandem init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The authority's folder. What members get is in folders below it, to be copied to their machines
    #[arg(long, default_value = "tandem-cluster", value_name = "DIR")]
    pub dir: PathBuf,
    /// Make the identity of this host (without one of --host, --service, --operator: make the authority)
    #[arg(long, value_name = "NAME", requires = "vm", group = "member")]
    pub host: Option<String>,
    /// A machine of which that host may run replicas; may be repeated. '*' stands for every one
    #[arg(long, value_name = "VM", requires = "host")]
    pub vm: Vec<String>,
    /// Make the identity of an arbiter or a viewservice
    #[arg(long, value_name = "NAME", group = "member")]
    pub service: Option<String>,
    /// Make the identity of an operator, who may ask arbiter and viewservice for anything
    #[arg(long, value_name = "NAME", group = "member")]
    pub operator: Option<String>,
    /// Replace the one there is
    #[arg(long, requires = "member")]
    pub renew: bool,
    /// How long it holds [default: 365; the authority 3650]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: Option<u32>,
}

/// What primary and backup have in common.
#[derive(Clone, Debug, Args)]
pub struct ReplicaArgs {
    /// The machine's name, the same on both sides and with the arbiter
    #[arg(long, default_value = "vm", value_name = "NAME")]
    pub vm: String,
    /// The arbiter: file:DIR on storage both share, tcp:HOST:PORT (a `tandem arbiter`), or
    /// etcd:HOST:PORT[,HOST:PORT...] with ,ca=FILE ,cert=FILE ,key=FILE ,user=NAME ,password-file=FILE ,prefix=KEYS
    #[arg(long, value_name = "WHERE")]
    pub arbiter: String,
    /// How connections are protected
    #[command(flatten)]
    pub security: SecurityArgs,
    /// A viewservice to report to
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::to_connect)]
    pub viewservice: Option<HostPort>,
    /// This host's name in views [default: the name in its certificate, or host]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Bound of the log buffer in MiB
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub log_buffer: u32,
    /// Milliseconds of silence after which the other side is suspected
    #[arg(long, default_value_t = SUSPECT_MS, value_name = "MS", value_parser = clap::value_parser!(u32).range(SUSPECT_RANGE))]
    pub suspect_ms: u32,
    /// Most MiB a second on the wire of a running machine's memory, and disk, on its way to a new backup [default: as fast as it goes]
    #[arg(long, value_name = "MIB")]
    pub handover_mib_s: Option<NonZeroU32>,
    /// The disk is this replica's own, not shared: the other one has a copy. A new backup's is overwritten
    #[arg(long, requires = "disk")]
    pub disk_copy: bool,
    /// Write events to this file, one JSON object a line; at 16 MiB it becomes FILE.1 and is begun anew
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Write the primary's counters to this file, four times a second, in the same way
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,
    /// Tell what this replica is, and its counters, by HTTP: /metrics for Prometheus, and /healthz
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::to_listen)]
    pub metrics_listen: Option<HostPort>,
    /// The folder for the socket by which `tandem protect`, `move` and `failover` speak to this replica; made
    /// if it is not there [default: $XDG_RUNTIME_DIR/tandem, for root without that /run/tandem]
    #[arg(long, value_name = "DIR")]
    pub control: Option<PathBuf>,
    /// It was started by a supervisor, and holds this file as long as it lives
    #[arg(long, hide = true, value_name = "FILE")]
    pub supervised: Option<PathBuf>,
    /// Kill this process (SIGKILL) once the entry with this index is sent and its output in the gate, or at a
    /// step of a join; for tests
    #[arg(long, hide = true, value_name = "WHERE")]
    pub die_at: Option<DieAt>,
}

/// `tandem primary`.
#[derive(Debug, Args)]
pub struct PrimaryArgs {
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Where the backup listens
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::to_connect)]
    pub backup: HostPort,
    /// The replica
    #[command(flatten)]
    pub replica: ReplicaArgs,
    /// Bound of execution lag: the guest is slowed gradually from half of it on, while its backup is that
    /// far behind
    #[arg(long, default_value_t = 500, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=60_000))]
    pub lag_max_ms: u32,
    /// The backup's host, as the viewservice knows it (if not given, it chooses one)
    #[arg(long, value_name = "NAME", requires = "viewservice")]
    pub backup_name: Option<String>,
    /// Begin where the viewservice has named the machine's first view; for `tandem host`
    #[arg(long, hide = true, requires = "viewservice")]
    pub ordered: bool,
    /// With --ordered: no replica of an earlier life of the machine is left, says its operator
    #[arg(long, hide = true, requires = "ordered")]
    pub anew: bool,
    /// Begin in this view, the next by the machine's flags: says that no replica of it runs any more,
    /// though none marked its end
    #[arg(long, value_name = "N", conflicts_with = "viewservice", value_parser = clap::value_parser!(u64).range(1..))]
    pub view: Option<u64>,
    /// Stop the guest as soon as this side has the flag, and end with code 1, if the backup is lost before it
    /// has acked anything
    #[arg(long)]
    pub require_backup: bool,
    /// Where the backup has from what the guest reads from the disk: log, or backup (it reads the disk itself)
    #[arg(long, default_value_t, requires = "disk", value_name = "WHERE")]
    pub disk_read: DiskReads,
    /// Let two KVM hosts with processors of different makers be a pair: says that the guest does nothing on
    /// which they differ
    #[arg(long)]
    pub unlike_hosts: bool,
    /// Where to wait as a backup after `tandem failover` [default: a free port of the address that reached the backup]
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::to_listen)]
    pub listen: Option<HostPort>,
    /// Tell the backup that this host's processor is this one, MAKER:FAMILY:MODEL:STEPPING; for tests
    #[arg(long, hide = true, value_name = "PROCESSOR")]
    pub host_processor: Option<HostProcessor>,
    /// Longest time the guest's end waits for its console's reader; for tests
    #[arg(long, hide = true, value_name = "MS")]
    pub last_words_ms: Option<u64>,
}

/// `tandem backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to listen for the primary
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::to_listen)]
    pub listen: HostPort,
    /// The replica
    #[command(flatten)]
    pub replica: ReplicaArgs,
    /// Where the network device is plugged in when live: tap:NAME or switch:SOCKET
    #[arg(long, value_name = "WHERE")]
    pub net: Option<NetPlug>,
    /// The disk image, on storage shared with the primary; with --disk-copy one of this host's
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// What runs the guest: auto takes KVM where it can stop this guest exactly, else the software engine
    #[arg(long, default_value = "auto", value_name = "ENGINE", value_parser = engine())]
    pub engine: EngineChoice,
    /// Guest images are looked for here if the primary's path is not there
    #[arg(long, value_name = "FILE")]
    pub image: Option<String>,
    /// And their initrds here
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// Send what the guest prints nowhere
    #[arg(long)]
    pub quiet: bool,
}

/// `tandem arbiter`.
#[derive(Debug, Args)]
pub struct ArbiterArgs {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7700", value_name = "HOST:PORT", value_parser = HostPort::to_listen)]
    pub listen: HostPort,
    /// Who is let in
    #[command(flatten)]
    pub security: SecurityArgs,
    /// The folder flags are kept in: on a disk that outlives a reboot. Made if it is not there
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Do not make a new store if there is none in the folder, but end with an error
    #[arg(long)]
    pub existing: bool,
    /// Most flags that are set from one client's address. A start, a failover and an end take one each;
    /// a machine that ended a week ago counts as one
    #[arg(long, default_value_t = testandset::Bounds::default().flags_per_client, value_name = "N")]
    pub flags_per_client: usize,
}

/// `tandem viewservice`.
#[derive(Debug, Args)]
pub struct ViewserviceArgs {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7701", value_name = "HOST:PORT", value_parser = HostPort::to_listen)]
    pub listen: HostPort,
    /// Who is let in
    #[command(flatten)]
    pub security: SecurityArgs,
    /// The folder views are kept in
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
}

/// A question to the replica on this host that leads a machine.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The machine's name, as its replica was given it with --vm
    pub vm: String,
    /// The control folder its replica was given [default: $XDG_RUNTIME_DIR/tandem, for root without that
    /// /run/tandem]
    #[arg(long, value_name = "DIR")]
    pub control: Option<PathBuf>,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem protect`.
#[derive(Debug, Args)]
pub struct ProtectArgs {
    /// Which machine
    #[command(flatten)]
    pub ask: AskArgs,
    /// Where the new backup, a `tandem backup`, listens
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::to_connect)]
    pub backup: HostPort,
}

/// `tandem move`.
#[derive(Debug, Args)]
pub struct MoveArgs {
    /// Which machine
    #[command(flatten)]
    pub ask: AskArgs,
    /// Where a `tandem backup` listens, which is to run it
    #[arg(value_name = "HOST:PORT", value_parser = HostPort::to_connect)]
    pub to: HostPort,
}

/// `tandem failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Which machine
    #[command(flatten)]
    pub ask: AskArgs,
    /// End the old primary, instead of having it follow: the machine runs alone then
    #[arg(long, conflicts_with = "viewservice")]
    pub leave: bool,
    /// Ask this viewservice to have it done, wherever the machine's primary is
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "control", value_parser = HostPort::to_connect)]
    pub viewservice: Option<HostPort>,
    /// How it is spoken to
    #[command(flatten)]
    pub security: SecurityArgs,
}

/// A guest of the demo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GuestArg {
    /// The built-in key-value server.
    #[default]
    Kv,
    /// Debian's Linux and its redis-server, as `tandem image` packs them.
    Linux,
}

/// `tandem demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// What runs: kv (built in) or linux (Debian's kernel and redis-server; needs apt once)
    #[arg(long, default_value = "kv", value_name = "GUEST")]
    pub guest: GuestArg,
    /// What runs the guest: auto takes KVM where it can stop this guest exactly, else the software engine
    #[arg(long, default_value = "auto", value_name = "ENGINE", value_parser = engine())]
    pub engine: EngineChoice,
    /// What runs it on the backup, if not the same; with --same-machine, on every second replica
    #[arg(long, value_name = "ENGINE", value_parser = engine())]
    pub backup_engine: Option<EngineChoice>,
    /// Pairs to start and primaries to kill, one after the other
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub kills: u32,
    /// Start one pair only, and give its machine a new backup after each kill: the clients stay connected
    /// through all of them. What they see is kept until the end, 80 bytes for each operation
    #[arg(long)]
    pub same_machine: bool,
    /// Clients with one open connection each
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub clients: u32,
    /// Network: auto, tap (private bridge) or switch (userspace)
    #[arg(long, default_value = "auto", value_parser = ["auto", "tap", "switch"])]
    pub net: String,
    /// Arbiter: file (shared directory) or server, which are started; or one there is, as replicas are told of it
    #[arg(long, default_value = "file", value_name = "ARBITER", value_parser = demo_arbiter)]
    pub arbiter: String,
    /// Have all connections between its processes protected by certificates, which are made for it
    #[arg(long)]
    pub tls: bool,
    /// Milliseconds of silence after which one replica suspects the other; more on a slow host
    #[arg(long, default_value_t = SUSPECT_MS, value_name = "MS", value_parser = clap::value_parser!(u32).range(SUSPECT_RANGE))]
    pub suspect_ms: u32,
    /// Kill the backup instead: the primary goes on alone
    #[arg(long)]
    pub kill_backup: bool,
    /// Seed of the clients' and the kills' randomness
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Keep logs and histories in this folder
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem chaos`.
#[derive(Clone, Debug, Args)]
pub struct ChaosArgs {
    /// What runs: kv (built in) or linux (Debian's kernel and redis-server; needs apt once)
    #[arg(long, default_value = "kv", value_name = "GUEST")]
    pub guest: GuestArg,
    /// What runs the guest: auto takes KVM where it can stop this guest exactly, else the software engine
    #[arg(long, default_value = "auto", value_name = "ENGINE", value_parser = engine())]
    pub engine: EngineChoice,
    /// For how long faults are made, as 90s, 5m or 2h
    #[arg(long = "for", default_value = "1h", value_name = "TIME", value_parser = duration)]
    pub lasts: Duration,
    /// Clients with one open connection each, which stays through all faults
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub clients: u32,
    /// Milliseconds of silence after which one replica suspects the other; more on a slow host
    #[arg(long, default_value_t = SUSPECT_MS, value_name = "MS", value_parser = clap::value_parser!(u32).range(SUSPECT_RANGE))]
    pub suspect_ms: u32,
    /// Seed of all faults and of the clients' choices
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write what the clients saw to this file, a JSON object a line for each operation, for other checkers
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Workloads: counter, kv, disk, failover (these if none is named); disk-read (--disk-read backup), disk-copy
    /// (--disk-copy), disk-copy-read; with a Linux guest, beside QEMU if that is installed: cpu, boot, idle, redis
    pub workloads: Vec<String>,
    /// Rounds of each measurement, of which medians are quoted
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub rounds: u32,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 3, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Folder for results.json and the plots
    #[arg(short, long, default_value = "bench-results", value_name = "DIR")]
    pub output: PathBuf,
    /// The Linux guest of cpu, boot, idle and redis: what `tandem image --in-memory` made (if not given, it is
    /// made); for redis, of redis-server
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Network: auto, tap (private bridge) or switch (userspace)
    #[arg(long, default_value = "auto", value_parser = ["auto", "tap", "switch"])]
    pub net: String,
    /// Have the pairs' connections protected by certificates, which are made for it
    #[arg(long)]
    pub tls: bool,
    /// Milliseconds of silence after which one replica suspects the other: speed is not to be measured of a
    /// pair that a busy host tore apart
    #[arg(long, default_value_t = 3000, value_name = "MS", value_parser = clap::value_parser!(u32).range(SUSPECT_RANGE))]
    pub suspect_ms: u32,
    /// Compare the latency of kv at 10, 30 and 60 % of its peak, too
    #[arg(long)]
    pub paced: bool,
    /// One JSON object on stdout instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `tandem image`.
#[derive(Clone, Debug, Args)]
pub struct ImageArgs {
    /// Debian packages to install: redis-server, memcached, nginx, or any with --run. Without any the guest is
    /// busybox alone
    #[arg(value_name = "PACKAGE")]
    pub packages: Vec<String>,
    /// The image to write: kernel, first root and a manifest in one file
    #[arg(short, long, value_name = "OUT.img")]
    pub output: PathBuf,
    /// Write the disk with the root here (if not given, beside the image, its name ending in .ext4)
    #[arg(long, value_name = "OUT.ext4")]
    pub disk: Option<PathBuf>,
    /// Size of the disk in MiB (if not given, what its files need and 512 more)
    #[arg(long, value_name = "MIB", conflicts_with = "in_memory", value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    pub size: Option<u32>,
    /// Keep the root in memory: no disk, data ends with the guest; for small services
    #[arg(long, conflicts_with = "disk")]
    pub in_memory: bool,
    /// The guest's memory in MiB (if not given, what it is likely to be comfortable with)
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(16..=3072))]
    pub memory: Option<u32>,
    /// The kernel's package, or one that depends on it
    #[arg(long, default_value = image::KERNEL_PACKAGE, value_name = "PACKAGE")]
    pub kernel_package: String,
    /// A known service to run: redis, memcached, nginx (if not given, that of the packages named)
    #[arg(long, value_name = "NAME", conflicts_with = "run")]
    pub service: Option<String>,
    /// A command to run, by a shell; when it ends, the guest powers off
    #[arg(long, value_name = "CMD")]
    pub run: Option<String>,
    /// Debian's own init, systemd, with the units of the packages as they are shipped
    #[arg(long, conflicts_with_all = ["run", "service", "in_memory"])]
    pub systemd: bool,
    /// The kernel command line to boot with, in place of the usual one
    #[arg(long, value_name = "WORDS")]
    pub cmdline: Option<String>,
    /// Make the guest of a distribution's cloud image, a qcow2 file
    #[arg(long, value_name = "CLOUD.qcow2",
        conflicts_with_all = ["packages", "run", "service", "systemd", "in_memory", "kernel_package", "from_oci"])]
    pub from: Option<PathBuf>,
    /// What its cloud-init is to do: a #cloud-config, a script, or what else that takes as user data
    #[arg(long, value_name = "FILE", requires = "from")]
    pub user_data: Option<PathBuf>,
    /// Run this container's image: an OCI layout (as skopeo and podman make) or an archive of docker save; of several
    /// in it the one called NAME, as PATH:NAME
    #[arg(long, value_name = "PATH", conflicts_with_all = ["packages", "run", "service", "systemd"])]
    pub from_oci: Option<PathBuf>,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at this arbiter, too: whether it would take a flag from this host, as --arbiter of a replica
    #[arg(long, value_name = "WHERE")]
    pub arbiter: Option<String>,
    /// How it is spoken to
    #[command(flatten)]
    pub security: SecurityArgs,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}
