//! An installation: its hosts, and what runs on them. All of it is Tandem's own code.
//!
//! ```text
//!   net       switch, a port that leads to the guest, clients
//!   flags     the arbiter's server, its store in a folder
//!   views     the viewservice, likewise
//!   a, b, c   a replica each: at first a primary on a, and backups that wait on b and c. One that ends or is
//!             killed is followed by a backup that waits, as the operator's service manager would have it
//! ```

use crate::kernel::{self, HostNo, Pid};
use crate::oracle::{CLIENTS, heard, oracle, say};
use check::resp::{Client, Reply};
use replica::machine::{Blueprint, EngineChoice, Image, Images};
use replica::outside::{NetPlug, Plugs};
use replica::{
    BackupSpec, DiskReads, Events, ForTests, Handle, HostPort, Notice, PrimarySpec, Replica,
    ReplicaSpec,
};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use testandset::{Contender, Flag, ViewNumber, VmId};
use tls::Security;
use vmm::backends::switch::{Forward, Switch};
use vmm::machine::{GuestImage, ImageSource, MachineConfig};

/// Hosts, by their numbers in the kernel; 0 is the director's.
pub const NET: HostNo = 1;
/// The arbiter's.
pub const FLAGS: HostNo = 2;
/// The viewservice's.
pub const VIEWS: HostNo = 3;
/// Those of replicas.
pub const REPLICAS: [HostNo; 3] = [4, 5, 6];

const NAMES: [&str; 7] = ["director", "net", "flags", "views", "a", "b", "c"];
const FLAGS_AT: &str = "127.0.1.2:7000";
const VIEWS_AT: &str = "127.0.1.3:7100";
const PORT: u16 = 7800;
const SERVED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, 1), 6379);

/// What differs between lives, besides what the plan does.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Silence after which replicas suspect each other.
    pub suspect_ms: u32,
    /// Most by which the clocks of two hosts differ in speed, in millionths.
    pub drift_ppm: u64,
    /// Least time under way on each wire, and what comes on top, in nanoseconds.
    pub latency_ns: (u64, u64),
    /// A fault that is built in, and to be found.
    pub broken: Option<Break>,
}

/// A fault that is built in, and has to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Break {
    /// No answer of the arbiter's counts as a flag that was won.
    ArbiterGuessed,
    /// The arbiter's store forgets its last flag when it starts again.
    ArbiterForgets,
    /// Acks go ahead of what the backup has.
    AckAhead,
    /// A joiner is told that it is the backup before the flag is won.
    WelcomeAhead,
}

/// The guests that are built in.
pub struct Library;

struct Loaded(guests::Image);

impl Image for Loaded {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn bytes(&self) -> GuestImage<'_> {
        self.0.bytes()
    }

    fn digest(&self) -> u64 {
        self.0.digest
    }

    fn into_source(self: Box<Self>, _: bool) -> Box<dyn ImageSource> {
        self.0.into_source(None)
    }
}

impl Images for Library {
    fn load(&self, name: &str, initrd: Option<&str>) -> Result<Box<dyn Image>, String> {
        let image = guests::load(name, initrd).map_err(|e| e.to_string())?;
        Ok(Box::new(Loaded(image)))
    }
}

/// Passes on what a replica tells.
struct Tell {
    process: Pid,
    name: &'static str,
}

impl Events for Tell {
    fn note(&mut self, _: u64, notice: &Notice<'_>) {
        heard(self.process, self.name, notice);
    }
}

/// The replicas that run, and what may be asked of each.
static HANDLES: Mutex<BTreeMap<Pid, Handle>> = Mutex::new(BTreeMap::new());

/// What may be asked of a replica.
pub fn handle(process: Pid) -> Option<Handle> {
    HANDLES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&process)
        .cloned()
}

/// An installation.
pub struct World {
    folder: PathBuf,
    terms: Terms,
    /// What runs on each host.
    pub runs: BTreeMap<HostNo, Pid>,
    begun: bool,
}

fn name(host: HostNo) -> &'static str {
    NAMES[host]
}

fn at(host: HostNo) -> [u8; 4] {
    match host {
        NET | FLAGS | VIEWS => [127, 0, 1, host as u8],
        _ => [127, 0, 2, host as u8],
    }
}

impl World {
    /// Hosts without anything on them, whose files are in `folder`.
    pub fn new(folder: &Path, terms: Terms) -> Self {
        for host in 1..NAMES.len() {
            let drift = i64::try_from(kernel::below(terms.drift_ppm + 1)).unwrap_or(0);
            let drift = drift - i64::try_from(terms.drift_ppm / 2).unwrap_or(0);
            kernel::add_host(at(host), drift, kernel::below(1_000_000_000_000));
        }
        for from in 0..NAMES.len() {
            for to in 0..NAMES.len() {
                kernel::wire(from, to).latency_ns = terms.latency_ns;
            }
        }
        Self {
            folder: folder.to_owned(),
            terms,
            runs: BTreeMap::new(),
            begun: false,
        }
    }

