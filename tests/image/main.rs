//! Images are built from packages, by Debian's own tools, and come out the same each time.

mod from;
#[path = "../common/oci.rs"]
mod oci;

use bundle::Bundle;
use bundle::cpio::{Member, Reader, S_IFCHR, S_IFMT};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use testing::skipped::{has_no_packages, skip_this, skip_without};

/// A folder with a cache of its own.
struct Place(TempDir);

impl Place {
    /// With the packages that were fetched before, by whichever test.
    fn new() -> Self {
        Self::with(&["debs"])
    }

    /// The same, with what was installed before, too.
    fn with_roots() -> Self {
        Self::with(&["debs", "roots"])
    }

    /// With parts of the user's own cache, which other suites use; where that is another file system, of one of these
    /// tests' own.
    fn with(parts: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image");
        let own = folder.join("cache");
        std::fs::create_dir_all(&own).unwrap();
        let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
        let users = image::cache_folder().ok();
        let users = users.filter(|path| std::fs::create_dir_all(path).is_ok());
        // A package moves into the cache by renaming.
        let users = users.filter(|path| device(path) == device(&own));
        let shared = users.unwrap_or(own);
        let place = Self(tempfile::tempdir_in(&folder).unwrap());
        std::fs::create_dir_all(place.path("cache/tandem")).unwrap();
        for part in parts {
            std::fs::create_dir_all(shared.join(part)).unwrap();
            let link = place.path("cache/tandem").join(part);
            std::os::unix::fs::symlink(shared.join(part), link).unwrap();
        }
        place
    }

