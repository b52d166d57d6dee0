//! Containers' images as guests: what their entry points say runs, as a container would have it.

use super::common::{core, skipped, tandem, text};
use super::oci::{Layout, layer};
use super::recorded::{Log, Ran, free_port, record, replay_equals};
use super::{LIMIT, images};
use bundle::Bundle;
use bundle::cpio::Reader;
use kit::daemon::Daemon;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tar::EntryType;

/// What the container runs: who it is, where, with what, and what the layers left.
const SAYS: &str = "echo user $(id -u):$(id -g); echo folder $(pwd); echo \"word $WORD\"; echo home $HOME; \
                    echo files $(ls); echo same $(cat hard); echo arguments $0 \"$1\"; echo variables $(env | wc -l)";

/// An image of three layers, on busybox.
fn container(folder: &Path, busybox: &[u8], zstd: bool) -> Layout {
    use EntryType::{Directory as D, Link as H, Regular as F, Symlink as L};
    let users = b"root:x:0:0::/root:/bin/sh\napp:x:101:102::/srv/app:/bin/sh\n";
    let first = layer(&[
        ("bin/", D, 0o755, 0, b""),
        ("bin/busybox", F, 0o755, 0, busybox),
        ("bin/sh", L, 0o777, 0, b"busybox"),
        ("usr/bin/id", L, 0o777, 0, b"/bin/busybox"),
        ("usr/bin/env", L, 0o777, 0, b"../../bin/busybox"),
        ("usr/bin/wc", H, 0o755, 0, b"bin/busybox"),
        ("etc/passwd", F, 0o644, 0, users),
        ("etc/group", F, 0o644, 0, b"root:x:0:\napp:x:102:\n"),
        ("srv/app/old", F, 0o644, 101, b"old"),
        ("srv/app/shared", F, 0o644, 101, b"by two names\n"),
        ("app", L, 0o777, 0, b"srv/app"),
    ]);
    let second = layer(&[
        ("srv/app/.wh.old", F, 0o644, 0, b""),
        ("app/hard", H, 0o644, 101, b"srv/app/shared"),
        ("usr/bin/ls", L, 0o777, 0, b"/bin/busybox"),
    ]);
    let third = layer(&[
        ("usr/bin/cat", L, 0o777, 0, b"/bin/busybox"),
        ("usr/bin/pwd", L, 0o777, 0, b"/bin/busybox"),
    ]);
    let layout = Layout::new(folder, zstd);
    layout.write(
        &json!({
            "Env": ["PATH=/usr/bin:/bin", "WORD=two  words 'and' $more"],
            "Entrypoint": ["sh", "-c", SAYS],
            "Cmd": ["it", "one  argument"],
            "User": "app",
            "WorkingDir": "/app",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        }),
        &[first, second, third],
    );
    layout
}

/// busybox's program, out of an image.
fn busybox() -> Option<Vec<u8>> {
    let bytes = std::fs::read(images::plain()?).expect("the image");
    let bundle = Bundle::parse(&bytes).expect("an image");
    let mut members = Reader::new(bundle.initrd).map(Result::unwrap);
    let found = members.find(|member| member.name == "usr/lib/tandem/busybox");
    Some(found.expect("busybox").data.to_vec())
}

#[test]
fn a_containers_image_runs_as_it_says() {
    let _core = core();
    let Some(busybox) = busybox() else { return };
    let place = tempfile::tempdir().expect("a folder");
    let layout = container(&place.path().join("oci"), &busybox, true);
    let from = format!("{}:one", layout.folder.display());
    let args = ["--in-memory", "--from-oci", &from];
    let Some(image) = images::image_of("container", &args) else {
        return;
    };
    assert_eq!(run(&image), SAID);
    let bytes = std::fs::read(&image).expect("the image");
    let manifest = Bundle::parse(&bytes).expect("an image").manifest;
    assert_eq!(manifest.ports, ["53/udp", "80/tcp"]);
}

