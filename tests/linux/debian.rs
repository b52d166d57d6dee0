//! Guests that are Debian: what its packages' scripts do is done, the machine ends as any Debian does when it is told
//! to, and a root that is not whole never runs.

use super::common::{assert_last_line, assert_one_line, core, tandem, text};
use super::console::Typed;
use super::recorded::{Log, Ran, free_port, record, replay_equals};
use super::servers::{Http, Talk};
use super::{LIMIT, images};
use bundle::Bundle;
use bundle::cpio::{Reader, Writer};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testing::skipped::skip_without;

/// Records the guest `image`, which has to end with 0, and replays it; what was printed.
fn printed(name: &str, image: &Path, more: &[&str]) -> Vec<String> {
    let log = Log::new(name);
    let ran = Ran::of(record(image, &log, more));
    assert_eq!(ran.report["exit_status"], 0, "{:?}", ran.console);
    replay_equals(&ran, &log);
    ran.console
}

fn assert_said(console: &[String], expected: &str) {
    let said = console.iter().any(|line| line.contains(expected));
    assert!(said, "no '{expected}' in {console:?}");
}

/// A library that is opened by name, an alternative, tables of the C library, a user, the packages' own list, a
/// program's capabilities.
const INSTALLED: &str = "python3 -c 'import magic; print(magic.from_file(\"/bin/dash\"))'; \
                         awk -W version; printf '\\351\\n' | iconv -f ISO-8859-1 -t UTF-8; \
                         id _apt; dpkg-query -W -f '${Status} ${Package}\\n' python3-magic; \
                         python3 -c 'print(sum(range(10)))'; df /; \
                         getcap /usr/bin/ping";

#[test]
fn what_debians_installation_does_is_done_in_a_guest() {
    let _core = core();
    let Some(image) = images::all_on_disk("installed", INSTALLED) else {
        return;
    };
    let console = printed("magic", &image, &["--append", "tandem.ip=none"]);
    for expected in [
        "ELF 64-bit LSB pie executable, x86-64",
        "mawk 1.3",
        "é",
        "uid=42(_apt)",
        "install ok installed python3-magic",
        "45",
        "/dev/",
        "/usr/bin/ping cap_net_raw=ep",
    ] {
        assert_said(&console, expected);
    }
}

/// Packages that take minutes to install, in one guest each: name, packages, command, what it prints.
const LARGE: [(&str, &[&str], &str, &str); 6] = [
    (
        "numpy",
        &["python3-numpy"],
        "python3 -c 'import numpy; print(numpy.linalg.inv([[2.0]]))'",
        "[[0.5]]",
    ),
    (
        "java",
        &["default-jre-headless"],
        "java -version",
        "OpenJDK 64-Bit Server VM",
    ),
    (
        "gcc",
        &["gcc", "libc6-dev"],
        "printf '#include <stdio.h>\\nint main(void) { puts(\"compiled\"); }\\n' >x.c && gcc x.c && ./a.out",
        "compiled",
    ),
    (
        "postgresql",
        &["postgresql"],
        "pg_ctlcluster 15 main start && su postgres -c \"psql -Atc 'select 6 * 7'\"",
        "42",
    ),
    (
        "mariadb",
        &["mariadb-server"],
        "mariadbd-safe --user=mysql >/dev/null 2>&1 & until mariadb -e 'select 6 * 7' 2>/dev/null; \
         do sleep 0.2; done",
        "42",
    ),
    (
        "etcd",
        &["etcd-server", "etcd-client"],
        "etcd >/dev/null 2>&1 & until ETCDCTL_API=3 etcdctl put key word 2>/dev/null; do sleep 0.2; done",
        "OK",
    ),
];

#[test]
#[ignore = "minutes of downloads and installation: docs/TESTING.md"]
fn large_packages_run_in_the_memory_their_images_ask_for() {
    let _core = core();
    for (name, packages, command, expected) in LARGE {
        let args = [&["--run", command], packages].concat();
        let Some(image) = images::on_disk(name, &args) else {
            return;
        };
        let console = printed(name, &image, &["--append", "tandem.ip=none"]);
        assert_said(&console, expected);
    }
}

#[test]
fn poweroff_reboot_and_halt_do_what_they_say() {
    let _core = core();
    let Some(image) = images::plain() else { return };
    let run = |command: &str| {
        let append = format!("tandem.ip=none tandem.run=\"{command}; exec sleep 1000\"");
        tandem(&["run", text(&image), "--append", &append])
    };
    let output = run("poweroff");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let console = String::from_utf8_lossy(&output.stdout);
    assert!(console.contains("reboot: Power down"), "{console}");
    assert_last_line(&run("reboot"), 1, &["reset (status 3321)"]);
    assert_last_line(
        &run("halt"),
        0,
        &["the guest halted its processor for good"],
    );
}

#[test]
fn a_quoted_command_is_run_as_it_is_quoted_or_refused() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let append =
        r#"tandem.ip=none tandem.run="sh -c \"echo a   b; printf '%s\n' 'back\\\\slash'\"""#;
    let console = printed("quoted", &image, &["--append", append]);
    assert_said(&console, "a   b");
    assert_said(&console, r"back\slash");
    let cut = r#"tandem.run="sh -c "echo a b"""#;
    let refused = tandem(&["run", text(&image), "--append", cut]);
    assert_one_line(
        &refused,
        2,
        &["tandem.run", "a quote within it is written \\\""],
    );
}

