//! What a guest sends into the userspace switch.

use crate::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use vmm::backends::switch::{Forward, HELLO, Switch, WELCOME};

/// The longest a switch may take to pass a frame on: it is up to other work of the host.
const PATIENCE_MS: u16 = 20_000;

/// A switch with a port forward, which speaks TCP to the guest; and the folder of its socket.
fn running() -> &'static PathBuf {
    static SWITCH: OnceLock<(PathBuf, Switch, Forward, tempfile::TempDir)> = OnceLock::new();
    let (path, ..) = SWITCH.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("switch");
        let switch = Switch::start(&path).expect("a switch");
        let guest = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 7);
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let forward = Forward::start(&path, any, guest).expect("a forward");
        (path, switch, forward, folder)
    });
    path
}

fn port(hello: &[u8]) -> OwnedFd {
    let kind = SockType::SeqPacket;
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    let address = UnixAddr::new(running()).expect("a short path");
    connect(fd.as_raw_fd(), &address).expect("the switch listens");
    send(fd.as_raw_fd(), hello, MsgFlags::MSG_NOSIGNAL).expect("there is room");
    fd
}

/// Waits for a packet. None at its end.
fn packet(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::from(PATIENCE_MS)).expect("a socket");
    assert!(ready > 0, "the switch passes nothing on");
    let mut bytes = vec![0; 70_000];
    match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
        Ok(count @ 1..) => {
            bytes.truncate(count);
            Some(bytes)
        }
        _ => None,
    }
}

fn hello(mac: [u8; 6]) -> Vec<u8> {
    [&HELLO[..], &mac].concat()
}

/// A greeting that may be none, then frames: all of a guest's. Another port still hears what is sent to all then.
pub(crate) fn switch(bytes: &[u8]) {
    const LISTENER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let mut bytes = Bytes(bytes);
    let listener = port(&hello(LISTENER));
    assert_eq!(packet(&listener).as_deref(), Some(&WELCOME[..]));
    let greets = bytes.u8() % 8 > 0;
    let guest = match greets {
        true => port(&hello([2, 0, 0, 0, 0, 2])),
        false => {
            let count = usize::from(bytes.u8());
            port(bytes.take(count))
        }
    };
    if greets {
        assert_eq!(packet(&guest).as_deref(), Some(&WELCOME[..]));
    }
    while !bytes.is_empty() {
        let count = usize::from(bytes.u16() % 2048);
        let frame = bytes.take(count);
        // A switch that has closed it, or has no room, takes no more.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if send(guest.as_raw_fd(), frame, flags).is_err() {
            break;
        }
    }
    let sound = port(&hello([2, 0, 0, 0, 0, 3]));
    assert_eq!(packet(&sound).as_deref(), Some(&WELCOME[..]));
    let mark = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 3, 0x88, 0xb5], &[0x3c; 46]].concat();
    send(sound.as_raw_fd(), &mark, MsgFlags::MSG_NOSIGNAL).expect("there is room");
    while packet(&listener).expect("it is not closed") != mark {}
}
