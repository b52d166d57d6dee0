//! Simulated installations: lives of fixed seeds, or of as many others as `TANDEM_SIMULATED` says, from the seed
//! `TANDEM_SEED` on or one that nobody has tried; and faults that are built in.

use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

/// Lives in the gate.
const LIVES: u64 = 200;
/// Within so many lives a fault that is built in has to be found.
const WITHIN: u64 = 60;

fn simulate(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-simulation"));
    command.args(args).output().expect("the simulation starts")
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr]
        .map(String::from_utf8_lossy)
        .concat()
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} takes a number, not {text}")),
    )
}

#[test]
fn whatever_is_cut_stopped_or_killed() {
    let lives = number("TANDEM_SIMULATED");
    let seed = number("TANDEM_SEED").or_else(|| {
        lives?;
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("it is later");
        Some(since.as_secs() << 20)
    });
    let (lives, seed) = (
        lives.unwrap_or(LIVES).to_string(),
        seed.unwrap_or(1).to_string(),
    );
    println!("{lives} lives from seed {seed} on");
    let output = simulate(&["--seeds", &lives, "--seed", &seed, "--jobs", "2"]);
    println!("{}", said(&output));
    assert!(output.status.success(), "a life failed: see above");
}

#[test]
fn a_seed_is_a_life() {
    for seed in ["3", "5"] {
        let [one, two] = [(); 2].map(|()| said(&simulate(&["-v", "--seed", seed])));
        let life = |said: &str| {
            said.lines()
                .filter(|line| line.contains(" digest "))
                .collect::<String>()
        };
        assert!(!life(&one).is_empty(), "{one}");
        assert_eq!(life(&one), life(&two));
    }
}

/// A fault has to be found, by a rule of these: which of them depends on what the life is about when it shows.
fn is_found(broken: &str, by: &[&str]) {
    let within = WITHIN.to_string();
    let output = simulate(&["--seeds", &within, "--jobs", "2", "--broken", broken]);
    let said = said(&output);
    assert!(
        !output.status.success(),
        "{broken} was not found in {WITHIN} lives:\n{said}"
    );
    let why: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("FAILED"))
        .collect();
    assert!(
        why.iter().any(|why| by.iter().any(|by| why.contains(by))),
        "{broken} was found by another rule: {why:?}"
    );
}

#[test]
fn no_answer_of_the_arbiter_is_no_flag() {
    is_found(
        "arbiter-guessed",
        &["invariant 3", "is no member", "the flag of view"],
    );
}

#[test]
fn an_arbiter_that_forgets_is_found() {
    is_found(
        "arbiter-forgets",
        &["invariant 3", "is no member", "the flag of view"],
    );
}

#[test]
fn an_ack_of_what_did_not_come_is_found() {
    // Bytes of a connection that were acknowledged and are lost leave it standing still for ever.
    is_found("ack-ahead", &["invariant 9", "liveness: "]);
}

#[test]
fn a_welcome_before_the_flag_is_found() {
    is_found("welcome-ahead", &["begins view", "invariant 3"]);
}
