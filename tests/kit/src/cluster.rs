//! A whole installation on this machine: network, arbiter, viewservice, and pairs of replicas.

use crate::daemon::Daemon;
use crate::error::{During, KitResult};
use crate::events::Line;
use crate::leftovers::Folder;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vmm::backends::netns::PrivateNetwork;
use vmm::backends::switch::{Forward, Switch};

/// The TAPs of a private network, for the two replicas of a pair: the primary's, the backup's.
pub const TAPS: [&str; 2] = ["tandem0", "tandem1"];
/// The guest's address on either network.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Where kv listens.
const PORT: u16 = 6379;
/// Longest time for a process to get ready. It takes milliseconds; on a host with several times the work
/// it can do, as many seconds.
const READY: Duration = Duration::from_secs(60);
/// The network between clients and guest.
enum Network {
    /// TAPs on a bridge in a network namespace of this process's own; the kernel's own TCP.
    Tap(#[allow(dead_code, reason = "the namespace lasts as long as it")] PrivateNetwork),
    /// The userspace switch, and a port forward for clients.
    Switch {
        socket: PathBuf,
        /// Leads to one port of the guest; replaced to lead to another.
        forward: Option<(u16, Forward)>,
        _switch: Switch,
    },
}

/// Everything but the replicas.
pub struct Cluster {
    folder: Folder,
    certificates: Option<Certificates>,
    network: Network,
    network_note: String,
    arbiter: String,
    /// What names of machines end with, so that no other cluster's are the same at an arbiter.
    suffix: String,
    viewservice: SocketAddr,
    arbiter_daemon: Option<Daemon>,
    _viewservice_daemon: Daemon,
}

/// What becomes of the network: to be called while this process has one thread only.
pub struct NetworkChoice {
    private: Result<PrivateNetwork, String>,
}

/// Tries to make the network asked for: `auto`, `tap` or `switch`. Must be called before any thread is
/// started.
pub fn choose_network(wanted: &str) -> KitResult<NetworkChoice> {
    if wanted == "switch" {
        return Ok(NetworkChoice {
            private: Err("asked for".into()),
        });
    }
    match PrivateNetwork::enter(&TAPS) {
        Ok(private) => Ok(NetworkChoice {
            private: Ok(private),
        }),
        Err(e) if wanted == "auto" => Ok(NetworkChoice {
            private: Err(e.to_string()),
        }),
        Err(e) => Err(e).during("no TAP network can be made here (try --net switch)"),
    }
}

/// The best network the calling thread can have, for itself and what it starts: for tests, which run on
/// threads of their own.
pub fn choose_thread_network() -> NetworkChoice {
    NetworkChoice {
        private: PrivateNetwork::enter_thread(&TAPS).map_err(|e| e.to_string()),
    }
}

impl Cluster {
    /// Starts arbiter (`file` or `server`; none if `arbiter` is the address of one there is) and viewservice. With
    /// `tls` all connections between its processes are protected by certificates, which are made for it.
    pub fn start(choice: NetworkChoice, arbiter: &str, tls: bool) -> KitResult<Self> {
        let folder = Folder::new().during("cannot make a folder")?;
        let certificates = folder.path().join("cluster");
        let certificates = tls.then(|| Certificates::make(&certificates)).transpose()?;
        let service = certificates.as_ref().map(|made| tls_words(&made.service));
        let service = service.unwrap_or_default();
        let (network, network_note) = match choice.private {
            Ok(private) => (
                Network::Tap(private),
                "TAP and bridge in a private network namespace".to_owned(),
            ),
            Err(why) => (switch(folder.path())?, format!("userspace switch ({why})")),
        };
        let log = |name: &str| folder.path().join(format!("{name}.err"));
        let mut arbiter_daemon = None;
        let mut suffix = String::new();
        let arbiter = if arbiter == "server" {
            let address = free_port()?;
            let mut args = vec![
                "arbiter".into(),
                "--listen".into(),
                address.to_string().into(),
                "--store".into(),
                folder.path().join("arbiter.flags").into_os_string(),
            ];
            args.extend(service.iter().cloned());
            let daemon = Daemon::start::<_, OsString>("arbiter", args, log("arbiter"))?;
            daemon.wait_line(READY, |line| line.contains("listening"))?;
            arbiter_daemon = Some(daemon);
            format!("tcp:{address}")
        } else if arbiter.contains(':') {
            suffix = format!("-{}-{}", std::process::id(), vmm::hostclock::wall_ns());
            arbiter.to_owned()
        } else {
            let flags = folder.path().join("flags");
            std::fs::create_dir(&flags).during("cannot make the arbiter's folder")?;
            format!("file:{}", flags.display())
        };
        let viewservice = free_port()?;
        let mut args = vec![
            "viewservice".into(),
            "--listen".into(),
            viewservice.to_string().into(),
            "--store".into(),
            folder.path().join("views").into_os_string(),
        ];
        args.extend(service);
        let daemon = Daemon::start::<_, OsString>("viewservice", args, log("viewservice"))?;
        daemon.wait_line(READY, |line| line.contains("listening"))?;
        Ok(Self {
            folder,
            certificates,
            network,
            network_note,
            arbiter,
            suffix,
            viewservice,
            arbiter_daemon,
            _viewservice_daemon: daemon,
        })
    }

