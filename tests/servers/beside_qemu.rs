//! PostgreSQL on Tandem and on QEMU's translator (TCG), side by side: from the start of the process to the first query that
//! is answered, with the same kernel, first root, disk, memory and network.

use super::common::{cluster, machine, skipped};
use super::{LIMIT, Place, known, place};
use bench::qemu::{Machine, program, tsc_khz};
use bundle::{Bundle, disk_beside};
use kit::cluster::Cluster;
use kit::daemon::Daemon;
use std::time::{Duration, Instant};

/// Rounds of each, of which the median counts.
const ROUNDS: usize = 3;
/// So many times later it may serve.
const MOST: f64 = 1.5;

/// A guest, from its start to the first answer.
fn served(
    place: &Place,
    cluster: &mut Cluster,
    start: impl FnOnce(&Cluster) -> Daemon,
) -> Duration {
    let address = cluster
        .serve(place.server.port)
        .expect("a way to the guest");
    let begun = Instant::now();
    let mut guest = start(cluster);
    drop(place.open(address, &guest));
    let took = begun.elapsed();
    guest.ask_to_end();
    guest.wait(LIMIT).expect("it ends");
    took
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

#[test]
#[ignore = "it is timed: docs/SERVERS.md"]
fn postgresql_serves_as_soon_as_beside_qemu() {
    let _machine = machine();
    let Some(qemu) = program() else {
        return skipped::skip_this(&"no qemu-system-x86_64 (Debian's package qemu-system-x86)");
    };
    let server = known::postgresql();
    let Some(place) = place(&server, server.packages.to_vec()) else {
        return;
    };
    // Before this thread has a network of its own, where no packages are.
    let image = match place.image("image.img") {
        Ok(image) => image,
        Err(why) => return skipped::skip_this(&why),
    };
    let mut cluster = cluster("file");
    if cluster.switch_socket().is_some() {
        return skipped::skip_this(&"no TAP, which QEMU needs");
    }
    let bytes = std::fs::read(&image).expect("the image");
    let bundle = Bundle::parse(&bytes).expect("an image");
    let (kernel, initrd) = (place.path("kernel"), place.path("initrd"));
    std::fs::write(&kernel, bundle.kernel).expect("room for it");
    std::fs::write(&initrd, bundle.initrd).expect("room for it");
    let tsc_khz = tsc_khz();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // A disk nobody has written to, each time.
        let fresh = |name: &str| place.image(&format!("{name}-{round}.img")).expect("a copy");
        let own = fresh("tandem");
        ours.push(served(&place, &mut cluster, |cluster| {
            let started = cluster.start_single("run", &place.words(&own), &[], true);
            started.expect("it starts")
        }));
        let disk = disk_beside(&fresh("qemu"));
        let machine = Machine {
            kernel: &kernel,
            initrd: &initrd,
            cmdline: &bundle.manifest.cmdline,
            memory_mib: bundle.manifest.memory_mib,
            disk: Some(&disk),
        };
        let errors = place.path("qemu.err");
        theirs.push(served(&place, &mut cluster, |_| {
            let started = Daemon::start_other("QEMU", &qemu, machine.args(tsc_khz), errors);
            started.expect("it starts")
        }));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours / theirs;
    eprintln!("postgresql serves after {ours:.2} s, on QEMU (TCG) after {theirs:.2} s: {ratio:.2}");
    assert!(ratio <= MOST, "{ratio:.2} times later than on QEMU");
}
