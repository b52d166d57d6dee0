//! What a machine starts over from when its guest resets it.

use super::boot::GuestImage;
use crate::state::CpuState;
use std::borrow::Cow;

/// An image that was read again.
pub struct KeptImage {
    /// [`GuestImage::kernel`].
    pub kernel: Cow<'static, [u8]>,
    /// [`GuestImage::initrd`].
    pub initrd: Option<Vec<u8>>,
}

impl KeptImage {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> GuestImage<'_> {
        GuestImage {
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
        }
    }
}

/// Where a machine that starts over has its image from. It need not keep the bytes.
pub trait ImageSource {
    /// The image, as the machine began with. Not trusted: its digest is compared.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn read_again(&mut self) -> Result<KeptImage, String>;
}

/// What a machine needs to start over.
pub(super) struct Origin {
    pub(super) source: Box<dyn ImageSource>,
    /// The vCPU as it was switched on: all registers, also those [`super::boot::load`] leaves to the engine.
    pub(super) cpu: CpuState,
}
