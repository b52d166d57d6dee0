use super::*;
use crate::ViewNumber;
use crate::anchor::Anchor;
use crate::event::{Arrival, Stand};
use crate::point::{Clock, RegisterDigest};
use proptest::prelude::*;

/// Where the logs of these tests begin: at a boot, and in the middle of a run.
fn bases() -> [Base; 2] {
    let state = Base {
        view: ViewNumber(3),
        index: LogIndex(1_000),
        clock: Clock(1_000_000_000),
        digest: 42,
        origin: BaseOrigin::State,
    };
    [Base::alone(42), state]
}

/// The state of the logs that begin at one, in the chunks they have it in.
const STATE: [&[u8]; 3] = [b"memory and", b" ", b"devices"];

fn header(base: Base) -> LogHeader {
    LogHeader {
        cpu_model: "v1".into(),
        clock_kind: ClockKind::Blocks,
        config: vec![1, 2, 3],
        base,
    }
}

#[test]
fn the_largest_header_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let with = |bytes: usize| LogHeader {
        config: vec![0xff; bytes],
        ..header(bases()[0])
    };
    let rest = to_bytes(&with(HEADER_MAX - 100)).len() - (HEADER_MAX - 100);
    let largest = with(HEADER_MAX - rest);
    assert_eq!(to_bytes(&largest).len(), HEADER_MAX);
    drop(LogWriter::create(&path, &largest, || 0).unwrap());
    assert_eq!(*LogReader::open(&path).unwrap().header(), largest);
}

/// A new log that begins at `base`.
fn create(path: &Path, base: Base) -> LogWriter {
    let header = header(base);
    if base.origin == BaseOrigin::Boot {
        return LogWriter::create(path, &header, || 0).unwrap();
    }
    let mut state = LogWriter::create_with_state(path, &header, || 0).unwrap();
    for chunk in STATE {
        state.write_all(chunk).unwrap();
        state.flush().unwrap();
    }
    state.finish().unwrap()
}

/// A log that begins at `base`, of so many frames of three entries, and one that is the end of its machine,
/// or only of the recording.
fn write(path: &Path, base: Base, frames: u64, end: LogEnd) {
    let mut writer = create(path, base);
    let stand = Some(Stand {
        rip: Some(0x10_0000),
        registers: RegisterDigest(9),
    });
    for n in 0..frames * 3 {
        let event = Event::Arrival(Arrival::Frame(vec![n as u8; 40]));
        writer
            .append(&LogEntry {
                clock: Clock(base.clock.0 + n * 1000),
                stand,
                anchor: Anchor::NONE,
                event,
            })
            .unwrap();
        if n % 3 == 2 {
            writer.flush().unwrap();
        }
    }
    let event = match end {
        LogEnd::Machine => Event::End { code: 0, digest: 7 },
        LogEnd::Left => Event::Left { digest: 7 },
    };
    writer
        .append(&LogEntry {
            clock: Clock(base.clock.0 + frames * 3000),
            stand,
            anchor: Anchor::NONE,
            event,
        })
        .unwrap();
}

/// How many entries there are, how the log ends, and what is wrong with it. A state it begins at is read first.
fn read_all(path: &Path) -> Result<(usize, Option<LogEnd>, Option<Tail>), LogError> {
    let mut reader = LogReader::open(path)?;
    if let Some(mut state) = reader.state()? {
        let mut bytes = Vec::new();
        state.read_to_end(&mut bytes).map_err(log_error)?;
        assert_eq!(bytes, STATE.concat());
    }
    let mut entries = 0;
    while reader.read()?.is_some() {
        entries += 1;
    }
    Ok((entries, reader.end(), reader.tail().cloned()))
}

#[test]
fn a_whole_log_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for base in bases() {
        for end in [LogEnd::Machine, LogEnd::Left] {
            write(&path, base, 5, end);
            assert_eq!(read_all(&path).unwrap(), (16, Some(end), None));
            let mut reader = LogReader::open(&path).unwrap();
            assert_eq!(reader.header(), &header(base));
            assert_eq!(LogSource::place(&reader), base.place());
            reader.read().unwrap();
            assert_eq!(LogSource::place(&reader).index, base.index.next());
            let state = reader.state().unwrap().map(|state| state.size());
            let size = STATE.concat().len() as u64;
            assert_eq!(state, (base.origin == BaseOrigin::State).then_some(size));
        }
    }
}

#[test]
fn entries_are_numbered_from_the_base_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for base in bases() {
        let mut writer = create(&path, base);
        for n in 0..3 {
            let clock = Clock(base.clock.0 + n);
            let index = writer.append(&LogEntry::progress(clock)).unwrap();
            assert_eq!(index, LogIndex(base.index.0 + n));
            let next = index.next();
            assert_eq!(writer.place(), LogPlace { index: next, clock });
        }
        assert_eq!(writer.entries(), 3);
    }
}

#[test]
fn a_log_is_read_again_from_any_entry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for base in bases() {
        write(&path, base, 5, LogEnd::Left);
        read_again_from_any_entry(&path);
    }
}

