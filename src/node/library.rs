//! The images of this host, for replicas: those built in, and its files.

use guests::Told;
use replica::machine::{Image, Images};
use vmm::machine::{GuestImage, ImageSource};

/// Finds images by name or path.
pub struct Library;

impl Images for Library {
    fn load(&self, name: &str, initrd: Option<&str>) -> Result<Box<dyn Image>, String> {
        let image = guests::load(name, initrd).map_err(|error| error.to_string())?;
        Ok(Box::new(Loaded(image)))
    }
}

/// An image that was read.
pub struct Loaded(pub guests::Image);

impl Image for Loaded {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn bytes(&self) -> GuestImage<'_> {
        self.0.bytes()
    }

    fn digest(&self) -> u64 {
        self.0.digest
    }

    fn into_source(self: Box<Self>, tells: bool) -> Box<dyn ImageSource> {
        let told = tells.then(|| -> Told { Box::new(|line| crate::complain!("tandem: {line}")) });
        self.0.into_source(told)
    }
}
