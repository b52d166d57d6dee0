//! Linux at its serial console: what is typed reaches its shell, all of it, what the shell says comes back,
//! and a replay says the same. And Linux that reboots: its machine starts over, and the recording goes on.

use super::common::{PROGRAM, core, os, tandem, text};
use super::recorded::{Log, Ran, replay_equals, start};
use super::{LIMIT, images};
use bundle::sha256;
use kit::daemon::Daemon;
use nix::sys::stat::Mode;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What the image prints before its shell's first prompt.
const SHELL: &str = "tandem: runs sh";
/// A shell on the console instead of the image's server.
const RUN: &str = "tandem.run=sh";
/// Lines of the paste, and how long each is: 24 KiB, more than the serial port and the terminal hold.
const PASTED: (usize, usize) = (384, 64);

/// A recording whose console somebody types to.
pub struct Typed {
    /// The recording.
    pub recorder: Daemon,
    keys: File,
    _folder: tempfile::TempDir,
}

impl Typed {
    /// Of `run`, words for the kernel's command line.
    pub fn start(image: &Path, log: &Path, run: &str, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("keys");
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).expect("a pipe");
        let mut args = os(&[
            "-c",
            "pipe=$1; shift; exec \"$0\" \"$@\" <\"$pipe\"",
            PROGRAM,
        ]);
        args.push(pipe.clone().into());
        args.extend(os(&[
            "record",
            text(image),
            "--cpu",
            "v2",
            "--json",
            "--input",
        ]));
        args.extend(os(&["--append", run, "-o", text(log)]));
        args.extend(os(more));
        let errors = log.with_extension("recorder.err");
        let _ = std::fs::remove_file(&errors);
        let shell = PathBuf::from("/bin/sh");
        let recorder = Daemon::start_other("recorder", &shell, args, errors);
        Self {
            recorder: recorder.expect("it starts"),
            keys: File::options().write(true).open(pipe).expect("its reader"),
            _folder: folder,
        }
    }

    /// Types these.
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it listens");
    }

    /// Waits for a line with `part` in it, after `times` others.
    pub fn hears(&self, part: &str, times: usize) {
        let there = |line: &str| line.contains(part);
        let heard = self.recorder.wait_nth_line(LIMIT, times, there);
        heard.unwrap_or_else(|e| panic!("'{part}': {e} {:?}", self.recorder.said()));
    }
}

#[test]
fn what_is_typed_reaches_the_shell_and_nothing_of_a_paste_is_lost() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let log = Log::new("typed");
    let mut typed = Typed::start(&image, &log, RUN, &[]);
    typed.hears(SHELL, 0);
    typed.keys("echo sum-$((40 + 2))\n");
    typed.hears("sum-42", 0);
    // The terminal's own echo is switched off, and `cat` is there, before the paste comes.
    typed.keys("stty -echo; echo cat-$((1 + 1)); cat >/tmp/paste\n");
    typed.hears("cat-2", 0);
    let (lines, length) = PASTED;
    let paste: String = (0..lines)
        .map(|n| format!("{n:0width$}\n", width = length - 1))
        .collect();
    typed.keys(&paste);
    typed.keys("\x04");
    typed.keys("sha256sum /tmp/paste\n");
    typed.hears(&sha256(paste.as_bytes()), 0);
    typed.keys("exit\n");
    let recorded = Ran::of(typed.recorder);
    assert_eq!(recorded.report["exit_status"], 0);
    replay_equals(&recorded, &log);
}

/// What a command reads is what is typed, and what interrupts it is a key: it has the signals' default actions.
#[test]
fn a_command_reads_the_console_and_a_key_interrupts_it() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let log = Log::new("read");
    let run = r#"tandem.run="echo asks; read x; echo got=$x; echo sleeps; sleep 1000; echo over""#;
    let mut typed = Typed::start(&image, &log, run, &[]);
    typed.hears("asks", 1);
    typed.keys("a word\n");
    typed.hears("got=a word", 0);
    typed.hears("sleeps", 1);
    typed.keys("\x03");
    // The status of a shell that SIGINT ended.
    typed.hears("tandem: ended with status 130", 0);
    let status = typed.recorder.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(130));
    let said = typed.recorder.said();
    assert!(said.iter().all(|line| line != "over"), "{said:?}");
    let replayed = tandem(&["replay", text(&log)]);
    assert!(replayed.status.success(), "{replayed:?}");
}

#[test]
fn a_reboot_starts_the_machine_over_in_one_recording() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let log = Log::new("reboot");
    let mut typed = Typed::start(&image, &log, RUN, &["--on-reset", "restart"]);
    typed.hears(SHELL, 0);
    // A status that was written before a reset is not the next life's.
    typed.keys("devmem 0xd0001020 8 7; devmem 0xd0001020 8\n");
    typed.hears("0x07", 0);
    typed.keys("echo >/tmp/life; echo life-$((0 + 1)); reboot\n");
    typed.hears("life-1", 0);
    typed.hears(SHELL, 1);
    typed.keys("ls /tmp/life; echo life-$((1 + 1)); exit\n");
    typed.hears("life-2", 0);
    let recorded = Ran::of(typed.recorder);
    let said = |part: &str| {
        recorded
            .console
            .iter()
            .filter(|line| line.contains(part))
            .count()
    };
    assert_eq!(said(SHELL), 2, "{:?}", recorded.console);
    assert_eq!(
        said("No such file"),
        1,
        "memory is empty: {:?}",
        recorded.console
    );
    assert_eq!(recorded.report["exit_status"], 0);
    replay_equals(&recorded, &log);
}

#[test]
fn a_reboot_ends_the_machine_of_an_image_unless_it_is_to_start_over() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let log = Log::new("reset");
    let mut args: Vec<OsString> = os(&["record", text(&image), "--cpu", "v2"]);
    args.extend(os(&["--append", "tandem.run=reboot,-f", "-o", text(&log)]));
    let mut recorder = start("recorder", args, &log);
    let status = recorder.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(
        recorder.complaint().contains("status 3321"),
        "{}",
        recorder.complaint()
    );
}
