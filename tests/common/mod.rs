//! What the end-to-end tests share: a cluster of real processes, one at a time.

#![allow(dead_code, reason = "each test program uses its own part of this")]

pub mod bare;
pub mod chains;
pub mod channel;
pub mod cores;
pub mod disks;
pub mod fate;
pub mod perfetto;
pub mod pprof;
mod protobuf;
pub mod saved;
pub mod spinners;
pub use testing::skipped;

use cores::Cores;
use kit::cluster::{Cluster, Pair, PairOptions, choose_network, choose_thread_network};
use kit::daemon::use_program;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tandem");

/// Longest time anything may take before a test gives up.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Holds the machine: two replicas and their clients are all that two cores can run at a time.
pub fn machine() -> Cores {
    use_program(PROGRAM);
    Cores::take(usize::MAX)
}

/// Holds a core, for a test that runs one guest at a time and does not care how soon: others run beside it.
pub fn core() -> Cores {
    use_program(PROGRAM);
    Cores::take(1)
}

/// Whether this host can run the test; says so if not.
pub fn have_kvm(test: &str) -> bool {
    match vmm::kvm::Host::open() {
        Ok(_) => true,
        Err(e) => {
            skipped::skipped(&format!("{} ({test})", skipped::this_test()), &e);
            false
        }
    }
}

/// A cluster on the best network there is for this thread. Where that is the userspace switch, what the
/// test says of TAP is not shown, which is counted.
pub fn cluster(arbiter: &str) -> Cluster {
    let cluster = Cluster::start(choose_thread_network(), arbiter, false).expect("a cluster");
    let note = cluster.network_note();
    eprintln!("network: {note}");
    if cluster.switch_socket().is_some() {
        skipped::skipped(&format!("{} (on TAP)", skipped::this_test()), &note);
    }
    cluster
}

/// A cluster on the userspace switch.
pub fn switch_cluster(arbiter: &str) -> Cluster {
    let network = choose_network("switch").expect("the switch needs nothing of the host");
    Cluster::start(network, arbiter, false).expect("a cluster")
}

/// Starts a pair with the guest `words` on the network.
pub fn pair(cluster: &Cluster, vm: &str, words: &[&str]) -> Pair {
    let options = PairOptions {
        network: true,
        ..PairOptions::default()
    };
    cluster
        .start_pair(vm, &os(words), &options)
        .expect("a pair")
}

/// As arguments.
pub fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Runs the program to its end.
pub fn tandem(args: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(args)
        .output()
        .expect("the program runs")
}

/// Runs the program, which must succeed, and parses the JSON it prints.
pub fn tandem_json(args: &[&str]) -> serde_json::Value {
    let output = tandem(args);
    assert!(
        output.status.success(),
        "tandem {args:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

/// The one line a failing command must print, with `words` in it; nothing else, no panic, exit code 1
/// (or `code`).
#[track_caller]
pub fn assert_one_line(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "one line: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "'{word}' in: {stderr}");
    }
}

/// The last line a failing command must print, with `words` in it; no panic, and this exit code.
#[track_caller]
pub fn assert_last_line(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "'{word}' in: {stderr}");
    }
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are plain")
}

/// From now on the process may have so much of `resource` (setrlimit(2)).
pub fn limit(process: u32, resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: libc::RLIM_INFINITY,
    };
    let process = libc::pid_t::try_from(process).unwrap();
    let old = std::ptr::null_mut();
    // SAFETY: it reads the limit, and writes none back.
    let set = unsafe { libc::prlimit(process, resource, &raw const limit, old) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
