//! Being asked to end: Ctrl-C, SIGTERM, SIGHUP.

use crate::failure::{During, Outcome};
use nix::sys::signal::{SigSet, Signal};

/// The signals that ask a process to end, blocked here and in every thread started later. To be called
/// before any thread is.
pub fn block() -> Outcome<SigSet> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().during("cannot block signals")?;
    Ok(set)
}

/// Calls `on_first` for the first such signal, from a thread of its own; a second one ends the process
/// with the exit code 130.
pub fn watch(set: SigSet, on_first: impl FnOnce() + Send + 'static) -> Outcome {
    let watch = move || {
        if set.wait().is_ok() {
            on_first();
        }
        if set.wait().is_ok() {
            std::process::exit(130);
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(watch)
        .during("cannot start a thread")?;
    Ok(())
}
