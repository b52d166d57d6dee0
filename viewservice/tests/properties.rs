//! Whatever happens in whatever order, the rules at the head of the machine hold.

use proptest::prelude::*;
use std::collections::BTreeMap;
use viewservice::{
    Address, Change, Engine, Failed, Held, HostId, HostPing, Machine, Ping, Register, Report, Role,
    Room, Settings, State, Up, View, ViewEvent, ViewNumber, Views, VmId,
};

const SETTINGS: Settings = Settings {
    ping_interval_ms: 500,
    missed_pings: 3,
};

fn host() -> impl Strategy<Value = HostId> {
    "[abcd]".prop_map(|name| HostId::new(name).unwrap())
}

fn vm() -> impl Strategy<Value = VmId> {
    "[xy]".prop_map(|name| VmId::new(name).unwrap())
}

/// A view as seen from the latest one known when it is told of: it lies this far after (or, for
/// negative numbers, before) it.
type Offset = i64;

/// What a host says of a replica: its machine, view and role, and its backup's host.
type Told = (VmId, Offset, Role, Option<HostId>);

#[derive(Clone, Debug)]
enum Step {
    Ping(HostId, Vec<Told>, Vec<VmId>, Option<VmId>),
    Solo(HostId, VmId, Offset),
    Ended(HostId, VmId, Offset),
    Register(VmId, Option<HostId>, Option<HostId>),
    Down(VmId),
    Host(HostId, u64, Vec<VmId>, Option<(VmId, Offset)>),
    Up(VmId),
    Drain(HostId, bool),
    Failover(VmId),
    Tick,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let role = prop_oneof![Just(Role::Primary), Just(Role::Backup), Just(Role::Solo)];
    let backup = proptest::option::of(host());
    let held = proptest::collection::vec((vm(), -2..=2i64, role, backup), 0..3);
    let waits = proptest::collection::vec(vm(), 0..2);
    let runs = proptest::collection::vec(vm(), 0..2);
    let failed = proptest::option::of((vm(), -1..=1i64));
    prop_oneof![
        8 => (host(), held, waits, proptest::option::of(vm()))
            .prop_map(|(host, held, waits, of)| Step::Ping(host, held, waits, of)),
        5 => (host(), 0..400u64, runs, failed)
            .prop_map(|(host, mib, runs, failed)| Step::Host(host, mib, runs, failed)),
        2 => vm().prop_map(Step::Up),
        1 => (host(), proptest::bool::ANY).prop_map(|(host, drained)| Step::Drain(host, drained)),
        1 => vm().prop_map(Step::Failover),
        4 => (host(), vm(), -2..=3i64).prop_map(|(h, v, n)| Step::Solo(h, v, n)),
        1 => (host(), vm(), -2..=3i64).prop_map(|(h, v, n)| Step::Ended(h, v, n)),
        2 => (vm(), proptest::option::of(host()), proptest::option::of(host()))
            .prop_map(|(vm, a, b)| Step::Register(vm, a, b)),
        1 => vm().prop_map(Step::Down),
        2 => Just(Step::Tick),
        1 => Just(Step::Restart),
    ]
}

/// What an onlooker knows of one VM.
#[derive(Default)]
struct Seen {
    /// Primary of every view ever known.
    primaries: BTreeMap<ViewNumber, HostId>,
    /// The view named and not yet acknowledged.
    named: Option<View>,
    /// The latest view of the VM's present life; `None` while it is not there.
    latest: Option<View>,
    /// Whether a view of that life was acknowledged or reported.
    begun: bool,
}

impl Seen {
    /// A view never known before, and after all known before.
    fn new_view(&mut self, view: &View) {
        if let Some((last, _)) = self.primaries.last_key_value() {
            assert!(view.number > *last, "{view} after view {last}");
        }
        self.primaries.insert(view.number, view.primary.clone());
        self.latest = Some(view.clone());
    }

    fn see(&mut self, change: &Change) {
        match change {
            Change::Named(_, view) if self.named.is_some() => {
                let named = self.named.replace(view.clone()).expect("it is there");
                assert!(self.begun, "the first view has another backup");
                assert_eq!(view.number, named.number, "moved past it to {view}");
                assert_eq!(view.primary, named.primary, "a view with two primaries");
                assert_ne!(view.backup, named.backup);
                assert!(view.backup.is_some());
                self.latest = Some(view.clone());
            }
            Change::Named(_, view) => {
                if let Some(latest) = &self.latest {
                    assert_eq!(view.primary, latest.primary, "the service made a primary");
                    assert_eq!(latest.backup, None, "a backup was replaced");
                }
                self.new_view(view);
                self.named = Some(view.clone());
            }
            Change::Acked(_, number) => {
                let named = self.named.take().expect("something was named");
                assert_eq!(named.number, *number);
                self.begun = true;
            }
            Change::Solo(_, view) => {
                let latest = self.latest.clone().expect("it was there");
                assert!(view.number > latest.number);
                assert_eq!(view.backup, None);
                self.new_view(view);
                self.named = None;
                self.begun = true;
            }
            Change::Learnt(_, view) => {
                match &self.latest {
                    Some(latest) if latest.number == view.number => {
                        assert_eq!(latest.primary, view.primary, "a view with two primaries");
                        assert_eq!(latest.backup, None, "a backup was replaced");
                        assert!(view.backup.is_some());
                        assert_eq!(self.named, None);
                        self.latest = Some(view.clone());
                    }
                    _ => self.new_view(view),
                }
                self.named = None;
                self.begun = true;
            }
            Change::Removed(_) => {
                self.latest = None;
                self.named = None;
                self.begun = false;
            }
            _ => {}
        }
    }
}

