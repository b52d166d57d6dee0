//! A Linux boot for the tools people have: a core file read by gdb and drgn, a profile, and a trace of its system calls.

use super::common::{assert_last_line, perfetto, pprof, tandem, text};
use super::drive;
use std::path::{Path, PathBuf};
use std::process::Command;
use testing::skipped::skip_this;

/// A core file: its bytes, its loads (offset, linear address, physical address, length), what the kernel says of itself.
struct Core {
    bytes: Vec<u8>,
    loads: Vec<[usize; 4]>,
    info: String,
}

impl Core {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("a core file");
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert!(bytes.starts_with(b"\x7fELF\x02\x01\x01"));
        let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
        let headers = (0..count).map(|n| 64 + 56 * n);
        let loads = headers.filter(|at| bytes[*at] == 1);
        let loads = loads.map(|at| [8, 16, 24, 32].map(|field| word(at + field)));
        let loads: Vec<[usize; 4]> = loads.collect();
        let begin = find(&bytes, b"OSRELEASE=").expect("VMCOREINFO");
        let end = begin + find(&bytes[begin..], b"\0").expect("it ends");
        let info = String::from_utf8(bytes[begin..end].to_vec()).expect("words");
        Self { bytes, loads, info }
    }

    fn says(&self, key: &str) -> &str {
        let mut lines = self.info.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(own, _)| *own == key);
        found.unwrap_or_else(|| panic!("no {key}: {}", self.info)).1
    }

    fn hex(&self, key: &str) -> usize {
        usize::from_str_radix(self.says(key), 16).expect("a number")
    }

    /// Where the kernel has its banner, by its own mapping: the first there is of that text behind its code.
    fn banner(&self) -> usize {
        let text = self.hex("SYMBOL(_stext)");
        let of_kernel =
            |load: &&[usize; 4]| load[1] >= text & !0xfff_ffff && load[1] >> 31 == text >> 31;
        let mut loads: Vec<&[usize; 4]> = self.loads.iter().filter(of_kernel).collect();
        loads.sort_by_key(|load| load[1]);
        let words = format!("Linux version {} ", self.says("OSRELEASE"));
        let found = loads.iter().find_map(|[offset, linear, _, length]| {
            let own = &self.bytes[*offset..offset + length];
            Some(linear + find(own, words.as_bytes())?)
        });
        found.expect("a banner")
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|own| own == wanted)
}

/// What a guest runs that prints where its kernel has its first task, and its types.
pub const WHERE: &str = "grep -m 3 -w -e init_task -e __start_BTF -e __stop_BTF /proc/kallsyms";

/// That `log`, of a boot whose clock came to `clock`, which printed what [`WHERE`] does among `console`, and powered
/// itself off, is opened by all of them.
pub fn is_opened_by_the_tools_people_have(log: &Path, clock: u64, console: &[String]) {
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str| files.path().join(name);
    let core = Core::read(&core_file(log, clock / 10 * 9, &file("core")));
    by_gdb(&file("core"), &core);
    by_drgn(&file("core"), &core, console);
    traced(log, clock, &file);
    of_a_cut_log(log, &core, &file);
}

