//! What a supervisor does: says what its host has and runs, starts what it is told, and notes what ends.
//!
//! It decides nothing. Which host is to have which replica is the viewservice's word, and who may begin a machine, or
//! go live, is the arbiter's. Replicas speak to both themselves. So a supervisor that is killed costs them nothing,
//! and one that comes back finds them by the locks they hold.

use super::folder::{self, Folder};
use super::lock;
use super::words::{self, Common};
use crate::failure::{During, Outcome};
use kit::{Line, Trace};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use viewservice::{
    Address, Client, FAILED_MAX, Failed, HostId, HostOrders, HostPing, REASON_MAX, Role, Room,
    ViewError, ViewNumber, VmId, Wanted,
};

/// Time between two pings as long as the service has not said.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long a failure is told of, and its replica not started again.
const FAILED: Duration = Duration::from_secs(15);
/// A replica that ends with an error sooner than this did not start.
const STARTED: Duration = Duration::from_secs(10);
/// Least time between two starts of a machine's replica.
const AGAIN: Duration = Duration::from_secs(2);

/// A replica's process.
struct Process {
    /// None: an earlier supervisor started it.
    child: Option<Child>,
    /// What it was started as; of one that was found, none.
    role: Option<Role>,
    view: ViewNumber,
    since: Instant,
    /// What stood in its list of complaints before.
    complaints: u64,
}

/// A replica that did not start, or not last time.
struct Failure {
    view: ViewNumber,
    why: String,
    at: Instant,
}

/// A host's supervisor.
pub struct Supervisor {
    /// Its host.
    pub host: HostId,
    /// What it is called.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// What its host has.
    pub room: Room,
    /// The service.
    pub client: Client,
    /// Its state.
    pub folder: std::sync::Arc<Folder>,
    /// What its replicas are told.
    pub common: Common,
    /// The program they are of.
    pub program: PathBuf,
    processes: BTreeMap<VmId, Process>,
    failures: BTreeMap<VmId, Failure>,
    started: BTreeMap<VmId, Instant>,
    events: Trace,
    /// What the service last said of this host's pings, if it was not an answer.
    silent: Option<String>,
}

/// What a supervisor is made of.
pub struct Made {
    /// As [`Supervisor::host`].
    pub host: HostId,
    /// As [`Supervisor::address`].
    pub address: Address,
    /// As [`Supervisor::room`].
    pub room: Room,
    /// As [`Supervisor::client`].
    pub client: Client,
    /// As [`Supervisor::folder`].
    pub folder: std::sync::Arc<Folder>,
    /// As [`Supervisor::common`].
    pub common: Common,
}

impl Supervisor {
    /// One that has found which replicas run.
    ///
    /// # Errors
    /// If its folder is not to be had.
    pub fn new(made: Made) -> Outcome<Self> {
        let path = made.folder.events();
        let events = Trace::open(&path).during(format_args!("cannot write {}", path.display()))?;
        let mut this = Self {
            host: made.host,
            name: made.folder.supervisor()?,
            address: made.address,
            room: made.room,
            client: made.client,
            folder: made.folder,
            common: made.common,
            program: std::env::current_exe().during("cannot find this program")?,
            processes: BTreeMap::new(),
            failures: BTreeMap::new(),
            started: BTreeMap::new(),
            events,
            silent: None,
        };
        for vm in this.folder.vms()? {
            this.adopt(&vm)?;
        }
        Ok(this)
    }

