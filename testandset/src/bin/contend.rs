//! One contender as a process, to try an arbiter by hand and to be killed in tests.
//!
//! `tandem-contend ARBITER VM CONTENDER` reads lines and answers each. ARBITER may also be `store:DIR`, a
//! server's store without the server, opened when it is first asked.
//!
//! ```text
//!   3      sets the flag of view 3      3 won │ 3 lost HOLDER │ 3 unknown ERROR
//!   ?3     asks whose it is             3 held HOLDER │ 3 free │ 3 unknown ERROR
//!          nothing at all           an empty line
//!   tidy   folds flags (a store)        tidy done │ tidy unknown ERROR
//! ```
//!
//! Exits with 1 if any was unknown, 2 on wrong usage.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use testandset::{
    Arbiter, ArbiterError, Bounds, Contender, Flag, Store, Verdict, ViewNumber, VmId,
};

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

/// Who is asked.
enum Asked {
    Arbiter(Box<dyn Arbiter>),
    Unopened(PathBuf),
    Store(Box<Store>),
}

impl Asked {
    fn new(address: &str) -> Result<Self, ArbiterError> {
        match address.strip_prefix("store:") {
            Some(dir) => Ok(Self::Unopened(dir.into())),
            None => Ok(Self::Arbiter(testandset::parse(
                address,
                &tls::Security::Loopback,
            )?)),
        }
    }

    fn open(&mut self) -> Result<(), ArbiterError> {
        if let Self::Unopened(dir) = self {
            let (store, recovery) = Store::open(dir)?;
            if let Some(why) = recovery.read_only {
                println!("read-only {why}");
            }
            let bounds = Bounds {
                keep_ended: Duration::ZERO,
                ..Bounds::default()
            };
            *self = Self::Store(Box::new(store.with_bounds(bounds)));
        }
        Ok(())
    }

    fn test_and_set(&mut self, flag: &Flag, who: &Contender) -> Result<String, ArbiterError> {
        let verdict = match self {
            Self::Arbiter(arbiter) => arbiter.test_and_set(flag, who),
            Self::Store(store) => store.test_and_set(flag, who, None),
            Self::Unopened(_) => unreachable!("it was opened"),
        };
        Ok(match verdict? {
            Verdict::Won => "won".into(),
            Verdict::Lost { holder } => format!("lost {holder}"),
        })
    }

    fn holder(&mut self, flag: &Flag) -> Result<String, ArbiterError> {
        let holder = match self {
            Self::Arbiter(arbiter) => arbiter.holder(flag),
            Self::Store(store) => store.holder(flag),
            Self::Unopened(_) => unreachable!("it was opened"),
        };
        Ok(holder?.map_or_else(|| "free".into(), |holder| format!("held {holder}")))
    }

    fn tidy(&mut self) -> Result<(), ArbiterError> {
        if let Self::Store(store) = self {
            while store.tidy()? {}
        }
        Ok(())
    }
}

/// Whether everything was known.
fn run() -> Result<bool, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [arbiter, vm, who] = arguments.as_slice() else {
        return Err("usage: tandem-contend ARBITER VM CONTENDER, views on standard input".into());
    };
    let (vm, who) = (VmId::new(vm.as_str())?, Contender::new(who.as_str())?);
    let mut asked = Asked::new(arbiter)?;
    let mut all_known = true;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let word = line.trim();
        if word.is_empty() {
            println!();
            continue;
        }
        asked.open()?;
        let flag = |view: &str| -> Result<Flag, std::num::ParseIntError> {
            Ok(Flag {
                vm: vm.clone(),
                view: ViewNumber(view.parse()?),
            })
        };
        let (of, said) = match word.strip_prefix('?') {
            _ if word == "tidy" => (word, asked.tidy().map(|()| "done".into())),
            Some(view) => (view, asked.holder(&flag(view)?)),
            None => (word, asked.test_and_set(&flag(word)?, &who)),
        };
        all_known &= said.is_ok();
        let said = said.unwrap_or_else(|error| format!("unknown {error}"));
        writeln!(std::io::stdout(), "{of} {said}")?;
    }
    Ok(all_known)
}
