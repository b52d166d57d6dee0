//! The client of the arbiter server.

use crate::identity::Known;
use crate::protocol::{MAX_LINE, PROTOCOL, Reply, Request};
use crate::{Arbiter, ArbiterError, Contender, Flag, StoreId, Verdict, ViewNumber, VmId};
use lines::{CallError, Client};
use std::sync::Arc;
use std::time::Duration;

/// How often a client that stays connected asks: well within the time a server waits for it.
const STAY: Duration = Duration::from_secs(10);

/// An arbiter server, asked over TCP. Each call has a time limit, and all use one connection as long as it
/// lasts. It is for the caller to ask again after an error.
#[derive(Debug)]
pub struct ServerArbiter {
    client: Client,
    known: Arc<Known>,
}

impl ServerArbiter {
    /// The server at `address` (`HOST:PORT`); does not connect yet.
    ///
    /// # Errors
    /// [`ArbiterError::BadAddress`].
    pub fn new(address: &str) -> Result<Self, ArbiterError> {
        let client = Client::new(address, PROTOCOL, 2 * MAX_LINE);
        let client = client.map_err(|reason| ArbiterError::BadAddress {
            given: address.into(),
            reason,
        })?;
        Ok(Self {
            client,
            known: Arc::default(),
        })
    }

    /// Has connections protected as `security` says; else they are plaintext, and within this machine only.
    #[must_use]
    pub fn secured(self, security: tls::Security) -> Self {
        Self {
            client: self.client.secured(security),
            ..self
        }
    }

    /// Limits a call to `timeout` (one second unless set); resolving a host's name comes on top.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self {
            client: self.client.with_timeout(timeout),
            ..self
        }
    }

    /// Stays connected from the first call on, as long as this arbiter is there: a thread asks now and then.
    /// So the call of a failover needs no new connection, which the server would have to accept among others.
    #[must_use]
    pub fn stays_connected(self) -> Self {
        let (client, known) = (self.client.clone(), Arc::downgrade(&self.known));
        let stay = move || {
            loop {
                std::thread::sleep(STAY);
                let Some(known) = known.upgrade() else { return };
                if known.get().is_none() {
                    continue;
                }
                let client = client.clone();
                if let Err(error) = (Self { client, known }).ask(&Request::Store) {
                    tracing::info!(%error, "the arbiter would give no verdict now");
                }
            }
        };
        let thread = std::thread::Builder::new().name("arbiter".into());
        if let Err(error) = thread.spawn(stay) {
            tracing::warn!(%error, "this replica does not stay connected to its arbiter");
        }
        self
    }

    fn address(&self) -> String {
        self.client.address().to_owned()
    }

    fn ask(&self, request: &Request) -> Result<Reply, ArbiterError> {
        let protocol = |reason: String| ArbiterError::Protocol {
            arbiter: self.address(),
            reason,
        };
        let reply = self
            .client
            .call_kept(request)
            .map_err(|error| match error {
                CallError::Unreachable(reason) => ArbiterError::Unreachable {
                    arbiter: self.address(),
                    reason,
                },
                CallError::NotGreeted { line, reason } => match serde_json::from_slice(&line) {
                    Ok(Reply::Refused { reason }) => self.refused(reason),
                    _ => protocol(reason),
                },
            })?;
        match serde_json::from_slice(&reply) {
            Ok(Reply::Refused { reason }) => Err(self.refused(reason)),
            Ok(Reply::StoreFailed { reason }) => Err(ArbiterError::StoreFailed {
                arbiter: self.address(),
                reason,
            }),
            Ok(Reply::TooManyFlags { reason }) => Err(ArbiterError::TooManyFlags {
                arbiter: self.address(),
                reason,
            }),
            Ok(Reply::Store { store } | Reply::OtherStore { store }) => {
                self.known.check(&self.address(), Some(store))?;
                Ok(Reply::Store { store })
            }
            Ok(reply) => Ok(reply),
            Err(error) => Err(protocol(format!("its reply is no reply: {error}"))),
        }
    }

    fn refused(&self, reason: String) -> ArbiterError {
        ArbiterError::Refused {
            arbiter: self.address(),
            reason,
        }
    }

    /// A reply, but to another question.
    fn beside_the_point(&self, reply: &Reply) -> ArbiterError {
        ArbiterError::Protocol {
            arbiter: self.address(),
            reason: format!("its reply does not fit the request: {reply:?}"),
        }
    }
}

impl Arbiter for ServerArbiter {
    fn store(&self) -> Result<StoreId, ArbiterError> {
        if let Some(known) = self.known.get() {
            return Ok(known);
        }
        match self.ask(&Request::Store)? {
            Reply::Store { store } => Ok(store),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        let request = Request::TestAndSet {
            store: self.store()?,
            vm: flag.vm.clone(),
            view: flag.view,
            who: who.clone(),
        };
        match self.ask(&request)? {
            Reply::Won => Ok(Verdict::Won),
            Reply::Lost { holder } => Ok(Verdict::Lost { holder }),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let request = Request::Holder {
            store: self.store()?,
            vm: flag.vm.clone(),
            view: flag.view,
        };
        match self.ask(&request)? {
            Reply::Holder { holder } => Ok(holder),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn newest(&self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError> {
        let request = Request::Newest {
            store: self.store()?,
            vm: vm.clone(),
        };
        match self.ask(&request)? {
            Reply::Newest { newest } => Ok(newest.map(|set| (set.view, set.holder))),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn check(&self) -> Result<(), ArbiterError> {
        match self.ask(&Request::Check {
            store: self.store()?,
        })? {
            Reply::Ready => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }
}
