//! What is read of ELF files: what a kernel module says of itself.

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};

type Header = FileHeader64<Endianness>;

/// The modules a kernel module says it depends on (`depends=` in its section `.modinfo`); `None` if the
/// file is no kernel module.
pub fn module_depends(bytes: &[u8]) -> Option<Vec<String>> {
    let header = Header::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, bytes).ok()?;
    let (_, section) = sections.section_by_name(endian, b".modinfo")?;
    let info = section.data(endian, bytes).ok()?;
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|line| line.strip_prefix(b"depends="))
        .unwrap_or_default();
    let depends = std::str::from_utf8(depends).ok()?;
    let names = depends.split(',').filter(|name| !name.is_empty());
    Some(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_depends_on_nothing_that_is_known() {
        // The test program itself is an ELF file that is certainly there.
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for len in [0, 4, 63, 64, 200, bytes.len()] {
            assert_eq!(module_depends(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(module_depends(b"#!/bin/sh"), None);
    }
}
