//! What a guest's network card listens to at present: told by the machine, looked at by backends.
//!
//! ```text
//!  guest ── control queue ─▶ card ── tell ─▶ Station ◀─ now ── receiving threads, announcements
//!                                               └── watchers: kernel's filter, switch
//! ```
//!
//! It carries nothing into the machine: a frame that is let in is an arrival. A backup's machine does what the
//! guest did, so its station is that of its primary, as far as it got.

use super::Mac;
use crate::devices::virtio::addresses::Addresses;
use std::sync::{Arc, Mutex, PoisonError};

/// Is told of each change, on the machine's thread: it must not wait.
type Watcher = Box<dyn Fn(&Addresses) + Send + Sync>;

/// A card's addresses, shared.
pub struct Station {
    now: Mutex<Arc<Addresses>>,
    watchers: Mutex<Vec<Watcher>>,
}

impl std::fmt::Debug for Station {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Station").field(&self.now()).finish()
    }
}

impl Station {
    /// One that has this address alone, as long as nobody tells otherwise.
    #[must_use]
    pub fn of(mac: Mac) -> Arc<Self> {
        Arc::new(Self {
            now: Mutex::new(Arc::new(Addresses::only(mac))),
            watchers: Mutex::default(),
        })
    }

    /// The addresses at present.
    #[must_use]
    pub fn now(&self) -> Arc<Addresses> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.clone()
    }

    /// They are these from now on.
    pub fn tell(&self, addresses: &Addresses) {
        {
            let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
            if **now == *addresses {
                return;
            }
            *now = Arc::new(addresses.clone());
        }
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for watcher in &*watchers {
            watcher(addresses);
        }
    }

    /// Tells `watcher` the addresses at once, and whenever they change.
    pub(super) fn watch(&self, watcher: Watcher) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watcher(&self.now());
        watchers.push(watcher);
    }
}
