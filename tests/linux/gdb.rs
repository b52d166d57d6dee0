//! gdb at a replay of a Linux boot: interrupted in the middle, stopped in the kernel, back again, and at
//! memory by the kernel's own addresses.

use super::common::{machine, os, text};
use super::drive::{Gdb, have_gdb};
use super::images;
use super::recorded::{EQUAL, Ran, folder, forget, start};

/// Prints where two things of the kernel are, which is elsewhere in each boot, and ends.
const RUN: &str = "tandem.run=\"grep -w -e linux_banner -e __x64_sys_reboot /proc/kallsyms\"";

#[test]
fn gdb_stops_linux_in_its_kernel_and_takes_it_back() {
    let _machine = machine();
    if !have_gdb() {
        return;
    }
    let Some(image) = images::redis() else { return };
    let log = folder().join(format!("gdb-{}.log", std::process::id()));
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
    args.push(log.clone().into());
    let recorded = Ran::of(start("recorder", args, &log));
    let address = |symbol: &str| {
        let lines = recorded.console.iter();
        let mut words = lines.map(|line| line.split(' ').collect::<Vec<_>>());
        let found = words.find(|words| words.last() == Some(&symbol));
        let found = found.unwrap_or_else(|| panic!("no {symbol}: {:?}", recorded.console));
        u64::from_str_radix(found[0], 16).expect("an address")
    };
    let (banner, reboot) = (address("linux_banner"), address("__x64_sys_reboot"));
    let place = "printf \"rip %lx\\n\", $rip";
    let script = [
        // What Ctrl-C does, while the replay, which takes seconds, has just begun.
        "python import os, signal, threading".into(),
        "python threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()".into(),
        "continue".into(),
        "printf \"interrupted at %lx\\n\", $rip".into(),
        // The kernel switches the machine off by this call, once.
        format!("hbreak *{reboot:#x}"),
        "continue".into(),
        place.into(),
        format!("printf \"banner %s\\n\", (char *){banner:#x}"),
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
    let expected = format!("{reboot:x}");
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
    let banner = output.after("banner ");
    assert!(
        banner[0].starts_with("Linux version "),
        "{output}\n{errors}"
    );
    for key in EQUAL {
        assert_eq!(recorded.report[key], replayed[key], "{key}");
    }
    forget(&log);
}
