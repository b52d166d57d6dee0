//! How the tests set up, restart and cut off each kind of arbiter.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod etcd;
pub mod proxy;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use testandset::{Arbiter, Bounds, Recovery, ServerArbiter, SharedDisk, Store, StoreId};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// An arbiter under test.
pub trait Rig: Sync {
    /// Whether this host can run one; a test is skipped, and counted, where not.
    fn is_here() -> bool {
        true
    }
    /// A fresh one, nothing set.
    fn new() -> Self;
    /// One more way to it.
    fn arbiter(&self) -> Box<dyn Arbiter>;
    /// Stops and starts whatever it keeps running, at the same address.
    fn restart(&mut self);
    /// Loses its store: where that was, an empty one is.
    fn lose_store(&mut self);
    /// Puts it out of reach.
    fn cut(&mut self);
    /// What its errors must name: where it is.
    fn place(&self) -> String;
    /// How a replica is told of it.
    fn address(&self) -> String;
    /// A way to it by another address, as through a proxy; none if it has no server.
    fn arbiter_at(&self, server: &str) -> Option<Box<dyn Arbiter>>;
}

/// Removes all files in `dir`.
fn empty(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// [`SharedDisk`].
pub struct DiskRig {
    dir: TempDir,
}

impl DiskRig {
    fn shared(&self) -> PathBuf {
        self.dir.path().join("shared")
    }
}

impl Rig for DiskRig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("shared")).unwrap();
        Self { dir }
    }

    fn arbiter(&self) -> Box<dyn Arbiter> {
        Box::new(SharedDisk::open(self.shared()).unwrap())
    }

    fn restart(&mut self) {}

    fn lose_store(&mut self) {
        empty(&self.shared());
    }

    fn cut(&mut self) {
        std::fs::remove_dir_all(self.shared()).unwrap();
    }

    fn place(&self) -> String {
        self.shared().display().to_string()
    }

    fn address(&self) -> String {
        format!("file:{}", self.place())
    }

    fn arbiter_at(&self, _server: &str) -> Option<Box<dyn Arbiter>> {
        None
    }
}

/// A running arbiter server.
pub struct Running {
    pub address: SocketAddr,
    pub recovery: Recovery,
    pub id: StoreId,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Serves the store in `dir` at `address`.
    pub fn start(dir: &Path, address: SocketAddr) -> Self {
        Self::start_within(Bounds::default(), dir, address)
    }

    /// The same, of a store with these `bounds`.
    pub fn start_within(bounds: Bounds, dir: &Path, address: SocketAddr) -> Self {
        Self::start_as(tls::Security::Loopback, bounds, dir, address)
    }

    /// The same, to whoever `security` lets in.
    pub fn start_as(
        security: tls::Security,
        bounds: Bounds,
        dir: &Path,
        address: SocketAddr,
    ) -> Self {
        let (store, recovery) = Store::open(dir).unwrap();
        let mut store = store.with_bounds(bounds);
        let id = store.id().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // tokio sets SO_REUSEADDR, so the address is free again at once after a restart.
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(testandset::serve(listener, security, store, async {
                let _ = stopped.await;
            }));
        });
        Self {
            address,
            recovery,
            id,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "server panicked");
        }
    }
}

/// [`ServerArbiter`] and its server.
pub struct ServerRig {
    dir: TempDir,
    address: SocketAddr,
    running: Option<Running>,
}

impl Rig for ServerRig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = Running::start(dir.path(), "127.0.0.1:0".parse().unwrap());
        Self {
            dir,
            address: running.address,
            running: Some(running),
        }
    }

    fn arbiter(&self) -> Box<dyn Arbiter> {
        self.arbiter_at(&self.place()).unwrap()
    }

    fn restart(&mut self) {
        self.running = None;
        self.running = Some(Running::start(self.dir.path(), self.address));
    }

    fn lose_store(&mut self) {
        self.running = None;
        empty(self.dir.path());
        self.restart();
    }

    fn cut(&mut self) {
        self.running = None;
    }

    fn place(&self) -> String {
        self.address.to_string()
    }

    fn address(&self) -> String {
        format!("tcp:{}", self.place())
    }

    fn arbiter_at(&self, server: &str) -> Option<Box<dyn Arbiter>> {
        // A loaded machine may be slow; only an answer counts here.
        let arbiter = ServerArbiter::new(server).unwrap();
        Some(Box::new(arbiter.with_timeout(Duration::from_secs(30))))
    }
}
