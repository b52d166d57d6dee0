//! A primary that is paused among disk writes, and wakes when its backup has written newer data.

use super::Site;
use super::common::{LIMIT, have_kvm, machine};
use nix::sys::signal::Signal;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Pairs to try: a pause may find the disk's queue empty.
const PAIRS: u32 = 6;

/// What the disk holds, and when it was last written to.
fn look(disk: &Path) -> (Vec<u8>, i64, i64) {
    let meta = std::fs::metadata(disk).unwrap();
    (
        std::fs::read(disk).unwrap(),
        meta.mtime(),
        meta.mtime_nsec(),
    )
}

#[test]
fn a_paused_primary_writes_nothing_after_its_backup_went_live() {
    let _machine = machine();
    if !have_kvm("a paused primary") {
        return;
    }
    for round in 0..PAIRS {
        let site = Site::new().that_suspects_soon();
        let disk = site.path("disk.img");
        std::fs::write(&disk, vec![0x5a; 1 << 20]).unwrap();
        let image = disk.to_str().unwrap();
        let (mut backup, at) = site.backup(&["--disk", image]);
        let guest = [
            "disk",
            "--arg",
            "rounds=4000",
            "--arg",
            "mode=write",
            "--arg",
            "ms=1500",
            "--disk",
            image,
        ];
        let mut primary = site.primary(&guest, &at);
        primary.wait_event("primary");
        let before = look(&disk);
        let begun = Instant::now();
        while look(&disk) == before {
            assert!(begun.elapsed() < LIMIT, "the guest writes nothing");
        }
        std::thread::sleep(Duration::from_millis(u64::from(round) * 13));
        primary.daemon.stand_still().unwrap();
        backup.wait_event("live");
        backup.ends_well();
        let after = look(&disk);
        primary.daemon.signal(Signal::SIGCONT);
        let why = primary.is_refused();
        assert!(why.contains("has the flag"), "{why}");
        let now = look(&disk);
        let sectors = now.0.chunks(512).zip(after.0.chunks(512));
        let late: Vec<usize> = (0..)
            .zip(sectors)
            .filter_map(|(n, (now, then))| (now != then).then_some(n))
            .collect();
        assert!(
            now == after,
            "round {round}: a late write to sectors {late:?}\nprimary {:?}\nbackup {:?}",
            primary.events(),
            backup.events()
        );
    }
}
