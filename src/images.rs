//! Guest images: built into the program, or from a file.

use crate::failure::{During, Failure, Outcome};
use crate::image::bundle::{Bundle, Manifest};
use std::borrow::Cow;
use std::path::Path;
use vmm::machine::GuestImage;

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
}

impl Image {
    /// Its bytes.
    pub fn bytes(&self) -> GuestImage<'_> {
        GuestImage {
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
        }
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

/// The image called `name`: a built-in guest, or else a path; with the initrd at `initrd`.
pub fn load(name: &str, initrd: Option<&str>) -> Outcome<Image> {
    let built_in = BUILT_IN.iter().find(|(known, ..)| *known == name);
    let kernel = match built_in {
        Some((.., bytes)) => Cow::Borrowed(*bytes),
        None => Cow::Owned(read(name)?),
    };
    let mut image = Image {
        name: name.to_owned(),
        kernel,
        initrd: None,
        manifest: None,
        digest: 0,
    };
    if Bundle::is_one(&image.kernel) {
        image.unpack()?;
    }
    if let Some(initrd) = initrd {
        image.initrd = Some(read_initrd(initrd)?);
    }
    image.digest = image.bytes().digest();
    Ok(image)
}

fn read_initrd(name: &str) -> Outcome<Vec<u8>> {
    let during = format!("cannot read the initrd {name}");
    let meta = std::fs::metadata(name).during(&during)?;
    if !meta.is_file() || meta.len() > INITRD_MAX {
        return Err(Failure::new(format!(
            "{name} is no initrd (a file of at most {} MiB is needed)",
            INITRD_MAX >> 20
        )));
    }
    std::fs::read(name).during(&during)
}

fn read(name: &str) -> Outcome<Vec<u8>> {
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
    std::fs::read(path).during(format_args!("cannot read the guest's image {name}"))
}
