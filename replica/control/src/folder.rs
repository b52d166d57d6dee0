//! The control folder: where it is, whose it may be, and which sockets are in it.

use names::VmId;
use nix::unistd::geteuid;
use replica::{During, Outcome, ReplicaError};
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How the name of a replica's socket ends.
const END: &str = ".sock";
/// Longest path of a Unix socket, in bytes: the kernel's `sun_path`, without its last zero.
const PATH_MAX: usize = 107;

/// A control folder that is there, and this user's alone to write to.
#[derive(Debug)]
pub struct Folder(PathBuf);

/// Where the replicas of this user may have their control folder by default, the first choice first; nowhere, for
/// a user who is not root and has no `XDG_RUNTIME_DIR`. Root's may be in either of two: what
/// a service manager starts has no `XDG_RUNTIME_DIR`, and a shell has one.
pub fn to_look_in() -> Vec<PathBuf> {
    defaults(std::env::var_os("XDG_RUNTIME_DIR"), geteuid().is_root())
}

/// The same, of what the environment says.
fn defaults(runtime: Option<OsString>, root: bool) -> Vec<PathBuf> {
    let runtime = runtime.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let of_root = root.then(|| PathBuf::from("/run"));
    let both = runtime.into_iter().chain(of_root);
    both.map(|dir| dir.join("tandem")).collect()
}

impl Folder {
    /// Makes the folder, unless it is there, and looks whose it is.
    ///
    /// # Errors
    /// If it is not to be had, or others may write to it.
    pub fn make(path: &Path) -> Outcome<Self> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                Err(e).during(named("cannot make", path))
            }
            _ => Self::open(path),
        }
    }

    /// Looks whose the folder is.
    ///
    /// # Errors
    /// If it is not there, is another user's, or others may write to it: what is in it may be anybody's then.
    pub fn open(path: &Path) -> Outcome<Self> {
        let about = std::fs::metadata(path).during(named("cannot use", path))?;
        let wrong = if !about.is_dir() {
            "it is no folder"
        } else if about.uid() != geteuid().as_raw() {
            "it is another user's"
        } else if about.mode() & 0o022 != 0 {
            "others may write to it (chmod go-w makes it yours alone)"
        } else {
            return Ok(Self(path.to_owned()));
        };
        Err(ReplicaError::refused(format!(
            "{}: {wrong}",
            named("cannot use", path)
        )))
    }

    /// Where the socket of the replica of `vm` in the process `pid` is.
    ///
    /// # Errors
    /// If that path is longer than a socket's may be.
    pub fn socket_of(&self, vm: &VmId, pid: u32) -> Outcome<PathBuf> {
        let path = self.0.join(format!("{vm}.{pid}{END}"));
        match path.as_os_str().len() {
            0..=PATH_MAX => Ok(path),
            bytes => Err(ReplicaError::refused(format!(
                "the path of the control socket {} has {bytes} bytes, and a socket's has {PATH_MAX} at most: \
                 take a --control with a shorter path",
                path.display()
            ))),
        }
    }

    /// The sockets there are: of which machine, and where. Whether anybody listens is not looked at.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn sockets(&self) -> Outcome<Vec<(VmId, PathBuf)>> {
        let reading = || named("cannot read", &self.0);
        let mut sockets = Vec::new();
        for entry in std::fs::read_dir(&self.0).during(reading())? {
            let entry = entry.during(reading())?;
            if let Some(vm) = entry.file_name().to_str().and_then(vm_of) {
                sockets.push((vm, entry.path()));
            }
        }
        sockets.sort();
        Ok(sockets)
    }
}

fn named(what: &str, path: &Path) -> String {
    format!("{what} the control folder {}", path.display())
}

/// The machine of a socket by this name.
fn vm_of(name: &str) -> Option<VmId> {
    // A machine's name may have dots; a process's number has none.
    let (vm, pid) = name.strip_suffix(END)?.rsplit_once('.')?;
    pid.parse::<u32>().ok()?;
    VmId::new(vm).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_default_is_the_users_runtime_folder_or_roots() {
        let folders = |runtime: Option<&str>, root| defaults(runtime.map(OsString::from), root);
        let places = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        let users = "/run/user/7/tandem";
        assert_eq!(folders(Some("/run/user/7"), false), places(&[users]));
        assert_eq!(
            folders(Some("/run/user/7"), true),
            places(&[users, "/run/tandem"])
        );
        for unset in [None, Some(""), Some("relative")] {
            assert_eq!(folders(unset, true), places(&["/run/tandem"]));
            assert_eq!(folders(unset, false), places(&[]));
        }
    }

    #[test]
    fn a_folder_is_made_for_its_user_alone_and_one_others_write_to_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("control");
        let folder = Folder::make(&path).unwrap();
        assert_eq!(folder.0, path);
        let mode = std::fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o700);
        // A second replica finds it.
        Folder::make(&path).unwrap();
        for mode in [0o777, 0o770, 0o702] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let why = Folder::make(&path).unwrap_err().to_string();
            assert!(why.contains("others may write"), "{why}");
        }
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        let why = Folder::make(&file).unwrap_err().to_string();
        assert!(why.contains("no folder"), "{why}");
        let nowhere = place.path().join("no/where");
        assert!(Folder::make(&nowhere).is_err());
        assert!(Folder::open(&nowhere).is_err());
        if geteuid().is_root() {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            let why = Folder::open(&path).unwrap_err().to_string();
            assert!(why.contains("another user's"), "{why}");
        }
    }

    #[test]
    fn sockets_are_told_by_their_names() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let vm = |name: &str| VmId::new(name).unwrap();
        let ours = [("web", 1), ("web", 22), ("web.1", 3), ("a-b_c", 4)];
        for (name, pid) in ours {
            std::fs::write(folder.socket_of(&vm(name), pid).unwrap(), "").unwrap();
        }
        for other in [
            "web.sock",
            "web.x.sock",
            ".1.sock",
            "web.1.new",
            "b ad.1.sock",
        ] {
            std::fs::write(place.path().join(other), "").unwrap();
        }
        let found: Vec<_> = folder.sockets().unwrap();
        let names: Vec<_> = found.iter().map(|(vm, _)| vm.as_str()).collect();
        assert_eq!(names, ["a-b_c", "web", "web", "web.1"]);
    }

    #[test]
    fn a_path_no_socket_can_have_is_one_clear_line() {
        let place = tempfile::tempdir().unwrap();
        let long = place.path().join("x".repeat(100));
        let folder = Folder::make(&long).unwrap();
        let why = folder.socket_of(&VmId::new("web").unwrap(), 1);
        let why = why.unwrap_err().to_string();
        assert!(
            why.contains("107 at most") && why.contains("--control"),
            "{why}"
        );
        assert_eq!(why.lines().count(), 1);
    }
}
