//! What goes wrong before and around a guest: one clear line, a non-zero exit, no panic, nothing left
//! behind.

#[path = "../common/mod.rs"]
mod common;
mod late;
mod logs;
mod no_kvm;
mod results;
mod usage;

use common::{assert_one_line, cluster, have_kvm, machine, os, tandem, text};
use kit::cluster::PairOptions;
use std::net::TcpListener;

#[test]
fn an_unknown_or_broken_guest_image_is_named() {
    let _machine = machine();
    assert_one_line(
        &tandem(&["run", "no-such-guest"]),
        1,
        &["no-such-guest", "counter"],
    );
    if !have_kvm("broken images") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let (_, _, whole) = guests::BUILT_IN
        .iter()
        .find(|(n, ..)| *n == "counter")
        .unwrap();
    for (bytes, word) in [
        (&b""[..], "ELF64"),
        (&b"#!/bin/sh\n"[..], "ELF64"),
        (&whole[..40], "ELF64"),
        (&whole[..100], "ELF64"),
    ] {
        std::fs::write(&image, bytes).unwrap();
        assert_one_line(&tandem(&["run", text(&image)]), 1, &[word]);
    }
    let mut other = whole.to_vec();
    other[18] = 0xb7; // e_machine: AArch64
    std::fs::write(&image, other).unwrap();
    assert_one_line(&tandem(&["run", text(&image)]), 1, &["x86-64"]);
}

#[test]
fn a_network_that_is_not_there_is_said() {
    let _machine = machine();
    if !have_kvm("networks") {
        return;
    }
    assert_one_line(
        &tandem(&["run", "echo", "--net", "switch:/no/such/socket"]),
        1,
        &["switch"],
    );
    let long = format!("tap:{}", "x".repeat(40));
    assert_one_line(&tandem(&["run", "echo", "--net", &long]), 1, &["name"]);
}

#[test]
fn a_disk_that_cannot_be_used_is_said() {
    let _machine = machine();
    if !have_kvm("disks") {
        return;
    }
    assert_one_line(
        &tandem(&["run", "disk", "--disk", "/no/such/disk"]),
        1,
        &["/no/such/disk"],
    );
    let folder = tempfile::tempdir().unwrap();
    assert_one_line(
        &tandem(&["run", "disk", "--disk", text(folder.path())]),
        1,
        &["disk"],
    );
    let odd = folder.path().join("odd");
    std::fs::write(&odd, [0; 700]).unwrap();
    assert_one_line(&tandem(&["run", "disk", "--disk", text(&odd)]), 1, &["512"]);
}

#[test]
fn a_port_that_is_taken_is_said() {
    let _machine = machine();
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let flags = format!("file:{}", folder.path().display());
    let output = tandem(&["backup", "--listen", &address, "--arbiter", &flags]);
    assert_one_line(&output, 1, &[&address]);
    let store = folder.path().join("store");
    let output = tandem(&["arbiter", "--listen", &address, "--store", text(&store)]);
    assert_one_line(&output, 1, &[&address]);
}

#[test]
fn a_backup_or_arbiter_that_is_not_there_is_said() {
    let _machine = machine();
    if !have_kvm("missing peers") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let flags = format!("file:{}", folder.path().display());
    let output = tandem(&["primary", "counter", "--backup", &free, "--arbiter", &flags]);
    assert_one_line(&output, 1, &[&free, "tandem backup"]);
    let gone = format!("tcp:{free}");
    for arbiter in ["file:/no/such/folder", "nonsense", &gone] {
        let output = tandem(&[
            "primary",
            "counter",
            "--backup",
            &free,
            "--arbiter",
            arbiter,
        ]);
        assert_one_line(&output, 1, &[]);
    }
}

#[test]
fn a_peer_of_another_version_is_told_so() {
    let _machine = machine();
    if !have_kvm("peers") {
        return;
    }
    use std::io::{Read, Write};
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = peer.local_addr().unwrap().to_string();
    // Something that answers, but not as a backup of ours.
    let answer = std::thread::spawn(move || {
        let (mut socket, _) = peer.accept().unwrap();
        let mut buffer = [0; 4096];
        let _ = socket.read(&mut buffer);
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let folder = tempfile::tempdir().unwrap();
    let flags = format!("file:{}", folder.path().display());
    let output = tandem(&[
        "primary",
        "counter",
        "--backup",
        &address,
        "--arbiter",
        &flags,
    ]);
    assert_one_line(&output, 1, &[]);
    answer.join().unwrap();
}

#[test]
fn a_backup_with_another_disk_refuses_and_goes_on_waiting() {
    let _machine = machine();
    if !have_kvm("refusals") {
        return;
    }
    let cluster = cluster("file");
    let disk = cluster.folder().join("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    // The backup gets no --disk: only the primary is given one, by hand.
    let options = PairOptions {
        primary: os(&["--disk", text(&disk)]),
        ..PairOptions::default()
    };
    let mut pair = cluster
        .start_pair("refused", &os(&["disk"]), &options)
        .unwrap();
    assert_eq!(pair.primary.wait(common::LIMIT).unwrap().code(), Some(1));
    assert!(
        pair.primary.complaint().contains("refused"),
        "{}",
        pair.primary.complaint()
    );
    assert!(!pair.backup.has_ended());
}

#[test]
fn a_log_on_a_full_disk_ends_the_recording_with_one_line() {
    let _machine = machine();
    assert_one_line(
        &tandem(&["record", "counter", "--quiet", "-o", "/dev/full"]),
        1,
        &["/dev/full"],
    );
}
