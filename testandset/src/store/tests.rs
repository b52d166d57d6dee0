use super::*;
use crate::record::Ended;
use crate::{ViewNumber, VmId};

fn flag(view: u64) -> Flag {
    Flag {
        vm: VmId::new("web").unwrap(),
        view: ViewNumber(view),
    }
}

fn who(name: &str) -> Contender {
    Contender::new(name).unwrap()
}

fn filled(dir: &Path, flags: u64) -> Vec<u8> {
    let (mut store, _) = Store::open(dir).unwrap();
    for view in 0..flags {
        assert_eq!(
            store.test_and_set(&flag(view), &who("a"), None).unwrap(),
            Verdict::Won
        );
    }
    std::fs::read(dir.join(LOG)).unwrap()
}

/// Where the lines end.
fn ends(bytes: &[u8]) -> Vec<usize> {
    let newlines = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n');
    newlines.map(|(at, _)| at + 1).collect()
}

#[test]
fn a_store_cut_at_any_byte_opens_with_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = filled(dir.path(), 3);
    let ends = ends(&bytes);
    for cut in 0..=bytes.len() {
        std::fs::write(dir.path().join(LOG), &bytes[..cut]).unwrap();
        let (mut store, recovery) = Store::open(dir.path()).unwrap();
        // A line that lacks its newline only is whole. The first is the identity.
        let lines = ends.iter().filter(|end| **end <= cut + 1).count();
        let whole = lines.saturating_sub(1);
        assert_eq!(recovery.flags, whole, "cut at {cut}");
        let end = lines.checked_sub(1).map_or(0, |last| ends[last]);
        assert_eq!(recovery.cut_bytes, cut.saturating_sub(end));
        for view in 0..3 {
            let set = (view as usize) < whole;
            let holder = store.holder(&flag(view)).unwrap();
            assert_eq!(holder.is_some(), set, "cut at {cut}");
        }
    }
}

#[test]
fn damage_before_the_end_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = filled(dir.path(), 3);
    let ends = ends(&bytes);
    for at in 0..ends[ends.len() - 2] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        std::fs::write(dir.path().join(LOG), &damaged).unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(matches!(error, ArbiterError::Corrupt { .. }), "byte {at}");
        assert!(error.to_string().contains(LOG), "{error}");
    }
}

#[test]
fn a_flag_set_twice_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [who("a"), who("b")].map(|who| to_line(&Record::new(&flag(1), &who)));
    std::fs::write(dir.path().join(LOG), lines.concat()).unwrap();
    assert!(matches!(
        Store::open(dir.path()),
        Err(ArbiterError::Corrupt { .. })
    ));
}

#[test]
fn a_store_keeps_its_identity_and_one_of_an_older_version_is_given_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, recovery) = Store::open(dir.path()).unwrap();
    assert!(recovery.made);
    let id = store.id().unwrap();
    drop(store);
    let (mut store, recovery) = Store::open(dir.path()).unwrap();
    assert!(!recovery.made);
    assert_eq!(store.id().unwrap(), id);
    drop(store);
    let old = to_line(&Record::new(&flag(1), &who("a")));
    std::fs::write(dir.path().join(LOG), old).unwrap();
    let (mut store, recovery) = Store::open(dir.path()).unwrap();
    assert_eq!((recovery.made, recovery.flags), (false, 1));
    let given = store.id().unwrap();
    assert_ne!(given, id);
    assert_eq!(store.holder(&flag(1)).unwrap(), Some(who("a")));
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap().0.id().unwrap(), given);
}

#[test]
fn nothing_is_made_where_a_store_is_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let missing = || {
        matches!(
            Store::open_existing(&path),
            Err(ArbiterError::NoStore { .. })
        )
    };
    assert!(missing());
    assert!(!path.exists());
    std::fs::create_dir(&path).unwrap();
    assert!(missing());
    // As a crash leaves one that was about to be made.
    std::fs::write(path.join(LOG), "").unwrap();
    assert!(missing());
    let id = Store::open(&path).unwrap().0.id().unwrap();
    assert_eq!(Store::open_existing(&path).unwrap().0.id().unwrap(), id);
}

