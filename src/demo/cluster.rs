//! A whole installation on this machine: network, arbiter, viewservice, and pairs of replicas.

use super::daemon::Daemon;
use super::leftovers::Folder;
use crate::failure::{During, Failure, Outcome};
use crate::node::replica::Line;
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
    network: Network,
    network_note: String,
    arbiter: String,
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
pub fn choose_network(wanted: &str) -> Outcome<NetworkChoice> {
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
    /// Starts arbiter (`file` or `server`) and viewservice.
    pub fn start(choice: NetworkChoice, arbiter: &str) -> Outcome<Self> {
        let folder = Folder::new().during("cannot make a folder")?;
        let (network, network_note) = match choice.private {
            Ok(private) => (
                Network::Tap(private),
                "TAP and bridge in a private network namespace".to_owned(),
            ),
            Err(why) => (switch(folder.path())?, format!("userspace switch ({why})")),
        };
        let log = |name: &str| folder.path().join(format!("{name}.err"));
        let mut arbiter_daemon = None;
        let arbiter = if arbiter == "server" {
            let address = free_port()?;
            let args = [
                "arbiter".into(),
                "--listen".into(),
                address.to_string().into(),
                "--store".into(),
                folder.path().join("arbiter.flags").into_os_string(),
            ];
            let daemon = Daemon::start::<_, OsString>("arbiter", args, log("arbiter"))?;
            daemon.wait_line(READY, |line| line.contains("listening"))?;
            arbiter_daemon = Some(daemon);
            format!("tcp:{address}")
        } else {
            let flags = folder.path().join("flags");
            std::fs::create_dir(&flags).during("cannot make the arbiter's folder")?;
            format!("file:{}", flags.display())
        };
        let viewservice = free_port()?;
        let args = [
            "viewservice".into(),
            "--listen".into(),
            viewservice.to_string().into(),
            "--store".into(),
            folder.path().join("views").into_os_string(),
        ];
        let daemon = Daemon::start::<_, OsString>("viewservice", args, log("viewservice"))?;
        daemon.wait_line(READY, |line| line.contains("listening"))?;
        Ok(Self {
            folder,
            network,
            network_note,
            arbiter,
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

    /// Has pairs started from now on ask another arbiter, `file:DIR` or `tcp:HOST:PORT`: for tests that have one
    /// of their own.
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
    pub fn serve(&mut self, port: u16) -> Outcome<SocketAddr> {
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
    pub fn start_pair(&self, vm: &str, guest: &[OsString], options: &PairOptions) -> Outcome<Pair> {
        let path = |name: &str| self.folder.path().join(format!("{vm}.{name}"));
        let events = [path("primary.events"), path("backup.events")];
        let common = |name: &str, events: &Path| -> Vec<OsString> {
            vec![
                "--vm".into(),
                vm.into(),
                "--arbiter".into(),
                self.arbiter.clone().into(),
                "--viewservice".into(),
                self.viewservice.to_string().into(),
                "--name".into(),
                name.into(),
                "--events".into(),
                events.into(),
                "--metrics".into(),
                metrics_beside(events).into(),
            ]
        };
        let mut args: Vec<OsString> =
            vec!["backup".into(), "--listen".into(), "127.0.0.1:0".into()];
        args.extend(common("host-b", &events[1]));
        if options.network {
            args.extend(["--net".into(), self.net_arg(1)]);
        }
        if let Some(disk) = &options.disk {
            args.extend(["--disk".into(), disk.into()]);
        }
        args.extend(options.both.iter().cloned());
        args.extend(options.backup.iter().cloned());
        let backup = Daemon::start("backup", &args, path("backup.err"))?;
        let listening = wait_event(&events[1], "listening", &backup)?;
        let mut args: Vec<OsString> = vec!["primary".into()];
        args.extend(guest.iter().cloned());
        let listening: SocketAddr = listening.detail.parse().during("the backup's address")?;
        let peer = options.via.map_or(listening, |via| via(listening));
        args.extend(["--backup".into(), peer.to_string().into()]);
        args.extend(common("host-a", &events[0]));
        args.extend(["--backup-name".into(), "host-b".into()]);
        if options.network {
            args.extend(["--net".into(), self.net_arg(0)]);
        }
        if let Some(disk) = &options.disk {
            args.extend(["--disk".into(), disk.into()]);
        }
        args.extend(options.both.iter().cloned());
        args.extend(options.primary.iter().cloned());
        let primary = Daemon::start("primary", &args, path("primary.err"))?;
        Ok(Pair {
            primary,
            backup,
            events,
        })
    }

    /// Starts a machine alone: `run` or `record`, with `args` after the guest.
    pub fn start_single(
        &self,
        command: &str,
        guest: &[OsString],
        args: &[OsString],
        network: bool,
    ) -> Outcome<Daemon> {
        let mut all: Vec<OsString> = vec![command.into()];
        all.extend(guest.iter().cloned());
        if network {
            all.extend(["--net".into(), self.net_arg(0)]);
        }
        all.extend(args.iter().cloned());
        Daemon::start("machine", &all, self.folder.path().join("single.err"))
    }
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

fn switch(folder: &Path) -> Outcome<Network> {
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
fn lead_to(socket: &Path, port: u16) -> Outcome<Forward> {
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    Ok(Forward::start(socket, any, SocketAddrV4::new(GUEST, port))?)
}

/// An address on loopback nobody listens on now.
fn free_port() -> Outcome<SocketAddr> {
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
    pub fn wait_ready(&self, word: &str) -> Outcome {
        self.wait_ready_within(word, READY)
    }

    /// [`Pair::wait_ready`], for `patience` at most.
    pub fn wait_ready_within(&self, word: &str, patience: Duration) -> Outcome {
        self.primary
            .wait_line(patience, |line| line.contains(word))
            .map(|_| ())
    }

    /// What the replicas noted so far, in order of time.
    pub fn events(&self) -> Vec<Line> {
        let lines = self.events.iter().flat_map(|path| Line::all_in(path));
        let mut lines: Vec<Line> = lines.collect();
        lines.sort_by_key(|line| line.at_ns);
        lines
    }

    /// The counters the primary noted so far, in order of time: JSON in the detail.
    pub fn metrics(&self) -> Vec<Line> {
        Line::all_in(&metrics_beside(&self.events[0]))
    }

    /// Waits until `who` has noted `event`.
    pub fn wait_event(&self, who: &str, event: &str) -> Outcome<Line> {
        let (path, daemon) = match who {
            "primary" => (&self.events[0], &self.primary),
            _ => (&self.events[1], &self.backup),
        };
        wait_event(path, event, daemon)
    }
}

/// Where the counters of the replica go whose events go to `events`.
fn metrics_beside(events: &Path) -> PathBuf {
    events.with_extension("metrics")
}

/// Waits until `event` stands in the events file at `path`, which `daemon` writes.
fn wait_event(path: &Path, event: &str, daemon: &Daemon) -> Outcome<Line> {
    let deadline = Instant::now() + READY;
    loop {
        if let Some(line) = Line::all_in(path)
            .into_iter()
            .find(|line| line.event == event)
        {
            return Ok(line);
        }
        if daemon.has_ended() || Instant::now() > deadline {
            return Err(Failure::new(format!(
                "the {} never got to '{event}'{}",
                daemon.name(),
                daemon.complaint()
            )));
        }
        // The file is written by another process; a short poll is all there is to wait on.
        std::thread::sleep(Duration::from_millis(2));
    }
}
