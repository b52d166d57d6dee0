//! Containers' images for tests: layers, and the OCI layout they are kept in.

use bundle::sha256;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use tar::EntryType;

/// The files of a layer: path, kind, mode, owner, contents or target.
pub type Files<'a> = [(&'a str, EntryType, u32, u64, &'a [u8])];

/// A layer of these.
pub fn layer(files: &Files) -> Vec<u8> {
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
pub struct Layout {
    /// The folder it is in.
    pub folder: PathBuf,
    /// Whether a layer is packed by zstd, which formats of docker's do not have.
    zstd: bool,
}

impl Layout {
    /// In `folder`; whether a layer is packed by zstd.
    pub fn new(folder: &Path, zstd: bool) -> Self {
        std::fs::create_dir_all(folder.join("blobs/sha256")).expect("a folder");
        let version = br#"{"imageLayoutVersion": "1.0.0"}"#;
        std::fs::write(folder.join("oci-layout"), version).expect("room");
        Self {
            folder: folder.to_owned(),
            zstd,
        }
    }

    /// Where the blob with this digest is.
    pub fn path(&self, sum: &str) -> PathBuf {
        self.folder.join("blobs/sha256").join(sum)
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> serde_json::Value {
        let sum = sha256(bytes);
        std::fs::write(self.path(&sum), bytes).expect("room");
        let media = format!("application/vnd.oci.image.{kind}");
        json!({"mediaType": media, "digest": format!("sha256:{sum}"), "size": bytes.len()})
    }

    /// An image that runs as `config` says, of these layers.
    pub fn write(&self, config: &serde_json::Value, layers: &[Vec<u8>]) {
        self.write_as(config, layers, layers);
    }

    /// The same, whose configuration says that the layers unpack to `said`.
    pub fn write_as(&self, config: &serde_json::Value, layers: &[Vec<u8>], said: &[Vec<u8>]) {
        let sums = said.iter().map(|layer| format!("sha256:{}", sha256(layer)));
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
