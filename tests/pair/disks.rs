//! Pairs each of whose replicas has a disk of its own (P18): which images make a pair, what a new backup is sent, and
//! what becomes of a backup whose disk fails.

use super::common::disks::{self, Image, Images};
use super::common::{machine, tandem, text};
use super::{Replica, Site, VM, die, stop};

/// Bytes of a disk.
const BYTES: usize = 2 << 20;

/// A guest that is over at once, and one that is not before it is asked to end.
const FEW: &str = "rounds=3";
const MANY: &str = "rounds=1000000";

/// A site whose replicas can be asked, and its images.
struct Copies {
    site: Site,
    images: Images,
}

impl Copies {
    fn new() -> Self {
        Self {
            site: Site::new(),
            images: Images::new(),
        }
    }

    fn words<'w>(&self, image: &'w Image, control: &'w str) -> [&'w str; 5] {
        [
            "--disk",
            text(image.path()),
            "--disk-copy",
            "--control",
            control,
        ]
    }

    fn control(&self) -> String {
        text(&self.site.path("control")).to_owned()
    }

    /// A backup whose own disk is this one, and where it listens.
    fn backup(&self, image: &Image) -> (Replica, String) {
        self.site.backup(&self.words(image, &self.control()))
    }

    /// A primary whose own disk is this one.
    fn primary(&self, image: &Image, rounds: &str, backup: &str) -> Replica {
        self.primary_with(image, &["--arg", rounds], backup)
    }

    fn primary_with(&self, image: &Image, more: &[&str], backup: &str) -> Replica {
        let words = [&["primary", "disk", "--backup", backup], more].concat();
        self.site.start(&words, &self.words(image, &self.control()))
    }

    /// A command to the replica that leads is done.
    #[track_caller]
    fn done(&self, words: &[&str]) {
        let control = self.control();
        let output = tandem(&[words, &["--control", &control]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
    }
}

#[test]
fn images_that_are_no_copies_make_no_pair() {
    let _machine = machine();
    let copies = Copies::new();
    let image = copies.images.filled(BYTES);
    let begin = image.bytes();
    let here = copies.images.copy(&image);
    let (mut backup, at) = copies.backup(&here);
    let refused = |mut primary: Replica, words: &[&str]| {
        let why = primary.is_refused();
        for word in words {
            assert!(why.contains(word), "{word}: {why}");
        }
    };

    let other = copies.images.copy(&image);
    other.change();
    let of_others = copies.primary(&other, FEW, &at);
    refused(
        of_others,
        &["not a copy of the primary's", "tandem protect"],
    );
    let longer = copies.images.filled(BYTES + 512);
    let of_longer = copies.primary(&longer, FEW, &at);
    refused(of_longer, &["4097 sectors", "4096", "of the same size"]);
    let guest = ["disk", "--disk", text(image.path())];
    let shared = copies.site.primary(&guest, &at);
    refused(
        shared,
        &["this backup was given --disk-copy", "its primary was not"],
    );
    let the_same = copies.primary(&here, FEW, &at);
    refused(the_same, &["another machine writes to it"]);

    // A hole is as good as zeros.
    let mut primary = copies.primary(&image, FEW, &at);
    primary.ends_well();
    backup.ends_well();
    assert!(image.bytes() == here.bytes());
    assert_eq!(disks::assert_rounds(&begin, &image.bytes()), 3);
}

#[test]
fn a_new_backups_disk_is_made_while_the_guest_writes() {
    let _machine = machine();
    let copies = Copies::new();
    let first = copies.images.filled(BYTES);
    let begin = first.bytes();
    let second = copies.images.copy(&first);
    let (backup, at) = copies.backup(&second);
    let mut primary = copies.primary(&first, MANY, &at);
    primary.wait_event("primary");
    second.wait_change(&begin);
    die(&mut primary.daemon);
    backup.wait_event("live");

    // What is on these is overwritten.
    let images = [(); 2].map(|()| copies.images.filled(BYTES));
    let (third, at) = copies.backup(&images[0]);
    copies.done(&["protect", VM, "--backup", &at]);
    copies.done(&["failover", VM, "--leave"]);
    third.wait_event("live");
    let mut left = backup;
    left.ends_well();

    let (fourth, at) = copies.backup(&images[1]);
    copies.done(&["protect", VM, "--backup", &at]);
    let joined = images[1].bytes();
    images[1].wait_change(&joined);
    third.daemon.ask_to_end();
    for mut replica in [third, fourth] {
        replica.ends_well();
    }
    let [leads, follows] = images.map(|image| image.bytes());
    assert!(leads == follows, "the two are the same at the end");
    disks::assert_rounds(&begin, &leads);
}

#[test]
fn a_backup_whose_disk_fails_ends_itself_alone() {
    let _machine = machine();
    let copies = Copies::new();
    let image = copies.images.filled(BYTES);
    let here = copies.images.copy(&image);
    let before = image.bytes();
    let (mut backup, at) = copies.backup(&here);
    let primary = copies.primary(&image, MANY, &at);
    primary.wait_event("primary");
    here.wait_change(&before);
    disks::limit_files(backup.daemon.pid(), BYTES as u64 / 2);
    let why = backup.is_refused();
    assert!(
        why.contains("its own disk is no copy of the primary's any more: a write of 4096 bytes at"),
        "{why}"
    );
    let noted = backup.wait_event("failed").detail;
    assert!(noted.contains("File too large"), "{noted}");
    assert_eq!(backup.count("flag_won"), 0);
    primary.wait_event("solo");
    stop(primary);
    disks::assert_rounds(&before, &image.bytes());
}

#[test]
fn a_backup_that_cannot_read_what_its_primary_read_ends_itself_alone() {
    let _machine = machine();
    let copies = Copies::new();
    let image = copies.images.filled(BYTES);
    let here = copies.images.copy(&image);
    let (mut backup, at) = copies.backup(&here);
    let guest = ["--arg", MANY, "--arg", "mode=read", "--disk-read", "backup"];
    let primary = copies.primary_with(&image, &guest, &at);
    primary.wait_event("primary");
    here.cut();
    let why = backup.is_refused();
    let words = "what the primary read from the disk cannot be read here: 4096 bytes at";
    assert!(why.contains(words), "{why}");
    assert_eq!(backup.count("flag_won"), 0);
    primary.wait_event("solo");
    stop(primary);
}

/// A stop that comes with the end of a read is the last thing its backup hears, and that had read the disk by then.
#[test]
fn a_pair_that_reads_a_shared_disk_ends_when_asked() {
    let _machine = machine();
    let copies = Copies::new();
    for _ in 0..4 {
        let image = copies.images.filled(BYTES);
        let begin = image.bytes();
        let disk = ["--disk", text(image.path())];
        let (mut backup, at) = copies.site.backup(&disk);
        let words = ["primary", "disk", "--backup", &at, "--disk-read", "backup"];
        let guest = [&words[..], &["--arg", MANY]].concat();
        let mut primary = copies.site.start(&guest, &disk);
        primary.wait_event("primary");
        image.wait_change(&begin);
        primary.daemon.ask_to_end();
        primary.ends_well();
        backup.ends_well();
        disks::assert_rounds(&begin, &image.bytes());
    }
}
