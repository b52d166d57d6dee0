//! The partitions of a disk in a file, read and written by sfdisk.

use crate::error::{Error, Result};
use crate::tools::{Stop, output, tool};
use serde::Deserialize;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// Bytes of a sector of a disk in a file (sfdisk takes no other).
const SECTOR: u64 = 512;
/// Most partitions looked at.
const MOST: usize = 128;

/// Where a partition is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its first byte.
    pub begin: u64,
    /// How many it has.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Answer {
    partitiontable: Table,
}

#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    partitions: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    start: u64,
    size: u64,
}

/// The partitions of the disk in a file, as they are numbered. `none` is the failure if it has no table.
///
/// # Errors
/// If there is no sfdisk, or no table.
pub fn partitions(stop: &Stop, disk: &Path, none: impl Fn() -> Error) -> Result<Vec<Partition>> {
    let mut command = tool("sfdisk")?;
    command.arg("--json").arg(disk);
    let words = output(stop, &mut command)?.map_err(|_| none())?;
    parse(&words).ok_or_else(none)
}

fn parse(words: &str) -> Option<Vec<Partition>> {
    let answer: Answer = serde_json::from_str(words).ok()?;
    let lines = answer.partitiontable.partitions.iter().take(MOST);
    let found = lines.filter_map(|line| {
        Some(Partition {
            begin: line.start.checked_mul(SECTOR)?,
            bytes: line.size.checked_mul(SECTOR)?,
        })
    });
    Some(found.collect())
}

impl Partition {
    /// Adds this one to the table of the disk in a file. `inputs` is a digest its identifier is taken from.
    ///
    /// # Errors
    /// What sfdisk says.
    pub fn append(self, stop: &Stop, disk: &Path, inputs: &str) -> Result<(), String> {
        let line = |kind: &str| {
            let (begin, size) = (self.begin / SECTOR, self.bytes / SECTOR);
            format!("start={begin}, size={size}, type={kind}")
        };
        let guid = crate::ext4::uuid(inputs);
        // Microsoft's "basic data" in a GPT, which the other kind of table knows as FAT.
        let gpt = line("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7");
        let gpt = format!("{gpt}, uuid={guid}, name=\"cidata\"\n");
        let dos = line("c") + "\n";
        match sfdisk(stop, disk, &gpt) {
            Ok(()) => Ok(()),
            Err(_) => sfdisk(stop, disk, &dos),
        }
    }
}

fn sfdisk(stop: &Stop, disk: &Path, line: &str) -> Result<(), String> {
    let mut input = tempfile::tempfile().map_err(|why| why.to_string())?;
    let written = input.write_all(line.as_bytes());
    let written = written.and_then(|()| std::io::Seek::rewind(&mut input));
    written.map_err(|why| why.to_string())?;
    let mut command = tool("sfdisk").map_err(|why| why.to_string())?;
    command
        .args([
            "--quiet",
            "--append",
            "--no-reread",
            "--no-tell-kernel",
            "--wipe=never",
        ])
        .arg(disk)
        .stdin(Stdio::from(input));
    let ran = output(stop, &mut command).map_err(|why| why.to_string())?;
    ran.map(drop).map_err(|failed| failed.line().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sfdisks_answer_is_taken_or_refused() {
        let words = r#"{"partitiontable": {"label": "gpt", "partitions":
            [{"node": "d1", "start": 2048, "size": 100}, {"node": "d14", "start": 18446744073709551615, "size": 1}]}}"#;
        let first = Partition {
            begin: 1 << 20,
            bytes: 51200,
        };
        assert_eq!(parse(words), Some(vec![first]));
        assert_eq!(
            parse(r#"{"partitiontable": {"label": "dos"}}"#),
            Some(vec![])
        );
        assert_eq!(parse("no"), None);
    }

    #[test]
    fn a_partition_is_added_to_either_kind_of_table() {
        if let Err(why) = tool("sfdisk") {
            return testing::skipped::skip_this(&why);
        }
        let folder = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        for label in ["gpt", "dos"] {
            let disk = folder.path().join(label);
            let file = std::fs::File::create(&disk).unwrap();
            file.set_len(16 << 20).unwrap();
            let none = || Error::CacheChanges;
            assert!(partitions(&stop, &disk, none).is_err());
            let mut input = tempfile::tempfile().unwrap();
            writeln!(input, "label: {label}\nstart=2048, size=8192").unwrap();
            std::io::Seek::rewind(&mut input).unwrap();
            let mut command = tool("sfdisk").unwrap();
            command.arg("-q").arg(&disk).stdin(Stdio::from(input));
            output(&stop, &mut command).unwrap().unwrap();
            // Longer than it was: the table has to be told.
            file.set_len(24 << 20).unwrap();
            let seed = Partition {
                begin: 16 << 20,
                bytes: 1 << 20,
            };
            let inputs = "0123456789abcdef0123456789abcdef";
            seed.append(&stop, &disk, inputs).unwrap();
            let found = partitions(&stop, &disk, none).unwrap();
            assert_eq!(found.len(), 2, "{label}");
            assert_eq!(found[1], seed, "{label}");
        }
    }
}