    /// Works until `stop` says so, or its sender is gone. Replicas go on.
    pub fn run(mut self, stop: &Receiver<()>) {
        let mut interval = INTERVAL;
        loop {
            self.notice_ends();
            self.failures
                .retain(|_, failure| failure.at.elapsed() < FAILED);
            match self.client.host(&self.ping()) {
                Ok(orders) => {
                    self.heard(None);
                    interval = Duration::from_millis(orders.ping_interval_ms.clamp(20, 10_000));
                    self.obey(orders);
                }
                Err(e) => self.heard(Some(&e)),
            }
            self.bound_files();
            match stop.recv_timeout(interval) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let left: Vec<_> = self.processes.keys().map(VmId::as_str).collect();
        self.note("left", &format!("these go on: [{}]", left.join(", ")));
    }

    fn ping(&self) -> HostPing {
        let failed = self.failures.iter().map(|(vm, failure)| Failed {
            vm: vm.clone(),
            view: failure.view,
            why: failure.why.clone(),
        });
        HostPing {
            host: self.host.clone(),
            supervisor: self.name.clone(),
            address: self.address.clone(),
            room: self.room.clone(),
            runs: self.processes.keys().cloned().collect(),
            failed: failed.take(FAILED_MAX).collect(),
        }
    }

    /// Notes what happened, for whoever looks at the file and for whoever looks on.
    fn note(&mut self, event: &str, detail: &str) {
        self.events.add(&Line {
            at_ns: vmm::hostclock::monotonic_ns(),
            who: self.host.to_string(),
            event: event.to_owned(),
            detail: detail.to_owned(),
        });
        crate::complain!("tandem: {event}: {detail}");
    }

    /// What the service said, where that is another thing than before.
    fn heard(&mut self, error: Option<&ViewError>) {
        let silent = error.map(ToString::to_string);
        if silent == self.silent {
            return;
        }
        match &silent {
            Some(why) => self.note("no_orders", why),
            None => self.note("orders", "the viewservice answers"),
        }
        self.silent = silent;
    }

    /// Takes a process that runs without having been started here for one of this host's, if there is one.
    fn adopt(&mut self, vm: &VmId) -> Outcome<bool> {
        let path = self.folder.of(vm).join("lock");
        if !lock::is_held(&path)? {
            return Ok(false);
        }
        let pid = lock::holder(&path).map_or("?".into(), |holder| holder.pid.to_string());
        self.note("adopted", &format!("{vm}: process {pid} runs"));
        self.processes.insert(
            vm.clone(),
            Process {
                child: None,
                role: None,
                view: ViewNumber::default(),
                since: Instant::now(),
                complaints: 0,
            },
        );
        Ok(true)
    }

    /// Looks which processes have ended.
    fn notice_ends(&mut self) {
        let mut ended = Vec::new();
        for (vm, process) in &mut self.processes {
            let lock = self.folder.of(vm).join("lock");
            let status = match &mut process.child {
                // Its status is not this process's to hear.
                None => lock::is_held(&lock).is_ok_and(|held| !held).then_some(None),
                Some(child) => child.try_wait().ok().flatten().map(Some),
            };
            ended.extend(status.map(|status| (vm.clone(), status)));
        }
        for (vm, status) in ended {
            if let Some(process) = self.processes.remove(&vm) {
                self.ended(&vm, &process, status);
            }
        }
    }

    fn ended(&mut self, vm: &VmId, process: &Process, status: Option<ExitStatus>) {
        let complaints = self.folder.of(vm).join("stderr");
        let said = folder::last_line(&complaints, process.complaints);
        // What it said before a good end is of its life.
        let said = said.filter(|_| status.is_none_or(|status| !status.success()));
        let how = match status {
            None => "it ended".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(0), _) => "it ended well".to_owned(),
                (Some(code), _) => format!("it ended with code {code}"),
                (None, signal) => format!("it was killed by signal {}", signal.unwrap_or(0)),
            },
        };
        let said = said.map_or(String::new(), |line| format!(": {line}"));
        self.note("ended", &format!("{vm}: {how}{said}"));
        // One more may hold the lock: an earlier supervisor had started it just before its own end.
        if self.adopt(vm).is_ok_and(|adopted| adopted) {
            return;
        }
        let failed = status
            .and_then(|status| status.code())
            .is_some_and(|code| code != 0);
        if failed && process.since.elapsed() < STARTED {
            let role = process
                .role
                .map_or("replica".into(), |role| role.to_string());
            self.fail(vm, process.view, format!("its {role} did not start{said}"));
        }
    }

    fn fail(&mut self, vm: &VmId, view: ViewNumber, why: String) {
        let why = viewservice::cut(why, REASON_MAX);
        let known = self
            .failures
            .get(vm)
            .is_some_and(|failure| failure.why == why);
        if !known {
            self.note("failed", &format!("{vm}: {why}"));
        }
        let at = Instant::now();
        self.failures.insert(vm.clone(), Failure { view, why, at });
    }

    fn obey(&mut self, orders: HostOrders) {
        for vm in &orders.dismiss {
            if self.processes.contains_key(vm) && lock::ask_to_end(&self.folder.of(vm).join("lock"))
            {
                self.note(
                    "dismissed",
                    &format!("{vm}: what waited here is not needed"),
                );
            }
        }
        for wanted in &orders.start {
            let vm = &wanted.vm;
            let rests = self.started.get(vm).is_some_and(|at| at.elapsed() < AGAIN);
            let is_of_it = |failure: &Failure| failure.view == wanted.view.number;
            let failed = self.failures.get(vm).is_some_and(is_of_it);
            if self.processes.contains_key(vm) || failed || rests {
                continue;
            }
            if let Err(e) = self.start(wanted) {
                self.fail(vm, wanted.view.number, e.to_string());
            }
        }
        self.started.retain(|_, at| at.elapsed() < AGAIN);
    }

    /// Starts a replica, if none of its machine runs.
    fn start(&mut self, wanted: &Wanted) -> Outcome {
        let (vm, view) = (&wanted.vm, wanted.view.number);
        let folder = self.folder.make(vm)?;
        if self.adopt(vm)? {
            return Ok(());
        }
        for file in words::files(&wanted.machine) {
            std::fs::File::open(file)
                .during(format_args!("host {} cannot read {file}", self.host))?;
        }
        let words = words::command_line(wanted, &self.common, &folder)
            .map_err(crate::failure::Failure::new)?;
        // Of two orders for one view, whatever became of the first, the second starts nothing.
        if wanted.role == Role::Primary {
            if self.folder.begun(vm).is_some_and(|begun| begun >= view) {
                return Err(crate::failure::Failure::new(format!(
                    "its start in view {view} was tried here already, and is not tried twice{}",
                    folder::last_line(&folder.join("stderr"), 0)
                        .map_or(String::new(), |line| format!(": {line}"))
                )));
            }
            self.folder.begin(vm, view)?;
        }
        let (stdout, stderr) = (
            folder::to_print_to(&folder.join("console"))?,
            folder::to_print_to(&folder.join("stderr"))?,
        );
        let complaints = stderr.metadata().during("its complaints")?.len();
        let child = Command::new(&self.program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .current_dir("/")
            .spawn()
            .during("cannot start a process")?;
        let pid = child.id();
        let process = Process {
            child: Some(child),
            role: Some(wanted.role),
            view,
            since: Instant::now(),
            complaints,
        };
        self.processes.insert(vm.clone(), process);
        self.failures.remove(vm);
        self.started.insert(vm.clone(), Instant::now());
        self.note(
            "started",
            &format!("{vm}: {} of view {view}, process {pid}", wanted.role),
        );
        Ok(())
    }

    fn bound_files(&self) {
        for vm in self.processes.keys() {
            for name in ["console", "stderr"] {
                self.bound(&self.folder.of(vm).join(name));
            }
        }
    }

    fn bound(&self, path: &Path) {
        if let Err(e) = folder::bound(path) {
            tracing::debug!("{}: {e}", path.display());
        }
    }
}
