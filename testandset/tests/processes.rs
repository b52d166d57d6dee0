//! Contenders as processes of their own: racing, killed at every system call, and on disks that are
//! full or read-only.

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use testandset::{Arbiter, Contender, Flag, SharedDisk, Store, StoreId, Verdict, ViewNumber, VmId};
use testing::skipped::skip_this;

fn flag(view: u64) -> Flag {
    Flag {
        vm: VmId::new("web").unwrap(),
        view: ViewNumber(view),
    }
}

fn who(name: &str) -> Contender {
    Contender::new(name).unwrap()
}

/// A contender at `arbiter`, of the kind in front of the colon.
fn contender(arbiter: &str, name: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tandem-contend"))
        .args([arbiter, "web", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The shared directory `dir`, as contenders are told.
fn file(dir: &Path) -> String {
    format!("file:{}", dir.display())
}

/// The server's store in `dir`, as contenders are told.
fn store(dir: &Path) -> String {
    format!("store:{}", dir.display())
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
        .map(|n| contender(&file(dir.path()), &format!("r{n}")))
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
        let holder = Arbiter::holder(&disk, &flag(view)).unwrap().unwrap();
        assert_eq!(winners, BTreeSet::from([holder.to_string()]), "view {view}");
        Arbiter::test_and_set(&disk, &flag(view), &who("sweeper")).unwrap();
    }
    assert_eq!(temporary_files(dir.path()), 0);
}

/// A contender named "victim", and what it says.
struct Victim {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Victim {
    fn start(arbiter: &str) -> Self {
        let mut child = contender(arbiter, "victim");
        let mut victim = Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        // Past its start-up, so that its system calls can be counted; it has opened nothing.
        victim.tell("");
        assert_eq!(victim.hear(), "\n");
        victim
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Its next line; nothing if it is gone.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Past its first call, with the flag of [`WARM_UP`].
    fn warm_up(&mut self) {
        self.tell(&WARM_UP.to_string());
        assert_eq!(self.hear(), format!("{WARM_UP} won\n"));
    }

    /// Stops it, tells it `line`, and kills it at its `stops`-th system-call stop. What it said, and
    /// whether it ended before; `None` if tracing is not allowed.
    fn kill_at(mut self, line: &str, stops: u64) -> Option<(String, bool)> {
        let ended = traced(|| {
            let pid = self.stop()?;
            self.tell(line);
            drop(self.stdin.take());
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
        });
        if ended.is_none() {
            self.child.kill().unwrap();
        }
        // Unless tracing failed, the tracer has waited for it, and there is nothing to wait for.
        let _ = self.child.wait();
        let mut said = String::new();
        self.stdout.read_to_string(&mut said).unwrap();
        ended.map(|ended| (said, ended))
    }

    /// Tells it `line`, and has its `n`-th system call that changes a file fail with EIO, undone. Whether
    /// it made so many; `None` if tracing is not allowed.
    fn fail_at(&mut self, line: &str, n: usize) -> Option<bool> {
        const CHANGES: [i64; 4] = [
            libc::SYS_pwrite64,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_ftruncate,
        ];
        // What the kernel puts there at the entry of a system call, and what stands for none.
        const ENTRY: u64 = (-libc::ENOSYS as i64).cast_unsigned();
        const NONE: u64 = u64::MAX;
        traced(|| {
            let pid = self.stop()?;
            self.tell(line);
            let step = || -> nix::Result<libc::user_regs_struct> {
                ptrace::syscall(pid, None)?;
                let stopped = waitpid(pid, None)?;
                assert!(
                    matches!(stopped, WaitStatus::PtraceSyscall(_)),
                    "{stopped:?}"
                );
                ptrace::getregs(pid)
            };
            let (mut reads, mut changes) = (0, 0);
            loop {
                let mut registers = step()?;
                if registers.rax != ENTRY {
                    continue;
                }
                let call = registers.orig_rax.cast_signed();
                reads += usize::from(call == libc::SYS_read && registers.rdi == 0);
                changes += usize::from(CHANGES.contains(&call));
                // It reads this line, and is done when it wants the next.
                if reads == 2 {
                    ptrace::detach(pid, None)?;
                    return Ok(false);
                }
                if changes == n {
                    registers.orig_rax = NONE;
                    ptrace::setregs(pid, registers)?;
                    let mut registers = step()?;
                    registers.rax = (-libc::EIO as i64).cast_unsigned();
                    ptrace::setregs(pid, registers)?;
                    ptrace::detach(pid, None)?;
                    return Ok(true);
                }
            }
        })
    }

    /// Has it traced, and stopped.
    fn stop(&self) -> nix::Result<Pid> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let options = ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(pid, options)?;
        ptrace::interrupt(pid)?;
        waitpid(pid, None)?;
        Ok(pid)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `trace` comes to; `None`, said on standard output, if it is not allowed here.
fn traced<T>(trace: impl FnOnce() -> nix::Result<T>) -> Option<T> {
    match trace() {
        Ok(value) => Some(value),
        Err(nix::errno::Errno::EPERM | nix::errno::Errno::ENOSYS) => {
            skip_this(&"tracing a child is not allowed here");
            None
        }
        Err(errno) => panic!("{errno}"),
    }
}

/// A view the victim has won.
const WARM_UP: u64 = 0;

/// What a killed victim leaves at an arbiter.
trait Left {
    fn holder(&mut self, flag: &Flag) -> Option<Contender>;
    fn test_and_set(&mut self, flag: &Flag, who: &Contender) -> Verdict;
}

impl Left for SharedDisk {
    fn holder(&mut self, flag: &Flag) -> Option<Contender> {
        Arbiter::holder(self, flag).unwrap()
    }

    fn test_and_set(&mut self, flag: &Flag, who: &Contender) -> Verdict {
        Arbiter::test_and_set(self, flag, who).unwrap()
    }
}

impl Left for Store {
    fn holder(&mut self, flag: &Flag) -> Option<Contender> {
        Self::holder(self, flag).unwrap()
    }

    fn test_and_set(&mut self, flag: &Flag, who: &Contender) -> Verdict {
        Self::test_and_set(self, flag, who, None).unwrap()
    }
}

/// At how many places a victim was killed, by whether its flag was set then.
#[derive(Default)]
struct Places {
    held: u32,
    free: u32,
}

impl Places {
    /// Checks what a victim that `said` something before it was killed leaves of the flag of `view`.
    fn look(&mut self, view: u64, said: &str, left: &mut impl Left) {
        let flag = flag(view);
        let holder = left.holder(&flag);
        if said == format!("{view} won\n") {
            assert_eq!(holder, Some(who("victim")), "view {view}");
        } else {
            assert_eq!(said, "", "view {view}");
        }
        let verdict = left.test_and_set(&flag, &who("other"));
        let again = left.test_and_set(&flag, &who("victim"));
        match holder {
            Some(holder) => {
                self.held += 1;
                assert_eq!(verdict, Verdict::Lost { holder }, "view {view}");
                assert_eq!(again, Verdict::Won, "view {view}");
            }
            None => {
                self.free += 1;
                assert_eq!(verdict, Verdict::Won, "view {view}");
                let holder = who("other");
                assert_eq!(again, Verdict::Lost { holder }, "view {view}");
            }
        }
    }

    /// There were enough of either kind for the test to mean something.
    fn check(&self) {
        let Self { held, free } = self;
        println!(
            "killed at {} places: flag set at {held}, not set at {free}",
            held + free
        );
        assert!(*held > 0 && *free > 0, "set at {held}, not set at {free}");
        assert!(held + free > 20, "set at {held}, not set at {free}");
    }
}

#[test]
fn killed_at_any_system_call_a_contender_leaves_a_whole_flag_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = SharedDisk::open(dir.path()).unwrap();
    let mut places = Places::default();
    for stops in 1.. {
        let mut victim = Victim::start(&file(dir.path()));
        victim.warm_up();
        let Some((said, ended)) = victim.kill_at(&stops.to_string(), stops) else {
            return;
        };
        places.look(stops, &said, &mut disk);
        assert_eq!(temporary_files(dir.path()), 0, "stop {stops}");
        if ended {
            break;
        }
    }
    places.check();
}

#[test]
fn killed_at_any_system_call_a_server_leaves_a_whole_flag_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut places = Places::default();
    for stops in 1.. {
        let mut victim = Victim::start(&store(dir.path()));
        victim.warm_up();
        let Some((said, ended)) = victim.kill_at(&stops.to_string(), stops) else {
            return;
        };
        let (mut left, recovery) = Store::open(dir.path()).unwrap();
        assert!(
            !recovery.made && recovery.read_only.is_none(),
            "{recovery:?}"
        );
        places.look(stops, &said, &mut left);
        if ended {
            break;
        }
    }
    places.check();
}

#[test]
fn killed_while_a_store_is_made_a_contender_leaves_one_or_none() {
    for kind in [file, store] {
        let mut places = Places::default();
        for stops in 1.. {
            let dir = tempfile::tempdir().unwrap();
            let victim = Victim::start(&kind(dir.path()));
            let Some((said, ended)) = victim.kill_at("1", stops) else {
                return;
            };
            if kind(dir.path()) == store(dir.path()) {
                let (mut left, _) = Store::open(dir.path()).unwrap();
                let id = left.id().unwrap();
                places.look(1, &said, &mut left);
                drop(left);
                let (mut again, recovery) = Store::open(dir.path()).unwrap();
                assert_eq!((again.id().unwrap(), recovery.made), (id, false));
            } else {
                let mut left = SharedDisk::open(dir.path()).unwrap();
                let id = left.store().unwrap();
                places.look(1, &said, &mut left);
                assert_eq!(SharedDisk::open(dir.path()).unwrap().store().unwrap(), id);
                assert_eq!(temporary_files(dir.path()), 0, "stop {stops}");
            }
            if ended {
                break;
            }
        }
        places.check();
    }
}

/// A store in `dir` with the flags of views 1 and 2, its file ending in `tail`.
fn store_with(dir: &Path, tail: &[u8]) -> StoreId {
    let (mut store, _) = Store::open(dir).unwrap();
    for view in [1, 2] {
        store
            .test_and_set(&flag(view), &who("before"), None)
            .unwrap();
    }
    let log = File::options().append(true).open(dir.join("flags.log"));
    log.unwrap().write_all(tail).unwrap();
    store.id().unwrap()
}

#[test]
fn killed_while_it_opens_a_store_with_a_torn_end_a_server_leaves_it_whole() {
    let mut places = Places::default();
    for stops in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let id = store_with(dir.path(), b"1a2b3c4d {\"vm\":\"we");
        let victim = Victim::start(&store(dir.path()));
        let Some((said, ended)) = victim.kill_at("3", stops) else {
            return;
        };
        let (mut left, _) = Store::open(dir.path()).unwrap();
        assert_eq!(left.id().unwrap(), id);
        for view in [1, 2] {
            assert_eq!(left.holder(&flag(view)).unwrap(), Some(who("before")));
        }
        places.look(3, &said, &mut left);
        if ended {
            break;
        }
    }
    places.check();
}

#[test]
fn killed_while_it_folds_and_rewrites_a_server_leaves_every_flag_set() {
    const FLAGS: u64 = 150;
    let full = tempfile::tempdir().unwrap();
    let mark = who("a").end_mark().unwrap();
    let (mut filled, _) = Store::open(full.path()).unwrap();
    for view in 0..FLAGS {
        filled.test_and_set(&flag(view), &who("a"), None).unwrap();
    }
    filled.test_and_set(&flag(FLAGS), &mark, None).unwrap();
    let id = filled.id().unwrap();
    let lines = std::fs::read(full.path().join("flags.log")).unwrap();
    let (mut untouched, mut folded, mut rewritten) = (0, 0, 0);
    for stops in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("flags.log");
        std::fs::write(&log, &lines).unwrap();
        let Some((_, ended)) = Victim::start(&store(dir.path())).kill_at("tidy", stops) else {
            return;
        };
        let short = std::fs::metadata(&log).unwrap().len() < lines.len() as u64 / 10;
        let (mut left, recovery) = Store::open(dir.path()).unwrap();
        assert_eq!(left.id().unwrap(), id);
        match (recovery.flags, short) {
            (1, true) => rewritten += 1,
            (1, false) => folded += 1,
            (flags, false) => {
                assert_eq!(flags as u64, FLAGS + 1);
                untouched += 1;
            }
            other => panic!("{other:?}"),
        }
        for view in 0..=FLAGS {
            let verdict = left.test_and_set(&flag(view), &who("other"), None).unwrap();
            assert!(
                matches!(verdict, Verdict::Lost { .. }),
                "stop {stops}, view {view}"
            );
        }
        assert_eq!(left.holder(&flag(FLAGS + 1)).unwrap(), None);
        if ended {
            break;
        }
    }
    println!("killed: untouched {untouched}, folded {folded}, rewritten {rewritten}");
    assert!(untouched > 0 && folded > 0 && rewritten > 0);
}

#[test]
fn whichever_system_call_fails_no_flag_is_lost_or_won_by_two() {
    let mut unknown = 0;
    for n in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let mut victim = Victim::start(&store(dir.path()));
        victim.warm_up();
        let Some(failed) = victim.fail_at("1", n) else {
            return;
        };
        let said = victim.hear();
        if said == "1 won\n" {
            assert!(!failed, "{n}: a failure was ignored");
        } else {
            assert!(failed && said.starts_with("1 unknown "), "{said}");
            unknown += 1;
            // Nothing else is the worse for it, and it mends by itself.
            victim.tell("?0");
            assert_eq!(victim.hear(), "0 held victim\n");
            victim.tell("?2");
            assert_eq!(victim.hear(), "2 free\n");
            victim.tell("1");
            assert_eq!(victim.hear(), "1 won\n");
        }
        victim.tell("2");
        assert_eq!(victim.hear(), "2 won\n");
        drop(victim);
        let (mut left, recovery) = Store::open(dir.path()).unwrap();
        assert_eq!((recovery.flags, recovery.cut_bytes), (3, 0));
        for view in 0..3 {
            assert_eq!(left.holder(&flag(view)).unwrap(), Some(who("victim")));
        }
        if !failed {
            break;
        }
    }
    // A write and a sync.
    assert_eq!(unknown, 2);
}

