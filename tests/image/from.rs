//! What is no cloud image, and what is no container's image: one clear line each, and nothing left behind.

use super::{Place, skip_this};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

/// Programs that make cloud images here, and that make guests of them.
const PROGRAMS: [&str; 5] = ["qemu-img", "sfdisk", "mke2fs", "debugfs", "xorriso"];

fn programs_are_missing() -> bool {
    let missing = PROGRAMS.into_iter().find(|program| {
        let tried = Command::new(program).arg("--version").output();
        let path = format!("/usr/sbin/{program}");
        tried.is_err() && !Path::new(&path).exists()
    });
    if let Some(missing) = missing {
        skip_this(&format!("no {missing}"));
    }
    missing.is_some()
}

fn run(place: &Place, line: &str) {
    let output = Command::new("sh")
        .args(["-ec", line])
        .current_dir(place.0.path())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// A qcow2 file called `name` of a disk with one partition, an ext4 file system with these files.
fn cloud_image(place: &Place, name: &str, files: &[(&str, &str)]) {
    changed_cloud_image(place, name, files, "true");
}

/// As [`cloud_image`], after the shell's `change` to the folder `root` with the files.
fn changed_cloud_image(place: &Place, name: &str, files: &[(&str, &str)], change: &str) {
    let root = place.path("root");
    std::fs::create_dir_all(&root).unwrap();
    for (path, text) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    run(place, change);
    run(place, "mke2fs -q -F -t ext4 -d root part 4M");
    disk_of(place, name);
    std::fs::remove_dir_all(root).unwrap();
}

/// A qcow2 file called `name` of a disk with one partition, which holds the file `part`.
fn disk_of(place: &Place, name: &str) {
    let mut raw = std::fs::File::create(place.path("raw")).unwrap();
    raw.set_len(8 << 20).unwrap();
    run(
        place,
        "printf 'label: gpt\\nstart=2048, size=8192\\n' | sfdisk -q raw",
    );
    raw.seek(SeekFrom::Start(1 << 20)).unwrap();
    raw.write_all(&std::fs::read(place.path("part")).unwrap())
        .unwrap();
    drop(raw);
    run(
        place,
        &format!("qemu-img convert -f raw -O qcow2 raw {name}; rm raw part"),
    );
}

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

#[test]
fn a_cloud_image_that_makes_no_guest_is_told_why_in_one_line() {
    if programs_are_missing() {
        return;
    }
    let place = Place::new();
    let cloud = |name: &str| line(&place, &["--from", name]);
    assert!(cloud("none.qcow2").contains("cannot read none.qcow2: No such file"));
    std::fs::write(place.path("text"), "no disk").unwrap();
    assert!(cloud("text").contains("text makes no guest: it is no qcow2 file"));
    run(
        &place,
        "qemu-img create -q -u -f qcow2 -b gone.qcow2 -F qcow2 over.qcow2 8M",
    );
    // Whether the files they name are there or not.
    let external = "qemu-img create -q -f qcow2 -o data_file=data.raw external.qcow2 8M";
    run(&place, external);
    let changes = [
        "test -e data.raw && test ! -e gone.qcow2",
        "qemu-img create -q -f qcow2 gone.qcow2 8M; rm data.raw",
    ];
    for change in changes {
        run(&place, change);
        let words = cloud("over.qcow2");
        assert!(
            words.contains("it has a backing file, and no other"),
            "{words}"
        );
        assert!(words.contains("qemu-img rebase -b '' FILE"), "{words}");
        let words = cloud("external.qcow2");
        assert!(
            words.contains("it has an external data file, and no other"),
            "{words}"
        );
        assert!(
            words.contains("qemu-img convert -O qcow2 IN OUT"),
            "{words}"
        );
    }
    run(&place, "qemu-img create -q -f qcow2 empty.qcow2 8M");
    assert!(cloud("empty.qcow2").contains("it has no partition table"));

    let root = [("etc/fstab", ""), ("usr/x", "")];
    cloud_image(&place, "kernelless.qcow2", &root);
    let words = cloud("kernelless.qcow2");
    assert!(
        words.contains("it has no kernel (vmlinuz-*) on an ext4 partition"),
        "{words}"
    );
    let mut other = vec![0u8; 4 << 20];
    other[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
    std::fs::write(place.path("part"), other).unwrap();
    disk_of(&place, "btrfs.qcow2");
    let words = cloud("btrfs.qcow2");
    assert!(
        words.contains("partition 1 is btrfs, which is not read"),
        "{words}"
    );
    let kernel = [
        ("boot/vmlinuz-6.1", "kernel"),
        ("boot/initrd.img-6.1", "initrd"),
    ];
    let without = [("boot/config-6.1", "# CONFIG_VIRTIO_MMIO is not set\n")];
    let drivers = "CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_VIRTIO_NET=m\n";
    let with = [("boot/config-6.1", drivers)];
    cloud_image(
        &place,
        "driverless.qcow2",
        &[&root[..], &kernel, &without].concat(),
    );
    let words = cloud("driverless.qcow2");
    assert!(
        words.contains("its kernel 6.1 is built without CONFIG_VIRTIO_MMIO"),
        "{words}"
    );
    // A file of holes takes no room there, and none here: it is refused by its size.
    for (name, change, why) in [
        (
            "config-6.1",
            "truncate -s 2G",
            "config-6.1 is of 2147483648 bytes, and",
        ),
        (
            "initrd.img-6.1",
            "truncate -s 2G",
            "initrd.img-6.1 is of 2147483648 bytes, and",
        ),
        (
            "vmlinuz-6.1",
            "truncate -s 2G",
            "vmlinuz-6.1 is of 2147483648 bytes, and",
        ),
        (
            "config-6.1",
            "ln -sf /etc/fstab",
            "config-6.1 is no regular file",
        ),
        (
            "initrd.img-6.1",
            "ln -sf ../x",
            "initrd.img-6.1 is no regular file",
        ),
        (
            "initrd.img-6.1",
            "mkdir",
            "initrd.img-6.1 is no regular file",
        ),
    ] {
        let odd = [&root[..], &kernel, &with].concat();
        let change = format!("rm root/boot/{name}; {change} root/boot/{name}");
        changed_cloud_image(&place, "odd.qcow2", &odd, &change);
        let words = cloud("odd.qcow2");
        assert!(words.contains(&format!("its /boot/{why}")), "{words}");
    }
    cloud_image(
        &place,
        "rootless.qcow2",
        &[&root[..], &kernel[..1]].concat(),
    );
    let words = cloud("rootless.qcow2");
    assert!(
        words.contains("has no first root (initrd.img-6.1"),
        "{words}"
    );
    let small = line(
        &place,
        &[
            "--from",
            "kernelless.qcow2",
            "--size",
            "16",
            "--user-data",
            "none",
        ],
    );
    assert!(small.contains("cannot read none"), "{small}");
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
    index(&of("sha256:../../x", "amd64"));
    assert!(oci("empty").contains("a digest is no SHA-256"));
    index(&of(&format!("sha256:{}", "0".repeat(64)), "arm64"));
    assert!(oci("empty").contains("it has no image for linux/amd64"));
    index(&of(&format!("sha256:{}", "0".repeat(64)), "amd64"));
    assert!(oci("empty").contains("it has no blobs/sha256/000"));
    assert!(oci("empty:two").contains("it has no image 'two' for linux/amd64; there are: one"));
}