    /// What the network is, and why.
    pub fn network_note(&self) -> &str {
        &self.network_note
    }

    /// What the arbiter is.
    pub fn arbiter(&self) -> &str {
        &self.arbiter
    }

    /// The name for a machine that is called `name` within this cluster.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    /// Has pairs started from now on ask another arbiter, by its address: for tests that have one of their own.
    pub fn use_arbiter(&mut self, arbiter: String) {
        self.arbiter = arbiter;
    }

    /// The arbiter's process, if it is a server.
    pub fn arbiter_daemon(&self) -> Option<&Daemon> {
        self.arbiter_daemon.as_ref()
    }

    /// A folder that lasts as long as this.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Has that folder stay when this is gone: what the replicas noted and said, and the arbiter's flags. Where
    /// it is.
    pub fn keep_files(&mut self) -> &Path {
        self.folder.keep();
        self.folder.path()
    }

    /// The socket of the userspace switch, if that is the network.
    pub fn switch_socket(&self) -> Option<&Path> {
        match &self.network {
            Network::Tap(_) => None,
            Network::Switch { socket, .. } => Some(socket),
        }
    }

    /// Where clients find the guest's server.
    pub fn server(&self) -> SocketAddr {
        match &self.network {
            Network::Tap(_) => SocketAddrV4::new(GUEST, PORT).into(),
            Network::Switch { forward, .. } => {
                let (_, forward) = forward.as_ref().expect("it is missing within serve only");
                forward.local_addr()
            }
        }
    }

    /// Where clients find the guest's `port`. On the userspace switch the port forward is led there,
    /// which resets the connections through it: there is one forward on a switch.
    ///
    /// # Errors
    /// If the forward cannot be made anew.
    pub fn serve(&mut self, port: u16) -> KitResult<SocketAddr> {
        match &mut self.network {
            Network::Tap(_) => Ok(SocketAddrV4::new(GUEST, port).into()),
            Network::Switch {
                socket, forward, ..
            } => {
                if forward
                    .as_ref()
                    .is_none_or(|(leads_to, _)| *leads_to != port)
                {
                    *forward = None;
                    *forward = Some((port, lead_to(socket, port)?));
                }
                Ok(self.server())
            }
        }
    }

    fn net_arg(&self, replica: usize) -> OsString {
        match &self.network {
            Network::Tap(_) => format!("tap:{}", TAPS[replica]).into(),
            Network::Switch { socket, .. } => {
                let mut arg = OsString::from("switch:");
                arg.push(socket);
                arg
            }
        }
    }

