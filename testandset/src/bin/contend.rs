//! One contender as a process, to try an arbiter by hand and to be killed in tests.
//!
//! `tandem-contend ARBITER VM CONTENDER` reads view numbers, one a line, and prints a verdict for each:
//! `3 won`, `3 lost HOLDER`, or `3 unknown ERROR`. Exits with 1 if any was unknown, 2 on wrong usage.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use testandset::{Contender, Flag, Verdict, ViewNumber, VmId};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tandem-contend: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every verdict was known.
fn run() -> Result<bool, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [arbiter, vm, who] = arguments.as_slice() else {
        return Err(
            "usage: tandem-contend ARBITER VM CONTENDER, view numbers on standard input".into(),
        );
    };
    let (vm, who) = (VmId::new(vm.as_str())?, Contender::new(who.as_str())?);
    let arbiter = testandset::parse(arbiter)?;
    let mut all_known = true;
    for line in std::io::stdin().lock().lines() {
        let view = ViewNumber(line?.trim().parse()?);
        let flag = Flag {
            vm: vm.clone(),
            view,
        };
        let verdict = match arbiter.test_and_set(&flag, &who) {
            Ok(Verdict::Won) => "won".into(),
            Ok(Verdict::Lost { holder }) => format!("lost {holder}"),
            Err(error) => {
                all_known = false;
                format!("unknown {error}")
            }
        };
        writeln!(std::io::stdout(), "{view} {verdict}")?;
    }
    Ok(all_known)
}
