//! What is read of ELF files: the libraries a program asks for, and what a kernel module says of itself.

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _};
use object::{Endianness, StringTable};

/// What a program or library asks for when it is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The program that loads it (PT_INTERP), a path.
    pub loader: Option<String>,
    /// Names of shared libraries (DT_NEEDED).
    pub libraries: Vec<String>,
}

type Header = FileHeader64<Endianness>;

/// Whether a file is an ELF file.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(&elf::ELFMAG)
}

/// What a 64-bit ELF file asks for; `None` if it is none, or a broken one.
pub fn needs(bytes: &[u8]) -> Option<Needs> {
    let header = Header::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, bytes).ok()?;
    let mut needs = Needs::default();
    let mut dynamic = None;
    for segment in segments {
        if let Some(path) = segment.interpreter(endian, bytes).ok()? {
            needs.loader = Some(String::from_utf8(path.to_vec()).ok()?);
        }
        if let Some(entries) = segment.dynamic(endian, bytes).ok()? {
            dynamic = Some(entries);
        }
    }
    let Some(entries) = dynamic else {
        return Some(needs);
    };
    let value = |tag: elf::DynamicTag| {
        let entry = entries.iter().find(|e| e.d_tag(endian) == tag)?;
        Some(entry.d_val(endian))
    };
    let (at, size) = (value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?);
    let strings = segments
        .iter()
        .find_map(|segment| segment.data_range(endian, bytes, at, size).ok().flatten())?;
    let strings = StringTable::new(strings, 0, strings.len() as u64);
    for entry in entries {
        if entry.d_tag(endian) == elf::DT_NEEDED {
            let name = strings.get(u32::try_from(entry.d_val(endian)).ok()?).ok()?;
            needs.libraries.push(String::from_utf8(name.to_vec()).ok()?);
        }
    }
    Some(needs)
}

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
    fn a_program_names_its_loader_and_libraries() {
        // The test program itself is one that is certainly there.
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = needs(&bytes).unwrap();
        assert!(needs.loader.unwrap().contains("ld-linux"));
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"));
        assert_eq!(module_depends(&bytes), None, "it is no kernel module");
    }

    #[test]
    fn broken_files_are_none() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for len in [0, 4, 63, 64, 200] {
            assert_eq!(needs(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(needs(b"#!/bin/sh"), None);
        assert!(!is_elf(b"#!/bin/sh"));
    }
}
