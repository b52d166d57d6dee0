//! etcd as the arbiter: what only it has. Real members, as processes, of the etcd that Debian ships.

mod access;
mod cluster;
mod partition;
mod peers;
#[path = "../rigs/mod.rs"]
mod rigs;

use std::time::Duration;
use testandset::{Arbiter, ArbiterError, Contender, EtcdArbiter, Flag, ViewNumber, VmId};

fn flag(view: u64) -> Flag {
    Flag {
        vm: VmId::new("web").unwrap(),
        view: ViewNumber(view),
    }
}

fn who(name: &str) -> Contender {
    Contender::new(name).unwrap()
}

/// A way to `words` for calls that are to have no answer: each costs a second at most.
fn impatient(words: &str) -> EtcdArbiter {
    let arbiter = EtcdArbiter::new(words).unwrap();
    arbiter.with_patience(Duration::from_millis(300))
}

/// The line of `error`.
fn line(error: &ArbiterError) -> String {
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

/// The line with which `words` are no arbiter that a replica could start with.
fn refusal(words: &str) -> String {
    let arbiter = match EtcdArbiter::new(words) {
        Ok(arbiter) => arbiter,
        Err(error) => return line(&error),
    };
    line(&arbiter.check().unwrap_err())
}