fn core_file(log: &Path, clock: u64, core: &Path) -> PathBuf {
    let at = clock.to_string();
    let output = tandem(&["replay", text(log), "--at", &at, "--core", text(core)]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(
        words.contains(&format!("at clock {at}, of Linux ")),
        "{words}"
    );
    core.to_owned()
}

/// What the kernel calls itself is where it says, by its own addresses.
fn by_gdb(path: &Path, core: &Core) {
    if !drive::have_gdb() {
        return;
    }
    let name = core.hex("SYMBOL(init_uts_ns)")
        + core
            .says("OFFSET(uts_namespace.name)")
            .parse::<usize>()
            .unwrap();
    // struct new_utsname: texts of 65 bytes, system, host, release (include/uapi/linux/utsname.h).
    let release = name + 2 * 65;
    let output = Command::new("gdb")
        .args(["-batch", "-nx", "-c", text(path)])
        .args([
            "-ex",
            &format!("printf \"system %s\\n\", (char *){name:#x}"),
        ])
        .args([
            "-ex",
            &format!("printf \"release %s\\n\", (char *){release:#x}"),
        ])
        .args(["-ex", "printf \"rip %lx\\n\", $rip", "-ex", "x/1i $rip"])
        .output()
        .expect("gdb");
    let words = String::from_utf8_lossy(&output.stdout);
    let all = format!("{words}{}", String::from_utf8_lossy(&output.stderr));
    assert!(words.contains("system Linux\n"), "{all}");
    let release = format!("release {}\n", core.says("OSRELEASE"));
    assert!(words.contains(&release), "{all}");
    assert!(words.contains("=> 0x"), "the next instruction: {all}");
}

/// drgn takes the file as a kernel's, and finds memory through the kernel's page tables and by physical addresses; and
/// the guest's tasks.
fn by_drgn(path: &Path, core: &Core, console: &[String]) {
    let there = |python: &&str| {
        let tried = Command::new(python).args(["-c", "import drgn"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(there) else {
        return skip_this(&"drgn is missing (Debian's python3-drgn)");
    };
    let banner = core.banner();
    let physical = core.loads.iter().find_map(|[_, linear, physical, length]| {
        (*linear..linear + length)
            .contains(&banner)
            .then(|| physical + (banner - linear))
    });
    let script = format!(
        "import sys, drgn\n\
         core = drgn.Program()\n\
         core.set_core_dump(sys.argv[1])\n\
         assert core.flags & drgn.ProgramFlags.IS_LINUX_KERNEL, core.flags\n\
         print(core['UTS_RELEASE'].string_().decode())\n\
         print(core.read({banner}, 14).decode())\n\
         print(core.read({}, 14, True).decode())",
        physical.expect("it is mapped")
    );
    let output = Command::new(python)
        .args(["-c", &script, text(path)])
        .output();
    let output = output.expect("python");
    let words = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = words.lines().collect();
    assert_eq!(
        lines,
        [core.says("OSRELEASE"), "Linux version ", "Linux version "],
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let address = |symbol: &str| {
        let mut lines = console.iter().map(|line| line.split(' '));
        let found = lines.find_map(|mut words| {
            let address = words.next()?;
            (words.next_back() == Some(symbol)).then_some(address)
        });
        found.unwrap_or_else(|| panic!("no {symbol}: {console:?}"))
    };
    let output = Command::new(python)
        .args(["-c", include_str!("tasks.py"), text(path)])
        .args(["init_task", "__start_BTF", "__stop_BTF"].map(address))
        .output()
        .expect("python");
    let words = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let tasks: Vec<&str> = words.lines().collect();
    // The kernel's own; process 1 is the first root's script, and then busybox.
    let [idle, first, second, ..] = tasks[..] else {
        panic!("{words}{complaint}");
    };
    assert_eq!([idle, second], ["0 swapper/0", "2 kthreadd"], "{words}");
    assert!(["1 init", "1 busybox"].contains(&first), "{words}");
    assert!(tasks.len() > 20, "{words}{complaint}");
}

/// A profile and a trace have what the guest did, and are the same at each run.
fn traced(log: &Path, clock: u64, file: &dyn Fn(&str) -> PathBuf) {
    let run = |n: u32| {
        let [folded, pprof, trace] =
            ["folded", "pprof", "trace"].map(|name| file(&format!("{name}-{n}")));
        let files = [
            "--folded",
            text(&folded),
            "--pprof",
            text(&pprof),
            "--perfetto",
            text(&trace),
        ];
        let output = tandem(&[&["trace", text(log), "--json"][..], &files].concat());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
        (
            report,
            [folded, pprof, trace].map(|path| std::fs::read(path).unwrap()),
        )
    };
    let (report, files) = run(1);
    let (other, again) = run(2);
    assert!(files == again, "not the same twice");
    for key in ["entries", "clock", "samples", "functions"] {
        assert_eq!(report[key], other[key], "{key}");
    }
    assert!(report["lacks"].is_null(), "{report}");
    // A look every 100,000 instructions, and each is in the profile.
    let samples = report["samples"].as_u64().unwrap();
    assert!(
        samples.abs_diff(clock / 100_000) <= 2,
        "{samples} of {clock}"
    );
    let folded = String::from_utf8(files[0].clone()).unwrap();
    let lines = folded
        .lines()
        .map(|line| line.rsplit_once(' ').expect(line));
    let counted = lines.clone().map(|(_, n)| n.parse::<u64>().unwrap());
    assert_eq!(counted.sum::<u64>(), samples * 100_000);
    // pprof is told the same.
    let profile = pprof::read(&files[1]);
    assert_eq!(profile.counts, ["instructions", "count"]);
    assert_eq!(profile.period, 100_000);
    let stacks = lines
        .clone()
        .map(|(stack, n)| (stack.to_owned(), n.parse().unwrap()));
    assert!(profile.stacks == stacks.collect(), "{:?}", profile.stacks);
    // What runs the first program was called by what begins the kernel.
    let called = |from: &str, to: &str| {
        let both = |stack: &str| {
            stack
                .split(';')
                .skip_while(|name| *name != from)
                .any(|name| name == to)
        };
        lines.clone().any(|(stack, _)| both(stack))
    };
    assert!(
        called("start_kernel", "setup_arch") || called("kernel_init", "kernel_init_freeable"),
        "{folded}"
    );
    assert!(folded.lines().any(|line| line.contains(";(program) ")));

    let tracks = perfetto::read(&files[2]);
    let calls = |name: &str| perfetto::count(&tracks, name);
    for name in ["execve", "write", "page fault", "reboot"] {
        assert!(calls(name) > 0, "{name}");
    }
    // A program that is started is told of by its own name, and not by that of the one that started it.
    let of = |name: &str| tracks.iter().find(|track| track.name.starts_with(name));
    let names: Vec<&str> = tracks.iter().map(|track| &*track.name).collect();
    let last = of("poweroff ").unwrap_or_else(|| panic!("no poweroff: {names:?}"));
    assert!(
        last.events.iter().any(|(_, name)| name == "reboot"),
        "{last:?}"
    );
}

/// Of a log that is cut there is what is whole, and it is said. Symbols from a file are taken if the kernel's banner is
/// where they say, and else refused.
fn of_a_cut_log(log: &Path, core: &Core, file: &dyn Fn(&str) -> PathBuf) {
    let [short, folded, trace, map] = ["short", "folded", "trace", "System.map"].map(file);
    let bytes = std::fs::read(log).unwrap();
    std::fs::write(&short, &bytes[..bytes.len() / 2]).unwrap();
    // As the kernel is linked, before it is moved.
    let moved = core.hex("KERNELOFFSET");
    let code = core.hex("SYMBOL(_stext)") - moved;
    let by_map = |banner: usize| {
        let lines = format!("{code:016x} T _stext\n{banner:016x} D linux_banner\n");
        std::fs::write(&map, lines).expect("room for it");
        let files = ["--folded", text(&folded), "--perfetto", text(&trace)];
        let args = ["trace", text(&short), "--symbols", text(&map)];
        tandem(&[&args[..], &files].concat())
    };
    let other = by_map(core.banner() - moved + 0x40);
    let why = "banner is not where it says";
    assert_last_line(&other, 1, &["symbols of another kernel", why]);
    let own = by_map(core.banner() - moved);
    assert_last_line(&own, 1, &[text(&short)]);
    let said = String::from_utf8_lossy(&own.stderr);
    // The half of the bytes ends in the midst of an entry, or where one does.
    let cut = ["cut short", "without an end entry"];
    assert!(cut.iter().any(|words| said.contains(words)), "{said}");
    let folded = std::fs::read_to_string(&folded).unwrap();
    assert!(folded.contains(";_stext"), "{folded}");
    perfetto::read(&std::fs::read(&trace).unwrap());
}
