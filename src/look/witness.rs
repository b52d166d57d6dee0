//! Who watches a replay from its beginning to its end, and writes down what it sees.
//!
//! ```text
//!  log ── entries ──▶ Heard ──▶ replayer ──▶ outputs ──▶ Said ──▶ (nowhere, or the console)
//!                       │ what came to the guest           │ what it said
//!                       └─────────▶ witnesses ◀────────────┘
//! ```

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

use crate::failure::{During, Failure, Outcome};
use replay::file::LogReader;
use replay::{Event, InputsError, LogIndex, LogPlace, LogSource, NextEntry, Outlet, Output};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// An entry of the log, by its number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Its number.
    pub index: LogIndex,
    /// The clock there.
    pub clock: u64,
    /// When it was recorded: microseconds from the recording's begin on.
    pub at_us: u64,
    /// Guest time there in nanoseconds, where that is derived.
    pub guest_ns: Option<u64>,
}

/// One that watches.
pub trait Witness {
    /// Entry `now` was replayed.
    fn heard(&mut self, now: Now, event: &Event);

    /// The guest said something, at entry `now`.
    fn said(&mut self, now: Now, output: &Output);

    /// The replay is over, for whatever reason. What was written, in words.
    ///
    /// # Errors
    /// If it could not be written, at any time.
    fn finish(&mut self) -> Outcome<String>;
}

/// What a witness writes to. Nothing is written behind what could not be.
pub struct Sheet<W> {
    path: PathBuf,
    out: W,
    failed: Option<io::Error>,
}

impl Sheet<BufWriter<File>> {
    /// A new file at `path`.
    ///
    /// # Errors
    /// If there can be none.
    pub fn create(path: &Path) -> Outcome<Self> {
        let file = File::create(path).during(format_args!("cannot write {}", path.display()))?;
        Ok(Self::new(path, BufWriter::new(file)))
    }
}

impl<W: Write> Sheet<W> {
    /// One that is kept in `out`, which is called `path`.
    pub fn new(path: &Path, out: W) -> Self {
        Self {
            path: path.to_owned(),
            out,
            failed: None,
        }
    }

    /// Where it is written to.
    pub fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Writes more. That it fails is told at the end.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.failed = self.out.write_all(bytes).err();
        }
    }

    /// All is written.
    ///
    /// # Errors
    /// The first failure.
    pub fn finish(&mut self) -> Outcome {
        let failed = self.failed.take();
        failed
            .map_or_else(|| self.out.flush(), Err)
            .during(format_args!("cannot write {}", self.path()))
    }
}

#[cfg(test)]
impl<W> Sheet<W> {
    /// Where it is kept.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }
}

/// All that watch one replay.
#[derive(Clone, Default)]
pub struct Witnesses {
    all: Vec<Rc<RefCell<dyn Witness>>>,
    /// The entries that were read, and may not have been replayed.
    read: Rc<RefCell<VecDeque<(Now, Event)>>>,
}

/// That what is written of `log` overwrites neither it nor another of them.
///
/// # Errors
/// Which would be.
pub fn check_apart<'a>(log: &Path, written: impl IntoIterator<Item = &'a Path>) -> Outcome {
    let mut taken = vec![(log, file(log))];
    for path in written {
        let own = file(path);
        let same = |(other, place): &&(&Path, Option<(u64, u64)>)| {
            *other == path || own.is_some() && *place == own
        };
        if let Some((other, _)) = taken.iter().find(same) {
            let (path, other) = (path.display(), other.display());
            return Err(Failure::usage(format!("{path} would overwrite {other}")));
        }
        taken.push((path, own));
    }
    Ok(())
}

/// What makes a file the same by any name, if there is one: its device and its number.
fn file(path: &Path) -> Option<(u64, u64)> {
    let about = std::fs::metadata(path).ok()?;
    about.is_file().then(|| (about.dev(), about.ino()))
}

/// So far a replayer reads ahead at most where it has diverged, to say what should have come.
const AHEAD: usize = 16;

impl Witnesses {
    /// Has `witness` watch as well.
    pub fn add(&mut self, witness: impl Witness + 'static) {
        self.all.push(Rc::new(RefCell::new(witness)));
    }

    /// Has all of them finish, where entries up to `done` were replayed; what each wrote, or why it could not.
    pub fn finish(&self, done: LogIndex) -> Vec<Outcome<String>> {
        self.tell(|now| now.index < done);
        let all = self.all.iter();
        all.map(|witness| witness.borrow_mut().finish()).collect()
    }

    /// Entry `now` was read.
    fn note(&self, now: Now, event: &Event) {
        if self.all.is_empty() {
            return;
        }
        let mut read = self.read.borrow_mut();
        read.push_back((now, event.clone()));
        let beyond = read.len().saturating_sub(AHEAD);
        let replayed = read.get(beyond).map_or(now, |(now, _)| *now).index;
        drop(read);
        self.tell(|now| now.index < replayed);
    }

