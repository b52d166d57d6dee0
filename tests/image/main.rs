//! Images are built from packages, by apt and without root, and come out the same each time.

use bundle::Bundle;
use bundle::cpio::{Member, Reader, S_IFCHR, S_IFMT};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use testing::skipped::skip_this;

/// A folder with a cache of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tandem"))
            .arg("image")
            .args(args)
            .current_dir(self.0.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .output()
            .unwrap()
    }

    /// Builds; `None` if apt cannot fetch here, which is said.
    fn built(&self, args: &[&str]) -> Option<serde_json::Value> {
        let all = [&["--json"], args].concat();
        let output = self.image(&all);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let no_apt = [
            "cannot fetch packages",
            "apt knows no package",
            "is missing (Debian's",
        ];
        if !output.status.success() && no_apt.iter().any(|text| words.contains(text)) {
            skip_this(&words.trim());
            return None;
        }
        assert!(output.status.success(), "{words}");
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Removes what was built, but not what was fetched.
    fn forget_built(&self) {
        std::fs::remove_dir_all(self.path("cache/tandem/images")).unwrap();
    }

    fn is_tidy(&self) -> bool {
        let left = |folder: &Path| {
            let names = std::fs::read_dir(folder).unwrap().flatten();
            let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names
                .into_iter()
                .any(|name| name.starts_with("tmp-") || name.starts_with(".tandem-"))
        };
        !left(self.0.path()) && !left(&self.path("cache/tandem"))
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn members(initrd: &[u8]) -> Vec<Member<'_>> {
    Reader::new(initrd).map(Result::unwrap).collect()
}

#[test]
fn a_shells_image_is_busybox_modules_and_a_kernel() {
    let place = Place::new();
    let Some(first) = place.built(&["-o", "a.img"]) else {
        return;
    };
    assert_eq!(first["cached"], false);
    assert_eq!(first["missing"], serde_json::json!([]));
    let bytes = read(&place.path("a.img"));
    let bundle = Bundle::parse(&bytes).unwrap();
    // The setup header's magic (Documentation/arch/x86/boot.rst, offset 0x202).
    assert_eq!(&bundle.kernel[0x202..0x206], b"HdrS");
    let modules = &bundle.manifest.modules;
    let at = |name: &str| modules.iter().position(|module| module == name).unwrap();
    assert!(at("virtio").max(at("virtio_ring")) < at("virtio_mmio"));
    assert!(at("net_failover") < at("virtio_net"), "{modules:?}");
    let members = members(bundle.initrd);
    assert!(
        members.iter().all(|m| (m.meta.uid, m.meta.gid) == (0, 0)),
        "all is root's"
    );
    let console = members.iter().find(|m| m.name == "dev/console").unwrap();
    assert_eq!(
        (console.meta.mode & S_IFMT, console.meta.device),
        (S_IFCHR, (5, 1))
    );
    assert!(
        members
            .iter()
            .any(|m| m.name == "init" && m.meta.mode & 0o111 != 0)
    );

    let again = place.built(&["-o", "b.img"]).unwrap();
    assert_eq!(again["cached"], true);
    place.forget_built();
    let rebuilt = place.built(&["-o", "c.img"]).unwrap();
    assert_eq!(rebuilt["cached"], false);
    assert!(read(&place.path("b.img")) == bytes && read(&place.path("c.img")) == bytes);
    assert!(place.is_tidy());
}

#[test]
fn redis_comes_with_its_libraries_and_nothing_to_install_it() {
    let place = Place::new();
    let Some(built) = place.built(&["-o", "r.img", "--disk", "r.ext4", "redis-server"]) else {
        return;
    };
    assert!(
        built["command"]
            .as_str()
            .unwrap()
            .contains("--appendonly yes")
    );
    let (image, disk) = (read(&place.path("r.img")), read(&place.path("r.ext4")));
    let small = members(Bundle::parse(&image).unwrap().initrd).len();
    let memory = place.built(&["-o", "m.img", "redis"]).unwrap();
    assert_eq!(memory["missing"], serde_json::json!([]));
    let bytes = read(&place.path("m.img"));
    let bundle = Bundle::parse(&bytes).unwrap();
    let members = members(bundle.initrd);
    let has = |name: &str| members.iter().any(|member| member.name == name);
    assert!(has("usr/bin/redis-server") && has("usr/lib/x86_64-linux-gnu/libc.so.6"));
    assert!(has("usr/lib64/ld-linux-x86-64.so.2"));
    assert!(!has("usr/bin/perl") && !has("usr/share/doc") && !has("usr/lib/systemd"));
    assert!(
        small < members.len(),
        "with a disk, the first root is the smaller one"
    );
    listed_by_cpio(&place, &["manifest.json", "kernel", "initrd"]);

    place.forget_built();
    place
        .built(&["-o", "r.img", "--disk", "r.ext4", "redis-server"])
        .unwrap();
    assert!(read(&place.path("r.img")) == image && read(&place.path("r.ext4")) == disk);
    assert!(place.is_tidy());
}

/// Debian's own cpio reads the image, where it is installed.
fn listed_by_cpio(place: &Place, expected: &[&str]) {
    let image = std::fs::File::open(place.path("m.img")).unwrap();
    let listed = Command::new("cpio")
        .args(["-it", "--quiet"])
        .stdin(image)
        .output();
    let Ok(listed) = listed else {
        skip_this(&"cpio is missing");
        return;
    };
    let names = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(names.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_broken_file_in_the_cache_is_fetched_again() {
    let place = Place::new();
    if place.built(&["-o", "a.img"]).is_none() {
        return;
    }
    let bytes = read(&place.path("a.img"));
    for folder in ["debs", "images"] {
        break_files(&place.path("cache/tandem").join(folder));
    }
    let rebuilt = place.built(&["-o", "b.img"]).unwrap();
    assert_eq!(rebuilt["cached"], false);
    assert!(read(&place.path("b.img")) == bytes);
}

/// Changes the last byte of each file, other than the lists of sums.
fn break_files(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            break_files(&path);
        } else if path.extension().is_none() {
            let mut bytes = read(&path);
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn asked_to_end_it_leaves_nothing_behind() {
    let place = Place::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["image", "-o", "x.img", "redis"])
        .current_dir(place.0.path())
        .env("XDG_CACHE_HOME", place.path("cache"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let working = || {
        let entries = std::fs::read_dir(place.path("cache/tandem"));
        let mut names = entries.into_iter().flatten().flatten();
        names.any(|entry| entry.file_name().to_string_lossy().starts_with("tmp-"))
    };
    while !working() {
        if child.try_wait().unwrap().is_some() {
            skip_this(&"no image is built here");
            return;
        }
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(place.is_tidy());
    assert!(!place.path("x.img").exists());
}

#[test]
fn what_cannot_be_built_is_one_clear_line() {
    let place = Place::new();
    let line = |args: &[&str]| {
        let output = place.image(&[&["-o", "x.img"], args].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(words.lines().count(), 1, "{words}");
        words
    };
    assert!(line(&["--service", "nothing"]).contains("redis, memcached, nginx"));
    assert!(line(&["Bad"]).contains("'Bad' is no package's name"));
    let unknown = line(&["no-such-package-at-all"]);
    let no_apt = unknown.contains("is missing (Debian's");
    assert!(
        unknown.contains("no package 'no-such-package-at-all'") || no_apt,
        "{unknown}"
    );
    let output = place.image(&["-o", "nowhere/x.img"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("cannot write nowhere/x.img"), "{words}");
    assert!(!place.path("x.img").exists());
}
