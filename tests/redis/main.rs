//! Debian's own redis-cli, redis-benchmark and redis-py against the kv guest, through a failover too (P1).

#[path = "../common/mod.rs"]
mod common;

mod limits;

use check::resp::{Client, Reply};
use common::{LIMIT, cluster, have_kvm, machine, os};
use kit::cluster::{Cluster, Pair, PairOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

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
    ready_with(cluster, &[])
}

/// A pair whose guest has these arguments.
fn ready_with(cluster: &Cluster, args: &[&str]) -> Pair {
    let options = PairOptions {
        network: true,
        ..PairOptions::default()
    };
    let mut words = vec!["kv"];
    words.extend(args.iter().flat_map(|arg| ["--arg", arg]));
    let pair = cluster.start_pair("redis", &os(&words), &options).unwrap();
    pair.wait_ready("ready").unwrap();
    pair
}

/// Ends a pair of which nobody died.
fn end(mut pair: Pair) {
    pair.primary.ask_to_end();
    assert!(pair.primary.wait(LIMIT).unwrap().success());
    assert!(pair.backup.wait(LIMIT).unwrap().success());
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
    let pair = ready(&cluster);
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
    end(pair);
}

#[test]
fn redis_cli_does_several_commands_as_one() {
    let _machine = machine();
    if !have_kvm("redis-cli") || !have_redis_tools() {
        return;
    }
    let cluster = cluster("file");
    let pair = ready(&cluster);
    let mut cli = tool("redis-cli", cluster.server())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = cli.stdin.take().unwrap();
    to.write_all(b"MULTI\nSET a 1\nINCR a\nEXEC\nWATCH a\nSET a 5\nMULTI\nINCR a\nEXEC\nSCAN 0\n")
        .unwrap();
    drop(to);
    let output = cli.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    let expected = [
        "OK", "QUEUED", "QUEUED", "OK", "2", "OK", "OK", "OK", "QUEUED", "", "0", "a",
    ];
    assert_eq!(lines, expected);
    end(pair);
}

/// What redis-py's users do most: a pipeline is a transaction there.
const PYTHON: &str = "
import redis, sys
r = redis.Redis(host=sys.argv[1], port=int(sys.argv[2]))
assert r.pipeline().set('a', 1).incr('a').get('a').execute() == [True, 2, b'2']
with r.pipeline() as p:
    p.watch('a')
    r.set('a', 10)
    p.multi()
    p.set('a', int(3))
    try:
        p.execute()
        raise SystemExit('a watched key has changed, and nobody minded')
    except redis.WatchError:
        pass
p = r.pipeline(transaction=False)
for i in range(1000):
    p.set(f'key{i}', i)
p.execute()
assert sorted(r.scan_iter('key*', count=7)) == sorted(f'key{i}'.encode() for i in range(1000))
try:
    r.pipeline().set('a', 11).lpush('a', 1).execute()
    raise SystemExit('there are no lists')
except redis.ResponseError as error:
    assert 'unknown command' in str(error), error
assert r.get('a') == b'10'
assert r.set('big', b'x' * 1000000) and r.strlen('big') == 1000000
print('done')
";

#[test]
fn redis_py_finds_what_it_expects() {
    let _machine = machine();
    if !have_kvm("redis-py") {
        return;
    }
    // Debian's, whatever other python there may be.
    let python = || Command::new("/usr/bin/python3");
    let there = python().args(["-c", "import redis"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        common::skipped::skip_this(&"redis-py is missing (Debian's python3-redis)");
        return;
    }
    let cluster = cluster("file");
    let pair = ready(&cluster);
    let server = cluster.server();
    let output = python()
        .args(["-c", PYTHON, &server.ip().to_string()])
        .arg(server.port().to_string())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert_eq!(output.stdout, b"done\n", "{err}");
    end(pair);
}
