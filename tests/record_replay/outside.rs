//! Recordings and failovers as files other tools read, and machines that go on from a recording.

use super::common::{
    assert_one_line, machine, os, perfetto, switch_cluster, tandem, tandem_json, text,
};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testing::skipped::skip_this;

/// Longest time anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Records `guest` on the software engine, where its time is derived.
fn record(log: &Path, guest: &[&str]) -> serde_json::Value {
    let args = ["record", "-o", text(log), "--json", "--quiet"];
    let machine = ["--engine", "soft", "--tsc", "derived"];
    tandem_json(&[&args[..], &machine, guest].concat())
}

fn said(args: &[&str]) -> String {
    let output = tandem(args);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {words}");
    String::from_utf8(output.stdout).expect("words")
}

#[test]
fn a_logs_entries_are_a_trace_for_perfetto() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [log, trace, again, cut] =
        ["log", "trace", "again", "cut"].map(|name| folder.path().join(name));
    record(&log, &["clock", "--arg", "ticks=5"]);
    let counted = tandem_json(&["log", text(&log), "--json"]);
    said(&["log", text(&log), "--perfetto", text(&trace)]);
    let bytes = std::fs::read(&trace).unwrap();
    let tracks = perfetto::read(&bytes);
    for (kind, share) in counted["kinds"].as_object().unwrap() {
        let track = tracks.iter().find(|track| track.name == *kind);
        let events = track.map_or(0, |track| track.events.len());
        assert_eq!(share["count"], events, "{kind}");
    }
    assert_eq!(perfetto::count(&tracks, "end"), 1);

    // Nobody reads the list beside it to its end; and the pipe has no room for all of it.
    let mut listing = Command::new(super::common::PROGRAM)
        .args(["log", text(&log), "--entries", "--perfetto", text(&again)])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(listing.stdout.take());
    assert!(listing.wait().unwrap().success());
    assert!(std::fs::read(&again).unwrap() == bytes, "it is cut");

    let full = tandem(&["log", text(&log), "--perfetto", "/dev/full"]);
    assert_one_line(&full, 1, &["cannot write /dev/full", "No space left"]);
    let over = tandem(&["log", text(&log), "--perfetto", text(&log)]);
    assert_one_line(&over, 2, &["would overwrite"]);

    // Of a log that is cut there is what is whole.
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let output = tandem(&["log", text(&cut), "--perfetto", text(&again)]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.contains("cut"), "{words}");
    let tracks = perfetto::read(&std::fs::read(&again).unwrap());
    assert_eq!(perfetto::count(&tracks, "end"), 0);
    assert!(tracks.iter().any(|track| !track.events.is_empty()));
}

#[test]
fn a_machine_goes_on_from_a_point_of_its_recording() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [log, state, next, disk, copy] =
        ["log", "state", "next", "disk", "copy"].map(|name| folder.path().join(name));
    for path in [&disk, &copy] {
        std::fs::write(path, vec![0; 1 << 20]).unwrap();
    }
    record(&log, &["disk", "--disk", text(&disk), "--arg", "rounds=40"]);
    let recorded = std::fs::read(&log).unwrap();
    let save = |more: &[&str]| {
        let args = [
            "replay",
            text(&log),
            "--engine=soft",
            "--to=entry:900",
            "--save",
        ];
        tandem(&[&args[..], &[text(&state), "--json"], more].concat())
    };
    assert_one_line(&save(&[]), 2, &["has a disk", "--disk"]);
    let saved = save(&["--disk", text(&copy)]);
    let saved: serde_json::Value = serde_json::from_slice(&saved.stdout).unwrap();
    assert!(saved["base"]["index"].as_u64() >= Some(900), "{saved}");
    let written = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.iter().filter(|byte| **byte != 0).count()
    };
    assert!(written(&copy) > 0 && written(&copy) < written(&disk));

    // It is another machine's beginning, and no recording.
    let nothing = tandem(&["replay", text(&state)]);
    assert_one_line(&nothing, 2, &["nothing behind it to replay"]);
    for asked in ["--memory=128", "--cpu=v1", "--append=x", "--tsc=logged"] {
        let refused = tandem(&["run", text(&state), "--disk", text(&copy), asked]);
        let option = asked.split('=').next().unwrap();
        assert_one_line(&refused, 2, &[option, "stays as it was made"]);
    }
    assert_one_line(&tandem(&["run", text(&state)]), 2, &["--disk"]);
    assert_one_line(&tandem(&["run", text(&log)]), 2, &["begins with a boot"]);

    let args = ["record", text(&state), "--disk", text(&copy), "--json"];
    for itself in [&state, &copy] {
        let over = tandem(&[&args[..], &["-o", text(itself)]].concat());
        assert_one_line(&over, 2, &["would overwrite"]);
    }
    let went_on = tandem(&[&args[..], &["-o", text(&next)]].concat());
    let words = String::from_utf8_lossy(&went_on.stderr);
    assert!(went_on.status.success(), "{words}");
    assert!(words.contains("no longer the recording"), "{words}");
    let console = String::from_utf8_lossy(&went_on.stdout);
    assert!(console.contains("disk: rounds=40 "), "{console}");
    // It is recorded from the state on, before the guest does anything.
    let report = console.lines().last().expect("a report");
    let report: serde_json::Value = serde_json::from_str(report).expect("JSON");
    assert_eq!(report["base"], saved["base"]);
    // What a round writes does not depend on when: the guest wrote all that was still to be written.
    assert!(std::fs::read(&disk).unwrap() == std::fs::read(&copy).unwrap());
    assert!(std::fs::read(&log).unwrap() == recorded);
    let replayed = tandem_json(&["replay", text(&next), "--json"]);
    assert_eq!(replayed["base"]["origin"], "state", "{replayed}");
    assert!(replayed["divergence"].is_null() && replayed["exit_status"] == 0);
    goes_on_in_time(
        &log,
        &next,
        saved["base"]["index"].as_u64().unwrap(),
        folder.path(),
    );

    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    let cut = tandem(&["run", text(&state), "--disk", text(&copy)]);
    assert_one_line(&cut, 1, &["cut short"]);
}