#[test]
fn two_identities_in_one_store_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let line = || {
        let store = StoreId::random().unwrap();
        to_line(&Identity { store })
    };
    std::fs::write(dir.path().join(LOG), line() + &line()).unwrap();
    assert!(matches!(
        Store::open(dir.path()),
        Err(ArbiterError::Corrupt { .. })
    ));
}

/// `store` can write nothing.
fn fill_disk(store: &mut Store) {
    store.log.file = Some(
        File::options()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap(),
    );
}

/// It can again.
fn make_room(store: &mut Store) {
    store.log.file = None;
}

#[test]
fn a_failed_write_is_in_doubt_never_absent() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    let ask = |store: &mut Store, view, name| store.test_and_set(&flag(view), &who(name), None);
    let lost = Verdict::Lost { holder: who("a") };
    ask(&mut store, 1, "a").unwrap();
    fill_disk(&mut store);

    let error = ask(&mut store, 2, "a").unwrap_err();
    assert!(matches!(error, ArbiterError::DiskFull { .. }), "{error}");
    let line = std::fs::metadata(dir.path().join(LOG)).unwrap().len();
    assert!(line < 200, "a flag takes less");
    assert!(error.to_string().contains(" bytes"), "{error}");
    for view in [2, 3] {
        for name in ["a", "b"] {
            assert!(ask(&mut store, view, name).is_err());
        }
    }
    assert!(store.holder(&flag(2)).is_err());
    assert!(store.check().is_err());
    // What is known is told all the same, and what nobody asked for is free.
    assert_eq!(ask(&mut store, 1, "b").unwrap(), lost);
    assert_eq!(ask(&mut store, 1, "a").unwrap(), Verdict::Won);
    assert_eq!(store.holder(&flag(1)).unwrap(), Some(who("a")));
    assert_eq!(store.holder(&flag(3)).unwrap(), None);

    make_room(&mut store);
    assert_eq!(ask(&mut store, 2, "b").unwrap(), lost);
    assert_eq!(ask(&mut store, 2, "a").unwrap(), Verdict::Won);
    assert_eq!(ask(&mut store, 3, "b").unwrap(), Verdict::Won);
    drop(store);
    let (mut store, recovery) = Store::open(dir.path()).unwrap();
    assert_eq!((recovery.flags, recovery.cut_bytes), (3, 0));
    assert_eq!(store.holder(&flag(2)).unwrap(), Some(who("a")));
    assert_eq!(store.holder(&flag(3)).unwrap(), Some(who("b")));
}

#[test]
fn a_line_that_was_written_in_part_is_written_whole_or_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOG);
    let (mut store, _) = Store::open(dir.path()).unwrap();
    for view in 1..20 {
        let before = std::fs::read(&path).unwrap();
        fill_disk(&mut store);
        assert!(store.test_and_set(&flag(view), &who("a"), None).is_err());
        make_room(&mut store);
        // Some of it reached the disk, and somebody else's bytes behind it.
        let part = "0123456789".repeat(usize::try_from(view).unwrap());
        std::fs::write(&path, [&before[..], part.as_bytes()].concat()).unwrap();
        let verdict = store.test_and_set(&flag(view), &who("b"), None).unwrap();
        assert_eq!(verdict, Verdict::Lost { holder: who("a") });
        let after = std::fs::read(&path).unwrap();
        assert_eq!(
            after.iter().filter(|b| **b == b'\n').count(),
            view as usize + 1
        );
        assert!(after.starts_with(&before) && after.ends_with(b"\n"));
    }
    drop(store);
    assert_eq!(Store::open(dir.path()).unwrap().1.flags, 19);
}

#[test]
fn a_flag_is_added_in_place() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let bytes = filled(dir.path(), 2);
    let look = || std::fs::metadata(dir.path().join(LOG)).unwrap().ino();
    let before = look();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.test_and_set(&flag(7), &who("a"), None).unwrap();
    assert_eq!(look(), before, "the same file");
    assert!(
        std::fs::read(dir.path().join(LOG))
            .unwrap()
            .starts_with(&bytes)
    );
}

