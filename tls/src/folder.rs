//! An identity, as it lies in a folder of its host.

use crate::TlsError;
use crate::peer::{Peer, Role};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use zeroize::Zeroizing;

/// Whom the cluster's members believe.
pub(crate) const AUTHORITY: &str = "ca.pem";
/// A member's key and certificate: one file, so that a new one replaces both in one step.
pub const IDENTITY: &str = "identity.pem";
/// Longest such file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// This process's identity, read from its folder: again whenever a file there was replaced, so that a certificate
/// is renewed while connections last. A replacement that is none is complained of once and not used.
pub struct Tls {
    folder: PathBuf,
    read: Mutex<Loaded>,
}

/// What was read.
struct Loaded {
    stamps: [Stamp; 2],
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    own: Peer,
}

/// What tells one file from the one that replaces it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    changed_ns: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, TlsError> {
        let meta = fs::metadata(path).map_err(TlsError::io("read", path))?;
        Ok(Self {
            inode: meta.ino(),
            length: meta.len(),
            changed_ns: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Not its key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tls({})", self.folder.display())
    }
}

impl Tls {
    /// The identity in `folder`: `ca.pem` and `identity.pem`, as `tandem init` makes them.
    ///
    /// # Errors
    /// If a file is missing or none, names no member, or can be read by others than its owner.
    pub fn open(folder: &Path) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            folder: folder.into(),
            read: Mutex::new(Loaded::from(folder)?),
        }))
    }

    /// Whom its certificate names.
    #[must_use]
    pub fn own(&self) -> Peer {
        self.loaded().own.clone()
    }

    /// How connections that come are answered.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.loaded().server.clone()
    }

    pub(crate) fn client(&self, role: Role) -> Result<ClientConnection, rustls::Error> {
        let name = ServerName::try_from(role.server_name()).expect("they are DNS names");
        ClientConnection::new(self.loaded().client.clone(), name)
    }

    pub(crate) fn server(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(self.server_config())
    }

    /// What was read last, after another look at the files.
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        let mut loaded = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(stamps) = stamps(&self.folder)
            && stamps != loaded.stamps
        {
            match Loaded::from(&self.folder) {
                Ok(newer) => *loaded = newer,
                Err(error) => {
                    loaded.stamps = stamps;
                    tracing::warn!("the certificate in use before is used on: {error}");
                }
            }
        }
        loaded
    }
}

fn stamps(folder: &Path) -> Result<[Stamp; 2], TlsError> {
    let [authority, identity] = [AUTHORITY, IDENTITY].map(|name| Stamp::of(&folder.join(name)));
    Ok([authority?, identity?])
}

impl Loaded {
    fn from(folder: &Path) -> Result<Self, TlsError> {
        // Before the files are read: a change meanwhile is found at the next look.
        let stamps = stamps(folder)?;
        let path = folder.join(AUTHORITY);
        let roots = Arc::new(roots(&path)?);
        let path = folder.join(IDENTITY);
        let wrong = |why: String| TlsError::bad(&path, why);
        let (chain, key) = identity(&path)?;
        let own = Peer::of(&chain[0]).map_err(wrong)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let of_rustls = |e: rustls::Error| wrong(e.to_string());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier =
            verifier.map_err(|e| TlsError::bad(&folder.join(AUTHORITY), e.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(of_rustls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(of_rustls)?;
        // Whoever comes back shows its certificate again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(of_rustls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(of_rustls)?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            stamps,
            client: Arc::new(client),
            server: Arc::new(server),
            own,
        })
    }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let bytes = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|e| TlsError::bad(path, e.to_string()))?;
        let added = roots.add(certificate);
        added.map_err(|e| TlsError::bad(path, e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::bad(path, "there is no certificate in it"));
    }
    Ok(roots)
}

/// A certificate, with what leads from it to the authority, and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(path: &Path) -> Result<Identity, TlsError> {
    let bytes = read_key_file(path)?;
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| TlsError::bad(path, e.to_string()))?;
    if chain.is_empty() {
        return Err(TlsError::bad(path, "there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes);
    let key = key.map_err(|_| TlsError::bad(path, "there is no private key in it"))?;
    Ok((chain, key))
}

/// A file with a private key, which only its owner may read.
pub(crate) fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let meta = fs::metadata(path).map_err(TlsError::io("read", path))?;
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let why = format!("others can read this private key (mode {mode:04o}): chmod 600 it");
        return Err(TlsError::bad(path, why));
    }
    read(path)
}

/// Whatever was read is wiped from memory in the end.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let open = File::open(path).map_err(TlsError::io("read", path))?;
    // Room for all of it from the start: what a growing buffer leaves behind is not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(64 << 10));
    let read = open.take(FILE_MAX).read_to_end(&mut bytes);
    read.map_err(TlsError::io("read", path))?;
    Ok(bytes)
}
