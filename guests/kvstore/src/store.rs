//! Keys, values and their deadlines.
//!
//! ```text
//! index: hash ─▶ slot number        slots: [ Used(key, value, deadline) | Free(next) | Used | ... ]
//!                                                     ▲ swept around for entries past their deadline
//! ```
//!
//! An entry stays in its slot as long as it lives: that is what makes a [`scan`](Store::scan) complete.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::watch::Watches;

/// What an entry is counted as holding besides its key and value: its slot and its place in the
/// index, both twice over for a table that grows, and what the allocator adds.
const OVERHEAD: usize = 192;
/// The end of the list of free slots.
const NONE: u32 = u32::MAX;
/// Room in a value's buffer that is left unused rather than allocating a smaller one.
const SLACK_MAX: usize = 64;
/// The deadline of an entry without one.
const NEVER: u64 = u64::MAX;

/// The store has no room for what was to be stored. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What becomes of a key's deadline when it gets a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It has none from now on.
    Never,
    /// It keeps what it has.
    Keep,
    /// It ends after this time, in ms since 1970.
    At(u64),
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    value: Vec<u8>,
    hash: u64,
    deadline_ms: u64,
}

impl Entry {
    fn bytes(&self) -> usize {
        OVERHEAD + self.key.len() + self.value.capacity()
    }
}

#[derive(Debug)]
enum Slot {
    Used(Entry),
    Free { next: u32 },
}

/// Where a key is, or belongs.
#[derive(Clone, Copy, Debug)]
enum Place {
    Found(u32),
    Vacant { hash: u64 },
}

/// Maps keys to values, some until a deadline.
///
/// An entry past its deadline is as good as gone at once: every access looks. Its memory is given
/// back by the next access of that key or by [`sweep`](Self::sweep).
///
/// Determinism: a function of the calls alone; the order of [`keys`](Self::keys) too.
#[derive(Debug)]
pub struct Store {
    index: HashTable<u32>,
    slots: Vec<Slot>,
    free: u32,
    hasher: FixedState,
    now_ms: u64,
    /// Entries with a deadline.
    volatile: usize,
    expired: u64,
    bytes: usize,
    bytes_max: usize,
    /// Where the sweep goes on.
    sweep_at: usize,
    watches: Watches,
}

