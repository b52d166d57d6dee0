//! What the words behind `etcd:` say.
//!
//! ```text
//!   etcd:10.0.0.1:2379,10.0.0.2:2379,ca=/etc/tandem/ca.pem,user=tandem,password-file=/etc/tandem/password
//!        └ members, one at least ──┘ └ settings: NAME=VALUE ──────────────────────────────────────────────
//! ```
//!
//! No word of it is a secret: what must not be seen in a list of processes is in files, or in the environment.

use crate::ArbiterError;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use ureq::http::Uri;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, parse_pem};

/// Most members that are asked. A cluster of etcd has seven as a rule at most.
const MEMBERS_MAX: usize = 9;
/// Longest prefix of keys, in bytes.
const PREFIX_MAX: usize = 256;
/// Longest file of certificates, or with a password, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Where the password is if not in a file.
const PASSWORD_VARIABLE: &str = "TANDEM_ETCD_PASSWORD";

/// What is said of an address that says something else.
const EXPECTED: &str = "expected etcd:HOST:PORT[,HOST:PORT...], then any of ,ca=FILE ,cert=FILE ,key=FILE ,user=NAME \
                        ,password-file=FILE ,prefix=KEYS";

/// How a cluster of etcd is asked.
pub(super) struct Settings {
    /// Its members that are asked, each as `HOST:PORT`.
    pub(super) members: Vec<String>,
    /// What all keys begin with. It ends in a slash.
    pub(super) prefix: String,
    /// How connections are protected, if they are.
    pub(super) tls: Option<Tls>,
    /// Who asks, if etcd is told that.
    pub(super) login: Option<Login>,
}

/// TLS, as the files say.
pub(super) struct Tls {
    /// Who vouches for the members.
    pub(super) roots: RootCerts,
    /// Where that was read.
    pub(super) ca: PathBuf,
    /// What members are shown.
    pub(super) client: Option<ClientCert>,
}

/// A user of etcd.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: String,
    password: Password,
}

#[derive(Clone)]
enum Password {
    /// Read whenever a member asks for it, so that it can be changed meanwhile.
    File(PathBuf),
    Known(String),
}

/// Neither keys nor passwords.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({})", self.members.join(","))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

impl Login {
    /// The password.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub(super) fn password(&self) -> Result<String, ArbiterError> {
        match &self.password {
            Password::Known(password) => Ok(password.clone()),
            Password::File(path) => {
                let what = "password file";
                let bytes = read(what, path)?;
                let text = String::from_utf8(bytes).map_err(|_| bad_file(what, path, "no text"))?;
                Ok(text.trim_end_matches(['\n', '\r']).to_owned())
            }
        }
    }
}

/// The settings, before what they name is looked at.
#[derive(Default)]
struct Words<'a> {
    ca: Option<&'a str>,
    cert: Option<&'a str>,
    key: Option<&'a str>,
    user: Option<&'a str>,
    password_file: Option<&'a str>,
    prefix: Option<&'a str>,
}

