//! Debian's own redis-cli and redis-benchmark against the kv guest, through a failover too (P1).

#[path = "../common/mod.rs"]
mod common;

use common::{LIMIT, cluster, have_kvm, machine, os};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use tandem::demo::cluster::{Cluster, Pair, PairOptions};
use tandem::load::resp::{Client, Reply};

fn have_redis_tools() -> bool {
    let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let both = there("redis-cli") && there("redis-benchmark");
    if !both {
        let why = "redis-cli and redis-benchmark are missing (Debian's redis-tools)";
        common::skipped::skip_this(&why);
    }
    both
}

fn ready(cluster: &Cluster) -> Pair {
    let options = PairOptions {
        network: true,
        ..PairOptions::default()
    };
    let pair = cluster.start_pair("redis", &os(&["kv"]), &options).unwrap();
    pair.wait_ready("ready").unwrap();
    pair
}

fn tool(name: &str, server: SocketAddr) -> Command {
    let mut command = Command::new(name);
    command.args([
        "-h",
        &server.ip().to_string(),
        "-p",
        &server.port().to_string(),
    ]);
    command
}

#[test]
fn p1_redis_cli_keeps_its_connection_through_a_failover() {
    let _machine = machine();
    if !have_kvm("redis-cli") || !have_redis_tools() {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster);
    let mut cli = tool("redis-cli", cluster.server())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = cli.stdin.take().unwrap();
    let mut from = BufReader::new(cli.stdout.take().unwrap());
    let mut ask = |command: &str| {
        writeln!(to, "{command}").unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(ask("SET greeting hello"), "OK");
    let before = ask("CLIENT ID");
    assert_eq!(ask("INCR n"), "1");
    pair.primary.kill();
    pair.primary.wait(LIMIT).unwrap();
    assert_eq!(ask("GET greeting"), "hello");
    assert_eq!(ask("INCR n"), "2");
    assert_eq!(ask("CLIENT ID"), before, "it is still the same connection");
    drop(to);
    assert!(cli.wait().unwrap().success());
    pair.backup.ask_to_end();
    assert!(pair.backup.wait(LIMIT).unwrap().success());
}

#[test]
fn redis_benchmark_runs_through_a_failover() {
    let _machine = machine();
    if !have_kvm("redis-benchmark") || !have_redis_tools() {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster);
    let benchmark = tool("redis-benchmark", cluster.server())
        .args([
            "-t",
            "set,get,incr,mset",
            "-n",
            "20000",
            "-c",
            "50",
            "-r",
            "1000",
            "--csv",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // In the middle of it: once the guest has answered a good part of what is to come.
    let mut probe = Client::connect(cluster.server(), LIMIT, LIMIT).unwrap();
    while !matches!(probe.command(&[b"DBSIZE"]).unwrap(), Reply::Int(500..)) {
        std::thread::yield_now();
    }
    pair.primary.kill();
    let output = benchmark.wait_with_output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}{err}");
    for test in ["SET", "GET", "INCR", "MSET"] {
        assert!(out.contains(&format!("\"{test}")), "{test} in {out}{err}");
    }
    assert!(!err.contains("Error"), "{err}");
    pair.wait_event("backup", "live").unwrap();
    pair.backup.ask_to_end();
    assert!(pair.backup.wait(LIMIT).unwrap().success());
}

#[test]
fn redis_cli_finds_what_it_expects() {
    let _machine = machine();
    if !have_kvm("redis-cli") || !have_redis_tools() {
        return;
    }
    let cluster = cluster("file");
    let mut pair = ready(&cluster);
    let cli = |words: &[&str]| {
        let output = tool("redis-cli", cluster.server())
            .args(words)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(cli(&["PING"]), "PONG");
    assert_eq!(cli(&["MSET", "a", "1", "b", "2"]), "OK");
    assert_eq!(cli(&["MGET", "a", "b", "c"]), "1\n2");
    assert_eq!(cli(&["EXPIRE", "a", "100"]), "1");
    let ttl: i64 = cli(&["TTL", "a"]).parse().unwrap();
    assert!((98..=100).contains(&ttl), "{ttl}");
    assert!(cli(&["INFO"]).contains("redis_version"));
    assert!(cli(&["GET"]).contains("wrong number of arguments"));
    assert!(cli(&["NOSUCH"]).contains("unknown command"));
    assert_eq!(cli(&["DBSIZE"]), "2");
    assert_eq!(cli(&["FLUSHALL"]), "OK");
    assert_eq!(cli(&["DBSIZE"]), "0");
    pair.primary.ask_to_end();
    assert!(pair.primary.wait(LIMIT).unwrap().success());
    assert!(pair.backup.wait(LIMIT).unwrap().success());
}