/// The guest's time where `next` begins, behind entry `index` of `log`, is not before it was in that.
fn goes_on_in_time(log: &Path, next: &Path, index: u64, folder: &Path) {
    let times = |log: &Path| {
        let trace = folder.join("times");
        said(&["log", text(log), "--perfetto", text(&trace)]);
        let tracks = perfetto::read(&std::fs::read(&trace).unwrap());
        let events = tracks.iter().flat_map(|track| &track.events);
        let mut times: Vec<u64> = events.map(|(at, _)| *at).collect();
        times.sort_unstable();
        times
    };
    let listed = tandem_json(&["log", text(next), "--json"]);
    let before = times(log)[index as usize - 1];
    let clock = listed["base"]["clock"].as_u64().unwrap();
    assert!(before > clock, "time passed while the guest waited");
    assert!(times(next)[0] >= before);
}

/// Each file that is made of a log, on a disk without room: it is told in one line.
#[test]
fn a_full_disk_is_one_line_whatever_is_written() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    record(&log, &["clock", "--arg", "ticks=5"]);
    for outputs in [
        &["replay", "--engine=soft", "--pcap"][..],
        &["replay", "--engine=soft", "--cast"],
        &["replay", "--engine=soft", "--at", "end", "--core"],
        &["replay", "--engine=soft", "--to", "5", "--save"],
        &["trace", "--every", "100", "--folded"],
        &["trace", "--every", "100", "--pprof"],
        &["trace", "--perfetto"],
        &["log", "--perfetto"],
    ] {
        let args = [&[outputs[0], text(&log)][..], &outputs[1..], &["/dev/full"]].concat();
        assert_one_line(&tandem(&args), 1, &["/dev/full", "No space left on device"]);
    }
}

/// A failover of a real pair, as a page and as a trace; and the page the demo leaves.
#[test]
fn a_failover_is_a_page_and_a_trace() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let [html, trace] = ["failover.html", "trace"].map(|name| folder.path().join(name));
    let cluster = switch_cluster("file");
    let mut pair = super::common::pair(&cluster, "page", &["kv"]);
    pair.wait_ready("ready").unwrap();
    let deadline = Instant::now() + LIMIT;
    while pair.metrics().is_empty() {
        let waits = !pair.primary.has_ended() && Instant::now() < deadline;
        assert!(waits, "no counters: {}", pair.primary.complaint());
        std::thread::sleep(Duration::from_millis(10));
    }
    pair.primary.kill();
    pair.wait_event("backup", "live").unwrap();
    pair.backup.ask_to_end();
    pair.backup.wait(LIMIT).unwrap();
    let [primary, backup] = pair.events_files().clone();
    let noted = pair.events().len();
    let files = ["timeline", text(&primary), text(&backup)];
    let words = said(&[&files[..], &["-o", text(&html), "--perfetto", text(&trace)]].concat());
    assert!(words.contains(&format!("{noted} events in")), "{words}");
    let page = std::fs::read_to_string(&html).unwrap();
    well_formed(&page);
    assert!(page.contains("won the flag of view 1"), "{page}");
    let tracks = perfetto::read(&std::fs::read(&trace).unwrap());
    let names = tracks.iter().filter(|track| !track.events.is_empty());
    assert!(names.map(|track| &*track.name).eq(["primary", "backup"]));
    assert_eq!(perfetto::count(&tracks, "flag_won"), 1);
    let all = tracks.iter().map(|track| track.events.len()).sum::<usize>();
    assert_eq!(all, noted);
    with_counters(&pair, &files, &trace);

    let before = std::fs::read(&backup).unwrap();
    let over = tandem(&[&files[..], &["-o", text(&backup)]].concat());
    assert_one_line(&over, 2, &["would overwrite"]);
    assert!(std::fs::read(&backup).unwrap() == before);
    let full = tandem(&[&files[..], &["-o", "/dev/full"]].concat());
    assert_one_line(&full, 1, &["cannot write /dev/full"]);
    let none = tandem(&["timeline", text(&html), "-o", text(&trace)]);
    assert_one_line(&none, 1, &["no events of a replica"]);
}

