//! What is no cloud image, and what is no container's image: one clear line each, and nothing left behind.

use super::oci::{Layout, layer};
use super::{Place, skip_without};
use serde_json::json;
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;
use tar::EntryType;

/// Programs that make cloud images here, and that make guests of them.
const PROGRAMS: [&str; 5] = ["qemu-img", "sfdisk", "mke2fs", "debugfs", "xorriso"];

/// The files of a root, as far as it is known by them.
const ROOT: [(&str, &str); 2] = [("etc/fstab", ""), ("usr/x", "")];
/// A kernel with its first root.
const KERNEL: [(&str, &str); 2] = [
    ("boot/vmlinuz-6.1", "kernel"),
    ("boot/initrd.img-6.1", "initrd"),
];
/// The configuration of one that runs here.
const CONFIG: (&str, &str) = (
    "boot/config-6.1",
    "CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_VIRTIO_NET=m\n",
);

fn run(place: &Place, line: &str) {
    let output = Command::new("sh")
        .args(["-ec", line])
        .current_dir(place.0.path())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// A file called `name` of 4 MiB, an ext4 file system with these files, after the shell's `change` to the folder `root`
/// with them.
fn file_system(place: &Place, name: &str, files: &[(&str, &str)], change: &str) {
    let root = place.path("root");
    std::fs::create_dir_all(&root).unwrap();
    for (path, text) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    run(place, change);
    run(place, &format!("mke2fs -q -F -t ext4 -d root {name} 4M"));
    std::fs::remove_dir_all(root).unwrap();
}

/// A file called `name` of 4 MiB that is known as btrfs.
fn btrfs(place: &Place, name: &str) {
    let mut bytes = vec![0u8; 4 << 20];
    bytes[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
    std::fs::write(place.path(name), bytes).unwrap();
}

/// A qcow2 file called `name` of a disk whose partitions hold these files, of 4 MiB each.
fn disk_of(place: &Place, name: &str, parts: &[&str]) {
    let mut raw = std::fs::File::create(place.path("raw")).unwrap();
    let begin = |n: usize| 1 + 4 * n as u64;
    raw.set_len((begin(parts.len()) + 3) << 20).unwrap();
    let lines = (0..parts.len()).map(|n| format!("start={}MiB, size=4MiB\\n", begin(n)));
    let lines: String = lines.collect();
    run(
        place,
        &format!("printf 'label: gpt\\n{lines}' | sfdisk -q raw"),
    );
    for (n, part) in parts.iter().enumerate() {
        raw.seek(SeekFrom::Start(begin(n) << 20)).unwrap();
        raw.write_all(&std::fs::read(place.path(part)).unwrap())
            .unwrap();
        std::fs::remove_file(place.path(part)).unwrap();
    }
    drop(raw);
    run(
        place,
        &format!("qemu-img convert -f raw -O qcow2 raw ./'{name}'; rm raw"),
    );
}

/// A qcow2 file called `name` of a disk with one partition, an ext4 file system with these files.
fn cloud_image(place: &Place, name: &str, files: &[(&str, &str)]) {
    file_system(place, "part", files, "true");
    disk_of(place, name, &["part"]);
}

/// What `tandem image` says of what it refuses.
fn line(place: &Place, args: &[&str]) -> String {
    let output = place.image(&[&["-o", "x.img"], args].concat());
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert_eq!(words.lines().count(), 1, "{words}");
    assert!(!place.path("x.img").exists() && !place.path("x.ext4").exists());
    let left = std::fs::read_dir(place.0.path()).unwrap().flatten();
    let mut left = left.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert!(!left.any(|name| name.starts_with(".tandem-")));
    words
}

/// Says that of a cloud image called `name` it says `why`.
fn refused(place: &Place, name: &str, why: &[&str]) {
    let words = line(place, &["--from", name]);
    for why in why {
        assert!(words.contains(why), "{name}: '{why}' in {words}");
    }
}

#[test]
fn what_is_no_whole_qcow2_file_makes_no_guest() {
    if skip_without(&PROGRAMS) {
        return;
    }
    let place = Place::new();
    refused(
        &place,
        "none.qcow2",
        &["cannot read none.qcow2: No such file"],
    );
    std::fs::write(place.path("text"), "no disk").unwrap();
    refused(
        &place,
        "text",
        &["text makes no guest: it is no qcow2 file"],
    );
    run(
        &place,
        "qemu-img create -q -u -f qcow2 -b gone.qcow2 -F qcow2 over.qcow2 8M; \
         qemu-img create -q -f qcow2 -o data_file=data.raw external.qcow2 8M",
    );
    // Whether the files they name are there or not.
    let changes = [
        "test -e data.raw && test ! -e gone.qcow2",
        "qemu-img create -q -f qcow2 gone.qcow2 8M; rm data.raw",
    ];
    for change in changes {
        run(&place, change);
        let backing = "it has a backing file, and no other";
        refused(
            &place,
            "over.qcow2",
            &[backing, "qemu-img rebase -b '' FILE"],
        );
        let external = "it has an external data file, and no other";
        let convert = "qemu-img convert -O qcow2 IN OUT";
        refused(&place, "external.qcow2", &[external, convert]);
    }
    run(&place, "qemu-img create -q -f qcow2 empty.qcow2 8M");
    refused(&place, "empty.qcow2", &["it has no partition table"]);
}

#[test]
fn a_cloud_image_with_no_root_or_kernel_on_ext4_makes_no_guest() {
    if skip_without(&PROGRAMS) {
        return;
    }
    let place = Place::new();
    let kernel = "it has no kernel (vmlinuz-*) on an ext4 partition";
    cloud_image(&place, "kernelless.qcow2", &ROOT);
    refused(&place, "kernelless.qcow2", &[kernel]);
    btrfs(&place, "part");
    disk_of(&place, "btrfs.qcow2", &["part"]);
    let other = "partition 1 is btrfs, which is not read";
    refused(&place, "btrfs.qcow2", &[kernel, other]);
    // As Fedora's are: only the kernel is on ext4.
    let boot = KERNEL.map(|(path, text)| (path.strip_prefix("boot/").unwrap(), text));
    file_system(&place, "boot", &boot, "true");
    btrfs(&place, "part");
    disk_of(&place, "rootless.qcow2", &["boot", "part"]);
    let root = "none of its ext4 partitions is a root (with etc and usr)";
    let other = "partition 2 is btrfs, which is not read";
    refused(&place, "rootless.qcow2", &[root, other]);
}

#[test]
fn a_cloud_image_whose_kernel_cannot_run_here_makes_no_guest() {
    if skip_without(&PROGRAMS) {
        return;
    }
    let place = Place::new();
    let without = [("boot/config-6.1", "# CONFIG_VIRTIO_MMIO is not set\n")];
    cloud_image(&place, "x.qcow2", &[&ROOT[..], &KERNEL, &without].concat());
    let driver = "its kernel 6.1 is built without CONFIG_VIRTIO_MMIO";
    refused(&place, "x.qcow2", &[driver]);
    cloud_image(&place, "y.qcow2", &[&ROOT[..], &KERNEL[..1]].concat());
    refused(&place, "y.qcow2", &["has no first root (initrd.img-6.1"]);
    let large = "is of 2147483648 bytes, and";
    let odd = "is no regular file";
    for (name, change, why) in [
        // A file of holes takes no room there, and none here: it is refused by its size.
        ("config-6.1", "truncate -s 2G", large),
        ("initrd.img-6.1", "truncate -s 2G", large),
        ("vmlinuz-6.1", "truncate -s 2G", large),
        ("config-6.1", "ln -sf /etc/fstab", odd),
        ("initrd.img-6.1", "ln -sf ../x", odd),
        ("initrd.img-6.1", "mkdir", odd),
    ] {
        let files = [&ROOT[..], &KERNEL, &[CONFIG]].concat();
        let change = format!("rm root/boot/{name}; {change} root/boot/{name}");
        file_system(&place, "part", &files, &change);
        disk_of(&place, "odd.qcow2", &["part"]);
        refused(&place, "odd.qcow2", &[&format!("its /boot/{name} {why}")]);
    }
}

#[test]
fn a_disk_too_small_and_user_data_too_large_are_told() {
    if skip_without(&PROGRAMS) {
        return;
    }
    let place = Place::new();
    run(&place, "qemu-img create -q -f qcow2 cloud.qcow2 32M");
    let small = line(&place, &["--from", "cloud.qcow2", "--size", "16"]);
    let why = "a disk of 16 MiB has no room for its files; --size takes 32 or more";
    assert!(small.contains(why), "{small}");
    let given = ["--from", "cloud.qcow2", "--user-data", "data"];
    let none = line(&place, &given);
    assert!(none.contains("cannot read data: No such file"), "{none}");
    let data = std::fs::File::create(place.path("data")).unwrap();
    data.set_len((1 << 20) + 1).unwrap();
    let large = line(&place, &given);
    assert!(
        large.contains("data is larger than 1048576 bytes"),
        "{large}"
    );
    // As large as may be: it is the disk that is refused.
    data.set_len(1 << 20).unwrap();
    let most = line(&place, &given);
    assert!(most.contains("it has no partition table"), "{most}");
}

/// A name that is a protocol's or an option's elsewhere is a file's here. What is refused is what was read in it.
#[test]
fn a_cloud_image_is_the_file_it_is_called_whatever_its_name() {
    if skip_without(&PROGRAMS) {
        return;
    }
    let place = Place::new();
    std::fs::create_dir(place.path("-d:e")).unwrap();
    for name in ["nbd:127.0.0.1:9", "-f.qcow2"] {
        cloud_image(&place, name, &ROOT);
        let from = format!("--from={name}");
        let words = line(&place, &[&from, "--disk=-d:e/x.ext4"]);
        assert!(words.contains("it has no kernel"), "{name}: {words}");
    }
    let itself = line(&place, &["--from=-f.qcow2", "--disk=-d:e/.././-f.qcow2"]);
    assert!(itself.contains("cannot be the same file"), "{itself}");
}

#[test]
fn what_is_no_containers_image_is_told_why_in_one_line() {
    let place = Place::new();
    let oci = |name: &str| line(&place, &["--from-oci", name]);
    assert!(oci("none").contains("cannot read none: No such file"));
    std::fs::write(place.path("text"), "no archive").unwrap();
    assert!(oci("text").contains("it is no folder and no tar archive"));
    std::fs::create_dir(place.path("empty")).unwrap();
    assert!(oci("empty").contains("it has neither index.json"));
    let index = |text: &str| std::fs::write(place.path("empty/index.json"), text).unwrap();
    index("{");
    assert!(oci("empty").contains("index.json is not understood"));
    let of = |digest: &str, architecture: &str| {
        format!(
            r#"{{"manifests": [{{"digest": "{digest}", "annotations": {{"org.opencontainers.image.ref.name": "one"}},
                "platform": {{"architecture": "{architecture}", "os": "linux"}}}}]}}"#
        )
    };
    let sum = "0".repeat(64);
    index(&of("sha256:../../x", "amd64"));
    assert!(oci("empty").contains("a digest is no SHA-256"));
    index(&of(&format!("sha256:{sum}"), "arm64"));
    assert!(oci("empty").contains("it has no image for linux/amd64"));
    index(&of(&format!("sha256:{sum}"), "amd64"));
    assert!(oci("empty").contains("it has no blobs/sha256/000"));
    assert!(oci("empty:two").contains("it has no image 'two' for linux/amd64; there are: one"));
    // A manifest, but for its digest.
    std::fs::create_dir_all(place.path("empty/blobs/sha256")).unwrap();
    let manifest = place.path("empty/blobs/sha256").join(&sum);
    std::fs::write(manifest, r#"{"layers": []}"#).unwrap();
    let why = format!("blobs/sha256/{sum} is not what its digest says");
    assert!(oci("empty").contains(&why));
}

