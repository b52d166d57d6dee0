//! The client of the arbiter server.

use crate::identity::Known;
use crate::protocol::{
    Decided, Held, Here, MAX_REPLY, Newest, NewestFlag, Ready, STORE, Set, flag_path,
};
use crate::{Arbiter, ArbiterError, Contender, Flag, StoreId, Verdict, ViewNumber, VmId};
use api::{CallError, Client, Method, error_of};
use serde::Serialize;
use serde::de::DeserializeOwned;
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
        let client = Client::new(address, MAX_REPLY);
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

    /// Limits a call to `timeout` (one second unless set).
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
                if let Err(error) = (Self { client, known }).ask_store() {
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

    /// Asks, and reads what is said where all is well.
    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ArbiterError> {
        let arbiter = self.address();
        let reply = match self.client.call_kept(method, path, body) {
            Ok(reply) => reply,
            Err(CallError::Unreachable(reason)) => {
                return Err(ArbiterError::Unreachable { arbiter, reason });
            }
            Err(CallError::NotHttp(reason)) => return Err(self.no_arbiter(reason)),
        };
        if reply.status == 200 {
            let said = serde_json::from_slice(&reply.body);
            return said.map_err(|e| self.no_arbiter(format!("its reply is no reply: {e}")));
        }
        let status = reply.status;
        let Some(reason) = error_of(&reply.body) else {
            return Err(self.no_arbiter(format!("its reply has status {status} and no error")));
        };
        Err(match status {
            404 => self.no_arbiter("it has no such path".into()),
            409 => match serde_json::from_slice::<Here>(&reply.body) {
                Ok(Here { store }) => match self.known.check(&arbiter, Some(store)) {
                    Err(other) => other,
                    Ok(_) => {
                        self.no_arbiter(format!("it has the store it says it has not: {reason}"))
                    }
                },
                Err(e) => self.no_arbiter(format!("its reply is no reply: {e}")),
            },
            503 => ArbiterError::StoreFailed { arbiter, reason },
            507 => ArbiterError::TooManyFlags { arbiter, reason },
            400..500 => ArbiterError::Refused { arbiter, reason },
            _ => self.no_arbiter(format!("its reply has status {status}: {reason}")),
        })
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ArbiterError> {
        let path = format!("{path}?store={}", self.store()?);
        self.ask(Method::GET, &path, None::<&()>)
    }

    fn ask_store(&self) -> Result<StoreId, ArbiterError> {
        let Here { store } = self.ask(Method::GET, STORE, None::<&()>)?;
        self.known.check(&self.address(), Some(store))?;
        Ok(store)
    }

    /// What answers is no arbiter, or one of another version.
    fn no_arbiter(&self, reason: String) -> ArbiterError {
        let arbiter = self.address();
        ArbiterError::Protocol { arbiter, reason }
    }
}

impl Arbiter for ServerArbiter {
    fn store(&self) -> Result<StoreId, ArbiterError> {
        match self.known.get() {
            Some(known) => Ok(known),
            None => self.ask_store(),
        }
    }

    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        let set = Set {
            store: self.store()?,
            who: who.clone(),
        };
        Ok(match self.ask(Method::PUT, &flag_path(flag), Some(&set))? {
            Decided::Won => Verdict::Won,
            Decided::Lost { holder } => Verdict::Lost { holder },
        })
    }

    fn holder(&self, flag: &Flag) -> Result<Option<Contender>, ArbiterError> {
        let held: Held = self.read(&flag_path(flag))?;
        Ok(held.holder)
    }

    fn newest(&self, vm: &VmId) -> Result<Option<(ViewNumber, Contender)>, ArbiterError> {
        let found: Newest = self.read(&format!("/v1/flags/{vm}"))?;
        let pair = |NewestFlag { view, holder }| (view, holder);
        Ok(found.newest.map(pair))
    }

    fn check(&self) -> Result<(), ArbiterError> {
        match self.read("/v1/ready")? {
            Ready { ready: true } => Ok(()),
            Ready { ready: false } => {
                Err(self.no_arbiter("it is not ready, and says not why".into()))
            }
        }
    }
}
