//! Guest images: built into the program, or from a file.

use crate::BUILT_IN;
use bundle::{Bundle, BundleError, Manifest};
use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use thiserror::Error;
use vmm::machine::{GuestImage, ImageSource, KeptImage};

/// Most bytes of an image file.
const IMAGE_MAX: u64 = 1 << 30;
/// Most bytes of an initrd: beyond it no guest has room for it.
const INITRD_MAX: u64 = 3 << 30;

/// Why there is no such guest.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A file cannot be read.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What it is, and its name.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// No guest and no file has the name.
    #[error("no guest '{name}': it is neither a file nor one of {known}")]
    Unknown {
        /// The name.
        name: String,
        /// The guests there are.
        known: String,
    },
    /// It is no file, or too large a one.
    #[error(
        "{0} is no guest image (an ELF64 file, a Linux bzImage, or what `tandem image` makes is needed)"
    )]
    NoImage(String),
    /// The initrd is no file, or too large a one.
    #[error("{0} is no initrd (a file of at most {most} MiB is needed)", most = INITRD_MAX >> 20)]
    NoInitrd(String),
    /// It begins as what `tandem image` makes does, and is broken.
    #[error("{name} cannot be used: {source}")]
    Bundle {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: BundleError,
    },
}

/// Told, in words for people, that a guest starts over.
pub type Told = Box<dyn FnMut(&str) + Send>;

/// A guest's image.
pub struct Image {
    /// The name it was asked for by.
    pub name: String,
    /// The ELF file, or the Linux kernel.
    kernel: Cow<'static, [u8]>,
    /// A Linux kernel's initial file system.
    initrd: Option<Vec<u8>>,
    /// What `tandem image` wrote about it, if that made it.
    pub manifest: Option<Manifest>,
    /// [`GuestImage::digest`].
    pub digest: u64,
    /// Where all this came from.
    files: Files,
}

/// The open files of an image: what is read again is what was read, whatever has their names meanwhile.
#[derive(Default)]
struct Files {
    /// None for a built-in guest.
    kernel: Option<File>,
    initrd: Option<File>,
}

impl Image {
    /// Its bytes.
    pub fn bytes(&self) -> GuestImage<'_> {
        GuestImage {
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
        }
    }

    /// Drops the bytes; what is left can read them again. `told`, if there is one, hears of each time, and of fewer
    /// when there are many.
    #[must_use]
    pub fn into_source(self, told: Option<Told>) -> Box<dyn ImageSource> {
        let kernel = match (self.files.kernel, self.kernel) {
            (Some(file), _) => Kept::File(file),
            (None, Cow::Borrowed(bytes)) => Kept::BuiltIn(bytes),
            (None, Cow::Owned(_)) => unreachable!("bytes that are no file's are built in"),
        };
        Box::new(StoredImage {
            name: self.name,
            kernel,
            initrd: self.files.initrd,
            told,
            resets: 0,
        })
    }

    /// Finds kernel and initrd in what was read; `initrd`, if there is one, is taken before that of a
    /// bundle.
    fn take_apart(&mut self, initrd: Option<Vec<u8>>) -> Result<(), ImageError> {
        if Bundle::is_one(&self.kernel) {
            self.unpack()?;
        }
        if initrd.is_some() {
            self.initrd = initrd;
        }
        Ok(())
    }

    /// Takes kernel and initrd out of what `tandem image` made.
    fn unpack(&mut self) -> Result<(), ImageError> {
        let bundle = Bundle::parse(&self.kernel).map_err(|source| ImageError::Bundle {
            name: self.name.clone(),
            source,
        })?;
        let kernel = bundle.kernel.to_vec();
        self.initrd = Some(bundle.initrd.to_vec());
        self.manifest = Some(bundle.manifest);
        self.kernel = Cow::Owned(kernel);
        Ok(())
    }
}

