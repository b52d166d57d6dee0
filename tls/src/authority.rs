//! The cluster's authority: a key that signs who is a member.
//!
//! ```text
//!   DIR/ca.pem  ca.key                    the authority; ca.key is needed to sign, and nowhere else
//!   DIR/hosts/a/ca.pem  identity.pem      copied to host a, as a folder
//!   DIR/services/arbiter/...
//!   DIR/operators/ann/...
//! ```

use crate::folder::{AUTHORITY, IDENTITY, read_key_file};
use crate::peer::{Member, Role, vm_uri};
use crate::{Tls, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

/// The authority's key.
const KEY: &str = "ca.key";
/// How long before it is made a certificate holds: hosts' clocks may be behind by that.
const SLACK: Duration = Duration::from_secs(24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A cluster's authority, with its key.
pub struct Authority {
    folder: PathBuf,
    certificate: String,
    issuer: Issuer<'static, Key>,
}

/// A private key that is wiped from memory when it is dropped.
struct Key(KeyPair);

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl rcgen::PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl Key {
    fn new() -> Result<Self, TlsError> {
        // P-256: what every client of TLS takes.
        Ok(Self(KeyPair::generate()?))
    }

    fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl Authority {
    /// Makes one in `folder`, which may be there; it holds for `days`.
    ///
    /// # Errors
    /// If one is there, or the files cannot be written.
    pub fn create(folder: &Path, days: u32) -> Result<Self, TlsError> {
        make_folder(folder)?;
        let key = Key::new()?;
        let params = own_params(days);
        let certificate = params.self_signed(&key)?.pem();
        // The key first: an authority without one could sign nothing, and would not be made anew.
        write_new(&folder.join(KEY), key.pem().as_bytes(), 0o600)?;
        write_new(&folder.join(AUTHORITY), certificate.as_bytes(), 0o644)?;
        Ok(Self {
            folder: folder.into(),
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// The one in `folder`.
    ///
    /// # Errors
    /// If it is not there, or its key can be read by others.
    pub fn open(folder: &Path) -> Result<Self, TlsError> {
        let path = folder.join(AUTHORITY);
        let certificate = match fs::read_to_string(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let why = "there is no authority here (tandem init makes one)";
                return Err(TlsError::bad(&path, why));
            }
            read => read.map_err(TlsError::io("read", &path))?,
        };
        let path = folder.join(KEY);
        let pem = read_key_file(&path)?;
        let pem = std::str::from_utf8(&pem).map_err(|_| TlsError::bad(&path, "it is no text"))?;
        let key = Key(KeyPair::from_pem(pem).map_err(|e| TlsError::bad(&path, e.to_string()))?);
        Ok(Self {
            folder: folder.into(),
            certificate,
            // Of these only the name goes into what it signs.
            issuer: Issuer::new(own_params(1), key),
        })
    }

    /// Makes an identity for `member`, which holds for `days`; a host may run `vms` with it (`*`: every one). If it
    /// has one it is replaced, if that is what `renew` says. Returns the folder it is in.
    ///
    /// # Errors
    /// If it has one and that is not to be replaced, names are none, or the files cannot be written.
    pub fn issue(
        &self,
        member: &Member,
        vms: &[String],
        days: u32,
        renew: bool,
    ) -> Result<PathBuf, TlsError> {
        self.issue_at(member, vms, (SystemTime::now(), days), renew)
    }

    /// [`Self::issue`] as of another time.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_at(
        &self,
        member: &Member,
        vms: &[String],
        validity: (SystemTime, u32),
        renew: bool,
    ) -> Result<PathBuf, TlsError> {
        let folder = self.folder_of(member);
        let path = folder.join(IDENTITY);
        if !renew && path.exists() {
            let why = format!("{member} has a certificate (--renew makes a new one)");
            return Err(TlsError::bad(&path, why));
        }
        let key = Key::new()?;
        let certificate = params_of(member, vms, validity)?.signed_by(&key, &self.issuer)?;
        let both = Zeroizing::new(format!("{}{}", *key.pem(), certificate.pem()));
        make_folder(&folder)?;
        replace(&folder.join(AUTHORITY), self.certificate.as_bytes(), 0o644)?;
        replace(&path, both.as_bytes(), 0o600)?;
        // It would be found out on that host else.
        Tls::open(&folder)?;
        Ok(folder)
    }

    /// Where the identity of `member` is, if it has one.
    #[must_use]
    pub fn folder_of(&self, member: &Member) -> PathBuf {
        let kind = match member.role() {
            Role::Host => "hosts",
            Role::Service => "services",
            Role::Operator => "operators",
        };
        self.folder.join(kind).join(member.name())
    }
}

/// From then, or somewhat before, for so many days.
fn hold(params: &mut CertificateParams, (now, days): (SystemTime, u32)) {
    params.not_before = OffsetDateTime::from(now - SLACK);
    params.not_after = OffsetDateTime::from(now + DAY * days);
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Tandem");
    name.push(DnType::CommonName, common_name);
    name
}

fn own_params(days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Tandem cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    hold(&mut params, (SystemTime::now(), days));
    params
}

fn params_of(
    member: &Member,
    vms: &[String],
    validity: (SystemTime, u32),
) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&member.to_string());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if member.role() != Role::Operator {
        // Others call it.
        let name = member.role().server_name().try_into()?;
        params.subject_alt_names.push(SanType::DnsName(name));
        let called = ExtendedKeyUsagePurpose::ServerAuth;
        params.extended_key_usages.push(called);
    }
    let vms = vms.iter().map(|vm| vm_uri(vm));
    for uri in std::iter::once(Ok(member.uri())).chain(vms) {
        params
            .subject_alt_names
            .push(SanType::URI(uri?.try_into()?));
    }
    hold(&mut params, validity);
    Ok(params)
}

fn make_folder(folder: &Path) -> Result<(), TlsError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    made.map_err(TlsError::io("make the folder", folder))
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(TlsError::io("write", path))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|e| {
        // Half of a key is none.
        let _ = fs::remove_file(path);
        TlsError::io("write", path)(e)
    })
}

/// Writes a file in one step: whoever reads it finds the old one or the new one.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    write_new(&beside, bytes, mode)?;
    fs::rename(&beside, path).map_err(TlsError::io("replace", path))
}
