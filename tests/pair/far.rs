//! A pair whose channel is long: an answer takes longer than the silence that may be suspected.

use super::{LONG, SHORT, Site};
use crate::common::machine;
use std::time::Duration;

#[path = "../common/distance.rs"]
mod distance;

const ONE_WAY: Duration = Duration::from_millis(200);

#[test]
fn a_pair_on_a_long_link_protects_its_guest_to_its_end() {
    let _machine = machine();
    let site = Site::new();
    let (mut backup, address) = site.backup(&[]);
    let proxy = distance::start(address.parse().unwrap(), ONE_WAY);
    let mut primary = site.primary(&SHORT, &proxy.to_string());
    primary.ends_well();
    backup.ends_well();
    let far = primary.wait_event("far_apart").detail;
    assert!(primary.said().contains(&far), "{}", primary.said());
    for replica in [&primary, &backup] {
        let events = replica.events();
        assert!(
            events
                .iter()
                .all(|line| !["flag_won", "solo"].contains(&line.event.as_str())),
            "{events:?}"
        );
    }
}

#[test]
fn a_backup_far_away_takes_over_from_a_primary_that_was_killed() {
    let _machine = machine();
    let site = Site::new();
    let (backup, address) = site.backup(&[]);
    let proxy = distance::start(address.parse().unwrap(), ONE_WAY);
    let mut primary = site.primary(&LONG, &proxy.to_string());
    primary.wait_event("primary");
    primary.daemon.kill();
    backup.wait_event("solo");
}
