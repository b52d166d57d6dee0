//! Guest images: built into the program, or from a file.

use crate::failure::{During, Failure, Outcome};
use crate::image::bundle::{Bundle, Manifest};
use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vmm::machine::{GuestImage, ImageSource, KeptImage};

/// Most bytes of an image file.
const IMAGE_MAX: u64 = 1 << 30;
/// Most bytes of an initrd: beyond it no guest has room for it.
const INITRD_MAX: u64 = 3 << 30;

macro_rules! built_in {
    ($($name:literal: $what:literal),* $(,)?) => {
        /// The guests built in: name, what it does, image.
        pub const BUILT_IN: &[(&str, &str, &[u8])] = &[
            $(($name, $what, include_bytes!(concat!(env!("OUT_DIR"), "/", $name)))),*
        ];
    };
}

built_in! {
    "counter": "computes without exits under a timer tick",
    "clock": "reads the time-stamp counter and the RTC",
    "echo": "echoes frames and TCP",
    "disk": "reads and writes its disk while computing on the same buffers",
    "reset": "resets its machine, keeping count on its disk",
    "kv": "a key-value server that speaks Redis's protocol",
}

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

    /// Drops the bytes; what is left can read them again, and says so each time if it `tells`.
    #[must_use]
    pub fn into_source(self, tells: bool) -> Box<dyn ImageSource> {
        let kernel = match (self.files.kernel, self.kernel) {
            (Some(file), _) => Kept::File(file),
            (None, Cow::Borrowed(bytes)) => Kept::BuiltIn(bytes),
            (None, Cow::Owned(_)) => unreachable!("bytes that are no file's are built in"),
        };
        Box::new(Source {
            name: self.name,
            kernel,
            initrd: self.files.initrd,
            tells,
            resets: 0,
        })
    }

    /// Finds kernel and initrd in what was read; `initrd`, if there is one, is taken before that of a
    /// bundle.
    fn take_apart(&mut self, initrd: Option<Vec<u8>>) -> Outcome {
        if Bundle::is_one(&self.kernel) {
            self.unpack()?;
        }
        if initrd.is_some() {
            self.initrd = initrd;
        }
        Ok(())
    }

    /// Takes kernel and initrd out of what `tandem image` made.
    fn unpack(&mut self) -> Outcome {
        let bundle = Bundle::parse(&self.kernel)
            .map_err(|e| Failure::new(format!("{} cannot be used: {e}", self.name)))?;
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

/// An image without its bytes.
struct Source {
    name: String,
    kernel: Kept,
    initrd: Option<File>,
    /// Whether resets are told of.
    tells: bool,
    /// Times it was read again.
    resets: u64,
}

impl ImageSource for Source {
    fn read_again(&mut self) -> Result<KeptImage, String> {
        self.resets += 1;
        // A guest that does nothing else fills no disk with it.
        if self.tells && (self.resets <= 8 || self.resets.is_power_of_two()) {
            let Self { name, resets, .. } = self;
            crate::complain!(
                "tandem: the guest '{name}' was reset and starts over (reset {resets})"
            );
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
pub fn load(name: &str, initrd: Option<&str>) -> Outcome<Image> {
    let built_in = BUILT_IN.iter().find(|(known, ..)| *known == name);
    let mut files = Files::default();
    let kernel = match built_in {
        Some((.., bytes)) => Cow::Borrowed(*bytes),
        None => {
            let during = format!("cannot read the guest's image {name}");
            let bytes = bytes_of(files.kernel.insert(open(name)?), IMAGE_MAX);
            Cow::Owned(bytes.during(during)?)
        }
    };
    let bytes = match initrd {
        None => None,
        Some(path) => {
            let bytes = bytes_of(files.initrd.insert(open_initrd(path)?), INITRD_MAX);
            Some(bytes.during(format_args!("cannot read the initrd {path}"))?)
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

fn open_initrd(name: &str) -> Outcome<File> {
    let during = format!("cannot read the initrd {name}");
    // Asked by name first: opening a pipe would wait for its other end.
    let meta = std::fs::metadata(name).during(&during)?;
    if !meta.is_file() || meta.len() > INITRD_MAX {
        return Err(Failure::new(format!(
            "{name} is no initrd (a file of at most {} MiB is needed)",
            INITRD_MAX >> 20
        )));
    }
    File::open(name).during(&during)
}

fn open(name: &str) -> Outcome<File> {
    let path = Path::new(name);
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let names: Vec<_> = BUILT_IN.iter().map(|(name, ..)| *name).collect();
            return Err(Failure::new(format!(
                "no guest '{name}': it is neither a file nor one of {}",
                names.join(", ")
            )));
        }
        Err(e) => {
            return Err(Failure::new(format!(
                "cannot read the guest's image {name}: {e}"
            )));
        }
    };
    if !meta.is_file() || meta.len() > IMAGE_MAX {
        return Err(Failure::new(format!(
            "{name} is no guest image (an ELF64 file, a Linux bzImage, or what `tandem image` makes is needed)"
        )));
    }
    File::open(path).during(format_args!("cannot read the guest's image {name}"))
}
