//! Two replicas that change roles, again and again, while a client writes.

mod lives;

use check::resp::Reply;
use lives::{LIMIT, Life, NET, Served, Site};
use replica::role::Role;
use replica::{HostPort, Told};
use std::net::TcpListener;
use std::time::Instant;

/// Has the roles of a pair change, and waits until both know the new ones.
#[track_caller]
fn swap(leads: &mut Life, follows: &mut Life) {
    let view = leads.replica.handle().status().view;
    let told = leads.replica.handle().failover().recv_timeout(LIMIT);
    let Ok(Told::Left { follows: true, .. }) = told else {
        panic!("{told:?}");
    };
    follows.hears("Live");
    follows.hears("Protected");
    leads.hears("Welcomed");
    let deadline = Instant::now() + LIMIT;
    let is = |life: &Life, role| {
        let status = life.replica.handle().status();
        (status.role, status.view) == (Some(role), view.next().next())
    };
    while !is(leads, Role::Backup) || !is(follows, Role::Primary) {
        assert!(Instant::now() < deadline, "the roles did not change");
        std::thread::yield_now();
    }
}

#[test]
fn two_replicas_change_roles_and_no_client_notices() {
    let mut site = Site::new();
    let served = Served::start(&mut site);
    let [mut first, mut second] = site.pair("kv", NET);
    // One connection for all lives.
    let mut client = served.client();
    for round in 0..6u32 {
        for number in 0..50 {
            let key = format!("{round}.{number}");
            let set = [b"SET", key.as_bytes(), &round.to_le_bytes()];
            assert_eq!(client.command(&set).unwrap(), Reply::Simple("OK".into()));
        }
        swap(&mut first, &mut second);
        std::mem::swap(&mut first, &mut second);
    }
    // It is a pair like any other: the backup takes over.
    first.replica.handle().halt("the host died");
    second.hears("Live");
    for round in 0..6u32 {
        for number in 0..50 {
            let key = format!("{round}.{number}");
            let value = Reply::Bulk(Some(round.to_le_bytes().into()));
            assert_eq!(client.command(&[b"GET", key.as_bytes()]).unwrap(), value);
        }
    }
    assert!(first.ends().unwrap_err().contains("the host died"));
    second.replica.handle().stop();
    assert_eq!(second.ends(), Ok(()));
}

#[test]
fn a_primary_that_cannot_wait_afterwards_stays() {
    let mut site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    site.listen = Some(HostPort::to_listen(&address).unwrap());
    let [mut primary, mut backup] = site.pair("counter", "ticks=1000000000 hz=1000");
    let handle = primary.replica.handle();
    let told = handle.failover().recv_timeout(LIMIT);
    let Ok(Told::Failed { why }) = told else {
        panic!("{told:?}");
    };
    assert!(why.contains(&format!("cannot wait at {address}")), "{why}");
    assert_eq!(handle.status().role, Some(Role::Primary));
    drop(taken);
    swap(&mut primary, &mut backup);
    // Whoever follows ends with its machine.
    backup.replica.handle().stop();
    assert_eq!(backup.ends(), Ok(()));
    assert_eq!(primary.ends(), Ok(()));
}

#[test]
fn a_replica_that_is_stopped_while_it_waits_to_follow_ends() {
    let site = Site::new();
    let [primary, mut backup] = site.pair("counter", "ticks=1000000000 hz=1000");
    let handle = primary.replica.handle();
    let told = handle.failover().recv_timeout(LIMIT);
    assert!(
        matches!(told, Ok(Told::Left { follows: true, .. })),
        "{told:?}"
    );
    // It may be given the machine already; the new primary goes on in any case.
    handle.stop();
    backup.hears("Live");
    let ended = primary.ends();
    if let Err(why) = ended {
        assert!(why.contains("stopped before a primary came"), "{why}");
    }
    backup.hears_any(&["JoinFailed", "LinkEnd(Left", "LinkEnd(Bye", "Protected"]);
    backup.until_solo();
    backup.replica.handle().stop();
    assert_eq!(backup.ends(), Ok(()));
}
