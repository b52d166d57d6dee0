//! What was fetched and built before, so that it need not be again.
//!
//! ```text
//!  $XDG_CACHE_HOME/tandem (or ~/.cache/tandem)
//!    lock            held by who fetches or builds
//!    debs/SHA256     a package's file, under the SHA-256 the package lists have for it
//!    roots/INPUTS/   what was installed, under a digest of what and how: root, sums.json
//!    images/INPUTS/  what was built, under a digest of what it was built from:
//!                    image, disk (if there is one), sums.json (the SHA-256 of each)
//!    tmp-*           work; one left over is removed by the next to hold the lock
//! ```
//!
//! Nothing in it is trusted: a file is used only after its SHA-256 was found right. Files appear under
//! their names whole, by renaming. The folder may be removed at any time.

use crate::error::{During, Error, Result};
use crate::folder_of;
use crate::summed::Summed;
use crate::tools::Stop;
use bundle::hex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempDir};

/// Bytes read at a time; a piece of zeros becomes a hole.
const PIECE: usize = 64 << 10;
/// Most bytes of `sums.json`.
const SUMS_MAX: u64 = 1 << 20;
/// Their file.
const SUMS: &str = "sums.json";
/// What was built, and what was installed.
const IMAGES: &str = "images";
const ROOTS: &str = "roots";

/// The cache, held by this process alone.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    _lock: File,
}

/// Files built: the image, and the disk if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// SHA-256 of the image, in hexadecimal.
    pub image: String,
    /// The disk's.
    pub disk: Option<String>,
}

/// A root that was installed: a tar archive.
#[derive(Serialize, Deserialize)]
struct RootSum {
    /// SHA-256 of the archive, in hexadecimal.
    root: String,
}

/// Where it is.
///
/// # Errors
/// If there is no place for it.
pub fn folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let base = base.ok_or(Error::NoCache)?;
    Ok(base.join("tandem"))
}

impl Cache {
    /// Opens the user's cache, and waits for another process that holds it; `on_wait` is called if so.
    ///
    /// # Errors
    /// If there is no place for it, or the user asks to end while waiting.
    pub fn open(stop: &Stop, on_wait: impl FnOnce()) -> Result<Self> {
        Self::open_in(&folder()?, stop, on_wait)
    }

    /// As [`Cache::open`], in `folder`.
    ///
    /// # Errors
    /// As there.
    pub fn open_in(folder: &Path, stop: &Stop, on_wait: impl FnOnce()) -> Result<Self> {
        for folder in ["debs", ROOTS, IMAGES].map(|name| folder.join(name)) {
            fs::create_dir_all(&folder).during(format_args!(
                "cannot make the cache folder {}",
                folder.display()
            ))?;
        }
        // apt and mke2fs run elsewhere.
        let folder = folder.canonicalize().during("the cache folder is gone")?;
        let path = folder.join("lock");
        let lock = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .during(format_args!("cannot open {}", path.display()))?;
        if lock.try_lock().is_err() {
            on_wait();
            stop.while_waiting(|| lock.lock())
                .during(format_args!("cannot lock {}", path.display()))?;
        }
        stop.check()?;
        let cache = Self {
            folder,
            _lock: lock,
        };
        cache.remove_leftovers();
        Ok(cache)
    }

    /// Whoever left them is gone, since it held the lock.
    fn remove_leftovers(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("tmp-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// A folder for work, gone when the value is.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn work(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix("tmp-")
            .tempdir_in(&self.folder)
            .during(format_args!(
                "cannot make a folder in {}",
                self.folder.display()
            ))
    }

    /// The package file with this SHA-256, if it is there and whole. One that is not whole is removed.
    ///
    /// # Errors
    /// If the user asks to end.
    pub fn deb(&self, stop: &Stop, sha256: &str) -> Result<Option<PathBuf>> {
        let path = self.folder.join("debs").join(sha256);
        match file_sha256(stop, &path) {
            Ok(found) if found == sha256 => return Ok(Some(path)),
            Ok(_) => drop(fs::remove_file(&path)),
            Err(_) => {}
        }
        stop.check()?;
        Ok(None)
    }

    /// Takes a downloaded package file into the cache.
    ///
    /// # Errors
    /// If its SHA-256 is another than it should be, or it cannot be moved.
    pub fn keep_deb(&self, stop: &Stop, file: &Path, sha256: &str) -> Result {
        let name = file.file_name().unwrap_or_default().display();
        let found = file_sha256(stop, file)?;
        if found != sha256 {
            return Err(Error::OtherFile {
                file: name.to_string(),
                found,
                expected: sha256.to_owned(),
            });
        }
        let path = self.folder.join("debs").join(sha256);
        fs::rename(file, &path).during(format_args!("cannot write {}", path.display()))
    }

    /// Keeps what was built from inputs with this digest: the files `image` and, with a disk, `disk` in
    /// `work`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_built(&self, inputs: &str, work: &Path, sums: &Sums) -> Result {
        self.keep(IMAGES, inputs, work, sums)
    }

