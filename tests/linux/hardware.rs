//! The machine as a PC's programs and kernels find it: a bus that answers where nothing is, a clock that
//! interrupts, a network card whose address can be changed, and a processor that can be halted. Each is recorded and
//! replayed exactly.

use super::common::{assert_last_line, cluster, core, machine, tandem, text};
use super::failover::pair;
use super::recorded::{Log, Ran, free_port, record, replay_equals};
use super::{LIMIT, images, number};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;

/// Debian's kernels, in the order in which they are asked for. That for real time comes last: it may hang by itself (see
/// docs/OPERATIONS.md, "Linux guests").
const KERNELS: [&str; 3] = ["linux-image-amd64", images::CLOUD, "linux-image-rt-amd64"];

/// What a program prints that reads the Super-I/O port 0x2e, and an address where an HPET would be.
const NOTHING_THERE: [&str; 2] = ["port ff", "address 0xFFFFFFFF"];
/// Does so, and writes there, too.
const TOUCH: &str = "echo port $(dd if=/dev/port bs=1 skip=46 count=1 2>/dev/null | od -An -tx1); \
                     echo -n x | dd of=/dev/port bs=1 seek=46 count=1 2>/dev/null; \
                     echo address $(devmem 0xfed00000 32); devmem 0xfed00000 32 7";

/// Records `commands` in the guest `image`, and replays them; what was printed.
fn recorded(name: &str, image: &Path, commands: &str) -> Vec<String> {
    let log = Log::new(name);
    let append = format!("tandem.ip=none tandem.run=\"{commands}\"");
    let ran = Ran::of(record(image, &log, &["--append", &append]));
    assert_eq!(ran.report["exit_status"], 0, "{:?}", ran.console);
    replay_equals(&ran, &log);
    ran.console
}

/// The words behind `word` in the line that begins with it.
fn after<'a>(console: &'a [String], word: &str) -> &'a str {
    let found = console.iter().find_map(|line| line.strip_prefix(word));
    found
        .unwrap_or_else(|| panic!("no '{word}' in {console:?}"))
        .trim()
}

#[test]
fn every_kernel_of_debians_boots_and_programs_touch_what_is_not_there() {
    let _core = core();
    let kernels = number("TANDEM_LINUX_KERNELS", 1);
    for kernel in KERNELS.into_iter().take(kernels as usize) {
        let Some(image) = images::shell(kernel) else {
            return;
        };
        let console = recorded(kernel, &image, TOUCH);
        for expected in NOTHING_THERE {
            let found = console.iter().any(|line| line == expected);
            assert!(found, "{expected}, {kernel}: {console:?}");
        }
    }
}

/// Reads the clock as `hwclock` does: it waits for the second's end, by an interrupt and by looking again and
/// again. Sets an alarm and waits for it. Then the time of a guest that lost it is put right by the clock.
const CLOCK: &str = "echo shown $(/usr/sbin/hwclock --show --verbose 2>&1 | grep -c tick); \
                     echo asked $(/usr/sbin/hwclock --show --directisa 2>&1 | grep -c 00:00); \
                     /usr/sbin/rtcwake -m on -s 2 > /dev/null && echo woken $(date +%s); \
                     echo interrupts $(grep rtc0 /proc/interrupts); \
                     date -s 2020-01-01; echo lost $(date +%s); \
                     /usr/sbin/hwclock --hctosys; echo found $(date +%s)";

