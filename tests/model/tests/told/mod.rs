//! How a space is searched, and what is told of it.

use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

/// Cores that search.
const THREADS: usize = 2;

/// What a model has to be to be searched by threads.
pub trait Searched:
    Model<State: Clone + Debug + Hash + PartialEq + Send + Sync, Action: Clone + Debug + PartialEq>
    + Send
    + Sync
    + 'static
{
}

impl<M> Searched for M
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
}

/// Searches all of the space of `model`: nothing that it forbids is found, and all that has to happen in it does.
pub fn search(what: &str, model: impl Searched) {
    let begun = Instant::now();
    let properties = model.properties();
    let checker = model.checker().threads(THREADS).spawn_bfs().join();
    println!(
        "{what}: {} states, {} steps long at most, {} ms",
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed().as_millis()
    );
    for property in properties {
        let found = checker.discovery(property.name);
        match property.expectation {
            Expectation::Sometimes => assert!(found.is_some(), "{what}: never: {}", property.name),
            _ => {
                let path = found.map(|path| tell(path.into_vec()));
                assert!(
                    path.is_none(),
                    "{what}: {} is broken:\n{}",
                    property.name,
                    path.unwrap_or_default()
                );
            }
        }
    }
    assert!(checker.is_done());
}

/// Searches the space of `model`, which has a fault, until each of `properties` is found broken.
pub fn find(what: &str, model: impl Searched, properties: &[&'static str]) {
    let begun = Instant::now();
    let wanted: BTreeSet<_> = properties.iter().copied().collect();
    let checker = model
        .checker()
        .threads(THREADS)
        .finish_when(HasDiscoveries::AllOf(wanted))
        .spawn_bfs()
        .join();
    let (states, ms) = (checker.unique_state_count(), begun.elapsed().as_millis());
    for property in properties {
        let Some(path) = checker.discovery(property) else {
            panic!("nobody finds {what}: {property} holds in {states} states");
        };
        let steps = path.into_actions().len();
        println!(
            "{what} breaks '{property}', found in {states} states and {ms} ms, by {steps} steps"
        );
    }
}

/// The steps of a path, and the state behind the last of them.
fn tell<S: Debug, A: Debug>(path: Vec<(S, Option<A>)>) -> String {
    let steps = path.iter().filter_map(|(_, step)| step.as_ref());
    let steps: Vec<_> = steps.map(|step| format!("  {step:?}\n")).collect();
    let last = path.last().map(|(state, _)| format!("{state:#?}"));
    steps.concat() + &last.unwrap_or_default()
}
