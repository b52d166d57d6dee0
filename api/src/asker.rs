//! Who asks.

use std::fmt;
use std::net::IpAddr;
use tls::{Peer, Strangers};

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    /// From where.
    pub address: IpAddr,
    /// Whom its certificate names, which was checked; `None` where plaintext is spoken.
    pub identity: Option<Peer>,
}

impl Asker {
    /// Whether it may do what `rule` says of members of the cluster. Where plaintext is spoken everybody may do
    /// everything, and so may operators. Who may not is counted among the `refused`, and told of.
    ///
    /// # Errors
    /// What `rule` says.
    pub fn may(
        &self,
        refused: &Strangers,
        rule: impl FnOnce(&Peer) -> Result<(), String>,
    ) -> Result<(), String> {
        let ruled = match &self.identity {
            Some(peer) if !peer.is_operator() => rule(peer),
            _ => Ok(()),
        };
        if let Err(reason) = &ruled
            && let Some(so_far) = refused.add()
        {
            tracing::warn!(asker = %self, so_far, reason, "a request was refused");
        }
        ruled
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(peer) => write!(f, "{peer} at {}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}
