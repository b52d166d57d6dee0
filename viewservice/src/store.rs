//! The service's memory on disk: one file, replaced as a whole.
//!
//! ```text
//!   DIR/lock         held while a service uses the directory
//!   DIR/views.json   1a2b3c4d {"format":1,"state":{...}}\n
//!                    └ CRC-32 of the JSON, 8 hex digits
//!
//!   save: views.json.new ── write, fsync ── rename ── fsync DIR
//! ```

use crate::{State, ViewError};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const STATE: &str = "views.json";
const NEW: &str = "views.json.new";
const LOCK: &str = "lock";
const FORMAT: u32 = 1;

/// Largest state file that is read, in bytes; the largest state is well below.
pub(crate) const MAX_FILE: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Saved<S> {
    format: u32,
    state: S,
}

/// A directory that keeps a [`State`].
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens `dir`, creating it if need be, and reads the state there; an empty one if none was saved.
    ///
    /// # Errors
    /// [`ViewError::InUse`], [`ViewError::Corrupt`], [`ViewError::Disk`].
    pub fn open(dir: impl AsRef<Path>) -> Result<(Self, State), ViewError> {
        let dir = dir.as_ref().to_path_buf();
        std::fs::create_dir_all(&dir).map_err(|e| ViewError::disk("create", &dir, e))?;
        let path = dir.join(LOCK);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|e| ViewError::disk("open", &path, e))?;
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    nix::errno::Errno::EWOULDBLOCK => ViewError::InUse { path: dir.clone() },
                    errno => ViewError::disk("lock", &path, errno.into()),
                },
            )?;
        let state = load(&dir.join(STATE))?;
        let store = Self { dir, _lock: lock };
        // What was read may not be durable yet, if it was written just before a crash. And a disk that
        // takes nothing is better known now.
        store.save(&state)?;
        Ok((store, state))
    }

    /// Makes `state` durable, in place of the one before.
    ///
    /// # Errors
    /// [`ViewError::Disk`]: either state may be the one on disk.
    pub fn save(&self, state: &State) -> Result<(), ViewError> {
        let (path, new) = (self.dir.join(STATE), self.dir.join(NEW));
        let saved = Saved {
            format: FORMAT,
            state,
        };
        let json = serde_json::to_string(&saved).expect("the state is plain JSON");
        let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        let mut file = File::create(&new).map_err(|e| ViewError::disk("create", &new, e))?;
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|e| ViewError::disk("write", &new, e))?;
        std::fs::rename(&new, &path).map_err(|e| ViewError::disk("rename", &new, e))?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| ViewError::disk("sync", &self.dir, e))
    }
}

fn load(path: &Path) -> Result<State, ViewError> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| ViewError::disk("read", path, e))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
        Err(e) => return Err(ViewError::disk("open", path, e)),
    };
    parse(&bytes).map_err(|reason| ViewError::Corrupt {
        path: path.into(),
        reason,
    })
}

fn parse(bytes: &[u8]) -> Result<State, String> {
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let line = text.strip_suffix('\n').ok_or("its end is missing")?;
    let (crc, json) = line
        .split_once(' ')
        .filter(|(crc, _)| crc.len() == 8)
        .ok_or("it has no checksum")?;
    let expected = u32::from_str_radix(crc, 16).map_err(|_| "it has no checksum")?;
    let found = crc32fast::hash(json.as_bytes());
    if expected != found {
        return Err(format!("its checksum is {found:08x}, not {expected:08x}"));
    }
    let saved: Saved<serde_json::Value> = serde_json::from_str(json).map_err(|e| e.to_string())?;
    if saved.format != FORMAT {
        return Err(format!("it is of format {}, not {FORMAT}", saved.format));
    }
    let state: State = serde_json::from_value(saved.state).map_err(|e| e.to_string())?;
    state.check()?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::VmViews;
    use crate::{Address, HostId, View, ViewNumber, VmId};

    fn state() -> State {
        let host = |name: &str| HostId::new(name).unwrap();
        let mut state = State {
            floor: ViewNumber(4),
            ..State::default()
        };
        state.hosts.insert(host("a"), Address::new("x:1").unwrap());
        let views = VmViews {
            acked: Some(View {
                number: ViewNumber(5),
                primary: host("a"),
                backup: None,
            }),
            named: Some(View {
                number: ViewNumber(6),
                primary: host("a"),
                backup: Some(host("b")),
            }),
            offered: [host("c")].into(),
            stopping: false,
            learnt: true,
            ..VmViews::default()
        };
        state.vms.insert(VmId::new("web").unwrap(), views);
        state
    }

    #[test]
    fn a_state_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (store, empty) = Store::open(dir.path()).unwrap();
        assert_eq!(empty, State::default());
        store.save(&state()).unwrap();
        drop(store);
        assert_eq!(Store::open(dir.path()).unwrap().1, state());
    }

    #[test]
    fn damage_at_any_byte_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STATE);
        Store::open(dir.path()).unwrap().0.save(&state()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            for damaged in [&flipped[..], &bytes[..at]] {
                std::fs::write(&path, damaged).unwrap();
                let error = Store::open(dir.path()).unwrap_err();
                assert!(matches!(error, ViewError::Corrupt { .. }), "byte {at}");
                assert!(error.to_string().contains(STATE), "{error}");
            }
        }
    }

    #[test]
    fn a_state_that_breaks_the_rules_is_refused() {
        let vm = VmId::new("web").unwrap();
        let mut twice = state();
        twice
            .vms
            .get_mut(&vm)
            .unwrap()
            .named
            .as_mut()
            .unwrap()
            .number = ViewNumber(5);
        let mut none = state();
        none.vms.insert(vm.clone(), VmViews::default());
        let mut both = state();
        let views = both.vms.get_mut(&vm).unwrap();
        views.named.as_mut().unwrap().backup = Some(HostId::new("a").unwrap());
        for bad in [twice, none, both] {
            let dir = tempfile::tempdir().unwrap();
            Store::open(dir.path()).unwrap().0.save(&bad).unwrap();
            let error = Store::open(dir.path()).unwrap_err();
            assert!(error.to_string().contains("VM web"), "{error}");
        }
    }

    #[test]
    fn one_service_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(ViewError::InUse { .. })
        ));
        drop(first);
        assert!(Store::open(dir.path()).is_ok());
    }
}
