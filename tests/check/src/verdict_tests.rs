//! The checker against hand-made histories, simulated ones, and a search by brute force.

use proptest::prelude::*;

use super::history::{Call, History, NEVER, Observed, Op, Value};
use super::rng::Rng;
use super::simulate::{Key, simulate};
use super::verdict::{CheckOptions, Verdict, check};

const MS: u64 = 1_000_000;

fn v(n: u32) -> Value {
    Value::Token(0, n)
}

fn set(n: u32) -> Call {
    Call::set(v(n))
}

fn saw(n: u32) -> Observed {
    Observed::Value(v(n))
}

/// An operation on key 0 from `from` to `to`, in ms; each by a client of its own.
fn op(from: u64, to: u64, call: Call, outcome: Observed) -> Op {
    let return_ns = if to == NEVER { NEVER } else { to * MS };
    Op {
        client: from as u16,
        key: 0,
        call,
        outcome,
        invoke_ns: from * MS,
        return_ns,
    }
}

fn judge(ops: Vec<Op>) -> Verdict {
    let history = History {
        keys: vec!["k".into()],
        ops,
        ..History::default()
    };
    check(
        &history,
        CheckOptions {
            lease_slack_ms: 0,
            ..CheckOptions::default()
        },
    )
}

#[track_caller]
fn accept(ops: Vec<Op>) {
    let verdict = judge(ops);
    assert!(verdict.linearizable(), "{}", verdict.explain());
    assert_eq!(verdict.lost_writes, 0);
}

/// The history is refused over the `stuck`-th operation, with so many writes lost.
#[track_caller]
fn refuse(ops: Vec<Op>, stuck: usize, lost: usize) {
    let culprit = ops[stuck].clone();
    let verdict = judge(ops);
    assert_eq!(verdict.violations.len(), 1, "accepted");
    let violation = &verdict.violations[0];
    assert_eq!(violation.stuck, culprit, "{violation}");
    assert!(violation.window.contains(&culprit));
    assert_eq!(verdict.lost_writes, lost, "{violation}");
}

#[test]
fn one_client_after_the_other() {
    accept(vec![
        op(0, 1, Call::Get, Observed::Nil),
        op(2, 3, set(1), Observed::Ok),
        op(4, 5, Call::Get, saw(1)),
        op(6, 7, Call::Del, Observed::Int(1)),
        op(8, 9, Call::Del, Observed::Int(0)),
        op(10, 11, Call::Incr, Observed::Int(1)),
        op(12, 13, Call::Incr, Observed::Int(2)),
        op(14, 15, Call::Append(Value::Int(5)), Observed::Int(2)),
        op(16, 17, Call::Incr, Observed::Int(26)),
        op(18, 19, Call::lease(v(2), 1000), Observed::Nil),
    ]);
}

#[test]
fn overlapping_operations_may_take_either_order() {
    accept(vec![
        op(0, 9, set(1), Observed::Ok),
        op(1, 8, set(2), Observed::Ok),
        op(2, 3, Call::Get, saw(2)),
        op(4, 5, Call::Get, saw(1)),
        op(10, 11, Call::Get, saw(1)),
    ]);
}

#[test]
fn a_value_seen_twice_with_another_between_is_refused() {
    let ops = vec![
        op(0, 9, set(1), Observed::Ok),
        op(1, 8, set(2), Observed::Ok),
        op(2, 3, Call::Get, saw(2)),
        op(4, 5, Call::Get, saw(1)),
        op(6, 7, Call::Get, saw(2)),
    ];
    refuse(ops, 4, 0);
}

#[test]
fn a_stale_read_is_refused_and_no_loss() {
    let ops = vec![
        op(0, 1, set(1), Observed::Ok),
        op(2, 3, set(2), Observed::Ok),
        op(4, 5, Call::Get, saw(1)),
        op(6, 7, Call::Get, saw(2)),
    ];
    refuse(ops, 2, 0);
}

#[test]
fn a_lost_write_is_refused_and_counted() {
    let ops = vec![
        op(0, 1, set(1), Observed::Ok),
        op(2, 3, set(2), Observed::Ok),
        op(4, 5, set(3), Observed::Ok),
        op(6, 7, Call::Get, saw(1)),
    ];
    refuse(ops, 3, 2);
    refuse(
        vec![
            op(0, 1, set(1), Observed::Ok),
            op(2, 3, Call::Get, Observed::Nil),
        ],
        1,
        1,
    );
    let undone = vec![
        op(0, 1, set(1), Observed::Ok),
        op(2, 3, Call::Del, Observed::Int(1)),
        op(4, 5, Call::Get, saw(1)),
    ];
    refuse(undone, 2, 1);
}