    /// Starts a protected machine called `vm`: a backup, then a primary. `guest` holds the guest and its
    /// options as for `tandem run`.
    pub fn start_pair(
        &self,
        vm: &str,
        guest: &[OsString],
        options: &PairOptions,
    ) -> KitResult<Pair> {
        let path = |name: &str| self.folder.path().join(format!("{vm}.{name}"));
        let events = [path("primary.events"), path("backup.events")];
        let words = |place: usize, more: &[OsString]| {
            let replica = ReplicaWords {
                vm,
                events: &events[place],
                place,
                network: options.network,
                disk: options.disk.as_deref(),
            };
            let name = HOSTS[place];
            let viewservice = self.viewservice.to_string();
            let mut words = self.replica_words(&replica);
            words.extend(["--viewservice".into(), viewservice.into()]);
            words.extend(["--name".into(), name.into()]);
            words.extend(options.both.iter().cloned());
            words.extend(more.iter().cloned());
            words
        };
        let args = backup_words(words(1, &options.backup));
        let backup = Daemon::start("backup", &args, path("backup.err"))?;
        let listening = address_of(&events[1], &backup)?;
        let peer = options.via.map_or(listening, |via| via(listening));
        let mut args = primary_words(guest, peer, words(0, &options.primary));
        args.extend(["--backup-name".into(), HOSTS[1].into()]);
        let primary = Daemon::start("primary", &args, path("primary.err"))?;
        Ok(Pair {
            primary,
            backup,
            events,
        })
    }

    /// What the command line of a replica says of the machine and its place, whatever its role.
    pub(crate) fn replica_words(&self, replica: &ReplicaWords<'_>) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![
            "--vm".into(),
            replica.vm.into(),
            "--arbiter".into(),
            self.arbiter.clone().into(),
            "--events".into(),
            replica.events.into(),
            "--metrics".into(),
            metrics_beside(replica.events).into(),
        ];
        if let Some(made) = &self.certificates {
            words.extend(tls_words(&made.hosts[replica.place]));
        }
        if replica.network {
            words.extend(["--net".into(), self.net_arg(replica.place)]);
        }
        if let Some(disk) = replica.disk {
            words.extend(["--disk".into(), disk.into()]);
        }
        words
    }

    /// Starts a machine alone: `run` or `record`, with `args` after the guest.
    pub fn start_single(
        &self,
        command: &str,
        guest: &[OsString],
        args: &[OsString],
        network: bool,
    ) -> KitResult<Daemon> {
        let mut all: Vec<OsString> = vec![command.into()];
        all.extend(guest.iter().cloned());
        if network {
            all.extend(["--net".into(), self.net_arg(0)]);
        }
        all.extend(args.iter().cloned());
        Daemon::start("machine", &all, self.folder.path().join("single.err"))
    }
}

/// The names of the two hosts there are.
const HOSTS: [&str; 2] = ["host-a", "host-b"];

/// Where the identities of a cluster's members are.
struct Certificates {
    hosts: [PathBuf; 2],
    service: PathBuf,
}

impl Certificates {
    fn make(folder: &Path) -> KitResult<Self> {
        const DAYS: u32 = 30;
        let made = || -> Result<Self, tls::TlsError> {
            let authority = tls::Authority::create(folder, DAYS)?;
            let host =
                |name| authority.issue(&tls::Member::host(name)?, &["*".into()], DAYS, false);
            let service = tls::Member::new(tls::Role::Service, "services")?;
            Ok(Self {
                hosts: [host(HOSTS[0])?, host(HOSTS[1])?],
                service: authority.issue(&service, &[], DAYS, false)?,
            })
        };
        made().during("cannot make certificates")
    }
}

/// The words by which a member takes `identity` for its own.
fn tls_words(identity: &Path) -> Vec<OsString> {
    vec!["--tls".into(), identity.into()]
}

/// Which replica of which machine, on which of the two places there are.
pub(crate) struct ReplicaWords<'a> {
    pub(crate) vm: &'a str,
    /// The file its events go to; its counters go beside it.
    pub(crate) events: &'a Path,
    /// 0 or 1: which TAP is its.
    pub(crate) place: usize,
    pub(crate) network: bool,
    pub(crate) disk: Option<&'a Path>,
}

/// The command line of a backup, which listens on any free port; `words` say the rest.
pub(crate) fn backup_words(words: Vec<OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["backup".into(), "--listen".into(), "127.0.0.1:0".into()];
    all.extend(words);
    all
}

/// The command line of the primary of `guest`, whose backup is at `peer`; `words` say the rest.
pub(crate) fn primary_words(
    guest: &[OsString],
    peer: SocketAddr,
    words: Vec<OsString>,
) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["primary".into()];
    all.extend(guest.iter().cloned());
    all.extend(["--backup".into(), peer.to_string().into()]);
    all.extend(words);
    all
}