/// What is unpacked is compared with two digests: the layer's own, and that of the image's configuration.
#[test]
fn a_layer_that_is_anothers_is_refused() {
    let place = Place::new();
    let file = |path, text| layer(&[(path, EntryType::Regular, 0o755, 0, text)]);
    let layers = [
        file("one", &b"1"[..]),
        file("two", b"2"),
        file("start", b"3"),
    ];
    let config = json!({"Entrypoint": ["/start"]});
    let at = |name: &str| Layout::new(&place.path(name), true);
    let [good, changed, other] = ["good", "changed", "other"].map(at);
    good.write(&config, &layers);
    changed.write(&config, &layers);
    let mut said = layers.clone();
    said[2] = file("start", b"4");
    other.write_as(&config, &layers, &said);
    // The last byte of the one that is not packed, which nothing else finds: it stands behind the archive's end.
    let sum = bundle::sha256(&layers[2]);
    let mut bytes = std::fs::read(changed.path(&sum)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(changed.path(&sum), bytes).unwrap();
    if place
        .built(&["-o", "good.img", "--in-memory", "--from-oci", "good"])
        .is_none()
    {
        return;
    }
    // What was built of the same configuration would be taken.
    place.forget_built();
    for (name, why) in [
        ("changed", "its digest says"),
        ("other", "the image's configuration says"),
    ] {
        let words = line(&place, &["--in-memory", "--from-oci", name]);
        let why = format!("blobs/sha256/{sum} is not what {why}");
        assert!(words.contains(&why), "{words}");
    }
}

/// Neither takes root: nothing is mounted, and nothing is installed.
#[test]
fn a_user_makes_guests_of_cloud_images_and_containers() {
    const NOBODY: &str = "65534";
    if skip_without(&PROGRAMS) || skip_without(&["setpriv"]) {
        return;
    }
    let place = Place::new();
    cloud_image(
        &place,
        "cloud.qcow2",
        &[&ROOT[..], &KERNEL, &[CONFIG]].concat(),
    );
    let layout = Layout::new(&place.path("container"), false);
    let files = layer(&[
        ("start", EntryType::Regular, 0o4755, 0, b"start"),
        ("its/own", EntryType::Regular, 0o400, 1000, b"secret"),
        ("its/link", EntryType::Symlink, 0o777, 1000, b"own"),
    ]);
    layout.write(&json!({"Entrypoint": ["/start"]}), &[files]);
    let Some(built) = place.built(&["-o", "root.img", "--from-oci", "container"]) else {
        return;
    };
    // A folder of the user's, with the program and the packages: root's own may be closed.
    let user = tempfile::tempdir().unwrap();
    let path = |name: &str| user.path().join(name);
    let debs = path("cache/tandem/debs");
    std::fs::create_dir_all(&debs).unwrap();
    let image = std::fs::read(place.path("root.img")).unwrap();
    for package in bundle::Bundle::parse(&image).unwrap().manifest.packages {
        let from = place.path("cache/tandem/debs").join(&package.sha256);
        std::fs::copy(from, debs.join(&package.sha256)).unwrap();
    }
    std::fs::copy(env!("CARGO_BIN_EXE_tandem"), path("tandem")).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    let [from, to] = [place.0.path(), user.path()].map(|path| path.to_str().unwrap());
    run(
        &place,
        &format!("cp -r '{from}/cloud.qcow2' '{from}/container' '{to}'"),
    );
    if is_root {
        run(&place, &format!("chown -R {NOBODY}:{NOBODY} '{to}'"));
    }
    let mut reports = Vec::new();
    for option in [["--from", "cloud.qcow2"], ["--from-oci", "container"]] {
        let mut command = Command::new(if is_root { "setpriv" } else { "env" });
        if is_root {
            command.arg(format!("--reuid={NOBODY}"));
            command.args([&format!("--regid={NOBODY}"), "--clear-groups"]);
        }
        let made = command
            .arg(path("tandem"))
            .args(["image", "--json", "-o", "own.img"])
            .args(option)
            .current_dir(user.path())
            .env("XDG_CACHE_HOME", path("cache"))
            .env_remove("HOME")
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{option:?}: {words}");
        let report: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        assert!(path("own.img").exists() && path("own.ext4").exists());
        reports.push(report);
    }
    // They are those that root makes.
    for sum in ["image_sha256", "disk_sha256"] {
        assert_eq!(reports[1][sum], built[sum], "{sum}");
    }
}
