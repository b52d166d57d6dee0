//! What is read from files that somebody else may have written.

use crate::Bytes;
use bundle::Bundle;
use bundle::cpio::{Meta, Reader, Writer};
use replay::file::LogReader;
use std::io::{Read, Write};
use std::ops::Range;
use vmm::cpu::Offer;
use vmm::machine::snapshot::Snapshot;
use vmm::machine::{Machine, boot};
use vmm::soft::SoftEngine;

/// Memory of the machines that are restored, in MiB: the least there is.
const MEMORY_MIB: u32 = 16;

/// A log file, whose header and frames have their checksums put right, if the first byte says so.
pub(crate) fn log(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let text = match bytes.u8() % 2 {
        0 => bytes.0.to_vec(),
        _ => sealed(bytes.0.to_vec()),
    };
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    file.write_all(&text).expect("it is written");
    let Ok(mut reader) = LogReader::open(file.path()) else {
        return;
    };
    if let Ok(Some(state)) = reader.state() {
        let _ = restore(state);
    }
    while let Ok(Some(entry)) = reader.read() {
        drop(format!("{entry:?}"));
    }
    let _ = reader.check_end();
}

/// Puts the checksums of a log right: of its header, and of its frames if no state is between.
fn sealed(mut text: Vec<u8>) -> Vec<u8> {
    let Some(header) = length(&text, 12) else {
        return text;
    };
    let mut at = 20 + header;
    seal(&mut text, 16, 20..at);
    while let Some(frame) = length(&text, at) {
        let end = at + 8 + frame;
        if !seal(&mut text, at + 4, at + 8..end) {
            break;
        }
        at = end;
    }
    text
}

/// The length that stands at `at`.
fn length(text: &[u8], at: usize) -> Option<usize> {
    let bytes = text.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

/// Puts the checksum of `what` at `at`; whether both are there.
fn seal(text: &mut [u8], at: usize, what: Range<usize>) -> bool {
    let Some(crc) = text.get(what).map(crc32fast::hash) else {
        return false;
    };
    text[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    true
}

/// A snapshot, into a machine of the least size there is.
pub(crate) fn snapshot(bytes: &[u8]) {
    let _ = restore(bytes);
}

fn restore(from: impl Read) -> Option<()> {
    let snapshot = Snapshot::open(from).ok()?;
    let config = snapshot.config().clone();
    if config.memory_mib > MEMORY_MIB {
        return None;
    }
    let memory = boot::memory(&config).ok()?;
    let engine = SoftEngine::new(memory.clone(), config.cpu, Offer::Bare, config.clock_kind);
    let mut machine = Machine::restore(engine.ok()?, memory, snapshot).ok()?;
    // What was taken can be saved.
    machine.save(std::io::sink()).ok()
}

/// An image, and the archive it is in: as it comes, or as the description in a whole one.
pub(crate) fn bundle(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    if bytes.u8() % 2 == 0 {
        for member in Reader::new(bytes.0).map_while(Result::ok) {
            drop(format!("{member:?}"));
        }
        let _ = Bundle::parse(bytes.0);
        return;
    }
    let mut writer = Writer::default();
    let members: [(&str, &[u8]); 3] =
        [("manifest.json", bytes.0), ("kernel", b""), ("initrd", b"")];
    for (name, data) in members {
        let added = writer.add(name, Meta::default(), data);
        added.expect("it is small");
    }
    let archive = writer.finish();
    if let Ok(image) = Bundle::parse(&archive) {
        image.write().expect("it was read");
    }
}
