//! What the view machine does, as plain text: an event a line, and indented below it what it changed.
//!
//! ```text
//!   ping HOST [REPLICA]...              changes, then "->" and the orders for that host
//!   of HOST REPLICA                     the same of a process that speaks of one machine, at its own address
//!   host HOST MIB [KVM] [VM]...         a supervisor, what its host has, and what runs there; then its orders
//!   fails HOST MIB VM VIEW              the same, where that replica failed
//!   place VM MIB [ENGINE]               drain HOST, undrain HOST, failover VM
//!   where REPLICA is VM/VIEW/ROLE[/LAG[/BACKUP]], or VM/waits
//!   solo HOST VM VIEW                   ended HOST VM VIEW
//!   up VM [PRIMARY [BACKUP]]            down VM
//!   tick [TIMES]                        restart
//!   status
//! ```

mod fleet;
mod spares;

use viewservice::{
    Address, Engine, Failed, Held, HostId, HostPing, Leave, Machine, Ping, Register, Report, Role,
    Room, Settings, State, Up, ViewEvent, ViewNumber, Views, VmId, Wanted,
};

const SETTINGS: Settings = Settings {
    ping_interval_ms: 500,
    missed_pings: 3,
};

fn vm(name: &str) -> VmId {
    VmId::new(name).unwrap()
}

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn number(text: &str) -> ViewNumber {
    ViewNumber(text.parse().unwrap())
}

fn held(text: &str) -> Held {
    let words: Vec<_> = text.split('/').collect();
    Held {
        vm: vm(words[0]),
        view: number(words[1]),
        role: match words[2] {
            "primary" => Role::Primary,
            "backup" => Role::Backup,
            "solo" => Role::Solo,
            other => panic!("role {other}"),
        },
        lag_ms: words.get(3).map(|lag| lag.parse().unwrap()),
        backup: words.get(4).map(|name| host(name)),
    }
}

fn host_ping(name: &str, mib: &str, kvm: Option<&str>, runs: &[&str]) -> HostPing {
    HostPing {
        host: host(name),
        supervisor: format!("supervisor of {name}"),
        address: Address::new(format!("at-{name}")).unwrap(),
        room: Room {
            memory_mib: mib.parse().unwrap(),
            kvm: kvm.map(|_| "hardware".into()),
            cpu_models: vec!["v1".into()],
            maker: kvm.unwrap_or("any").into(),
            processor: "a processor".into(),
            vms: None,
        },
        runs: runs.iter().map(|name| vm(name)).collect(),
        failed: Vec::new(),
    }
}

fn event(words: &[&str]) -> ViewEvent {
    match words {
        ["of", name, replica] => {
            let ViewEvent::Ping(ping) = event(&["ping", name, replica]) else {
                unreachable!("it is one");
            };
            let of = replica.split('/').next().unwrap();
            ViewEvent::Ping(Ping {
                address: Address::new(format!("at-{name}-{of}")).unwrap(),
                of: Some(vm(of)),
                ..ping
            })
        }
        ["host", name, mib, more @ ..] => {
            let makers = ["intel", "amd"];
            let kvm = more.first().filter(|word| makers.contains(word));
            let runs = &more[usize::from(kvm.is_some())..];
            ViewEvent::Host(host_ping(name, mib, kvm.copied(), runs))
        }
        ["fails", name, mib, id, view] => ViewEvent::Host(HostPing {
            failed: vec![Failed {
                vm: vm(id),
                view: number(view),
                why: "no such file".into(),
            }],
            ..host_ping(name, mib, None, &[])
        }),
        ["place", id, mib, more @ ..] => ViewEvent::Up(Up {
            vm: vm(id),
            machine: Machine {
                guest: "kv".into(),
                memory_mib: mib.parse().unwrap(),
                engine: match more {
                    [] | ["soft"] => Engine::Soft,
                    ["auto"] => Engine::Auto,
                    ["kvm"] => Engine::Kvm,
                    other => panic!("engine {other:?}"),
                },
                cpu: "v1".into(),
                ..Machine::default()
            },
            anew: false,
        }),
        ["drain", name] => ViewEvent::Drain(host(name), true),
        ["undrain", name] => ViewEvent::Drain(host(name), false),
        ["failover", id] => ViewEvent::Failover(vm(id)),
        ["ping", name, replicas @ ..] => {
            let waits = |text: &&str| text.strip_suffix("/waits").map(vm);
            let holds = |text: &&&str| waits(text).is_none();
            ViewEvent::Ping(Ping {
                host: host(name),
                address: Address::new(format!("at-{name}")).unwrap(),
                held: replicas
                    .iter()
                    .filter(holds)
                    .map(|text| held(text))
                    .collect(),
                waits: replicas.iter().filter_map(waits).collect(),
                of: None,
            })
        }
        ["solo", name, id, view] => ViewEvent::Report(Report::Solo {
            host: host(name),
            vm: vm(id),
            view: number(view),
        }),
        ["ended", name, id, view] => ViewEvent::Report(Report::Ended {
            host: host(name),
            vm: vm(id),
            view: number(view),
        }),
        ["up", id, hosts @ ..] => ViewEvent::Register(Register {
            vm: vm(id),
            primary: hosts.first().map(|name| host(name)),
            backup: hosts.get(1).map(|name| host(name)),
        }),
        ["down", id] => ViewEvent::Down(vm(id)),
        ["tick"] => ViewEvent::Tick,
        other => panic!("event {other:?}"),
    }
}