#[test]
fn a_value_nobody_wrote_is_refused() {
    refuse(
        vec![op(0, 1, set(1), Observed::Ok), op(2, 3, Call::Get, saw(9))],
        1,
        0,
    );
}

#[test]
fn a_lock_granted_twice_is_refused() {
    let ops = vec![
        op(0, 1, Call::lease(v(1), 60_000), Observed::Ok),
        op(2, 3, Call::lease(v(2), 60_000), Observed::Ok),
        op(4, 5, Call::Get, saw(2)),
    ];
    refuse(ops, 1, 1);
}

#[test]
fn a_lease_runs_out_when_its_time_has_come_and_not_before() {
    let lease = || op(10, 12, Call::lease(v(1), 100), Observed::Ok);
    accept(vec![lease(), op(50, 110, Call::Get, Observed::Nil)]);
    accept(vec![
        lease(),
        op(50, 110, Call::lease(v(2), 100), Observed::Ok),
    ]);
    accept(vec![lease(), op(500, 510, Call::Get, saw(1))]);
    accept(vec![
        lease(),
        op(115, 116, Call::Get, saw(1)),
        op(117, 118, Call::Get, Observed::Nil),
    ]);
    refuse(vec![lease(), op(50, 109, Call::Get, Observed::Nil)], 1, 1);
    refuse(
        vec![
            lease(),
            op(111, 112, Call::Get, Observed::Nil),
            op(113, 114, Call::Get, saw(1)),
        ],
        2,
        0,
    );
    // A plain SET takes the lease away.
    refuse(
        vec![
            lease(),
            op(20, 21, set(2), Observed::Ok),
            op(500, 501, Call::Get, Observed::Nil),
        ],
        2,
        1,
    );
}

#[test]
fn an_operation_that_saw_the_lease_over_is_not_over_before_its_time() {
    // Both reads return before the lease may run out; a later one does not help them.
    let ops = vec![
        op(0, 1, Call::lease(v(1), 100), Observed::Ok),
        op(50, 60, Call::Get, Observed::Nil),
        op(55, 150, Call::Get, Observed::Nil),
    ];
    refuse(ops, 1, 1);
}

#[test]
fn a_count_given_twice_or_left_out_is_refused() {
    let count = |at, n| op(at, at + 1, Call::Incr, Observed::Int(n));
    refuse(vec![count(0, 1), count(2, 2), count(4, 2)], 2, 1);
    refuse(vec![count(0, 1), count(2, 3)], 1, 0);
    refuse(
        vec![
            count(0, 1),
            count(2, 2),
            count(4, 3),
            op(6, 7, Call::Get, Observed::Value(Value::Int(1))),
        ],
        3,
        2,
    );
}

#[test]
fn a_call_without_reply_may_have_happened_or_not_but_not_come_and_go() {
    let unanswered = || op(2, NEVER, set(2), Observed::Unknown);
    let first = || op(0, 1, set(1), Observed::Ok);
    accept(vec![first(), unanswered(), op(10, 11, Call::Get, saw(1))]);
    accept(vec![first(), unanswered(), op(10, 11, Call::Get, saw(2))]);
    accept(vec![
        first(),
        unanswered(),
        op(10, 11, Call::Get, saw(1)),
        op(900, 901, Call::Get, saw(2)),
    ]);
    let ops = vec![
        first(),
        unanswered(),
        op(10, 11, Call::Get, saw(2)),
        op(12, 13, Call::Get, saw(1)),
    ];
    refuse(ops, 3, 0);
}

#[test]
fn a_refused_call_proves_nothing_and_a_reply_of_the_wrong_kind_never_fits() {
    accept(vec![
        op(0, 1, set(1), Observed::Ok),
        op(2, 3, Call::Incr, Observed::Refused),
    ]);
    refuse(vec![op(0, 1, Call::Get, Observed::Ok)], 0, 0);
    refuse(vec![op(0, 1, Call::Del, Observed::Int(7))], 0, 0);
}

