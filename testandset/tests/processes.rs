//! Contenders as processes of their own: racing, killed at every system call, and on disks that are
//! full or read-only.

#[path = "../../tests/common/skipped.rs"]
mod skipped;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use skipped::skip_this;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use testandset::{Arbiter, Contender, Flag, SharedDisk, Verdict, ViewNumber, VmId};

fn flag(view: u64) -> Flag {
    Flag {
        vm: VmId::new("web").unwrap(),
        view: ViewNumber(view),
    }
}

fn who(name: &str) -> Contender {
    Contender::new(name).unwrap()
}

fn contender(dir: &Path, name: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tandem-contend"))
        .arg(format!("file:{}", dir.display()))
        .args(["web", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn temporary_files(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap();
    names
        .filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with("temp.")
        })
        .count()
}

#[test]
fn of_many_processes_killed_at_random_at_most_one_wins_each_view() {
    const VIEWS: usize = 60;
    const RACERS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let mut racers: Vec<Child> = (0..RACERS)
        .map(|n| contender(dir.path(), &format!("r{n}")))
        .collect();
    let views: String = (0..VIEWS).map(|view| format!("{view}\n")).collect();
    for racer in &mut racers {
        let stdin = racer.stdin.as_mut().unwrap();
        stdin.write_all(views.as_bytes()).unwrap();
    }
    // All but the first are killed in the race, each once it has told some more verdicts.
    let mut said = vec![Vec::new(); RACERS];
    for n in (0..RACERS).rev() {
        let racer = &mut racers[n];
        let mut lines = BufReader::new(racer.stdout.take().unwrap()).lines();
        let until = if n == 0 { VIEWS } else { 6 * (RACERS - n) };
        said[n].extend((&mut lines).take(until).map(Result::unwrap));
        if n > 0 {
            racer.kill().unwrap();
        } else {
            drop(racer.stdin.take());
        }
        let status = racer.wait().unwrap();
        assert_eq!(status.signal(), (n > 0).then_some(9));
        said[n].extend(lines.map(Result::unwrap));
    }
    let mut winners: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (n, lines) in said.iter().enumerate() {
        for line in lines {
            let words: Vec<_> = line.split(' ').collect();
            let holder = match words.as_slice() {
                [_, "won"] => format!("r{n}"),
                [_, "lost", holder] => (*holder).to_owned(),
                _ => panic!("r{n}: {line}"),
            };
            let view = words[0].parse().unwrap();
            winners.entry(view).or_default().insert(holder);
        }
    }
    assert_eq!(winners.len(), VIEWS);
    let disk = SharedDisk::open(dir.path()).unwrap();
    for (view, winners) in winners {
        let holder = disk.holder(&flag(view)).unwrap().unwrap();
        assert_eq!(winners, BTreeSet::from([holder.to_string()]), "view {view}");
        disk.test_and_set(&flag(view), &who("sweeper")).unwrap();
    }
    assert_eq!(temporary_files(dir.path()), 0);
}

/// Starts a contender, lets it run to its `stops`-th system-call stop after it is asked for `view`,
/// and kills it there. What it said, and whether it ended before; an error if tracing is not allowed.
fn kill_at(dir: &Path, view: u64, stops: u64) -> nix::Result<(String, bool)> {
    let mut child = contender(dir, "victim");
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    // Past its start-up once it has told one verdict.
    writeln!(stdin, "{WARM_UP}").unwrap();
    let mut said = String::new();
    stdout.read_line(&mut said).unwrap();
    assert_eq!(said, format!("{WARM_UP} won\n"));
    let traced = trace(&child, stops, || {
        writeln!(stdin, "{view}").unwrap();
        drop(stdin);
    });
    if traced.is_err() {
        child.kill().unwrap();
    }
    // Unless tracing failed, the tracer has waited for it, and there is nothing to wait for.
    let _ = child.wait();
    said.clear();
    stdout.read_to_string(&mut said).unwrap();
    traced.map(|ended| (said, ended))
}

/// A view the victim has won.
const WARM_UP: u64 = 0;

/// Stops `child`, calls `ask`, and kills it at its `stops`-th system-call stop; whether it ended
/// before.
fn trace(child: &Child, stops: u64, ask: impl FnOnce()) -> nix::Result<bool> {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let options = ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACESYSGOOD;
    ptrace::seize(pid, options)?;
    ptrace::interrupt(pid)?;
    waitpid(pid, None)?;
    ask();
    for _ in 0..stops {
        ptrace::syscall(pid, None)?;
        match waitpid(pid, None)? {
            WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => {}
            WaitStatus::Exited(..) => return Ok(true),
            other => panic!("{other:?}"),
        }
    }
    kill(pid, Signal::SIGKILL)?;
    while !matches!(waitpid(pid, None)?, WaitStatus::Signaled(..)) {}
    Ok(false)
}

#[test]
fn killed_at_any_system_call_a_contender_leaves_a_whole_flag_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SharedDisk::open(dir.path()).unwrap();
    let (mut held, mut free) = (0, 0);
    for stops in 1.. {
        let flag = flag(stops);
        let (said, ended) = match kill_at(dir.path(), stops, stops) {
            Ok(outcome) => outcome,
            Err(nix::errno::Errno::EPERM | nix::errno::Errno::ENOSYS) => {
                skip_this(&"tracing a child is not allowed here");
                return;
            }
            Err(errno) => panic!("{errno}"),
        };
        let left = disk.holder(&flag).unwrap();
        if said == format!("{stops} won\n") {
            assert_eq!(left, Some(who("victim")), "stop {stops}");
        } else {
            assert_eq!(said, "", "stop {stops}");
        }
        let verdict = disk.test_and_set(&flag, &who("other")).unwrap();
        let again = disk.test_and_set(&flag, &who("victim")).unwrap();
        match left {
            Some(holder) => {
                held += 1;
                assert_eq!(verdict, Verdict::Lost { holder }, "stop {stops}");
                assert_eq!(again, Verdict::Won, "stop {stops}");
            }
            None => {
                free += 1;
                assert_eq!(verdict, Verdict::Won, "stop {stops}");
                let holder = who("other");
                assert_eq!(again, Verdict::Lost { holder }, "stop {stops}");
            }
        }
        assert_eq!(temporary_files(dir.path()), 0, "stop {stops}");
        if ended {
            break;
        }
    }
    println!(
        "killed at {} places: flag set at {held}, not set at {free}",
        held + free
    );
    assert!(held > 10 && free > 10, "set at {held}, not set at {free}");
}