    /// Tells of the entries that were read and that `is_done` says are replayed.
    fn tell(&self, is_done: impl Fn(&Now) -> bool) {
        let mut read = self.read.borrow_mut();
        while let Some((now, event)) = read.front()
            && is_done(now)
        {
            for witness in &self.all {
                witness.borrow_mut().heard(*now, event);
            }
            read.pop_front();
        }
    }

    /// The guest said `output` at entry `index`, which is so far as the replay is.
    fn said(&self, index: LogIndex, output: &Output) {
        let at = self
            .read
            .borrow()
            .iter()
            .find_map(|(now, _)| (now.index == index).then_some(*now));
        let now = at.unwrap_or(Now {
            index,
            ..Now::default()
        });
        self.tell(|now| now.index <= index);
        for witness in &self.all {
            witness.borrow_mut().said(now, output);
        }
    }
}

/// A log that is read before witnesses.
pub struct Heard {
    /// The log.
    pub log: LogReader,
    witnesses: Witnesses,
    /// By how much guest time is ahead of the clock, where it is derived: by all anchors so far.
    skipped_ns: Option<u64>,
}

impl Heard {
    /// `log`, which begins where guest time is ahead of the clock by `skipped_ns`, if it is derived.
    pub fn new(log: LogReader, witnesses: Witnesses, skipped_ns: Option<u64>) -> Self {
        Self {
            log,
            witnesses,
            skipped_ns,
        }
    }
}

impl LogSource for Heard {
    fn next(&mut self, wait: bool) -> Result<NextEntry, InputsError> {
        let index = self.log.place().index;
        let next = self.log.next(wait)?;
        if let NextEntry::Entry(entry) = &next {
            // What is out of range fails where it is replayed.
            let anchor_ns = entry.anchor.ns().unwrap_or(0);
            let skipped_ns = self.skipped_ns.map(|ns| ns.saturating_add(anchor_ns));
            self.skipped_ns = skipped_ns;
            let now = Now {
                index,
                clock: entry.clock.0,
                at_us: self.log.at_us(),
                guest_ns: skipped_ns.map(|ns| ns.saturating_add(entry.clock.0)),
            };
            self.witnesses.note(now, &entry.event);
        }
        Ok(next)
    }

    fn place(&self) -> LogPlace {
        self.log.place()
    }
}

/// An outlet whose outputs are seen by witnesses on their way.
pub struct Said<O> {
    /// Where they go.
    pub outlet: O,
    /// Who watches.
    pub witnesses: Witnesses,
}

impl<O: Outlet> Outlet for Said<O> {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.witnesses.said(index, &output);
        self.outlet.emit(index, output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_over_the_log_or_over_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let [log, link, new, other] =
            ["log", "link", "new", "other"].map(|n| folder.path().join(n));
        std::fs::write(&log, "a log").unwrap();
        std::fs::hard_link(&log, &link).unwrap();
        let check = |written: &[&Path]| check_apart(&log, written.iter().copied());
        assert!(check(&[&new, &other]).is_ok());
        assert!(check(&[Path::new("/dev/null"), &new]).is_ok());
        for written in [[&log, &new], [&new, &link], [&new, &new]] {
            let refused = check(&written.map(|path| path.as_path())).unwrap_err();
            assert_eq!(refused.code(), 2, "{refused}");
        }
    }

    /// Writes down which entries it was told of.
    struct Clerk(Rc<RefCell<Vec<u64>>>);

    impl Witness for Clerk {
        fn heard(&mut self, now: Now, _: &Event) {
            self.0.borrow_mut().push(now.index.0);
        }

        fn said(&mut self, now: Now, _: &Output) {
            self.0.borrow_mut().push(1000 + now.clock);
        }

        fn finish(&mut self) -> Outcome<String> {
            Ok(String::new())
        }
    }

    #[test]
    fn what_was_read_and_not_replayed_is_not_told() {
        let told = Rc::default();
        let mut witnesses = Witnesses::default();
        witnesses.add(Clerk(Rc::clone(&told)));
        let read = |index| {
            let now = Now {
                index: LogIndex(index),
                clock: 7 * index,
                ..Now::default()
            };
            witnesses.note(now, &Event::Progress);
        };
        (0..5).for_each(read);
        assert!(
            told.borrow().is_empty(),
            "it may have diverged at the first"
        );
        witnesses.said(LogIndex(4), &Output::Console(Vec::new()));
        assert_eq!(*told.borrow(), [0, 1, 2, 3, 4, 1028], "in their order");
        (5..40).for_each(read);
        assert!(told.borrow().len() > 20, "not all is kept to the end");
        witnesses.finish(LogIndex(37));
        assert_eq!(told.borrow().last(), Some(&36));
    }

    /// A file that takes so many bytes.
    struct Small(usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let left = self.0.checked_sub(bytes.len());
            self.0 = left.ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_is_full_is_told_of_once_and_for_all() {
        let mut sheet = Sheet::new(Path::new("it"), Small(10));
        sheet.write(b"six by");
        sheet.write(b"and as many");
        sheet.out().0 = 1000;
        sheet.write(b"more");
        assert_eq!(sheet.out().0, 1000, "nothing is written behind a hole");
        let said = sheet.finish().unwrap_err().to_string();
        assert!(said.starts_with("cannot write it: "), "{said}");
    }
}
