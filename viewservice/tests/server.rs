//! The service over TCP: restarts, a disk that takes nothing, and peers that do not keep to the
//! protocol.

use proptest::prelude::*;
use std::io::{BufRead, BufReader, Read, Write};
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

const ASK: &str = "GET /v1/status HTTP/1.1\r\nHost: tandem\r\n\r\n";
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

/// A request with a body.
fn post(op: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/{op} HTTP/1.1\r\nHost: tandem\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n\
         {body}"
    )
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
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn what_is_no_request_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(dir.path(), None, SETTINGS);
    let ping = "{\"host\":\"a\",\"address\":\"a:1\",\"held\":[]}";
    let bare = |what: &str| format!("{what} HTTP/1.1\r\nHost: tandem\r\n\r\n");
    let cases = [
        (bare("GET /nowhere"), "404"),
        (bare("GET /v2/status"), "no such path"),
        (bare("DELETE /v1/status"), "405"),
        (bare("GET /v1/ping"), "no such request"),
        (post("status", "{}"), "status is asked by GET"),
        (format!("{{\"op\":\"ping\"}}\n{ping}\n"), "400 Bad Request"),
        (post("ping", "nonsense"), "no such request"),
        (post("ping", "[]"), "no such request"),
        (
            post("ping", &ping.replace("\"a\"", "\"a/b\"")),
            "no such request",
        ),
        (post("ping", &ping.replace("a:1", "")), "no such request"),
        (post("fail_over", "{\"vm\":\"web\"}"), "no such request"),
        (post("%ff", ping), "no such request"),
        (
            post("ping", ping).replace("application/json", "text/plain"),
            "415",
        ),
        (
            post("ping", ping).replace("Host: ", "Origin: null\r\nHost: "),
            "403",
        ),
        (
            post("ping", ping).replace("Host: tandem", "Host: rebound.example"),
            "403",
        ),
        (post("ping", &"[".repeat(100_000)), "no such request"),
        (post("ping", &"x".repeat(400_000)), "at most 393216 bytes"),
    ];
    for (bytes, expected) in cases {
        let said = say(service.address, bytes.as_bytes());
        assert!(said.contains(expected), "to {bytes:.120}: {said}");
        assert!(!said.starts_with("HTTP/1.1 200"), "to {bytes:.120}: {said}");
    }
    // One that is cut off is none.
    let whole = post("ping", ping);
    for end in 0..whole.len() {
        let said = say(service.address, &whole.as_bytes()[..end]);
        assert!(!said.contains("orders"), "{end}: {said}");
    }
    assert!(service.client().status().unwrap().hosts.is_empty());
    assert!(say(service.address, whole.as_bytes()).contains("{\"reply\":\"orders\""));
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
        .run(&bytes, |(ask, bytes)| {
            let before = if ask { ASK } else { "" };
            say(service.address, &[before.as_bytes(), &bytes].concat());
            Ok(())
        })
        .unwrap();
    assert!(service.client().status().unwrap().vms.is_empty());
}

#[test]
fn a_host_is_answered_whatever_strangers_hold() {
    let half_a_ping = post("ping", &" ".repeat(200 << 10));
    for said in ["", &ASK[..9], ASK, &half_a_ping[..100 << 10]] {
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

/// A pair whose primary died.
fn a_failover(client: &Client) {
    for name in ["a", "b"] {
        client.ping(&ping(name, &[])).unwrap();
    }
    client.register(&wish()).unwrap();
    client.ping(&ping("a", &[(1, Role::Primary)])).unwrap();
    let won = Report::Solo {
        host: host("b"),
        vm: web(),
        view: ViewNumber(2),
    };
    client.report(&won).unwrap();
    client.ping(&ping("c", &[])).unwrap();
    client.ping(&ping("b", &[(2, Role::Solo)])).unwrap();
    client.ping(&ping("b", &[(3, Role::Primary)])).unwrap();
    client.ping(&ping("a", &[])).unwrap();
}

#[test]
fn metrics_and_health_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(dir.path(), None, SETTINGS);
    a_failover(&service.client());
    let get = |path: &str| say(service.address, ASK.replace("/v1/status", path).as_bytes());
    let metrics = get("/metrics");
    for line in [
        "tandem_hosts{state=\"live\"} 3",
        "tandem_spare_hosts 1",
        "tandem_machines{state=\"protected\"} 1",
        "tandem_machines{state=\"solo\"} 0",
        "tandem_machine_view{vm=\"web\"} 3",
        "tandem_machine_lag_seconds{vm=\"web\"} 0.007",
        "tandem_requests_total{kind=\"ping\",status=\"200\"} 7",
        "tandem_requests_total{kind=\"register\",status=\"200\"} 1",
    ] {
        assert!(
            metrics.lines().any(|said| said == line),
            "{line}: {metrics}"
        );
    }
    assert!(get("/healthz").ends_with("\r\n\r\nok\n"));
    let block = dir.path().join("views.json.new");
    std::fs::create_dir(&block).unwrap();
    let _ = service.client().down(&web());
    assert!(get("/healthz").starts_with("HTTP/1.1 503"));
}

#[test]
fn who_watches_is_told_each_second_and_the_page_is_as_it_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(dir.path(), None, SETTINGS);
    a_failover(&service.client());
    let get = |path: &str| say(service.address, ASK.replace("/v1/status", path).as_bytes());
    let history = get("/v1/history");
    for word in [
        "web: went solo in view 2",
        "web: view 3 acknowledged",
        "\"at_ms\":",
    ] {
        assert!(history.contains(word), "{word}: {history}");
    }
    let page = get("/");
    assert!(
        page.contains("content-security-policy: default-src 'none'"),
        "{page}"
    );
    for file in ["/page.js", "/page.css"] {
        assert!(page.contains(&format!("\"{file}\"")) && get(file).starts_with("HTTP/1.1 200"));
    }
    let stream = TcpStream::connect(service.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream)
        .write_all(ASK.replace("status", "watch").as_bytes())
        .unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    for _ in 0..2 {
        let event = lines.find(|line| line.starts_with("data: ")).unwrap();
        assert!(
            event.contains("\"name\":\"web\",\"role\":\"primary\",\"view\":3"),
            "{event}"
        );
    }
}