    /// Keeps an installation of these inputs: the file `root` in `work`, whose SHA-256 is `sum`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_root(&self, inputs: &str, work: &Path, sum: String) -> Result {
        self.keep(ROOTS, inputs, work, &RootSum { root: sum })
    }

    /// The installation of these inputs, as `read` makes it of its file; `None` if it is not there, or not whole.
    ///
    /// # Errors
    /// If the user asks to end.
    pub fn root<T>(
        &self,
        stop: &Stop,
        inputs: &str,
        read: impl FnOnce(&mut Summed<File>) -> Option<T>,
    ) -> Result<Option<T>> {
        let folder = self.folder.join(ROOTS).join(inputs);
        let (Some(RootSum { root }), Ok(file)) = (
            read_sums(&folder.join(SUMS)),
            File::open(folder.join("root")),
        ) else {
            return Ok(None);
        };
        let mut file = Summed::new(stop, file);
        let found = read(&mut file);
        let whole = std::io::copy(&mut file, &mut std::io::sink()).is_ok() && file.sum() == root;
        stop.check()?;
        Ok(found.filter(|_| whole))
    }

    /// Keeps the files in `work`, with their sums.
    fn keep(&self, kind: &str, inputs: &str, work: &Path, sums: &impl Serialize) -> Result {
        let sums = serde_json::to_vec(sums).map_err(|source| Error::Json {
            what: "sums",
            source,
        })?;
        fs::write(work.join(SUMS), sums).during("cannot write to the cache")?;
        let path = self.folder.join(kind).join(inputs);
        // What is there was found broken.
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => fs::rename(work, &path),
        }
        .during(format_args!("cannot write {}", path.display()))
    }

    /// Copies what was built from these inputs to where it is wanted. `None` if it is not there, or not
    /// whole.
    ///
    /// # Errors
    /// If it cannot be written there.
    pub fn copy_built(
        &self,
        stop: &Stop,
        inputs: &str,
        image: &Path,
        disk: Option<&Path>,
    ) -> Result<Option<Sums>> {
        let folder = self.folder.join(IMAGES).join(inputs);
        let Some(sums) = read_sums::<Sums>(&folder.join(SUMS)) else {
            return Ok(None);
        };
        if sums.disk.is_some() != disk.is_some() {
            return Ok(None);
        }
        let mut ready = vec![(image, "image", sums.image.clone())];
        if let (Some(disk), Some(sum)) = (disk, &sums.disk) {
            ready.push((disk, "disk", sum.clone()));
        }
        let mut copies = Vec::new();
        for (to, name, sum) in ready {
            let Ok(from) = File::open(folder.join(name)) else {
                return Ok(None);
            };
            let reading = format!("cannot read {name} in the cache");
            let (copy, found) = copy_beside(stop, from, &reading, to)?;
            if found != sum {
                return Ok(None);
            }
            copies.push((copy, to));
        }
        for (copy, to) in copies {
            copy.persist(to)
                .map_err(std::io::Error::from)
                .during(format_args!("cannot write {}", to.display()))?;
        }
        Ok(Some(sums))
    }
}

fn read_sums<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(SUMS_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// A file's SHA-256, in hexadecimal.
///
/// # Errors
/// If it cannot be read, or the user asks to end.
pub fn file_sha256(stop: &Stop, path: &Path) -> Result<String> {
    let reading = format!("cannot read {}", path.display());
    let mut file = File::open(path).during(&reading)?;
    pieces(stop, &mut file, &reading, |_| Ok(()))
}

/// A file beside `to`, which becomes that when it is whole.
///
/// # Errors
/// If it cannot be made.
pub fn file_beside(to: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".tandem-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder_of(to))
        .during(format_args!("cannot write {}", to.display()))
}

/// Copies a file to one beside `to`, with holes where zeros are, and gives the SHA-256 of what was copied.
fn copy_beside(
    stop: &Stop,
    mut from: File,
    reading: &str,
    to: &Path,
) -> Result<(NamedTempFile, String)> {
    let failed = format!("cannot write {}", to.display());
    let mut copy = file_beside(to)?;
    let mut len = 0u64;
    let sum = pieces(stop, &mut from, reading, |piece| {
        let file = copy.as_file_mut();
        len += piece.len() as u64;
        if piece.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Start(len)).during(&failed)?;
            return Ok(());
        }
        file.write_all(piece).during(&failed)
    })?;
    copy.as_file().set_len(len).during(&failed)?;
    Ok((copy, sum))
}

