//! The cores of this host, handed out to the tests of a program in the order in which they ask: those that run one
//! guest take one each, and run beside each other; those that run more take all.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who waits and what is free.
struct Desk {
    /// Cores nobody has; `None` before anybody asked.
    free: Option<usize>,
    /// The number the next to ask gets, and the one whose turn it is.
    tickets: (u64, u64),
}

static DESK: Mutex<Desk> = Mutex::new(Desk {
    free: None,
    tickets: (0, 0),
});
static CALL: Condvar = Condvar::new();

fn desk() -> MutexGuard<'static, Desk> {
    DESK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many cores, held.
#[must_use]
pub struct Cores(usize);

impl Cores {
    /// Waits for so many; for all there are, if they are fewer.
    pub fn take(wanted: usize) -> Self {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = wanted.min(all);
        let mut desk = desk();
        let ticket = desk.tickets.0;
        desk.tickets.0 += 1;
        loop {
            let free = *desk.free.get_or_insert(all);
            if desk.tickets.1 == ticket && free >= wanted {
                desk.free = Some(free - wanted);
                desk.tickets.1 += 1;
                CALL.notify_all();
                return Self(wanted);
            }
            desk = CALL.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        let mut desk = desk();
        desk.free = desk.free.map(|free| free + self.0);
        CALL.notify_all();
    }
}
