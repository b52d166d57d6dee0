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

const HELLO: &str = "{\"protocol\":\"tandem-arbiter\",\"version\":2}\n";
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
    let set = format!("\"op\":\"test_and_set\",\"store\":\"{}\"", server.id);
    let cases = [
        (
            String::from("GET / HTTP/1.1\r\n\r\n"),
            "no tandem-arbiter greeting",
        ),
        (HELLO.replace(":2}", ":1}"), "version 1"),
        (format!("{HELLO}nonsense\n"), "no such request"),
        (
            format!("{HELLO}{{\"op\":\"clear\",\"vm\":\"web\",\"view\":1}}\n"),
            "no such request",
        ),
        (
            format!("{HELLO}{{{set},\"vm\":\"../x\",\"view\":1,\"who\":\"a\"}}\n"),
            "no such request",
        ),
        (
            format!("{HELLO}{{{set},\"vm\":\"web\",\"view\":-1,\"who\":\"a\"}}\n"),
            "no such request",
        ),
        (
            // Meant for no store in particular.
            format!("{HELLO}{{\"op\":\"test_and_set\",\"vm\":\"web\",\"view\":1,\"who\":\"a\"}}\n"),
            "no such request",
        ),
        (
            format!("{HELLO}{{{set},\"vm\":\"web\",\"view\":1,\"who\":\"a\"}}\n")
                .replace(&server.id.to_string(), &"0".repeat(32)),
            "other_store",
        ),
        (
            format!("{HELLO}{}\n", "x".repeat(5000)),
            "at most 4096 bytes",
        ),
        ("x".repeat(100_000), "at most 4096 bytes"),
        (
            format!("{HELLO}{}", "[".repeat(4000)) + "\n",
            "no such request",
        ),
    ];
    for (bytes, expected) in cases {
        let said = say(server.address, bytes.as_bytes());
        assert!(said.contains(expected), "to {bytes:.80}: {said}");
    }
    // A request cut off before its newline is none.
    let cut = format!("{{{set},\"vm\":\"web\",\"view\":1,\"who\":\"a\"}}");
    assert_eq!(
        say(server.address, format!("{HELLO}{cut}").as_bytes()),
        HELLO
    );
    assert_eq!(client(server.address).holder(&flag(1)).unwrap(), None);
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
        .run(&bytes, |(greet, bytes)| {
            let greeting = if greet { HELLO } else { "" };
            say(server.address, &[greeting.as_bytes(), &bytes].concat());
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
    for said in ["", &HELLO[..9], HELLO, &format!("{HELLO}{{\"op\":\"tes")] {
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
    stream.write_all(HELLO.as_bytes()).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    replies.read_line(&mut line).unwrap();
    assert_eq!(line, HELLO);
    client(server.address)
        .test_and_set(&flag(1), &who("a"))
        .unwrap();
    // An idle connection does not hold the server up.
    drop(server);
    line.clear();
    assert_eq!(replies.read_line(&mut line).unwrap(), 0, "{line}");
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
fn ask_a_server_that_says(reply: &'static [u8], at_once: bool) -> ArbiterError {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    let store = format!(
        "{HELLO}{{\"reply\":\"store\",\"store\":\"{}\"}}\n",
        "1".repeat(32)
    );
    let server = std::thread::spawn(move || {
        let replies = [store.as_bytes(), reply];
        for reply in &replies[usize::from(at_once)..] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines.next();
            lines.next();
            let _ = stream.write_all(reply);
        }
    });
    let answer = client(address).test_and_set(&flag(1), &who("a"));
    server.join().unwrap();
    let error = answer.expect_err("a verdict out of nothing");
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    error
}

#[test]
fn only_a_verdict_is_a_verdict() {
    use ArbiterError::{Protocol, Refused, StoreFailed, Unreachable};
    type Fits = fn(&ArbiterError) -> bool;
    let cases: [(&[u8], Fits); 9] = [
        (b"", |e| matches!(e, Unreachable { .. })),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", |e| matches!(e, Protocol { .. })),
        (b"{\"protocol\":\"tandem-arbiter\",\"version\":1}\n{\"reply\":\"won\"}\n", |e| {
            matches!(e, Protocol { .. })
        }),
        (b"{\"protocol\":\"tandem-arbiter\",\"version\":2}\n", |e| {
            matches!(e, Unreachable { .. })
        }),
        (b"{\"protocol\":\"tandem-arbiter\",\"version\":2}\n{\"reply\":\"won\"}", |e| {
            matches!(e, Unreachable { .. })
        }),
        (b"{\"protocol\":\"tandem-arbiter\",\"version\":2}\n{\"reply\":\"ready\"}\n", |e| {
            matches!(e, Protocol { .. })
        }),
        (b"{\"reply\":\"refused\",\"reason\":\"no\"}\n", |e| matches!(e, Refused { .. })),
        (
            b"{\"protocol\":\"tandem-arbiter\",\"version\":2}\n{\"reply\":\"store_failed\",\"reason\":\"full\"}\n",
            |e| matches!(e, StoreFailed { .. }),
        ),
        (&[b'x'; 20_000], |e| matches!(e, Unreachable { .. })),
    ];
    for (reply, fits) in cases {
        for at_once in [false, true] {
            let error = ask_a_server_that_says(reply, at_once);
            let reply = String::from_utf8_lossy(reply);
            assert!(fits(&error), "{reply:?}, at once {at_once}: {error}");
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
    _folder: tempfile::TempDir,
    authority: tls::Authority,
}

impl Members {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = tls::Authority::create(folder.path(), 2).unwrap();
        Self {
            _folder: folder,
            authority,
        }
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
    assert!(!say(server.address, HELLO.as_bytes()).contains("store"));
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