#[test]
fn a_root_that_is_not_whole_never_runs() {
    let _core = core();
    let Some(image) = images::redis() else { return };
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(&image).unwrap();
    let mut bundle = Bundle::parse(&bytes).unwrap();
    // What the kernel leaves where memory is full: all but the last files.
    let mut cut = Writer::default();
    for member in Reader::new(bundle.initrd).map(Result::unwrap) {
        if !member.name.starts_with("var/lib") && member.name != "tandem-end" {
            cut.add(member.name, member.meta, member.data).unwrap();
        }
    }
    let cut = cut.finish();
    bundle.initrd = &cut;
    bundle.manifest.initrd_sha256 = bundle::sha256(&cut);
    let path = folder.path().join("cut.img");
    std::fs::write(&path, bundle.write().unwrap()).unwrap();
    let output = tandem(&["run", text(&path)]);
    let why = "tandem: cannot go on: the first root is not whole";
    assert_last_line(&output, 1, &["reset (status 3321)", why]);
    let console = String::from_utf8_lossy(&output.stdout);
    assert!(!console.contains("tandem: runs"), "{console}");
}

#[test]
fn a_disk_that_is_not_there_not_whole_or_anothers_is_refused() {
    let _core = core();
    let args = ["--disk", "", "--run", "true"];
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (
        folder.path().join("one.ext4"),
        folder.path().join("other.ext4"),
    );
    let mut images = Vec::new();
    for (disk, command) in [(&one, "true"), (&other, "false")] {
        let mut args = args;
        (args[1], args[3]) = (text(disk), command);
        let name = disk.file_stem().unwrap().to_str().unwrap();
        let Some(image) = images::image_of(name, &args) else {
            return;
        };
        images.push(image);
    }
    let run = |disk: &Path| tandem(&["run", text(&images[0]), "--disk", text(disk)]);
    assert_eq!(run(&one).status.code(), Some(0));
    let why = "tandem: cannot go on: the disk is another image's";
    assert_last_line(&run(&other), 1, &["reset (status 3321)", why]);
    let whole = std::fs::metadata(&one).unwrap().len();
    let file = std::fs::File::options().write(true).open(&one).unwrap();
    file.set_len(whole - (1 << 20)).unwrap();
    assert_one_line(&run(&one), 1, &["is not whole", &whole.to_string()]);
    let beside = tandem(&["run", text(&images[0])]);
    assert_one_line(&beside, 1, &["not beside it", "--disk names it"]);
}

/// What the guest is told over ssh: its units are up, cron runs what its table says, once each minute, and the journal
/// has what both of them logged.
const OVER_SSH: &str = "systemctl is-active ssh cron nginx systemd-journald; \
                        until [ -e /run/ran ]; do sleep 0.5; done; cat /run/ran; \
                        journalctl -b -o cat -t CRON -t sshd | grep -c -e 'touch-the-file' -e 'Accepted publickey'; \
                        systemctl --failed --no-legend | wc -l; systemctl poweroff";

/// systemd as process 1, and units as they are shipped: nginx serves, sshd lets in who has a key, cron has its minute, and
/// journald knows of it.
#[test]
#[ignore = "an installation of its own, and a minute of cron's: docs/TESTING.md"]
fn systemd_runs_units_as_they_are_shipped() {
    let _core = core();
    if skip_without(&["ssh", "ssh-keygen"]) {
        return;
    }
    let packages = ["--systemd", "nginx", "openssh-server", "cron"];
    let Some(image) = images::on_disk("systemd", &packages) else {
        return;
    };
    let place = tempfile::tempdir().expect("a folder");
    let key = place.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(&key)
        .output()
        .expect("it runs");
    assert!(made.status.success(), "{made:?}");
    let public = std::fs::read_to_string(key.with_extension("pub")).expect("the key");
    let log = Log::new("systemd");
    let (web, ssh) = (free_port(), free_port());
    let forwards = [format!("{web}:80"), format!("{ssh}:22")];
    let [web_to, ssh_to] = forwards.each_ref();
    let more = ["--forward", web_to, "--forward", ssh_to];
    let mut typed = Typed::start(&image, &log, "", &more);
    // The last of what the console prints before its prompt, which is no line.
    typed.hears("ABSOLUTELY NO WARRANTY", 0);
    typed.keys(&format!(
        "mkdir -p -m 700 .ssh; echo '{}' >.ssh/authorized_keys; \
         echo '* * * * * root echo ran-as-$(id -un) >/run/ran # touch-the-file' >/etc/cron.d/test; echo ready-$((40 + 2))\n",
        public.trim()
    ));
    typed.hears("ready-42", 0);
    let mut talk = wait_open((Ipv4Addr::LOCALHOST, web).into(), &typed);
    talk.ask().expect("nginx answers");
    drop(talk);
    let said = Command::new("ssh")
        .args(["-i", text(&key), "-p", &ssh.to_string()])
        .args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "ConnectTimeout=300",
        ])
        .args(["root@127.0.0.1", OVER_SSH])
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&said.stdout);
    let lines: Vec<_> = words.lines().collect();
    let active = ["active"; 4];
    assert!(lines.starts_with(&active), "{said:?}");
    let [ran, logged, failed] = lines[4..] else {
        panic!("{said:?}");
    };
    assert_eq!((ran, failed), ("ran-as-root", "0"), "{said:?}");
    assert!(
        logged.parse().is_ok_and(|lines: u32| lines >= 2),
        "{said:?}"
    );
    let recorded = Ran::of(typed.recorder);
    assert_eq!(recorded.report["exit_status"], 0);
    replay_equals(&recorded, &log);
}

/// Waits until nginx answers.
fn wait_open(server: SocketAddr, typed: &Typed) -> Http {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        match Http::open(server, 1) {
            Ok(talk) => return talk,
            Err(e) => {
                let late = std::time::Instant::now() > deadline;
                assert!(!late && !typed.recorder.has_ended(), "no server: {e}");
            }
        }
        // A refused connection is answered at once; another try is all there is to wait on.
        std::thread::sleep(Duration::from_millis(20));
    }
}
