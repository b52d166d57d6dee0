//! A container's image as a file or folder: what it runs, and its layers, each checked.
//!
//! ```text
//!  OCI layout (skopeo, buildah, podman; a folder, or an archive of one)
//!    index.json ─▶ [an index ─▶] a manifest ─▶ config, layers: each named by its SHA-256, in blobs/sha256/
//!  docker save (an archive)
//!    manifest.json ─▶ config, layers
//! ```
//!
//! Sources: the OCI image specification 1.1 (image-layout.md, manifest.md, config.md), Docker's image specification 1.2.
//! Nothing of it is believed: every digest is checked, and the configuration names those of the unpacked layers.

use crate::error::{During, Error, Result};
use crate::layers::Layers;
use crate::store::Store;
use crate::summed::Summed;
use crate::tools::Stop;
use crate::tree::{Kind, Tree};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Indexes within indexes, at most.
const INDEXES_MAX: u32 = 4;
/// Bytes by which a packed layer is known.
const MAGIC_BYTES: u64 = 4;
/// Where programs are looked for if the image does not say (runc and Docker do the same).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
struct Descriptor {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct OciManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// A container's image that was found to be one for this machine.
#[derive(Debug)]
pub struct Container {
    /// The SHA-256 of its configuration, in hexadecimal: that names all it is made of.
    pub digest: String,
    /// Where it is.
    pub path: PathBuf,
    store: Store,
    run: RunConfig,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    /// What it is called in the store.
    name: String,
    /// Its SHA-256 as it stands there, if that is named.
    packed: Option<String>,
    /// That of what it unpacks to.
    unpacked: String,
}

impl Container {
    /// Opens the image in `path`: a folder or an archive, which may be followed by `:NAME` where there are more.
    ///
    /// # Errors
    /// [`Error::Container`] if it is none, has none for this processor, or more than one and no name.
    pub fn open(path: &Path) -> Result<Self> {
        let words = path.display().to_string();
        let (folder, name) = match words.rsplit_once(':') {
            Some((folder, name)) if !path.exists() => (Path::new(folder).to_owned(), Some(name)),
            _ => (path.to_owned(), None),
        };
        let no = |why: String| Error::Container {
            path: folder.display().to_string(),
            why,
        };
        let store = Store::open(&folder)?;
        let (config, named, layers) = if store.has("index.json") {
            store.oci(name).map_err(no)?
        } else if store.has("manifest.json") {
            store.docker(name).map_err(no)?
        } else {
            return Err(no(
                "it has neither index.json (an OCI layout) nor manifest.json (docker save)".into(),
            ));
        };
        let bytes = store.json_bytes(&config).map_err(no)?;
        let digest = bundle::sha256(&bytes);
        if named.is_some_and(|named| named != digest) {
            return Err(no(format!("{config} is not what its digest says")));
        }
        let file: ConfigFile = parse(&config, &bytes).map_err(no)?;
        if (file.architecture.as_str(), file.os.as_str()) != ("amd64", "linux") {
            return Err(no(format!(
                "it is for {}/{}, and guests are linux/amd64",
                file.os.escape_debug(),
                file.architecture.escape_debug()
            )));
        }
        if file.rootfs.diff_ids.len() != layers.len() {
            return Err(no("its configuration names other layers".into()));
        }
        let layers = layers.into_iter().zip(&file.rootfs.diff_ids);
        let layers = layers.map(|((name, packed), unpacked)| {
            Ok(Layer {
                name,
                packed,
                unpacked: sha256_of(unpacked)?,
            })
        });
        let layers = layers.collect::<Result<_, String>>().map_err(no)?;
        Ok(Self {
            digest,
            path: folder,
            layers,
            run: file.config.unwrap_or_default(),
            store,
        })
    }

    /// Its root: all layers upon each other.
    ///
    /// # Errors
    /// If one is not what its digest says, or holds what no layer may.
    pub fn root(&self, stop: &Stop) -> Result<Tree> {
        let mut layers = Layers::new();
        for (n, layer) in self.layers.iter().enumerate() {
            stop.check()?;
            self.add(stop, layer, &mut layers)
                .map_err(|error| match error {
                    Error::Archive(why) => self.no(format!("layer {}: {why}", n + 1)),
                    other => other,
                })?;
        }
        Ok(layers.into_root())
    }

