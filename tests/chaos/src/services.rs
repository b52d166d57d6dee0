//! The arbiter and the viewservice, each on a host of its own.

use crate::hosts::{Host, Hosts};
use kit::KitResult;
use kit::daemon::Daemon;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ARBITER_PORT: u16 = 7700;
const VIEWS_PORT: u16 = 7800;
/// Longest time for a service to listen, or to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// On its host.
    Arbiter,
    /// On its host.
    Views,
}

impl Service {
    fn host(self) -> Host {
        match self {
            Self::Arbiter => Host::Arbiter,
            Self::Views => Host::Views,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Arbiter => Host::Arbiter.address(ARBITER_PORT),
            Self::Views => Host::Views.address(VIEWS_PORT),
        }
    }
}

/// Both, with what they have stored.
pub struct Services<'a> {
    /// The hosts they are on.
    pub hosts: &'a Hosts,
    folder: PathBuf,
    /// By their numbers; none that was killed.
    daemons: [Option<Daemon>; 2],
}

impl<'a> Services<'a> {
    /// Starts both; what they store and say is in `folder`.
    ///
    /// # Errors
    /// If one does not start.
    pub fn start(hosts: &'a Hosts, folder: &Path) -> KitResult<Self> {
        let mut services = Self {
            hosts,
            folder: folder.into(),
            daemons: [None, None],
        };
        services.mend()?;
        Ok(services)
    }

    /// The folder of all their files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What a replica's command line says of them, and of the network between: it is nobody else's.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        let arbiter = format!("tcp:{}", Service::Arbiter.address());
        let views = Service::Views.address().to_string();
        let words = ["--insecure", "--arbiter", &arbiter, "--viewservice", &views];
        words.map(OsString::from).to_vec()
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// If it is not gone then.
    pub fn kill(&mut self, service: Service) -> KitResult {
        if let Some(mut daemon) = self.daemons[service as usize].take() {
            daemon.kill();
            daemon.wait(PATIENCE)?;
        }
        Ok(())
    }

    /// Starts those that are not running again.
    ///
    /// # Errors
    /// If one does not listen then.
    pub fn mend(&mut self) -> KitResult {
        for service in [Service::Arbiter, Service::Views] {
            let daemon = &mut self.daemons[service as usize];
            if daemon.as_ref().is_none_or(Daemon::has_ended) {
                *daemon = None;
                *daemon = Some(start(self.hosts, &self.folder, service)?);
            }
        }
        Ok(())
    }
}

fn start(hosts: &Hosts, folder: &Path, service: Service) -> KitResult<Daemon> {
    let name = service.host().name();
    let listen = service.address().to_string();
    let words = [name, "--insecure", "--listen", &listen, "--store"];
    let mut words = words.map(OsString::from).to_vec();
    words.push(folder.join(name).into());
    let errors = folder.join(format!("{name}.err"));
    let daemon = hosts.start(service.host(), name, words, &errors)?;
    daemon.wait_line(PATIENCE, |line| line.contains("listening"))?;
    Ok(daemon)
}
