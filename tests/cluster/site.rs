//! A cluster on loopback: viewservice, arbiter, and hosts, each with a supervisor and a state folder of its own.

use super::common::{LIMIT, PROGRAM, os, tandem, text};
use kit::Line;
use kit::daemon::Daemon;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tandem::host::lock;
use vmm::backends::switch::{Forward, Switch};

/// Time between two looks at what other processes say.
pub const LOOK: Duration = Duration::from_millis(10);
/// Memory of a host for replicas, in MiB: two replicas of a machine with 64.
pub const HOST_MIB: u64 = 300;

/// A cluster without a host yet.
pub struct Site {
    folder: tempfile::TempDir,
    _switch: Switch,
    _views: Daemon,
    /// Where the members' identities are, if there are any.
    members: Option<PathBuf>,
    /// Where the viewservice listens.
    pub at: String,
}

/// A host's supervisor.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its process.
    pub daemon: Daemon,
    state: PathBuf,
}

impl Site {
    pub fn new() -> Self {
        Self::of(|_| None)
    }

    /// One that speaks TLS; hosts a and c may run every machine, b only db.
    pub fn secret() -> Self {
        Self::of(|folder| {
            let members = folder.join("members");
            let init = |more: &[&str]| {
                let made = tandem(&[&["init", "--dir", text(&members)], more].concat());
                assert!(made.status.success(), "{made:?}");
            };
            init(&[]);
            for (host, vm) in [("a", "*"), ("b", "db"), ("c", "*")] {
                init(&["--host", host, "--vm", vm]);
            }
            init(&["--service", "core"]);
            init(&["--operator", "ann"]);
            Some(members)
        })
    }

