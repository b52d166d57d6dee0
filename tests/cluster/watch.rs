//! `tandem status --watch`: lines on a pipe, a page on a terminal.

use super::common::{LIMIT, machine, os, text};
use super::site::{LOOK, Site, program};
use kit::daemon::Daemon;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

#[test]
fn on_a_pipe_there_is_a_line_for_each_change() {
    let _machine = machine();
    let site = Site::new();
    let a = site.host("a");
    let watch = ["status", "--watch", "--viewservice", &site.at];
    let mut watching = Daemon::start("status", os(&watch), site.path("watch.err")).unwrap();
    let wait = |watching: &Daemon, word: &str| {
        watching
            .wait_line(LIMIT, |line| line.contains(word))
            .unwrap()
    };
    wait(&watching, " host a: live, 300 of 300 MiB left");
    let _b = site.host("b");
    wait(&watching, " host b: live, 300 of 300 MiB left");
    site.say(&["up", text(&site.recipe("web", ""))]);
    wait(&watching, " web: protected: view 1, primary a, backup b");
    wait(&watching, " host a: live, 164 of 300 MiB left");
    a.kill_replica("web");
    wait(&watching, " web: protected: view 3, primary b, backup a");
    let lines = watching.said();
    site.say(&["down", "web"]);
    wait(&watching, " web: gone");
    // Nothing is said where nothing changes: lag and pings do all the time.
    assert!(lines.len() < 40, "{lines:?}");
    watching.ask_to_end();
    assert!(watching.wait(LIMIT).unwrap().success());
}

/// The program at a terminal; it does not outlive the test.
struct Watching(Child);

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A terminal of 80 columns and 24 lines, and what is printed there.
struct Terminal {
    keys: File,
    shown: Receiver<Vec<u8>>,
    other: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        let (mut master, mut slave) = (-1, -1);
        let size = libc::winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let (name, usual) = (std::ptr::null_mut(), std::ptr::null());
        // SAFETY: it writes two descriptors, reads the size, and no name is asked for.
        let made = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                name,
                usual,
                &raw const size,
            )
        };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both are new, and nobody else's.
        let (master, other) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        // Programs that are started get the one end that they are given, and no other.
        for end in [master.as_fd(), other.as_fd()] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let mut screen = master.try_clone().unwrap();
        let (show, shown) = channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(bytes @ 1..) = screen.read(&mut chunk) {
                if show.send(chunk[..bytes].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            keys: master,
            shown,
            other,
        }
    }

    fn start(&self, words: &[&str]) -> Watching {
        let end = || Stdio::from(self.other.try_clone().unwrap());
        let mut program = program();
        program.args(words).stdin(end()).stdout(end()).stderr(end());
        Watching(program.env("TERM", "xterm").spawn().unwrap())
    }

    /// Waits until this is printed; all that was by then.
    fn wait(&self, word: &str) -> String {
        let (begun, mut all) = (Instant::now(), Vec::new());
        loop {
            all.extend(self.shown.recv_timeout(LIMIT).expect("it shows something"));
            let text = String::from_utf8_lossy(&all);
            if text.contains(word) {
                return text.into_owned();
            }
            let first: String = text.chars().take(2000).collect();
            assert!(begun.elapsed() < LIMIT, "no {word:?} in {first:?}");
        }
    }

    fn settings(&self) -> String {
        let tty = Stdio::from(self.other.try_clone().unwrap());
        let told = std::process::Command::new("stty")
            .arg("-g")
            .stdin(tty)
            .output()
            .unwrap();
        String::from_utf8(told.stdout).unwrap()
    }
}

#[test]
fn on_a_terminal_there_is_a_page_and_the_terminal_is_given_back() {
    let _machine = machine();
    let site = Site::new();
    let _hosts = ["a", "b"].map(|name| site.host(name));
    site.say(&["up", text(&site.recipe("web", ""))]);
    let words = ["status", "--watch", "--viewservice", &site.at];
    let ways: [(&str, Option<&[u8]>); 3] = [
        ("q", Some(b"q")),
        ("Ctrl-C", Some(b"\x03")),
        ("SIGTERM", None),
    ];
    for (way, keys) in ways {
        let mut terminal = Terminal::new();
        let before = terminal.settings();
        let mut child = terminal.start(&words);
        let shown = terminal.wait("protected:");
        for part in [
            "\x1b[?1049h",
            "1 machines, 0 not protected",
            "web",
            "MiB left",
        ] {
            assert!(shown.contains(part), "{way}: no {part:?} in {shown:?}");
        }
        assert_ne!(terminal.settings(), before, "{way}: keys go to the page");
        match keys {
            Some(keys) => terminal.keys.write_all(keys).unwrap(),
            None => kill(
                Pid::from_raw(child.0.id().try_into().unwrap()),
                Signal::SIGTERM,
            )
            .unwrap(),
        }
        terminal.wait("\x1b[?1049l");
        let begun = Instant::now();
        let status = loop {
            match child.0.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(begun.elapsed() < LIMIT, "{way}: it does not end"),
            }
            std::thread::sleep(LOOK);
        };
        assert!(status.success(), "{way}: {status}");
        assert_eq!(terminal.settings(), before, "{way}");
    }
    site.say(&["down", "web"]);
}
