//! The server against peers that do not keep to the protocol, and the client against servers that
//! do not.

mod rigs;
use proptest::prelude::*;
use rigs::Running;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use testandset::{
    Arbiter, ArbiterError, Bounds, Contender, Flag, ServerArbiter, Verdict, ViewNumber, VmId,
};
use testing::strangers::{Strangers, compare, times};

/// A question that brings no flag.
const ASK: &str = "GET /v1/store HTTP/1.1\r\nHost: tandem\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(30);

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn client(address: SocketAddr) -> ServerArbiter {
    ServerArbiter::new(&address.to_string())
        .unwrap()
        .with_timeout(PATIENCE)
}

fn flag(view: u64) -> Flag {
    Flag {
        vm: VmId::new("web").unwrap(),
        view: ViewNumber(view),
    }
}

fn who(name: &str) -> Contender {
    Contender::new(name).unwrap()
}

/// A request with a body.
fn put(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "PUT {path} HTTP/1.1\r\nHost: tandem\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n\
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
fn what_is_no_request_is_refused_and_sets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), any_port());
    let set = format!("{{\"store\":\"{}\",\"who\":\"a\"}}", server.id);
    let path = "/v1/flags/web/1";
    let bare = |what: &str| format!("{what} HTTP/1.1\r\nHost: tandem\r\n\r\n");
    let cases = [
        (bare("GET /"), "404"),
        (bare("GET /v2/store"), "no such path"),
        (bare("DELETE /v1/flags/web/1"), "405"),
        (bare("X1234 /v1/flags/web/1"), "405"),
        (bare("POST /v1/flags/web/1"), "not by this method"),
        (
            "{\"protocol\":\"tandem-arbiter\",\"version\":2}\n".into(),
            "400 Bad Request",
        ),
        (put(path, "nonsense"), "no such request"),
        (put("/v1/flags/..%2fx/1", &set), "no such request"),
        (put("/v1/flags/%ff/1", &set), "no such request"),
        (put("/v1/flags/web/-1", &set), "a view is a number"),
        (put("/v1/flags/web/+1", &set), "a view is a number"),
        (
            put("/v1/flags/web/18446744073709551616", &set),
            "a view is a number",
        ),
        // Meant for no store in particular.
        (put(path, "{\"who\":\"a\"}"), "missing field `store`"),
        (
            put(path, &set.replace(&server.id.to_string(), &"0".repeat(32))),
            "409 Conflict",
        ),
        (
            put(path, &set.replace(":\"a\"", ":\"a b\"")),
            "no such request",
        ),
        // A page in a browser can send this much without being allowed to.
        (
            put(path, &set).replace("application/json", "text/plain"),
            "415 Unsupported",
        ),
        (
            put(path, &set).replace("Host: ", "Origin: http://elsewhere\r\nHost: "),
            "403 Forbidden",
        ),
        (
            put(path, &set).replace("Host: tandem", "Host: rebound.example"),
            "403 Forbidden",
        ),
        (put(path, &" ".repeat(5000)), "at most 4096 bytes"),
        (put(path, &"[".repeat(4000)), "no such request"),
        (
            format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000)),
            "4",
        ),
        (
            format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(10_000)),
            "431",
        ),
    ];
    for (bytes, expected) in cases {
        let said = say(server.address, bytes.as_bytes());
        assert!(said.contains(expected), "to {bytes:.120}: {said}");
        assert!(!said.starts_with("HTTP/1.1 200"), "to {bytes:.120}: {said}");
    }
    // A request cut off before its end is none.
    let whole = put(path, &set);
    for end in 0..whole.len() {
        let said = say(server.address, &whole.as_bytes()[..end]);
        assert!(!said.contains("verdict"), "{end}: {said}");
    }
    assert_eq!(client(server.address).holder(&flag(1)).unwrap(), None);
    // What a peer makes up is not kept as a name of what is counted.
    let metrics = say(
        server.address,
        ASK.replace("/v1/store", "/metrics").as_bytes(),
    );
    assert!(
        metrics.contains("{kind=\"other\",status=\"405\"} 2"),
        "{metrics}"
    );
    assert!(!metrics.contains("X1234"), "{metrics}");
    assert!(say(server.address, whole.as_bytes()).ends_with("{\"verdict\":\"won\"}"));
}

