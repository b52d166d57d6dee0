//! How soon a server serves beside QEMU (TCG): the same kernel, first root and disk, started by turns on an otherwise
//! idle host. Nothing is judged: docs/SERVERS.md has the figures, and the command.

use super::common::{machine, os, skipped, text};
use super::known::{self, Server};
use super::{LIMIT, Place, seconds};
use bundle::Bundle;
use kit::daemon::Daemon;
use nix::sys::signal::Signal;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// QEMU's program.
const QEMU: &str = "qemu-system-x86_64";
/// How often each is started.
const ROUNDS: usize = 3;

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

/// Seconds until the server answers a question, on Tandem.
fn on_tandem(place: &Place, image: &Path) -> f64 {
    let address = free_address();
    let forward = format!("{}:{}", address.port(), place.server.port);
    let mut args = os(&["run"]);
    args.extend(place.words(image));
    args.extend(os(&["--forward", &forward]));
    let begun = Instant::now();
    let mut guest = place.daemon("tandem", &args);
    drop(place.open(address, &guest));
    let serves = seconds(begun);
    guest.ask_to_end();
    guest.wait(LIMIT).expect("it ends");
    serves
}

/// The same, on QEMU: a machine with virtio over MMIO, as Tandem's is.
fn on_qemu(place: &Place, image: &Path) -> f64 {
    let bytes = std::fs::read(image).expect("the image");
    let Bundle {
        kernel,
        initrd,
        manifest,
    } = Bundle::parse(&bytes).expect("an image");
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = place.path(name);
        std::fs::write(&path, bytes).expect("room");
        path
    };
    let (kernel, initrd) = (file("kernel", kernel), file("initrd", initrd));
    let disk = bundle::disk_beside(image);
    let address = free_address();
    let port = place.server.port;
    let network = format!(
        "user,id=net,net=10.77.0.0/24,host=10.77.0.1,hostfwd=tcp:127.0.0.1:{}-10.77.0.2:{port}",
        address.port()
    );
    let drive = format!("file={},if=none,format=raw,id=disk", text(&disk));
    let memory = manifest.memory_mib.to_string();
    let args = os(&[
        "-machine",
        "microvm,acpi=on",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-accel",
        "tcg",
        "-cpu",
        "Nehalem",
        "-smp",
        "1",
        "-m",
        &memory,
        "-kernel",
        text(&kernel),
        "-initrd",
        text(&initrd),
        "-append",
        &manifest.cmdline,
        "-netdev",
        &network,
        "-device",
        "virtio-net-device,netdev=net",
        "-drive",
        &drive,
        "-device",
        "virtio-blk-device,drive=disk",
    ]);
    let begun = Instant::now();
    let errors = place.path("qemu.err");
    let guest = Daemon::start_other("qemu", Path::new(QEMU), args, errors);
    let mut guest = guest.expect("it starts");
    drop(place.open(address, &guest));
    let serves = seconds(begun);
    guest.signal(Signal::SIGTERM);
    guest.wait(LIMIT).expect("it ends");
    serves
}

fn beside(server: &Server) {
    let _machine = machine();
    if Command::new(QEMU).arg("--version").output().is_err() {
        return skipped::skip_this(&"no QEMU (Debian's package qemu-system-x86)");
    }
    let place = Place {
        server,
        folder: tempfile::tempdir().expect("a folder"),
        append: None,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        // A disk nobody has written to, each time.
        for (times, on, name) in [
            (&mut ours, on_tandem as fn(&Place, &Path) -> f64, "tandem"),
            (&mut theirs, on_qemu, "qemu"),
        ] {
            match place.image(&format!("{name}-{round}.img")) {
                Ok(image) => times.push(on(&place, &image)),
                Err(why) => return skipped::skip_this(&why),
            }
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    eprintln!(
        "| {} | {ours:.1} | {theirs:.1} | {:.2} |",
        server.name,
        ours / theirs
    );
}

#[test]
#[ignore = "an installation of its own: docs/SERVERS.md"]
fn postgresql_beside_qemu() {
    beside(&known::postgresql());
}
