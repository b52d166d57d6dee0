//! Who made the host's processor. Included by the tests that compare with it.

/// Who makes a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// AMD, and Hygon, whose processors are AMD's.
    Amd,
    /// Intel.
    Intel,
}

impl Maker {
    /// The host's; `None` if nobody it is known of what they do.
    pub fn of_host() -> Option<Self> {
        let leaf = std::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx]
            .map(u32::to_le_bytes)
            .concat();
        match name.as_slice() {
            b"AuthenticAMD" | b"HygonGenuine" => Some(Self::Amd),
            b"GenuineIntel" => Some(Self::Intel),
            _ => None,
        }
    }

    /// The host's; without one the test that calls this is skipped.
    pub fn of_host_or_skip() -> Option<Self> {
        let maker = Self::of_host();
        if maker.is_none() {
            testing::skipped::skip_this(
                &"what this maker's processors do is not known: neither AMD's nor Intel's",
            );
        }
        maker
    }
}