/// What a web server at `at` has, once it answers.
fn page(at: SocketAddr, guest: &Daemon) -> String {
    let get = || {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        match get() {
            Ok(answer) if !answer.is_empty() => return answer,
            other => {
                let late = Instant::now() > deadline;
                assert!(!late && !guest.has_ended(), "no server: {other:?}");
            }
        }
        // A refused connection is answered at once; another try is all there is to wait on.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Each TCP port a container's image exposes is there on this host without a word: the same one, or another if that is
/// taken, which is told.
#[test]
fn a_containers_ports_are_forwarded() {
    let _core = core();
    let Some(busybox) = busybox() else { return };
    let place = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = (taken.local_addr().expect("its address").port(), taken);
    let free = free_port();
    let files = layer(&[
        ("bin/busybox", EntryType::Regular, 0o755, 0, &busybox),
        ("srv/index.html", EntryType::Regular, 0o644, 0, b"served"),
    ]);
    let serve = |more: &str, port| format!("/bin/busybox httpd {more} -p {port} -h /srv");
    let run = format!("{}; exec {}", serve("", taken.0), serve("-f", free));
    let layout = Layout::new(&place.path().join("oci"), true);
    layout.write(
        &json!({
            "Entrypoint": ["/bin/busybox", "sh", "-c", run],
            "ExposedPorts": {format!("{free}"): {}, format!("{}/tcp", taken.0): {}, "53/udp": {}},
        }),
        &[files],
    );
    let args = ["--in-memory", "--from-oci", text(&layout.folder)];
    let Some(image) = images::image_of("exposed", &args) else {
        return;
    };
    let log = Log::new("exposed");
    let recorder = record(&image, &log, &[]);
    let same = SocketAddr::from((Ipv4Addr::LOCALHOST, free));
    let answer = page(same, &recorder);
    assert!(answer.ends_with("served"), "{answer}");
    // What is told: tandem: 127.0.0.1:PORT leads to the guest's port PORT (why)
    let told = std::fs::read_to_string(log.with_extension("recorder.err")).expect("it is kept");
    let leads = |port| {
        let mut lines = told.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let wanted = format!("{port}");
        let line = lines.find(|words| words.get(7) == Some(&&*wanted));
        let line = line.unwrap_or_else(|| panic!("no {port}: {told}"));
        (line[1].parse().expect(&told), line.get(8).is_some())
    };
    assert_eq!(leads(free), (same, false), "{told}");
    let (other, but): (SocketAddr, bool) = leads(taken.0);
    assert!(but && other.port() != taken.0, "{told}");
    assert!(page(other, &recorder).ends_with("served"));
    recorder.ask_to_end();
    let recorded = Ran::of(recorder);
    replay_equals(&recorded, &log);
}

/// What it prints.
const SAID: [&str; 8] = [
    "user 101:102",
    // A link, as the kernel tells where a process is.
    "folder /srv/app",
    "word two  words 'and' $more",
    "home /srv/app",
    "files hard shared",
    "same by two names",
    "arguments it one  argument",
    // PATH, WORD, HOME, HOSTNAME, TERM; the shell's own PWD, SHLVL and OLDPWD, of which busybox's exports two.
    "variables 7",
];

/// Runs it, recorded and replayed; what the container printed.
fn run(image: &Path) -> Vec<String> {
    let log = Log::new("container");
    let ran = Ran::of(record(image, &log, &["--append", "tandem.ip=none"]));
    assert_eq!(ran.report["exit_status"], 0, "{:?}", ran.console);
    replay_equals(&ran, &log);
    let mut lines = ran.console.into_iter();
    lines
        .by_ref()
        .find(|line| line.starts_with("tandem: runs sh -c"))
        .expect("the command is told");
    lines
        .take_while(|line| !line.starts_with("tandem: ended with status 0"))
        .collect()
}

/// The same image as skopeo makes it: archives of both kinds.
#[test]
#[ignore = "it takes skopeo: docs/TESTING.md"]
fn a_containers_image_is_read_as_skopeo_writes_it() {
    let _core = core();
    if skipped::skip_without(&["skopeo"]) {
        return;
    }
    let Some(busybox) = busybox() else { return };
    let place = tempfile::tempdir().expect("a folder");
    let layout = container(&place.path().join("oci"), &busybox, false);
    for kind in ["oci", "oci-archive", "docker-archive"] {
        let out = place.path().join(kind.replace("oci", "o"));
        let name = match kind {
            "docker-archive" => "example/one:latest",
            _ => "one",
        };
        let to = format!("{kind}:{}:{name}", out.display());
        let from = format!("oci:{}:one", layout.folder.display());
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", &from, &to])
            .output()
            .expect("it runs");
        assert!(copied.status.success(), "{copied:?}");
        let image = place.path().join(format!("{kind}.img"));
        let made = tandem(&["image", "-o", text(&image), "--from-oci", text(&out)]);
        assert!(made.status.success(), "{made:?}");
        assert_eq!(run(&image), SAID, "{kind}");
    }
}
