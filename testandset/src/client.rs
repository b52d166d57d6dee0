//! The client of the arbiter server.

use crate::protocol::{MAX_LINE, PROTOCOL, Reply, Request};
use crate::{Arbiter, ArbiterError, Contender, Flag, Verdict};
use lines::{CallError, Client};
use std::time::Duration;

/// An arbiter server, asked over TCP: a connection per call, each within a time limit. Asking again
/// after an error is the caller's.
#[derive(Clone, Debug)]
pub struct ServerArbiter(Client);

impl ServerArbiter {
    /// The server at `address` (`HOST:PORT`); does not connect yet.
    ///
    /// # Errors
    /// [`ArbiterError::BadAddress`].
    pub fn new(address: &str) -> Result<Self, ArbiterError> {
        let client = Client::new(address, PROTOCOL, 2 * MAX_LINE);
        client.map(Self).map_err(|reason| ArbiterError::BadAddress {
            given: address.into(),
            reason,
        })
    }

    /// Limits a call to `timeout` (one second unless set); resolving a host's name comes on top.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self(self.0.with_timeout(timeout))
    }

    fn address(&self) -> String {
        self.0.address().to_owned()
    }

    fn ask(&self, request: &Request) -> Result<Reply, ArbiterError> {
        let protocol = |reason: String| ArbiterError::Protocol {
            arbiter: self.address(),
            reason,
        };
        let reply = self.0.call(request).map_err(|error| match error {
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
    fn test_and_set(&self, flag: &Flag, who: &Contender) -> Result<Verdict, ArbiterError> {
        let request = Request::TestAndSet {
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
            vm: flag.vm.clone(),
            view: flag.view,
        };
        match self.ask(&request)? {
            Reply::Holder { holder } => Ok(holder),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn check(&self) -> Result<(), ArbiterError> {
        match self.ask(&Request::Check)? {
            Reply::Ready => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }
}