fn vm_of(change: &Change) -> Option<&VmId> {
    match change {
        Change::Named(vm, _)
        | Change::Acked(vm, _)
        | Change::Solo(vm, _)
        | Change::Learnt(vm, _)
        | Change::Stopping(vm)
        | Change::Removed(vm) => Some(vm),
        _ => None,
    }
}

fn event(step: Step, seen: &BTreeMap<VmId, Seen>) -> Option<ViewEvent> {
    let view = |vm: &VmId, offset: Offset| {
        let seen = seen
            .get(vm)
            .and_then(|seen| seen.primaries.last_key_value());
        let last = seen.map_or(1, |(last, _)| last.0);
        ViewNumber(last.saturating_add_signed(offset))
    };
    Some(match step {
        Step::Host(host, memory_mib, runs, failed) => ViewEvent::Host(HostPing {
            address: Address::new(host.as_str()).unwrap(),
            supervisor: host.to_string(),
            host,
            room: Room {
                memory_mib,
                ..Room::default()
            },
            runs,
            failed: failed
                .into_iter()
                .map(|(vm, offset)| Failed {
                    view: view(&vm, offset),
                    vm,
                    why: "no".into(),
                })
                .collect(),
        }),
        Step::Up(vm) => ViewEvent::Up(Up {
            vm,
            machine: Machine {
                engine: Engine::Soft,
                memory_mib: 64,
                ..Machine::default()
            },
            anew: false,
        }),
        Step::Drain(host, drained) => ViewEvent::Drain(host, drained),
        Step::Failover(vm) => ViewEvent::Failover(vm),
        Step::Ping(host, held, waits, of) => ViewEvent::Ping(Ping {
            address: Address::new(host.as_str()).unwrap(),
            host,
            held: held
                .into_iter()
                .map(|(vm, offset, role, backup)| Held {
                    view: view(&vm, offset),
                    vm,
                    role,
                    lag_ms: None,
                    backup,
                })
                .collect(),
            waits,
            of,
        }),
        Step::Solo(host, vm, offset) => ViewEvent::Report(Report::Solo {
            host,
            view: view(&vm, offset),
            vm,
        }),
        Step::Ended(host, vm, offset) => ViewEvent::Report(Report::Ended {
            host,
            view: view(&vm, offset),
            vm,
        }),
        Step::Register(vm, primary, backup) => ViewEvent::Register(Register {
            vm,
            primary,
            backup,
        }),
        Step::Down(vm) => ViewEvent::Down(vm),
        Step::Tick => ViewEvent::Tick,
        Step::Restart => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn numbers_grow_no_view_has_two_primaries_and_none_unacknowledged_is_passed(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut views = Views::new(State::default(), SETTINGS);
        let mut seen: BTreeMap<VmId, Seen> = BTreeMap::new();
        for step in steps {
            let before = views.state().clone();
            let Some(event) = event(step, &seen) else {
                views = Views::new(before, SETTINGS);
                continue;
            };
            match views.handle(&event) {
                Err(_) => prop_assert_eq!(views.state(), &before, "a refused event changed something"),
                Ok(changes) => {
                    let durable = changes.iter().any(Change::is_durable);
                    prop_assert_eq!(durable, views.state() != &before, "{:?}", changes);
                    for change in &changes {
                        if let Some(vm) = vm_of(change) {
                            seen.entry(vm.clone()).or_default().see(change);
                        }
                    }
                }
            }
            for name in ["a", "b", "c", "d"] {
                for start in views.host_orders(&HostId::new(name).unwrap()).start {
                    let known = &seen[&start.vm];
                    prop_assert_eq!(known.named.as_ref(), Some(&start.view), "an old view is ordered");
                    let is_primary = start.role == Role::Primary;
                    prop_assert!(!is_primary || !known.begun, "what began is begun again");
                }
            }
            for vm in views.status().vms {
                let known = &seen[&vm.name];
                prop_assert_eq!(known.primaries.get(&vm.view), Some(&vm.primary));
                prop_assert_ne!(Some(&vm.primary), vm.backup.as_ref());
            }
        }
    }
}
