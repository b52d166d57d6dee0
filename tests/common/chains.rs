//! Machines of real processes that outlive their hosts while clients are at work.

use super::{LIMIT, os};
use check::{Load, LoadOptions, read_all};
use kit::chain::{Chain, ChainOptions};
use kit::guest::Served;
use kit::{Cluster, Judged};

/// A machine that serves keys, and clients at work that give no connection up.
#[track_caller]
pub fn under_load<'a>(
    cluster: &'a Cluster,
    vm: &str,
    guest: &[&str],
    options: ChainOptions,
    load: LoadOptions,
) -> (Chain<'a>, Load) {
    let chain = Chain::start(cluster, vm, &os(guest), options).unwrap();
    let ready = |line: &str| line.contains("ready");
    chain.leader().daemon.wait_line(LIMIT, ready).unwrap();
    let load = LoadOptions {
        reply_limit: LIMIT,
        ..load
    };
    (chain, Load::start(cluster.server(), load).unwrap())
}

/// The clients read every key once more, what they saw is in order, and the machine ends.
#[track_caller]
pub fn ends(cluster: &Cluster, chain: Chain<'_>, load: Load) {
    let epoch = load.epoch();
    let mut history = load.stop();
    read_all(cluster.server(), epoch, LIMIT, &mut history).unwrap();
    let seen = Judged::of(&history, &Served::kv());
    assert!(seen.is_good(), "{}", seen.explain());
    assert!(seen.verdict.acked_writes > 0);
    chain.end().unwrap();
}