fn read_again_from_any_entry(path: &Path) {
    let mut reader = LogReader::open(path).unwrap();
    let (mut marks, mut entries) = (Vec::new(), Vec::new());
    loop {
        marks.push(reader.mark());
        let Some((entry, _)) = reader.read().unwrap() else {
            break;
        };
        entries.push(entry);
    }
    for n in (0..marks.len()).rev() {
        reader.rewind(&marks[n]).unwrap();
        assert_eq!(reader.ended(), n == entries.len());
        let mut rest = Vec::new();
        while let Some((entry, _)) = reader.read().unwrap() {
            rest.push(entry);
        }
        assert_eq!(rest, entries[n..]);
        assert!(reader.ended() && reader.tail().is_none());
    }
}

#[test]
fn a_log_cut_or_altered_at_any_byte_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let other = dir.path().join("other");
    for base in bases() {
        write(&path, base, 4, LogEnd::Machine);
        cut_and_altered_everywhere(&path, &other);
    }
}

fn cut_and_altered_everywhere(path: &Path, other: &Path) {
    let whole = std::fs::read(path).unwrap();
    for at in 0..whole.len() {
        std::fs::write(other, &whole[..at]).unwrap();
        if let Ok((entries, end, _)) = read_all(other) {
            assert!(end.is_none() && entries < 13, "cut at {at}");
        }
        let mut altered = whole.clone();
        altered[at] ^= 0x10;
        std::fs::write(other, &altered).unwrap();
        if let Ok((_, _, tail)) = read_all(other) {
            assert!(tail.is_some(), "altered at {at}");
        }
    }
}

/// What is wrong with a log, as it came through a state's reader.
fn log_error(error: std::io::Error) -> LogError {
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let inner = error.into_inner().expect("the reason");
    *inner.downcast().expect("a log's error")
}

/// Where the state of a log that begins at one is: its first byte, and that behind it.
fn state_of(path: &Path) -> (usize, usize) {
    let extent = LogReader::open(path).unwrap().state.unwrap();
    let begins = extent.ends - (STATE.concat().len() + 8 * (STATE.len() + 1)) as u64;
    (begins as usize, extent.ends as usize)
}

#[test]
fn a_state_that_is_torn_or_altered_is_named_by_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let base = bases()[1];
    write(&path, base, 1, LogEnd::Machine);
    let whole = std::fs::read(&path).unwrap();
    let (begins, ends) = state_of(&path);
    // Every chunk of the state, and its end mark, begins where the one before ends.
    let mut chunks = vec![begins];
    for chunk in STATE {
        chunks.push(chunks.last().unwrap() + 8 + chunk.len());
    }
    assert_eq!(chunks.last().unwrap() + 8, ends);
    let chunk_of = |at: usize| *chunks.iter().rfind(|begins| **begins <= at).unwrap() as u64;
    let named = |error: LogError, at: usize, words: &[&str]| {
        let LogError::Malformed {
            what,
            offset,
            entry,
        } = error
        else {
            panic!("{at}: {error}");
        };
        assert_eq!((offset, entry), (chunk_of(at), 1_000), "{at}: {what}");
        assert!(
            words.iter().any(|word| what.ends_with(word)),
            "{at}: {what}"
        );
    };
    for at in begins..ends {
        std::fs::write(&path, &whole[..at]).unwrap();
        let error = LogReader::open(&path).err().expect("it is cut");
        named(error, at, &["state cut short"]);

        let mut altered = whole.clone();
        altered[at] ^= 0x10;
        std::fs::write(&path, &altered).unwrap();
        // Lengths are looked at when it is opened, bytes when they are read.
        let is_byte = chunk_of(at) as usize + 8 <= at;
        let opened = LogReader::open(&path);
        assert!(opened.is_ok() || !is_byte, "{at}");
        if is_byte {
            let mut state = opened.unwrap().state().unwrap().unwrap();
            let mut bytes = Vec::new();
            let error = log_error(state.read_to_end(&mut bytes).unwrap_err());
            named(error, at, &["state chunk checksum wrong"]);
            // What came before is sound, and nothing of the chunk was given out.
            assert!(STATE.concat().starts_with(&bytes));
            assert!(state.read_to_end(&mut bytes).is_err(), "it stays so");
        }
    }
}

#[test]
fn no_chunk_of_a_state_is_taken_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    write(&path, bases()[1], 1, LogEnd::Machine);
    let whole = std::fs::read(&path).unwrap();
    let (begins, _) = state_of(&path);
    let first = 8 + STATE[0].len();
    let second = 8 + STATE[1].len();
    let (head, rest) = whole.split_at(begins);
    let read = |parts: &[&[u8]]| {
        std::fs::write(&path, [&[head], parts].concat().concat()).unwrap();
        read_all(&path).map(|(entries, ..)| entries)
    };
    let (one, two, more) = (
        &rest[..first],
        &rest[first..first + second],
        &rest[first + second..],
    );
    assert_eq!(read(&[one, two, more]).unwrap(), 4);
    assert!(read(&[two, one, more]).is_err(), "swapped");
    assert!(read(&[one, more]).is_err(), "left out");
    assert!(read(&[one, one, two, more]).is_err(), "twice");
}