impl<'a> Words<'a> {
    /// Names whose values are no secrets.
    const SHOWN: [&'static str; 6] = ["ca", "cert", "key", "user", "password-file", "prefix"];

    fn take(&mut self, name: &str, value: &'a str) -> Result<(), &'static str> {
        let word = match name {
            "ca" => &mut self.ca,
            "cert" => &mut self.cert,
            "key" => &mut self.key,
            "user" => &mut self.user,
            "password-file" => &mut self.password_file,
            "prefix" => &mut self.prefix,
            "password" => {
                return Err(
                    "a password is not for the command line: give password-file=FILE, or set \
                            TANDEM_ETCD_PASSWORD",
                );
            }
            _ => return Err(EXPECTED),
        };
        if value.is_empty() {
            return Err(EXPECTED);
        }
        match word.replace(value) {
            Some(_) => Err("a setting is given twice"),
            None => Ok(()),
        }
    }

    fn tls(&self) -> Result<Option<Tls>, ArbiterError> {
        let Some(ca) = self.ca.map(PathBuf::from) else {
            return Ok(None);
        };
        let roots = certificates("CA file", &ca)?;
        let client = match (self.cert.map(Path::new), self.key.map(Path::new)) {
            (Some(cert), Some(key)) => {
                let chain = certificates("client certificate", cert)?;
                Some(ClientCert::new_with_certs(&chain, private_key(key)?))
            }
            _ => None,
        };
        Ok(Some(Tls {
            roots: RootCerts::new_with_certs(&roots),
            ca,
            client,
        }))
    }

    fn login(&self, environment: Option<String>) -> Result<Option<Login>, &'static str> {
        let Some(user) = self.user else {
            return match self.password_file {
                Some(_) => Err("password-file= is without its user="),
                None => Ok(None),
            };
        };
        let password = match (self.password_file, environment) {
            (Some(path), _) => Password::File(path.into()),
            (None, Some(password)) => Password::Known(password),
            (None, None) => {
                return Err("user= needs a password: password-file=FILE, or TANDEM_ETCD_PASSWORD");
            }
        };
        Ok(Some(Login {
            user: user.into(),
            password,
        }))
    }
}

impl Settings {
    /// Reads `words`, all behind `etcd:`, and the files they name.
    ///
    /// # Errors
    /// [`ArbiterError::BadAddress`]; [`ArbiterError::BadFile`].
    pub(super) fn parse(words: &str) -> Result<Self, ArbiterError> {
        let bad = |reason| {
            // Where a name is mistyped, what it stands for may be a password.
            let shown = words.split(',').map(|word| match word.split_once('=') {
                Some((name, _)) if !Words::SHOWN.contains(&name) => format!("{name}=..."),
                _ => word.to_owned(),
            });
            ArbiterError::BadAddress {
                given: format!("etcd:{}", Vec::from_iter(shown).join(",")),
                reason,
            }
        };
        let (mut members, mut named) = (Vec::new(), Words::default());
        for word in words.split(',') {
            match word.split_once('=') {
                Some((name, value)) => named.take(name, value).map_err(bad)?,
                None => {
                    check_member(word).map_err(bad)?;
                    members.push(word.to_owned());
                }
            }
        }
        if members.is_empty() || members.len() > MEMBERS_MAX {
            return Err(bad("expected one to nine members"));
        }
        if named.cert.is_some() != named.key.is_some() {
            return Err(bad("cert= and key= are given together"));
        }
        if named.cert.is_some() && named.ca.is_none() {
            return Err(bad("cert= is without the CA of the members: ca=FILE"));
        }
        let login = named
            .login(std::env::var(PASSWORD_VARIABLE).ok())
            .map_err(bad)?;
        let mut prefix = named.prefix.unwrap_or("/tandem/").to_owned();
        if prefix.len() > PREFIX_MAX {
            return Err(bad("prefix= has 256 bytes at most"));
        }
        if !prefix.ends_with('/') {
            prefix.push('/');
        }
        Ok(Self {
            members,
            prefix,
            tls: named.tls()?,
            login,
        })
    }
}

/// Whether `member` is `HOST:PORT`, as it may stand in a URL.
fn check_member(member: &str) -> Result<(), &'static str> {
    if member.contains("//") {
        return Err("members are HOST:PORT; with ca=FILE they are asked by https, else by http");
    }
    api::check_address(member)?;
    let url: Option<Uri> = format!("http://{member}/").parse().ok();
    match url.as_ref().and_then(Uri::authority) {
        Some(authority) if authority.as_str() == member && !member.contains('@') => Ok(()),
        _ => Err("expected a host's name or address before the port"),
    }
}

fn bad_file(what: &'static str, path: &Path, reason: impl Into<String>) -> ArbiterError {
    ArbiterError::BadFile {
        what,
        path: path.into(),
        reason: reason.into(),
    }
}