impl Store {
    /// An empty store that holds at most `bytes_max` bytes. `seed` makes the order of its index, so
    /// that nobody who does not know it can choose keys that collide.
    #[must_use]
    pub fn new(bytes_max: usize, seed: u64) -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: NONE,
            hasher: FixedState::with_seed(seed),
            now_ms: 0,
            volatile: 0,
            expired: 0,
            bytes: 0,
            bytes_max,
            sweep_at: 0,
            watches: Watches::default(),
        }
    }

    /// The time deadlines are compared with, in ms since 1970: that of the last
    /// [`set_time`](Self::set_time).
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Sets the time. It does not step back: an earlier one is ignored.
    pub fn set_time(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Entries, those past their deadline included that no sweep has met yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Entries with a deadline.
    #[must_use]
    pub fn volatile_len(&self) -> usize {
        self.volatile
    }

    /// Entries removed so far because of their deadline.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// Bytes the entries take, overhead estimated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Most bytes the entries may take.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The value of `key`.
    #[inline]
    pub fn get(&mut self, key: &[u8]) -> Option<&[u8]> {
        match self.place(key) {
            Place::Found(slot) => Some(&self.entry(slot).value),
            Place::Vacant { .. } => None,
        }
    }

    /// Whether there is a `key`.
    pub fn contains(&mut self, key: &[u8]) -> bool {
        matches!(self.place(key), Place::Found(_))
    }

    /// Gives `key` the value `value`.
    ///
    /// # Errors
    /// If there is no room.
    #[inline]
    pub fn set(&mut self, key: &[u8], value: &[u8], expiry: Expiry) -> Result<(), Full> {
        let slot = match self.place(key) {
            Place::Vacant { hash } => {
                let deadline_ms = match expiry {
                    Expiry::At(deadline_ms) => deadline_ms,
                    Expiry::Never | Expiry::Keep => NEVER,
                };
                return self.insert(key, value, hash, deadline_ms);
            }
            Place::Found(slot) => slot,
        };
        let capacity = self.entry(slot).value.capacity();
        if value.len() > capacity || capacity - value.len() > value.len() + SLACK_MAX {
            self.replace(slot, value)?;
        } else {
            let old = &mut self.entry_mut(slot).value;
            old.clear();
            old.extend_from_slice(value);
        }
        match expiry {
            Expiry::Keep => {}
            Expiry::Never => self.set_slot_deadline(slot, NEVER),
            Expiry::At(deadline_ms) => self.set_slot_deadline(slot, deadline_ms),
        }
        self.touch(slot);
        Ok(())
    }

    /// Appends `tail` to the value of `key`, which begins empty, and returns its length then. A
    /// deadline stays.
    ///
    /// # Errors
    /// If there is no room.
    pub fn append(&mut self, key: &[u8], tail: &[u8]) -> Result<usize, Full> {
        let slot = match self.place(key) {
            Place::Vacant { hash } => {
                self.insert(key, tail, hash, NEVER)?;
                return Ok(tail.len());
            }
            Place::Found(slot) => slot,
        };
        let room = self.bytes_max.saturating_sub(self.bytes);
        let value = &mut self.entry_mut(slot).value;
        let before = value.capacity();
        if value.len() + tail.len() > before {
            // In steps, so that many short appends do not each copy the value.
            let wanted = tail.len().max(before / 2);
            if value.len() + wanted - before > room || value.try_reserve_exact(wanted).is_err() {
                return Err(Full);
            }
        }
        value.extend_from_slice(tail);
        let (length, after) = (value.len(), value.capacity());
        self.bytes += after - before;
        self.touch(slot);
        Ok(length)
    }

    /// Removes `key`; whether there was one.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        match self.place(key) {
            Place::Found(slot) => {
                self.remove_slot(slot);
                true
            }
            Place::Vacant { .. } => false,
        }
    }

    /// The deadline of `key`, if there is a `key`, and if it has one, in ms since 1970.
    pub fn deadline_ms(&mut self, key: &[u8]) -> Option<Option<u64>> {
        match self.place(key) {
            Place::Found(slot) => {
                let deadline_ms = self.entry(slot).deadline_ms;
                Some((deadline_ms != NEVER).then_some(deadline_ms))
            }
            Place::Vacant { .. } => None,
        }
    }

    /// Gives `key` a deadline, in ms since 1970, or takes it away; whether there is a `key`.
    pub fn set_deadline_ms(&mut self, key: &[u8], deadline_ms: Option<u64>) -> bool {
        match self.place(key) {
            Place::Found(slot) => {
                self.set_slot_deadline(slot, deadline_ms.unwrap_or(NEVER));
                self.touch(slot);
                true
            }
            Place::Vacant { .. } => false,
        }
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        if !self.watches.is_empty() {
            for slot in &self.slots {
                if let Slot::Used(entry) = slot {
                    self.watches.touch(entry.hash, &entry.key);
                }
            }
        }
        self.index = HashTable::new();
        self.slots = Vec::new();
        self.free = NONE;
        self.volatile = 0;
        self.bytes = 0;
        self.sweep_at = 0;
    }

    /// The keys that are not past their deadline.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.scan(0).flatten()
    }

    /// The places for keys from number `from` on, in order; each with its key, if it holds one that is
    /// not past its deadline.
    ///
    /// A key keeps its place until it is removed. So whoever looks at every place once, from 0 on,
    /// however long that takes, has seen each key that was there all the time, and has seen it once.
    pub fn scan(&self, from: usize) -> impl Iterator<Item = Option<&[u8]>> {
        let slots = self.slots.get(from..).unwrap_or_default();
        slots.iter().map(|slot| match slot {
            Slot::Used(entry) if entry.deadline_ms >= self.now_ms => Some(&*entry.key),
            _ => None,
        })
    }

    /// Watches `key`, which need not exist, until [`unwatch`](Self::unwatch), and returns the number of
    /// its present state, for [`state_of`](Self::state_of).
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn watch(&mut self, key: &[u8]) -> Result<u64, Full> {
        // What is past its deadline goes first: that it goes is no change.
        self.place(key);
        let hash = self.hash(key);
        self.watches.watch(hash, key)
    }

    /// The number of the present state of `key`, which is watched: another one if anything has set or
    /// removed the key, its value or its deadline since, or if it has ended.
    pub(crate) fn state_of(&mut self, key: &[u8]) -> u64 {
        self.place(key);
        self.watches.state_of(self.hash(key), key)
    }

    /// Ends one [`watch`](Self::watch) of `key`.
    pub(crate) fn unwatch(&mut self, key: &[u8]) {
        let hash = self.hash(key);
        self.watches.unwatch(hash, key);
    }

    /// Looks at the next `slots` slots in turn and removes what is past its deadline.
    pub fn sweep(&mut self, slots: usize) {
        if self.volatile == 0 {
            return;
        }
        for _ in 0..slots.min(self.slots.len()) {
            if self.sweep_at >= self.slots.len() {
                self.sweep_at = 0;
            }
            if matches!(&self.slots[self.sweep_at], Slot::Used(entry) if entry.deadline_ms < self.now_ms)
            {
                self.remove_slot(self.sweep_at as u32);
                self.expired += 1;
            }
            self.sweep_at += 1;
        }
    }

    /// Finds `key`, and removes it if it is past its deadline.
    #[inline]
    fn place(&mut self, key: &[u8]) -> Place {
        let hash = self.hash(key);
        let found = self
            .index
            .find(hash, |&slot| match &self.slots[slot as usize] {
                Slot::Used(entry) => *entry.key == *key,
                Slot::Free { .. } => false,
            });
        match found {
            Some(&slot) if self.entry(slot).deadline_ms >= self.now_ms => Place::Found(slot),
            Some(&slot) => {
                self.remove_slot(slot);
                self.expired += 1;
                Place::Vacant { hash }
            }
            None => Place::Vacant { hash },
        }
    }

    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    /// Tells those who watch the key in `slot` that it is changed.
    #[inline]
    fn touch(&mut self, slot: u32) {
        if !self.watches.is_empty()
            && let Slot::Used(entry) = &self.slots[slot as usize]
        {
            self.watches.touch(entry.hash, &entry.key);
        }
    }

    fn entry(&self, slot: u32) -> &Entry {
        match &self.slots[slot as usize] {
            Slot::Used(entry) => entry,
            Slot::Free { .. } => unreachable!("the index names a free slot"),
        }
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Entry {
        match &mut self.slots[slot as usize] {
            Slot::Used(entry) => entry,
            Slot::Free { .. } => unreachable!("the index names a free slot"),
        }
    }

    /// Inserts a key that is not there.
    fn insert(
        &mut self,
        key: &[u8],
        value: &[u8],
        hash: u64,
        deadline_ms: u64,
    ) -> Result<(), Full> {
        let bytes = OVERHEAD + key.len() + value.len();
        if bytes > self.bytes_max.saturating_sub(self.bytes) || self.slots.len() >= NONE as usize {
            return Err(Full);
        }
        let key = copy(key)?.into_boxed_slice();
        let value = copy(value)?;
        let slots = &self.slots;
        self.index
            .try_reserve(1, |&slot| match &slots[slot as usize] {
                Slot::Used(entry) => entry.hash,
                Slot::Free { .. } => unreachable!("the index names a free slot"),
            })
            .map_err(|_| Full)?;
        if self.free == NONE {
            self.slots.try_reserve(1).map_err(|_| Full)?;
            self.free = self.slots.len() as u32;
            self.slots.push(Slot::Free { next: NONE });
        }
        let slot = self.free;
        let entry = Entry {
            key,
            value,
            hash,
            deadline_ms,
        };
        self.bytes += entry.bytes();
        self.volatile += usize::from(deadline_ms != NEVER);
        match core::mem::replace(&mut self.slots[slot as usize], Slot::Used(entry)) {
            Slot::Free { next } => self.free = next,
            Slot::Used(_) => unreachable!("a used slot is in the free list"),
        }
        // There is room for it: nothing is hashed anew.
        self.index
            .insert_unique(hash, slot, |_| unreachable!("room was reserved"));
        self.touch(slot);
        Ok(())
    }

    /// Gives an entry a value in a buffer of its own size.
    fn replace(&mut self, slot: u32, value: &[u8]) -> Result<(), Full> {
        let before = self.entry(slot).value.capacity();
        if value.len() > before && value.len() - before > self.bytes_max.saturating_sub(self.bytes)
        {
            return Err(Full);
        }
        let value = copy(value)?;
        self.bytes = self.bytes - before + value.capacity();
        self.entry_mut(slot).value = value;
        Ok(())
    }

    #[inline]
    fn set_slot_deadline(&mut self, slot: u32, deadline_ms: u64) {
        let entry = self.entry_mut(slot);
        let before = core::mem::replace(&mut entry.deadline_ms, deadline_ms);
        self.volatile += usize::from(deadline_ms != NEVER);
        self.volatile -= usize::from(before != NEVER);
    }

    fn remove_slot(&mut self, slot: u32) {
        self.touch(slot);
        let free = Slot::Free { next: self.free };
        let Slot::Used(entry) = core::mem::replace(&mut self.slots[slot as usize], free) else {
            unreachable!("the index names a free slot");
        };
        self.free = slot;
        self.bytes -= entry.bytes();
        self.volatile -= usize::from(entry.deadline_ms != NEVER);
        match self.index.find_entry(entry.hash, |&other| other == slot) {
            Ok(found) => drop(found.remove()),
            Err(_) => unreachable!("a used slot is not in the index"),
        }
    }
}

/// A copy of `bytes` in a buffer just as large.
pub(crate) fn copy(bytes: &[u8]) -> Result<Vec<u8>, Full> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(|_| Full)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}
