//! How long clients waited around one moment, such as the death of a primary.

use serde::Serialize;

use super::history::{History, NEVER};

/// What one client saw of it. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// Which client.
    pub client: u16,
    /// The longest wait for one reply among the operations under way at some time in the window.
    pub longest_op_ns: u64,
    /// The longest time between two replies, at least the second of them in the window; this one
    /// has the client's own pauses in it.
    pub longest_gap_ns: u64,
    /// From the moment to the first reply after it; [`NEVER`] if none came.
    pub first_reply_ns: u64,
}

/// The stall of every client in the window from `at_ns` (since the epoch) on, `window_ns` long.
///
/// An operation that never got a reply counts up to the end of the window.
#[must_use]
pub fn stalls(history: &History, at_ns: u64, window_ns: u64) -> Vec<Stall> {
    let end_ns = at_ns.saturating_add(window_ns);
    (0..history.clients)
        .map(|client| stall(history, client, at_ns, end_ns))
        .collect()
}

fn stall(history: &History, client: u16, at_ns: u64, end_ns: u64) -> Stall {
    let mut stall = Stall {
        client,
        longest_op_ns: 0,
        longest_gap_ns: 0,
        first_reply_ns: NEVER,
    };
    let mut replies = Vec::new();
    for op in history.ops.iter().filter(|op| op.client == client) {
        let done = op.return_ns.min(end_ns.max(op.invoke_ns));
        if op.invoke_ns < end_ns && op.return_ns > at_ns {
            // A reply after the window still belongs to a wait that began in it.
            let until = if op.return_ns == NEVER {
                done
            } else {
                op.return_ns
            };
            stall.longest_op_ns = stall.longest_op_ns.max(until - op.invoke_ns);
        }
        if op.return_ns != NEVER {
            replies.push(op.return_ns);
        }
    }
    replies.sort_unstable();
    let first_after = replies.partition_point(|&at| at <= at_ns);
    if let Some(first) = replies.get(first_after) {
        stall.first_reply_ns = first - at_ns;
    }
    for n in first_after.max(1)..replies.len() {
        if replies[n - 1] < end_ns {
            stall.longest_gap_ns = stall.longest_gap_ns.max(replies[n] - replies[n - 1]);
        }
    }
    stall
}

#[cfg(test)]
mod tests {
    use super::super::history::{Call, Observed, Op};
    use super::*;

    fn history(times: &[(u16, u64, u64)]) -> History {
        let op = |&(client, invoke_ns, return_ns)| Op {
            client,
            key: 0,
            call: Call::Get,
            outcome: Observed::Nil,
            invoke_ns,
            return_ns,
        };
        History {
            clients: 2,
            ops: times.iter().map(op).collect(),
            ..History::default()
        }
    }

    #[test]
    fn the_wait_over_the_moment_is_found_and_others_are_not() {
        // A long wait before the window, the one in question, a longer one after the window.
        let times = [
            (0, 0, 50),
            (0, 60, 70),
            (0, 95, 125),
            (0, 130, 131),
            (0, 210, 300),
            (1, 98, 99),
        ];
        let found = stalls(&history(&times), 100, 100);
        let first = Stall {
            client: 0,
            longest_op_ns: 30,
            longest_gap_ns: 169, // 131 to 300: nothing was heard from in the window to after it
            first_reply_ns: 25,
        };
        assert_eq!(found[0], first);
        let silent = Stall {
            client: 1,
            longest_op_ns: 0,
            longest_gap_ns: 0,
            first_reply_ns: NEVER,
        };
        assert_eq!(found[1], silent);
    }

    #[test]
    fn an_operation_without_reply_counts_to_the_end_of_the_window() {
        let found = stalls(&history(&[(0, 10, 20), (0, 90, NEVER)]), 100, 400);
        assert_eq!(found[0].longest_op_ns, 410);
        assert_eq!(found[0].first_reply_ns, NEVER);
    }
}