#[test]
fn a_store_file_that_was_removed_takes_no_flag() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path()).unwrap();
    store.test_and_set(&flag(1), &who("a"), None).unwrap();
    std::fs::remove_file(dir.path().join(LOG)).unwrap();
    let error = store.test_and_set(&flag(2), &who("a"), None).unwrap_err();
    assert!(matches!(error, ArbiterError::Unreachable { .. }), "{error}");
    assert!(store.test_and_set(&flag(2), &who("a"), None).is_err());
    assert_eq!(store.holder(&flag(1)).unwrap(), Some(who("a")));
}

#[test]
fn one_client_has_its_bound_and_others_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds {
        flags_per_client: 3,
        ..Bounds::default()
    };
    let [stranger, host] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| Some(IpAddr::from(ip)));
    let (store, _) = Store::open(dir.path()).unwrap();
    let mut store = store.with_bounds(bounds);
    let ask = |store: &mut Store, view, from| store.test_and_set(&flag(view), &who("a"), from);
    for view in 0..3 {
        ask(&mut store, view, stranger).unwrap();
    }
    let refused = ask(&mut store, 3, stranger).unwrap_err();
    assert!(
        matches!(refused, ArbiterError::TooManyFlags { .. }),
        "{refused}"
    );
    assert_eq!(store.holder(&flag(3)).unwrap(), None);
    // What is set is told it, and others set theirs.
    assert_eq!(ask(&mut store, 2, stranger).unwrap(), Verdict::Won);
    assert_eq!(ask(&mut store, 3, host).unwrap(), Verdict::Won);
    drop(store);
    // It is no way out to wait for a restart.
    let mut store = Store::open(dir.path()).unwrap().0.with_bounds(bounds);
    assert!(ask(&mut store, 4, stranger).is_err());
    assert_eq!(ask(&mut store, 4, host).unwrap(), Verdict::Won);
}

/// A store whose clock stands at `now_s`, with no time to look at the flags of ended machines.
fn forgetful(dir: &Path, now_s: fn() -> u64) -> Store {
    let store = Store {
        now_s,
        ..Store::open(dir).unwrap().0
    };
    store.with_bounds(Bounds {
        keep_ended: Duration::from_secs(100),
        ..Bounds::default()
    })
}

#[test]
fn the_flags_of_an_ended_machine_are_folded_and_stay_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = forgetful(dir.path(), || 1000);
    let mark = who("a").end_mark().unwrap();
    // Begun, failed over, view 3 left out, begun again at 4, ended in 5; and a machine that runs.
    for (view, name) in [
        (0, who("a")),
        (1, who("b")),
        (4, who("a")),
        (5, mark.clone()),
    ] {
        store.test_and_set(&flag(view), &name, None).unwrap();
    }
    let other = Flag {
        vm: VmId::new("web.1").unwrap(),
        view: ViewNumber(0),
    };
    store.test_and_set(&other, &who("c"), None).unwrap();
    assert!(!store.tidy().unwrap(), "its end is new");
    assert_eq!(store.holder(&flag(1)).unwrap(), Some(who("b")));
    store.now_s = || 1100;
    assert!(store.tidy().unwrap());
    assert!(!store.tidy().unwrap(), "there is nothing more to do");
    for round in 0..2 {
        for view in 0..=5 {
            let verdict = store
                .test_and_set(&flag(view), &who("sleeper"), None)
                .unwrap();
            let holder = mark.clone();
            assert_eq!(
                verdict,
                Verdict::Lost { holder },
                "round {round}, view {view}"
            );
        }
        assert_eq!(store.holder(&flag(6)).unwrap(), None);
        assert_eq!(store.holder(&other).unwrap(), Some(who("c")));
        let again = store.test_and_set(&flag(5), &mark, None).unwrap();
        assert_eq!(again, Verdict::Won);
        drop(store);
        let recovery = Store::open(dir.path()).unwrap().1;
        assert_eq!(recovery.flags, 2, "one line for the machine that ended");
        store = forgetful(dir.path(), || 1100);
    }
    // Begun again, it ends again.
    store.test_and_set(&flag(6), &who("d"), None).unwrap();
    store
        .test_and_set(&flag(7), &who("d").end_mark().unwrap(), None)
        .unwrap();
    store.now_s = || 2000;
    assert!(store.tidy().unwrap());
    assert_eq!(
        store.holder(&flag(0)).unwrap(),
        Some(who("d").end_mark().unwrap())
    );
    assert_eq!(store.flags.len(), 2);
}

