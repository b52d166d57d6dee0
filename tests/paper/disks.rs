//! P18: alternatives of the paper's to a shared disk whose reads are logged.

use super::common::disks::{self, Image, Images};
use super::common::{LIMIT, cluster, have_kvm, machine, os, text};
use kit::cluster::{Pair, PairOptions};
use std::ffi::OsString;

/// Bytes of a disk.
const BYTES: usize = 2 << 20;

/// A guest that writes until it is asked to end.
fn guest() -> Vec<OsString> {
    os(&["disk", "--arg", "rounds=1000000"])
}

/// A pair whose disk both share, or of which each has its own.
fn options(image: &Image, copy: &Image, both: &[&str], primary: &[&str]) -> PairOptions {
    let disk = |image: &Image| os(&["--disk", text(image.path())]);
    PairOptions {
        primary: [disk(image), os(primary)].concat(),
        backup: disk(copy),
        both: os(both),
        ..PairOptions::default()
    }
}

#[test]
fn p18_the_backups_disk_outlives_the_primarys() {
    let _machine = machine();
    if !have_kvm("P18") {
        return;
    }
    let cluster = cluster("file");
    let images = Images::new();
    let image = images.filled(BYTES);
    let copy = images.copy(&image);
    let begin = image.bytes();
    let options = options(&image, &copy, &["--disk-copy"], &[]);
    let mut pair = cluster.start_pair("p18", &guest(), &options).unwrap();
    copy.wait_change(&begin);
    super::kill(&mut pair.primary);
    // Its host took its disk along.
    std::fs::remove_file(image.path()).unwrap();
    pair.wait_event("backup", "live").unwrap();
    let left = copy.bytes();
    copy.wait_change(&left);
    super::end(&mut pair.backup);
    disks::assert_rounds(&begin, &copy.bytes());
}

/// Bytes of the log's entries about the disk, as the primary counted them last.
fn disk_bytes(pair: &Pair) -> u64 {
    let metrics = pair.metrics();
    let last: serde_json::Value = serde_json::from_str(&metrics.last().unwrap().detail).unwrap();
    let kinds = last["link"]["kinds"].as_array().unwrap();
    let disk = kinds.iter().find(|kind| kind["kind"] == "disk");
    disk.expect("the guest used its disk")["bytes"]
        .as_u64()
        .unwrap()
}

/// Runs some rounds of the guest to its end, and tells how much of the log was about the disk. The last entry has the
/// digest of all memory and devices: a backup that read something else diverges.
fn to_the_end(own: bool, reads: &str, rounds: u64, backup: &[&str]) -> u64 {
    let cluster = cluster("file");
    let images = Images::new();
    let image = images.filled(BYTES);
    let copy = own.then(|| images.copy(&image));
    let begin = image.bytes();
    let both: &[&str] = if own { &["--disk-copy"] } else { &[] };
    let backups = copy.as_ref().unwrap_or(&image);
    let mut options = options(&image, backups, both, &["--disk-read", reads]);
    options.backup.extend(os(backup));
    let guest = os(&["disk", "--arg", &format!("rounds={rounds}")]);
    let mut pair = cluster.start_pair("p18", &guest, &options).unwrap();
    for daemon in [&mut pair.primary, &mut pair.backup] {
        let status = daemon.wait(LIMIT).unwrap();
        assert!(status.success(), "{status}{}", daemon.complaint());
    }
    let events = pair.events();
    assert!(events.iter().all(|line| line.event != "flag_won"));
    assert_eq!(disks::assert_rounds(&begin, &image.bytes()), rounds);
    if let Some(copy) = copy {
        assert!(copy.bytes() == image.bytes());
    }
    disk_bytes(&pair)
}

#[test]
fn p18_the_backup_reads_the_disk_itself() {
    let _machine = machine();
    if !have_kvm("P18") {
        return;
    }
    // What the guest reads in these rounds: 32 KiB, twice in each.
    let read = (40 * 2 * 32) << 10;
    assert!(to_the_end(false, "log", 40, &[]) > read);
    for own in [false, true] {
        let logged = to_the_end(own, "backup", 40, &[]);
        assert!((1..read / 20).contains(&logged), "{logged} bytes of {read}");
    }
    // A slow backup comes to a read when its primary has long made the write behind it.
    to_the_end(false, "backup", 10, &["--engine", "soft"]);
}

#[test]
fn p18_a_backup_that_reads_itself_goes_live() {
    let _machine = machine();
    if !have_kvm("P18") {
        return;
    }
    let cluster = cluster("file");
    let images = Images::new();
    let image = images.filled(BYTES);
    let begin = image.bytes();
    let options = options(&image, &image, &[], &["--disk-read", "backup"]);
    let mut pair = cluster.start_pair("p18", &guest(), &options).unwrap();
    image.wait_change(&begin);
    super::kill(&mut pair.primary);
    pair.wait_event("backup", "live").unwrap();
    let left = image.bytes();
    image.wait_change(&left);
    super::end(&mut pair.backup);
    disks::assert_rounds(&begin, &image.bytes());
}
