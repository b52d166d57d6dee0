//! The root as Debian's own tools make it: mmdebstrap runs apt and dpkg, and the packages' own scripts.
//!
//! ```text
//!  package files, each checked ─▶ REPO/pool/*.deb                      links, or copies
//!  what the lists say of them  ─▶ REPO/dists/tandem/.../Packages      the same words, other file names
//!                                       │
//!                     mmdebstrap, offline, deb [trusted=yes] copy:REPO
//!                                       │
//!                                 a tar archive ─▶ Tree
//! ```
//!
//! Why a repository of our own: every file in it was checked against the signed lists before, nothing else can be
//! fetched, and what is installed depends on the files alone. It needs no signature, since nobody else writes it.
//!
//! What came of it is kept in the cache: another command, kernel or place for the same packages installs nothing anew.
//!
//! Without root mmdebstrap works in a user namespace of subordinate users (`--mode=unshare`), which cannot enter
//! a home nobody else may: so all this is in the folder for temporary files.

use crate::apt::Candidate;
use crate::deb::{PackageError, read_tar};
use crate::error::{During, Error, Result};
use crate::plan::digest;
use crate::tools::{Stop, ToolFailure, stream_ended_by, tool};
use crate::tree::Tree;
use bundle::sha256;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// The release the repository calls itself.
const SUITE: &str = "tandem";
/// Where the list of packages is within the release.
const LIST: &str = "main/binary-amd64/Packages";
/// Has the root begin merged, as Debian's own installer has it since release 12: else packages would have to merge it.
const MERGE: &str = "for name in bin sbin lib lib64; do mkdir -p \"$1/usr/$name\"; \
                     ln -s \"usr/$name\" \"$1/$name\"; done";
/// Where a member's time stands in a package file, which is an ar archive: behind its magic (8 bytes) and the
/// member's name (16); 12 decimal digits (deb(5), ar(5)).
const TIME_AT: usize = 24;
/// How many.
const TIME_DIGITS: usize = 12;

/// What is installed.
#[derive(Clone, Copy, Debug)]
pub struct Installation<'a> {
    /// The packages asked for, without versions.
    pub names: &'a [String],
    /// These, what they depend on and what every system has.
    pub packages: &'a [Candidate],
    /// The package files, by package name, each found whole.
    pub debs: &'a BTreeMap<String, PathBuf>,
}

/// Sees to it that what installs is there, before anything is fetched for it.
///
/// # Errors
/// [`Error::ToolMissing`].
pub fn check_tools() -> Result {
    tool("mmdebstrap")?;
    if !nix::unistd::geteuid().is_root() {
        tool("newuidmap")?;
    }
    Ok(())
}

impl Installation<'_> {
    /// SHA-256 over what decides what comes of it, in hexadecimal.
    ///
    /// # Errors
    /// If it cannot be put into words.
    pub fn digest(&self) -> Result<String> {
        let sums = self.packages.iter().map(|package| &package.sha256);
        digest(&(self.names, sums.collect::<Vec<_>>()))
    }
}

/// Installs, and gives the files of the root that come of it. They are written to `keep`, too, as an archive
/// [`read`] reads.
///
/// # Errors
/// If a tool is missing or fails, a package's scripts among them.
pub fn install(stop: &Stop, installation: &Installation, keep: &File) -> Result<Tree> {
    let folder = std::env::temp_dir();
    // mmdebstrap runs elsewhere.
    let folder = folder
        .canonicalize()
        .during(format_args!("no folder {}", folder.display()))?;
    let work = tempfile::Builder::new()
        .prefix("tandem-image-")
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir_in(&folder)
        .during(format_args!("cannot make a folder in {}", folder.display()))?;
    let repository = work.path().join("repository");
    let newest = lay_out(stop, installation, &repository).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull => is_full(&folder),
        other => other,
    })?;
    let root = nix::unistd::geteuid().is_root();
    let mut command = tool("mmdebstrap")?;
    command
        .arg(if root {
            "--mode=root"
        } else {
            "--mode=unshare"
        })
        .args([
            "--variant=essential",
            "--architectures=amd64",
            "--format=tar",
        ])
        .arg(format!("--include={}", installation.names.join(",")))
        .arg(format!("--setup-hook={MERGE}"))
        .arg("--aptopt=Apt::Install-Recommends \"false\"")
        // A host that fails leaves no root half installed: it leaves none.
        .arg("--dpkgopt=force-unsafe-io")
        .args([SUITE, "-"])
        .arg(format!(
            "deb [trusted=yes] copy:{} {SUITE} main",
            repository.display()
        ))
        .current_dir("/")
        // Files are no older than their packages, and what the installation writes is as old as the newest.
        .env("SOURCE_DATE_EPOCH", newest.to_string())
        // The order of Python's sets goes into what it compiles.
        .env("PYTHONHASHSEED", "0")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // It hears of the end from us alone, and then removes what it made.
        .process_group(0);
    let tree = stream_ended_by(Signal::SIGTERM, stop, &mut command, |pipe| {
        let mut pipe = Kept { pipe, keep };
        let tree = read(&mut pipe);
        let rest = std::io::copy(&mut pipe, &mut std::io::sink());
        rest.during("cannot take what mmdebstrap writes")?;
        Ok(tree?)
    })?;
    tree.map_err(|failed| not_installed(&failed, &folder))
}

/// The files of a root, in the archive its installation came as.
///
/// # Errors
/// If it is none.
pub fn read(archive: impl Read) -> Result<Tree, PackageError> {
    read_tar(archive, |_| true)
}

/// What is read is written to a file, too.
struct Kept<'a> {
    pipe: &'a mut dyn Read,
    keep: &'a File,
}

