//! Derived time against the host's own clock.

use super::*;

fn situation(time_ns: u64, timer: replay::TimerSpec) -> Situation {
    Situation {
        time_ns: Some(time_ns),
        timer,
        ..Situation::default()
    }
}

fn live() -> (Arc<Inbox>, Live) {
    let inbox = Inbox::new();
    let live = Live::new(inbox.clone(), GuestTime::default(), false).unwrap();
    (inbox, live)
}

#[test]
fn a_guest_that_runs_ahead_is_held_back_until_real_time_is_there() {
    let (_inbox, mut live) = live();
    let idle = replay::TimerSpec::default();
    live.next_stop(&situation(0, idle));
    let ahead = live.guest_ns() + 20_000_000;
    live.next_stop(&situation(ahead, idle));
    assert!(live.guest_ns() >= ahead);
}

#[test]
fn it_is_not_held_back_while_something_waits_for_delivery_or_the_timer_is_due() {
    let hour_ns = 3_600_000_000_000;
    let (inbox, mut live) = live();
    let timer = replay::TimerSpec {
        period_ns: 1_000_000,
        generation: 1,
        one_shot: true,
    };
    live.next_stop(&situation(0, timer));
    assert_eq!(live.next_stop(&situation(hour_ns, timer)), Stop::Soon);
    assert!(inbox.push(Arrival::Stop));
    assert_eq!(live.next_stop(&situation(hour_ns, timer)), Stop::Soon);
    assert!(live.guest_ns() < hour_ns);
}

#[test]
fn a_guest_that_fell_behind_gets_an_anchor_with_nothing_else() {
    let (_inbox, mut live) = live();
    let now = situation(0, replay::TimerSpec::default());
    live.next_stop(&now);
    let behind = Pace::new(1_000_000_000, hostclock::monotonic_ns());
    live.pace = behind;
    assert_eq!(live.next_stop(&now), Stop::Soon);
    assert_eq!(live.poll(&now).unwrap(), Some(Arrival::IrqWindow));
    let caught_up = situation(live.guest_ns() + 3_600_000_000_000, now.timer);
    assert_eq!(live.poll(&caught_up).unwrap(), None);
}

fn frames_room() -> Situation {
    Situation {
        frames_room: 1,
        ..Situation::default()
    }
}

#[test]
fn a_busy_guest_is_kicked_for_a_frame_that_has_waited() {
    let (inbox, mut live) = live();
    let now = frames_room();
    assert_eq!(inbox.settled(), Attention::Wire, "nothing waits");
    inbox.push(Arrival::Frame(vec![1]));
    assert!(live.poll(&now).unwrap().is_some());
    assert_eq!(live.next_stop(&now), Stop::Never, "in the guest, busy");
    inbox.push(Arrival::Frame(vec![2]));
    let place = || inbox.place.load(Ordering::SeqCst);
    assert_eq!(place(), place::GUEST_BUSY, "not kicked for one more");
    // Until it has waited the backend is told how long to wait; then the guest is out.
    while place() == place::GUEST_BUSY {
        let Attention::Within(left) = inbox.settled() else {
            panic!("the backend must come back while a frame waits");
        };
        assert!(left.as_nanos() <= u128::from(FRAME_WAIT_NS));
        std::thread::sleep(left);
    }
    assert!(live.poll(&now).unwrap().is_some());
    assert_eq!(inbox.settled(), Attention::Wire, "it was taken");
}

#[test]
fn a_protected_guest_gets_frames_that_come_closely_several_at_once() {
    let (inbox, mut live) = live();
    let now = frames_room();
    let mut take = |frames: u8| {
        for frame in 0..frames {
            inbox.push(Arrival::Frame(vec![frame]));
        }
        while live.poll(&now).unwrap().is_some() {}
        inbox.settled()
    };
    assert_eq!(take(2), Attention::Wire, "nobody protects it");
    inbox.gather_frames(true);
    assert_eq!(take(1), Attention::Wire, "one request at a time");
    assert_eq!(take(2), Attention::After(GATHER));
    assert_eq!(take(0), Attention::Wire, "none came meanwhile");
    inbox.gather_frames(false);
    assert_eq!(take(2), Attention::Wire, "nobody protects it any more");
}

#[test]
fn a_busy_guest_is_kicked_for_a_frame_while_others_gather() {
    let (inbox, mut live) = live();
    let now = frames_room();
    inbox.gather_frames(true);
    inbox.push(Arrival::Frame(vec![1]));
    assert!(live.poll(&now).unwrap().is_some());
    assert_eq!(live.next_stop(&now), Stop::Never, "in the guest, busy");
    inbox.push(Arrival::Frame(vec![2]));
    inbox.push(Arrival::Frame(vec![3]));
    let place = || inbox.place.load(Ordering::SeqCst);
    // What it is told first depends on how long this test was away from the processor.
    while place() == place::GUEST_BUSY {
        let (Attention::After(left) | Attention::Within(left)) = inbox.settled() else {
            panic!("the backend must come back while a frame waits");
        };
        std::thread::sleep(left);
    }
    assert!(live.poll(&now).unwrap().is_some());
}

#[test]
fn a_frame_the_guest_has_no_room_for_disturbs_nobody() {
    let (inbox, mut live) = live();
    let full = Situation::default();
    inbox.push(Arrival::Frame(vec![1]));
    assert_eq!(live.poll(&full).unwrap(), None);
    assert_eq!(live.next_stop(&full), Stop::Never, "in the guest");
    assert_eq!(inbox.settled(), Attention::Wire);
    assert_eq!(inbox.place.load(Ordering::SeqCst), place::GUEST, "no kick");
}

#[test]
fn the_clock_is_told_the_time_when_it_is_due_and_not_before() {
    let (_inbox, mut live) = live();
    let mut now = Situation::default();
    assert_eq!(live.next_stop(&now), Stop::Never);
    now.clock_due_ns = Some(hostclock::wall_ns() + 3_600_000_000_000);
    assert_eq!(live.poll(&now).unwrap(), None);
    assert_eq!(live.next_stop(&now), Stop::Never);
    let due_ns = hostclock::wall_ns() + 20_000_000;
    now.clock_due_ns = Some(due_ns);
    let told = loop {
        if let Some(arrival) = live.poll(&now).unwrap() {
            break arrival;
        }
        live.wait(&now).unwrap();
    };
    let Arrival::Clock { wall_ns } = told else {
        panic!("{told:?}");
    };
    assert!(wall_ns >= due_ns);
    // What the guest reads next is no earlier.
    assert!(live.answer(Question::WallClock) >= wall_ns);
    assert_eq!(live.next_stop(&now), Stop::Soon, "it is past");
}
