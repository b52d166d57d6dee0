//! A TAP interface: the guest's network device, seen from the kernel's side.
//!
//! ```text
//!  send ─ write ─▶ /dev/net/tun ◀─ bridge, or the host itself
//!  sink ◀─ push ── rx thread: read until there is no more, drop what is not for the guest
//! ```

use super::netlink::Netlink;
use super::station::Station;
use super::worker::{Then, Worker, retry};
use super::{ArrivalSink, FRAME_BYTES_MAX, FRAMES_AT_ONCE, Mac, NetPort, fits, is_for};
use crate::devices::virtio::addresses::TABLE_MAX;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};
use replay::Arrival;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where TAP interfaces come from.
const TUN: &str = "/dev/net/tun";

/// Why a TAP interface cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No such name is possible.
    #[error(
        "'{0}' cannot be an interface's name: it takes 1 to 15 bytes without '/', ':' or blanks"
    )]
    Name(String),
    /// The kernel has no TUN/TAP.
    #[error("{TUN} is missing: load the kernel module tun, or use the userspace switch")]
    Missing,
    /// The device may not be opened.
    #[error("no right to open {TUN}: run as root, or use the userspace switch")]
    NoRight,
    /// The interface may not be made or opened.
    #[error(
        "no right to TAP {0}: run as root, or have it made for you \
         (ip tuntap add {0} mode tap user NAME; ip link set {0} up)"
    )]
    NotYours(String),
    /// Somebody has it.
    #[error("TAP {0} is in use by another process")]
    Busy(String),
    /// Another kind of interface.
    #[error("{0} is there already and is no TAP interface")]
    NotTap(String),
    /// It is switched off.
    #[error("TAP {0} is down and may not be switched on: ip link set {0} up")]
    Down(String),
    /// Something else.
    #[error("TAP {name}: {operation}: {source}")]
    Io {
        /// Which interface.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn failed(name: &str, operation: &'static str, source: impl Into<io::Error>) -> TapError {
    TapError::Io {
        name: name.to_owned(),
        operation,
        source: source.into(),
    }
}

/// A TAP interface as a guest's way to the outside. One that did not exist is gone after drop.
pub struct Tap {
    fd: Arc<OwnedFd>,
    dropped: Arc<AtomicU64>,
    _rx: Worker,
}

impl Tap {
    /// Opens the TAP interface `name`, or makes it, and switches it on if it is off. Frames for `station` go to
    /// `sink`.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(
        name: &str,
        station: &Arc<Station>,
        sink: Arc<dyn ArrivalSink>,
    ) -> Result<Self, TapError> {
        let fd = Arc::new(attach(name)?);
        hear_whole_frames(&fd, name)?;
        let filtered = Arc::downgrade(&fd);
        station.watch(Box::new(move |addresses| {
            if let Some(fd) = filtered.upgrade() {
                hear_only(&fd, addresses.named().as_deref());
            }
        }));
        switch_on(name)?;
        let dropped = Arc::new(AtomicU64::new(0));
        let (source, counter) = (fd.clone(), dropped.clone());
        let station = station.clone();
        let ready = move || receive(&source, &station, &*sink, &counter);
        let rx = Worker::serve("tap-rx", fd.clone(), ready)
            .map_err(|e| failed(name, "cannot start a thread", e))?;
        Ok(Self {
            fd,
            dropped,
            _rx: rx,
        })
    }
}

