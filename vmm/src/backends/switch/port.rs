//! A guest's way to a switch.

use super::super::station::Station;
use super::super::worker::{Then, Worker};
use super::super::{ArrivalSink, FRAMES_AT_ONCE, NetPort, fits, is_for};
use super::link::{Link, LinkError, LinkStop};
use replay::Arrival;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A port of a [`super::Switch`], in this process or another.
pub struct SwitchPort {
    link: Arc<Link>,
    dropped: Arc<AtomicU64>,
    _rx: Worker,
}

impl SwitchPort {
    /// Connects to the switch at `path`. Frames for `station` go to `sink`.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn connect(
        path: &Path,
        station: &Arc<Station>,
        sink: Arc<dyn ArrivalSink>,
    ) -> Result<Self, LinkError> {
        let mac = station.now().mac();
        let link = Arc::new(Link::connect(path, mac)?);
        let told = Arc::downgrade(&link);
        // The switch knows one address a port, or passes all frames on.
        station.watch(Box::new(move |addresses| {
            if let Some(link) = told.upgrade() {
                link.hear_all(addresses.named().is_none_or(|named| named != [mac]));
            }
        }));
        let dropped = Arc::new(AtomicU64::new(0));
        let (source, counter) = (link.clone(), dropped.clone());
        let station = station.clone();
        let ready = move || receive(&source, &station, &*sink, &counter);
        let rx = Worker::serve("switch-rx", Owned(link.clone()), ready).map_err(|source| {
            LinkError::Io {
                path: path.to_owned(),
                operation: "cannot start a thread",
                source,
            }
        })?;
        Ok(Self {
            link,
            dropped,
            _rx: rx,
        })
    }
}

impl NetPort for SwitchPort {
    fn send(&self, frame: &[u8]) {
        if !fits(frame) || self.link.send(frame).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

struct Owned(Arc<Link>);

impl std::os::fd::AsFd for Owned {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes all frames there are.
fn receive(link: &Link, station: &Station, sink: &dyn ArrivalSink, dropped: &AtomicU64) -> Then {
    let mine = station.now();
    for _ in 0..FRAMES_AT_ONCE {
        match link.receive() {
            Ok(frame) => {
                if is_for(&frame, &mine) && !sink.push(Arrival::Frame(frame)) {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(LinkStop::NotNow) => return Then::Wait(sink.settled()),
            Err(LinkStop::Closed) => {
                tracing::warn!("the switch is gone: the guest has no network any more");
                return Then::End;
            }
        }
    }
    Then::Wait(sink.settled())
}