#[test]
fn any_bytes_leave_the_server_serving() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), any_port());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
    let bytes = (
        any::<bool>(),
        proptest::collection::vec(any::<u8>(), 0..6000),
    );
    runner
        .run(&bytes, |(ask, bytes)| {
            let before = if ask { ASK } else { "" };
            say(server.address, &[before.as_bytes(), &bytes].concat());
            Ok(())
        })
        .unwrap();
    let arbiter = client(server.address);
    assert_eq!(
        arbiter.test_and_set(&flag(1), &who("a")).unwrap(),
        Verdict::Won
    );
}

#[test]
fn a_contender_is_answered_whatever_strangers_hold() {
    for said in ["", &ASK[..9], ASK, &format!("{ASK}{}", &ASK[..20])] {
        let dir = tempfile::tempdir().unwrap();
        let server = Running::start(dir.path(), any_port());
        let mut view = 0;
        let mut set = |arbiter: &ServerArbiter| {
            view += 1;
            let verdict = arbiter.test_and_set(&flag(view), &who("a")).unwrap();
            assert_eq!(verdict, Verdict::Won);
        };
        let connected = client(server.address);
        let alone = times(|| set(&connected));
        let strangers = Strangers::at(server.address, said.as_bytes());
        let among = times(|| set(&connected));
        compare(&alone, &among);
        let among = times(|| set(&client(server.address)));
        compare(&alone, &among);
        println!(
            "{} of {} strangers are held",
            strangers.held(),
            strangers.count()
        );
    }
}

#[test]
fn a_server_that_stops_answers_what_it_took_and_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), any_port());
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(ASK.as_bytes()).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    replies.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    client(server.address)
        .test_and_set(&flag(1), &who("a"))
        .unwrap();
    // An idle connection does not hold the server up.
    let id = server.id;
    drop(server);
    let mut rest = String::new();
    replies.read_to_string(&mut rest).unwrap();
    assert!(
        rest.ends_with(&format!("\r\n\r\n{{\"store\":\"{id}\"}}")),
        "{rest}"
    );
    let server = Running::start(dir.path(), any_port());
    assert_eq!(server.recovery.flags, 1);
    let again = client(server.address);
    assert_eq!(
        again.test_and_set(&flag(1), &who("a")).unwrap(),
        Verdict::Won
    );
}

#[test]
fn a_client_at_its_bound_is_told_so_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        flags_per_client: 2,
        ..Bounds::default()
    };
    let server = Running::start_within(bounds, dir.path(), any_port());
    let arbiter = client(server.address);
    for view in [1, 2] {
        arbiter.test_and_set(&flag(view), &who("a")).unwrap();
    }
    let refused = arbiter.test_and_set(&flag(3), &who("a")).unwrap_err();
    assert!(
        matches!(refused, ArbiterError::TooManyFlags { .. }),
        "{refused}"
    );
    assert_eq!(arbiter.holder(&flag(3)).unwrap(), None);
    let again = arbiter.test_and_set(&flag(2), &who("b")).unwrap();
    assert_eq!(again, Verdict::Lost { holder: who("a") });
}

#[test]
fn a_torn_record_is_cut_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), any_port());
    client(server.address)
        .test_and_set(&flag(1), &who("a"))
        .unwrap();
    drop(server);
    let log = dir.path().join("flags.log");
    let mut file = std::fs::File::options().append(true).open(log).unwrap();
    let torn = b"1a2b3c4d {\"vm\":\"web\",\"vi";
    file.write_all(torn).unwrap();
    let server = Running::start(dir.path(), any_port());
    assert_eq!(server.recovery.flags, 1);
    assert_eq!(server.recovery.cut_bytes, torn.len());
}