impl NetPort for Tap {
    fn send(&self, frame: &[u8]) {
        if !fits(frame) || retry(|| write(&self.fd, frame)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Takes the frames there are.
fn receive(fd: &OwnedFd, station: &Station, sink: &dyn ArrivalSink, dropped: &AtomicU64) -> Then {
    let mine = station.now();
    // One byte more than fits, to tell frames that are too long: the kernel cuts them.
    let mut buffer = [0; FRAME_BYTES_MAX + 1];
    for _ in 0..FRAMES_AT_ONCE {
        match retry(|| read(fd, &mut buffer)) {
            Ok(length) => {
                let frame = &buffer[..length];
                let taken = length <= FRAME_BYTES_MAX
                    && (!is_for(frame, &mine) || sink.push(Arrival::Frame(frame.to_vec())));
                if !taken {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(Errno::EAGAIN) => return Then::Wait(sink.settled()),
            Err(error) => {
                tracing::error!(%error, "TAP: no more frames can be received");
                return Then::End;
            }
        }
    }
    Then::Wait(sink.settled())
}

/// Makes the TAP interface `name` so that it stays when nobody has it open.
pub(super) fn create_persistent(name: &str) -> Result<(), TapError> {
    let fd = attach(name)?;
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, 1) };
    Errno::result(result)
        .map(drop)
        .map_err(|e| failed(name, "TUNSETPERSIST", e))
}

/// Whether TAP interfaces can be asked for at all.
pub(super) fn check_device() -> Result<(), TapError> {
    open_device().map(drop)
}

fn open_device() -> Result<OwnedFd, TapError> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    retry(|| open(TUN, flags, Mode::empty())).map_err(|error| match error {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::ENOTDIR => TapError::Missing,
        Errno::EACCES | Errno::EPERM => TapError::NoRight,
        other => failed(TUN, "open", other),
    })
}

/// An `ifreq` for `name`, with all else zero.
fn ifreq(name: &str) -> Result<libc::ifreq, TapError> {
    let bad = |c: u8| c == b'/' || c == b':' || c == 0 || c.is_ascii_whitespace();
    let plain = !name.is_empty() && name != "." && name != ".." && !name.bytes().any(bad);
    // A '%' would have the kernel choose a number.
    if !plain || name.contains('%') || name.len() >= libc::IFNAMSIZ {
        return Err(TapError::Name(name.to_owned()));
    }
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// A descriptor of the TAP interface `name`, made if need be.
fn attach(name: &str) -> Result<OwnedFd, TapError> {
    let mut request = ifreq(name)?;
    let fd = open_device()?;
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).expect("TUN flags have 16 bits");
    // SAFETY: the kernel reads and writes `request`, which is an ifreq and lives through the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    match Errno::result(result) {
        Ok(_) => Ok(fd),
        Err(Errno::EPERM | Errno::EACCES) => Err(TapError::NotYours(name.to_owned())),
        Err(Errno::EBUSY) => Err(TapError::Busy(name.to_owned())),
        Err(Errno::EINVAL) => Err(TapError::NotTap(name.to_owned())),
        Err(error) => Err(failed(name, "TUNSETIFF", error)),
    }
}

/// Has the kernel finish checksums and cut segments itself. An interface that stays keeps what its last user asked
/// for, such as QEMU: the kernel would go on to leave both to the guest, without a word of it in the frame.
fn hear_whole_frames(fd: &OwnedFd, name: &str) -> Result<(), TapError> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, 0) };
    Errno::result(result)
        .map(drop)
        .map_err(|e| failed(name, "TUNSETOFFLOAD", e))
}

/// `struct tun_filter` of linux/if_tun.h, with room for all addresses a station may have.
#[repr(C)]
struct TunFilter {
    flags: u16,
    count: u16,
    addresses: [Mac; TABLE_MAX + 1],
}

/// `TUN_FLT_ALLMULTI`: multicast and broadcast pass as well.
const TUN_FLT_ALLMULTI: u16 = 1;
/// `TUNSETTXFILTER`: `_IOW('T', 209, unsigned int)`.
const TUNSETTXFILTER: libc::c_ulong = 0x4004_54d1;

/// Has the kernel keep frames for others away: on a hub half of all frames are the guest's own answers,
/// and each would wake the receiving thread. Only for speed: what comes through is looked at anyway, so
/// a kernel that refuses changes nothing.
///
/// `None` lets all through, as an empty filter does. The kernel looks at a few addresses one by one, and at more
/// by a hash; either way it takes more than it must.
fn hear_only(fd: &OwnedFd, named: Option<&[Mac]>) {
    let mut filter = TunFilter {
        flags: TUN_FLT_ALLMULTI,
        count: 0,
        addresses: [[0; 6]; TABLE_MAX + 1],
    };
    for (place, mac) in filter.addresses.iter_mut().zip(named.unwrap_or_default()) {
        *place = *mac;
        filter.count += 1;
    }
    // SAFETY: the kernel reads a tun_filter with `count` addresses behind it, which is what this is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETTXFILTER, &raw const filter) };
    if let Err(error) = Errno::result(result) {
        tracing::debug!(%error, "TAP: no filter");
    }
}

