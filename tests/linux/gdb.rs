//! gdb at a replay of a Linux boot: interrupted in the middle, stopped in the kernel, back again, and at
//! memory by the kernel's own addresses.

use super::common::{core, os, text};
use super::drive::{Gdb, have_gdb};
use super::images;
use super::recorded::{EQUAL, Log, Ran, start};

/// What the kernel calls once, with the first program's path, to run that.
const SYMBOL: &str = "run_init_process";
/// Prints where that is, which is elsewhere in each boot, and ends. It is among the first of a list that
/// takes longer to print than a boot.
const RUN: &str = "tandem.run=\"grep -m 2 -w -e _text -e run_init_process /proc/kallsyms\"";
/// The kernel's first symbol, and where it was linked to.
const FIRST: (&str, u64) = ("_text", 0xffff_ffff_8100_0000);

#[test]
fn gdb_stops_linux_in_its_kernel_and_takes_it_back() {
    let _core = core();
    if !have_gdb() {
        return;
    }
    let Some(image) = images::redis() else { return };
    let log = Log::new("gdb");
    let args = [
        "record",
        text(&image),
        "--cpu",
        "v2",
        "--json",
        "--append",
        RUN,
        "-o",
    ];
    let mut args = os(&args);
    args.push(log.as_os_str().into());
    let recorded = Ran::of(start("recorder", args, &log));
    let address_of = |symbol: &str| {
        let mut words = recorded.console.iter().map(|line| line.split(' '));
        let found = words.find_map(|mut words| {
            let address = words.next()?;
            (words.next_back() == Some(symbol)).then(|| u64::from_str_radix(address, 16).ok())?
        });
        found.unwrap_or_else(|| panic!("no {symbol}: {:?}", recorded.console))
    };
    let address = address_of(SYMBOL);
    let moved = address_of(FIRST.0) - FIRST.1;
    let place = "printf \"rip %lx\\n\", $rip";
    let script = [
        // What Ctrl-C does, while the replay, which takes seconds, has just begun.
        "python import os, signal, threading".into(),
        "python threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()".into(),
        "continue".into(),
        "printf \"interrupted at %lx\\n\", $rip".into(),
        format!("hbreak *{address:#x}"),
        "continue".into(),
        place.into(),
        "printf \"program %s\\n\", (char *)$rdi".into(),
        "monitor kernel".into(),
        "stepi".into(),
        "stepi".into(),
        "stepi".into(),
        place.into(),
        "reverse-continue".into(),
        place.into(),
        "detach".into(),
    ];
    let (output, errors, replayed) = Gdb::start(&log).run(&script);
    let at = output.after("rip ");
    let expected = format!("{address:x}");
    assert_eq!(at.len(), 3, "{output}\n{errors}");
    assert_eq!(
        (at[0], at[2]),
        (&*expected, &*expected),
        "{output}\n{errors}"
    );
    assert_ne!(at[1], expected, "{output}");
    let interrupted = output.after("interrupted at ");
    assert_eq!(interrupted.len(), 1, "{output}\n{errors}");
    assert_ne!(interrupted[0], expected, "{output}");
    assert!(output.0.contains("SIGINT"), "{output}\n{errors}");
    let program = output.after("program ");
    assert_eq!(program, ["/init"], "{output}\n{errors}");
    let found = format!("moved by {moved:#x}: symbol-file vmlinux -o {moved:#x}");
    assert!(output.0.contains(&found), "{found}: {output}\n{errors}");
    for key in EQUAL {
        assert_eq!(recorded.report[key], replayed[key], "{key}");
    }
}