    fn no(&self, why: String) -> Error {
        Error::Container {
            path: self.path.display().to_string(),
            why,
        }
    }

    fn add(&self, stop: &Stop, layer: &Layer, layers: &mut Layers) -> Result {
        let reading = format!("cannot read {}", self.path.display());
        let file = self.store.reader(&layer.name).map_err(|why| self.no(why))?;
        let mut packed = Summed::new(stop, BufReader::new(file));
        let mut begin = Vec::new();
        let read = packed.by_ref().take(MAGIC_BYTES).read_to_end(&mut begin);
        read.during(&reading)?;
        let whole = begin.as_slice().chain(&mut packed);
        let mut unpacked = match begin.as_slice() {
            [0x1f, 0x8b, ..] => Summed::new(
                stop,
                Box::new(flate2::read::MultiGzDecoder::new(whole)) as Box<dyn Read>,
            ),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                Summed::new(stop, Box::new(Zstd::new(whole)) as Box<dyn Read>)
            }
            _ => Summed::new(stop, Box::new(whole) as Box<dyn Read>),
        };
        let added = layers.add(&mut unpacked);
        stop.check()?;
        added?;
        let found = unpacked.sum();
        drop(unpacked);
        std::io::copy(&mut packed, &mut std::io::sink()).during(&reading)?;
        let other = |what: &str| self.no(format!("{} is not what {what} says", layer.name));
        if layer
            .packed
            .as_ref()
            .is_some_and(|sum| *sum != packed.sum())
        {
            return Err(other("its digest"));
        }
        if layer.unpacked != found {
            return Err(other("the image's configuration"));
        }
        Ok(())
    }

    /// What it runs: the entry point, then the command.
    pub fn words(&self) -> Vec<String> {
        let parts = [&self.run.entrypoint, &self.run.cmd];
        parts.into_iter().flatten().flatten().cloned().collect()
    }

    /// The ports its servers listen on: `80/tcp`.
    pub fn ports(&self) -> Vec<String> {
        let ports = self
            .run
            .exposed_ports
            .iter()
            .flatten()
            .map(|(port, _)| port);
        let with = |port: &String| match port.contains('/') {
            true => port.clone(),
            false => format!("{port}/tcp"),
        };
        let fits = |port: &String| {
            let (number, protocol) = port.split_once('/').unwrap_or_default();
            number.parse::<u16>().is_ok() && matches!(protocol, "tcp" | "udp" | "sctp")
        };
        ports.map(with).filter(fits).collect()
    }