    /// Starts what always runs, and a pair with a backup that waits beside it.
    pub fn begin(&mut self) {
        self.start_net();
        self.tend_to([FLAGS, VIEWS]);
        sleep_ms(200);
        self.tend();
    }

    /// Starts the clients.
    pub fn begin_to_serve(&self) {
        for client in 0..CLIENTS {
            kernel::start(NET, move || serve_client(client));
        }
    }

    /// Starts what is to run and does not.
    pub fn tend(&mut self) {
        self.tend_to([FLAGS, VIEWS].into_iter().chain(REPLICAS));
    }

    fn tend_to(&mut self, hosts: impl IntoIterator<Item = HostNo>) {
        for host in hosts {
            let runs = self
                .runs
                .get(&host)
                .is_some_and(|pid| kernel::is_alive(*pid));
            if runs || !kernel::is_up(host) {
                continue;
            }
            let process = match host {
                FLAGS => self.start_flags(),
                VIEWS => self.start_views(),
                _ if host == REPLICAS[0] && !self.begun => self.start_primary(host),
                _ => self.start_backup(host),
            };
            self.runs.insert(host, process);
        }
    }

    /// Whether, as the arbiter says, whoever has the machine's last flag was killed, and the backup behind it: a
    /// replica may be killed before it heard that it had won.
    pub fn has_lost_its_last_holder(&self) -> bool {
        let arbiter = testandset::ServerArbiter::new(FLAGS_AT).expect("an address");
        let newest = testandset::Arbiter::newest(&arbiter, &VmId::new("vm").expect("a name"));
        let Ok(Some((flag, holder))) = newest else {
            return false;
        };
        oracle().may_be_lost(flag.0, holder_of(&holder))
    }