impl Read for Kept<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let length = self.pipe.read(into)?;
        self.keep.write_all(&into[..length])?;
        Ok(length)
    }
}

/// Writes the repository; gives the time of the newest package, in seconds since 1970.
fn lay_out(stop: &Stop, installation: &Installation, repository: &Path) -> Result<u64> {
    let failed = format_args!("cannot write {}", repository.display()).to_string();
    let pool = repository.join("pool");
    let release = repository.join("dists").join(SUITE);
    let list = release.join(LIST);
    for folder in [Some(pool.as_path()), list.parent()].into_iter().flatten() {
        fs::create_dir_all(folder).during(&failed)?;
    }
    let (mut text, mut newest) = (String::new(), 1);
    for package in installation.packages {
        stop.check()?;
        let deb = installation.debs.get(&package.name);
        let deb = deb.ok_or_else(|| Error::NotFetched(format!("{} was left out", package.name)))?;
        newest = newest.max(time_of(deb)?);
        let name = format!("{}.deb", package.name);
        let to = pool.join(&name);
        if fs::hard_link(deb, &to).is_err() {
            fs::copy(deb, &to).during(&failed)?;
        }
        fs::set_permissions(&to, PermissionsExt::from_mode(0o644)).during(&failed)?;
        let lines = package.stanza.lines();
        for line in lines.filter(|line| !line.starts_with("Filename: ")) {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "Filename: pool/{name}\n");
    }
    fs::write(&list, &text).during(&failed)?;
    let about = format!(
        "Origin: {SUITE}\nSuite: {SUITE}\nCodename: {SUITE}\nDate: Thu, 01 Jan 1970 00:00:01 UTC\n\
         Architectures: amd64\nComponents: main\nSHA256:\n {} {} {LIST}\n",
        sha256(text.as_bytes()),
        text.len()
    );
    fs::write(release.join("Release"), about).during(&failed)?;
    Ok(newest)
}

/// When a package was built: no file in it is newer.
fn time_of(deb: &Path) -> Result<u64> {
    let mut head = [0; TIME_AT + TIME_DIGITS];
    let mut file = File::open(deb).during("cannot read a package's file")?;
    file.read_exact(&mut head)
        .during("cannot read a package's file")?;
    let digits = String::from_utf8_lossy(&head[TIME_AT..]).into_owned();
    let number = digits.trim().parse();
    number.map_err(|_| Error::NotInstalled(format!("{} is no package's file", deb.display())))
}

fn is_full(folder: &Path) -> Error {
    let folder = folder.display();
    Error::NotInstalled(format!("{folder} is full (TMPDIR names another folder)"))
}

/// Why nothing was installed.
fn not_installed(failed: &ToolFailure, folder: &Path) -> Error {
    let words = &failed.stderr;
    let says = |text: &str| words.contains(text);
    if says("No space left on device") {
        return is_full(folder);
    }
    let why = if says("newuidmap") || says("unprivileged") || says("/etc/subuid") {
        format!(
            "this user can have no user namespace with users of its own ({})",
            failed.line()
        )
    } else {
        let package = words.lines().find_map(|line| {
            let rest = line.strip_prefix("dpkg: error processing package ")?;
            rest.split(' ').next()
        });
        match package {
            Some(package) => format!("{package} is not installed: {}", script_words(words)),
            None => failed.line().to_owned(),
        }
    };
    Error::NotInstalled(why)
}

/// What dpkg says of a package's script that failed.
fn script_words(words: &str) -> &str {
    let mut lines = words.lines().map(str::trim);
    lines
        .find(|line| line.contains(" script subprocess "))
        .unwrap_or("dpkg did not say why")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_says_what_the_lists_say_and_is_as_old_as_its_newest_package() {
        let folder = tempfile::tempdir().unwrap();
        let deb = |name: &str, time: &str| {
            let path = folder.path().join(name);
            let head =
                format!("!<arch>\ndebian-binary   {time:<12}0     0     100644  4         `\n");
            fs::write(&path, head).unwrap();
            (name.to_owned(), path)
        };
        let debs = BTreeMap::from([deb("a", "1671500000"), deb("b", "1671400000")]);
        let package = |name: &str| Candidate {
            name: name.into(),
            stanza: format!(
                "Package: {name}\nFilename: pool/main/x.deb\nDepends: c\nDescription: x\n more"
            ),
            ..Candidate::default()
        };
        let packages = [package("a"), package("b")];
        let names = ["a".to_owned()];
        let installation = Installation {
            names: &names,
            packages: &packages,
            debs: &debs,
        };
        let to = folder.path().join("r");
        let newest = lay_out(&Stop::default(), &installation, &to).unwrap();
        assert_eq!(newest, 1_671_500_000);
        let list = fs::read_to_string(to.join("dists/tandem").join(LIST)).unwrap();
        let first = "Package: a\nDepends: c\nDescription: x\n more\nFilename: pool/a.deb\n\n";
        assert!(list.starts_with(first), "{list}");
        assert!(to.join("pool/b.deb").exists());
    }

    #[test]
    fn what_keeps_packages_from_being_installed_is_said() {
        let why = |stderr: &str| {
            let failed = ToolFailure {
                tool: "mmdebstrap".into(),
                stderr: stderr.into(),
            };
            not_installed(&failed, Path::new("/tmp")).to_string()
        };
        assert!(why("tar: x: No space left on device\nE: failed").contains("/tmp is full"));
        let script = "dpkg: error processing package x (--configure):\n installed x package \
                      post-installation script subprocess returned error exit status 1\nE: y";
        assert!(why(script).contains("x is not installed: installed x package post-installation"));
        assert!(why("E: something else").ends_with("something else"));
    }
}