    /// The script that runs it in `root`, for busybox's shell: in its folder, as its user, with its environment alone;
    /// and the lines `/etc/passwd` needs for that. `busybox` is the folder of busybox's programs.
    ///
    /// # Errors
    /// If the program or the user is not in the root.
    pub fn script(&self, root: &Tree, busybox: &str) -> Result<(String, Option<String>)> {
        let words = self.words();
        let Some((program, args)) = words.split_first() else {
            return Err(self.no("it names no command (neither entry point nor command)".into()));
        };
        let folder = self
            .run
            .working_dir
            .as_deref()
            .filter(|folder| !folder.is_empty());
        let folder = folder.unwrap_or("/");
        let user = self.user(root)?;
        let given = self.run.env.as_deref().unwrap_or_default();
        let value = |name: &str| {
            let found = given
                .iter()
                .rev()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.map(str::to_owned)
        };
        let path = value("PATH").unwrap_or_else(|| PATH.to_owned());
        let program = find(root, folder, &path, program).ok_or_else(|| {
            self.no(format!(
                "its command {} is not in it",
                program.escape_debug()
            ))
        })?;
        let mut env = vec![
            format!("PATH={path}"),
            format!("HOME={}", user.home),
            "HOSTNAME=tandem".to_owned(),
            "TERM=linux".to_owned(),
        ];
        env.extend(given.iter().filter(|line| line.contains('=')).cloned());
        let quoted = |words: &[String]| {
            words
                .iter()
                .map(|word| quote(word))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let run = match user.uid {
            0 => quoted(std::slice::from_ref(&program)),
            uid => format!(
                "{busybox}/start-stop-daemon -S -q -c {uid}:{} -x {} --",
                user.gid,
                quote(&program)
            ),
        };
        let folder = quote(folder);
        let script = format!(
            "#!/usr/lib/tandem/busybox sh\n\
             # What the container's image says it runs: in its folder, as its user, with its environment alone.\n\
             {busybox}/mkdir -p {folder} && cd {folder} || exit 127\n\
             exec {busybox}/env -i {} {run} {}\n",
            quoted(&env),
            quoted(args)
        );
        Ok((script, user.line))
    }

    /// Who runs it: `USER`, `UID`, each with a group or without.
    fn user(&self, root: &Tree) -> Result<User> {
        let asked = self.run.user.as_deref().unwrap_or_default();
        let (name, group) = match asked.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (asked, None),
        };
        let name = if name.is_empty() { "0" } else { name };
        let file = |path: &str| match root
            .resolve(path)
            .and_then(|path| root.get(&path))
            .map(|node| &node.kind)
        {
            Some(Kind::File(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        };
        let (users, groups) = (file("etc/passwd"), file("etc/group"));
        // name:password:number:...
        let line = |lines: &'_ str, name: &str| {
            let fields = lines
                .lines()
                .map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
            let mut fields = fields.filter(|fields| fields.len() >= 3);
            fields.find(|fields| fields[0] == name || fields[2] == name)
        };
        let known = line(&users, name);
        let number = |text: &str| text.parse::<u32>().ok();
        let no = |name: &str| self.no(format!("its user {} is not in it", name.escape_debug()));
        let uid = known.as_ref().map_or(name, |fields| &fields[2]);
        let uid = number(uid).ok_or_else(|| no(asked))?;
        let own = known.as_ref().and_then(|fields| number(fields.get(3)?));
        let gid = match group {
            Some(group) => {
                let known = line(&groups, group);
                let gid = known.as_ref().map_or(group, |fields| &fields[2]);
                number(gid).ok_or_else(|| no(asked))?
            }
            None => own.unwrap_or(0),
        };
        let home = known.as_ref().and_then(|fields| fields.get(5));
        let home = home.filter(|home| home.starts_with('/')).cloned();
        Ok(User {
            uid,
            gid,
            home: home.unwrap_or_else(|| "/".to_owned()),
            // busybox's start-stop-daemon takes users that have a line.
            line: known
                .is_none()
                .then(|| format!("u{uid}:x:{uid}:{gid}::/:/bin/false\n")),
        })
    }
}

/// Who runs a container.
struct User {
    uid: u32,
    gid: u32,
    home: String,
    /// The line of `/etc/passwd` they lack.
    line: Option<String>,
}

/// The path of the program a name stands for.
fn find(root: &Tree, folder: &str, path: &str, name: &str) -> Option<String> {
    let is = |path: &str| {
        let node = root.resolve(path).and_then(|path| root.get(&path));
        node.is_some_and(|node| matches!(node.kind, Kind::File(_)) && node.mode & 0o111 != 0)
    };
    let absolute = |path: String| match path.starts_with('/') {
        true => path,
        false => format!("/{path}"),
    };
    if name.contains('/') {
        let path = match name.starts_with('/') {
            true => name.to_owned(),
            false => absolute(format!("{folder}/{name}")),
        };
        return is(&path).then_some(path);
    }
    let paths = path
        .split(':')
        .map(|folder| absolute(format!("{folder}/{name}")));
    paths.into_iter().find(|path| is(path))
}

/// A word for a shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The name of the configuration, its digest if that is named, and the layers: name and digest.
type Found = (String, Option<String>, Vec<(String, Option<String>)>);

impl Store {
    // What fails is why, in words.
    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        parse(name, &self.json_bytes(name)?)
    }

    /// A file under its digest.
    fn blob<T: DeserializeOwned>(&self, of: &Descriptor) -> Result<T, String> {
        let sum = sha256_of(&of.digest)?;
        let name = blob_name(&sum);
        let bytes = self.json_bytes(&name)?;
        if bundle::sha256(&bytes) != sum {
            return Err(format!("{name} is not what its digest says"));
        }
        parse(&name, &bytes)
    }