#[test]
fn whichever_system_call_fails_at_its_opening_a_store_tells_what_it_knows() {
    let mut read_only = 0;
    for n in 1.. {
        let dir = tempfile::tempdir().unwrap();
        let id = store_with(dir.path(), b"torn");
        let mut victim = Victim::start(&store(dir.path()));
        let Some(failed) = victim.fail_at("?1", n) else {
            return;
        };
        let mut said = victim.hear();
        if failed {
            assert!(said.starts_with("read-only "), "{n}: {said}");
            read_only += 1;
            said = victim.hear();
        }
        assert_eq!(said, "1 held before\n");
        victim.tell("2");
        assert_eq!(victim.hear(), "2 lost before\n");
        victim.tell("3");
        assert_eq!(victim.hear(), "3 won\n");
        drop(victim);
        let (mut left, recovery) = Store::open(dir.path()).unwrap();
        assert_eq!((recovery.flags, recovery.cut_bytes), (3, 0));
        assert_eq!(left.id().unwrap(), id);
        if !failed {
            break;
        }
    }
    // The directory's sync, the last line, the cut, and their sync.
    assert_eq!(read_only, 4);
}

/// Runs `script` as root of namespaces of its own, with `$CONTEND` and the empty directories `$DISK`
/// and `$DIR`; `None`, said on standard output, where that is not allowed.
fn in_namespace(script: &str) -> Option<String> {
    let [disk, dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let unshare = |script: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-euc", script])
            .env("CONTEND", env!("CARGO_BIN_EXE_tandem-contend"))
            .env("DISK", disk.path())
            .env("DIR", dir.path())
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

#[test]
fn a_servers_disk_that_was_full_takes_flags_again_once_there_is_room() {
    let script = r#"
        mount -t tmpfs -o size=64k tandem "$DISK"
        mkfifo "$DIR/in" "$DIR/out"
        ask() { echo "$1" >&3; read -r line <&4; echo "$line"; }
        start() {
            "$CONTEND" "store:$DISK/store" web a < "$DIR/in" > "$DIR/out" &
            pid=$!
            exec 3> "$DIR/in" 4< "$DIR/out"
        }
        start
        ask 1
        head -c 48k /dev/zero > "$DISK/filler"
        cat /dev/zero > "$DISK/rest" 2>/dev/null || true
        n=1
        while :; do
            n=$((n + 1))
            case "$(ask $n)" in *unknown*) break ;; esac
        done
        ask $n
        ask "?1"
        ask "?$n"
        # Started anew it tells what it knows, with nothing but a block's rest of room.
        exec 3>&-
        wait $pid || true
        cat /dev/zero > "$DISK/rest" 2>/dev/null || true
        start
        ask "?1"
        ask "?$((n - 1))"
        ask $((n + 1))
        ask "?$((n - 1))"
        rm "$DISK/rest" "$DISK/filler"
        ask $((n + 1))
        ask $((n + 2))
    "#;
    let Some(said) = in_namespace(script) else {
        return;
    };
    println!("{said}");
    let lines: Vec<_> = said.lines().collect();
    let n: u64 = lines[1].split(' ').next().unwrap().parse().unwrap();
    assert!(n > 30, "a block takes more flags than that");
    let full = |line: &str, view: u64| {
        assert!(
            line.starts_with(&format!("{view} unknown cannot write")),
            "{said}"
        );
        assert!(line.contains("disk is full; make room for"), "{said}");
        // A flag of some hundred bytes, not the whole file.
        let words: Vec<_> = line.split(' ').collect();
        let at = words.iter().position(|word| *word == "bytes").unwrap();
        assert!(words[at - 1].parse::<u64>().unwrap() < 200, "{said}");
    };
    assert_eq!(lines[0], "1 won");
    full(lines[1], n);
    assert_eq!(lines[2], "1 held a");
    full(lines[3], n);
    assert_eq!(lines[4], "1 held a");
    assert_eq!(lines[5], format!("{} held a", n - 1));
    full(lines[6], n + 1);
    assert_eq!(lines[7], format!("{} held a", n - 1));
    assert_eq!(lines[8], format!("{} won", n + 1));
    assert_eq!(lines[9], format!("{} won", n + 2));
    assert_eq!(lines.len(), 10, "{said}");
}

#[test]
fn a_servers_disk_that_is_read_only_tells_what_is_known() {
    let script = r#"
        mount -t tmpfs -o size=64k tandem "$DISK"
        printf '1\n2\n' | "$CONTEND" "store:$DISK/store" web a
        mount -o remount,ro "$DISK"
        printf '1\n3\n?1\n' | "$CONTEND" "store:$DISK/store" web b || true
    "#;
    let Some(said) = in_namespace(script) else {
        return;
    };
    let lines: Vec<_> = said.lines().collect();
    let ["1 won", "2 won", warned, "1 lost a", unknown, "1 held a"] = lines.as_slice() else {
        panic!("{said}");
    };
    for line in [warned, unknown] {
        assert!(line.contains("disk is read-only; remount"), "{said}");
    }
    assert!(
        warned.starts_with("read-only") && unknown.starts_with("3 unknown"),
        "{said}"
    );
}
