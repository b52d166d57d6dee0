//! The client of the service.

use crate::protocol::{MAX_REPLY, Reply, Request};
use crate::{
    HostId, HostOrders, HostPing, Orders, Ping, Register, Registered, Report, Status, Up,
    ViewError, VmId,
};
use api::{CallError, Method, error_of};
use std::time::Duration;

/// A view service, asked over TCP, each call within a time limit. Pings and reports go over one connection
/// as long as that lasts.
///
/// A protected pair needs no answer to go on: a failed ping or report may be ignored, as the next ping
/// says the same again.
#[derive(Clone, Debug)]
pub struct Client(api::Client);

impl Client {
    /// The service at `address` (`HOST:PORT`); does not connect yet.
    ///
    /// # Errors
    /// [`ViewError::BadAddress`].
    pub fn new(address: &str) -> Result<Self, ViewError> {
        let client = api::Client::new(address, MAX_REPLY);
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

    /// Limits a call to `timeout` (one second unless set).
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

    fn ask(&self, request: &Request) -> Result<Reply, ViewError> {
        let protocol = |reason: String| ViewError::Protocol {
            address: self.address(),
            reason,
        };
        let (op, rest) = request.to_parts();
        let path = format!("/v1/{op}");
        let (method, body) = match request.reads() {
            true => (Method::GET, None),
            false => (Method::POST, Some(&rest)),
        };
        let answered = match request {
            Request::Ping(_) | Request::Host(_) | Request::Report(_) => {
                self.0.call_kept(method, &path, body)
            }
            // Not to be sent twice, or not often.
            _ => self.0.call(method, &path, body),
        };
        let reply = answered.map_err(|error| match error {
            CallError::Unreachable(reason) => ViewError::Unreachable {
                address: self.address(),
                reason,
            },
            CallError::NotHttp(reason) => protocol(reason),
        })?;
        if reply.status == 200 {
            let said = serde_json::from_slice(&reply.body);
            return said.map_err(|e| protocol(format!("its reply is no reply: {e}")));
        }
        let status = reply.status;
        let address = self.address();
        Err(match (status, error_of(&reply.body)) {
            (404, _) => protocol("it has no such path".into()),
            (400..500, Some(reason)) => ViewError::Refused { address, reason },
            (503, Some(reason)) => ViewError::Failed { address, reason },
            _ => protocol(format!("its reply has status {status}")),
        })
    }

    /// A reply, but to another question.
    fn beside_the_point(&self, reply: &Reply) -> ViewError {
        ViewError::Protocol {
            address: self.address(),
            reason: format!("its reply does not fit the request: {reply:?}"),
        }
    }
}
