//! A pair whose channel is long: an answer takes longer than the silence that may be suspected.

use super::{LONG, SHORT, Site};
use crate::common::{LIMIT, machine};
use std::time::Duration;

const ONE_WAY: Duration = Duration::from_millis(200);

#[test]
fn a_pair_on_a_long_link_protects_its_guest_to_its_end() {
    let _machine = machine();
    let site = Site::new().that_suspects_soon();
    let (mut backup, address) = site.backup(&[]);
    let proxy = testing::distance::start(address.parse().unwrap(), ONE_WAY);
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
    let site = Site::new().that_suspects_soon();
    let (backup, address) = site.backup(&[]);
    let proxy = testing::distance::start(address.parse().unwrap(), ONE_WAY);
    let mut primary = site.primary(&LONG, &proxy.to_string());
    primary.wait_event("primary");
    primary.daemon.kill();
    backup.wait_event("solo");
}

/// A backup that greets like one and is gone as soon as it is settled with.
fn short_lived_backup() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        drop(logchannel::answer(socket, LIMIT, |_| Ok(None)));
    });
    address
}

#[test]
fn a_machine_that_loses_its_backup_at_birth_says_so_and_stops_if_asked() {
    let _machine = machine();
    for required in [false, true] {
        let site = Site::new().that_suspects_soon();
        let at = short_lived_backup().to_string();
        let words = [&["primary"], &SHORT[..], &["--backup", &at]].concat();
        let more: &[&str] = if required { &["--require-backup"] } else { &[] };
        let mut primary = site.start(&words, more);
        let status = primary.daemon.wait(LIMIT).unwrap();
        assert_eq!(status.code(), Some(required.into()), "{}", primary.said());
        let said = primary.said();
        assert!(said.contains("runs alone from now on, view 2"), "{said}");
        assert_eq!(said.contains("--require-backup"), required, "{said}");
        // Its end is marked: another start needs nobody's word.
        primary.wait_event("marked");
    }
}