    fn of(members: impl FnOnce(&Path) -> Option<PathBuf>) -> Self {
        // Replicas outlive their supervisors: whoever is left is this process's to wait for.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let folder = tempfile::Builder::new().prefix("tc-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("flags")).unwrap();
        let switch = Switch::start(&folder.path().join("switch")).unwrap();
        let members = members(folder.path());
        let (views, at) = views(folder.path(), "views", &words(members.as_ref(), CORE));
        Self {
            members,
            folder,
            _switch: switch,
            _views: views,
            at,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another viewservice, with the same arbiter: as if the first had lost all it knew.
    pub fn amnesiac(&self) -> (Daemon, String) {
        views(self.folder.path(), "views2", &[])
    }

    /// A host that the viewservice has heard of.
    pub fn host(&self, name: &str) -> Host {
        let host = self.start_host(name, &self.at, HOST_MIB);
        self.wait_host(name, |host| {
            host["state"] == "live" && !host["room"].is_null()
        });
        host
    }

    /// A host of the viewservice at `at`, with so much memory.
    pub fn start_host(&self, name: &str, at: &str, mib: u64) -> Host {
        Host {
            name: name.to_owned(),
            daemon: self.supervisor(name, at, mib),
            state: self.state_of(name),
        }
    }

    fn state_of(&self, name: &str) -> PathBuf {
        self.path(&format!("host-{name}"))
    }

    fn supervisor(&self, name: &str, at: &str, mib: u64) -> Daemon {
        let arbiter = format!("file:{}", text(&self.path("flags")));
        let (mib, state, control) = (mib.to_string(), self.state_of(name), self.path("control"));
        let mut args = os(&[
            "host",
            "--name",
            name,
            "--listen",
            "127.0.0.1:0",
            "--viewservice",
            at,
            "--arbiter",
            &arbiter,
            "--memory",
            &mib,
            "--state",
            text(&state),
            "--control",
            text(&control),
        ]);
        let own = words(self.members.as_ref(), &format!("hosts/{name}"));
        args.extend(own.iter().map(Into::into));
        let daemon = Daemon::start("host", &args, self.path(&format!("host-{name}.err"))).unwrap();
        daemon
            .wait_line(LIMIT, |line| line.starts_with("listening on "))
            .unwrap();
        daemon
    }

    /// A file for `tandem up`: kv on this site's switch, and `more` lines.
    pub fn recipe(&self, name: &str, more: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let net = format!("switch:{}", text(&self.path("switch")));
        let file = format!(
            "name = '{name}'\nguest = 'kv'\nengine = 'soft'\nnet = '{net}'\nsuspect-ms = 5000\n{more}\n"
        );
        std::fs::write(&path, file).unwrap();
        path
    }

    /// `tandem COMMAND`, told of the viewservice.
    pub fn ask(&self, words: &[&str]) -> Output {
        self.ask_as(ANN, words)
    }

    /// The same of another member.
    pub fn ask_as(&self, member: &str, asked: &[&str]) -> Output {
        let own = words(self.members.as_ref(), member);
        let own: Vec<_> = own.iter().map(String::as_str).collect();
        tandem(&[asked, &["--viewservice", &self.at], &own].concat())
    }

    /// The same, which must succeed; what it says.
    #[track_caller]
    pub fn say(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tandem {words:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.say(&["status", "--json"])).unwrap()
    }

    /// Waits until the service says this; then how long that took.
    #[track_caller]
    pub fn wait_status(&self, wanted: impl Fn(&Value) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < LIMIT, "{status:#}");
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until it says this of a host.
    #[track_caller]
    pub fn wait_host(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Duration {
        self.wait_status(|status| {
            let mut hosts = status["hosts"].as_array().unwrap().iter();
            hosts.any(|host| host["name"] == name && wanted(host))
        })
    }

    /// What the service says of a machine; null if there is none.
    pub fn vm(&self, name: &str) -> Value {
        find(&self.status(), name)
    }

    /// Waits until a machine is a pair on these hosts, in a view after `view`; then how long that took.
    #[track_caller]
    pub fn wait_pair(&self, name: &str, view: u64, primary: &str, backup: &str) -> Duration {
        self.wait_status(|status| {
            let vm = find(status, name);
            is_pair(&vm)
                && vm["view"].as_u64() > Some(view)
                && vm["primary"] == primary
                && vm["backup"] == backup
        })
    }

    /// Where clients find the guest's server.
    pub fn serve(&self) -> (Forward, SocketAddr) {
        let guest = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 6379);
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let forward = Forward::start(&self.path("switch"), any, guest).unwrap();
        let at = forward.local_addr();
        (forward, at)
    }
}

/// The service's and the operator's identities.
const CORE: &str = "services/core";
const ANN: &str = "operators/ann";

/// How a member is told of its identity, if there are any.
fn words(members: Option<&PathBuf>, member: &str) -> Vec<String> {
    let folder = members.map(|members| members.join(member));
    let words = folder.map(|folder| vec!["--tls".to_owned(), text(&folder).to_owned()]);
    words.unwrap_or_default()
}

fn views(folder: &Path, name: &str, more: &[String]) -> (Daemon, String) {
    let mut args = os(&["viewservice", "--listen", "127.0.0.1:0", "--store"]);
    args.push(folder.join(name).into());
    args.extend(more.iter().map(Into::into));
    let views = Daemon::start("viewservice", &args, folder.join(format!("{name}.err"))).unwrap();
    let line = views
        .wait_line(LIMIT, |line| line.starts_with("listening on "))
        .unwrap();
    let at = line.trim_start_matches("listening on ").to_owned();
    (views, at)
}

fn find(status: &Value, name: &str) -> Value {
    let mut vms = status["vms"].as_array().unwrap().iter();
    vms.find(|vm| vm["name"] == name)
        .cloned()
        .unwrap_or(Value::Null)
}

fn is_pair(vm: &Value) -> bool {
    let backup = vm["backup"].as_str().unwrap_or_default();
    vm["role"] == "primary" && vm["named"].is_null() && vm["roles"][backup] == "backup"
}

impl Host {
    fn lock(&self, vm: &str) -> PathBuf {
        self.state.join("vms").join(format!("vm-{vm}")).join("lock")
    }

    /// The process of its replica of `vm`, if there is one.
    pub fn replica(&self, vm: &str) -> Option<i32> {
        lock::holder(&self.lock(vm)).map(|holder| holder.pid)
    }

    /// Kills its replica of `vm` (SIGKILL), and waits until the kernel has let go of it.
    #[track_caller]
    pub fn kill_replica(&self, vm: &str) {
        let pid = Pid::from_raw(self.replica(vm).expect("it runs"));
        kill(pid, Signal::SIGKILL).unwrap();
        self.wait_no_replica(vm);
    }

    /// Waits until no process of `vm` is here.
    #[track_caller]
    pub fn wait_no_replica(&self, vm: &str) {
        let begun = Instant::now();
        while lock::is_held(&self.lock(vm)).unwrap() {
            assert!(begun.elapsed() < LIMIT, "{vm} runs on {}", self.name);
            std::thread::sleep(LOOK);
        }
    }

    /// Kills its supervisor (SIGKILL).
    pub fn kill_supervisor(&mut self) {
        self.daemon.kill();
        self.daemon.wait(LIMIT).unwrap();
    }

    /// What its supervisor noted.
    pub fn events(&self) -> Vec<Line> {
        Line::all_in(&self.state.join("events"))
    }

    /// Waits until its supervisor has noted `event` so often.
    #[track_caller]
    pub fn wait_events(&self, event: &str, times: usize) -> Line {
        let begun = Instant::now();
        loop {
            let events = self.events();
            let mut such = events.iter().filter(|line| line.event == event);
            if let Some(line) = such.nth(times - 1) {
                return line.clone();
            }
            assert!(begun.elapsed() < LIMIT, "no {event} among {events:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// How many processes it has started.
    pub fn started(&self) -> usize {
        self.events()
            .iter()
            .filter(|line| line.event == "started")
            .count()
    }

    /// Starts its supervisor again, which has ended.
    #[track_caller]
    pub fn start_again(&mut self, site: &Site) {
        self.daemon = site.supervisor(&self.name, &site.at, HOST_MIB);
        site.wait_host(&self.name, |host| {
            host["state"] == "live" && !host["room"].is_null()
        });
    }

    /// All is over: its supervisor and its replicas.
    pub fn die(&mut self) {
        self.kill_supervisor();
        self.kill_replicas();
    }

    /// Kills the replicas, which are this process's to wait for by now.
    fn kill_replicas(&self) {
        for entry in std::fs::read_dir(self.state.join("vms"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Some(holder) = lock::holder(&entry.path().join("lock")) {
                let pid = Pid::from_raw(holder.pid);
                // It may have ended just now.
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.daemon.kill();
        // It is waited for by its own drop; nothing starts replicas by then.
        let _ = self.daemon.wait(LIMIT);
        self.kill_replicas();
    }
}

/// The program, on its own.
pub fn program() -> Command {
    Command::new(PROGRAM)
}