    fn oci(&self, name: Option<&str>) -> Result<Found, String> {
        const NAME: &str = "org.opencontainers.image.ref.name";
        let mut index: Index = self.json("index.json")?;
        let mut choice = name;
        for _ in 0..INDEXES_MAX {
            let names = |of: &Descriptor| of.annotations.get(NAME).cloned();
            let fits = |of: &&Descriptor| {
                let named = choice.is_none_or(|name| {
                    names(of)
                        .is_some_and(|found| found == name || found.ends_with(&format!(":{name}")))
                });
                let platform = of.platform.as_ref();
                named
                    && platform.is_none_or(|p| {
                        (p.architecture.as_str(), p.os.as_str()) == ("amd64", "linux")
                    })
            };
            let found: Vec<_> = index.manifests.iter().filter(fits).cloned().collect();
            let all: Vec<_> = index.manifests.iter().filter_map(names).collect();
            let chosen = one(&found, &all, choice)?;
            choice = None;
            if chosen.media_type.ends_with("index.v1+json")
                || chosen.media_type.ends_with("manifest.list.v2+json")
            {
                index = self.blob(chosen)?;
                continue;
            }
            let manifest: OciManifest = self.blob(chosen)?;
            let config = sha256_of(&manifest.config.digest)?;
            let layers = manifest.layers.iter().map(|layer| {
                let sum = sha256_of(&layer.digest)?;
                Ok((blob_name(&sum), Some(sum)))
            });
            let layers = layers.collect::<Result<_, String>>()?;
            return Ok((blob_name(&config), Some(config), layers));
        }
        Err("its indexes name each other without end".into())
    }

    fn docker(&self, name: Option<&str>) -> Result<Found, String> {
        let images: Vec<DockerManifest> = self.json("manifest.json")?;
        let tags = |image: &DockerManifest| image.repo_tags.clone().unwrap_or_default();
        let fits = |image: &&DockerManifest| {
            name.is_none_or(|name| {
                tags(image)
                    .iter()
                    .any(|tag| tag == name || tag.ends_with(&format!(":{name}")))
            })
        };
        let found: Vec<_> = images.iter().filter(fits).collect();
        let all: Vec<_> = images.iter().flat_map(tags).collect();
        let image = one(&found, &all, name)?;
        let layers = image.layers.iter().map(|layer| (layer.clone(), None));
        Ok((image.config.clone(), None, layers.collect()))
    }
}

/// The only one; if it is not, why.
fn one<'a, T>(found: &'a [T], names: &[String], asked: Option<&str>) -> Result<&'a T, String> {
    let names: Vec<_> = names
        .iter()
        .map(|name| name.escape_debug().to_string())
        .collect();
    match (found, asked) {
        ([one], _) => Ok(one),
        ([], Some(asked)) => Err(format!(
            "it has no image '{asked}' for linux/amd64; there are: {}",
            names.join(", ")
        )),
        ([], None) => Err("it has no image for linux/amd64".into()),
        (more, _) => Err(format!(
            "it has {} images; PATH:NAME takes one: {}",
            more.len(),
            names.join(", ")
        )),
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|why| format!("{name} is not understood: {why}"))
}

/// The digest in hexadecimal: no other kind is common, and nothing else is a file's name.
fn sha256_of(digest: &str) -> Result<String, String> {
    let sum = digest.strip_prefix("sha256:");
    let sum = sum.filter(|sum| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()));
    let no = || format!("a digest is no SHA-256: {}", digest.escape_debug());
    Ok(sum.ok_or_else(no)?.to_ascii_lowercase())
}

fn blob_name(sum: &str) -> String {
    format!("blobs/sha256/{sum}")
}

/// Zstandard's frames, one after another, and what is to be skipped between them (RFC 8878, 3.1).
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> Zstd<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            decoder: FrameDecoder::new(),
            in_frame: false,
        }
    }

    /// Goes on to the next frame; false at the end.
    fn next_frame(&mut self) -> std::io::Result<bool> {
        let mut first = Vec::new();
        while self.source.by_ref().take(1).read_to_end(&mut first)? != 0 {
            let begun = self.decoder.init(first.as_slice().chain(&mut self.source));
            match begun {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = (&mut self.source).take(u64::from(length));
                    std::io::copy(&mut skipped, &mut std::io::sink())?;
                    first.clear();
                }
                Err(why) => return Err(std::io::Error::other(why)),
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                self.in_frame = self.next_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() < into.len() && !self.decoder.is_finished() {
                let more = BlockDecodingStrategy::UptoBytes(into.len());
                let decoded = self.decoder.decode_blocks(&mut self.source, more);
                decoded.map_err(std::io::Error::other)?;
            }
            match self.decoder.read(into)? {
                0 => self.in_frame = false,
                length => return Ok(length),
            }
        }
    }
}