    /// Checks that the arbiter says of each flag what replicas were told.
    ///
    /// # Errors
    /// What it says else. It may give no answer, which says nothing.
    pub fn check_flags(&self) -> Result<(), String> {
        let arbiter = testandset::ServerArbiter::new(FLAGS_AT).expect("an address");
        let told: Vec<(u64, Pid)> = oracle().flags().collect();
        for (view, process) in told {
            let flag = Flag {
                vm: VmId::new("vm").expect("a name"),
                view: ViewNumber(view),
            };
            match testandset::Arbiter::holder(&arbiter, &flag) {
                Ok(Some(holder)) if holder_of(&holder) == process => {}
                Ok(holder) => {
                    let now =
                        holder.map_or_else(|| "nobody's".into(), |holder| format!("{holder}'s"));
                    return Err(format!(
                        "the flag of view {view} was won by {process}, and is {now} now"
                    ));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("switch")
    }

    fn start_net(&mut self) {
        let socket = self.socket();
        kernel::start(NET, move || {
            let _switch = Switch::start(&socket).expect("a switch");
            let guest = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 6379);
            let _forward = Forward::start(&socket, SERVED.into(), guest).expect("a forward");
            loop {
                std::thread::sleep(Duration::from_secs(1000));
            }
        });
        sleep_ms(10);
    }

    fn start_flags(&self) -> Pid {
        let folder = self.folder.join("flags");
        if self.terms.broken == Some(Break::ArbiterForgets) {
            crate::breaks::forget_last_flag(&folder.join("flags.log"));
        }
        kernel::start(FLAGS, move || {
            let (store, _) = testandset::Store::open(&folder).expect("a store");
            serve(FLAGS_AT, |listener| {
                testandset::serve(listener, Security::Loopback, store, std::future::pending())
            });
        })
    }

    fn start_views(&self) -> Pid {
        let folder = self.folder.join("views");
        kernel::start(VIEWS, move || {
            let (store, state) = viewservice::Store::open(&folder).expect("a store");
            let settings = viewservice::Settings::default();
            serve(VIEWS_AT, |listener| {
                viewservice::serve(
                    listener,
                    Security::Loopback,
                    store,
                    state,
                    settings,
                    std::future::pending(),
                )
            });
        })
    }

    fn spec(&self, host: HostNo) -> ReplicaSpec {
        spec(host, self.terms)
    }

    fn plugs(&self) -> Plugs {
        Plugs {
            net: Some(NetPlug::Switch(self.socket())),
            quiet: true,
            ..Plugs::default()
        }
    }

    fn start_primary(&mut self, host: HostNo) -> Pid {
        self.begun = true;
        let (plugs, terms) = (self.plugs(), self.terms);
        kernel::start(host, move || {
            // Until the services and the backup are there.
            sleep_ms(300);
            let image = Library.load("kv", None).expect("a guest");
            let config = MachineConfig::bare("kv", image.digest(), "ip=10.77.0.2/24 hz=20 conns=8");
            let spec = PrimarySpec {
                replica: spec(host, terms),
                machine: Blueprint { config, image },
                engine: EngineChoice::Soft,
                plugs,
                backup: address(REPLICAS[1]),
                backup_host: Some(name(REPLICAS[1]).into()),
                view: None,
                ordered: None,
                lag_max_ms: 500,
                require_backup: false,
                unlike_hosts: false,
                listen: Some(address(host)),
                images: Box::new(Library),
                disk_reads: DiskReads::Log,
                for_tests: ForTests::default(),
            };
            live(host, |events| Replica::primary(spec, events));
        })
    }

    fn start_backup(&self, host: HostNo) -> Pid {
        let (spec, plugs) = (self.spec(host), self.plugs());
        kernel::start(host, move || {
            let spec = BackupSpec {
                replica: spec,
                listen: address(host),
                plugs,
                engine: EngineChoice::Soft,
                images: Box::new(Library),
                image: None,
                initrd: None,
            };
            live(host, |events| Replica::backup(spec, events));
        })
    }
}

/// The process that a contender is.
fn holder_of(holder: &Contender) -> Pid {
    let name = holder.to_string();
    let pid = name
        .split('.')
        .nth(2)
        .and_then(|pid| pid.parse::<Pid>().ok());
    pid.expect("contenders are named after their processes") - kernel::PID_FIRST
}

/// Where the replica of `host` waits as a backup.
fn address(host: HostNo) -> HostPort {
    SocketAddr::from((Ipv4Addr::from(at(host)), PORT)).into()
}

fn spec(host: HostNo, terms: Terms) -> ReplicaSpec {
    let arbiter =
        testandset::parse(&format!("tcp:{FLAGS_AT}"), &Security::Loopback).expect("an address");
    ReplicaSpec {
        vm: VmId::new("vm").expect("a name"),
        host: name(host).into(),
        arbiter: crate::breaks::arbiter(arbiter, terms.broken),
        security: Security::Loopback,
        viewservice: Some(HostPort::to_connect(VIEWS_AT).expect("an address")),
        log_buffer_bytes: 4 << 20,
        suspect_ms: terms.suspect_ms,
        handover_bytes_s: None,
        die_at: None,
    }
}

/// The life of a replica's process.
fn live(
    host: HostNo,
    start: impl FnOnce(Box<dyn Events>) -> Result<Replica, replica::ReplicaError>,
) {
    let process = kernel::my_process();
    let tell = Tell {
        process,
        name: name(host),
    };
    let ended = start(Box::new(tell)).and_then(|replica| {
        let handle = replica.handle();
        HANDLES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(process, handle);
        replica.wait()
    });
    say(name(host), &format!("is over: {ended:?}"));
    HANDLES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&process);
    // As a service manager waits before it starts what has ended.
    sleep_ms(300);
}

/// Serves on a runtime of one thread, as the daemons do.
fn serve<F: Future<Output = ()>>(address: &str, server: impl FnOnce(tokio::net::TcpListener) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    // A port that the process before still has is its own again soon.
    let listener = loop {
        match TcpListener::bind(address) {
            Ok(listener) => break listener,
            Err(_) => sleep_ms(20),
        }
    };
    listener.set_nonblocking(true).expect("a listener");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        server(listener).await;
    });
}

/// One client: it writes a key of its own, and reads the others'.
fn serve_client(client: usize) {
    let limit = Duration::from_secs(1000);
    let mut rng = check::rng::Rng::new(client as u64, kernel::below(1 << 60));
    let mut connection = loop {
        match Client::connect(SERVED.into(), limit, limit) {
            Ok(connection) => break connection,
            Err(_) => sleep_ms(50),
        }
    };
    loop {
        sleep_ms(5 + rng.below(245));
        let of = if rng.below(2) == 0 {
            client
        } else {
            rng.below(CLIENTS as u64) as usize
        };
        let key = format!("key{of}");
        let done = if of == client && rng.below(3) > 0 {
            let number = oracle().begins_to_write(client).to_string();
            let reply = connection.command(&[b"SET", key.as_bytes(), number.as_bytes()]);
            reply
                .map(|_| oracle().wrote(client))
                .map_err(|e| e.to_string())
        } else {
            let least = oracle().least(of);
            match connection.command(&[b"GET", key.as_bytes()]) {
                Ok(Reply::Bulk(Some(bytes))) => {
                    let found = String::from_utf8_lossy(&bytes).parse().unwrap_or(u64::MAX);
                    oracle().read(client, of, least, found)
                }
                Ok(Reply::Bulk(None)) => oracle().read(client, of, least, 0),
                Ok(other) => Err(format!("client {client} is told {other:?}")),
                Err(e) => Err(e.to_string()),
            }
        };
        if let Err(why) = done {
            kernel::fail(&format!("client {client}: {why}"));
        }
    }
}

/// Waits, in the clock of the calling thread's host.
pub fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
