//! The partitions of a disk in a file, read and written by sfdisk.

use crate::error::{During, Error, Result};
use crate::ext4::uuid;
use crate::tools::{Stop, output, tool};
use serde::Deserialize;
use std::io::{Seek, Write};
use std::path::Path;
use std::process::Stdio;

/// Bytes of a sector of a disk in a file (sfdisk takes no other).
const SECTOR: u64 = 512;
/// Most partitions looked at.
const MOST: usize = 128;
/// The type of a partition with data, in a GPT.
const BASIC_DATA: &str = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7";

/// Where a partition is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its first byte.
    pub begin: u64,
    /// How many it has.
    pub bytes: u64,
}

/// The table of a disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    label: String,
    /// Its partitions, as they are numbered.
    pub partitions: Vec<Partition>,
}

/// What sfdisk says of a disk.
#[derive(Deserialize)]
struct Answer {
    partitiontable: Lines,
}

#[derive(Deserialize)]
struct Lines {
    label: String,
    #[serde(default)]
    partitions: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    start: u64,
    size: u64,
}

impl Table {
    /// The table of the disk in a file. `none` is the failure if it has none.
    ///
    /// # Errors
    /// If there is no sfdisk, or no table.
    pub fn read(stop: &Stop, disk: &Path, none: impl Fn() -> Error) -> Result<Self> {
        let mut command = tool("sfdisk")?;
        command.arg("--json").arg(disk);
        let words = output(stop, &mut command)?.map_err(|_| none())?;
        Self::parse(&words).ok_or_else(none)
    }

    fn parse(words: &str) -> Option<Self> {
        let Answer {
            partitiontable: Lines { label, partitions },
        } = serde_json::from_str(words).ok()?;
        let found = partitions.iter().take(MOST).filter_map(|line| {
            Some(Partition {
                begin: line.start.checked_mul(SECTOR)?,
                bytes: line.size.checked_mul(SECTOR)?,
            })
        });
        Some(Self {
            label,
            partitions: found.collect(),
        })
    }

    /// Adds a partition to the table of the disk in a file, which this one was read from. `inputs` is a digest its
    /// identifier is taken from; `no` makes a failure of why it takes none.
    ///
    /// Why by label: sfdisk takes a line with a GPT's type for a DOS table, too, and writes type 0, which no guest
    /// looks into.
    ///
    /// # Errors
    /// `no`, or if sfdisk cannot be run.
    pub fn append(
        &self,
        stop: &Stop,
        disk: &Path,
        partition: Partition,
        inputs: &str,
        no: &dyn Fn(String) -> Error,
    ) -> Result {
        let kind = match self.label.as_str() {
            // Microsoft's "basic data", which the other kind of table knows as FAT.
            "gpt" => format!("{BASIC_DATA}, uuid={}, name=\"cidata\"", uuid(inputs)),
            "dos" => "c".to_owned(),
            other => {
                let other = other.escape_debug();
                return Err(no(format!("its partition table is of the kind {other}")));
            }
        };
        let (begin, size) = (partition.begin / SECTOR, partition.bytes / SECTOR);
        let line = format!("start={begin}, size={size}, type={kind}\n");
        let mut command = tool("sfdisk")?;
        command
            .args(["--quiet", "--append", "--no-reread", "--no-tell-kernel"])
            .arg("--wipe=never")
            .arg(disk)
            .stdin(input(&line)?);
        let added = output(stop, &mut command)?;
        added.map(drop).map_err(|failed| {
            let why = failed.line();
            no(format!("its partition table takes no other: {why}"))
        })
    }
}

/// What a tool reads.
fn input(text: &str) -> Result<Stdio> {
    let failed = "cannot write what sfdisk reads";
    let mut file = tempfile::tempfile().during(failed)?;
    file.write_all(text.as_bytes()).during(failed)?;
    file.rewind().during(failed)?;
    Ok(Stdio::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sfdisks_answer_is_taken_or_refused() {
        let words = r#"{"partitiontable": {"label": "gpt", "partitions":
            [{"node": "d1", "start": 2048, "size": 100}, {"node": "d14", "start": 18446744073709551615, "size": 1}]}}"#;
        let table = |label: &str, partitions| Table {
            label: label.into(),
            partitions,
        };
        let first = Partition {
            begin: 1 << 20,
            bytes: 51200,
        };
        assert_eq!(Table::parse(words), Some(table("gpt", vec![first])));
        assert_eq!(
            Table::parse(r#"{"partitiontable": {"label": "dos"}}"#),
            Some(table("dos", vec![]))
        );
        assert_eq!(Table::parse("no"), None);
    }

    /// The type of the second partition, as sfdisk tells it.
    fn type_of_second(disk: &Path) -> String {
        let mut command = tool("sfdisk").unwrap();
        command.arg("--part-type").arg(disk).arg("2");
        let words = output(&Stop::default(), &mut command).unwrap().unwrap();
        words.trim().to_owned()
    }

    #[test]
    fn a_partition_is_added_to_either_kind_of_table() {
        if let Err(why) = tool("sfdisk") {
            return testing::skipped::skip_this(&why);
        }
        let folder = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        let none = || Error::CacheChanges;
        let no = |why: String| Error::Cloud {
            path: "disk".into(),
            why,
        };
        let seed = Partition {
            begin: 16 << 20,
            bytes: 1 << 20,
        };
        for (label, kind) in [("gpt", BASIC_DATA), ("dos", "c")] {
            let disk = folder.path().join(label);
            let file = std::fs::File::create(&disk).unwrap();
            file.set_len(16 << 20).unwrap();
            assert!(Table::read(&stop, &disk, none).is_err());
            let mut command = tool("sfdisk").unwrap();
            let lines = input(&format!("label: {label}\nstart=2048, size=8192\n")).unwrap();
            command.arg("-q").arg(&disk).stdin(lines);
            output(&stop, &mut command).unwrap().unwrap();
            // Longer than it was: the table has to be told.
            file.set_len(24 << 20).unwrap();
            let table = Table::read(&stop, &disk, none).unwrap();
            let inputs = "0123456789abcdef0123456789abcdef";
            table.append(&stop, &disk, seed, inputs, &no).unwrap();
            let found = Table::read(&stop, &disk, none).unwrap().partitions;
            assert_eq!(found.len(), 2, "{label}");
            assert_eq!(found[1], seed, "{label}");
            assert_eq!(type_of_second(&disk), kind, "{label}");
            // There is something already.
            let again = table.append(&stop, &disk, seed, inputs, &no).unwrap_err();
            let words = again.to_string();
            assert!(words.contains("takes no other"), "{label}: {words}");
        }
        let other = Table {
            label: "sun".into(),
            partitions: Vec::new(),
        };
        let other = other
            .append(&stop, folder.path(), seed, "", &no)
            .unwrap_err();
        assert!(other.to_string().contains("of the kind sun"), "{other}");
    }
}
