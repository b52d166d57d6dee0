//! redis-benchmark: how many requests it is to make, and what it says of them.

use super::rows::Load;
use crate::error::{BenchError, Outcome};
use kit::daemon::Daemon;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest time of one run of it, beyond what it should take: it never ends if its connection fails (7.0).
const PATIENCE: Duration = Duration::from_secs(60);
/// How much longer than it should a run may take.
const SLOWER: u32 = 10;
/// What a load runs for before it is measured: hosts translate code once it has run for a while.
pub const WARM_UP: Duration = Duration::from_millis(500);
/// Requests of the first run, each time as many as a connection sends at once.
const FIRST: u64 = 500;
/// Times as many in the run after one that was too short to tell a rate by.
const MORE: u64 = 4;

/// The program.
pub struct Client {
    program: PathBuf,
    server: SocketAddr,
    errors: PathBuf,
    limit: Duration,
}

impl Client {
    /// Of the server at `server`, for runs of about `time`; complaints go to `errors`.
    pub fn new(program: &Path, server: SocketAddr, time: Duration, errors: PathBuf) -> Self {
        Self {
            program: program.to_owned(),
            server,
            errors,
            limit: PATIENCE + SLOWER * time,
        }
    }

    /// Makes this many requests. How many a second there were.
    pub fn run(&self, load: Load, requests: u64) -> Outcome<f64> {
        let args = args(self.server, load, requests);
        let errors = self.errors.clone();
        let mut tool = Daemon::start_other("redis-benchmark", &self.program, args, errors)?;
        let status = tool.wait(self.limit)?;
        let rate = tool
            .said()
            .iter()
            .find_map(|line| rate_in(line, load.command));
        match rate {
            Some(rate) if status.success() && rate > 0.0 => Ok(rate),
            _ => Err(BenchError::said(format!(
                "redis-benchmark failed ({status}){}",
                tool.complaint()
            ))),
        }
    }

    /// Warms the server up with this load. A rate, which `near` is about, if it is known.
    pub fn warm_up(&self, load: Load, near: Option<f64>) -> Outcome<f64> {
        let mut requests = match near {
            Some(rate) => requests_for(rate, WARM_UP, load),
            None => FIRST * u64::from(load.pipeline),
        };
        loop {
            let rate = self.run(load, requests)?;
            if near.is_some() || requests as f64 / rate >= WARM_UP.as_secs_f64() {
                return Ok(rate);
            }
            requests *= MORE;
        }
    }
}

/// Requests that take about `time` at this rate: at least one pipeline of each connection.
pub fn requests_for(rate: f64, time: Duration, load: Load) -> u64 {
    let at_once = u64::from(load.connections) * u64::from(load.pipeline);
    ((rate * time.as_secs_f64()) as u64).max(at_once)
}

fn args(server: SocketAddr, load: Load, requests: u64) -> Vec<OsString> {
    [
        ("-h", server.ip().to_string()),
        ("-p", server.port().to_string()),
        ("-t", load.command.to_lowercase()),
        ("-n", requests.to_string()),
        ("-c", load.connections.to_string()),
        ("-P", load.pipeline.to_string()),
    ]
    .into_iter()
    .flat_map(|(option, value)| [option.to_owned(), value])
    .chain(["--csv".to_owned()])
    .map(OsString::from)
    .collect()
}

/// The rate in a line such as `"SET","8470.99","5.751"`: Redis 6.2 and later say more behind it.
fn rate_in(line: &str, command: &str) -> Option<f64> {
    let mut cells = line.split(',').map(|cell| cell.trim_matches('"'));
    (cells.next() == Some(command))
        .then(|| cells.next()?.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_the_line_of_the_command() {
        let lines = [
            r#""test","rps","avg_latency_ms""#,
            r#""SET","8470.99","5.751","1.168""#,
        ];
        assert_eq!(rate_in(lines[0], "SET"), None);
        assert_eq!(rate_in(lines[1], "SET"), Some(8470.99));
        assert_eq!(rate_in(lines[1], "GET"), None);
        assert_eq!(rate_in(r#""SET","7.5""#, "SET"), Some(7.5), "before 6.2");
        assert_eq!(rate_in(r#""SET""#, "SET"), None);
    }

    #[test]
    fn measurements_last_as_long_as_asked_for() {
        let load = Load::ALL[3];
        let three = Duration::from_secs(3);
        assert_eq!(requests_for(40_000.0, three, load), 120_000);
        assert_eq!(requests_for(1.0, three, load), 800, "a pipeline each");
        let words = args(([10, 77, 0, 2], 6379).into(), load, 120_000).join(" ".as_ref());
        assert_eq!(
            words,
            "-h 10.77.0.2 -p 6379 -t set -n 120000 -c 50 -P 16 --csv"
        );
    }
}