/// Waits until `backup`, whose events go to `events`, listens. Where.
pub(crate) fn address_of(events: &Path, backup: &Daemon) -> KitResult<SocketAddr> {
    let listening = wait_event(events, "listening", 0, backup)?;
    listening.detail.parse().during("the backup's address")
}

/// How a pair is set up beyond its guest.
#[derive(Clone, Debug, Default)]
pub struct PairOptions {
    /// Plug the guest into the network.
    pub network: bool,
    /// The shared disk.
    pub disk: Option<PathBuf>,
    /// More arguments for the primary.
    pub primary: Vec<OsString>,
    /// More arguments for the backup.
    pub backup: Vec<OsString>,
    /// More arguments for both replicas.
    pub both: Vec<OsString>,
    /// Where the primary finds its backup, if not where it listens: a proxy in between.
    pub via: Option<fn(SocketAddr) -> SocketAddr>,
}

fn switch(folder: &Path) -> KitResult<Network> {
    let socket = folder.join("switch");
    let switch = Switch::start(&socket)?;
    let forward = lead_to(&socket, PORT)?;
    Ok(Network::Switch {
        socket,
        forward: Some((PORT, forward)),
        _switch: switch,
    })
}

/// A forward from any free port of loopback to the guest's `port`, over the switch at `socket`.
fn lead_to(socket: &Path, port: u16) -> KitResult<Forward> {
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    Ok(Forward::start(socket, any, SocketAddrV4::new(GUEST, port))?)
}

/// An address on loopback nobody listens on now.
fn free_port() -> KitResult<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during("no free port")?;
    listener.local_addr().during("no free port")
}

/// The two processes of a protected machine.
pub struct Pair {
    /// The one that runs the guest.
    pub primary: Daemon,
    /// The one that follows.
    pub backup: Daemon,
    events: [PathBuf; 2],
}

impl Pair {
    /// Waits until the guest prints a line with `word` in it.
    pub fn wait_ready(&self, word: &str) -> KitResult {
        self.wait_ready_within(word, READY)
    }

    /// [`Pair::wait_ready`], for `patience` at most.
    pub fn wait_ready_within(&self, word: &str, patience: Duration) -> KitResult {
        self.primary
            .wait_line(patience, |line| line.contains(word))
            .map(|_| ())
    }

    /// The files they note events in: the primary's, the backup's.
    #[must_use]
    pub fn events_files(&self) -> &[PathBuf; 2] {
        &self.events
    }

    /// What the replicas noted so far, in order of time.
    pub fn events(&self) -> Vec<Line> {
        Line::all_of(&self.events)
    }

    /// The counters the primary noted so far, in order of time: JSON in the detail.
    pub fn metrics(&self) -> Vec<Line> {
        Line::all_in(&metrics_beside(&self.events[0]))
    }

    /// Waits until `who` has noted `event`.
    pub fn wait_event(&self, who: &str, event: &str) -> KitResult<Line> {
        let (path, daemon) = match who {
            "primary" => (&self.events[0], &self.primary),
            _ => (&self.events[1], &self.backup),
        };
        wait_event(path, event, 0, daemon)
    }
}

/// Where the counters of the replica go whose events go to `events`.
pub(crate) fn metrics_beside(events: &Path) -> PathBuf {
    events.with_extension("metrics")
}

/// Waits until `event` stands in the events file at `path`, which `daemon` writes, noted at `from_ns` of the host's
/// clock or later.
pub(crate) fn wait_event(
    path: &Path,
    event: &str,
    from_ns: u64,
    daemon: &Daemon,
) -> KitResult<Line> {
    let deadline = Instant::now() + READY;
    loop {
        // Before the look at the file: what a process notes as its last is there when it has ended.
        let ended = daemon.has_ended();
        if let Some(line) = Line::all_in(path)
            .into_iter()
            .find(|line| line.event == event && line.at_ns >= from_ns)
        {
            return Ok(line);
        }
        if ended || Instant::now() > deadline {
            return Err(daemon.failed(format!("never got to '{event}'")));
        }
        // The file is written by another process; a short poll is all there is to wait on.
        std::thread::sleep(Duration::from_millis(2));
    }
}