/// Switches the interface on, unless it is.
fn switch_on(name: &str) -> Result<(), TapError> {
    if is_up(name)? {
        return Ok(());
    }
    let up = || -> io::Result<()> {
        let index = nix::net::if_::if_nametoindex(name)?;
        Netlink::open()?.set_up(index)
    };
    up().map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Down(name.to_owned()),
        _ => failed(name, "cannot be switched on", error),
    })
}

fn is_up(name: &str) -> Result<bool, TapError> {
    let mut request = ifreq(name)?;
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|e| failed(name, "socket", e))?;
    // SAFETY: the kernel reads and writes `request`, which is an ifreq and lives through the call.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    Errno::result(result).map_err(|e| failed(name, "SIOCGIFFLAGS", e))?;
    // SAFETY: SIOCGIFFLAGS has filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(i32::from(flags) & libc::IFF_UP != 0)
}

/// Uses the interface `name` as QEMU does, and leaves it.
#[cfg(test)]
pub(super) fn leave_sums_open(name: &str) {
    let mut request = ifreq(name).unwrap();
    let fd = open_device().unwrap();
    request.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    // SAFETY: the kernel reads and writes `request`, which is an ifreq and lives through the call.
    let attached = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let set = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::TUN_F_CSUM) };
    assert_eq!((attached, set), (0, 0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::testing::{Heard, isolated};
    use std::path::Path;

    const MAC: Mac = [0x52, 0x54, 0, 0, 0, 9];

    #[test]
    fn names_are_checked_before_anything_else() {
        for name in [
            "",
            "sixteen-bytes-ab",
            "a/b",
            "a b",
            "tap%d",
            "..",
            "a:1",
            "a\0b",
        ] {
            let refused = Tap::open(name, &Station::of(MAC), Heard::new());
            assert!(matches!(refused, Err(TapError::Name(_))), "{name:?}");
        }
    }

    fn own_network() -> bool {
        match crate::backends::netns::PrivateNetwork::enter(&[]) {
            Ok(_) => true,
            Err(error) => {
                testing::skipped::skip_this(&error);
                false
            }
        }
    }

    #[test]
    fn made_used_by_one_and_gone_after_drop() {
        isolated(|| {
            if !own_network() {
                return;
            }
            let sink = Heard::new();
            let tap = Tap::open("made", &Station::of(MAC), sink.clone()).expect("a new TAP");
            let again = Tap::open("made", &Station::of(MAC), sink.clone());
            assert!(matches!(again, Err(TapError::Busy(_))));
            let bridge = Tap::open("tandem", &Station::of(MAC), sink);
            assert!(matches!(bridge, Err(TapError::NotTap(_))));
            assert!(nix::net::if_::if_nametoindex("made").is_ok());
            tap.send(&[0; 13]);
            tap.send(&[0; FRAME_BYTES_MAX + 1]);
            assert_eq!(tap.dropped(), 2);
            tap.announce(&[(MAC, None), (MAC, Some(7))]);
            assert_eq!(tap.dropped(), 2, "an announcement is a good frame");
            drop(tap);
            assert!(nix::net::if_::if_nametoindex("made").is_err());
        });
    }

    #[test]
    fn without_rights_it_says_so() {
        isolated(|| {
            if !nix::unistd::geteuid().is_root() || !Path::new(TUN).exists() {
                testing::skipped::skip_this(&format_args!("needs root and {TUN}"));
                return;
            }
            // Still the host's network: nothing may be made in it.
            let nobody = nix::unistd::Uid::from_raw(65534);
            nix::unistd::setresuid(nobody, nobody, nobody).expect("root may become anybody");
            let refused = Tap::open("nowhere", &Station::of(MAC), Heard::new()).err();
            assert!(
                matches!(refused, Some(TapError::NoRight | TapError::NotYours(_))),
                "{refused:?}"
            );
        });
    }
}
