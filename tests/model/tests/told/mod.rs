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

/// Searches the space of `model`, which has a fault, until `property` is found broken.
pub fn find(what: &str, model: impl Searched, property: &'static str) {
    let begun = Instant::now();
    let checker = model
        .checker()
        .threads(THREADS)
        .finish_when(HasDiscoveries::AnyOf(BTreeSet::from([property])))
        .spawn_bfs()
        .join();
    let Some(path) = checker.discovery(property) else {
        panic!(
            "nobody finds {what}: {property} holds in {} states",
            checker.unique_state_count()
        );
    };
    println!(
        "{what} breaks '{property}', found in {} states and {} ms, by {} steps",
        checker.unique_state_count(),
        begun.elapsed().as_millis(),
        path.into_actions().len()
    );
}

/// The steps of a path, and the state behind the last of them.
fn tell<S: Debug, A: Debug>(path: Vec<(S, Option<A>)>) -> String {
    let steps = path.iter().filter_map(|(_, step)| step.as_ref());
    let steps: Vec<_> = steps.map(|step| format!("  {step:?}\n")).collect();
    let last = path.last().map(|(state, _)| format!("{state:#?}"));
    steps.concat() + &last.unwrap_or_default()
}