/// What the client makes of a server that answers `reply` when it is asked for a flag; `at_once`: already
/// when it is asked for its store.
fn ask_a_server_that_says(reply: Vec<u8>, at_once: bool) -> ArbiterError {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    let store = says("200 OK", &format!("{{\"store\":\"{}\"}}", "1".repeat(32)));
    // The client may ask again, over a new connection, where one it kept breaks.
    let server = std::thread::spawn(move || {
        let mut asked = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            // The request line; whoever says nothing wants this to end.
            let Some(Ok(line)) = lines.next() else { return };
            let is_store = line.starts_with("GET /v1/store ");
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            asked += 1;
            assert!(asked < 5, "{line}");
            let says = if is_store && !at_once { &store } else { &reply };
            let _ = stream.write_all(says);
        }
    });
    let answer = client(address).test_and_set(&flag(1), &who("a"));
    drop(TcpStream::connect(address));
    server.join().unwrap();
    let error = answer.expect_err("a verdict out of nothing");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    error
}

/// A reply, after which the connection is closed.
fn says(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into()
}

#[test]
fn only_a_verdict_is_a_verdict() {
    use ArbiterError::{OtherStore, Protocol, Refused, StoreFailed, TooManyFlags, Unreachable};
    type Fits = fn(&ArbiterError) -> bool;
    let won = "{\"verdict\":\"won\"}";
    let cases: [(Vec<u8>, Fits); 17] = [
        (Vec::new(), |e| {
            matches!(e, Unreachable { .. } | Protocol { .. })
        }),
        (
            b"{\"protocol\":\"tandem-arbiter\",\"version\":2}\n".to_vec(),
            |e| matches!(e, Protocol { .. }),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{\"verdict\":\"won\"".to_vec(),
            |e| matches!(e, Unreachable { .. } | Protocol { .. }),
        ),
        (says("400 Bad Request", ""), |e| {
            matches!(e, Protocol { .. })
        }),
        (says("204 No Content", ""), |e| matches!(e, Protocol { .. })),
        (says("200 OK", ""), |e| matches!(e, Protocol { .. })),
        (says("200 OK", "{\"ready\":true}"), |e| {
            matches!(e, Protocol { .. })
        }),
        (says("200 OK", "{\"verdict\":\"lost\"}"), |e| {
            matches!(e, Protocol { .. })
        }),
        (says("201 Created", won), |e| matches!(e, Protocol { .. })),
        (says("404 Not Found", won), |e| matches!(e, Protocol { .. })),
        (says("500 Internal Server Error", won), |e| {
            matches!(e, Protocol { .. })
        }),
        (says("302 Found\r\nLocation: /v1/store", won), |e| {
            matches!(e, Protocol { .. })
        }),
        (says("403 Forbidden", "{\"error\":\"no\"}"), |e| {
            matches!(e, Refused { .. })
        }),
        (
            says("507 Insufficient Storage", "{\"error\":\"many\"}"),
            |e| matches!(e, TooManyFlags { .. }),
        ),
        (
            says("503 Service Unavailable", "{\"error\":\"full\"}"),
            |e| matches!(e, StoreFailed { .. }),
        ),
        (
            says(
                "409 Conflict",
                &format!("{{\"error\":\"other\",\"store\":\"{}\"}}", "2".repeat(32)),
            ),
            |e| matches!(e, OtherStore { .. } | Protocol { .. }),
        ),
        (says("200 OK", &"x".repeat(20_000)), |e| {
            matches!(e, Unreachable { .. })
        }),
    ];
    for (reply, fits) in cases {
        for at_once in [false, true] {
            let error = ask_a_server_that_says(reply.clone(), at_once);
            let reply = String::from_utf8_lossy(&reply);
            assert!(fits(&error), "{reply:.200?}, at once {at_once}: {error}");
        }
    }
}

#[test]
fn a_server_that_never_answers_is_out_of_reach_in_time() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let arbiter = ServerArbiter::new(&address)
        .unwrap()
        .with_timeout(Duration::from_millis(50));
    let error = arbiter.check().unwrap_err();
    assert!(
        error.to_string().contains("no answer within 50 ms"),
        "{error}"
    );
}

/// A cluster's authority, and the identity of a member of each kind.
struct Members {
    folder: tempfile::TempDir,
    authority: tls::Authority,
}