#[test]
fn an_appended_string_shows_lost_and_doubled_tails() {
    let append = |at, n, len| op(at, at + 1, Call::Append(v(n)), Observed::Int(len));
    accept(vec![
        append(0, 1, 4),
        append(2, 2, 8),
        op(
            4,
            5,
            Call::Get,
            Observed::Value(Value::from_bytes(b"w0.1w0.2")),
        ),
    ]);
    refuse(vec![append(0, 1, 4), append(2, 2, 12)], 1, 0);
    let swapped = Observed::Value(Value::from_bytes(b"w0.2w0.1"));
    refuse(
        vec![
            append(0, 1, 4),
            append(2, 2, 8),
            op(4, 5, Call::Get, swapped),
        ],
        2,
        0,
    );
}

#[test]
fn the_explanation_names_what_a_person_needs() {
    let mut ops: Vec<Op> = (0..50)
        .map(|n| op(n * 2, n * 2 + 1, set(n as u32), Observed::Ok))
        .collect();
    ops.push(op(200, 201, Call::Get, saw(10)));
    let verdict = judge(ops);
    let violation = &verdict.violations[0];
    assert_eq!(violation.possible, ["w0.49"]);
    assert_eq!(violation.window.len(), 3, "{violation}");
    let text = verdict.explain();
    for part in [
        "key k",
        "SET w0.49 -> OK",
        "SET w0.10 -> OK",
        "> ",
        "GET -> w0.10",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn too_many_open_calls_give_no_verdict_rather_than_a_wrong_one() {
    let mut ops: Vec<Op> = (0..200)
        .map(|n| op(n, NEVER, set(n as u32), Observed::Unknown))
        .collect();
    ops.push(op(300, 301, Call::Get, saw(1000)));
    let verdict = judge(ops);
    assert!(!verdict.linearizable());
    assert_eq!(verdict.undecided, ["k"]);
    assert!(verdict.violations.is_empty());
}

#[test]
fn calls_without_reply_do_not_multiply_the_orders() {
    let options = CheckOptions {
        max_places: 2_000,
        ..CheckOptions::default()
    };
    // Every other call got no reply: some 20 writes of one register stay open.
    let registers = (0..200).chain([17_495_513_259_068_672_722]);
    let histories = registers.map(|seed| (seed, simulate(seed, 9, 5, 150, 2)));
    // One whose string can have grown in tens of thousands of ways, and one where many open
    // writes are seen later, so that no two of them do the same.
    let (grown, seen) = (17_364_846_010_565_978_912, 17_988_862_069_677_603_108);
    let more = [
        (grown, simulate(grown, 4, 5, 300, 3)),
        (seen, simulate(seen, 33, 5, 540, 6)),
    ];
    for (seed, history) in histories.chain(more) {
        let verdict = check(&history, options);
        assert!(verdict.linearizable(), "seed {seed}: {}", verdict.explain());
    }
}

/// A read of what nobody wrote, after `ops`: what the key can have held then, in some order.
#[track_caller]
fn possible(mut ops: Vec<Op>, expected: &[&str]) {
    ops.push(op(10, 11, Call::Get, saw(9)));
    let verdict = judge(ops);
    let violation = &verdict.violations[0];
    let mut names = violation.possible.clone();
    names.sort_unstable();
    assert_eq!(names, expected, "{violation}");
    assert!(!violation.more);
}

#[test]
fn a_violation_names_all_the_key_can_have_held() {
    let open = |at, call| op(at, NEVER, call, Observed::Unknown);
    let overlapping = vec![
        op(0, 9, set(1), Observed::Ok),
        op(1, 8, set(2), Observed::Ok),
    ];
    possible(overlapping, &["w0.1", "w0.2"]);
    let unanswered = vec![
        op(0, 1, set(1), Observed::Ok),
        open(2, set(2)),
        open(3, Call::Del),
    ];
    possible(unanswered, &["nothing", "w0.1", "w0.2"]);
    let either_was_deleted = vec![
        open(0, set(1)),
        open(1, set(3)),
        op(2, 3, Call::Del, Observed::Int(1)),
    ];
    possible(either_was_deleted, &["nothing", "w0.1", "w0.3"]);
    let either_was_seen = vec![
        open(0, set(1)),
        open(1, Call::lease(v(1), 60_000)),
        op(2, 3, Call::Get, saw(1)),
        op(4, 5, set(2), Observed::Ok),
    ];
    possible(either_was_seen, &["w0.1", "w0.2"]);
    // A call is used once.
    let used = vec![
        open(0, set(1)),
        op(2, 3, Call::Get, saw(1)),
        op(4, 5, set(2), Observed::Ok),
    ];
    possible(used, &["w0.2"]);
}

#[test]
fn a_violation_says_when_it_does_not_name_all() {
    let mut ops: Vec<Op> = (0..9).map(|n| op(0, 9, set(n), Observed::Ok)).collect();
    ops.push(op(10, 11, Call::Get, saw(9)));
    let verdict = judge(ops);
    assert_eq!(verdict.violations[0].possible.len(), 8);
    let text = verdict.explain();
    assert!(text.contains("can have held, among others: w0."), "{text}");
}

#[test]
fn long_simulated_histories_are_accepted() {
    for (seed, clients, keys, unknown) in [(1, 8, 64, 0), (2, 32, 16, 0), (3, 16, 64, 400)] {
        let history = simulate(seed, clients, keys, 100_000, unknown);
        let verdict = check(&history, CheckOptions::default());
        assert!(verdict.linearizable(), "seed {seed}: {}", verdict.explain());
        assert_eq!(verdict.ops, 100_000);
        assert!(verdict.acked_writes > 30_000);
    }
}

#[test]
fn one_changed_reply_in_a_long_history_is_found() {
    for (clients, keys) in [(8, 64), (24, 8)] {
        change_and_find(simulate(7, clients, keys, 20_000, 0));
    }
}

fn change_and_find(good: History) {
    let mut rng = Rng::new(7, 7);
    for _ in 0..10 {
        let mut history = good.clone();
        let reads = |op: &Op| matches!(op.outcome, Observed::Value(Value::Token(..)));
        let reads: Vec<usize> = (0..good.ops.len())
            .filter(|&n| reads(&good.ops[n]))
            .collect();
        let n = reads[rng.below(reads.len() as u64) as usize];
        history.ops[n].outcome = Observed::Value(Value::Token(999, 1));
        let verdict = check(&history, CheckOptions::default());
        assert_eq!(verdict.violations.len(), 1);
        assert_eq!(
            verdict.violations[0].stuck,
            history.ops[n],
            "{}",
            verdict.explain()
        );
    }
}

/// Whether any order explains `rest`: tries them all.
fn brute(key: &Key, rest: &[Op]) -> bool {
    let end = |op: &Op| if op.open_ended() { NEVER } else { op.return_ns };
    let bound = rest.iter().map(end).min().unwrap_or(NEVER);
    if bound == NEVER {
        return true; // nothing left that must have happened
    }
    for (n, op) in rest
        .iter()
        .enumerate()
        .filter(|(_, op)| op.invoke_ns <= bound)
    {
        let mut next = key.clone();
        let outcome = next.apply(&op.call, op.invoke_ns);
        if op.open_ended() || outcome == op.outcome {
            let mut others = rest.to_vec();
            others.remove(n);
            if brute(&next, &others) {
                return true;
            }
        }
    }
    key.expires_ns.is_some_and(|at| at <= bound) && brute(&Key::default(), rest)
}

fn agrees_with_brute_force(mut ops: Vec<Op>) -> Result<(), TestCaseError> {
    ops.sort_by_key(|op| op.invoke_ns);
    let expected = brute(&Key::default(), &ops);
    prop_assert_eq!(judge(ops).linearizable(), expected);
    Ok(())
}

/// An operation whose outcome is drawn too; `unknown` in 10 get no reply.
fn any_op(unknown: u32) -> impl Strategy<Value = Op> {
    let call = prop_oneof![
        3 => Just(Call::Get),
        3 => (0u32..3).prop_map(set),
        1 => Just(Call::Del),
        2 => Just(Call::Incr),
        1 => (0u32..2).prop_map(|n| Call::Append(v(n))),
        2 => (0u32..3, 0u32..12).prop_map(|(n, ttl)| Call::lease(v(n), ttl)),
        1 => (0u32..3, 1u32..12).prop_map(|(n, ttl_ms)| Call::Set { value: v(n), nx: false, ttl_ms }),
    ];
    (call, 0u64..16, 0u64..8, 0u32..4, 0u32..10).prop_map(move |(call, from, len, n, kind)| {
        let outcome = match (&call, kind) {
            (_, kind) if kind < unknown => Observed::Unknown,
            (Call::Get, 1..=5) => saw(n % 3),
            (Call::Get, 6) => Observed::Value(Value::Int(n.into())),
            (Call::Get, _) => Observed::Nil,
            (Call::Set { nx: true, .. }, 1..=4) => Observed::Nil,
            (Call::Set { .. }, _) => Observed::Ok,
            (Call::Append(_), _) => Observed::Int(4 + i64::from(kind % 2) * 4),
            (_, 1) => Observed::Refused,
            (Call::Del, _) => Observed::Int(i64::from(n % 2)),
            _ => Observed::Int(n.into()),
        };
        let to = if outcome == Observed::Unknown {
            NEVER
        } else {
            from + len
        };
        op(from, to, call, outcome)
    })
}

/// Likewise on a key that only grows, is counted on and deleted: of parts that are numbers, become
/// numbers, or never do.
fn any_growth() -> impl Strategy<Value = Op> {
    const PARTS: [&str; 5] = ["", "1", "-", "a", "ab"];
    let part = || prop::sample::select(&PARTS[..]);
    let value = |text: String| Value::from_bytes(text.as_bytes());
    let call = prop_oneof![
        4 => Just(Call::Get),
        5 => part().prop_map(move |tail| Call::Append(value(tail.into()))),
        1 => part().prop_map(move |text| Call::set(value(text.into()))),
        1 => Just(Call::Del),
        2 => Just(Call::Incr),
    ];
    let shown = (part(), part(), part()).prop_map(move |(a, b, c)| value(format!("{a}{b}{c}")));
    (call, shown, 0u64..16, 0u64..8, 0i64..5, 0u32..10).prop_map(
        |(call, shown, from, len, n, kind)| {
            let (outcome, to) = match (&call, kind) {
                (_, 0..4) => (Observed::Unknown, NEVER),
                (Call::Get, 4) => (Observed::Nil, from + len),
                (Call::Get, _) => (Observed::Value(shown), from + len),
                (Call::Set { .. }, _) => (Observed::Ok, from + len),
                (Call::Del, _) => (Observed::Int(n % 2), from + len),
                (Call::Incr, _) => (Observed::Int([1, 2, 12, 0, 112][n as usize]), from + len),
                (Call::Append(_), _) => (Observed::Int(n), from + len),
            };
            op(from, to, call, outcome)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn the_checker_agrees_with_brute_force(ops in prop::collection::vec(any_op(1), 1..8)) {
        agrees_with_brute_force(ops)?;
    }

    #[test]
    fn the_checker_agrees_where_many_calls_got_no_reply(
        ops in prop::collection::vec(any_op(5), 1..9),
    ) {
        agrees_with_brute_force(ops)?;
    }

    #[test]
    fn the_checker_agrees_where_strings_grow(ops in prop::collection::vec(any_growth(), 1..9)) {
        agrees_with_brute_force(ops)?;
    }

    #[test]
    fn short_simulated_histories_are_accepted(seed: u64, clients in 1u16..12, unknown in 0u64..30) {
        let history = simulate(seed, clients, 5, 150, unknown);
        let verdict = check(&history, CheckOptions::default());
        prop_assert!(verdict.linearizable(), "{}", verdict.explain());
    }

    #[test]
    fn one_changed_outcome_gets_the_verdict_of_brute_force(seed: u64, at in 0usize..9, n in 0i64..3) {
        // Changed outcomes of true histories come nearer to the border than random ones do.
        let mut history = simulate(seed, 3, 5, 200, 0);
        let key = history.ops[at].key;
        history.ops.retain(|op| op.key == key);
        history.ops.truncate(9);
        let at = at % history.ops.len();
        let op = &mut history.ops[at];
        op.outcome = match &op.outcome {
            Observed::Ok => Observed::Nil,
            Observed::Int(_) => Observed::Int(n),
            Observed::Nil if op.call.writes() => Observed::Ok,
            _ => Observed::Nil,
        };
        let options = CheckOptions { lease_slack_ms: 0, ..CheckOptions::default() };
        prop_assert_eq!(check(&history, options).linearizable(), brute(&Key::default(), &history.ops));
    }
}
