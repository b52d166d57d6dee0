//! One protected Linux whose hosts die one after the other: each time it gets a new backup, and its clients keep their
//! connections. As `tandem demo` plays it.

use super::common::{machine, tandem_json};
use super::{images, number};
use serde_json::Value;

/// Has the demo kill early: by it, its clients get 200 replies and a few more before each of the first kills.
const SEED: &str = "393";

#[test]
fn a_linux_and_its_connections_outlive_its_hosts() {
    let _machine = machine();
    // The demo takes it out of the same cache.
    if images::redis().is_none() {
        return;
    }
    let kills = number("TANDEM_LINUX_KILLS", 3);
    // Patient, as the pairs of `failover`: a killed replica is noticed by its connection all the same.
    let said = tandem_json(&[
        "demo",
        "--same-machine",
        "--guest",
        "linux",
        "--kills",
        &kills.to_string(),
        "--clients",
        "2",
        "--suspect-ms",
        "5000",
        "--seed",
        SEED,
        "--json",
    ]);
    for (name, value) in [
        ("same_machine", Value::from(true)),
        ("guest", "redis".into()),
        ("killed", "primary".into()),
        ("kills", kills.into()),
        ("joins", kills.into()),
        ("connections_broken", 0.into()),
        ("lost_writes", 0.into()),
        ("linearizable", true.into()),
    ] {
        assert_eq!(said[name], value, "{name}: {said}");
    }
    // Something was at stake: every kill came under load, and the machine's memory went over each time.
    let acked = said["acked_writes"].as_u64();
    assert!(acked.is_some_and(|writes| writes > 50 * kills), "{said}");
    let of_linux_mib = 50.0;
    let sent = said["sent_mib"].as_f64();
    assert!(sent.is_some_and(|mib| mib > of_linux_mib), "{said}");
}
