//! Hosts, each a network namespace, and the links between them, which are cut by nftables.
//!
//! ```text
//!   network of this process:  bridge mgmt ── 10.93.0.1 a, .2 b, .3 c: replicas; .4: the arbiter; .5: the viewservice
//!                             bridge tandem ─┬─ a: bridge, tap0 ── the guest, where it lives
//!                             10.77.0.1      ├─ b: bridge, tap0
//!                              └ clients     └─ c: bridge, tap0
//! ```
//!
//! A cut is a rule of the host that hears: what comes from the other host is dropped there. So each direction is cut
//! by itself. The namespaces have no names: each is gone with the last process in it.

use kit::daemon::Daemon;
use kit::{During, KitError, KitResult};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use vmm::backends::netns::{BRIDGE, PrivateNetwork};

/// Who is where, by the last byte of the address, less one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Of a replica: of the one that begins as primary.
    A,
    /// Of a replica: of its backup.
    B,
    /// Of a replica: of one that waits to be a backup.
    C,
    /// Of the arbiter.
    Arbiter,
    /// Of the viewservice.
    Views,
}

const HOSTS: [Host; 5] = [Host::A, Host::B, Host::C, Host::Arbiter, Host::Views];

/// The hosts of replicas.
pub const REPLICAS: [Host; 3] = [Host::A, Host::B, Host::C];

/// Where the clients find the guest's server, a port of redis's.
pub const SERVER: (Ipv4Addr, u16) = (vmm::backends::netns::GUEST_ADDRESS, 6379);

/// Longest time for a namespace to be made, on the most loaded host.
const READY: Duration = Duration::from_secs(60);

impl Host {
    /// Where something on this host listens at `port`.
    #[must_use]
    pub fn address(self, port: u16) -> SocketAddr {
        ([10, 93, 0, self as u8 + 1], port).into()
    }

    /// What it is called, in views and for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "host-a",
            Self::B => "host-b",
            Self::C => "host-c",
            Self::Arbiter => "arbiter",
            Self::Views => "viewservice",
        }
    }
}