#[test]
fn a_machine_that_is_not_marked_as_ended_is_never_folded() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = forgetful(dir.path(), || 0);
    for view in 0..50 {
        store.test_and_set(&flag(view), &who("a"), None).unwrap();
    }
    store.now_s = || u64::MAX;
    assert!(!store.tidy().unwrap());
    assert_eq!(store.holder(&flag(3)).unwrap(), Some(who("a")));
}

#[test]
fn what_is_folded_counts_for_its_client_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = forgetful(dir.path(), || 0);
    let client = IpAddr::from([10, 0, 0, 1]);
    let mark = who("a").end_mark().unwrap();
    for view in 0..9 {
        store
            .test_and_set(&flag(view), &who("a"), Some(client))
            .unwrap();
    }
    store.test_and_set(&flag(9), &mark, Some(client)).unwrap();
    assert_eq!(store.flags.set_by(client), 10);
    store.now_s = || 100;
    while store.tidy().unwrap() {}
    assert_eq!(store.flags.set_by(client), 1);
}

#[test]
fn a_file_of_lines_that_no_longer_matter_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = forgetful(dir.path(), || 0);
    let id = store.id().unwrap();
    for view in 0..200 {
        store.test_and_set(&flag(view), &who("a"), None).unwrap();
    }
    store
        .test_and_set(&flag(200), &who("a").end_mark().unwrap(), None)
        .unwrap();
    store.test_and_set(&flag(201), &who("b"), None).unwrap();
    let length = || std::fs::metadata(dir.path().join(LOG)).unwrap().len();
    let before = length();
    store.now_s = || 100;
    while store.tidy().unwrap() {}
    assert!(
        length() < before / 20,
        "{} bytes, {before} before",
        length()
    );
    // It goes on in the new file.
    store.test_and_set(&flag(202), &who("c"), None).unwrap();
    drop(store);
    let (mut store, recovery) = Store::open(dir.path()).unwrap();
    assert_eq!((store.id().unwrap(), recovery.flags), (id, 3));
    assert_eq!(
        store.holder(&flag(77)).unwrap(),
        Some(who("a").end_mark().unwrap())
    );
    assert_eq!(store.holder(&flag(202)).unwrap(), Some(who("c")));
}

#[test]
fn lines_that_contradict_the_ones_before_are_damage() {
    let mark = who("a").end_mark().unwrap();
    let set = |view| Entry::Flag(Record::new(&flag(view), &who("a")));
    let ended = |through, holder: &Contender| {
        Entry::Ended(Ended {
            vm: flag(0).vm,
            through: ViewNumber(through),
            holder: holder.clone(),
            by: None,
        })
    };
    let bad = [
        [ended(5, &mark), set(5)],
        [ended(5, &mark), ended(4, &mark)],
        [set(1), ended(5, &who("a"))],
    ];
    for entries in bad {
        for more in [None, Some(set(9))] {
            let dir = tempfile::tempdir().unwrap();
            let lines: String = entries.iter().chain(&more).map(to_line).collect();
            std::fs::write(dir.path().join(LOG), lines).unwrap();
            let error = Store::open(dir.path()).unwrap_err();
            assert!(matches!(error, ArbiterError::Corrupt { .. }), "{error}");
        }
    }
}

#[test]
fn one_server_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    assert!(matches!(
        Store::open(dir.path()),
        Err(ArbiterError::InUse { .. })
    ));
    drop(first);
    assert!(Store::open(dir.path()).is_ok());
}
