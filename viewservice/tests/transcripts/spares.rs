//! Who is given to a VM that runs alone, of those that wait to become its backup and those that do not.

use super::check;

/// Host b ran web alone in view 2 when it was last heard of.
const SURVIVOR: &str = "
ping a
  host a is at at-a
  host a is up
ping b
  host b is at at-b
  host b is up
up web a b
  web: named view 1: primary a, backup b
solo b web 2
  web: went solo in view 2: primary b, no backup
  host a is suspected
tick 3
  host a is dead
  host b is dead
";

#[test]
fn a_spare_that_waits_is_preferred() {
    check(
        &[
            SURVIVOR,
            "
ping c
  host c is at at-c
  host c is up
ping d web/waits
  host d is at at-d
  host d is up
ping e db/waits
  host e is at at-e
  host e is up
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup d
  -> web view 3: primary with at-d, who waits, to acknowledge
ping d web/waits
  -> web view 3: backup with at-b, to acknowledge
",
        ]
        .concat(),
    );
}

/// The primary has begun the view with the backup it was told of, which another one replaced meanwhile, and dies
/// before it says so.
#[test]
fn one_that_was_named_before_may_be_the_arbiters_winner() {
    check(
        &[
            SURVIVOR,
            "
ping d web/waits
  host d is at at-d
  host d is up
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup d
  -> web view 3: primary with at-d, who waits, to acknowledge
tick 2
ping b web/2/solo
  -> web view 3: primary with at-d, who waits, to acknowledge
tick
  host d is dead
ping e web/waits
  host e is at at-e
  host e is up
  web: named view 3: primary b, backup e
  -> web view 3: backup with at-b, to acknowledge
restart
solo a web 4
  refused: host a cannot be in view 4 of VM web, which is in view 3: primary b, backup e
solo d web 4
  web: went solo in view 4: primary d, no backup
ping e web/waits
  host e is up
ping d web/4/solo
  host d is up
  web: named view 5: primary d, backup e
  -> web view 5: primary with at-e, who waits, to acknowledge
",
        ]
        .concat(),
    );
}

#[test]
fn one_that_was_named_and_does_not_wait_makes_room_for_one_that_does() {
    check(
        &[
            SURVIVOR,
            "
ping c
  host c is at at-c
  host c is up
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup c
  -> web view 3: primary with at-c, to acknowledge
ping d
  host d is at at-d
  host d is up
ping e web/waits
  host e is at at-e
  host e is up
  web: named view 3: primary b, backup e
  -> web view 3: backup with at-b, to acknowledge
ping b web/2/solo
  -> web view 3: primary with at-e, who waits, to acknowledge
down web
  web: is to stop
ping e
  -> web view 3: backup with at-b, to acknowledge, to stop
ping c web/waits
",
        ]
        .concat(),
    );
}

#[test]
fn a_spare_that_dies_before_the_acknowledgement_is_replaced() {
    check(
        &[
            SURVIVOR,
            "
ping c web/waits
  host c is at at-c
  host c is up
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup c
  -> web view 3: primary with at-c, who waits, to acknowledge
tick 2
ping d web/waits
  host d is at at-d
  host d is up
ping b web/2/solo
  -> web view 3: primary with at-c, who waits, to acknowledge
tick
  host c is dead
  web: named view 3: primary b, backup d
ping b web/2/solo
  -> web view 3: primary with at-d, who waits, to acknowledge
ping d web/3/backup
  -> web view 3: backup with at-b, to acknowledge
ping b web/3/primary/0/d
  web: view 3 acknowledged
  -> web view 3: primary with at-d
",
        ]
        .concat(),
    );
}

#[test]
fn a_view_that_is_acknowledged_keeps_its_backup() {
    check(
        &[
            SURVIVOR,
            "
ping c web/waits
  host c is at at-c
  host c is up
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup c
  -> web view 3: primary with at-c, who waits, to acknowledge
ping b web/3/primary/0/c
  web: view 3 acknowledged
  -> web view 3: primary with at-c, who waits
ping d web/waits
  host d is at at-d
  host d is up
ping c
  -> web view 3: backup with at-b
tick 2
ping b web/3/primary/0/d
  -> web view 3: primary with at-c
ping d web/waits
tick
  host c is dead
",
        ]
        .concat(),
    );
}

#[test]
fn a_strangers_ping_displaces_no_spare_that_waits_or_is_being_given_the_machine() {
    check(
        &[
            SURVIVOR,
            "
ping d web/waits
  host d is at at-d
  host d is up
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup d
  -> web view 3: primary with at-d, who waits, to acknowledge
ping c web/waits
  host c is at at-c
  host c is up
ping d web/3/backup
  -> web view 3: backup with at-b, to acknowledge
ping c web/waits
restart
ping c web/waits
  host c is up
ping b web/3/primary/0/d
  host b is up
  web: view 3 acknowledged
  -> web view 3: primary with at-d
",
        ]
        .concat(),
    );
}

#[test]
fn the_primary_says_which_of_those_named_became_its_backup() {
    check(
        &[
            SURVIVOR,
            "
ping c web/waits
  host c is at at-c
  host c is up
ping b web/2/solo
  host b is up
  web: named view 3: primary b, backup c
  -> web view 3: primary with at-c, who waits, to acknowledge
ping d web/waits
  host d is at at-d
  host d is up
ping c
  web: named view 3: primary b, backup d
ping b web/3/primary/0/c
  web: named view 3: primary b, backup c
  web: view 3 acknowledged
  -> web view 3: primary with at-c
solo c web 4
  web: went solo in view 4: primary c, no backup
  host b is suspected
  web: named view 5: primary c, backup d
ping c web/5/primary/0/x
  web: view 5 acknowledged
  -> web view 5: primary with at-d, who waits
",
        ]
        .concat(),
    );
}