fn happen(views: &mut Views, words: &[&str], said: &mut Vec<String>) {
    match words {
        ["restart"] => *views = Views::new(views.state().clone(), SETTINGS),
        ["tick", times] => {
            (0..times.parse().unwrap()).for_each(|_: u32| happen(views, &["tick"], said))
        }
        ["status"] => {
            let status = views.status();
            said.extend(status.vms.iter().map(|v| serde_json::to_string(v).unwrap()));
            said.extend(
                status
                    .hosts
                    .iter()
                    .map(|h| serde_json::to_string(h).unwrap()),
            );
        }
        words => match views.handle(&event(words)) {
            Ok(changes) => said.extend(changes.iter().map(ToString::to_string)),
            Err(why) => said.push(format!("refused: {why}")),
        },
    }
    if let ["host" | "fails", name, ..] = words {
        let orders = views.host_orders(&host(name));
        for Wanted {
            vm,
            view,
            role,
            backup,
            ..
        } in orders.start
        {
            let with = backup.map_or(String::new(), |at| format!(" with {at}"));
            said.push(format!("-> start {vm} view {}: {role}{with}", view.number));
        }
        let dismiss = orders.dismiss.iter();
        said.extend(dismiss.map(|vm| format!("-> dismiss {vm}")));
    }
    if let ["ping" | "of", name, ..] = words {
        for order in views.orders(&host(name)).assignments {
            let peer = order.peer.map_or("nobody".into(), |peer| peer.to_string());
            let waits = if order.peer_waits { ", who waits" } else { "" };
            let acked = if order.acked { "" } else { ", to acknowledge" };
            let stop = if order.stop { ", to stop" } else { "" };
            let leave = match order.leave {
                None => "",
                Some(Leave::End) => ", to leave",
                Some(Leave::Follow) => ", to leave and follow",
            };
            said.push(format!(
                "-> {} view {}: {} with {peer}{waits}{acked}{stop}{leave}",
                order.vm, order.view.number, order.role
            ));
        }
    }
}

/// Replays the events of `transcript` and compares everything said.
fn check(transcript: &str) {
    let lines = transcript
        .lines()
        .map(str::trim_end)
        .filter(|l| !l.is_empty());
    let mut views = Views::new(State::default(), SETTINGS);
    let mut found = String::new();
    for line in lines.clone().filter(|line| !line.starts_with(' ')) {
        let mut said = Vec::new();
        happen(&mut views, &line.split(' ').collect::<Vec<_>>(), &mut said);
        found += &format!("{line}\n");
        said.iter().for_each(|line| found += &format!("  {line}\n"));
    }
    let expected: String = lines.map(|line| format!("{line}\n")).collect();
    assert!(found == expected, "expected:\n{expected}\nfound:\n{found}");
}

