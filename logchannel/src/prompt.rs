//! Threads that go before all other work of the host, or behind it.
//!
//! **Before it**, under SCHED_RR. That is allowed with CAP_SYS_NICE, or
//! by RLIMIT_RTPRIO; elsewhere such threads go on as they are.
//!
//! It is for threads that others wait for, and that work for microseconds at a time or for a bounded time.
//! Niceness would not do. The kernel's fair scheduler remembers what it gave to a nicer thread: once that
//! thread is as nice as the others again, it has to wait for that, some 100 ms, and the clients with it.
//!
//! **Behind it**, by niceness, which does for this: see [`stand_back`].

use std::marker::PhantomData;

/// Puts thread `thread` (0: the calling one) under the scheduling policy `policy`; false if that is not
/// allowed.
fn schedule(thread: libc::pid_t, policy: libc::c_int, priority: libc::c_int) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: takes plain numbers and reads one from a structure that is there.
    unsafe { libc::sched_setscheduler(thread, policy, &parameters) == 0 }
}

/// Priority of threads that are prompt, the least there is: they work for as long as a guest needs to catch up.
const PROMPT: libc::c_int = 1;
/// Priority of threads that are punctual. Of two pairs on one host, one that fails over keeps the other's
/// heartbeats waiting otherwise: threads of one priority take turns of 100 ms.
const PUNCTUAL: libc::c_int = 2;

/// Makes thread `thread` of this process prompt (0: the calling one), with `priority`; threads
/// it starts are under the usual scheduler (sched(7)). To be called while the thread runs, or has ended a moment
/// ago: the kernel takes process ids in turn, so that one is not another's at once.
fn hasten(thread: libc::pid_t, priority: libc::c_int) -> bool {
    schedule(thread, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, priority)
}

/// Makes the calling thread prompt.
pub fn be_prompt() {
    hasten(0, PROMPT);
}

/// Makes the calling thread go before prompt ones, too, or at least as they do: for threads that work for
/// microseconds at a time.
pub fn be_punctual() {
    if !hasten(0, PUNCTUAL) {
        be_prompt();
    }
}

/// Makes thread `thread` of this process prompt, until it takes its [`leisure`].
pub fn make_prompt(thread: libc::pid_t) {
    hasten(thread, PROMPT);
}

/// Has the calling thread take its turn with others again, as nice as it was.
pub fn leisure() {
    schedule(0, libc::SCHED_OTHER, 0);
}

/// A thread that stands back, until this is dropped or the thread becomes prompt.
pub struct StandsBack {
    thread: PhantomData<*const ()>,
    /// How nice it was before, if it stands back.
    stands: Option<libc::c_int>,
}

/// Has the calling thread stand back for others of this host: it gets a tenth of what each of them gets, and does not
/// keep one waiting that wakes. For work that takes long and that nobody waits for yet.
///
/// Only where it may come forward again at any time (CAP_SYS_NICE); elsewhere it goes on as it is. What the module
/// says of nicer threads holds for it, unless it is prompt from then on, or ends.
#[must_use]
pub fn stand_back() -> StandsBack {
    let usual = niceness();
    let stands = may_come_forward(usual);
    if stands {
        schedule(0, libc::SCHED_OTHER, 0);
        be_nice(BACK.max(usual));
    }
    StandsBack {
        thread: PhantomData,
        stands: stands.then_some(usual),
    }
}

impl Drop for StandsBack {
    fn drop(&mut self) {
        if let Some(usual) = self.stands {
            leisure();
            be_nice(usual);
        }
    }
}

/// Niceness of threads that stand back.
const BACK: libc::c_int = 10;

/// Sets how nice the calling thread is; false if that is not allowed.
fn be_nice(niceness: libc::c_int) -> bool {
    // SAFETY: takes plain numbers; 0 names the calling thread (setpriority(2), C library/kernel differences).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) == 0 }
}

/// How nice the calling thread is.
fn niceness() -> libc::c_int {
    // SAFETY: takes plain numbers; 0 names the calling thread. There is always one, so it does not fail.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Whether a thread of this process that stands back may be as nice as is `usual`, and punctual.
fn may_come_forward(usual: libc::c_int) -> bool {
    let forth = move || be_nice(BACK.max(usual)) && be_nice(usual) && hasten(0, PUNCTUAL);
    // Of a thread that is gone after it; where there is none to be had, nothing is tried.
    let thread = std::thread::Builder::new().spawn(forth);
    thread.is_ok_and(|thread| thread.join().unwrap_or(false))
}

/// Whether threads of this process may be prompt, and punctual.
#[must_use]
pub fn may_be_prompt() -> bool {
    // Of a thread that is gone after it.
    let thread = std::thread::Builder::new().spawn(|| hasten(0, PUNCTUAL));
    thread.is_ok_and(|thread| thread.join().unwrap_or(false))
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

    #[test]
    fn a_thread_that_stands_back_comes_forward_again() {
        let thread = std::thread::spawn(|| {
            let usual = state();
            let back = stand_back();
            let behind = state();
            be_punctual();
            let hastened = state().0;
            // It was prompt in between, and stands back once more.
            let again = stand_back();
            let behind_again = state();
            drop(again);
            drop(back);
            (usual, [behind, behind_again], hastened, state())
        });
        let (usual, behind, hastened, at_last) = thread.join().unwrap();
        assert_eq!(usual, at_last);
        let [wanted, prompt] = if may_come_forward(niceness()) {
            let prompt = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
            [(libc::SCHED_OTHER, BACK), (prompt, 0)]
        } else {
            [usual; 2]
        };
        assert_eq!(behind, [wanted; 2]);
        assert!(hastened == prompt.0 || !may_come_forward(niceness()));
    }
}
