//! Whom a replica of a machine takes for the other one.

use crate::address::HostPort;
use crate::error::{During, Outcome};
use std::io;
use std::net::{TcpListener, TcpStream};
use testandset::VmId;
use tls::{Peer, Role, Security, Stream};

/// The rule: the other replica is on a host whose certificate says that it may run the machine. Without certificates
/// it is whoever calls, or is called, where plaintext is allowed at all.
#[derive(Clone, Debug)]
pub struct Partners {
    security: Security,
    vm: VmId,
}

impl Partners {
    /// Of a replica of `vm`.
    pub fn new(security: Security, vm: VmId) -> Self {
        Self { security, vm }
    }

    fn check(&self) -> impl Fn(&Peer) -> Result<(), String> + Send + Sync + use<> {
        let vm = self.vm.clone();
        move |peer| peer.is_host_of(vm.as_str())
    }

    /// The connection over `socket` to a backup that was called.
    ///
    /// # Errors
    /// If it would be plaintext and must not be.
    pub fn call(&self, socket: TcpStream) -> io::Result<Stream> {
        self.security.call(socket, Role::Host, self.check())
    }

    /// The connection over `socket` to a primary that has called.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn answer(&self, socket: TcpStream) -> io::Result<Stream> {
        self.security.answer(socket, self.check())
    }

    /// A port where primaries may call.
    ///
    /// # Errors
    /// If `address` is not to be had, or primaries of other machines could call there in plaintext.
    pub fn listen(&self, address: &HostPort) -> Outcome<TcpListener> {
        let listener = address.listen()?;
        let here = listener.local_addr().during("cannot listen")?;
        self.security.permit(here.ip())?;
        Ok(listener)
    }
}
