//! What replicas, arbiter and viewservice tell Prometheus, before a failover and after it.

use super::{Replica, Site, die};
use crate::common::{LIMIT, machine, os};
use kit::daemon::Daemon;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const LISTEN: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];

/// A page, with its status line and headers.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said
}

/// Waits until a page of metrics has all these lines; that page.
#[track_caller]
fn until(address: &str, lines: &[&str]) -> String {
    let begun = Instant::now();
    loop {
        let page = get(address, "/metrics");
        if lines
            .iter()
            .all(|line| page.lines().any(|said| said == *line))
        {
            return page;
        }
        assert!(begun.elapsed() < LIMIT, "{lines:?} are not all in {page}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The value of the one sample that begins like this.
#[track_caller]
fn value(page: &str, sample: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(sample));
    let line = line.unwrap_or_else(|| panic!("no {sample} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn address(daemon: &Daemon) -> String {
    let begins = "metrics at ";
    let line = daemon
        .wait_line(LIMIT, |line| line.starts_with(begins))
        .unwrap();
    line.trim_start_matches(begins).to_owned()
}

/// A pair and its services, each of which can be asked for metrics.
struct Watched {
    site: Site,
    primary: Replica,
    backup: Replica,
    viewservice: Daemon,
    /// Of the primary, the backup, the arbiter, the viewservice.
    addresses: [String; 4],
}

impl Watched {
    fn start() -> Self {
        let site = Site::with_server();
        let args = os(&["viewservice", "--listen", "127.0.0.1:0", "--store"]);
        let args = [args, vec![site.path("views").into()]].concat();
        let viewservice = Daemon::start("viewservice", &args, site.path("views.err")).unwrap();
        let begins = "listening on ";
        let line = viewservice
            .wait_line(LIMIT, |line| line.starts_with(begins))
            .unwrap();
        let views = line.trim_start_matches(begins).to_owned();
        let named = |name| [&LISTEN[..], &["--viewservice", &views, "--name", name]].concat();
        let (backup, at) = site.backup(&named("b"));
        let words = [
            "primary",
            "counter",
            "--arg",
            "ticks=100000000",
            "--backup",
            &at,
        ];
        let primary = site.start(&words, &[&named("a")[..], &["--backup-name", "b"]].concat());
        primary.wait_event("primary");
        let addresses = [
            address(&primary.daemon),
            address(&backup.daemon),
            site.server.as_ref().unwrap().1.clone(),
            views,
        ];
        Self {
            site,
            primary,
            backup,
            viewservice,
            addresses,
        }
    }
}

#[test]
fn a_pair_tells_its_numbers_before_and_after_a_failover() {
    let _machine = machine();
    let mut watched = Watched::start();
    let [primary, backup, arbiter, views] = watched.addresses.each_ref().map(String::as_str);
    until(
        primary,
        &[
            "tandem_replica_role{vm=\"by-hand\",role=\"primary\"} 1",
            "tandem_replica_role{vm=\"by-hand\",role=\"solo\"} 0",
            "tandem_replica_view{vm=\"by-hand\"} 1",
            "tandem_replica_failovers_total{vm=\"by-hand\"} 0",
            "tandem_replica_tethered{vm=\"by-hand\"} 1",
            "tandem_replica_speed_ratio{vm=\"by-hand\"} 1",
        ],
    );
    // The first counters may be from before anything was acked, or any timer ticked.
    let acked = "tandem_replica_log_index{vm=\"by-hand\",cursor=\"acked\"}";
    let begun = Instant::now();
    let page = loop {
        let page = get(primary, "/metrics");
        if value(&page, acked) > 0.0 && page.contains("kind=\"timer\"") {
            break page;
        }
        assert!(begun.elapsed() < LIMIT, "nothing is acked: {page}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let sample = |what: &str| format!("tandem_replica_{what}");
    let acked = value(&page, &sample("log_index{vm=\"by-hand\",cursor=\"acked\"}"));
    let sent = value(&page, &sample("log_index{vm=\"by-hand\",cursor=\"sent\"}"));
    assert!(acked > 0.0 && sent >= acked, "{page}");
    assert!(
        value(
            &page,
            &sample("log_bytes_total{vm=\"by-hand\",kind=\"timer\"}")
        ) > 0.0
    );
    assert!(value(&page, &sample("gate_wait_seconds_count")) > 0.0);
    assert!(value(&page, &sample("gate_wait_seconds_sum")) > 0.0);
    // They are of now.
    let begun = Instant::now();
    while value(&get(primary, "/metrics"), &sample("backup_steps_total"))
        <= value(&page, &sample("backup_steps_total"))
    {
        assert!(begun.elapsed() < LIMIT, "the backup does not go on");
        std::thread::sleep(Duration::from_millis(20));
    }
    until(
        backup,
        &[
            "tandem_replica_role{vm=\"by-hand\",role=\"backup\"} 1",
            "tandem_replica_failovers_total{vm=\"by-hand\"} 0",
        ],
    );
    assert!(get(backup, "/healthz").ends_with("ok\n"));
    until(
        views,
        &[
            "tandem_machines{state=\"protected\"} 1",
            "tandem_hosts{state=\"live\"} 2",
        ],
    );
    let before = until(arbiter, &["tandem_strangers_total 0"]);
    every_name_of_the_dashboard_is_told(&watched.addresses);

    die(&mut watched.primary.daemon);
    let page = until(
        backup,
        &[
            "tandem_replica_role{vm=\"by-hand\",role=\"solo\"} 1",
            "tandem_replica_role{vm=\"by-hand\",role=\"backup\"} 0",
            "tandem_replica_view{vm=\"by-hand\"} 2",
            "tandem_replica_failovers_total{vm=\"by-hand\"} 1",
            "tandem_replica_links_ended_total{vm=\"by-hand\"} 1",
        ],
    );
    assert!(
        !page.contains("tandem_replica_log_index"),
        "it leads nobody: {page}"
    );
    until(
        views,
        &[
            "tandem_machines{state=\"solo\"} 1",
            "tandem_machine_view{vm=\"by-hand\"} 2",
        ],
    );
    let after = get(arbiter, "/metrics");
    let flags = |page: &str| value(page, "tandem_arbiter_flags");
    assert!(flags(&after) > flags(&before), "{after}");
    drop(watched);
}

/// Whatever `docs/grafana/tandem.json` shows is there.
fn every_name_of_the_dashboard_is_told(addresses: &[String]) {
    let dashboard = include_str!("../../docs/grafana/tandem.json");
    let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
    let mut wanted = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let before = wanted.len();
            wanted.extend(
                words
                    .filter(|word| word.starts_with("tandem_"))
                    .map(str::to_owned),
            );
            assert!(expr.contains("tandem_") && before <= wanted.len(), "{expr}");
        }
    }
    assert!(wanted.len() > 20, "{wanted:?}");
    let pages = addresses.iter().map(|address| get(address, "/metrics"));
    let pages = pages.collect::<String>();
    let told: BTreeSet<_> = pages
        .lines()
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    // A metric whose samples come with what they count is told of before.
    let headed: BTreeSet<_> = pages
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for name in &wanted {
        let name = name.as_str();
        assert!(
            told.contains(name) || headed.contains(name),
            "{name} is in the dashboard alone"
        );
    }
}

/// What a Prometheus that scrapes all four answers, and promtool says of their pages:
/// `cargo test --release --test pair -- --ignored prometheus`.
#[test]
#[ignore = "starts Prometheus (Debian's package, 96 MB), and takes half a minute"]
fn prometheus_scrapes_a_pair_through_a_failover() {
    let _machine = machine();
    let mut watched = Watched::start();
    let folder = &watched.site;
    for address in &watched.addresses {
        let page = get(address, "/metrics");
        let (_, page) = page.split_once("\r\n\r\n").unwrap();
        let mut lint = std::process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("promtool is there");
        lint.stdin
            .take()
            .unwrap()
            .write_all(page.as_bytes())
            .unwrap();
        let lint = lint.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&lint.stderr).into_owned();
        assert!(lint.status.success() && said.is_empty(), "{said}: {page}");
    }
    let targets = watched
        .addresses
        .each_ref()
        .map(|address| format!("'{address}'"))
        .join(", ");
    let settings = folder.path("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n\
         scrape_configs: [{{job_name: tandem, static_configs: [{{targets: [{targets}]}}]}}]\n"
    );
    std::fs::write(&settings, text).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut prometheus = std::process::Command::new("prometheus")
        .arg(format!("--config.file={}", settings.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.path("prometheus").display()
        ))
        .arg(format!("--web.listen-address={port}"))
        .arg("--log.level=error")
        .spawn()
        .expect("Prometheus is there");
    let ask = |expr: &str| -> Option<f64> {
        let mut stream = TcpStream::connect(port).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let body = format!("query={}", expr.replace('=', "%3D").replace('+', "%2B"));
        let length = body.len();
        write!(
            stream,
            "POST /api/v1/query HTTP/1.1\r\nHost: {port}\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        let json = &said[said.find('{')?..=said.rfind('}')?];
        let json: serde_json::Value = serde_json::from_str(json).ok()?;
        json["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    let until = |expr: &str, wanted: f64| {
        let begun = Instant::now();
        loop {
            let found = ask(expr);
            if found == Some(wanted) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{expr} is {found:?}, not {wanted}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until("sum(up)", 4.0);
    until("sum(tandem_replica_role{role=\"primary\"})", 1.0);
    until("sum(tandem_replica_role{role=\"backup\"})", 1.0);
    until("tandem_machines{state=\"protected\"}", 1.0);
    until(
        "count(rate(tandem_replica_log_bytes_total{kind=\"timer\"}[5s]) > 0)",
        1.0,
    );
    die(&mut watched.primary.daemon);
    until("sum(tandem_replica_role{role=\"solo\"})", 1.0);
    until("sum(tandem_replica_failovers_total)", 1.0);
    until("tandem_machines{state=\"solo\"}", 1.0);
    until("sum(up)", 3.0);
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
    drop(watched.backup);
    drop(watched.viewservice);
}