#[test]
fn a_length_in_a_state_sizes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    write(&path, bases()[1], 1, LogEnd::Machine);
    let mut bytes = std::fs::read(&path).unwrap();
    let (begins, _) = state_of(&path);
    for length in [(1 << 20) + 1, u32::MAX] {
        bytes[begins..begins + 4].copy_from_slice(&length.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = LogReader::open(&path).err().expect("it is too long");
        assert!(error.to_string().contains("out of range"), "{error}");
    }
}

#[test]
fn a_state_without_its_end_is_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut state = LogWriter::create_with_state(&path, &header(bases()[1]), || 0).unwrap();
    state.write_all(&[7; 3 << 20]).unwrap();
    drop(state);
    let error = LogReader::open(&path).err().expect("it has no end mark");
    assert!(error.to_string().contains("state cut short"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// In pieces of any size, up to several chunks; entries are read before, between and after.
    #[test]
    fn a_state_of_any_size_is_read_as_it_was_written(
        size in prop_oneof![0..3usize, (1usize << 20) - 2..(1 << 20) + 3, 0..5usize << 20],
        written in 1usize..3 << 20,
        read in 1usize..3 << 20,
        seed in any::<u64>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let base = bases()[1];
        let byte = |at: usize| (seed.wrapping_mul(at as u64 | 1) >> 56) as u8;
        let bytes: Vec<u8> = (0..size).map(byte).collect();
        let mut state = LogWriter::create_with_state(&path, &header(base), || 0).unwrap();
        for piece in bytes.chunks(written) {
            state.write_all(piece).unwrap();
        }
        let mut writer = state.finish().unwrap();
        let entries = [base.clock, Clock(base.clock.0 + 5)].map(LogEntry::progress);
        for entry in &entries {
            writer.append(entry).unwrap();
        }
        writer.flush().unwrap();
        prop_assert_eq!(writer.bytes(), std::fs::metadata(&path).unwrap().len());

        let mut reader = LogReader::open(&path).unwrap();
        let mut state = reader.state().unwrap().unwrap();
        prop_assert_eq!(state.size(), size as u64);
        prop_assert_eq!(reader.read().unwrap().map(|read| read.0), Some(entries[0].clone()));
        let (mut got, mut piece) = (Vec::new(), vec![0; read]);
        loop {
            let count = state.read(&mut piece).unwrap();
            if count == 0 {
                break;
            }
            got.extend_from_slice(&piece[..count]);
        }
        prop_assert!(got == bytes);
        prop_assert_eq!(state.read(&mut piece).unwrap(), 0, "and nothing more");
        prop_assert_eq!(reader.read().unwrap().map(|read| read.0), Some(entries[1].clone()));
        prop_assert!(reader.read().unwrap().is_none() && reader.tail().is_none());
    }
}

#[test]
fn a_header_whose_base_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    drop(create(&path, bases()[0]));
    let nonsense = Base {
        clock: Clock(1),
        ..bases()[0]
    };
    let mut bytes = std::fs::read(&path).unwrap();
    let forged = to_bytes(&header(nonsense));
    assert_eq!(bytes.len(), 20 + forged.len());
    bytes[16..20].copy_from_slice(&crc32fast::hash(&forged).to_le_bytes());
    bytes[20..].copy_from_slice(&forged);
    std::fs::write(&path, &bytes).unwrap();
    let error = LogReader::open(&path).err().expect("no log begins there");
    assert!(
        error.to_string().contains("a boot after the guest has run"),
        "{error}"
    );
}

#[test]
fn only_a_log_of_today_is_left_before_its_machine_ends() {
    let mut bytes = Vec::new();
    let left = LogEntry::at(&Default::default(), Event::Left { digest: 9 });
    Encoder::new().encode(&left, &mut bytes);
    for version in FORMAT_VERSION_MIN..=FORMAT_VERSION {
        let mut decoder = Decoder::of_format(version, LogPlace::default());
        let decoded = decoder.decode(&mut &bytes[..]);
        match version {
            ..6 => assert!(decoded.unwrap_err().to_string().contains("unknown kind")),
            _ => assert_eq!(decoded.unwrap(), left),
        }
    }
}

#[test]
fn a_file_has_the_data_of_every_disk_read() {
    let mut bytes = Vec::new();
    let read = Event::Arrival(Arrival::DiskRead { tag: 7 });
    let read = LogEntry::at(&Default::default(), read);
    Encoder::new().encode(&read, &mut bytes);
    assert_eq!(Decoder::new().decode(&mut &bytes[..]).unwrap(), read);
    for version in FORMAT_VERSION_MIN..=FORMAT_VERSION {
        let mut decoder = Decoder::of_format(version, LogPlace::default());
        let refused = decoder.decode(&mut &bytes[..]).unwrap_err();
        assert!(refused.to_string().contains("unknown kind"), "{refused}");
    }
}

#[test]
#[should_panic(expected = "the state has to be written, too")]
fn a_state_is_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let _ = LogWriter::create(&dir.path().join("log"), &header(bases()[1]), || 0);
}
