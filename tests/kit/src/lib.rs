//! Whole installations on this machine, of real processes: what demo, bench, doctor and the end-to-end tests
//! share.
//!
//! ```text
//!  cluster ──▶ daemon ──▶ leftovers      network, arbiter, viewservice, pairs; children; what Ctrl-C clears away
//!     ▲ ▲         ▲
//!     │ │         └── guest              what runs in a pair, and how one knows that it serves
//!     │ chain                            one machine, killed and given a new backup again and again
//!  round ──▶ failover, judged            one pair, its clients, one kill; what the kill did, what the clients saw
//!            join ──▶ events, timeline   how a machine got a new backup; what replicas note; pictures of it
//!            fate ──▶ events             whether one replica at most lived in each view, by what they noted
//!  host, hostload                        what this host is, and whether it has more to do than it can
//! ```
//!
//! The program whose processes they are is told once, by [`use_program`].
//!
//! # Example
//!
//! A pair on the network there is, and the loss of its primary.
//!
//! ```no_run
//! use kit::cluster::{Cluster, choose_network};
//! use kit::guest::Served;
//! use kit::round::{self, RoundOptions};
//!
//! kit::use_program("/usr/local/bin/tandem");
//! // Before any thread is started: a private network is the thread's that makes it.
//! let network = choose_network("auto")?;
//! let mut cluster = Cluster::start(network, "file", false)?;
//! let options = RoundOptions {
//!     args: Default::default(),
//!     clients: 8,
//!     suspect_ms: 300,
//!     kill_backup: false,
//!     keep: None,
//! };
//! let round = round::run(&mut cluster, &options, &Served::kv(), 0, 7)?;
//! println!("{}", round.failover.timeline());
//! assert!(round.seen.is_good(), "{}", round.seen.explain());
//! # Ok::<(), kit::KitError>(())
//! ```
//!
//! Such a picture is made of events, whoever noted them:
//!
//! ```
//! use kit::timeline::{Colour, Lane, Timeline};
//!
//! let mut timeline = Timeline::default();
//! timeline
//!     .death(0, Lane::Primary, "killed with SIGKILL")
//!     .event(50_340, Lane::Backup, "silence noticed");
//! let picture = timeline.render(Colour::No);
//! let said: Vec<_> = picture.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
//! assert_eq!(said, ["ms", "0.0", "50.3"]);
//! ```

pub mod chain;
pub mod cluster;
pub mod daemon;
mod error;
mod events;
pub mod failover;
pub mod fate;
pub mod guest;
pub mod host;
pub mod hostload;
pub mod join;
mod judged;
pub mod leftovers;
mod page;
pub mod round;
pub mod timeline;
mod trace;

pub use cluster::{Cluster, Pair, PairOptions};
pub use daemon::{Daemon, use_options, use_program};
pub use error::{During, KitError, KitResult};
pub use events::Line;
pub use judged::Judged;
pub use trace::Trace;
