//! Faults that are built in, each of which a few lives have to find.

use crate::world::Break;
use testandset::{Arbiter, ArbiterError, Contender, Flag, StoreId, Verdict, ViewNumber, VmId};

/// An arbiter that takes no answer for a win.
struct Guesses(Box<dyn Arbiter>);

impl Arbiter for Guesses {
    fn store(&self) -> Result<StoreId, ArbiterError> {
        self.0.store()
    }

    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        self.0.test_and_set(flag, who).or(Ok(Verdict::Won))
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        self.0.holder(flag)
    }

    fn newest(&self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError> {
        self.0.newest(vm)
    }

    fn check(&self) -> Result<(), ArbiterError> {
        self.0.check()
    }
}

/// The arbiter, as `broken` has it.
pub fn arbiter(real: Box<dyn Arbiter>, broken: Option<Break>) -> Box<dyn Arbiter> {
    match broken {
        Some(Break::ArbiterGuessed) => Box::new(Guesses(real)),
        _ => real,
    }
}
