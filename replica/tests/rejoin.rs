//! A machine that is given a new backup after each loss.

mod lives;

use check::resp::{Client, Reply};
use lives::{LIMIT, Library, Life, NET, Served, Site, blueprint, nobody};
use logchannel::{Caller, Hello, StateReader};
use replica::machine::{Blueprint, EngineChoice, Images};
use replica::role::Role;
use replica::{HostPort, Told};
use std::io::Read;
use std::net::TcpListener;
use std::num::NonZeroU64;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm::machine::MachineConfig;

#[test]
fn a_machine_outlives_any_number_of_hosts() {
    let site = Site::new();
    let mut solo = site.survivor("counter", "ticks=1000000000 hz=1000");
    for round in 1..=4u64 {
        let mut next = site.protect(&mut solo, EngineChoice::Soft);
        solo.replica.handle().halt("the next host died");
        next.hears("Solo");
        next.hears("Live");
        assert!(solo.ends().is_err());
        let status = next.replica.handle().status();
        assert_eq!(
            (status.role, status.view.0),
            (Some(Role::Solo), 2 + 2 * round)
        );
        solo = next;
    }
    solo.replica.handle().stop();
    assert_eq!(solo.ends(), Ok(()));
    // The end is marked, so that the machine may be started again.
    let [primary, backup] = site.pair("counter", "ticks=3 hz=1000");
    assert_eq!((primary.ends(), backup.ends()), (Ok(()), Ok(())));
}

#[test]
fn an_open_connection_and_all_it_wrote_outlive_three_hosts() {
    let mut site = Site::new();
    let served = Served::start(&mut site);
    let [mut primary, mut backup] = site.pair("kv", NET);
    let mut client = served.client();
    let mut number = 0;
    let mut write = |client: &mut Client, count| {
        for _ in 0..count {
            number += 1;
            let said = client.command(&[b"INCR", b"number"]).unwrap();
            assert_eq!(said, Reply::Int(number));
        }
    };
    for _ in 0..3 {
        write(&mut client, 200);
        primary.replica.handle().halt("the host died");
        write(&mut client, 200);
        backup.hears("Live");
        let next = site.protect(&mut backup, EngineChoice::Soft);
        write(&mut client, 200);
        assert!(primary.ends().is_err());
        (primary, backup) = (backup, next);
    }
    primary.replica.handle().stop();
    assert_eq!((primary.ends(), backup.ends()), (Ok(()), Ok(())));
}

#[test]
fn a_backup_that_is_not_there_costs_nothing_but_the_attempt() {
    let mut site = Site::new();
    let served = Served::start(&mut site);
    let [primary, mut solo] = site.pair("kv", NET);
    let mut client = served.client();
    assert_eq!(
        client.command(&[b"SET", b"a", b"1"]).unwrap(),
        Reply::Simple("OK".into())
    );
    // Only a machine that runs alone takes a backup.
    primary.replica.handle().protect(nobody());
    let mut primary = primary;
    let why = primary.hears("JoinFailed");
    assert!(why.contains("only a machine that runs alone"), "{why}");
    primary.replica.handle().halt("the host died");
    solo.hears("Live");
    for _ in 0..3 {
        solo.replica.handle().protect(nobody());
        let why = solo.hears("JoinFailed");
        assert!(why.contains("cannot reach the backup"), "{why}");
        assert_eq!(
            client.command(&[b"GET", b"a"]).unwrap(),
            Reply::Bulk(Some(b"1".to_vec()))
        );
    }
    let backup = site.protect(&mut solo, EngineChoice::Soft);
    solo.replica.handle().halt("the host died");
    assert_eq!(
        client.command(&[b"GET", b"a"]).unwrap(),
        Reply::Bulk(Some(b"1".to_vec()))
    );
    backup.replica.handle().stop();
    assert_eq!(backup.ends(), Ok(()));
}

#[test]
fn a_machine_moves_from_host_to_host_under_an_open_connection() {
    let mut site = Site::new();
    let served = Served::start(&mut site);
    let mut solo = site.survivor("kv", NET);
    let mut client = served.client();
    solo.replica.handle().move_to(nobody());
    solo.hears("JoinFailed");
    for number in 1..=3 {
        let said = client.command(&[b"INCR", b"number"]).unwrap();
        assert_eq!(said, Reply::Int(number));
        let mut next = site.backup();
        let address = next.address();
        solo.replica.handle().move_to(address);
        next.hears("Live");
        assert_eq!(solo.ends(), Ok(()), "it was moved, and did not fail");
        solo = next;
    }
    let said = client.command(&[b"GET", b"number"]).unwrap();
    assert_eq!(said, Reply::Bulk(Some(b"3".to_vec())));
    solo.replica.handle().stop();
    assert_eq!(solo.ends(), Ok(()));
}

