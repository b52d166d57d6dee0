//! Files by name, in a folder or in a tar archive that is read where it lies.

use crate::bounded::Bounded;
use crate::deb::{HEADERS_MAX, PATH_MAX, PackageError};
use crate::error::{During, Error, Result};
use crate::tree::clean;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tar::EntryType;

/// Most bytes of a file that is read whole.
const JSON_MAX: u64 = 4 << 20;
/// Most files of an archive: a few for each layer.
const FILES_MAX: usize = 100_000;

/// Where the files are.
#[derive(Debug)]
pub enum Store {
    /// In this folder.
    Folder(PathBuf),
    /// In this archive.
    Archive {
        /// The archive.
        path: PathBuf,
        /// The place and size of each file's bytes in it.
        files: BTreeMap<String, (u64, u64)>,
    },
}

impl Store {
    /// Opens a folder or an archive.
    ///
    /// # Errors
    /// If it is neither.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let words = path.display().to_string();
        let no = |why: &str| Error::Container {
            path: words.clone(),
            why: why.to_owned(),
        };
        let reading = format!("cannot read {words}");
        let mut file = File::open(path).during(&reading)?;
        let mut begin = Vec::new();
        (&mut file)
            .take(2)
            .read_to_end(&mut begin)
            .during(&reading)?;
        if begin == [0x1f, 0x8b] {
            return Err(no("it is compressed as a whole; gzip -d unpacks it"));
        }
        file.rewind().during(&reading)?;
        let not_one = |why: std::io::Error| match why.get_ref() {
            Some(over) if over.is::<PackageError>() => no(&why.to_string()),
            _ => no("it is no folder and no tar archive"),
        };
        // The files' own bytes are passed over, not read.
        let left = Cell::new(HEADERS_MAX);
        let mut archive = tar::Archive::new(Bounded::new(&file, &left, || PackageError::Headers));
        let (mut files, mut links) = (BTreeMap::new(), Vec::new());
        for entry in archive.entries_with_seek().map_err(not_one)? {
            let entry = entry.map_err(not_one)?;
            left.set(HEADERS_MAX);
            let Some(name) = plain(&entry.path_bytes()) else {
                continue;
            };
            if files.len() + links.len() > FILES_MAX {
                return Err(no("it has more files than images have"));
            }
            match entry.header().entry_type() {
                EntryType::Regular => {
                    files.insert(name, (entry.raw_file_position(), entry.size()));
                }
                // docker save names a layer that two images share twice.
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    links.push((name, target, entry.header().entry_type()));
                }
                _ => {}
            }
        }
        for (name, target, kind) in links {
            let target = String::from_utf8_lossy(&target);
            let target = match (kind, name.rsplit_once('/')) {
                (EntryType::Symlink, Some((folder, _))) => format!("{folder}/{target}"),
                _ => target.into_owned(),
            };
            let there = plain(target.as_bytes()).and_then(|target| files.get(&target).copied());
            if let Some(there) = there {
                files.insert(name, there);
            }
        }
        if files.is_empty() {
            return Err(no("it is no folder and no tar archive"));
        }
        Ok(Self::Archive {
            path: path.to_owned(),
            files,
        })
    }

    /// Whether there is such a file.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Archive { files, .. } => files.contains_key(name),
        }
    }

    /// A file of few bytes; if it cannot be read, why.
    ///
    /// # Errors
    /// As said.
    pub fn json_bytes(&self, name: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let reader = self.reader(name)?;
        let read = reader.take(JSON_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|why| format!("{}: {why}", name.escape_debug()))?;
        match bytes.len() as u64 > JSON_MAX {
            true => Err(format!(
                "{} is larger than {JSON_MAX} bytes",
                name.escape_debug()
            )),
            false => Ok(bytes),
        }
    }

    /// A file's bytes; if it is not there, why.
    ///
    /// # Errors
    /// As said.
    pub fn reader(&self, name: &str) -> Result<Box<dyn Read>, String> {
        let lacks = || format!("it has no {}", name.escape_debug());
        let failed = |why: std::io::Error| format!("{}: {why}", name.escape_debug());
        let name = plain(name.as_bytes()).ok_or_else(lacks)?;
        match self {
            Self::Folder(folder) => {
                let file = File::open(folder.join(&name)).map_err(|why| match why.kind() {
                    std::io::ErrorKind::NotFound => lacks(),
                    _ => failed(why),
                })?;
                Ok(Box::new(file))
            }
            Self::Archive { path, files } => {
                let (at, size) = *files.get(&name).ok_or_else(lacks)?;
                let mut file = File::open(path).map_err(failed)?;
                file.seek(SeekFrom::Start(at)).map_err(failed)?;
                Ok(Box::new(file.take(size)))
            }
        }
    }
}

/// A name below the folder or archive, and nowhere else.
fn plain(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name)
        .ok()
        .filter(|name| name.len() <= PATH_MAX && !name.starts_with('/'))?;
    clean(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archives_headers_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let opened = |name: usize| {
            let path = folder.path().join("archive");
            let mut builder = tar::Builder::new(File::create(&path).unwrap());
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            // Its own bytes are no header's.
            let large = vec![1; HEADERS_MAX as usize];
            header.set_size(large.len() as u64);
            let first = builder.append_data(&mut header, "first", large.as_slice());
            first.unwrap();
            header.set_size(0);
            let long = "n".repeat(name);
            // Twice: one member's headers are not another's.
            for _ in 0..2 {
                builder.append_data(&mut header, &long, &[][..]).unwrap();
            }
            builder.into_inner().unwrap();
            Store::open(&path)
        };
        let (most, over) = (opened(PATH_MAX).unwrap(), opened(PATH_MAX + 1).unwrap());
        assert!(most.has(&"n".repeat(PATH_MAX)) && most.has("first"));
        assert!(over.has("first") && !over.has(&"n".repeat(PATH_MAX + 1)));
        assert!(opened(HEADERS_MAX as usize * 2 / 3).unwrap().has("first"));
        let refused = opened(HEADERS_MAX as usize).unwrap_err().to_string();
        assert!(refused.contains("bytes of headers"), "{refused}");
    }
}