/// The page, as Chromium shows it: `cargo test --release -p tandem-viewservice --test server -- --ignored chromium`.
#[test]
#[ignore = "starts Chromium (Debian's package), which takes some seconds"]
fn the_page_is_shown_by_chromium() {
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(dir.path(), None, SETTINGS);
    let client = service.client();
    a_failover(&client);
    // The most that a name may hold; an address is anything that can be printed.
    let strange = Address::new("<img/src=x/onerror=document.title='taken'>:1").unwrap();
    let strange = Ping {
        address: strange.clone(),
        ..ping("d", &[])
    };
    client.ping(&strange).unwrap();
    let mut browser = Browser::start();
    let page = format!("http://{}/", service.address);
    let target = browser.ask(
        "Target.createTarget",
        serde_json::json!({ "url": page }),
        "",
    );
    let target = serde_json::json!({ "targetId": target["targetId"], "flatten": true });
    let session = browser.ask("Target.attachToTarget", target, "");
    let session = session["sessionId"].as_str().unwrap().to_owned();
    let wanted = [
        "<title>Tandem</title>",
        "class=\"good\">live<",
        "<td>web</td>",
        "class=\"good\">protected<",
        "protected again after",
        "web: went solo in view 2",
        "<polyline points=\"",
        "&lt;img/src=x/onerror=document.title='taken'&gt;:1",
    ];
    let begun = std::time::Instant::now();
    loop {
        let html = serde_json::json!({ "expression": "document.documentElement.outerHTML" });
        let shown = browser.ask("Runtime.evaluate", html, &session);
        let shown = shown["result"]["value"].as_str().unwrap_or_default();
        assert!(!shown.contains("<img"), "{shown}");
        if wanted.iter().all(|word| shown.contains(word)) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{shown}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = browser.process.kill();
    let _ = browser.process.wait();
}

/// Chromium, spoken to by its pipe: JSON between zeros.
struct Browser {
    process: std::process::Child,
    said: BufReader<std::process::ChildStdout>,
    asked: u64,
    _home: tempfile::TempDir,
}

impl Browser {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let profile = home.path().display();
        let words = format!(
            "exec chromium --headless --no-sandbox --disable-gpu --user-data-dir={profile} --remote-debugging-pipe \
             3<&0 4>&1 </dev/null >/dev/null 2>&1"
        );
        let mut process = std::process::Command::new("sh")
            .args(["-c", &words])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self {
            process,
            said,
            asked: 0,
            _home: home,
        }
    }

    /// Asks, and returns what comes of it.
    fn ask(&mut self, method: &str, params: serde_json::Value, session: &str) -> serde_json::Value {
        self.asked += 1;
        let mut ask = serde_json::json!({ "id": self.asked, "method": method, "params": params });
        if !session.is_empty() {
            ask["sessionId"] = session.into();
        }
        let bytes = [serde_json::to_vec(&ask).unwrap(), vec![0]].concat();
        let stdin = self.process.stdin.as_mut().unwrap();
        stdin.write_all(&bytes).unwrap();
        loop {
            let mut said = Vec::new();
            self.said.read_until(0, &mut said).unwrap();
            assert_eq!(said.pop(), Some(0), "Chromium is gone; is it installed?");
            let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
            if said["id"] == self.asked {
                return said["result"].clone();
            }
        }
    }
}
