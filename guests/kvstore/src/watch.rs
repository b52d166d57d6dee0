//! Keys that clients watch, so that a transaction fails if one of them has changed.

use alloc::boxed::Box;

use hashbrown::HashTable;

use crate::store::{Full, copy};

/// What one watch of a key is counted as holding besides the key, twice: the place in the table, twice
/// over for a table that grows, the client's own note, and what the allocator adds.
const OVERHEAD: usize = 256;

/// One key that somebody watches.
#[derive(Debug)]
struct Watched {
    key: Box<[u8]>,
    hash: u64,
    /// How many watches there are of it.
    watches: usize,
    /// Counts the changes since the first of these.
    changes: u64,
}

/// The keys that are watched, each with a count of its changes.
///
/// Costs nothing while nobody watches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    table: HashTable<Watched>,
}

impl Watches {
    /// Bytes one watch of `key` takes at most, here and with the client.
    pub(crate) fn bytes(key: &[u8]) -> usize {
        OVERHEAD + 2 * key.len()
    }

    /// Whether nobody watches anything.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Adds a watch of `key`, whose hash is `hash`, and returns the number of its state.
    pub(crate) fn watch(&mut self, hash: u64, key: &[u8]) -> Result<u64, Full> {
        if let Some(watched) = self.find_mut(hash, key) {
            watched.watches += 1;
            return Ok(watched.changes);
        }
        let key = copy(key)?.into_boxed_slice();
        let reserved = self.table.try_reserve(1, |watched| watched.hash);
        reserved.map_err(|_| Full)?;
        let watched = Watched {
            key,
            hash,
            watches: 1,
            changes: 0,
        };
        self.table
            .insert_unique(hash, watched, |watched| watched.hash);
        Ok(0)
    }

    /// The number of the state of `key`, which is watched.
    pub(crate) fn state_of(&mut self, hash: u64, key: &[u8]) -> u64 {
        let watched = self.find_mut(hash, key);
        watched.expect("only watched keys are asked about").changes
    }

    /// Ends a watch of `key`.
    pub(crate) fn unwatch(&mut self, hash: u64, key: &[u8]) {
        let found = self
            .table
            .find_entry(hash, |watched| *watched.key == *key)
            .map(|mut found| {
                found.get_mut().watches -= 1;
                found
            });
        match found {
            Ok(found) if found.get().watches == 0 => drop(found.remove()),
            Ok(_) => {}
            Err(_) => unreachable!("only watched keys are let go"),
        }
    }

    /// Notes that `key` has changed, if it is watched.
    pub(crate) fn touch(&mut self, hash: u64, key: &[u8]) {
        if let Some(watched) = self.find_mut(hash, key) {
            watched.changes += 1;
        }
    }

    fn find_mut(&mut self, hash: u64, key: &[u8]) -> Option<&mut Watched> {
        self.table.find_mut(hash, |watched| *watched.key == *key)
    }
}
