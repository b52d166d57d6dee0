//! The service over TCP: restarts, a disk that takes nothing, and peers that do not keep to the
//! protocol.

use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;
use testing::strangers::{Strangers, compare, times};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use viewservice::{
    Address, Client, Held, HostId, HostState, Ping, Register, Report, Role, Settings, Store,
    ViewError, ViewNumber, VmId,
};

const HELLO: &str = "{\"protocol\":\"tandem-views\",\"version\":1}\n";
const PATIENCE: Duration = Duration::from_secs(30);

/// Hosts here ping only once: they are not to die meanwhile.
const SETTINGS: Settings = Settings {
    ping_interval_ms: 500,
    missed_pings: 10_000,
};

struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(dir: &Path, address: Option<SocketAddr>, settings: Settings) -> Self {
        Self::start_as(tls::Security::Loopback, dir, address, settings)
    }

    fn start_as(
        security: tls::Security,
        dir: &Path,
        address: Option<SocketAddr>,
        settings: Settings,
    ) -> Self {
        let (store, state) = Store::open(dir).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let address = address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let stopped = async {
                let _ = stopped.await;
            };
            runtime.block_on(viewservice::serve(
                listener, security, store, state, settings, stopped,
            ));
        });
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.address.to_string())
            .unwrap()
            .with_timeout(PATIENCE)
    }

    fn restart(&mut self, dir: &Path) {
        let address = self.address;
        self.end();
        *self = Self::start(dir, Some(address), SETTINGS);
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "service panicked"
            );
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn web() -> VmId {
    VmId::new("web").unwrap()
}

fn ping(name: &str, held: &[(u64, Role)]) -> Ping {
    let held = held.iter().map(|(view, role)| Held {
        vm: web(),
        view: ViewNumber(*view),
        role: *role,
        lag_ms: Some(7),
        backup: None,
    });
    Ping {
        host: host(name),
        address: Address::new(format!("{name}:7000")).unwrap(),
        held: held.collect(),
        waits: Vec::new(),
        of: None,
    }
}

fn wish() -> Register {
    Register {
        vm: web(),
        primary: None,
        backup: None,
    }
}

#[test]
fn a_vms_life_with_a_restart_after_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(dir.path(), None, SETTINGS);
    // One client throughout: it outlives the service's restarts.
    let client = service.client();
    for name in ["a", "b"] {
        assert!(
            client
                .ping(&ping(name, &[]))
                .unwrap()
                .assignments
                .is_empty()
        );
    }
    let registered = client.register(&wish()).unwrap();
    assert_eq!(registered.view.number, ViewNumber(1));
    assert_eq!(registered.primary_address.as_str(), "a:7000");
    assert_eq!(registered.backup_address.unwrap().as_str(), "b:7000");
    service.restart(dir.path());

    let again = client.register(&wish()).unwrap_err();
    assert!(matches!(again, ViewError::Refused { .. }), "{again}");
    let orders = client.ping(&ping("a", &[(1, Role::Primary)])).unwrap();
    assert_eq!(orders.ping_interval_ms, 500);
    let order = &orders.assignments[0];
    assert_eq!((order.role, order.acked), (Role::Primary, true));
    assert_eq!(order.peer.as_ref().unwrap().as_str(), "b:7000");
    let status = client.status().unwrap();
    assert_eq!(status.vms[0].role, Some(Role::Primary));
    assert_eq!(status.vms[0].lag_ms, Some(7));
    service.restart(dir.path());

    let won = Report::Solo {
        host: host("b"),
        vm: web(),
        view: ViewNumber(2),
    };
    client.report(&won).unwrap();
    service.restart(dir.path());
    client.report(&won).unwrap();
    let status = client.status().unwrap();
    let vm = &status.vms[0];
    assert_eq!((vm.view, &vm.primary), (ViewNumber(2), &host("b")));
    assert_eq!((&vm.backup, &vm.named), (&None, &None));
    assert!(status.hosts.iter().all(|h| h.state == HostState::Unheard));

    client.ping(&ping("c", &[])).unwrap();
    client.ping(&ping("b", &[(2, Role::Solo)])).unwrap();
    let named = client.status().unwrap().vms[0].named.clone().unwrap();
    assert_eq!(
        (named.number, named.backup),
        (ViewNumber(3), Some(host("c")))
    );
    service.restart(dir.path());
    let orders = client.ping(&ping("c", &[])).unwrap();
    assert_eq!(orders.assignments[0].role, Role::Backup);
    assert!(!orders.assignments[0].acked);

    client.down(&web()).unwrap();
    service.restart(dir.path());
    let orders = client.ping(&ping("b", &[(2, Role::Solo)])).unwrap();
    assert!(orders.assignments[0].stop);
    let ended = Report::Ended {
        host: host("b"),
        vm: web(),
        view: ViewNumber(2),
    };
    client.report(&ended).unwrap();
    client.report(&ended).unwrap();
    service.restart(dir.path());
    assert!(client.status().unwrap().vms.is_empty());
    client.ping(&ping("a", &[])).unwrap();
    assert_eq!(client.register(&wish()).unwrap().view.number, ViewNumber(5));
}