impl Members {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = tls::Authority::create(folder.path(), 2).unwrap();
        Self { folder, authority }
    }

    fn member(&self, role: tls::Role, name: &str, vms: &[&str]) -> tls::Security {
        let member = tls::Member::new(role, name).unwrap();
        let vms: Vec<_> = vms.iter().map(|&vm| vm.to_owned()).collect();
        let identity = self.authority.issue(&member, &vms, 1, false).unwrap();
        tls::Security::Tls(tls::Tls::open(&identity).unwrap())
    }
}

#[test]
fn a_host_sets_flags_of_its_machines_in_its_own_name_and_no_others() {
    use tls::Role::{Host, Operator, Service};
    let dir = tempfile::tempdir().unwrap();
    let members = Members::new();
    let service = members.member(Service, "core", &[]);
    let server = Running::start_as(service, Bounds::default(), dir.path(), any_port());
    let ask = |security: tls::Security| client(server.address).secured(security);
    let a = ask(members.member(Host, "a", &["web"]));
    let other = ask(members.member(Host, "c", &["db"]));
    let operator = ask(members.member(Operator, "ann", &[]));

    let refused = |by: &ServerArbiter, name: &str| {
        let error = by.test_and_set(&flag(1), &who(name)).unwrap_err();
        assert!(matches!(error, ArbiterError::Refused { .. }), "{error}");
        assert_eq!(operator.holder(&flag(1)).unwrap(), None, "{name}");
        error.to_string()
    };
    let why = refused(&other, "c.backup.1.2");
    assert!(why.contains("host c may not run 'web'"), "{why}");
    for name in [
        "b.backup.1.2",
        "a",
        "a.b.backup.1.2",
        "b.a.backup.1.2",
        "a.x",
    ] {
        let why = refused(&a, name);
        assert!(why.contains("host a may not set a flag for"), "{why}");
    }
    let name = who("a.primary.1.2");
    assert_eq!(a.test_and_set(&flag(1), &name).unwrap(), Verdict::Won);
    let ended = name.end_mark().unwrap();
    assert_eq!(a.test_and_set(&flag(2), &ended).unwrap(), Verdict::Won);
    // Who may not set may read; an operator sets any.
    assert_eq!(other.holder(&flag(1)).unwrap(), Some(name));
    let by_hand = who("by-hand");
    assert_eq!(
        operator.test_and_set(&flag(3), &by_hand).unwrap(),
        Verdict::Won
    );
}

#[test]
fn strangers_get_no_word_from_the_arbiter_and_none_is_taken_from_another() {
    use tls::Role::{Host, Service};
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Members::new(), Members::new());
    let service = ours.member(Service, "core", &[]);
    let server = Running::start_as(service, Bounds::default(), dir.path(), any_port());
    let out_of_reach = |security: tls::Security, address| {
        let error = client(address).secured(security).store().unwrap_err();
        assert!(matches!(error, ArbiterError::Unreachable { .. }), "{error}");
        error.to_string()
    };
    let host = ours.member(Host, "a", &["web"]);
    let why = out_of_reach(theirs.member(Host, "a", &["web"]), server.address);
    assert!(why.contains("not of this cluster's authority"), "{why}");
    let why = out_of_reach(tls::Security::Loopback, server.address);
    assert!(why.contains("it speaks TLS"), "{why}");
    assert!(!say(server.address, ASK.as_bytes()).contains("store"));
    // A host that gives itself out for the arbiter, and one without TLS.
    let dir = tempfile::tempdir().unwrap();
    let false_one = Running::start_as(host.clone(), Bounds::default(), dir.path(), any_port());
    let why = out_of_reach(host.clone(), false_one.address);
    assert!(why.contains("not for what it is called for"), "{why}");
    let dir = tempfile::tempdir().unwrap();
    let plain = Running::start(dir.path(), any_port());
    let why = out_of_reach(host.clone(), plain.address);
    assert!(why.contains("does not speak TLS"), "{why}");
    // Nobody of these kept anybody out.
    let asked = client(server.address).secured(host);
    assert_eq!(asked.store().unwrap(), server.id);
}

