//! A replica's control socket as a file: made, found, and removed again.

use crate::folder::{self, Folder};
use names::VmId;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use replica::{During, Outcome, ReplicaError};
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// A control socket that listens. Its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// The socket of this process's replica of `vm`, in the folder `wanted`, or in the one there is by default;
    /// `None` where that is not to be had. What killed replicas have left in the folder is removed.
    ///
    /// # Errors
    /// If there is no socket to be had in the folder that was asked for.
    pub fn bind(wanted: Option<&Path>, vm: &VmId) -> Outcome<Option<Self>> {
        if let Some(path) = wanted {
            return Self::bind_in(path, vm).map(Some);
        }
        let folders = folder::to_look_in();
        if folders.is_empty() {
            tracing::info!("no control folder: this is not root, and there is no XDG_RUNTIME_DIR");
        }
        for path in folders {
            match Self::bind_in(&path, vm) {
                Ok(socket) => return Ok(Some(socket)),
                Err(why) => tracing::info!("no control socket: {why}"),
            }
        }
        Ok(None)
    }

    fn bind_in(path: &Path, vm: &VmId) -> Outcome<Self> {
        let folder = Folder::make(path)?;
        let path = folder.socket_of(vm, std::process::id())?;
        sweep(&folder)?;
        let making = || format!("cannot make the control socket {}", path.display());
        // It has its name when it listens, and not before: until then one who looks would take it for forsaken.
        let unnamed = path.with_extension("new");
        // Another process by this number may have been killed.
        let _ = std::fs::remove_file(&unnamed);
        let listener = listen_at(&unnamed).during(making())?;
        if path.exists() {
            let _ = std::fs::remove_file(&unnamed);
            let why = "another replica listens there";
            return Err(ReplicaError::refused(format!("{}: {why}", making())));
        }
        std::fs::rename(&unnamed, &path).during(making())?;
        Ok(Self { listener, path })
    }

    /// What listens.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // It may have been removed by hand.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn unix_stream() -> io::Result<OwnedFd> {
    // A connect to one whose queue is full would wait.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// A socket at `path` that only this user can connect to.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let socket = unix_stream()?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Before it listens nobody can connect.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(socket))
}

/// Calls whoever listens at `path`; `None` if nobody does any more, and then the file is removed.
///
/// # Errors
/// If it cannot be found out, or so many call already that there is no room ([`ErrorKind::WouldBlock`]).
pub fn call(path: &Path) -> io::Result<Option<UnixStream>> {
    let socket = unix_stream()?;
    let connected = connect(socket.as_raw_fd(), &UnixAddr::new(path)?);
    match connected.map_err(io::Error::from) {
        Ok(()) => {
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(false)?;
            Ok(Some(stream))
        }
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!("removed {}, whose replica is gone", path.display());
            // Another may have removed it first.
            let _ = std::fs::remove_file(path);
            Ok(None)
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Removes the sockets of replicas that were killed.
fn sweep(folder: &Folder) -> Outcome {
    for (_, path) in folder.sockets()? {
        // One that cannot be called is somebody's, as far as this one can tell.
        if let Err(e) = call(&path) {
            tracing::debug!("{}: {e}", path.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    fn vm(name: &str) -> VmId {
        VmId::new(name).unwrap()
    }

    fn bound(folder: &Path, name: &str) -> Socket {
        Socket::bind(Some(folder), &vm(name)).unwrap().unwrap()
    }

    #[test]
    fn a_socket_is_its_users_alone_and_gone_with_its_replica() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("control");
        let socket = bound(&folder, "web");
        let about = std::fs::metadata(socket.path()).unwrap();
        assert!(about.file_type().is_socket());
        assert_eq!(about.mode() & 0o777, 0o600);
        let other = bound(&folder, "other");
        assert!(call(socket.path()).unwrap().is_some());
        let path = socket.path().to_owned();
        drop(socket);
        assert!(!path.exists());
        assert!(other.path().exists());
        drop(other);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_replica_left_is_removed_by_whoever_comes() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let stale = |pid| {
            let path = folder.socket_of(&vm("web"), pid).unwrap();
            drop(listen_at(&path).unwrap());
            assert!(path.exists());
            path
        };
        // By the next replica, of whatever machine.
        let left = stale(1);
        let socket = bound(place.path(), "other");
        assert!(!left.exists());
        assert!(socket.path().exists());
        // By who calls.
        let left = stale(2);
        assert!(call(&left).unwrap().is_none());
        assert!(!left.exists());
        assert!(call(&left).unwrap().is_none());
        // By a process that has the number of the one that was killed.
        drop(socket);
        let left = stale(std::process::id());
        let socket = bound(place.path(), "web");
        assert_eq!(socket.path(), left);
        assert!(call(&left).unwrap().is_some());
    }

    #[test]
    fn one_that_listens_is_never_taken_for_forsaken_however_many_wait() {
        let place = tempfile::tempdir().unwrap();
        let socket = bound(place.path(), "web");
        let mut waiting = Vec::new();
        // Nobody accepts.
        let full = loop {
            match call(socket.path()) {
                Ok(stream) => waiting.push(stream.unwrap()),
                Err(e) => break e,
            }
            assert!(waiting.len() < 1000);
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert!(socket.path().exists());
        let why = Socket::bind(Some(place.path()), &vm("web")).unwrap_err();
        assert!(why.to_string().contains("another replica"), "{why}");
        assert!(socket.path().exists());
    }
}
