//! Being asked to end: Ctrl-C, SIGTERM, SIGHUP.

use nix::sys::signal::{SigSet, Signal};

/// Why a process cannot wait for being asked to end.
#[derive(Debug, thiserror::Error)]
pub enum SignalsError {
    /// The signals could not be blocked.
    #[error("cannot block signals: {0}")]
    Block(nix::Error),
    /// The thread that waits for them could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// The signals that ask a process to end, blocked here and in every thread started later. To be called
/// before any thread is.
///
/// # Errors
/// [`SignalsError::Block`].
pub fn block() -> Result<SigSet, SignalsError> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().map_err(SignalsError::Block)?;
    Ok(set)
}

/// Calls `on_first` for the first such signal, from a thread of its own; a second one ends the process
/// with the exit code 130.
///
/// # Errors
/// [`SignalsError::Thread`].
pub fn watch(set: SigSet, on_first: impl FnOnce() + Send + 'static) -> Result<(), SignalsError> {
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
        .map_err(SignalsError::Thread)?;
    Ok(())
}