/// The content of a file, of a bounded length.
fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ArbiterError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| bad_file(what, path, e.to_string()))?;
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| bad_file(what, path, e.to_string()))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(bad_file(what, path, "it is longer than a MiB"));
    }
    Ok(bytes)
}

/// All certificates in a PEM file, one at least.
fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<Certificate<'static>>, ArbiterError> {
    let bytes = read(what, path)?;
    let mut found = Vec::new();
    for item in parse_pem(&bytes) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(bad_file(what, path, error.to_string())),
        }
    }
    if found.is_empty() {
        return Err(bad_file(what, path, "it has no certificate in PEM"));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKey<'static>, ArbiterError> {
    let what = "client key";
    let bytes = read(what, path)?;
    PrivateKey::from_pem(&bytes).map_err(|_| {
        bad_file(
            what,
            path,
            "it has no private key in PEM, without a password",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(words: &str) -> String {
        let error = Settings::parse(words).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn members_and_settings_are_told_apart() {
        let settings = Settings::parse("a:1,[::1]:2,prefix=/site,10.0.0.1:65535").unwrap();
        assert_eq!(settings.members, ["a:1", "[::1]:2", "10.0.0.1:65535"]);
        assert_eq!(settings.prefix, "/site/");
        assert!(settings.tls.is_none() && settings.login.is_none());
        assert_eq!(Settings::parse("a:1").unwrap().prefix, "/tandem/");
    }

    #[test]
    fn what_names_no_cluster_is_refused_in_one_line() {
        for (words, reason) in [
            ("", "HOST:PORT"),
            ("a", "HOST:PORT"),
            ("a:1,", "HOST:PORT"),
            ("a:0", "a port from 1 to 65535"),
            ("u@a:1", "name or address"),
            ("a/b:1", "name or address"),
            ("https://a:1", "asked by https"),
            ("prefix=/x", "one to nine members"),
            ("a:1,what=x", "expected etcd:HOST:PORT["),
            ("a:1,prefix=", "expected etcd:HOST:PORT["),
            ("a:1,prefix=x,prefix=x", "twice"),
            ("a:1,cert=x", "together"),
            ("a:1,cert=x,key=y", "ca=FILE"),
            ("a:1,password-file=x", "without its user="),
            ("a:1,user=x,password=secret", "not for the command line"),
            ("a:1,ca=/nowhere", "CA file /nowhere"),
        ] {
            let line = why(words);
            assert!(line.contains(reason), "{words}: {line}");
        }
        assert!(why(&["a:1"; 10].join(",")).contains("one to nine"));
        for name in ["password", "pasword", "Password", "password-fiel"] {
            let line = why(&format!("a:1,user=x,{name}=secret"));
            assert!(!line.contains("secret") && line.contains(name), "{line}");
        }
    }

    #[test]
    fn a_password_is_read_each_time_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let words = format!("a:1,user=u,password-file={}", path.display());
        let login = Settings::parse(&words).unwrap().login.unwrap();
        let error = login.password().unwrap_err().to_string();
        assert!(error.contains("password file"), "{error}");
        for password in ["first", "second and last"] {
            std::fs::write(&path, format!("{password}\n")).unwrap();
            assert_eq!(login.password().unwrap(), password);
        }
        assert_eq!(format!("{login:?}"), "Login(u)");
        let words = Words {
            user: Some("u"),
            ..Words::default()
        };
        assert!(words.login(None).is_err());
        let login = words.login(Some("from outside".into())).unwrap().unwrap();
        assert_eq!(login.password().unwrap(), "from outside");
        assert_eq!(format!("{login:?}"), "Login(u)");
    }

    #[test]
    fn files_that_hold_no_certificates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for content in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
        ] {
            std::fs::write(&path, content).unwrap();
            let line = why(&format!("a:1,ca={}", path.display()));
            assert!(
                line.contains("CA file") && line.contains("ca.pem"),
                "{line}"
            );
        }
    }
}
