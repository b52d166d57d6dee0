//! Three of the ten, by turns: every run of the tests has the first turn, and any other that is asked for.
//!
//! Why these: a run of all takes minutes, most of them installations, and compilers at work in the guest. The three of a
//! turn are installed together, which costs hardly more than one, and the two that compile as they run have one turn of
//! eight each. Of those two only the pair is run: its backup replays what its primary does, digest by digest, so that
//! another recording shows nothing more but takes as long again.

use super::known::{self, Server};
use super::{core, failed_over, machine, place, recorded, skipped};

/// Which turn it is, if it is not the first. By the day alone a change would be judged by what it did not change.
const TURN: &str = "TANDEM_SERVERS_TURN";
/// Those that serve within seconds.
const QUICK: [fn() -> Server; 8] = [
    known::postgresql,
    known::haproxy,
    known::bind9,
    known::openssh_server,
    known::prometheus,
    known::mariadb,
    known::node,
    known::etcd,
];
/// Those that compile first, each with the turn it has.
const COMPILE: [(u64, fn() -> Server); 2] = [(3, known::rabbitmq), (7, known::zookeeper)];
/// So many turns until it begins again.
const TURNS: u64 = 8;

/// The three whose turn it is.
fn of_turn(turn: u64) -> [Server; 3] {
    let turn = turn % TURNS;
    let compiles = COMPILE.iter().find(|(own, _)| *own == turn);
    [0, 1, 2].map(|n| match compiles {
        Some((_, server)) if n == 2 => server(),
        _ => QUICK[(3 * turn + n) as usize % QUICK.len()](),
    })
}

/// The turn of this run.
fn turn() -> u64 {
    testing::numbers::number(TURN).unwrap_or(0)
}

fn has_its_turn(n: usize) {
    let turn = turn();
    let servers = of_turn(turn);
    let server = &servers[n];
    eprintln!(
        "turn {turn} ({TURN}={turn} brings it back): {}",
        server.name
    );
    let core = core();
    let packages = servers.iter().flat_map(|server| server.packages).copied();
    let Some(place) = place(server, packages.collect()) else {
        return;
    };
    let image = match place.image("built.img") {
        Ok(image) => image,
        Err(why) => return skipped::skip_this(&why),
    };
    if !server.compiles {
        recorded(&place, &image);
    }
    drop(core);
    let _machine = machine();
    failed_over(&place);
}

#[test]
fn the_first_of_this_turn() {
    has_its_turn(0);
}

#[test]
fn the_second_of_this_turn() {
    has_its_turn(1);
}

#[test]
fn the_third_of_this_turn() {
    has_its_turn(2);
}

#[test]
fn each_server_has_a_turn() {
    let mut names: Vec<_> = (0..TURNS).flat_map(of_turn).map(|s| s.name).collect();
    assert_eq!(names.len(), 24);
    for turn in 0..TURNS {
        let [a, b, c] = of_turn(turn).map(|server| server.name);
        assert!(a != b && b != c && c != a, "turn {turn}");
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 10, "{names:?}");
    assert_eq!(of_turn(11)[2].name, "rabbitmq");
}
