//! Who is let in, and who is not: over real sockets, with identities as `tandem init` makes them.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tls::{Authority, IDENTITY, Member, Peer, Role, Security, Stream, Tls};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A cluster with an authority.
struct Cluster {
    folder: TempDir,
    authority: Authority,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), 30).unwrap();
        Self { folder, authority }
    }

    fn issue(&self, role: Role, name: &str, vms: &[&str]) -> PathBuf {
        let vms: Vec<_> = vms.iter().map(|&vm| vm.to_owned()).collect();
        let member = Member::new(role, name).unwrap();
        self.authority.issue(&member, &vms, 10, false).unwrap()
    }

    /// Host `name`, which may run "web".
    fn host(&self, name: &str) -> Security {
        secure(&self.issue(Role::Host, name, &["web"]))
    }
}

fn secure(identity: &std::path::Path) -> Security {
    Security::Tls(Tls::open(identity).unwrap())
}

fn of_web(peer: &Peer) -> Result<(), String> {
    peer.is_host_of("web")
}

fn sockets() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let sockets = [near, listener.accept().unwrap().0];
    for socket in &sockets {
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
    }
    sockets
}

/// What either end finds when one says something to the other: `near` calls, `far` answers and listens.
fn meet(near: Stream, mut far: Stream) -> (io::Result<()>, io::Result<Peer>) {
    let calling = std::thread::spawn(move || {
        let mut near = near;
        near.write_all(b"x")?;
        // A refusal of what it showed comes after its own part of the handshake.
        near.read_exact(&mut [0])
    });
    let heard = far.read_exact(&mut [0]).and_then(|()| far.write_all(b"y"));
    let heard = heard.map(|()| far.peer().unwrap().clone());
    drop(far);
    (calling.join().unwrap(), heard)
}

fn call(near: &Security, far: &Security, role: Role) -> (io::Result<()>, io::Result<Peer>) {
    let [calls, answers] = sockets();
    let near = near.call(calls, role, |_| Ok(())).unwrap();
    meet(near, far.answer(answers, of_web).unwrap())
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(met: io::Result<T>, word: &str) {
    let error = met.unwrap_err();
    assert!(error.to_string().contains(word), "'{word}' in: {error}");
}

#[test]
fn two_hosts_of_one_cluster_know_each_other() {
    let cluster = Cluster::new();
    let (near, far) = call(&cluster.host("a"), &cluster.host("b"), Role::Host);
    near.unwrap();
    let peer = far.unwrap();
    assert_eq!((peer.host(), peer.vms()), (Some("a"), &["web".into()][..]));
}

#[test]
fn a_foreign_cluster_is_refused_by_both() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let (near, far) = call(&ours.host("a"), &theirs.host("a"), Role::Host);
    is_refused(near, "not of this cluster's authority");
    is_refused(far, "authority");
}

#[test]
fn an_expired_certificate_is_refused_and_so_is_one_of_tomorrow() {
    let cluster = Cluster::new();
    let at = |name: &str, from: SystemTime| {
        let member = Member::host(name).unwrap();
        let issued = cluster
            .authority
            .issue_at(&member, &["web".into()], (from, 5), false);
        secure(&issued.unwrap())
    };
    let old = at("old", SystemTime::now() - DAY * 6);
    let early = at("early", SystemTime::now() + DAY * 2);
    let good = cluster.host("b");
    is_refused(call(&old, &good, Role::Host).1, "expired");
    is_refused(call(&good, &old, Role::Host).0, "expired");
    is_refused(call(&early, &good, Role::Host).1, "not valid yet");
}

#[test]
fn who_shows_no_certificate_is_refused() {
    let cluster = Cluster::new();
    let host = cluster.host("b");
    let [calls, answers] = sockets();
    let far = host.answer(answers, of_web).unwrap();
    // A client that believes the authority and has nothing to show.
    let ca = fs::read(cluster.folder.path().join("ca.pem")).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let mut roots = rustls::RootCertStore::empty();
    let certificate = rustls::pki_types::pem::PemObject::from_pem_slice(&ca).unwrap();
    roots.add(certificate).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "host.tandem.internal".try_into().unwrap();
    let client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let calling = std::thread::spawn(move || {
        let mut stream = rustls::StreamOwned::new(client, calls);
        stream
            .write_all(b"x")
            .and_then(|()| stream.read_exact(&mut [0]))
    });
    let mut far = far;
    is_refused(far.read_exact(&mut [0]), "no certificate");
    drop(far);
    calling.join().unwrap().unwrap_err();
}

