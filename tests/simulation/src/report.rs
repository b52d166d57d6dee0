//! What becomes of a simulated life, said to whoever started it.

/// Exit status of a life that failed.
pub const FAILED: i32 = 9;

/// Prints a line, past std: a thread that has no turn may hold its lock.
pub fn line(text: &str) {
    let line = format!("{text}\n");
    // SAFETY: the pointer and the length are the line's.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// Ends this process: its life failed, and why. Threads that are left wait for ever, so nothing is cleaned up.
pub fn failed(why: &str) -> ! {
    line(&format!("FAILED {why}"));
    // SAFETY: it takes a plain number, and nothing runs after it.
    unsafe { libc::_exit(FAILED) }
}

/// Ends this process: its life went well.
pub fn passed(text: &str) -> ! {
    line(text);
    // SAFETY: it takes a plain number, and nothing runs after it.
    unsafe { libc::_exit(0) }
}