#[test]
fn what_could_not_be_made_durable_is_not_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(dir.path(), None, SETTINGS);
    let client = service.client();
    client.ping(&ping("a", &[])).unwrap();
    client.ping(&ping("b", &[])).unwrap();
    let block = dir.path().join("views.json.new");
    std::fs::create_dir(&block).unwrap();
    let error = client.register(&wish()).unwrap_err();
    assert!(matches!(error, ViewError::Failed { .. }), "{error}");
    assert!(matches!(client.status(), Err(ViewError::Failed { .. })));
    assert!(matches!(
        client.ping(&ping("a", &[])),
        Err(ViewError::Failed { .. })
    ));
    std::fs::remove_dir(&block).unwrap();
    let told = client.status().unwrap();
    assert_eq!(told.vms[0].view, ViewNumber(1));
    service.restart(dir.path());
    assert_eq!(client.status().unwrap().vms[0].view, ViewNumber(1));
}

#[test]
fn a_host_that_stops_pinging_is_dead_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        ping_interval_ms: 5,
        missed_pings: 2,
    };
    let service = Running::start(dir.path(), None, settings);
    let client = service.client();
    client.ping(&ping("a", &[])).unwrap();
    while client.status().unwrap().hosts[0].state != HostState::Dead {}
    client.ping(&ping("a", &[])).unwrap();
    while client.status().unwrap().hosts[0].state != HostState::Dead {}
}

#[test]
fn a_service_that_is_away_costs_a_caller_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(dir.path(), None, SETTINGS);
    let client = service.client();
    client.ping(&ping("a", &[])).unwrap();
    service.end();
    let error = client.ping(&ping("a", &[])).unwrap_err();
    assert!(matches!(error, ViewError::Unreachable { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
    assert!(error.to_string().contains(&service.address.to_string()));
    for bad in ["", "host", "host:", ":1", "host:0", "a b:1"] {
        assert!(matches!(
            Client::new(bad),
            Err(ViewError::BadAddress { .. })
        ));
    }
}

/// Sends `bytes`, closes that direction, and returns all the server says.
fn say(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The server may have closed already.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8(said).unwrap()
}

#[test]
fn what_is_no_request_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(dir.path(), None, SETTINGS);
    let ping = "{\"op\":\"ping\",\"host\":\"a\",\"address\":\"a:1\",\"held\":[]}";
    let cases = [
        (
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            "no tandem-views greeting",
        ),
        (HELLO.replace(":1}", ":9}"), "version 9"),
        (format!("{ping}\n"), "no tandem-views greeting"),
        (format!("{HELLO}nonsense\n"), "no such request"),
        (
            format!("{HELLO}{}\n", ping.replace("\"a\"", "\"a/b\"")),
            "no such request",
        ),
        (
            format!("{HELLO}{}\n", ping.replace("a:1", "")),
            "no such request",
        ),
        (
            format!("{HELLO}{{\"op\":\"fail_over\",\"vm\":\"web\"}}\n"),
            "no such request",
        ),
        (
            format!("{HELLO}{}\n", "[".repeat(100_000)),
            "no such request",
        ),
        (
            format!("{HELLO}{}\n", "x".repeat(400_000)),
            "at most 393216 bytes",
        ),
    ];
    for (bytes, expected) in cases {
        let said = say(service.address, bytes.as_bytes());
        assert!(said.contains(expected), "to {bytes:.80}: {said}");
    }
    assert_eq!(
        say(service.address, format!("{HELLO}{ping}").as_bytes()),
        HELLO
    );
    assert!(service.client().status().unwrap().hosts.is_empty());
}

#[test]
fn any_bytes_leave_the_service_serving() {
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(dir.path(), None, SETTINGS);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let bytes = (
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..6000),
    );
    runner
        .run(&bytes, |(greet, bytes)| {
            let greeting = if greet { HELLO } else { "" };
            say(service.address, &[greeting.as_bytes(), &bytes].concat());
            Ok(())
        })
        .unwrap();
    assert!(service.client().status().unwrap().vms.is_empty());
}