/// A backup that is played, which `does` with the machine what the test wants: where it is, and what comes of it.
fn played<T: Send + 'static>(
    does: impl FnOnce(Caller, Hello) -> T + Send + 'static,
) -> (HostPort, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let playing = std::thread::spawn(move || {
        let mut caller = Caller::new(listener.accept().unwrap().0, LIMIT).unwrap();
        loop {
            if let Some(hello) = caller.listen().unwrap() {
                return does(caller, hello);
            }
            std::thread::yield_now();
        }
    });
    (HostPort::to_connect(&address).unwrap(), playing)
}

/// Backups that fail at every step of the way: none costs the machine more than a pause.
#[test]
fn a_joiner_that_fails_on_the_way_leaves_the_machine_alone_and_well() {
    const DIES: &str = "this joiner dies, as the test wants it";
    let mut site = Site::new();
    let served = Served::start(&mut site);
    let mut solo = site.survivor("kv", NET);
    let mut client = served.client();
    let mut number = 0;
    // Whether the played one fails, too.
    let mut goes_on = |solo: &mut Life, (backup, playing): (HostPort, JoinHandle<bool>), why| {
        solo.replica.handle().protect(backup);
        let told = solo.hears("JoinFailed");
        assert!(told.contains(why), "{told}");
        number += 1;
        let said = client.command(&[b"INCR", b"number"]).unwrap();
        assert_eq!(said, Reply::Int(number), "after: {told}");
        let status = solo.replica.handle().status();
        assert_eq!((status.role, status.view.0), (Some(Role::Solo), 2));
        playing.join()
    };
    let refuses = |caller: Caller, hello: Hello| {
        let no = |_: &Hello| Err("no room here".to_owned());
        caller.answer(&hello, LIMIT, no).is_err()
    };
    assert!(goes_on(&mut solo, played(refuses), "no room here").unwrap());
    let hangs_up = |caller: Caller, _: Hello| {
        drop(caller);
        true
    };
    assert!(goes_on(&mut solo, played(hangs_up), "greeting").unwrap());
    let cannot_restore = |caller: Caller, hello: Hello| {
        let restore = |_: &mut StateReader<'_>| Err("it is another machine".to_owned());
        let yes = |_: &Hello| Ok(None);
        caller.answer_running(&hello, LIMIT, yes, restore).is_err()
    };
    let why = "it is another machine";
    assert!(goes_on(&mut solo, played(cannot_restore), why).unwrap());
    // It has begun to read the state, and is gone; more of it than the sockets' buffers hold is to come.
    let dies = |caller: Caller, hello: Hello| {
        let restore = |state: &mut StateReader<'_>| -> Result<(), String> {
            state.read_exact(&mut [0; 100]).map_err(|e| e.to_string())?;
            panic!("{DIES}");
        };
        let restored = caller.answer_running(&hello, LIMIT, |_| Ok(None), restore);
        panic!("it did not die: {restored:?}");
    };
    let died = goes_on(&mut solo, played(dies), "the machine's state").unwrap_err();
    assert_eq!(
        died.downcast_ref::<String>().map(String::as_str),
        Some(DIES)
    );
    // It has all of it and is level, and its link ends before it is a backup, or right behind that.
    let leaves = |caller: Caller, hello: Hello| {
        let restore = |_: &mut StateReader<'_>| Ok(());
        let restored = caller.answer_running(&hello, LIMIT, |_| Ok(None), restore);
        restored.is_ok()
    };
    let (backup, playing) = played(leaves);
    solo.replica.handle().protect(backup);
    let told = solo.hears("LinkEnd");
    assert!(playing.join().unwrap(), "it took part");
    let said = client.command(&[b"GET", b"number"]).unwrap();
    assert_eq!(said, Reply::Bulk(Some(b"4".to_vec())), "after: {told}");
    // After all that a good one is still welcome.
    solo.until_solo();
    let backup = site.protect(&mut solo, EngineChoice::Soft);
    solo.replica.handle().halt("the host died");
    let said = client.command(&[b"GET", b"number"]).unwrap();
    assert_eq!(said, Reply::Bulk(Some(b"4".to_vec())));
    backup.replica.handle().stop();
    assert_eq!(backup.ends(), Ok(()));
}

/// The backup a machine was to move to is lost once the pair is formed. The move is over with it: the next
/// backup was offered for protection only.
#[test]
fn a_move_that_ended_with_its_backup_is_not_made_up_for_by_the_next() {
    let mut site = Site::new();
    let served = Served::start(&mut site);
    let mut solo = site.survivor("kv", NET);
    let (release, held) = channel::<()>();
    let acks_nothing = move |caller: Caller, hello: Hello| {
        let restore = |_: &mut StateReader<'_>| Ok(());
        let connection = caller.answer_running(&hello, LIMIT, |_| Ok(None), restore);
        // Until the test lets go of it.
        let _ = held.recv();
        connection.is_ok()
    };
    let (backup, playing) = played(acks_nothing);
    solo.replica.handle().move_to(backup);
    solo.hears("Protected");
    drop(release);
    solo.hears("LinkEnd");
    assert!(playing.join().unwrap(), "it took part");
    solo.until_solo();
    let mut backup = site.protect(&mut solo, EngineChoice::Soft);
    let mut client = served.client();
    // The answer left the gate, so the backup has acked; two refusals later the control thread has seen it.
    assert_eq!(
        client.command(&[b"INCR", b"number"]).unwrap(),
        Reply::Int(1)
    );
    for _ in 0..2 {
        solo.replica.handle().protect(nobody());
        solo.hears("JoinFailed");
    }
    assert_eq!(solo.replica.handle().status().role, Some(Role::Primary));
    solo.replica.handle().stop();
    assert_eq!(solo.ends(), Ok(()));
    backup.hears("Ended");
    assert!(!backup.has_told("Live"), "it was left the machine");
    assert_eq!(backup.ends(), Ok(()));
}