/// Runs the command in `words`. What it says on stdout.
fn run(words: &str) -> KitResult<String> {
    let mut each = words.split(' ');
    let output = Command::new(each.next().unwrap_or_default())
        .args(each)
        .stdin(Stdio::null())
        .output()
        .during(format_args!("cannot run '{words}'"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(KitError::During {
        what: format!("'{words}' failed"),
        why: said.lines().next().unwrap_or("it did not say why").into(),
    })
}

/// The namespaces, each kept by a process that sleeps.
pub struct Hosts {
    keepers: Vec<Daemon>,
    _network: PrivateNetwork,
}

impl Hosts {
    /// Makes all of them around `network`, which the calling thread is in. What their keepers complain of goes into
    /// `folder`.
    ///
    /// # Errors
    /// If one cannot be made: it takes root, and the programs ip, nsenter, unshare and nft.
    pub fn make(network: PrivateNetwork, folder: &Path) -> KitResult<Self> {
        // First of all, since it is what most hosts have not.
        run("nft list ruleset").during("no link can be cut here (root and nftables are needed)")?;
        run("ip link add name mgmt type bridge ageing_time 0")?;
        run("ip address add 10.93.0.254/24 dev mgmt")?;
        run("ip link set mgmt up")?;
        // What nftables of this namespace drops is what clients send and hear.
        run("nft add table bridge clients")?;
        run("nft add chain bridge clients in { type filter hook input priority 0 ; }")?;
        run("nft add chain bridge clients out { type filter hook output priority 0 ; }")?;
        let keepers = HOSTS.map(|host| keeper(host, folder));
        let hosts = Self {
            keepers: keepers.into_iter().collect::<KitResult<_>>()?,
            _network: network,
        };
        for host in HOSTS {
            hosts.connect(host)?;
        }
        Ok(hosts)
    }

    fn connect(&self, host: Host) -> KitResult {
        let (n, pid) = (host as usize + 1, self.keepers[host as usize].pid());
        run(&format!(
            "ip link add m{n} type veth peer name m0 netns {pid}"
        ))?;
        run(&format!("ip link set m{n} master mgmt up"))?;
        let address = host.address(0).ip();
        self.run(host, &format!("ip address add {address}/24 dev m0"))?;
        self.run(host, "ip link set m0 up")?;
        self.run(host, "ip link set lo up")?;
        self.run(host, "nft add table inet cuts")?;
        let chain = "nft add chain inet cuts in { type filter hook input priority 0 ; }";
        self.run(host, chain)?;
        if !REPLICAS.contains(&host) {
            return Ok(());
        }
        run(&format!(
            "ip link add g{n} type veth peer name g0 netns {pid}"
        ))?;
        run(&format!("ip link set g{n} master {BRIDGE} up"))?;
        self.run(host, "ip tuntap add tap0 mode tap")?;
        self.run(host, "ip link add name br0 type bridge ageing_time 0")?;
        for port in ["tap0", "g0"] {
            self.run(host, &format!("ip link set {port} master br0 up"))?;
        }
        self.run(host, "ip link set br0 up").map(drop)
    }

    /// The words before a command that is to run on `host`.
    fn prefix(&self, host: Host) -> String {
        let keeper = self.keepers[host as usize].pid();
        format!("nsenter --target {keeper} --net")
    }

    fn run(&self, host: Host, words: &str) -> KitResult<String> {
        run(&format!("{} {words}", self.prefix(host)))
    }

    /// Starts the program on `host` with these words, its complaints going to `errors`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        &self,
        host: Host,
        name: &str,
        words: Vec<OsString>,
        errors: &Path,
    ) -> KitResult<Daemon> {
        let before: Vec<OsString> = self.prefix(host).split(' ').map(OsString::from).collect();
        Daemon::start_behind(name, &before, words, errors.into())
    }

    /// Cuts the way from one host to another; `rule` says more of what is dropped.
    ///
    /// # Errors
    /// If it cannot be cut.
    pub fn cut(&self, from: Host, to: Host, rule: &str) -> KitResult {
        let address = from.address(0).ip();
        let rule = format!("nft add rule inet cuts in ip saddr {address} {rule}counter drop");
        self.run(to, &rule).map(drop)
    }

    /// Cuts the clients off from the guest, wherever it is.
    ///
    /// # Errors
    /// If they cannot be cut off.
    pub fn cut_clients(&self) -> KitResult {
        for chain in ["in", "out"] {
            let rule = "ip saddr 10.77.0.0/24 counter drop";
            run(&format!("nft add rule bridge clients {chain} {rule}"))?;
        }
        Ok(())
    }

    /// How many packets were dropped by what is cut now.
    ///
    /// # Errors
    /// If nftables does not say.
    pub fn dropped(&self) -> KitResult<u64> {
        let mut said = run("nft list table bridge clients")?;
        for host in HOSTS {
            said += &self.run(host, "nft list table inet cuts")?;
        }
        Ok(counted(&said))
    }

    /// Heals all that is cut.
    ///
    /// # Errors
    /// If it cannot be healed.
    pub fn heal(&self) -> KitResult {
        run("nft flush table bridge clients")?;
        for host in HOSTS {
            self.run(host, "nft flush table inet cuts")?;
        }
        Ok(())
    }
}

/// The sum of what the counters in a listing of nftables' have counted: `counter packets 7 bytes 420 drop`.
fn counted(listing: &str) -> u64 {
    let words: Vec<&str> = listing.split_whitespace().collect();
    let counters = words.windows(2).filter(|pair| pair[0] == "packets");
    counters
        .filter_map(|pair| pair[1].parse::<u64>().ok())
        .sum()
}

/// A process in a network namespace of its own.
fn keeper(host: Host, folder: &Path) -> KitResult<Daemon> {
    let name = format!("namespace of the {}", host.name());
    let errors = folder.join(format!("{}.keeper.err", host.name()));
    // It says so when it has the namespace.
    let words = ["--net", "sh", "-c", "echo here; exec sleep 1000000"];
    let keeper = Daemon::start_other(&name, Path::new("unshare"), words, errors)?;
    keeper.wait_line(READY, |line| line == "here")?;
    Ok(keeper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_read_from_a_listing() {
        let listing = "table inet cuts {\n chain in {\n  type filter hook input priority filter; policy accept;\n  \
             ip saddr 10.93.0.1 counter packets 12 bytes 720 drop\n  \
             ip saddr 10.93.0.2 numgen random mod 100 < 30 counter packets 3 bytes 156 drop\n }\n}\n";
        assert_eq!(counted(listing), 15);
        assert_eq!(counted("table inet cuts {\n}"), 0);
    }
}
