//! Clients, pacing, stalls and measurements against a server with faults to order.

use std::time::{Duration, Instant};

use super::history::{NEVER, Observed};
use super::speed::{SpeedOptions, run_closed, run_paced};
use super::test_server::TestServer;
use super::{CheckOptions, History, Load, LoadError, LoadOptions, Pace, check, read_all, stalls};

const LONG: Duration = Duration::from_secs(30);

fn options(clients: u16) -> LoadOptions {
    LoadOptions {
        clients,
        keys: 16,
        ..LoadOptions::default()
    }
}

/// Stops the clients and reads back every key.
fn finish(server: &TestServer, load: Load) -> History {
    let epoch = load.epoch();
    let mut history = load.stop();
    read_all(server.addr, epoch, LONG, &mut history).unwrap();
    history
}

#[test]
fn a_true_server_is_found_linearizable_with_and_without_pipelining() {
    for pipeline in [1, 8] {
        let server = TestServer::start();
        let load = Load::start(
            server.addr,
            LoadOptions {
                pipeline,
                ..options(4)
            },
        )
        .unwrap();
        assert!(load.wait_replies(4000, LONG));
        let history = finish(&server, load);
        let verdict = check(&history, CheckOptions::default());
        assert!(verdict.linearizable(), "{}", verdict.explain());
        assert!(history.breaks.is_empty() && !history.full);
        assert!(
            history
                .ops
                .iter()
                .all(|op| op.return_ns >= op.invoke_ns && op.return_ns < NEVER)
        );
        assert_eq!((verdict.lost_writes, verdict.open_ended), (0, 0));
        assert!(verdict.acked_writes > 1000);
    }
}

#[test]
fn clients_hang_up_on_a_server_that_is_gone_and_wait_for_no_reply() {
    let server = TestServer::start();
    let load = Load::start(
        server.addr,
        LoadOptions {
            reply_limit: LONG * 100,
            ..options(4)
        },
    )
    .unwrap();
    assert!(load.wait_replies(500, LONG));
    server.hold();
    server.wait_held(4);
    let begun = Instant::now();
    let history = load.hang_up();
    assert!(begun.elapsed() < LONG);
    assert_eq!(history.breaks.len(), 4);
    let open = history.ops.iter().filter(|op| op.return_ns == NEVER);
    assert_eq!(open.count(), 4);
    assert!(check(&history, CheckOptions::default()).linearizable());
}

#[test]
fn a_server_put_back_to_an_earlier_state_has_lost_writes() {
    let server = TestServer::start();
    let load = Load::start(server.addr, options(4)).unwrap();
    assert!(load.wait_replies(500, LONG));
    let earlier = server.store();
    assert!(load.wait_replies(500, LONG));
    load.pause();
    server.restore(earlier);
    let verdict = check(&finish(&server, load), CheckOptions::default());
    assert!(!verdict.violations.is_empty());
    assert!(
        verdict.lost_writes > 10,
        "{} of about 250",
        verdict.lost_writes
    );
    assert!(verdict.explain().contains("can only have held"));
}

#[test]
fn a_stall_is_measured_and_breaks_nothing() {
    let server = TestServer::start();
    let load = Load::start(server.addr, options(3)).unwrap();
    assert!(load.wait_all_replied(0, LONG));
    server.hold();
    server.wait_held(3);
    let held = Instant::now();
    let moment_ns = load.epoch().ns_at(held);
    let waits = Duration::from_millis(20);
    assert!(
        !load.wait_all_replied(moment_ns, waits),
        "a held server does not answer"
    );
    let least = held.elapsed();
    server.release();
    assert!(load.wait_all_replied(moment_ns, LONG));
    let history = finish(&server, load);
    assert!(history.breaks.is_empty());
    let found = stalls(&history, moment_ns, LONG.as_nanos() as u64);
    assert_eq!(found.len(), 3);
    for stall in found {
        let least = least.as_nanos() as u64;
        assert!(stall.first_reply_ns >= least && stall.first_reply_ns < NEVER);
        assert!(stall.longest_op_ns >= stall.first_reply_ns);
        assert!(stall.longest_gap_ns >= stall.longest_op_ns);
    }
    assert!(check(&history, CheckOptions::default()).linearizable());
}

#[test]
fn a_closed_connection_is_recorded_and_the_others_go_on() {
    let server = TestServer::start();
    let load = Load::start(server.addr, options(3)).unwrap();
    assert!(load.wait_replies(50, LONG));
    server.close(1);
    assert!(load.wait_until(LONG, |load| load.broken() == 1));
    assert!(load.wait_replies(50, LONG));
    let history = finish(&server, load);
    assert_eq!(history.breaks.len(), 1);
    assert!(history.breaks[0].at_ns > 0 && !history.breaks[0].reason.is_empty());
    let broken = history.breaks[0].client;
    assert!(
        history
            .ops
            .iter()
            .all(|op| op.client == broken || op.return_ns < NEVER)
    );
    assert!(check(&history, CheckOptions::default()).linearizable());
}