/// A kernel's bytes, or where they are.
enum Kept {
    BuiltIn(&'static [u8]),
    File(File),
}

/// Where the bytes of an image are, to be read again at a reset.
struct StoredImage {
    name: String,
    kernel: Kept,
    initrd: Option<File>,
    /// Hears of resets.
    told: Option<Told>,
    /// Times it was read again.
    resets: u64,
}

impl ImageSource for StoredImage {
    fn read_again(&mut self) -> Result<KeptImage, String> {
        self.resets += 1;
        let Self { name, resets, .. } = &*self;
        // A guest that does nothing else fills no disk with it.
        if *resets <= 8 || resets.is_power_of_two() {
            let line = format!("the guest '{name}' was reset and starts over (reset {resets})");
            if let Some(told) = &mut self.told {
                told(&line);
            }
        }
        let kernel = match &self.kernel {
            Kept::BuiltIn(bytes) => Cow::Borrowed(*bytes),
            Kept::File(file) => Cow::Owned(bytes_of(file, IMAGE_MAX).map_err(|e| e.to_string())?),
        };
        let initrd = self.initrd.as_ref();
        let initrd = initrd.map(|file| bytes_of(file, INITRD_MAX)).transpose();
        let mut image = Image {
            name: self.name.clone(),
            kernel,
            initrd: None,
            manifest: None,
            digest: 0,
            files: Files::default(),
        };
        image
            .take_apart(initrd.map_err(|e| e.to_string())?)
            .map_err(|e| e.to_string())?;
        Ok(KeptImage {
            kernel: image.kernel,
            initrd: image.initrd,
        })
    }
}

/// The image called `name`: a built-in guest, or else a path; with the initrd at `initrd`.
///
/// # Errors
/// [`ImageError`]: no such guest, or one that cannot be read or is broken.
pub fn load(name: &str, initrd: Option<&str>) -> Result<Image, ImageError> {
    let built_in = BUILT_IN.iter().find(|(known, ..)| *known == name);
    let mut files = Files::default();
    let kernel = match built_in {
        Some((.., bytes)) => Cow::Borrowed(*bytes),
        None => {
            let bytes = bytes_of(files.kernel.insert(open(name)?), IMAGE_MAX);
            Cow::Owned(bytes.map_err(|e| unread("the guest's image", name, e))?)
        }
    };
    let bytes = match initrd {
        None => None,
        Some(path) => {
            let bytes = bytes_of(files.initrd.insert(open_initrd(path)?), INITRD_MAX);
            Some(bytes.map_err(|e| unread("the initrd", path, e))?)
        }
    };
    let mut image = Image {
        name: name.to_owned(),
        kernel,
        initrd: None,
        manifest: None,
        digest: 0,
        files,
    };
    image.take_apart(bytes)?;
    image.digest = image.bytes().digest();
    Ok(image)
}

/// All bytes of `file`, wherever it stands.
fn bytes_of(file: &File, most: u64) -> std::io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let length = usize::try_from(length).ok().filter(|_| length <= most);
    let mut bytes = vec![0; length.ok_or(std::io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn unread(what: &str, name: &str, source: std::io::Error) -> ImageError {
    ImageError::Read {
        what: format!("{what} {name}"),
        source,
    }
}

fn open_initrd(name: &str) -> Result<File, ImageError> {
    let failed = |e| unread("the initrd", name, e);
    // Asked by name first: opening a pipe would wait for its other end.
    let meta = std::fs::metadata(name).map_err(failed)?;
    if !meta.is_file() || meta.len() > INITRD_MAX {
        return Err(ImageError::NoInitrd(name.to_owned()));
    }
    File::open(name).map_err(failed)
}

fn open(name: &str) -> Result<File, ImageError> {
    let failed = |e| unread("the guest's image", name, e);
    let path = Path::new(name);
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let names: Vec<_> = BUILT_IN.iter().map(|(name, ..)| *name).collect();
            return Err(ImageError::Unknown {
                name: name.to_owned(),
                known: names.join(", "),
            });
        }
        Err(e) => return Err(failed(e)),
    };
    if !meta.is_file() || meta.len() > IMAGE_MAX {
        return Err(ImageError::NoImage(name.to_owned()));
    }
    File::open(path).map_err(failed)
}
