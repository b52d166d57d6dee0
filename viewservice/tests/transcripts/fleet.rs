//! Hosts with supervisors: where machines are placed, and how hosts are emptied.

use super::check;

/// Three hosts, web's pair on a and b.
const PAIR: &str = "
host a 300
  host a is at at-a
  host a is up
host b 300
  host b is at at-b
  host b is up
host c 300
  host c is at at-c
  host c is up
place web 64
  web: named view 1: primary a, backup b
host a 300
host b 300
  -> start web view 1: backup
of b web/waits
  -> web view 1: backup with at-a, to acknowledge
host a 300
  -> start web view 1: primary with at-b-web
host a 300 web
of a web/1/primary
  web: view 1 acknowledged
  -> web view 1: primary with at-b-web, who waits
of b web/1/backup
  -> web view 1: backup with at-a-web
host b 300 web
";

fn after_pair(more: &str) {
    check(&format!("{PAIR}{more}"));
}

#[test]
fn a_pair_is_placed_and_each_side_started_once() {
    after_pair(
        "
host a 300 web
status
  {\"name\":\"web\",\"role\":\"primary\",\"view\":1,\"primary\":\"a\",\"backup\":\"b\",\"lag_ms\":null,\"roles\":{\"a\":\"primary\",\"b\":\"backup\"},\"named\":null,\"stopping\":false,\"guest\":\"kv\"}
  {\"name\":\"a\",\"address\":\"at-a\",\"state\":\"live\",\"missed_pings\":0,\"spare\":false,\"room\":{\"memory_mib\":300,\"kvm\":null,\"cpu_models\":[\"v1\"],\"maker\":\"any\",\"processor\":\"a processor\"},\"left_mib\":164}
  {\"name\":\"b\",\"address\":\"at-b\",\"state\":\"live\",\"missed_pings\":0,\"spare\":false,\"room\":{\"memory_mib\":300,\"kvm\":null,\"cpu_models\":[\"v1\"],\"maker\":\"any\",\"processor\":\"a processor\"},\"left_mib\":164}
  {\"name\":\"c\",\"address\":\"at-c\",\"state\":\"live\",\"missed_pings\":0,\"spare\":true,\"room\":{\"memory_mib\":300,\"kvm\":null,\"cpu_models\":[\"v1\"],\"maker\":\"any\",\"processor\":\"a processor\"},\"left_mib\":300}
",
    );
}

#[test]
fn whoever_goes_solo_is_given_a_host_with_room_that_starts_a_backup() {
    after_pair(
        "
solo b web 2
  web: went solo in view 2: primary b, no backup
  host a is suspected
  web: named view 3: primary b, backup c
host c 300
  -> start web view 3: backup
of c web/waits
  -> web view 3: backup with at-b-web, to acknowledge
of b web/2/solo
  -> web view 3: primary with at-c-web, who waits, to acknowledge
",
    );
}

#[test]
fn no_primary_is_started_for_what_was_ever_acknowledged() {
    after_pair(
        "
solo b web 2
  web: went solo in view 2: primary b, no backup
  host a is suspected
  web: named view 3: primary b, backup c
of c web/waits
  -> web view 3: backup with at-b-web, to acknowledge
host b 300
",
    );
}

#[test]
fn a_backup_that_cannot_start_is_replaced_and_one_that_waits_for_nothing_dismissed() {
    after_pair(
        "
solo b web 2
  web: went solo in view 2: primary b, no backup
  host a is suspected
  web: named view 3: primary b, backup c
fails c 300 web 3
  -> start web view 3: backup
host a 300
  host a is up
  web: named view 3: primary b, backup a
  -> start web view 3: backup
fails c 300 web 3
host a 300
  -> start web view 3: backup
of a web/waits
  -> web view 3: backup with at-b-web, to acknowledge
of c web/waits
host c 300 web
  -> dismiss web
",
    );
}

#[test]
fn room_engine_and_kind_decide_and_the_reason_is_told() {
    check(
        "
place web 64
  refused: no two hosts have room for web; each replica takes 136 MiB, engine soft: no host pings
host a 200
  host a is at at-a
  host a is up
place web 64
  refused: no two hosts have room for web; each replica takes 136 MiB, engine soft: one alone is no pair
ping b
  host b is at at-b
  host b is up
host c 135
  host c is at at-c
  host c is up
place web 64
  refused: no two hosts have room for web; each replica takes 136 MiB, engine soft: b has no `tandem host`; c has 135 of 135 MiB left; one alone is no pair
host c 136 intel
place web 64 kvm
  refused: no two hosts have room for web; each replica takes 136 MiB, engine kvm: a has no KVM; b has no `tandem host`; one alone is no pair
place web 64 auto
  refused: no two hosts have room for web; each replica takes 136 MiB, engine auto: b has no `tandem host`; the others are not alike (KVM, or the processor's maker)
host d 136 amd
  host d is at at-d
  host d is up
place web 64 kvm
  refused: no two hosts have room for web; each replica takes 136 MiB, engine kvm: a has no KVM; b has no `tandem host`; the others are not alike (KVM, or the processor's maker)
host e 136 amd
  host e is at at-e
  host e is up
place web 64 kvm
  web: named view 1: primary d, backup e
place db 64
  db: named view 1: primary a, backup c
place third 1
  refused: no two hosts have room for third; each replica takes 73 MiB, engine soft: a has 64 of 200 MiB left; b has no `tandem host`; c has 0 of 136 MiB left; d has 0 of 136 MiB left; e has 0 of 136 MiB left
",
    );
}

#[test]
fn a_drained_host_loses_its_replicas_once_others_can_have_them() {
    after_pair(
        "
drain b
  host b is drained
drain b
of b web/1/backup
  -> web view 1: backup with at-a-web, to leave
solo a web 2
  web: went solo in view 2: primary a, no backup
  host b is suspected
  web: named view 3: primary a, backup c
host b 300
  host b is up
of c web/waits
  -> web view 3: backup with at-a-web, to acknowledge
of a web/3/primary
  web: view 3 acknowledged
  -> web view 3: primary with at-c-web, who waits
of c web/3/backup
  -> web view 3: backup with at-a-web
drain a
  host a is drained
of a web/3/primary
  -> web view 3: primary with at-c-web
undrain b
  host b is drained no more
of a web/3/primary
  -> web view 3: primary with at-c-web, to leave
",
    );
}

#[test]
fn roles_change_when_an_operator_asks_for_it() {
    after_pair(
        "
failover db
  refused: there is no VM db
failover web
of b web/1/backup
  -> web view 1: backup with at-a-web
of a web/1/primary
  -> web view 1: primary with at-b-web, to leave and follow
of a web/waits
  -> web view 1: primary with at-b-web
solo b web 2
  web: went solo in view 2: primary b, no backup
  host a is suspected
  web: named view 3: primary b, backup c
failover web
  refused: VM web has no backup that it could be left to: view 2: primary b, no backup
",
    );
}

#[test]
fn what_is_to_stop_is_gone_once_no_host_has_a_process_of_it() {
    after_pair(
        "
down web
  web: is to stop
of a web/1/primary
  -> web view 1: primary with at-b-web, to stop
host a 300
host b 300
  web: removed
",
    );
}

#[test]
fn what_has_ended_is_there_until_no_host_has_a_process_of_it() {
    after_pair(
        "
ended a web 1
  web: is to stop
of b web/1/backup
  -> web view 1: backup with at-a-web, to stop
host a 300
solo b web 2
  web: went solo in view 2: primary b, no backup
place web 64
  refused: VM web is there already, view 2: primary b, no backup; take it down first, or choose another name
ended b web 2
host b 300
  web: removed
place web 64
  web: named view 4: primary a, backup b
",
    );
}

#[test]
fn of_two_supervisors_of_one_name_the_first_stays() {
    check(
        "
host a 300
  host a is at at-a
  host a is up
restart
host a 300
  host a is up
drain nobody
  refused: there is no host nobody
",
    );
}