#[test]
fn no_reply_within_the_limit_breaks_the_connection_and_leaves_the_call_open() {
    let server = TestServer::start();
    let limit = Duration::from_millis(50);
    let load = Load::start(
        server.addr,
        LoadOptions {
            reply_limit: limit,
            ..options(2)
        },
    )
    .unwrap();
    server.hold();
    assert!(load.wait_until(LONG, |load| load.broken() == 2));
    let history = load.stop();
    assert!(
        history
            .breaks
            .iter()
            .all(|b| b.reason == "no reply within 50 ms")
    );
    let open = history
        .ops
        .iter()
        .filter(|op| op.outcome == Observed::Unknown);
    assert!(open.map(|op| op.return_ns).eq([NEVER; 2]));
}

#[test]
fn paused_clients_ask_nothing_until_resumed() {
    let server = TestServer::start();
    let load = Load::start(server.addr, options(3)).unwrap();
    assert!(load.wait_replies(50, LONG));
    let history = load.pause();
    assert!(
        history.ops.iter().all(|op| op.return_ns < NEVER),
        "something is under way"
    );
    assert!(history.ops.is_sorted_by_key(|op| op.invoke_ns));
    let replies = load.replies();
    assert_eq!(history.ops.len() as u64, replies);
    assert!(!load.wait_replies(1, Duration::from_millis(20)));
    load.resume();
    assert!(load.wait_replies(50, LONG));
    assert!(load.stop().ops.len() as u64 >= replies + 50);
}

#[test]
fn a_rate_is_not_exceeded_and_a_schedule_is_made_up_for() {
    let server = TestServer::start();
    let begun = Instant::now();
    let at_most = LoadOptions {
        pace: Pace::AtMost(500),
        ..options(4)
    };
    let load = Load::start(server.addr, at_most).unwrap();
    assert!(load.wait_replies(50, LONG));
    let (replies, took) = (load.stop().ops.len() as f64, begun.elapsed().as_secs_f64());
    assert!(replies <= took * 500.0 + 4.0, "{replies} in {took} s");

    let load = Load::start(
        server.addr,
        LoadOptions {
            pace: Pace::Schedule(500),
            ..options(4)
        },
    )
    .unwrap();
    server.hold();
    server.wait_held(4);
    let asked = load.replies();
    let stall = Duration::from_millis(200);
    assert!(!load.wait_replies(1000, stall));
    server.release();
    // 100 turns came due in the stall, and few more can until those are done.
    assert!(load.wait_replies(100 - 4, LONG));
    let done_ns = load.epoch().now_ns();
    let history = load.stop();
    assert!(history.ops.len() as u64 >= asked + 100 - 4);
    assert!(done_ns >= stall.as_nanos() as u64);
}

#[test]
fn recording_stops_at_its_bound_and_says_so() {
    let server = TestServer::start();
    let load = Load::start(
        server.addr,
        LoadOptions {
            max_ops: 100,
            ..options(3)
        },
    )
    .unwrap();
    // Of all replies: some may have come before anyone waits.
    assert!(load.wait_until(LONG, |load| load.replies() == 100));
    assert_eq!(load.broken(), 0);
    // It says so once a client would have gone on.
    let begun = Instant::now();
    while !load.pause().full {
        assert!(begun.elapsed() < LONG);
        load.resume();
    }
    let history = load.stop();
    assert_eq!((history.ops.len(), history.full), (100, true));
}

#[test]
fn senseless_options_and_a_server_that_is_not_there_are_refused() {
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let start = |options| Load::start(nowhere, options).err();
    assert!(matches!(start(options(0)), Some(LoadError::Options(_))));
    let still = LoadOptions {
        pace: Pace::AtMost(0),
        ..options(1)
    };
    assert!(matches!(start(still), Some(LoadError::Options(_))));
    assert!(matches!(
        start(options(1)),
        Some(LoadError::Client { client: 0, .. })
    ));
}

#[test]
fn measurements_count_every_request() {
    let server = TestServer::start();
    let options = SpeedOptions {
        connections: 5,
        keys: 100,
        warm_up: Duration::from_millis(20),
        duration: Duration::from_millis(200),
        ..SpeedOptions::default()
    };
    let mut begun = 0;
    for pipeline in [1, 16] {
        let stats = run_closed(server.addr, &options, pipeline, &mut || begun += 1).unwrap();
        assert!(stats.ops >= 5 && stats.ops.is_multiple_of(pipeline.into()));
        assert_eq!((stats.errors, stats.latency.count()), (0, stats.ops));
        assert!(stats.latency.max_us() > 0);
    }
    let stats = run_paced(server.addr, &options, 1000, &mut || begun += 1).unwrap();
    assert_eq!((stats.ops, stats.errors), (200, 0));
    assert_eq!(stats.ops_per_s(), 1000.0);
    assert_eq!(stats.ops_per_s().round(), 1000.0);
    assert_eq!(begun, 3, "told once in each");
}

#[test]
fn large_values_go_through_a_full_socket() {
    let server = TestServer::start();
    let options = SpeedOptions {
        connections: 2,
        value_bytes: 300_000,
        keys: 3,
        warm_up: Duration::ZERO,
        duration: Duration::from_millis(100),
        ..SpeedOptions::default()
    };
    let stats = run_closed(server.addr, &options, 16, &mut || {}).unwrap();
    assert!(stats.ops >= 32);
}