/// Runs `script` as root of namespaces of its own, with `$CONTEND` and the empty directory `$DISK`;
/// `None`, said on standard output, where that is not allowed.
fn in_namespace(script: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let unshare = |script: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-euc", script])
            .env("CONTEND", env!("CARGO_BIN_EXE_tandem-contend"))
            .env("DISK", dir.path())
            .output()
    };
    let able = unshare("mount -t tmpfs -o size=64k tandem \"$DISK\"");
    if !able.is_ok_and(|output| output.status.success()) {
        skip_this(&"no mount namespace can be made here");
        return None;
    }
    let output = unshare(script).unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let complained = String::from_utf8(output.stderr).unwrap();
    assert_eq!(complained, "", "{said}");
    Some(said)
}

#[test]
fn a_full_disk_gives_no_verdict_and_room_gives_one() {
    let script = r#"
        mount -t tmpfs -o size=64k tandem "$DISK"
        head -c 60k /dev/zero > "$DISK/filler"
        cat /dev/zero > "$DISK/rest" 2>/dev/null || true
        echo 1 | "$CONTEND" "file:$DISK" web a || true
        ls "$DISK"
        rm "$DISK/rest" "$DISK/filler"
        echo 1 | "$CONTEND" "file:$DISK" web a
    "#;
    let Some(said) = in_namespace(script) else {
        return;
    };
    let lines: Vec<_> = said.lines().collect();
    let [unknown, "filler", "rest", "1 won"] = lines.as_slice() else {
        panic!("{said}");
    };
    assert!(unknown.starts_with("1 unknown"), "{said}");
    assert!(unknown.contains("disk is full; make room"), "{said}");
}

#[test]
fn a_read_only_disk_gives_no_new_verdict() {
    // The second mount names the device, too: else `mount` repeats the options it is shown, among them a
    // user's number that means nothing in this namespace.
    let script = r#"
        mount -t tmpfs -o size=64k tandem "$DISK"
        echo 1 | "$CONTEND" "file:$DISK" web a
        mount -o remount,ro tandem "$DISK"
        printf '1\n2\n' | "$CONTEND" "file:$DISK" web b || true
    "#;
    let Some(said) = in_namespace(script) else {
        return;
    };
    let lines: Vec<_> = said.lines().collect();
    let ["1 won", "1 lost a", unknown] = lines.as_slice() else {
        panic!("{said}");
    };
    assert!(unknown.starts_with("2 unknown"), "{said}");
    assert!(unknown.contains("disk is read-only; remount"), "{said}");
}
