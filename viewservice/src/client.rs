//! The client of the service.

use crate::protocol::{MAX_REPLY, PROTOCOL, Reply, Request};
use crate::{
    HostId, HostOrders, HostPing, Orders, Ping, Register, Registered, Report, Status, Up,
    ViewError, VmId,
};
use lines::CallError;
use std::time::Duration;

/// A view service, asked over TCP, each call within a time limit. Pings and reports go over one connection
/// as long as that lasts.
///
/// A protected pair needs no answer to go on: a failed ping or report may be ignored, as the next ping
/// says the same again.
#[derive(Clone, Debug)]
pub struct Client(lines::Client);

impl Client {
    /// The service at `address` (`HOST:PORT`); does not connect yet.
    ///
    /// # Errors
    /// [`ViewError::BadAddress`].
    pub fn new(address: &str) -> Result<Self, ViewError> {
        let client = lines::Client::new(address, PROTOCOL, MAX_REPLY);
        client.map(Self).map_err(|reason| ViewError::BadAddress {
            given: address.into(),
            reason,
        })
    }

    /// Has connections protected as `security` says; else they are plaintext, and within this machine only.
    #[must_use]
    pub fn secured(self, security: tls::Security) -> Self {
        Self(self.0.secured(security))
    }

    /// Limits a call to `timeout` (one second unless set); resolving a host's name comes on top.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self(self.0.with_timeout(timeout))
    }

    /// Says that a host lives, and what it runs; says what it is to do.
    ///
    /// # Errors
    /// [`ViewError`]; may be ignored.
    pub fn ping(&self, ping: &Ping) -> Result<Orders, ViewError> {
        match self.ask(&Request::Ping(ping.clone()))? {
            Reply::Orders(orders) => Ok(orders),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Reports. Idempotent.
    ///
    /// # Errors
    /// [`ViewError`]; may be ignored where pings follow.
    pub fn report(&self, report: &Report) -> Result<(), ViewError> {
        match self.ask(&Request::Report(report.clone()))? {
            Reply::Done => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Asks for a new VM.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn register(&self, wish: &Register) -> Result<Registered, ViewError> {
        match self.ask(&Request::Register(wish.clone()))? {
            Reply::Registered(registered) => Ok(registered),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Asks for a VM's end: its hosts are told at their next pings, and it is forgotten once one of
    /// them reports the end, or none of them lives. Idempotent until then.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn down(&self, vm: &VmId) -> Result<(), ViewError> {
        match self.ask(&Request::Down { vm: vm.clone() })? {
            Reply::Done => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// All VMs and hosts.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn status(&self) -> Result<Status, ViewError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Says that a host's supervisor lives, what its host has and what runs there; says what it is to do.
    ///
    /// # Errors
    /// [`ViewError`]; may be ignored, unless it is a refusal.
    pub fn host(&self, ping: &HostPing) -> Result<HostOrders, ViewError> {
        match self.ask(&Request::Host(ping.clone()))? {
            Reply::HostOrders(orders) => Ok(orders),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Asks for a new VM on whichever hosts have room for it.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn up(&self, wish: &Up) -> Result<Registered, ViewError> {
        match self.ask(&Request::Up(wish.clone()))? {
            Reply::Registered(registered) => Ok(registered),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Asks that a host is to have no replica, or may have some again: its replicas leave one by one, each once
    /// another host can take its place. Idempotent.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn drain(&self, host: &HostId, drained: bool) -> Result<(), ViewError> {
        let host = host.clone();
        match self.ask(&Request::Drain { host, drained })? {
            Reply::Done => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }

    /// Asks that a VM is left to its backup; its primary is told at its next ping, and waits to be its backup then.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn failover(&self, vm: &VmId) -> Result<(), ViewError> {
        match self.ask(&Request::Failover { vm: vm.clone() })? {
            Reply::Done => Ok(()),
            other => Err(self.beside_the_point(&other)),
        }
    }

    fn address(&self) -> String {
        self.0.address().to_owned()
    }

    fn refused(&self, reason: String) -> ViewError {
        ViewError::Refused {
            address: self.address(),
            reason,
        }
    }

    fn ask(&self, request: &Request) -> Result<Reply, ViewError> {
        let protocol = |reason: String| ViewError::Protocol {
            address: self.address(),
            reason,
        };
        let answered = match request {
            Request::Ping(_) | Request::Host(_) | Request::Report(_) => self.0.call_kept(request),
            // Not to be sent twice, or not often.
            Request::Register(_)
            | Request::Down { .. }
            | Request::Status
            | Request::Up(_)
            | Request::Drain { .. }
            | Request::Failover { .. } => self.0.call(request),
        };
        let reply = answered.map_err(|error| match error {
            CallError::Unreachable(reason) => ViewError::Unreachable {
                address: self.address(),
                reason,
            },
            CallError::NotGreeted { line, reason } => match serde_json::from_slice(&line) {
                Ok(Reply::Refused { reason }) => self.refused(reason),
                _ => protocol(reason),
            },
        })?;
        match serde_json::from_slice(&reply) {
            Ok(Reply::Refused { reason }) => Err(self.refused(reason)),
            Ok(Reply::Failed { reason }) => Err(ViewError::Failed {
                address: self.address(),
                reason,
            }),
            Ok(reply) => Ok(reply),
            Err(error) => Err(protocol(format!("its reply is no reply: {error}"))),
        }
    }

    /// A reply, but to another question.
    fn beside_the_point(&self, reply: &Reply) -> ViewError {
        ViewError::Protocol {
            address: self.address(),
            reason: format!("its reply does not fit the request: {reply:?}"),
        }
    }
}