/// A machine whose way to its backup is limited, and what whoever asked is told meanwhile.
#[test]
fn a_machine_goes_no_faster_than_it_may_and_says_how_far_it_is() {
    const LIMIT_S: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();
    let mut site = Site::new();
    site.handover_bytes_s = Some(LIMIT_S);
    let served = Served::start(&mut site);
    let mut solo = site.survivor("kv", NET);
    let mut client = served.client();
    for key in 0..100u32 {
        let said = client.command(&[b"SET", &key.to_le_bytes(), &lives::value(key.into())]);
        assert_eq!(said.unwrap(), Reply::Simple("OK".into()));
    }
    let mut backup = site.backup();
    let address = backup.address();
    let begun = Instant::now();
    let told = solo.replica.handle().protect(address);
    let mut sent = Vec::new();
    loop {
        match told.recv_timeout(LIMIT).unwrap() {
            Told::Joining { .. } => {}
            Told::Sent { bytes } => sent.push(bytes),
            Told::Protected { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    // What goes while the guest stands still is not limited, and is little.
    let took = begun.elapsed();
    assert!(sent.len() >= 2 && sent.is_sorted(), "{sent:?}");
    let least = Duration::from_secs(*sent.last().unwrap()).div_f64(LIMIT_S.get() as f64);
    assert!(took > least, "{took:?} for {sent:?}");
    // So slow a way pays for compressing.
    let told = solo.hears("Protected");
    let [_, sent, full] = lives::cost(&told);
    assert!(full > 100 * lives::VALUE as u64, "{told}");
    assert!(sent < full * 3 / 4, "{told}");
    solo.replica.handle().stop();
    assert_eq!((solo.ends(), backup.ends()), (Ok(()), Ok(())));
}

/// A slow way to a backup whose operator has changed their mind.
#[test]
fn a_backup_that_is_being_given_a_machine_ends_when_asked() {
    let mut site = Site::new();
    site.handover_bytes_s = NonZeroU64::new(400_000);
    let mut solo = site.survivor("kv", NET);
    let mut backup = site.backup();
    let address = backup.address();
    let told = solo.replica.handle().protect(address);
    while !matches!(told.recv_timeout(LIMIT).unwrap(), Told::Sent { .. }) {}
    backup.replica.handle().stop();
    let why = backup.ends().unwrap_err();
    assert!(why.contains("stopped before a primary came"), "{why}");
    solo.hears("JoinFailed");
    solo.until_solo();
    solo.replica.handle().stop();
    assert_eq!(solo.ends(), Ok(()));
}

#[test]
fn disk_requests_under_way_at_a_join_are_done_whoever_lives() {
    let mut site = Site::new();
    let disk = site.folder.path().join("disk");
    std::fs::write(&disk, vec![0x5a; 4 << 20]).unwrap();
    site.disk = Some(disk);
    let image = Library.load("disk", None).unwrap();
    let config = MachineConfig {
        disk_sectors: Some((4 << 20) / 512),
        ..MachineConfig::bare("disk", image.digest(), "rounds=400")
    };
    // Somewhere in the midst of its rounds; the guest compares what it reads with what it wrote.
    let mut solo = site.survivor_of(Blueprint { config, image }, EngineChoice::Soft);
    for _ in 0..3 {
        let mut next = site.protect(&mut solo, EngineChoice::Soft);
        solo.replica.handle().halt("the host died");
        next.hears("Live");
        solo = next;
    }
    assert_eq!(solo.ends(), Ok(()));
}

/// From each engine to the other, where there are two.
#[test]
fn a_machine_is_handed_from_engine_to_engine() {
    if let Err(why) = vmm::kvm::Host::open() {
        return testing::skipped::skip_this(&why);
    }
    let site = Site::new();
    let machine = blueprint("counter", "ticks=1000000000 hz=1000");
    let mut solo = site.survivor_of(machine, EngineChoice::Kvm);
    for engine in [EngineChoice::Soft, EngineChoice::Kvm, EngineChoice::Kvm] {
        let mut next = site.protect(&mut solo, engine);
        solo.replica.handle().halt("the host died");
        next.hears("Live");
        solo = next;
    }
    solo.replica.handle().stop();
    assert_eq!(solo.ends(), Ok(()));
}
