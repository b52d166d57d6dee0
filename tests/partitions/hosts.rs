//! Hosts, each a network namespace, and the links between them, which are cut by nftables.
//!
//! ```text
//!   namespace of the test:  bridge mgmt ── 10.93.0.1 a, .2 b: replicas; .3: the arbiter; .4: the viewservice
//!                           bridge guests ─┬─ a: bridge, tap0 ── the guest, where it lives
//!                           10.77.0.1      └─ b: bridge, tap0
//!                            └ clients
//! ```
//!
//! A cut is a rule of the host that hears: what comes from the other host is dropped there. So each direction is cut
//! by itself.

use std::ffi::OsString;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};

/// Who is where, by the last byte of the address, less one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Of the replica that begins as primary.
    A,
    /// Of its backup.
    B,
    /// Of the arbiter.
    Arbiter,
    /// Of the viewservice.
    Views,
}

const HOSTS: [Host; 4] = [Host::A, Host::B, Host::Arbiter, Host::Views];

/// Where the clients find kv.
pub const SERVER: &str = "10.77.0.2:6379";

fn output(words: &str) -> Output {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    command
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("it runs")
}

/// Whether the command in `words` ends well.
pub fn runs(words: &str) -> bool {
    output(words).status.success()
}

#[track_caller]
fn run(words: &str) {
    let output = output(words);
    assert!(
        output.status.success(),
        "{words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The namespaces, each kept by a process that sleeps.
pub struct Hosts {
    keepers: Vec<Child>,
}

impl Hosts {
    /// Makes all of them. To be called in a network namespace that is the test's own.
    pub fn make() -> Self {
        run("ip link set lo up");
        for (bridge, address) in [("mgmt", "10.93.0.254/24"), ("guests", "10.77.0.1/24")] {
            run(&format!(
                "ip link add name {bridge} type bridge ageing_time 0"
            ));
            run(&format!("ip address add {address} dev {bridge}"));
            run(&format!("ip link set {bridge} up"));
        }
        // What nftables of this namespace drops is what clients send and hear.
        run("nft add table bridge clients");
        run("nft add chain bridge clients in { type filter hook input priority 0 ; }");
        run("nft add chain bridge clients out { type filter hook output priority 0 ; }");
        let hosts = Self {
            keepers: HOSTS.iter().map(|_| keeper()).collect(),
        };
        for host in HOSTS {
            hosts.connect(host);
        }
        hosts
    }

    fn connect(&self, host: Host) {
        let (n, pid) = (host as usize + 1, self.keepers[host as usize].id());
        run(&format!(
            "ip link add m{n} type veth peer name m0 netns {pid}"
        ));
        run(&format!("ip link set m{n} master mgmt up"));
        self.run(host, &format!("ip address add 10.93.0.{n}/24 dev m0"));
        self.run(host, "ip link set m0 up");
        self.run(host, "ip link set lo up");
        self.run(host, "nft add table inet cuts");
        self.run(
            host,
            "nft add chain inet cuts in { type filter hook input priority 0 ; }",
        );
        if matches!(host, Host::A | Host::B) {
            run(&format!(
                "ip link add g{n} type veth peer name g0 netns {pid}"
            ));
            run(&format!("ip link set g{n} master guests up"));
            self.run(host, "ip tuntap add tap0 mode tap");
            self.run(host, "ip link add name br0 type bridge ageing_time 0");
            for port in ["tap0", "g0"] {
                self.run(host, &format!("ip link set {port} master br0 up"));
            }
            self.run(host, "ip link set br0 up");
        }
    }

    /// The words before a command that is to run on `host`.
    fn prefix(&self, host: Host) -> String {
        format!(
            "nsenter --target {} --net",
            self.keepers[host as usize].id()
        )
    }

    #[track_caller]
    fn run(&self, host: Host, words: &str) {
        run(&format!("{} {words}", self.prefix(host)));
    }

    /// `words` of a program as they are given to nsenter, for it to run on `host`.
    pub fn on(&self, host: Host, program: &str, words: Vec<OsString>) -> Vec<OsString> {
        let prefix = self.prefix(host);
        let before = prefix
            .split(' ')
            .skip(1)
            .chain([program])
            .map(OsString::from);
        before.chain(words).collect()
    }

    /// Where something on `host` listens at `port`.
    pub fn address(host: Host, port: u16) -> SocketAddr {
        let n = u8::try_from(host as usize + 1).expect("few hosts");
        ([10, 93, 0, n], port).into()
    }

    /// Cuts the way from one host to another; `rule` says more of what is dropped.
    pub fn cut(&self, from: Host, to: Host, rule: &str) {
        let address = Self::address(from, 0).ip();
        self.run(
            to,
            &format!("nft add rule inet cuts in ip saddr {address} {rule}drop"),
        );
    }

    /// Cuts the clients off from the guest, wherever it is.
    pub fn cut_clients(&self) {
        for chain in ["in", "out"] {
            run(&format!(
                "nft add rule bridge clients {chain} ip saddr 10.77.0.0/24 drop"
            ));
        }
    }

    /// Heals all that is cut.
    pub fn heal(&self) {
        run("nft flush table bridge clients");
        for host in HOSTS {
            self.run(host, "nft flush table inet cuts");
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for keeper in &mut self.keepers {
            // One that is gone has nothing left to end.
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
}

/// A process in a network namespace of its own.
fn keeper() -> Child {
    let mut keeper = Command::new("unshare");
    // It says so when it has the namespace.
    keeper.args(["--net", "sh", "-c", "echo; exec sleep 1000000"]);
    let mut keeper = keeper.stdout(Stdio::piped()).spawn().expect("unshare");
    let told = keeper.stdout.as_mut().expect("a pipe");
    told.read_exact(&mut [0]).expect("a namespace");
    keeper
}
