//! Guest images: built into the program, or from a file.

use crate::failure::{During, Failure, Outcome};
use std::borrow::Cow;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Most bytes of an image file.
const IMAGE_MAX: u64 = 256 << 20;

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
    /// The ELF file.
    pub bytes: Cow<'static, [u8]>,
    /// xxh3-64 of it.
    pub digest: u64,
}

/// The image called `name`: a built-in guest, or else a path.
pub fn load(name: &str) -> Outcome<Image> {
    let built_in = BUILT_IN.iter().find(|(known, ..)| *known == name);
    let bytes = match built_in {
        Some((.., bytes)) => Cow::Borrowed(*bytes),
        None => Cow::Owned(read(name)?),
    };
    let digest = xxh3_64(&bytes);
    Ok(Image {
        name: name.to_owned(),
        bytes,
        digest,
    })
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
            "{name} is no guest image (an ELF64 file is needed)"
        )));
    }
    std::fs::read(path).during(format_args!("cannot read the guest's image {name}"))
}
