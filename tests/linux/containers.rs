//! Containers' images as guests: what their entry points say runs, as a container would have it.

use super::common::{machine, skipped, tandem, text};
use super::images;
use super::recorded::{Log, Ran, record, replay_equals};
use bundle::cpio::Reader;
use bundle::{Bundle, sha256};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::EntryType;

/// The files of a layer: path, kind, mode, owner, contents or target.
type Files<'a> = [(&'a str, EntryType, u32, u64, &'a [u8])];

fn layer(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, mode, owner, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner);
        header.set_mtime(1_700_000_000);
        let data = match kind {
            EntryType::Symlink | EntryType::Link => {
                let target = std::str::from_utf8(data).expect("a name");
                header.set_link_name(target).expect("it is short");
                &b""[..]
            }
            _ => *data,
        };
        header.set_size(data.len() as u64);
        builder
            .append_data(&mut header, path, data)
            .expect("into memory");
    }
    builder.into_inner().expect("into memory")
}

/// An OCI layout being written.
struct Layout {
    folder: PathBuf,
    /// Whether a layer is packed by zstd, which formats of docker's do not have.
    zstd: bool,
}

impl Layout {
    fn new(folder: &Path, zstd: bool) -> Self {
        std::fs::create_dir_all(folder.join("blobs/sha256")).expect("a folder");
        let version = br#"{"imageLayoutVersion": "1.0.0"}"#;
        std::fs::write(folder.join("oci-layout"), version).expect("room");
        Self {
            folder: folder.to_owned(),
            zstd,
        }
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> serde_json::Value {
        let sum = sha256(bytes);
        std::fs::write(self.folder.join("blobs/sha256").join(&sum), bytes).expect("room");
        let media = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media, "digest": format!("sha256:{sum}"), "size": bytes.len()})
    }

    fn write(&self, config: &serde_json::Value, layers: &[Vec<u8>]) {
        let sums = layers
            .iter()
            .map(|layer| format!("sha256:{}", sha256(layer)));
        let sums: Vec<_> = sums.collect();
        let packed = layers.iter().enumerate().map(|(n, layer)| match n {
            0 => {
                let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                gzip.write_all(layer).expect("into memory");
                self.blob("layer.v1.tar+gzip", &gzip.finish().expect("into memory"))
            }
            1 if self.zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                let zstd = ruzstd::encoding::compress_to_vec(layer.as_slice(), level);
                self.blob("layer.v1.tar+zstd", &zstd)
            }
            _ => self.blob("layer.v1.tar", layer),
        });
        let packed: Vec<_> = packed.collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": config,
                            "rootfs": {"type": "layers", "diff_ids": sums}});
        let config = self.blob("config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": packed});
        let mut manifest = self.blob("manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "one"});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        std::fs::write(self.folder.join("index.json"), index.to_string()).expect("room");
    }
}

/// What the container runs: who it is, where, with what, and what the layers left.
const SAYS: &str = "echo user $(id -u):$(id -g); echo folder $(pwd); echo \"word $WORD\"; echo home $HOME; \
                    echo files $(ls); echo same $(cat hard); echo arguments $0 \"$1\"; echo variables $(env | wc -l)";

/// An image of three layers, on busybox.
fn container(folder: &Path, busybox: &[u8], zstd: bool) -> Layout {
    use EntryType::{Directory as D, Link as H, Regular as F, Symlink as L};
    let users = b"root:x:0:0::/root:/bin/sh\napp:x:101:102::/srv/app:/bin/sh\n";
    let first = layer(&[
        ("bin/", D, 0o755, 0, b""),
        ("bin/busybox", F, 0o755, 0, busybox),
        ("bin/sh", L, 0o777, 0, b"busybox"),
        ("usr/bin/id", L, 0o777, 0, b"/bin/busybox"),
        ("usr/bin/env", L, 0o777, 0, b"../../bin/busybox"),
        ("usr/bin/wc", H, 0o755, 0, b"bin/busybox"),
        ("etc/passwd", F, 0o644, 0, users),
        ("etc/group", F, 0o644, 0, b"root:x:0:\napp:x:102:\n"),
        ("srv/app/old", F, 0o644, 101, b"old"),
        ("srv/app/shared", F, 0o644, 101, b"by two names\n"),
        ("app", L, 0o777, 0, b"srv/app"),
    ]);
    let second = layer(&[
        ("srv/app/.wh.old", F, 0o644, 0, b""),
        ("app/hard", H, 0o644, 101, b"srv/app/shared"),
        ("usr/bin/ls", L, 0o777, 0, b"/bin/busybox"),
    ]);
    let third = layer(&[
        ("usr/bin/cat", L, 0o777, 0, b"/bin/busybox"),
        ("usr/bin/pwd", L, 0o777, 0, b"/bin/busybox"),
    ]);
    let layout = Layout::new(folder, zstd);
    layout.write(
        &json!({
            "Env": ["PATH=/usr/bin:/bin", "WORD=two  words 'and' $more"],
            "Entrypoint": ["sh", "-c", SAYS],
            "Cmd": ["it", "one  argument"],
            "User": "app",
            "WorkingDir": "/app",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        }),
        &[first, second, third],
    );
    layout
}