#[test]
fn a_pair_starts_and_its_primary_acknowledges() {
    check("
ping b
  host b is at at-b
  host b is up
ping a
  host a is at at-a
  host a is up
up web
  web: named view 1: primary a, backup b
ping b
  -> web view 1: backup with at-a, to acknowledge
ping b web/1/backup
  -> web view 1: backup with at-a, to acknowledge
ping a web/1/primary/3
  web: view 1 acknowledged
  -> web view 1: primary with at-b
up web
  refused: VM web is there already, view 1: primary a, backup b; take it down first, or choose another name
status
  {\"name\":\"web\",\"role\":\"primary\",\"view\":1,\"primary\":\"a\",\"backup\":\"b\",\"lag_ms\":3,\"roles\":{\"a\":\"primary\",\"b\":\"backup\"},\"named\":null,\"stopping\":false}
  {\"name\":\"a\",\"address\":\"at-a\",\"state\":\"live\",\"missed_pings\":0,\"spare\":false}
  {\"name\":\"b\",\"address\":\"at-b\",\"state\":\"live\",\"missed_pings\":0,\"spare\":false}
");
}

#[test]
fn the_arbiters_winner_is_believed_and_given_a_spare() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
ping c
  host c is at at-c
  host c is up
up web a b
  web: named view 1: primary a, backup b
ping a web/1/primary
  web: view 1 acknowledged
  -> web view 1: primary with at-b
solo b web 2
  web: went solo in view 2: primary b, no backup
  host a is suspected
  web: named view 3: primary b, backup c
solo b web 2
ping a web/1/primary
  host a is up
solo a web 2
  refused: host a cannot be in view 2 of VM web, which is in view 3: primary b, backup c
ping b web/2/solo
  -> web view 3: primary with at-c, to acknowledge
ping c
  -> web view 3: backup with at-b, to acknowledge
ping b web/3/solo
  web: view 3 acknowledged
  -> web view 3: primary with at-c
ping b web/3/primary
  -> web view 3: primary with at-c
solo c web 4
  web: went solo in view 4: primary c, no backup
  host b is suspected
  web: named view 5: primary c, backup a
",
    );
}

#[test]
fn a_failover_before_the_first_acknowledgement_counts() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web
  web: named view 1: primary a, backup b
tick 2
ping b web/2/solo
  web: went solo in view 2: primary b, no backup
  host a is suspected
  -> web view 2: solo with nobody
tick
  host a is dead
ping a
  host a is up
  web: named view 3: primary b, backup a
  -> web view 3: backup with at-b, to acknowledge
",
    );
}

#[test]
fn a_view_not_acknowledged_is_not_moved_past_though_its_backup_dies() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web a b
  web: named view 1: primary a, backup b
ping a web/1/primary
  web: view 1 acknowledged
  -> web view 1: primary with at-b
ping c
  host c is at at-c
  host c is up
ping a web/2/solo
  web: went solo in view 2: primary a, no backup
  host b is suspected
  web: named view 3: primary a, backup c
  -> web view 3: primary with at-c, to acknowledge
tick 2
ping b
  host b is up
ping a web/2/solo
  -> web view 3: primary with at-c, to acknowledge
tick
  host c is dead
ping a web/2/solo
  -> web view 3: primary with at-c, to acknowledge
ping a web/3/solo
  web: view 3 acknowledged
  -> web view 3: primary with at-c
ping a web/4/solo
  web: went solo in view 4: primary a, no backup
  web: named view 5: primary a, backup b
  -> web view 5: primary with at-b, to acknowledge
",
    );
}

#[test]
fn a_solo_vm_waits_for_a_spare_and_takes_the_first() {
    check(
        "
ping a
  host a is at at-a
  host a is up
up web
  web: named view 1: primary a, no backup
ping b
  host b is at at-b
  host b is up
ping a web/1/solo
  web: view 1 acknowledged
  web: named view 2: primary a, backup b
  -> web view 2: primary with at-b, to acknowledge
",
    );
}

