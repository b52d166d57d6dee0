//! A port's end of its connection to a switch.

use super::super::worker::retry;
use super::super::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, Mac};
use super::{HELLO, SOCKET_BUFFER_BYTES, WELCOME};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Seconds a switch has for its welcome.
const WELCOME_WITHIN_S: i64 = 10;

/// Why there is no connection to a switch.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no switch at this path.
    #[error("no switch at {}", .0.display())]
    NoSwitch(PathBuf),
    /// Something is there that does not answer as a switch of this version, or has no more ports.
    #[error("{} is no switch of this version, or has no port left", .0.display())]
    Refused(PathBuf),
    /// Something else.
    #[error("switch {}: {operation}: {source}", .path.display())]
    Io {
        /// The switch's socket.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A connection to a switch. Sending and receiving never wait.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    /// What the switch was asked for last.
    hears_all: AtomicBool,
}

/// Why a frame was not sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkStop {
    /// Not now: no room, or nothing there.
    NotNow,
    /// Never again: the switch is gone.
    Closed,
}

impl Link {
    /// Connects to the switch at `path`, with `mac` behind this port.
    pub fn connect(path: &Path, mac: Mac) -> Result<Self, LinkError> {
        let failed = |operation| {
            move |error: Errno| match error {
                Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR => {
                    LinkError::NoSwitch(path.to_owned())
                }
                Errno::ENOTSOCK | Errno::EPROTOTYPE | Errno::EPIPE | Errno::ECONNRESET => {
                    LinkError::Refused(path.to_owned())
                }
                other => LinkError::Io {
                    path: path.to_owned(),
                    operation,
                    source: other.into(),
                },
            }
        };
        let kind = SockType::SeqPacket;
        let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)
            .map_err(failed("socket"))?;
        setsockopt(&fd, sockopt::SndBuf, &SOCKET_BUFFER_BYTES).map_err(failed("SO_SNDBUF"))?;
        let within = TimeVal::new(WELCOME_WITHIN_S, 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &within).map_err(failed("SO_RCVTIMEO"))?;
        setsockopt(&fd, sockopt::SendTimeout, &within).map_err(failed("SO_SNDTIMEO"))?;
        let address = UnixAddr::new(path).map_err(failed("socket's path"))?;
        retry(|| connect(fd.as_raw_fd(), &address)).map_err(failed("connect"))?;
        let hello = [&HELLO[..], &mac].concat();
        retry(|| send(fd.as_raw_fd(), &hello, MsgFlags::MSG_NOSIGNAL)).map_err(failed("hello"))?;
        let mut answer = [0; WELCOME.len() + 1];
        match retry(|| recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())) {
            Ok(length) if answer[..length] == WELCOME[..] => Ok(Self {
                fd,
                hears_all: AtomicBool::new(false),
            }),
            Ok(_) | Err(Errno::EAGAIN) => Err(LinkError::Refused(path.to_owned())),
            Err(error) => Err(failed("welcome")(error)),
        }
    }

    /// Asks the switch for all frames, or for those to this port's address again. Asked for again and again it
    /// costs a packet each time, so only changes are told.
    pub fn hear_all(&self, all: bool) {
        if self.hears_all.swap(all, Ordering::Relaxed) != all {
            let _ = self.send(&[u8::from(all)]);
        }
    }

    /// Sends a frame that is not too short or too long.
    pub fn send(&self, frame: &[u8]) -> Result<(), LinkStop> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match retry(|| send(self.fd.as_raw_fd(), frame, flags)) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => Err(LinkStop::NotNow),
            Err(_) => Err(LinkStop::Closed),
        }
    }

    /// The next frame; it has the bytes of a header at least, and not too many.
    pub fn receive(&self) -> Result<Vec<u8>, LinkStop> {
        let mut buffer = [0; FRAME_BYTES_MAX + 1];
        loop {
            match retry(|| recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)) {
                Ok(0) => return Err(LinkStop::Closed),
                Ok(length) if (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) => {
                    return Ok(buffer[..length].to_vec());
                }
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Err(LinkStop::NotNow),
                Err(_) => return Err(LinkStop::Closed),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
