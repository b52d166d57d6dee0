//! The command line of what is done with a cluster of hosts.

use super::{SecurityArgs, seconds};
use clap::Args;
use replica::HostPort;
use std::path::PathBuf;
use std::time::Duration;

/// `tandem status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The viewservice
    #[arg(long, default_value = "127.0.0.1:7701", value_name = "HOST:PORT", value_parser = HostPort::to_connect)]
    pub viewservice: HostPort,
    /// How it is spoken to
    #[command(flatten)]
    pub security: SecurityArgs,
    /// One JSON object on stdout instead of a table
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    /// Go on showing it, with what changes; on a pipe a line for each change. q or Ctrl-C ends it
    #[arg(long)]
    pub watch: bool,
}

/// The viewservice that a command asks.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// The viewservice
    #[arg(long, default_value = "127.0.0.1:7701", value_name = "HOST:PORT", value_parser = HostPort::to_connect)]
    pub viewservice: HostPort,
    /// How it is spoken to
    #[command(flatten)]
    pub security: SecurityArgs,
}

/// `tandem host`.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// This host's name [default: the name in its certificate]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where `tandem logs` asks. Its address is where this host's replicas listen, too: one that the other hosts reach
    #[arg(long, default_value = "127.0.0.1:7702", value_name = "HOST:PORT", value_parser = HostPort::to_listen)]
    pub listen: HostPort,
    /// The viewservice that gives this host its replicas
    #[arg(long, value_name = "HOST:PORT", value_parser = HostPort::to_connect)]
    pub viewservice: HostPort,
    /// The arbiter of all replicas: file:DIR, tcp:HOST:PORT or etcd:HOST:PORT..., as for `tandem primary`
    #[arg(long, value_name = "WHERE")]
    pub arbiter: String,
    /// How connections are protected
    #[command(flatten)]
    pub security: SecurityArgs,
    /// The folder of what this host must not forget, and of its replicas' consoles and events
    #[arg(long, default_value = "/var/lib/tandem/host", value_name = "DIR")]
    pub state: PathBuf,
    /// Memory for replicas, in MiB [default: three quarters of this machine's]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// The control folder of its replicas [default: $XDG_RUNTIME_DIR/tandem, for root without that /run/tandem]
    #[arg(long, value_name = "DIR")]
    pub control: Option<PathBuf>,
}

/// `tandem up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// A file that says what the machine is (its name ends in .toml), or a guest that is built in
    #[arg(value_name = "FILE.toml|GUEST")]
    pub what: String,
    /// The machine's name [default: what the file says; the guest's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// No replica of an earlier life of the machine is left, though none marked its end: your word
    #[arg(long)]
    pub anew: bool,
    /// The viewservice
    #[command(flatten)]
    pub service: ServiceArgs,
    /// Longest time to wait until the machine is protected
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = seconds)]
    pub wait: Duration,
    /// One JSON object on stdout instead of words
    #[arg(long)]
    pub json: bool,
}

/// `tandem logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The machine's name
    pub vm: String,
    /// On this host [default: the machine's primary's]
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// What happened to the replica, a JSON object a line, instead of the guest's console
    #[arg(long, conflicts_with = "errors")]
    pub events: bool,
    /// What the replica complained of, instead of the guest's console
    #[arg(long)]
    pub errors: bool,
    /// Go on showing what comes, also of the host to which the machine goes
    #[arg(short, long)]
    pub follow: bool,
    /// The viewservice
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// `tandem drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The host's name
    pub host: String,
    /// Let it have replicas again
    #[arg(long)]
    pub undo: bool,
    /// Do not wait until it has none
    #[arg(long)]
    pub no_wait: bool,
    /// The viewservice
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// `tandem down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// The machine's name
    pub vm: String,
    /// The viewservice
    #[command(flatten)]
    pub service: ServiceArgs,
}