/// Gives a file to `each` in whole pieces (but for the last), and its SHA-256 back. `reading` is what a failure
/// to read begins with.
fn pieces(
    stop: &Stop,
    file: &mut File,
    reading: &str,
    mut each: impl FnMut(&[u8]) -> Result,
) -> Result<String> {
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        stop.check()?;
        let mut len = 0;
        while len < PIECE {
            match file.read(&mut piece[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).during(reading),
            }
        }
        if len == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&piece[..len]);
        each(&piece[..len])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::sha256;
    use std::os::unix::fs::MetadataExt;

    fn cache(folder: &TempDir) -> Cache {
        Cache::open_in(&folder.path().join("c"), &Stop::default(), || ()).unwrap()
    }

    #[test]
    fn a_broken_package_file_is_not_used_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, stop) = (cache(&folder), Stop::default());
        let sum = sha256(b"package");
        let download = folder.path().join("x.deb");
        fs::write(&download, b"other").unwrap();
        let refused = cache.keep_deb(&stop, &download, &sum).unwrap_err();
        assert!(refused.to_string().contains("x.deb is not what"));
        fs::write(&download, b"package").unwrap();
        cache.keep_deb(&stop, &download, &sum).unwrap();
        let path = cache.deb(&stop, &sum).unwrap().unwrap();
        fs::write(&path, b"packagf").unwrap();
        assert_eq!(cache.deb(&stop, &sum).unwrap(), None);
        assert!(!path.exists());
    }

    #[test]
    fn what_was_built_is_copied_only_if_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, stop) = (cache(&folder), Stop::default());
        let mut disk = vec![0u8; 3 * PIECE + 5];
        disk[PIECE] = 7;
        let sums = Sums {
            image: sha256(b"image"),
            disk: Some(sha256(&disk)),
        };
        let work = cache.work().unwrap();
        fs::write(work.path().join("image"), b"image").unwrap();
        fs::write(work.path().join("disk"), &disk).unwrap();
        cache.keep_built("key", &work.keep(), &sums).unwrap();
        let (to, to_disk) = (folder.path().join("o.img"), folder.path().join("o.ext4"));
        let copy = |disk| cache.copy_built(&stop, "key", &to, disk).unwrap();
        assert_eq!(copy(None), None, "without a disk it is another thing");
        assert_eq!(copy(Some(to_disk.as_path())), Some(sums));
        assert_eq!(fs::read(&to_disk).unwrap(), disk);
        let meta = fs::metadata(&to_disk).unwrap();
        assert!(meta.blocks() * 512 < meta.len(), "zeros are holes");
        fs::remove_file(&to).unwrap();
        fs::write(cache.folder.join("images/key/disk"), b"broken").unwrap();
        assert_eq!(copy(Some(to_disk.as_path())), None);
        assert!(!to.exists(), "nothing is written by halves");
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(
            left, 2,
            "the cache and the first disk: no copy begun is left"
        );
    }

    #[test]
    fn an_installation_is_taken_only_if_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, stop) = (cache(&folder), Stop::default());
        let work = cache.work().unwrap();
        fs::write(work.path().join("root"), b"files, and padding").unwrap();
        let sum = sha256(b"files, and padding");
        cache.keep_root("key", &work.keep(), sum).unwrap();
        // Only a part of it is read.
        let read = |file: &mut Summed<File>| {
            let mut files = [0; 5];
            file.read_exact(&mut files).ok().map(|()| files)
        };
        assert_eq!(cache.root(&stop, "key", read).unwrap(), Some(*b"files"));
        assert_eq!(cache.root(&stop, "other", read).unwrap(), None);
        fs::write(cache.folder.join("roots/key/root"), b"files, and paddinh").unwrap();
        assert_eq!(cache.root(&stop, "key", read).unwrap(), None);
    }

    #[test]
    fn one_holds_it_and_the_next_removes_what_is_left_over() {
        let folder = tempfile::tempdir().unwrap();
        let first = cache(&folder);
        let left = first.work().unwrap().keep();
        let path = folder.path().join("c");
        let (waits, waiting) = std::sync::mpsc::channel();
        let second = std::thread::spawn(move || {
            Cache::open_in(&path, &Stop::default(), || waits.send(()).unwrap()).map(|_| ())
        });
        waiting.recv().unwrap();
        assert!(left.exists());
        drop(first);
        second.join().unwrap().unwrap();
        assert!(!left.exists());
    }
}
