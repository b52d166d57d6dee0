//! A file of [`Line`]s that does not grow for ever: at 16 MiB it is renamed to one with `.1` behind its name, where the
//! one before is lost, and begun anew.

use crate::Line;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Most bytes of a file before it is begun anew; there are two of them then.
const FILE_MAX: u64 = 16 << 20;

/// A file that lines are added to, and that does not grow for ever.
pub struct Trace {
    path: PathBuf,
    file: File,
    bytes: u64,
    most: u64,
}

impl Trace {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// If it cannot be written to.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(path, FILE_MAX)
    }

    fn of(path: &Path, most: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        // Of what is no file, like a pipe, nothing is renamed.
        let kept = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            bytes: kept.len(),
            most: if kept.is_file() { most } else { u64::MAX },
            file,
        })
    }

    /// Adds a line, whole. It is for diagnosis: a full disk must not end a replica.
    pub fn add(&mut self, line: &Line) {
        let mut text = serde_json::to_string(line).expect("a line of plain text");
        text.push('\n');
        if self.bytes >= self.most {
            // Where that fails, the file grows on.
            let _ = self.begin_anew();
        }
        if self.file.write_all(text.as_bytes()).is_ok() {
            self.bytes += text.len() as u64;
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut before = OsString::from(&self.path);
        before.push(".1");
        std::fs::rename(&self.path, before)?;
        *self = Self::of(&self.path, self.most)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_full_is_begun_anew_and_the_one_before_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.events");
        let line = |n: u64| Line {
            at_ns: n,
            who: "primary".into(),
            event: "solo".into(),
            detail: "view 1".into(),
        };
        let most = 20 * serde_json::to_string(&line(1)).unwrap().len() as u64;
        let mut trace = Trace::of(&path, most).unwrap();
        for n in 0..1_000 {
            trace.add(&line(n));
        }
        // One that runs on knows how long its file is.
        drop(trace);
        let mut trace = Trace::of(&path, most).unwrap();
        for n in 1_000..1_010 {
            trace.add(&line(n));
        }
        let before = folder.path().join("x.events.1");
        let all = [Line::all_in(&before), Line::all_in(&path)].concat();
        let first = all[0].at_ns;
        assert!(
            all.iter().map(|line| line.at_ns).eq(first..1_010),
            "none is missing"
        );
        assert!(all.len() >= 20 && all.len() < 50, "{}", all.len());
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 2);
    }
}
