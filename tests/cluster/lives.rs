//! A machine that outlives its replicas and its hosts, and is protected again by itself.

use super::common::{LIMIT, machine, text};
use super::site::{Host, LOOK, Site};
use check::{Load, LoadOptions, Pace};
use kit::Judged;
use kit::guest::Served;
use std::time::{Duration, Instant};

/// Longest time from a loss to a new pair, where a host with room is there.
const AGAIN: Duration = Duration::from_secs(5);

fn load(at: std::net::SocketAddr) -> Load {
    let options = LoadOptions {
        clients: 4,
        pace: Pace::Think(Duration::from_millis(2)),
        reply_limit: LIMIT,
        ..LoadOptions::default()
    };
    let begun = Instant::now();
    loop {
        match Load::start(at, options.clone()) {
            Ok(load) => return load,
            Err(e) => assert!(begun.elapsed() < LIMIT, "{e}"),
        }
        std::thread::sleep(LOOK);
    }
}

#[track_caller]
fn replies(load: &Load) {
    assert!(load.wait_replies(50, LIMIT), "no client gets a reply");
}

/// Waits for a pair, which must not take long; the hosts of it, primary first.
#[track_caller]
fn protected_again(site: &Site, since: Instant, view: u64) -> (String, String) {
    site.wait_status(|status| {
        let vm = &status["vms"][0];
        let backup = vm["backup"].as_str().unwrap_or_default();
        vm["view"].as_u64() > Some(view)
            && vm["role"] == "primary"
            && vm["named"].is_null()
            && vm["roles"][backup] == "backup"
    });
    let took = since.elapsed();
    println!("protected again after {took:?}");
    assert!(took < AGAIN, "protected again only after {took:?}");
    let vm = site.vm("web");
    let name = |field: &str| vm[field].as_str().unwrap().to_owned();
    (name("primary"), name("backup"))
}

fn of<'a>(hosts: &'a mut [Host], name: &str) -> &'a mut Host {
    hosts.iter_mut().find(|host| host.name == name).unwrap()
}

#[test]
fn a_machine_outlives_its_hosts_and_is_protected_again_by_itself() {
    let _machine = machine();
    let site = Site::new();
    let mut hosts = ["a", "b", "c"].map(|name| site.host(name));
    let recipe = site.recipe("web", "");
    let said = site.say(&["up", text(&recipe)]);
    assert_eq!(
        said,
        "'web' is protected, view 1: it runs on a, and its backup on b\n"
    );
    let (_forward, at) = site.serve();
    let clients = load(at);
    replies(&clients);

    // Its primary's process: the host itself is alive, and so is a spare.
    let killed = Instant::now();
    of(&mut hosts, "a").kill_replica("web");
    replies(&clients);
    let (primary, backup) = protected_again(&site, killed, 2);
    assert_eq!(
        (primary.as_str(), backup.as_str()),
        ("b", "c"),
        "the one with the fewest"
    );
    of(&mut hosts, "a").wait_events("ended", 1);

    // A supervisor: nothing happens to its replica, and the next one finds it.
    let (view, replica) = (site.vm("web")["view"].clone(), hosts[1].replica("web"));
    hosts[1].kill_supervisor();
    site.wait_host("b", |host| {
        host["room"].is_null() && host["state"] == "live"
    });
    replies(&clients);
    hosts[1].start_again(&site);
    let adopted = hosts[1].wait_events("adopted", 1).detail;
    assert!(adopted.contains(&replica.unwrap().to_string()), "{adopted}");
    replies(&clients);
    assert_eq!(
        (site.vm("web")["view"].clone(), hosts[1].replica("web")),
        (view, replica)
    );
    assert_eq!(hosts[1].started(), 1, "what runs is not started again");

    // A whole host, with its supervisor.
    let killed = Instant::now();
    hosts[1].die();
    replies(&clients);
    let (primary, backup) = protected_again(&site, killed, 4);
    assert_eq!((primary.as_str(), backup.as_str()), ("c", "a"));
    hosts[1].start_again(&site);

    // A host is emptied, whose replica leads; what the machine said is read from wherever it is.
    let events = site.say(&["logs", "web", "--events"]);
    assert!(events.contains("\"event\":\"protected\""), "{events}");
    let drained = site.say(&["drain", "c"]);
    assert!(
        drained.ends_with("host c is drained: no replica is there\n"),
        "{drained}"
    );
    site.wait_pair("web", 6, "a", "b");
    of(&mut hosts, "c").wait_no_replica("web");
    // And one whose replica follows. There is no place for it before c may have replicas again.
    site.say(&["drain", "b", "--no-wait"]);
    site.say(&["drain", "c", "--undo"]);
    site.wait_pair("web", 8, "a", "c");
    of(&mut hosts, "b").wait_no_replica("web");
    site.say(&["drain", "b", "--undo"]);

    // Roles change on request, from anywhere.
    let said = site.say(&["failover", "web"]);
    assert!(
        said.starts_with("'web' is left to its backup on c, view "),
        "{said}"
    );
    site.wait_pair("web", 10, "c", "a");
    replies(&clients);

    let history = clients.stop();
    let judged = Judged::of(&history, &Served::kv());
    assert!(judged.is_good(), "{}", judged.explain());
    site.say(&["down", "web"]);
    for host in &hosts {
        host.wait_no_replica("web");
    }
    // The end is marked: nobody has to vouch for it.
    let again = site.say(&["up", text(&recipe)]);
    assert!(again.starts_with("'web' is protected"), "{again}");
    site.say(&["down", "web"]);
    for host in &hosts {
        host.wait_no_replica("web");
    }
}

/// The rule that nothing may break: no order, however wrong, begins a machine that runs.
#[test]
fn a_viewservice_that_has_lost_all_it_knew_begins_no_machine_that_runs() {
    let _machine = machine();
    let site = Site::new();
    let _hosts = ["a", "b"].map(|name| site.host(name));
    let recipe = site.recipe("web", "");
    site.say(&["up", text(&recipe)]);
    // It knows nothing of the pair, and has hosts of its own.
    let (_views, at) = site.amnesiac();
    let _others = ["c", "d"].map(|name| site.start_host(name, &at, super::site::HOST_MIB));
    let begun = Instant::now();
    let why = loop {
        let output = super::common::tandem(&["up", text(&recipe), "--viewservice", &at]);
        assert!(!output.status.success());
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        if !why.contains("no two hosts have room") {
            break why;
        }
        assert!(begun.elapsed() < LIMIT, "{why}");
        std::thread::sleep(LOOK);
    };
    assert!(why.contains("'web' may be running in view 1"), "{why}");
    assert!(why.contains("tandem up --anew"), "{why}");
    assert_eq!(why.lines().count(), 1, "{why}");
    let vm = site.vm("web");
    assert_eq!(
        (&vm["view"], &vm["role"]),
        (&1.into(), &"primary".into()),
        "{vm}"
    );
    site.say(&["down", "web"]);
}
