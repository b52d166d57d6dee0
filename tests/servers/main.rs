//! Ten servers as Debian ships them: each is installed by `tandem image`, serves a client that speaks its protocol on
//! one connection, is recorded and replayed exactly, and goes on with the same connection when the primary of a pair
//! is killed (SIGKILL).
//!
//! All ten take minutes: docs/SERVERS.md has the commands, and what they print. Three of them run by turns (`turns`),
//! another three each day.

mod beside_qemu;
#[path = "../common/mod.rs"]
mod common;
mod known;
mod talk;
mod turns;

use common::{PROGRAM, cluster, core, machine, os, skipped, text};
use kit::cluster::{Pair, PairOptions};
use kit::daemon::Daemon;
use known::Server;
use serde_json::Value;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use talk::Talk;

/// Longest time anything may take on a host that is busy with other work.
const LIMIT: Duration = Duration::from_secs(600);
/// Questions asked of a recording, and of a pair before its primary is killed and after it.
const QUESTIONS: u32 = 20;
/// What recording and replay must agree about.
const EQUAL: [&str; 5] = ["entries", "clock", "clock_kind", "digest", "exit_status"];

/// A server, and a folder for its test.
struct Place<'a> {
    server: &'a Server,
    folder: tempfile::TempDir,
    /// The packages that are installed: the server's, and those of others that are installed with it.
    packages: Vec<&'static str>,
    /// Words for the guest's kernel command line.
    append: Option<String>,
}

impl Place<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An image with a disk nobody has written to: built, or copied from the cache. If there can be none here, why.
    fn image(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.path(name);
        let output = Command::new(PROGRAM)
            .args(["image", "-o", text(&path), "--run", self.server.command])
            .args(self.server.more)
            .args(&self.packages)
            .output()
            .expect("the program runs");
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            return Ok(path);
        }
        let excused = skipped::has_no_packages(&words);
        assert!(excused, "no image: {words}");
        Err(words)
    }

    /// The image and what goes with it, for `tandem run` and the like.
    fn words(&self, image: &Path) -> Vec<OsString> {
        let mut words = os(&[text(image), "--cpu", "v2"]);
        if let Some(append) = &self.append {
            words.extend(os(&["--append", append]));
        }
        words
    }

    fn daemon(&self, name: &str, args: &[OsString]) -> Daemon {
        let errors = self.path(&format!("{name}.err"));
        Daemon::start(name, args, errors).expect("it starts")
    }

    /// Opens a connection, on which a question was answered, as soon as the server lets it.
    fn open(&self, address: SocketAddr, guest: &Daemon) -> Box<dyn Talk> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let opened = (self.server.open)(address, self.folder.path());
            match opened.and_then(|mut talk| talk.ask(1).map(|()| talk)) {
                Ok(talk) => return talk,
                Err(e) => {
                    let late = Instant::now() > deadline;
                    let said = || format!("{e}: {:?} {}", guest.said(), guest.complaint());
                    assert!(!late && !guest.has_ended(), "no server: {}", said());
                }
            }
            // A refused connection is answered at once; another try is all there is to wait on.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Asks so many more questions.
fn ask(talk: &mut dyn Talk, asked: &mut u32, name: &str) {
    for _ in 0..QUESTIONS {
        *asked += 1;
        let n = *asked;
        talk.ask(n)
            .unwrap_or_else(|e| panic!("{name}, question {n}: {e}"));
    }
}

/// What a machine that ended well reported, and what it printed before.
fn report(mut machine: Daemon) -> (Value, Vec<String>) {
    let status = machine.wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}{}", machine.complaint());
    let mut console = machine.said();
    let last = console.pop().unwrap_or_default();
    // The guest may have ended in the midst of a line.
    let (line, report) = last.split_at(last.find("{\"").unwrap_or_default());
    console.push(line.to_owned());
    let report = serde_json::from_str(report).expect("a report in the last line");
    (report, console)
}

