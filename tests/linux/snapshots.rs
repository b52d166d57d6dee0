//! Linux saved in the middle of its boot goes on from there as the boot that was not stopped.

use super::common::saved::{go_on, replay_saving};
use super::common::{core, tandem_json, text};
use super::{images, number};
use check::rng::Rng;
use replay::Clock;
use replica::machine::EngineChoice;

/// Places at which the boot is saved.
const PLACES: u64 = 3;

/// The processor restored has no translations and no decoded instructions: what it does must not depend on
/// those it had.
#[test]
fn a_boot_goes_on_from_a_snapshot_at_any_instruction() {
    let _core = core();
    let Some(image) = images::plain() else { return };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let record = ["record", text(&image), "--cpu", "v2", "--json", "--quiet"];
    let rest = ["--append", "tandem.run=true", "-o", text(&log)];
    let recorded = tandem_json(&[&record[..], &rest].concat());
    let end = recorded["clock"].as_u64().unwrap();
    let seed = u64::from(std::process::id());
    let mut random = Rng::new(seed, 0);
    let places = number("TANDEM_LINUX_SNAPSHOTS", PLACES);
    let mut places: Vec<Clock> = (0..places).map(|_| Clock(random.below(end))).collect();
    places.sort_unstable();
    let (saved, ended) = replay_saving(&log, EngineChoice::Soft, &places);
    assert_eq!(recorded["digest"], format!("{:016x}", ended.digest));
    assert_eq!(saved.len(), places.len(), "seed {seed}: {places:?}");
    for (n, here) in saved.iter().enumerate() {
        let next = saved.get(n + 1);
        eprintln!("seed {seed}: from {} of {end} on", here.clock);
        let at_end = go_on(&log, EngineChoice::Soft, here, next);
        assert_eq!(at_end, next.is_none().then_some(ended), "seed {seed}");
    }
}
