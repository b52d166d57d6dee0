//! The processor of a host, as far as two hosts are told apart by it.
//!
//! On KVM a guest's instructions are carried out by the host's own processor. What the architecture
//! leaves open then follows that processor's maker, and now and then its family.

use serde::{Deserialize, Serialize};
use std::arch::x86_64::__cpuid;

/// Who made a processor, and which one it is: what CPUID leaves 0 and 1 say (SDM volume 2A, CPUID; AMD APM
/// volume 3, appendix E).
///
/// A hypervisor under this host may mask model and stepping, and a cloud does; maker and family it leaves,
/// since the operating system chooses its code by them.
///
/// Every value is a sound one: it may come from a peer or a file, and has a fixed size there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostProcessor {
    /// The vendor identification of leaf 0: EBX, EDX, ECX. ASCII in an honest one.
    pub maker: [u8; 12],
    /// Base and extended family, added where the base is 15.
    pub family: u16,
    /// Model, with the extended one in its high half where the family has one.
    pub model: u8,
    /// Stepping, 0 to 15.
    pub stepping: u8,
}

impl HostProcessor {
    /// That of the host this runs on.
    #[must_use]
    pub fn of_this_host() -> Self {
        let leaf = __cpuid(0);
        Self::decode([leaf.ebx, leaf.edx, leaf.ecx], __cpuid(1).eax)
    }

    /// From EBX, EDX and ECX of leaf 0, and EAX of leaf 1.
    fn decode(maker: [u32; 3], signature: u32) -> Self {
        let mut bytes = [0; 12];
        for (place, word) in bytes.chunks_exact_mut(4).zip(maker) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let nibble = |bit: u32| (signature >> bit & 0xf) as u8;
        let base = nibble(8);
        let extended = (signature >> 20 & 0xff) as u16;
        // AMD has the extended model from base family 15 on, Intel in family 6 too; AMD's family 6 has
        // zeros there.
        let high = match base {
            6 | 15 => nibble(16),
            _ => 0,
        };
        Self {
            maker: bytes,
            family: u16::from(base) + if base == 15 { extended } else { 0 },
            model: high << 4 | nibble(4),
            stepping: nibble(0),
        }
    }

    /// The maker's identification as text. What is not printable ASCII, which an honest processor has none
    /// of, stands as `?`.
    #[must_use]
    pub fn maker_text(&self) -> String {
        let plain = |&byte: &u8| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '?',
        };
        // Some makers pad theirs with blanks.
        let text: String = self.maker.iter().map(plain).collect();
        text.trim().to_owned()
    }
}

/// As MAKER:FAMILY:MODEL:STEPPING, numbers decimal.
impl std::str::FromStr for HostProcessor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.split(':');
            let processor = Self {
                maker: parts.next()?.as_bytes().try_into().ok()?,
                family: parts.next()?.parse().ok()?,
                model: parts.next()?.parse().ok()?,
                stepping: parts.next()?.parse().ok()?,
            };
            parts.next().is_none().then_some(processor)
        };
        parse().ok_or_else(|| "it takes MAKER:FAMILY:MODEL:STEPPING, as AuthenticAMD:25:1:1".into())
    }
}

impl std::fmt::Display for HostProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            family,
            model,
            stepping,
            ..
        } = self;
        let maker = self.maker_text();
        write!(
            f,
            "{maker} family {family} model {model} stepping {stepping}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(maker: &[u8; 12], signature: u32) -> String {
        let words = [0, 4, 8].map(|at| u32::from_le_bytes(maker[at..at + 4].try_into().unwrap()));
        HostProcessor::decode(words, signature).to_string()
    }

    #[test]
    fn signatures_are_read_as_their_makers_say() {
        // Rocket Lake, Zen 3 (Milan), a Pentium 4, a 486, AMD's K6 and an Athlon.
        for (maker, signature, says) in [
            (
                b"GenuineIntel",
                0xa0671,
                "GenuineIntel family 6 model 167 stepping 1",
            ),
            (
                b"AuthenticAMD",
                0xa0_0f11,
                "AuthenticAMD family 25 model 1 stepping 1",
            ),
            (
                b"GenuineIntel",
                0xf29,
                "GenuineIntel family 15 model 2 stepping 9",
            ),
            (
                b"GenuineIntel",
                0xf_048a,
                "GenuineIntel family 4 model 8 stepping 10",
            ),
            (
                b"AuthenticAMD",
                0x58c,
                "AuthenticAMD family 5 model 8 stepping 12",
            ),
            (
                b"AuthenticAMD",
                0x6a0,
                "AuthenticAMD family 6 model 10 stepping 0",
            ),
            (
                b"  Shanghai  ",
                0x7_06b0,
                "Shanghai family 6 model 123 stepping 0",
            ),
        ] {
            assert_eq!(decode(maker, signature), says);
        }
        let most = HostProcessor::decode([0; 3], u32::MAX);
        assert_eq!((most.family, most.model, most.stepping), (270, 255, 15));
    }

    #[test]
    fn a_makers_name_writes_nothing_but_text_to_a_terminal() {
        let forged = HostProcessor {
            maker: *b"\x1b[31m\n\r\0\xff\x7fab",
            ..HostProcessor::of_this_host()
        };
        assert_eq!(forged.maker_text(), "?[31m?????ab");
    }

    #[test]
    fn this_hosts_processor_is_as_its_kernel_says() {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name));
            line.unwrap().1.trim().to_owned()
        };
        let here = HostProcessor::of_this_host();
        assert_eq!(here.maker_text(), field("vendor_id"));
        let numbers = [u16::from(here.model), u16::from(here.stepping), here.family];
        let named: [u16; 3] =
            ["model", "stepping", "cpu family"].map(|name| field(name).parse().unwrap());
        assert_eq!(numbers, named);
    }
}