/// Seconds, for the table.
fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// The server recorded while it serves, and replayed. Gives the seconds until it served, the log's entries, and the
/// seconds of the replay.
fn recorded(place: &Place, image: &Path) -> (f64, u64, f64) {
    let name = place.server.name;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let log = place.path("log");
    let forward = format!("{}:{}", address.port(), place.server.port);
    let mut args = os(&["record"]);
    args.extend(place.words(image));
    args.extend(os(&["--json", "--forward", &forward, "-o", text(&log)]));
    let begun = Instant::now();
    let recorder = place.daemon("recorder", &args);
    let mut talk = place.open(address, &recorder);
    let serves = seconds(begun);
    ask(talk.as_mut(), &mut 1, name);
    drop(talk);
    recorder.ask_to_end();
    let (then, said) = report(recorder);
    let begun = Instant::now();
    let replayer = place.daemon(
        "replayer",
        &os(&["replay", text(&log), "--console", "--json"]),
    );
    let (now, again) = report(replayer);
    let replay = seconds(begun);
    for key in EQUAL {
        assert!(
            then[key] == now[key] && !then[key].is_null(),
            "{name}: {key}: {then} {now}"
        );
    }
    assert!(now["divergence"].is_null(), "{name}: {now}");
    assert_eq!(said, again, "{name}");
    (serves, then["entries"].as_u64().expect("a number"), replay)
}

/// The server protected; its primary is killed between two questions on one connection. Gives the milliseconds from
/// the kill to the first answer after it.
fn failed_over(place: &Place) -> u128 {
    let name = place.server.name;
    let image = place.image("protected.img").expect("it was built before");
    let mut cluster = cluster("file");
    let address = cluster
        .serve(place.server.port)
        .expect("a way to the guest");
    let options = PairOptions {
        network: true,
        disk: Some(bundle::disk_beside(&image)),
        both: os(&["--suspect-ms", "5000"]),
        ..PairOptions::default()
    };
    let pair = cluster.start_pair(name, &place.words(&image), &options);
    let mut pair: Pair = pair.expect("a pair");
    let mut talk = place.open(address, &pair.primary);
    let mut asked = 1;
    ask(talk.as_mut(), &mut asked, name);
    pair.primary.kill();
    let killed = Instant::now();
    pair.primary.wait(LIMIT).expect("it is gone");
    assert!(pair.primary.was_killed(), "it ended by itself before");
    asked += 1;
    talk.ask(asked)
        .unwrap_or_else(|e| panic!("{name}, after the kill: {e}"));
    let stall = killed.elapsed().as_millis();
    ask(talk.as_mut(), &mut asked, name);
    drop(talk);
    pair.wait_event("backup", "live").expect("it is live");
    pair.backup.ask_to_end();
    let status = pair.backup.wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}{}", pair.backup.complaint());
    stall
}

/// A server installed alone, and a line for the table.
fn serves_is_replayed_and_survives(server: &Server) {
    let _machine = machine();
    let Some(place) = place(server, server.packages.to_vec()) else {
        return;
    };
    let begun = Instant::now();
    let image = match place.image("built.img") {
        Ok(image) => image,
        Err(why) => return skipped::skip_this(&why),
    };
    let built = seconds(begun);
    let (serves, entries, replay) = recorded(&place, &image);
    let stall = failed_over(&place);
    eprintln!(
        "| {} | {} | {built:.0} | {serves:.1} | {entries} | {replay:.1} | {stall} |",
        server.name,
        server.packages.join(", ")
    );
}

/// The place of a server's test; none if the test is skipped.
fn place<'a>(server: &'a Server, packages: Vec<&'static str>) -> Option<Place<'a>> {
    let folder = tempfile::tempdir().expect("a folder");
    let append = match server.append.map(|append| append(folder.path())) {
        Some(Err(why)) => {
            skipped::skip_this(&why);
            return None;
        }
        Some(Ok(words)) => Some(words),
        None => None,
    };
    Some(Place {
        server,
        folder,
        packages,
        append,
    })
}

macro_rules! servers {
    ($($name:ident),*) => {
        $(
            #[test]
            #[ignore = "minutes of downloads and installation: docs/SERVERS.md"]
            fn $name() {
                serves_is_replayed_and_survives(&known::$name());
            }
        )*
    };
}

servers!(
    postgresql,
    mariadb,
    rabbitmq,
    haproxy,
    bind9,
    openssh_server,
    prometheus,
    zookeeper,
    node,
    etcd
);