#[test]
fn a_host_is_answered_whatever_strangers_hold() {
    let half_a_ping = format!("{HELLO}{{\"op\":\"ping\"{}", " ".repeat(100 << 10));
    for said in ["", &HELLO[..9], HELLO, &half_a_ping] {
        let dir = tempfile::tempdir().unwrap();
        let server = Running::start(dir.path(), None, SETTINGS);
        let ping = Ping {
            host: HostId::new("a").unwrap(),
            address: Address::new("x:1").unwrap(),
            held: Vec::new(),
            waits: Vec::new(),
            of: None,
        };
        let client = server.client();
        let ask = |client: &Client| drop(client.ping(&ping).unwrap());
        let alone = times(|| ask(&client));
        let strangers = Strangers::at(server.address, said.as_bytes());
        let among = times(|| ask(&client));
        compare(&alone, &among);
        let among = times(|| ask(&server.client()));
        compare(&alone, &among);
        println!(
            "{} of {} strangers are held",
            strangers.held(),
            strangers.count()
        );
    }
}

#[test]
fn a_service_that_lost_its_state_learns_of_a_machine_and_can_end_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Running::start(dir.path(), None, SETTINGS);
    let vm = VmId::new("web").unwrap();
    let ping = |client: &Client, host: &str, view, role| {
        let held = Held {
            vm: vm.clone(),
            view: ViewNumber(view),
            role,
            lag_ms: None,
            backup: None,
        };
        let ping = Ping {
            host: HostId::new(host).unwrap(),
            address: Address::new(format!("{host}:1")).unwrap(),
            held: vec![held],
            waits: Vec::new(),
            of: None,
        };
        client.ping(&ping).unwrap()
    };
    let client = server.client();
    ping(&client, "a", 1, Role::Primary);
    ping(&client, "b", 1, Role::Backup);
    server.end();
    std::fs::remove_file(dir.path().join("views.json")).unwrap();
    server = Running::start(dir.path(), Some(server.address), SETTINGS);
    assert!(client.status().unwrap().vms.is_empty());
    // Over the connections they had, and from the next ping on.
    ping(&client, "b", 2, Role::Backup);
    ping(&client, "a", 2, Role::Primary);
    let status = client.status().unwrap();
    let [web] = status.vms.as_slice() else {
        panic!("{status:?}");
    };
    assert_eq!((web.view, web.primary.as_str()), (ViewNumber(2), "a"));
    assert_eq!(web.backup, Some(HostId::new("b").unwrap()));
    client.down(&vm).unwrap();
    // It is durable.
    server.restart(dir.path());
    let orders = ping(&server.client(), "a", 2, Role::Primary);
    assert!(orders.assignments[0].stop, "{orders:?}");
}

#[test]
fn a_host_speaks_of_itself_and_of_its_machines_and_an_operator_of_all() {
    use tls::Role::{Host, Operator, Service};
    let folder = tempfile::tempdir().unwrap();
    let authority = tls::Authority::create(folder.path(), 2).unwrap();
    let member = |role, name: &str, vms: &[&str]| {
        let vms: Vec<_> = vms.iter().map(|&vm| vm.to_owned()).collect();
        let member = tls::Member::new(role, name).unwrap();
        let identity = authority.issue(&member, &vms, 1, false).unwrap();
        tls::Security::Tls(tls::Tls::open(&identity).unwrap())
    };
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start_as(member(Service, "core", &[]), dir.path(), None, SETTINGS);
    let client = |security| service.client().secured(security);
    let [a, b] = ["a", "b"].map(|name| client(member(Host, name, &["web"])));
    let other = client(member(Host, "c", &["db"]));
    let operator = client(member(Operator, "ann", &[]));

    #[track_caller]
    fn refused<T: std::fmt::Debug>(asked: Result<T, ViewError>, word: &str) {
        let error = asked.unwrap_err();
        assert!(matches!(error, ViewError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    refused(b.ping(&ping("a", &[])), "may not speak for host a");
    refused(
        other.ping(&ping("c", &[(1, Role::Backup)])),
        "may not run 'web'",
    );
    let waits = Ping {
        waits: vec![web()],
        ..ping("c", &[])
    };
    refused(other.ping(&waits), "may not run 'web'");
    a.ping(&ping("a", &[])).unwrap();
    b.ping(&ping("b", &[])).unwrap();
    let wish = |primary: Option<&str>| Register {
        vm: web(),
        primary: primary.map(host),
        backup: Some(host("b")),
    };
    refused(other.register(&wish(Some("c"))), "may not run 'web'");
    refused(b.register(&wish(Some("a"))), "may not speak for host a");
    refused(b.register(&wish(None)), "operator");
    a.register(&wish(Some("a"))).unwrap();
    let solo = Report::Solo {
        host: host("a"),
        vm: web(),
        view: ViewNumber(2),
    };
    refused(b.report(&solo), "may not speak for host a");
    refused(a.down(&web()), "no operator");
    assert_eq!(other.status().unwrap().vms.len(), 1);
    operator.down(&web()).unwrap();
}
