//! etcd, as an arbiter under test.

use super::Rig;
use testandset::{Arbiter, EtcdArbiter};
pub use testandset_testing::{Etcd, Options, PATIENCE, is_here};

/// A way to `words`, with patience: a loaded machine may be slow, and only an answer counts.
pub fn patient(words: &str) -> EtcdArbiter {
    EtcdArbiter::new(words).unwrap().with_patience(PATIENCE)
}

/// [`EtcdArbiter`] and a cluster of one member.
pub struct EtcdRig {
    etcd: Etcd,
}

impl EtcdRig {
    fn wait(&mut self) {
        self.etcd.wait_until_serving(0);
    }
}

impl Rig for EtcdRig {
    fn is_here() -> bool {
        is_here()
    }

    fn new() -> Self {
        let etcd = Etcd::start(1, Options::default());
        let mut rig = Self { etcd };
        rig.wait();
        rig
    }

    fn arbiter(&self) -> Box<dyn Arbiter> {
        Box::new(patient(&self.place()))
    }

    fn restart(&mut self) {
        self.etcd.kill(0);
        self.etcd.start_member(0);
        self.wait();
    }

    fn lose_store(&mut self) {
        self.etcd.kill(0);
        std::fs::remove_dir_all(self.etcd.data(0)).unwrap();
        self.etcd.start_member(0);
        self.wait();
    }

    fn cut(&mut self) {
        self.etcd.kill(0);
    }

    fn place(&self) -> String {
        self.etcd.words()
    }

    fn address(&self) -> String {
        format!("etcd:{}", self.place())
    }

    fn arbiter_at(&self, server: &str) -> Option<Box<dyn Arbiter>> {
        Some(Box::new(patient(server)))
    }
}
