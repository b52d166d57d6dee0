//! Debian's Linux and its servers, unmodified, on the software engine: recorded and replayed exactly,
//! failed over without a broken connection, idle without a flood of entries, and refused in one clear
//! line where they cannot run.
//!
//! ```text
//!  images     built by `tandem image`, once per run
//!  recorded   boots and redis sessions, each replayed to the same digest
//!  capture    the network of a recording, as tshark reads it
//!  failover   redis, memcached, nginx: SIGKILL to the primary under load
//!  lives      redis, of one machine that outlives its hosts, with a new backup after each
//!  gdb        a look inside a replayed boot
//!  inside     a boot as a core file, a profile and a trace, as gdb, drgn and the Perfetto viewer read them
//!  page       the page "A bug, found with a recording", its commands run as they stand
//!  cloud      a cloud image, with cloud-init
//!  containers containers' images as guests
//!  servers    small clients for memcached and nginx
//!  console    typed to, and rebooted
//!  engines    which engine runs Linux, and what is said of the other
//!  status     what a command ends with is what the program ends with
//!  snapshots  a boot saved on the way and gone on with
//!  vmlinux    the kernel out of its bzImage
//!  hardware   the board as a PC: ports and addresses where nothing is, its clock, other kernels
//!  bad_input  what cannot run, and how a recording ends there
//! ```
//!
//! `TANDEM_LINUX_BOOTS=200` asks for so many recorded boots (2), `TANDEM_LINUX_SESSIONS=200` for so many
//! recorded redis sessions (1), `TANDEM_LINUX_SNAPSHOTS=20` for so many places a boot is saved at (3),
//! `TANDEM_LINUX_KILLS=100` for so many kills of the machine that outlives its hosts (3), `TANDEM_LINUX_KERNELS=3` for
//! so many of Debian's kernels (1: the full one; then the one for clouds and the one for real time).

#[path = "../common/mod.rs"]
mod common;

#[path = "../gdb/drive.rs"]
#[allow(dead_code, reason = "this test uses its own part of it")]
mod drive;

#[path = "../common/oci.rs"]
#[allow(dead_code, reason = "this test uses its own part of it")]
mod oci;

mod bad_input;
mod capture;
mod cloud;
mod console;
mod containers;
mod debian;
mod engines;
mod failover;
mod gdb;
mod hardware;
mod images;
mod inside;
mod lives;
mod page;
mod recorded;
mod servers;
mod snapshots;
mod status;
mod vmlinux;

use std::time::Duration;

/// Longest time anything may take: Linux boots within ten seconds on two idle cores, but a host that is
/// busy with other work may give it a twentieth of one.
const LIMIT: Duration = Duration::from_secs(600);

/// A number from the environment, or `usual`.
fn number(name: &str, usual: u64) -> u64 {
    testing::numbers::number(name).unwrap_or(usual)
}