/// busybox's program, out of an image.
fn busybox() -> Option<Vec<u8>> {
    let bytes = std::fs::read(images::shell(images::CLOUD)?).expect("the image");
    let bundle = Bundle::parse(&bytes).expect("an image");
    let mut members = Reader::new(bundle.initrd).map(Result::unwrap);
    let found = members.find(|member| member.name == "usr/lib/tandem/busybox");
    Some(found.expect("busybox").data.to_vec())
}

#[test]
fn a_containers_image_runs_as_it_says() {
    let _machine = machine();
    let Some(busybox) = busybox() else { return };
    let place = tempfile::tempdir().expect("a folder");
    let layout = container(&place.path().join("oci"), &busybox, true);
    let from = format!("{}:one", layout.folder.display());
    let args = ["--in-memory", "--from-oci", &from];
    let Some(image) = images::image_of("container", &args) else {
        return;
    };
    assert_eq!(run(&image), SAID);
    let bytes = std::fs::read(&image).expect("the image");
    let manifest = Bundle::parse(&bytes).expect("an image").manifest;
    assert_eq!(manifest.ports, ["53/udp", "80/tcp"]);

    // One byte of a layer that is another's, and the end of what docker's own tools would have noticed.
    let blobs = std::fs::read_dir(layout.folder.join("blobs/sha256")).expect("blobs");
    let blobs = blobs.map(|blob| blob.expect("a blob").path());
    let layer = blobs.max_by_key(|blob| blob.metadata().expect("its size").len());
    let layer = layer.expect("a layer");
    let mut bytes = std::fs::read(&layer).expect("its bytes");
    let middle = bytes.len() - 9;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).expect("room");
    let out = place.path().join("x.img");
    let refused = Command::new(super::common::PROGRAM)
        .args([
            "image",
            "-o",
            text(&out),
            "--memory",
            "300",
            "--from-oci",
            text(&layout.folder),
        ])
        .output()
        .expect("it runs");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && words.lines().count() == 1,
        "{words}"
    );
    assert!(
        words.contains("is no container's image for a guest"),
        "{words}"
    );
    assert!(!out.exists());
}

/// What it prints.
const SAID: [&str; 8] = [
    "user 101:102",
    // A link, as the kernel tells where a process is.
    "folder /srv/app",
    "word two  words 'and' $more",
    "home /srv/app",
    "files hard shared",
    "same by two names",
    "arguments it one  argument",
    // PATH, WORD, HOME, HOSTNAME, TERM; the shell's own PWD, SHLVL and OLDPWD, of which busybox's exports two.
    "variables 7",
];

/// Runs it, recorded and replayed; what the container printed.
fn run(image: &Path) -> Vec<String> {
    let log = Log::new("container");
    let ran = Ran::of(record(image, &log, &["--append", "tandem.ip=none"]));
    assert_eq!(ran.report["exit_status"], 0, "{:?}", ran.console);
    replay_equals(&ran, &log);
    let mut lines = ran.console.into_iter();
    lines
        .by_ref()
        .find(|line| line.starts_with("tandem: runs sh -c"))
        .expect("the command is told");
    lines
        .take_while(|line| !line.starts_with("tandem: ended with status 0"))
        .collect()
}

/// The same image as skopeo makes it: archives of both kinds.
#[test]
#[ignore = "it takes skopeo: docs/TESTING.md"]
fn a_containers_image_is_read_as_skopeo_writes_it() {
    let _machine = machine();
    if Command::new("skopeo").arg("--version").output().is_err() {
        return skipped::skip_this(&"no skopeo (Debian's package skopeo)");
    }
    let Some(busybox) = busybox() else { return };
    let place = tempfile::tempdir().expect("a folder");
    let layout = container(&place.path().join("oci"), &busybox, false);
    for kind in ["oci", "oci-archive", "docker-archive"] {
        let out = place.path().join(kind.replace("oci", "o"));
        let name = match kind {
            "docker-archive" => "example/one:latest",
            _ => "one",
        };
        let to = format!("{kind}:{}:{name}", out.display());
        let from = format!("oci:{}:one", layout.folder.display());
        let copied = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", &from, &to])
            .output()
            .expect("it runs");
        assert!(copied.status.success(), "{copied:?}");
        let image = place.path().join(format!("{kind}.img"));
        let made = tandem(&["image", "-o", text(&image), "--from-oci", text(&out)]);
        assert!(made.status.success(), "{made:?}");
        assert_eq!(run(&image), SAID, "{kind}");
    }
}
