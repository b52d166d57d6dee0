//! Who may speak to whom: the cluster's certificates, and mutual TLS over its connections.
//!
//! ```text
//!   authority (one a cluster) ──signs──▶ identities: a folder each
//!     ca.pem, ca.key                       ca.pem         who vouches for the others
//!                                          identity.pem   private key and certificate, mode 0600
//!
//!   names in a certificate (URIs)                         may
//!     tandem://host/a  tandem://vm/web  tandem://vm/db    run replicas of web and db, as host a
//!     tandem://service/arbiter                            be an arbiter or a viewservice
//!     tandem://operator/ann                               ask services for anything
//! ```
//!
//! Both ends of a connection show a certificate, and each checks the other's: that the cluster's authority signed it,
//! that it is of now, and that its names allow what the other end is there for ([`Check`]). A connection is TLS 1.3;
//! nothing of one session is of use in another (no tickets, no early data).
//!
//! [`Security`] says for a whole process how its connections are protected. Without certificates there is plaintext
//! on loopback only, unless it is asked for.
//!
//! # Example
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//! use tls::{Authority, Member, Peer, Security, Tls};
//!
//! let folder = tempfile::tempdir()?;
//! let authority = Authority::create(folder.path(), 365)?;
//! let a = authority.issue(&Member::host("a")?, &["web".into()], 30, false)?;
//! let b = authority.issue(&Member::host("b")?, &["web".into()], 30, false)?;
//! let [a, b] = [a, b].map(|folder| Security::Tls(Tls::open(&folder).unwrap()));
//!
//! let of_web = |peer: &Peer| peer.is_host_of("web");
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let mut called = a.call(TcpStream::connect(listener.local_addr()?)?, tls::Role::Host, of_web)?;
//! let mut caller = b.answer(listener.accept()?.0, of_web)?;
//! let calling = std::thread::spawn(move || called.write_all(b"hello").map(|()| called));
//! let mut heard = [0; 5];
//! caller.read_exact(&mut heard)?;
//! assert_eq!((&heard, caller.peer().unwrap().to_string().as_str()), (b"hello", "host a"));
//! # calling.join().unwrap()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod authority;
mod folder;
mod peer;
mod security;
mod session;
mod stream;

pub use authority::Authority;
pub use folder::{IDENTITY, Tls};
pub use peer::{Member, Peer, Role};
pub use security::{Check, Security, Strangers};
pub use session::{Cipher, Session, is_tls, said};
pub use stream::{Stream, Using};

use std::path::{Path, PathBuf};

/// What is wrong with certificates, keys, or what they are asked for.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is there, but not what it is to be.
    #[error("{}: {why}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No name for a member or a machine.
    #[error("'{given}' is no name: it takes 1 to 64 letters, digits, '.', '_' or '-'")]
    BadName {
        /// What was given.
        given: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Plaintext to another machine was not asked for.
    #[error(
        "{address} is not on this machine: give --tls DIR (see tandem init), or --insecure for plaintext that \
         anyone on the way can read and forge"
    )]
    Plaintext {
        /// Where.
        address: std::net::IpAddr,
    },
}

impl TlsError {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io {
            what,
            path: path.into(),
            source,
        }
    }

    fn bad(path: &Path, why: impl Into<String>) -> Self {
        Self::BadFile {
            path: path.into(),
            why: why.into(),
        }
    }
}