    /// With nothing fetched.
    fn alone() -> Self {
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
        if !output.status.success() && has_no_packages(&words) {
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

/// Both roots are Debian as its own tools installed it: with its users, its package database, and no trace of when
/// and where that was.
#[test]
fn redis_is_installed_by_debians_own_tools_and_comes_out_the_same_each_time() {
    let place = Place::with_roots();
    let Some(memory) = place.built(&["-o", "m.img", "--in-memory", "redis"]) else {
        return;
    };
    assert!(memory["disk"].is_null() && !place.path("m.ext4").exists());
    let bytes = read(&place.path("m.img"));
    let bundle = Bundle::parse(&bytes).unwrap();
    let members = members(bundle.initrd);
    let member = |name: &str| members.iter().find(|member| member.name == name);
    let text = |name: &str| std::str::from_utf8(member(name).expect(name).data).unwrap();
    // The package's script made the user and gave it its folder.
    let user = text("etc/passwd")
        .lines()
        .find(|line| line.starts_with("redis:"));
    let id = user.expect("redis's user").split(':').nth(2).unwrap();
    let data = member("var/lib/redis").unwrap();
    assert_eq!(data.meta.uid.to_string(), id);
    assert!(
        text("var/lib/dpkg/status").contains("Package: redis-server\nStatus: install ok installed")
    );
    assert_eq!(text("etc/hostname"), "tandem\n");
    assert!(member("usr/share/doc").is_none() && member("usr/lib/tandem/start").is_some());
    assert_eq!(members.last().unwrap().name, "tandem-end");
    listed_by_cpio(&place, &["manifest.json", "kernel", "initrd"]);
    // Another command for the same packages installs nothing; another cache has to.
    let other = [
        "-o",
        "o.img",
        "--in-memory",
        "--run",
        "true",
        "redis-server",
    ];
    assert_eq!(place.built(&other).unwrap()["cached"], false);
    let anew = Place::new();
    anew.built(&["-o", "n.img", "--in-memory", "redis"])
        .unwrap();
    assert!(read(&anew.path("n.img")) == bytes);
    assert!(place.is_tidy() && anew.is_tidy());
}

#[test]
fn a_disk_is_beside_its_image_and_comes_out_the_same_each_time() {
    let place = Place::new();
    let args = |name| {
        [
            "-o", name, "--disk", "b.ext4", "--size", "64", "--run", "exec sh",
        ]
    };
    let Some(built) = place.built(&args("b.img")) else {
        return;
    };
    let (image, disk) = (read(&place.path("b.img")), read(&place.path("b.ext4")));
    assert_eq!(built["disk"], "b.ext4");
    assert_eq!(built["disk_bytes"], disk.len());
    let bundle = Bundle::parse(&image).unwrap();
    assert_eq!(bundle.manifest.disk_bytes, Some(disk.len() as u64));
    assert!(
        !members(bundle.initrd)
            .iter()
            .any(|m| m.name == "etc/tandem/command")
    );
    place.forget_built();
    place.built(&args("c.img")).unwrap();
    assert!(read(&place.path("c.img")) == image && read(&place.path("b.ext4")) == disk);
    assert!(place.is_tidy());
}

/// Debian's own cpio reads the image, where it is installed.
fn listed_by_cpio(place: &Place, expected: &[&str]) {
    if skip_without(&["cpio"]) {
        return;
    }
    let image = std::fs::File::open(place.path("m.img")).unwrap();
    let listed = Command::new("cpio")
        .args(["-it", "--quiet"])
        .stdin(image)
        .output()
        .unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(names.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_broken_file_in_the_cache_is_fetched_again() {
    let place = Place::alone();
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

/// Asked as early as may be, and in the midst of an installation.
#[test]
fn asked_to_end_it_leaves_nothing_behind() {
    let place = Place::new();
    let (cache, temporary) = (place.path("cache/tandem"), place.path("tmp"));
    std::fs::create_dir(&temporary).unwrap();
    for (folder, prefix) in [(&cache, "tmp-"), (&temporary, "mmdebstrap.")] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["image", "-o", "x.img", "redis"])
            .current_dir(place.0.path())
            .env("XDG_CACHE_HOME", place.path("cache"))
            .env("TMPDIR", &temporary)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let working = || {
            let entries = std::fs::read_dir(folder);
            let mut names = entries.into_iter().flatten().flatten();
            names.any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
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
        let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(temporary.to_str().unwrap()), "{mounts}");
    }
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
    let unknown = line(&["redis-sever"]);
    if !unknown.contains("is missing (Debian's") {
        let near = "no package 'redis-sever' (the nearest it knows: redis-server";
        assert!(unknown.contains(near), "{unknown}");
    }
    let output = place.image(&["-o", "nowhere/x.img"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("cannot write nowhere/x.img"), "{words}");
    assert!(!place.path("x.img").exists());
}

impl Place {
    /// Runs `tandem image` behind `command`, which prepares where it runs and then executes what follows.
    fn image_in(&self, command: &[&str], args: &[&str]) -> String {
        let output = Command::new(command[0])
            .args(&command[1..])
            .arg(env!("CARGO_BIN_EXE_tandem"))
            .args(["image", "-o", "x.img"])
            .args(args)
            .current_dir(self.0.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .output()
            .unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert_eq!(words.lines().count(), 1, "{words}");
        words
    }
}

/// A host without a network, without mmdebstrap, and with a full disk in each place something is written to.
#[test]
fn a_host_that_lacks_something_is_told_what() {
    let place = Place::alone();
    if place.built(&["-o", "shell.img"]).is_none() {
        return;
    }
    let namespace = Command::new("unshare").args(["-nm", "true"]).status();
    if !namespace.is_ok_and(|status| status.success()) {
        skip_this(&"no namespaces here");
        return;
    }
    let words = place.image_in(&["unshare", "-n"], &["redis"]);
    assert!(
        words.contains("cannot fetch packages: no network"),
        "{words}"
    );

    // Every program but one.
    let programs = place.path("programs");
    std::fs::create_dir(&programs).unwrap();
    for name in ["apt-get", "apt-cache", "dpkg", "dpkg-deb"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{name}"), programs.join(name)).unwrap();
    }
    let path = format!("PATH={}", programs.display());
    let words = place.image_in(&["/usr/bin/env", &path], &["redis"]);
    assert!(words.contains("mmdebstrap is missing"), "{words}");
    assert!(words.contains("apt install mmdebstrap"), "{words}");

    let small = "mkdir -p small && mount -t tmpfs -o size=8m small small && exec \"$@\"";
    let full = [
        "unshare",
        "-m",
        "sh",
        "-c",
        small,
        "sh",
        "env",
        "TMPDIR=small",
    ];
    let words = place.image_in(&full, &["redis"]);
    assert!(
        words.contains("is full (TMPDIR names another folder)"),
        "{words}"
    );
    let args = ["-o", "small/y.img"];
    let output = Command::new("unshare")
        .args(&full[1..6])
        .arg(env!("CARGO_BIN_EXE_tandem"))
        .arg("image")
        .args(args)
        .current_dir(place.0.path())
        .env("XDG_CACHE_HOME", place.path("cache"))
        .output()
        .unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains("cannot write small/y.img: No space left"),
        "{words}"
    );
    assert!(place.is_tidy() && !place.path("x.img").exists());
    let place = Place::with_roots();
    let words = place.image_in(&["env"], &["--size", "20", "redis"]);
    assert!(words.contains("--size takes"), "{words}");
    assert!(place.is_tidy() && !place.path("x.img").exists());
}