#[test]
fn who_does_not_speak_tls_is_refused_and_told_so() {
    let cluster = Cluster::new();
    let [mut calls, answers] = sockets();
    calls
        .write_all(b"TANDEMLC and something that is long enough")
        .unwrap();
    let mut far = cluster.host("b").answer(answers, of_web).unwrap();
    is_refused(far.read_exact(&mut [0]), "does not speak TLS");
}

#[test]
fn names_decide_what_one_may_do() {
    let cluster = Cluster::new();
    let host = cluster.host("b");
    let of_db = secure(&cluster.issue(Role::Host, "db", &["db"]));
    is_refused(
        call(&of_db, &host, Role::Host).1,
        "host db may not run 'web'",
    );
    let service = secure(&cluster.issue(Role::Service, "arbiter", &[]));
    is_refused(call(&service, &host, Role::Host).1, "runs no machine");
    let operator = secure(&cluster.issue(Role::Operator, "ann", &[]));
    is_refused(call(&operator, &host, Role::Host).1, "runs no machine");
    // A host is not taken for an arbiter, and an operator for nobody who is called.
    is_refused(
        call(&operator, &host, Role::Service).0,
        "not for what it is called for",
    );
    is_refused(call(&host, &operator, Role::Host).0, "certificate");
}

#[test]
fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let cluster = Cluster::new();
    let folder = cluster.issue(Role::Host, "a", &["web"]);
    let tls = Tls::open(&folder).unwrap();
    assert_eq!(tls.own().vms(), ["web"]);
    let member = Member::host("a").unwrap();
    let again = cluster.authority.issue(&member, &["db".into()], 10, false);
    assert!(again.unwrap_err().to_string().contains("--renew"));
    let renewed = cluster.authority.issue(&member, &["db".into()], 10, true);
    assert_eq!(renewed.unwrap(), folder);
    assert_eq!(tls.own().vms(), ["db"]);
    fs::write(folder.join(IDENTITY), "half").unwrap();
    assert_eq!(tls.own().vms(), ["db"]);
}

#[test]
fn keys_are_their_owners_alone() {
    let cluster = Cluster::new();
    let folder = cluster.issue(Role::Host, "a", &["web"]);
    for key in [folder.join(IDENTITY), cluster.folder.path().join("ca.key")] {
        let mode = fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    }
    let refused = Tls::open(&folder).unwrap_err().to_string();
    assert!(
        refused.contains("chmod 600") && refused.lines().count() == 1,
        "{refused}"
    );
    let Err(refused) = Authority::open(cluster.folder.path()) else {
        panic!("a key that others can read was used");
    };
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[test]
fn an_authority_opened_again_signs_for_the_same_cluster_and_is_not_made_twice() {
    let cluster = Cluster::new();
    let again = Authority::open(cluster.folder.path()).unwrap();
    let member = Member::host("b").unwrap();
    let b = secure(&again.issue(&member, &["web".into()], 10, false).unwrap());
    let (near, far) = call(&cluster.host("a"), &b, Role::Host);
    near.unwrap();
    far.unwrap();
    assert!(Authority::create(cluster.folder.path(), 30).is_err());
}

#[test]
fn plaintext_stays_within_this_machine_unless_it_is_asked_for() {
    for (address, plain) in [
        ("127.0.0.1", true),
        ("::1", true),
        ("10.0.0.1", false),
        ("::", false),
    ] {
        let address = address.parse().unwrap();
        assert_eq!(
            Security::Loopback.permit(address).is_ok(),
            plain,
            "{address}"
        );
        assert!(Security::Insecure.permit(address).is_ok());
        assert!(Cluster::new().host("a").permit(address).is_ok());
    }
}

#[test]
fn a_caller_who_says_nothing_is_no_end_of_the_stream() {
    let cluster = Cluster::new();
    let [_calls, answers] = sockets();
    answers.set_nonblocking(true).unwrap();
    let mut far = cluster.host("b").answer(answers, of_web).unwrap();
    let error = far.read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}