/// Prints how long a verdict takes: over the connection that is kept, as at a failover, and over a new one.
/// `holder` writes nothing, so it is the transport alone.
#[test]
#[ignore = "a measurement: -- --ignored --nocapture how_long"]
fn how_long_a_verdict_takes() {
    const CALLS: u64 = 2000;
    use tls::Role::{Host, Service};
    let members = Members::new();
    let secured = [
        members.member(Service, "core", &[]),
        members.member(Host, "a", &["web"]),
    ];
    for (name, [server, host]) in [
        (
            "plaintext",
            [tls::Security::Loopback, tls::Security::Loopback],
        ),
        ("TLS", secured),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Running::start_as(server, Bounds::default(), dir.path(), any_port());
        let new = || client(server.address).secured(host.clone());
        let kept = new();
        let me = who("a.primary.1.2");
        let timed = |what: &str, calls: u64, call: &dyn Fn(u64)| {
            let mut times: Vec<_> = (0..calls)
                .map(|n| {
                    // As after a while in which nothing was asked.
                    std::thread::sleep(Duration::from_millis(1));
                    let began = std::time::Instant::now();
                    call(n);
                    began.elapsed().as_micros()
                })
                .collect();
            times.sort_unstable();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100];
            println!(
                "{name}, {what}: p50 {} us, p90 {} us, p99 {} us",
                at(50),
                at(90),
                at(99)
            );
        };
        timed("set, kept connection", CALLS, &|n| {
            let verdict = kept.test_and_set(&flag(n), &me).unwrap();
            assert_eq!(verdict, Verdict::Won);
        });
        timed("holder, kept connection", CALLS, &|n| {
            assert_eq!(kept.holder(&flag(n)).unwrap().as_ref(), Some(&me));
        });
        timed("store, new connection", CALLS / 4, &|_| {
            assert_eq!(new().store().unwrap(), server.id);
        });
    }
}

#[test]
fn a_person_reads_flags_health_and_metrics_with_curl() {
    let dir = tempfile::tempdir().unwrap();
    let members = Members::new();
    let service = members.member(tls::Role::Service, "core", &[]);
    let server = Running::start_as(service, Bounds::default(), dir.path(), any_port());
    let host = members.member(tls::Role::Host, "a", &["web"]);
    let arbiter = client(server.address).secured(host);
    let name = who("a.primary.1.2");
    arbiter.test_and_set(&flag(7), &name).unwrap();
    let folder = members.folder.path().join("hosts/a");
    let curl = |path: &str, with: bool| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20"]);
        curl.args(["--connect-to", &format!("::{}", server.address)]);
        curl.arg("--cacert").arg(folder.join("ca.pem"));
        if with {
            // One file has both.
            curl.arg("--cert").arg(folder.join("identity.pem"));
            curl.arg("--key").arg(folder.join("identity.pem"));
        }
        let output = curl
            .arg(format!("https://service.tandem.internal{path}"))
            .output();
        output
            .ok()
            .map(|output| String::from_utf8(output.stdout).unwrap())
    };
    let Some(held) = curl("/v1/flags/web/7", true) else {
        return testing::skipped::skip_this(&"there is no curl");
    };
    assert_eq!(held, "{\"holder\":\"a.primary.1.2\"}");
    let newest = curl("/v1/flags/web", true).unwrap();
    assert_eq!(
        newest,
        "{\"newest\":{\"view\":7,\"holder\":\"a.primary.1.2\"}}"
    );
    assert_eq!(curl("/healthz", true).unwrap(), "ok\n");
    assert_eq!(curl("/healthz", false).unwrap(), "", "a stranger");
    let metrics = curl("/metrics", true).unwrap();
    for line in [
        "tandem_arbiter_flags 1",
        "tandem_strangers_total 1",
        "tandem_requests_total{kind=\"PUT /v1/flags/{vm}/{view}\",status=\"200\"} 1",
        "tandem_store_seconds_count 1",
    ] {
        assert!(
            metrics.lines().any(|said| said == line),
            "{line}: {metrics}"
        );
    }
}
