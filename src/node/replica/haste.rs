//! A backup's vCPU goes before other work of its host while it executes the rest of a dead primary's log.
//!
//! ```text
//!  link lost ── entries that came before ──▶ log drained ── flag won ──▶ live
//!   hurry                                                                 at ease
//! ```
//!
//! Why: all clients wait until the log is drained, and on a host with more to run than processors the vCPU has
//! but a share of one. How much there is to execute is bounded by the primary's brake.

/// Puts thread `thread` under the scheduling policy `policy`, if that is allowed.
fn schedule(thread: libc::pid_t, policy: libc::c_int, priority: libc::c_int) {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: takes plain numbers and reads one from a structure that is there.
    unsafe { libc::sched_setscheduler(thread, policy, &parameters) };
}

/// Has thread `thread` of this process go before others, by SCHED_RR; without the right to do so it goes on as it
/// is. Not by niceness: the kernel's fair scheduler makes a thread that was given much and then becomes as nice
/// as others wait for what it had, some 100 ms, and then the clients wait. To be called while the thread runs, or
/// has ended a moment ago: the kernel takes process ids in turn, so that one is not another's at once.
pub fn hurry(thread: libc::pid_t) {
    schedule(thread, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1);
}

/// Has the calling thread take its turn with others again, as nice as it was.
pub fn at_ease() {
    schedule(0, libc::SCHED_OTHER, 0);
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
    fn a_thread_in_haste_is_at_ease_again() {
        let (tell, hear) = channel();
        let (go_on, wait) = channel();
        let thread = std::thread::spawn(move || {
            let usual = state();
            // SAFETY: gettid has no preconditions.
            tell.send(unsafe { libc::gettid() }).unwrap();
            wait.recv().unwrap();
            let (hurried, _) = state();
            at_ease();
            (usual, hurried, state())
        });
        hurry(hear.recv().unwrap());
        go_on.send(()).unwrap();
        let (usual, hurried, at_last) = thread.join().unwrap();
        assert_eq!(usual, at_last);
        let wanted = if logchannel::may_be_prompt() {
            libc::SCHED_RR | libc::SCHED_RESET_ON_FORK
        } else {
            usual.0
        };
        assert_eq!(hurried, wanted);
    }
}
