//! Whom a certificate names, and what that one may do.

use crate::TlsError;
use rustls::pki_types::CertificateDer;
use std::fmt;

/// What names in certificates begin with.
const SCHEME: &str = "tandem://";
/// The name that stands for all machines.
const ANY: &str = "*";

/// What a member is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// It runs replicas.
    Host,
    /// It is an arbiter or a viewservice.
    Service,
    /// A person, or a program in a person's place.
    Operator,
}

impl Role {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Host, Self::Service, Self::Operator];

    /// Its name in certificates and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Service => "service",
            Self::Operator => "operator",
        }
    }

    /// The DNS name that certificates of a role have which is called. Whoever calls knows an address and a role,
    /// not which member is there: so TLS is asked for this name, and [`crate::Check`] for the rest. `.internal` is
    /// nobody's (ICANN, 2024), so no public authority signs it.
    pub(crate) fn server_name(self) -> &'static str {
        match self {
            Self::Host => "host.tandem.internal",
            Self::Service => "service.tandem.internal",
            Self::Operator => "operator.tandem.internal",
        }
    }
}

/// A member of the cluster: role and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    role: Role,
    name: String,
}

impl Member {
    /// The member called `name` in this role.
    ///
    /// # Errors
    /// [`TlsError::BadName`].
    pub fn new(role: Role, name: &str) -> Result<Self, TlsError> {
        let name = checked(name)?.to_owned();
        Ok(Self { role, name })
    }

    /// A host.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn host(name: &str) -> Result<Self, TlsError> {
        Self::new(Role::Host, name)
    }

    /// What it is there for.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role.name(), self.name)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.name(), self.name)
    }
}

/// A name as machines have them, which members have, too, and which is none of the system's own in a path.
fn checked(name: &str) -> Result<&str, TlsError> {
    if !name.starts_with('.') && names::VmId::new(name).is_ok() {
        return Ok(name);
    }
    Err(TlsError::BadName { given: name.into() })
}

/// The name in certificates of a machine that a host may run; `*`: of every one.
///
/// # Errors
/// [`TlsError::BadName`].
pub(crate) fn vm_uri(vm: &str) -> Result<String, TlsError> {
    let vm = if vm == ANY { vm } else { checked(vm)? };
    Ok(format!("{SCHEME}vm/{vm}"))
}

/// The other end of a connection, as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    member: Member,
    vms: Vec<String>,
}

impl Peer {
    /// Whom `certificate` names. That it is to be believed was checked before.
    ///
    /// # Errors
    /// If it names nobody, or several.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let read = webpki::EndEntityCert::try_from(certificate);
        let read = read.map_err(|e| format!("its certificate cannot be read: {e}"))?;
        Self::named(read.valid_uri_names())
    }

    /// Whom the certificates `shown` name, the first of which is the other end's own.
    ///
    /// # Errors
    /// If there is none, or it names nobody, or several.
    pub fn shown(shown: Option<&[CertificateDer<'_>]>) -> Result<Self, String> {
        let first = shown.and_then(<[_]>::first);
        first.map_or_else(|| Err("it shows no certificate".into()), Self::of)
    }

    /// Whom these names are of, others among them left out.
    fn named<'a>(uris: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut members = Vec::new();
        let mut vms = Vec::new();
        for name in uris.filter_map(|uri| uri.strip_prefix(SCHEME)) {
            let Some((kind, name)) = name.split_once('/') else {
                continue;
            };
            let role = Role::ALL.into_iter().find(|role| role.name() == kind);
            match role.map(|role| Member::new(role, name)) {
                Some(member) => members.push(member.map_err(|e| e.to_string())?),
                None if kind == "vm" => vms.push(name.to_owned()),
                None => {}
            }
        }
        let [member] = <[Member; 1]>::try_from(members).map_err(|members| {
            let count = members.len();
            format!("its certificate names {count} members of a cluster, not one")
        })?;
        Ok(Self { member, vms })
    }

    /// Who it is.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Its name, if it is a host.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        (self.member.role == Role::Host).then_some(self.member.name())
    }

    /// Whether it is an operator.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.member.role == Role::Operator
    }

    /// Machines it may run replicas of; `*`: every one.
    #[must_use]
    pub fn vms(&self) -> &[String] {
        &self.vms
    }

    /// Whether it is a host that may run replicas of `vm`.
    ///
    /// # Errors
    /// Why not.
    pub fn is_host_of(&self, vm: &str) -> Result<(), String> {
        if self.member.role != Role::Host {
            return Err(format!("it is {self}, which runs no machine"));
        }
        if self.vms.iter().any(|of| of == vm || of == ANY) {
            return Ok(());
        }
        Err(format!("{self} may not run '{vm}', by its certificate"))
    }

    /// Whether it is a service.
    ///
    /// # Errors
    /// Why not.
    pub fn is_service(&self) -> Result<(), String> {
        match self.member.role {
            Role::Service => Ok(()),
            Role::Host | Role::Operator => Err(format!("it is {self}, no arbiter or viewservice")),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.member.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(uris: &[&str]) -> Result<Peer, String> {
        Peer::named(uris.iter().copied())
    }

    #[test]
    fn a_host_may_run_what_its_certificate_names_and_nothing_else() {
        let a = named(&["tandem://host/a", "tandem://vm/web", "https://else/where"]).unwrap();
        assert_eq!((a.host(), a.to_string().as_str()), (Some("a"), "host a"));
        assert_eq!(a.is_host_of("web"), Ok(()));
        let why = a.is_host_of("db").unwrap_err();
        assert!(why.contains("host a may not run 'db'"), "{why}");
        assert!(a.is_host_of("we").is_err() && a.is_host_of("*").is_err());
        assert!(a.is_service().is_err() && !a.is_operator());
        let any = named(&["tandem://host/b", "tandem://vm/*"]).unwrap();
        assert_eq!(any.is_host_of("db"), Ok(()));
    }

    #[test]
    fn only_a_host_runs_machines() {
        for role in ["service", "operator"] {
            let peer = named(&[&format!("tandem://{role}/a"), "tandem://vm/*"]).unwrap();
            assert!(peer.is_host_of("web").is_err(), "{role}");
            assert_eq!(peer.host(), None);
        }
    }

    #[test]
    fn a_certificate_of_nobody_or_of_several_is_nobodys() {
        for uris in [
            &[][..],
            &["tandem://vm/web"],
            &["tandem://host/a", "tandem://host/b"],
            &["tandem://host/a", "tandem://operator/a"],
            &["tandem://host/"],
            &["tandem://host/a/b"],
            &["tandem://host/.."],
            &["spiffe://host/a"],
        ] {
            assert!(named(uris).is_err(), "{uris:?}");
        }
    }
}