#[test]
fn programs_wait_for_the_clock_and_set_theirs_by_it() {
    let _core = core();
    let Some(image) = images::tools() else { return };
    let before = vmm::hostclock::wall_ns() / 1_000_000_000;
    let console = recorded("clock", &image, CLOCK);
    // "Waiting for clock tick..." and "...got clock tick".
    assert_eq!(after(&console, "shown"), "2", "{console:?}");
    assert_eq!(after(&console, "asked"), "1", "{console:?}");
    let interrupts = after(&console, "interrupts");
    let count = interrupts.split_whitespace().nth(1).unwrap_or_default();
    assert!(
        count.parse().is_ok_and(|count: u32| count >= 2),
        "{interrupts}"
    );
    let seconds = |word| after(&console, word).parse::<u64>().expect("seconds");
    assert!(seconds("lost") < before, "{console:?}");
    let (woken, found) = (seconds("woken"), seconds("found"));
    assert!(woken >= before && found >= woken, "{console:?}");
    let now = vmm::hostclock::wall_ns() / 1_000_000_000;
    assert!(found <= now, "{console:?}");
}

/// Gives the network card another address, and one more, and echoes what one client says.
const MOVED: &str = "ip link set eth0 down; ip link set eth0 address 52:54:00:7a:4d:99; ip link set eth0 up; \
                     bridge fdb add 52:54:00:7a:4d:98 dev eth0; echo address $(cat /sys/class/net/eth0/address); \
                     /usr/lib/tandem/busybox nc -l -p 6379 -e cat & \
                     until cat /proc/net/tcp /proc/net/tcp6 | grep -q :18EB; do sleep 0.05; done; \
                     echo serving-$((40 + 2)); wait";
/// What it prints then; the image prints the command before that.
const SERVING: &str = "serving-42";

/// Says `word` to who echoes it.
fn echoed(stream: &TcpStream, word: &str) {
    let mut stream = stream;
    stream
        .write_all(format!("{word}\n").as_bytes())
        .expect("it takes words");
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .expect("it answers");
    assert_eq!(line.trim_end(), word);
}

fn connected(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("it listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    stream
}

#[test]
fn a_network_card_with_another_address_is_found_by_it() {
    let _core = core();
    let Some(image) = images::tools() else { return };
    let log = Log::new("address");
    let port = free_port();
    let append = format!("tandem.run=\"{MOVED}\"");
    let forward = format!("{port}:6379");
    let recorder = record(&image, &log, &["--append", &append, "--forward", &forward]);
    recorder
        .wait_line(LIMIT, |line| line.contains(SERVING))
        .expect("it serves");
    let stream = connected((Ipv4Addr::LOCALHOST, port).into());
    echoed(&stream, "hello");
    drop(stream);
    let ran = Ran::of(recorder);
    assert_eq!(after(&ran.console, "address"), "52:54:00:7a:4d:99");
    replay_equals(&ran, &log);
}

/// The backup has the address from its own guest: nothing but the log told it.
#[test]
fn a_survivor_is_found_by_the_address_its_guest_took() {
    let _machine = machine();
    let Some(image) = images::tools() else { return };
    let cluster = cluster("file");
    let append = format!("tandem.run=\"{MOVED}\"");
    let mut pair = pair(&cluster, "moved", &image, &["--append", &append]);
    pair.wait_ready_within(SERVING, LIMIT).expect("it serves");
    let stream = connected(cluster.server());
    echoed(&stream, "before");
    pair.primary.kill();
    pair.primary.wait(LIMIT).expect("it is gone");
    assert!(pair.primary.was_killed(), "it ended by itself before");
    echoed(&stream, "after");
    drop(stream);
    let status = pair.backup.wait(LIMIT).expect("it ends");
    assert!(status.success(), "{status}{}", pair.backup.complaint());
}

#[test]
fn a_guest_that_halts_for_good_is_told_as_halted() {
    let _core = core();
    let Some(image) = images::tools() else { return };
    let log = Log::new("halted");
    let append = "tandem.ip=none tandem.run=\"halt -f\"";
    let output = tandem(&["record", text(&image), "-o", text(&log), "--append", append]);
    assert_last_line(
        &output,
        0,
        &["tandem: the guest halted its processor for good"],
    );
    let replayed = tandem(&["replay", text(&log)]);
    assert!(replayed.status.success(), "{replayed:?}");
}