/// The primary's counters are in the trace of `files`, each reading as it was noted.
fn with_counters(pair: &kit::cluster::Pair, files: &[&str], trace: &Path) {
    let noted = pair.metrics();
    let metrics = pair.events_files()[0].with_extension("metrics");
    let more = ["--metrics", text(&metrics), "--perfetto", text(trace)];
    let words = said(&[files, &more].concat());
    let told = format!("{} readings of counters", noted.len());
    assert!(words.contains(&told), "{words}");
    let tracks = perfetto::read(&std::fs::read(trace).unwrap());
    let expected = |read: fn(&serde_json::Value) -> Option<u64>| -> Vec<(u64, u64)> {
        let noted = noted.iter();
        let reading = noted.filter_map(|line| {
            let counters = serde_json::from_str(&line.detail).expect("JSON");
            Some((line.at_ns, read(&counters)?))
        });
        reading.collect()
    };
    let gate = "entries that wait in the gate";
    for (name, expected) in [
        (
            "entries that wait for an ack",
            expected(|c| behind(c, "acked")),
        ),
        (gate, expected(|c| behind(c, "released"))),
        ("execution lag", expected(|c| c["lag"]["us"].as_u64())),
        (
            "the guest was held back",
            expected(|c| c["braked_us"].as_u64()),
        ),
    ] {
        let track = tracks.iter().find(|track| track.name == name);
        assert_eq!(track.expect(name).readings, expected, "{name}");
        assert!(name != gate || !expected.is_empty());
    }
}

/// By how many entries `cursor` is behind what was appended.
fn behind(counters: &serde_json::Value, cursor: &str) -> Option<u64> {
    let cursors = &counters["cursors"];
    cursors["appended"]
        .as_u64()?
        .checked_sub(cursors[cursor].as_u64()?)
}

/// That `page` is HTML whose elements nest and whose text is escaped, which takes nothing from elsewhere.
fn well_formed(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>"));
    for elsewhere in ["http", "<script", "url(", "src=", "@import", "<link"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    let mut open = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some((words, behind)) = rest.split_once('<') {
        if open.last() != Some(&"style") {
            for entity in words.split('&').skip(1) {
                let known = ["amp;", "lt;", "gt;", "quot;"];
                assert!(known.iter().any(|one| entity.starts_with(one)), "{entity}");
            }
        }
        let (tag, next) = behind.split_once('>').expect("a tag ends");
        rest = next;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag.split(' ').next().unwrap();
        if !tag.ends_with('/') && name != "meta" {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(page.matches("<svg ").count(), 2);
}

/// What a browser makes of the page the demo leaves: both pictures have a size, and no text lies outside.
#[test]
#[ignore = "starts a browser and a demo"]
fn a_browser_shows_the_demos_page() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let mut args = os(&["demo", "--kills", "1", "--net", "switch", "--keep"]);
    args.push(keep.clone().into());
    let output = Command::new(super::common::PROGRAM).args(args).output();
    let output = output.unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    let page = std::fs::read_to_string(keep.join("timeline-0.html")).unwrap();
    well_formed(&page);
    let probe = "<script>const out=[...document.querySelectorAll('svg')].map(s=>{const b=s.getBoundingClientRect();\
        return b.width>300&&b.height>50&&[...s.querySelectorAll('text')].every(t=>{const r=t.getBoundingClientRect();\
        return r.left>=b.left-1&&r.right<=b.right+1&&r.bottom<=b.bottom+1})});document.title='shown '+out</script>";
    let probed = folder.path().join("probed.html");
    std::fs::write(&probed, page.replace("</body>", &format!("{probe}</body>"))).unwrap();
    let browser = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!(
            "--user-data-dir={}",
            folder.path().join("profile").display()
        ))
        .arg(&probed)
        .output();
    let browser = match browser {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return skip_this(&"chromium is missing");
        }
        browser => browser.unwrap(),
    };
    let shown = String::from_utf8_lossy(&browser.stdout);
    assert!(shown.contains("<title>shown true,true</title>"), "{shown}");
}