#[test]
fn silence_kills_a_host_but_moves_no_view() {
    check("
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web
  web: named view 1: primary a, backup b
ping a web/1/primary/1
  web: view 1 acknowledged
  -> web view 1: primary with at-b
tick 2
ping b
  -> web view 1: backup with at-a
tick
  host a is dead
tick 9
  host b is dead
up db
  refused: no host is live; start a host's daemon
up db a
  refused: host a is not live; start its daemon, or choose another host
status
  {\"name\":\"web\",\"role\":null,\"view\":1,\"primary\":\"a\",\"backup\":\"b\",\"lag_ms\":null,\"roles\":{},\"named\":null,\"stopping\":false}
  {\"name\":\"a\",\"address\":\"at-a\",\"state\":\"dead\",\"missed_pings\":12,\"spare\":false}
  {\"name\":\"b\",\"address\":\"at-b\",\"state\":\"dead\",\"missed_pings\":10,\"spare\":false}
ping a web/1/primary
  host a is up
  -> web view 1: primary with at-b
");
}

#[test]
fn a_restart_changes_nothing_and_no_host_unheard_of_is_a_spare() {
    check("
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
ping c
  host c is at at-c
  host c is up
up web a b
  web: named view 1: primary a, backup b
ping a web/1/primary
  web: view 1 acknowledged
  -> web view 1: primary with at-b
restart
status
  {\"name\":\"web\",\"role\":null,\"view\":1,\"primary\":\"a\",\"backup\":\"b\",\"lag_ms\":null,\"roles\":{},\"named\":null,\"stopping\":false}
  {\"name\":\"a\",\"address\":\"at-a\",\"state\":\"unheard\",\"missed_pings\":0,\"spare\":false}
  {\"name\":\"b\",\"address\":\"at-b\",\"state\":\"unheard\",\"missed_pings\":0,\"spare\":false}
  {\"name\":\"c\",\"address\":\"at-c\",\"state\":\"unheard\",\"missed_pings\":0,\"spare\":false}
ping b web/2/solo
  host b is up
  web: went solo in view 2: primary b, no backup
  -> web view 2: solo with nobody
restart
ping c
  host c is up
tick 2
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup c
  -> web view 3: primary with at-c, to acknowledge
tick
  host a is dead
  host c is dead
");
}

#[test]
fn a_power_off_ends_the_vm_whoever_tells_first() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web a b
  web: named view 1: primary a, backup b
ended c web 1
  refused: host c cannot be in view 1 of VM web, which is in view 1: primary a, backup b
ended b web 3
  refused: host b cannot be in view 3 of VM web, which is in view 1: primary a, backup b
ended b web 1
  web: removed
ended a web 1
ping a web/1/primary
  claim of host a ignored: there is no VM web
down web
  refused: there is no VM web
",
    );
}

#[test]
fn a_name_used_again_begins_after_any_view_its_flags_could_have_decided() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web a b
  web: named view 1: primary a, backup b
ended a web 2
  web: went solo in view 2: primary a, no backup
  host b is suspected
  web: removed
ping b
  host b is up
up web b a
  web: named view 4: primary b, backup a
solo a web 2
  refused: host a cannot be in view 2 of VM web, which is in view 4: primary b, backup a
ping b web/4/primary
  web: view 4 acknowledged
  -> web view 4: primary with at-a
",
    );
}

#[test]
fn down_tells_the_hosts_and_ends_when_they_say_so_or_are_dead() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web a b
  web: named view 1: primary a, backup b
up db b a
  db: named view 1: primary b, backup a
down web
  web: is to stop
down web
ping a
  -> db view 1: backup with at-b, to acknowledge
  -> web view 1: primary with at-b, to acknowledge, to stop
ended a web 1
  web: removed
down db
  db: is to stop
solo a db 2
  db: went solo in view 2: primary a, no backup
  host b is suspected
ping a db/2/solo
  -> db view 2: solo with nobody, to stop
tick 3
  host a is dead
  host b is dead
  db: removed
",
    );
}

#[test]
fn hosts_for_a_new_vm_are_the_least_loaded() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
ping c
  host c is at at-c
  host c is up
ping d
  host d is at at-d
  host d is up
up one
  one: named view 1: primary a, backup b
up two
  two: named view 1: primary c, backup d
up three d
  three: named view 1: primary d, backup a
up four b b
  refused: host b cannot be both primary and backup
up four e
  refused: host e is not live; start its daemon, or choose another host
",
    );
}

#[test]
fn a_pair_that_is_not_known_is_learnt_whoever_of_it_reports_first() {
    check("
ping b web/3/backup
  host b is at at-b
  host b is up
  claim of host b ignored: there is no VM web
ping c
  host c is at at-c
  host c is up
ping a web/3/primary
  host a is at at-a
  host a is up
  web: its replicas say view 3: primary a, backup b
  -> web view 3: primary with at-b
ping b web/3/backup
  -> web view 3: backup with at-a
up web
  refused: VM web is there already, view 3: primary a, backup b; take it down first, or choose another name
down web
  web: is to stop
ping a web/3/primary
  -> web view 3: primary with at-b, to stop
ended a web 3
  web: removed
ping b web/3/backup
  claim of host b ignored: there is no VM web
");
    check(
        "
ping c
  host c is at at-c
  host c is up
ping a web/3/primary
  host a is at at-a
  host a is up
  web: its replicas say view 3: primary a, no backup
  -> web view 3: solo with nobody
ping c
ping b web/3/backup
  host b is at at-b
  host b is up
  web: its replicas say view 3: primary a, backup b
  -> web view 3: backup with at-a
ping c web/3/backup
solo b web 4
  web: went solo in view 4: primary b, no backup
  host a is suspected
",
    );
}

#[test]
fn one_that_runs_alone_is_learnt_and_given_a_spare() {
    check("
ping c
  host c is at at-c
  host c is up
ping b web/4/solo
  host b is at at-b
  host b is up
  web: its replicas say view 4: primary b, no backup
  web: named view 5: primary b, backup c
  -> web view 5: primary with at-c, to acknowledge
ping b web/5/primary
  web: view 5 acknowledged
  -> web view 5: primary with at-c
ping a web/9/solo
  host a is at at-a
  host a is up
  claim of host a ignored: host a cannot be in view 9 of VM web, which is in view 5: primary b, backup c
");
}

#[test]
fn what_was_learnt_is_raised_and_never_lowered_or_forked() {
    check("
ping a web/3/primary
  host a is at at-a
  host a is up
  web: its replicas say view 3: primary a, no backup
  -> web view 3: solo with nobody
ping b web/4/solo
  host b is at at-b
  host b is up
  claim of host b ignored: host b cannot be in view 4 of VM web, which is in view 3: primary a, no backup
ping c web/3/primary
  host c is at at-c
  host c is up
ping c web/3/solo
  claim of host c ignored: host c cannot be in view 3 of VM web, which is in view 3: primary a, no backup
tick 3
  host a is dead
  host b is dead
  host c is dead
ping b web/4/solo
  host b is up
  web: its replicas say view 4: primary b, no backup
  -> web view 4: solo with nobody
restart
ping a web/3/primary
  host a is up
ping a web/3/solo
  claim of host a ignored: host a cannot be in view 3 of VM web, which is in view 4: primary b, no backup
ping b web/6/solo
  host b is up
  web: its replicas say view 6: primary b, no backup
  web: named view 7: primary b, backup a
  -> web view 7: primary with at-a, to acknowledge
");
}

#[test]
fn a_vm_that_was_removed_is_not_learnt_again() {
    check(
        "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web a b
  web: named view 1: primary a, backup b
ping a web/1/primary
  web: view 1 acknowledged
  -> web view 1: primary with at-b
ended b web 1
  web: removed
ping a web/1/primary
  claim of host a ignored: there is no VM web
ping a web/2/solo
  claim of host a ignored: there is no VM web
solo c web 7
  refused: there is no VM web
ping a web/18446744073709551615/solo
  claim of host a ignored: there is no VM web
",
    );
}
