//! Threads that go before all other work of the host, under SCHED_RR, where that is allowed: with
//! CAP_SYS_NICE, or by RLIMIT_RTPRIO. Elsewhere they go on as they are.
//!
//! For threads that others wait for and that work for microseconds at a time, or for a bounded time. Not by
//! niceness: the kernel's fair scheduler makes a thread that was given much and then becomes as nice as
//! others wait for what it had, some 100 ms, and then the clients wait.

/// Puts thread `thread` (0: the calling one) under the scheduling policy `policy`; false if that is not allowed.
fn schedule(thread: libc::pid_t, policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: takes plain numbers and reads one from a structure that is there.
    unsafe { libc::sched_setscheduler(thread, policy, &parameters) == 0 }
}

/// Makes thread `thread` of this process prompt (0: the calling one), with the least priority there is; threads
/// it starts are under the usual scheduler (sched(7)). To be called while the thread runs, or has ended a moment
/// ago: the kernel takes process ids in turn, so that one is not another's at once.
fn hasten(thread: libc::pid_t) -> bool {
    schedule(thread, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1)
}

/// Makes the calling thread prompt.
pub fn be_prompt() {
    hasten(0);
}

/// Makes thread `thread` of this process prompt, until it takes its [`leisure`].
pub fn make_prompt(thread: libc::pid_t) {
    hasten(thread);
}

/// Has the calling thread take its turn with others again, as nice as it was.
pub fn leisure() {
    schedule(0, libc::SCHED_OTHER, 0);
}

/// Whether threads of this process may be prompt.
#[must_use]
pub fn may_be_prompt() -> bool {
    // Of a thread that is gone after it.
    std::thread::spawn(|| hasten(0)).join().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// How the calling thread is scheduled, and how nice it is.
    fn state() -> (libc::c_int, libc::c_int) {
        // SAFETY: both take and return plain numbers; 0 names the calling thread.
        unsafe {
            (
                libc::sched_getscheduler(0),
                libc::getpriority(libc::PRIO_PROCESS, 0),
            )
        }
    }

    #[test]
    fn a_thread_that_was_made_prompt_takes_its_leisure_again() {
        let (tell, hear) = channel();
        let (go_on, wait) = channel();
        let thread = std::thread::spawn(move || {
            let usual = state();
            // SAFETY: gettid has no preconditions.
            tell.send(unsafe { libc::gettid() }).unwrap();
            wait.recv().unwrap();
            let (hastened, _) = state();
            leisure();
            (usual, hastened, state())
        });
        make_prompt(hear.recv().unwrap());
        go_on.send(()).unwrap();
        let (usual, hastened, at_last) = thread.join().unwrap();
        assert_eq!(usual, at_last);
        let wanted = if may_be_prompt() {
            libc::SCHED_RR | libc::SCHED_RESET_ON_FORK
        } else {
            usual.0
        };
        assert_eq!(hastened, wanted);
    }
}
