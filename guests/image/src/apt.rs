//! What the machine's own apt says of packages, and fetching them with it.
//!
//! apt is asked as if nothing were installed, so that what is chosen depends on the package lists alone.
//! Those are signed, and they name the SHA-256 each package's file is checked against here.

use crate::error::{During, Error, Result};
use crate::near;
use crate::tools::{Stop, ToolFailure, output, tool};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A package's file that apt would install.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The package's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The name apt gives the downloaded file.
    pub file: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// What the package lists say of it, as they say it.
    pub stanza: String,
}

/// The packages every Debian system has, as apt's patterns name them: without apt itself, which apt counts among
/// them.
pub const ESSENTIAL: &str = "?and(?essential,?not(?exact-name(apt)))";

/// The package that says a root's `/bin`, `/sbin` and `/lib` are links into `/usr`, where the lists have it: named
/// before apt chooses. init-system-helpers wants that or usrmerge, which makes such a root of another, with all of perl.
pub const MERGED: &str = "?exact-name(usr-is-merged)";

/// Whether this can be a package's name on apt's command line, with a version or not, and nothing else.
pub fn is_name(text: &str) -> bool {
    let name = text.split('=').next().unwrap_or_default();
    let first = name.bytes().next();
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-".contains(&b);
    // A '-' at the end would have apt remove it.
    first.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && name.bytes().all(fits)
        && !name.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

/// The packages an installation of `names` would have, by name. `empty` is an empty folder.
///
/// # Errors
/// If there is no apt, or it knows no such installation.
pub fn resolve(stop: &Stop, names: &[String], empty: &Path) -> Result<BTreeMap<String, Candidate>> {
    std::fs::create_dir_all(empty.join("partial")).during("cannot make a folder")?;
    let mut command = apt("apt-get")?;
    command
        .args(["-qq", "--yes", "--print-uris", "--no-install-recommends"])
        .args(["-o", "Dir::State::status=/dev/null"])
        .args(["-o", "Acquire::ForceHash=SHA256"])
        // What apt has downloaded already it would leave out.
        .arg("-o")
        .arg(format!("Dir::Cache::archives={}", empty.display()))
        .arg("install")
        .args(names);
    let uris = match output(stop, &mut command)? {
        Ok(uris) => uris,
        Err(failed) => return Err(unknown(stop, &failed)?),
    };
    let mut all = BTreeMap::new();
    for line in uris.lines().filter(|line| line.starts_with('\'')) {
        let candidate = parse_uri(line).ok_or_else(|| Error::AptAnswer(line.to_owned()))?;
        all.insert(candidate.name.clone(), candidate);
    }
    let mut command = apt("apt-cache")?;
    command.arg("show").args(all.values().map(exact));
    let shown = output(stop, &mut command)??;
    for stanza in shown.split("\n\n") {
        add_stanza(stanza, &mut all);
    }
    match all.values().find(|candidate| candidate.stanza.is_empty()) {
        Some(bare) => Err(Error::AptAnswer(format!("nothing of {}", bare.name))),
        None => Ok(all),
    }
}

/// Downloads packages into `folder`, under their [`Candidate::file`] names.
///
/// # Errors
/// If they cannot be fetched.
pub fn download(stop: &Stop, candidates: &[&Candidate], folder: &Path) -> Result {
    if candidates.is_empty() {
        return Ok(());
    }
    let mut command = apt("apt-get")?;
    command
        .args(["-qq", "download"])
        .args(candidates.iter().map(|candidate| exact(candidate)))
        .current_dir(folder);
    output(stop, &mut command)?.map_err(|failed| not_fetched(&failed))?;
    Ok(())
}

fn apt(name: &str) -> Result<Command> {
    let mut command = tool(name)?;
    command
        .args(["-o", "APT::Architecture=amd64"])
        // As root apt would fetch as a user of its own, who cannot write to our folder.
        .args(["-o", "APT::Sandbox::User=root"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

fn exact(candidate: &Candidate) -> String {
    format!("{}={}", candidate.name, candidate.version)
}

/// A line of `--print-uris`: the address in quotes, file name, size, hash.
fn parse_uri(line: &str) -> Option<Candidate> {
    let mut words = line.rsplitn(4, ' ');
    let sha256 = words.next()?.strip_prefix("SHA256:")?.to_owned();
    let size = words.next()?.parse().ok()?;
    let file = words.next()?.to_owned();
    let plain = !file.contains('/') && !file.starts_with('.');
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let name = parts.next()?.to_owned();
    let version = parts.next()?.replace("%3a", ":");
    let whole = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
    (plain && whole).then(|| Candidate {
        name,
        version,
        file,
        size,
        sha256,
        ..Candidate::default()
    })
}

/// A field's value in a package's stanza, of one line.
fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = stanza.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Keeps a stanza of `apt-cache show` with the package it is of.
fn add_stanza(stanza: &str, all: &mut BTreeMap<String, Candidate>) {
    let candidate = field(stanza, "Package").and_then(|name| all.get_mut(name));
    let Some(candidate) = candidate else { return };
    if field(stanza, "SHA256") == Some(&candidate.sha256) {
        candidate.stanza = stanza.trim().to_owned();
    }
}

impl Candidate {
    /// The packages it depends on, alternatives among them, without versions.
    pub fn depends(&self) -> Vec<&str> {
        let fields = ["Pre-Depends", "Depends"].map(|name| field(&self.stanza, name));
        let entries = fields
            .into_iter()
            .flatten()
            .flat_map(|field| field.split([',', '|']));
        let names =
            entries.filter_map(|entry| entry.trim().split([' ', '(', '[', ':', '<']).next());
        names.filter(|name| !name.is_empty()).collect()
    }
}

/// Why apt knows no such installation.
fn unknown(stop: &Stop, failed: &ToolFailure) -> Result<Error> {
    let line = failed.line();
    let Some(name) = unknown_name(line) else {
        return Ok(Error::NoChoice(line.to_owned()));
    };
    let names = output(stop, apt("apt-cache")?.arg("pkgnames"))?.unwrap_or_default();
    Ok(Error::UnknownPackage {
        name: name.to_owned(),
        near: near::nearest(name, names.lines()),
    })
}

/// The package apt does not know, by what it says.
fn unknown_name(line: &str) -> Option<&str> {
    line.strip_prefix("Unable to locate package ")
        .or_else(|| quoted(line).filter(|_| line.ends_with("has no installation candidate")))
}

fn quoted(line: &str) -> Option<&str> {
    line.split('\'').nth(1)
}

/// Why apt has fetched nothing.
fn not_fetched(failed: &ToolFailure) -> Error {
    let words = &failed.stderr;
    let says = |any: &[&str]| any.iter().any(|text| words.contains(text));
    if says(&["No space left on device"]) {
        return Error::NotFetched("the disk of the cache folder is full".into());
    }
    let line = failed.line();
    if says(&["404 "]) {
        return Error::NotFetched(format!(
            "apt's lists are out of date, apt-get update renews them ({line})"
        ));
    }
    let no_network = [
        "Could not resolve",
        "Temporary failure resolving",
        "Could not connect",
        "Unable to connect",
        "Cannot initiate the connection",
        "Network is unreachable",
        "Connection timed out",
        "connection timed out",
    ];
    if says(&no_network) {
        return Error::NotFetched(format!(
            "no network, or apt's servers cannot be reached ({line})"
        ));
    }
    Error::NotFetched(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stderr: &str) -> ToolFailure {
        ToolFailure {
            tool: "apt-get".into(),
            stderr: stderr.into(),
        }
    }

    #[test]
    fn a_line_of_print_uris_names_package_version_and_hash() {
        let hash = "0".repeat(64);
        let line = format!(
            "'http://m/pool/redis-server_7.0%7edeb12u1_amd64.deb' \
             redis-server_5%3a7.0~deb12u1_amd64.deb 73908 SHA256:{hash}"
        );
        let candidate = parse_uri(&line).unwrap();
        assert_eq!(exact(&candidate), "redis-server=5:7.0~deb12u1");
        assert_eq!((candidate.size, &candidate.sha256), (73908, &hash));
        assert_eq!(
            parse_uri("'http://m/x.deb' x_1_amd64.deb 5 MD5Sum:00"),
            None
        );
        let elsewhere = format!("'u' ../x_1_all.deb 5 SHA256:{hash}");
        assert_eq!(parse_uri(&elsewhere), None);
    }

    #[test]
    fn dependencies_come_from_the_stanza_of_the_same_file() {
        let candidate = Candidate {
            name: "a".into(),
            sha256: "22".into(),
            ..Candidate::default()
        };
        let mut all = BTreeMap::from([("a".to_owned(), candidate)]);
        add_stanza("Package: a\nVersion: 1\nDepends: old\nSHA256: 11", &mut all);
        assert!(all["a"].depends().is_empty());
        let stanza = "Package: a\nDepends: b (>= 2), c | d:any\nPre-Depends: e\nSHA256: 22";
        add_stanza(stanza, &mut all);
        assert_eq!(all["a"].depends(), ["e", "b", "c", "d"]);
    }

    #[test]
    fn names_cannot_be_options_or_removals() {
        for good in ["redis-server", "g++", "libc6", "a=1:2.0-3+b1"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "", "-o", "redis-", "A", "a b", "./x.deb", "a/b", "a;b", "a=1/2",
        ] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn an_unknown_package_is_named() {
        let name = |stderr: &str| unknown_name(failed(stderr).line()).map(str::to_owned);
        let no = name("E: Unable to locate package nosuch\n");
        assert_eq!(no.as_deref(), Some("nosuch"));
        let no = name("E: Package 'gone' has no installation candidate\n");
        assert_eq!(no.as_deref(), Some("gone"));
        assert_eq!(name("E: something else\n"), None);
    }

    #[test]
    fn what_keeps_packages_from_being_fetched_is_said() {
        let words = |stderr: &str| not_fetched(&failed(stderr)).to_string();
        let no = words("E: Failed to fetch http://m/x  Temporary failure resolving 'm'");
        assert!(no.contains("no network"), "{no}");
        assert!(words("E: Failed to fetch u  404  Not Found").contains("apt-get update"));
        assert!(words("E: w - write (28: No space left on device)").contains("full"));
    }
}
