//! Failover with etcd as the arbiter: three members, of which one is killed at the same moment.

use crate::common::{LIMIT, cluster, have_kvm, machine, os};
use crate::patient;
use check::resp::{Client, Reply};
use kit::cluster::PairOptions;
use testandset_testing::{Etcd, Options, is_here};

fn ask(client: &mut Client, words: &[&str]) -> Reply {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let reply = client.command(&words);
    reply.unwrap_or_else(|e| panic!("{words:?}: {e}"))
}

/// Which member is killed with the primary.
#[derive(Clone, Copy, Debug)]
enum Also {
    Nobody,
    Leader,
    Follower,
    /// The one the replicas are connected to: the first, unless it was away.
    First,
}

#[test]
fn an_open_connection_outlives_its_primary_and_a_member_of_etcd() {
    let _machine = machine();
    if !is_here() || !have_kvm("failover with etcd") {
        return;
    }
    // Its network is the thread's, which the members are started by.
    let mut cluster = cluster("file");
    let mut etcd = Etcd::start(3, Options::default());
    (0..3).for_each(|n| etcd.wait_until_serving(n));
    cluster.use_arbiter(format!("etcd:{}", etcd.words()));
    for also in [Also::Nobody, Also::Leader, Also::Follower, Also::First] {
        let options = PairOptions {
            network: true,
            ..patient()
        };
        let name = format!("with-{also:?}");
        let mut pair = cluster.start_pair(&name, &os(&["kv"]), &options).unwrap();
        pair.wait_ready_within("ready", LIMIT).unwrap();
        let mut client = Client::connect(cluster.server(), LIMIT, LIMIT).unwrap();
        for n in 1..=50 {
            assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(n), "{also:?}");
        }
        let leader = etcd.leader();
        let member = match also {
            Also::Nobody => None,
            Also::Leader => Some(leader),
            Also::Follower => Some((leader + 1) % 3),
            Also::First => Some(0),
        };
        if let Some(member) = member {
            etcd.kill(member);
        }
        pair.primary.kill();
        for n in 51..=100 {
            assert_eq!(ask(&mut client, &["INCR", "n"]), Reply::Int(n), "{also:?}");
        }
        let events = pair.events();
        let noted = |what: &str| events.iter().any(|line| line.event == what);
        assert!(noted("flag_won") && noted("live"), "{also:?}: {events:?}");
        // Whoever was killed finds the flags that were set meanwhile.
        if let Some(member) = member {
            etcd.start_member(member);
            etcd.wait_until_serving(member);
        }
        pair.backup.ask_to_end();
        let status = pair.backup.wait(LIMIT).unwrap();
        assert!(
            status.success(),
            "{also:?}: {status}{}",
            pair.backup.complaint()
        );
    }
}
