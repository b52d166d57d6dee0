//! A distribution's cloud image as a guest: a disk with a partition table, Debian's own first root, and cloud-init.

use super::common::{core, skipped, tandem, text};
use super::recorded::{Log, Ran, record, replay_equals};
use std::path::Path;
use std::process::Command;

/// What a cloud image has, as far as it matters here.
const PACKAGES: &str = "linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,cloud-init,ifupdown,iproute2,\
                        python3-serial,cloud-guest-utils,fdisk";
/// Makes the root of one.
const INSTALL: &str = "mmdebstrap --mode=root --variant=apt --include=\"$1\" bookworm root";
/// What apt says where packages cannot be fetched: all the test is skipped for.
const NOT_FETCHED: [&str; 4] = [
    "Could not resolve",
    "Temporary failure resolving",
    "Could not connect",
    "Failed to fetch",
];
/// Makes it of that: a file system, a disk with that, a qcow2 file of the disk.
const MAKE: &str = "echo 'LABEL=root / ext4 rw,errors=remount-ro,x-systemd.growfs 0 1' >root/etc/fstab; \
                    mke2fs -q -F -t ext4 -L root -d root part 1500M; rm -rf root; \
                    truncate -s 1600M raw; \
                    printf 'label: gpt\\nstart=2048, size=3072000\\n' | sfdisk -q raw; \
                    dd if=part of=raw bs=1M seek=1 conv=notrunc,sparse status=none; rm part; \
                    qemu-img convert -f raw -O qcow2 raw cloud.qcow2; rm raw";

/// What cloud-init is to do.
const USER_DATA: &str = "#cloud-config\n\
    runcmd:\n\
    - echo \"said $(hostname) $(ip -4 -o addr show eth0 | awk '{print $4}')\" >/dev/ttyS0\n\
    - echo \"root $(df -m --output=size / | tail -n 1)\" >/dev/ttyS0\n\
    power_state:\n  mode: poweroff\n";

#[test]
#[ignore = "an installation of its own: docs/TESTING.md"]
fn a_cloud_image_boots_as_a_guest_that_cloud_init_sets_up() {
    let _core = core();
    if !nix::unistd::geteuid().is_root() {
        return skipped::skip_this(&"a cloud image is made as root");
    }
    if skipped::skip_without(&["mmdebstrap", "qemu-img", "sfdisk", "mke2fs", "xorriso"]) {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let run = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-ec", line, "sh", PACKAGES]);
        command.current_dir(place.path());
        command.output().expect("a shell")
    };
    let installed = run(INSTALL);
    let words = String::from_utf8_lossy(&installed.stderr);
    if !installed.status.success() {
        let excused = NOT_FETCHED.iter().any(|why| words.contains(why));
        assert!(excused, "no root: {words}");
        return skipped::skip_this(&format!("no packages: {}", words.trim()));
    }
    let made = run(MAKE);
    assert!(made.status.success(), "{made:?}");
    let path = |name: &str| place.path().join(name);
    let (cloud, data, image) = (path("cloud.qcow2"), path("user-data"), path("guest.img"));
    std::fs::write(&data, USER_DATA).expect("room");
    let args = ["image", "-o", text(&image), "--from", text(&cloud)];
    let more = ["--user-data", text(&data), "--size", "2000"];
    let made = tandem(&[&args[..], &more].concat());
    assert!(made.status.success(), "{made:?}");
    boots(&image);
}

/// Records the guest, which has to say what it was told to, and replays it.
fn boots(image: &Path) {
    let log = Log::new("cloud");
    let ran = Ran::of(record(image, &log, &[]));
    assert_eq!(ran.report["exit_status"], 0, "{:?}", ran.console);
    let said = |words: &str| ran.console.iter().find_map(|line| line.strip_prefix(words));
    assert_eq!(
        said("said "),
        Some("tandem 10.77.0.2/24"),
        "{:?}",
        ran.console
    );
    let root: u64 = said("root ")
        .and_then(|mib| mib.trim().parse().ok())
        .expect("its size");
    assert!(root > 1700, "{root} MiB: the root did not grow");
    replay_equals(&ran, &log);
}
