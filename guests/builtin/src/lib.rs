//! The guests of this build, and those that are files.
//!
//! ```text
//!  build.rs ─▶ guests/           ─▶ BUILT_IN ───────┐
//!          └─▶ guests/programs   ─▶ CPU             ├─▶ load ─▶ Image ─▶ what a machine boots, and reads
//!  files: ELF, Linux kernel and initrd, `bundle` ───┘                    again when it is reset
//! ```
//!
//! # Example
//!
//! ```
//! use vmm::machine::{BoardKind, MachineConfig};
//!
//! let image = guests::load("counter", None)?;
//! assert_eq!(image.bytes().board()?, BoardKind::Bare);
//!
//! // Two replicas agree on the image by its digest.
//! let config = MachineConfig::bare(&image.name, image.digest, "hz=1000 ticks=5");
//! assert_eq!(config.image_digest, image.bytes().digest());
//!
//! for (name, what, bytes) in guests::BUILT_IN {
//!     println!("{name}: {what} ({} bytes)", bytes.len());
//! }
//! assert!(guests::load("no-such-guest", None).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod arguments;
mod image;

pub use image::{Image, ImageError, Told, load};

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

/// The program of processor kernels: for Linux, static, without a C library. It runs in any root, and natively
/// the same bytes as in a guest.
pub const CPU: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cpu"));

/// The file [`CPU`] is from, on the machine this was built on. Tests run it: a program they wrote themselves could
/// not be started while another test's child has it open.
#[doc(hidden)]
pub const CPU_FILE: &str = concat!(env!("OUT_DIR"), "/cpu");
