//! The kernel's symbols: from a System.map, from an ELF file, or out of the guest's memory.

use super::memory::Look;
use crate::failure::{During, Failure, Outcome};
use crate::look::core::VmcoreInfo;
use object::{Object, ObjectSection, ObjectSymbol};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Most symbols that are read out of a guest's memory: Debian's kernel has 160,000.
const COUNT_MAX: u64 = 1 << 20;
/// Longest name (Linux, include/linux/kallsyms.h: `KSYM_NAME_LEN`), and tokens there are.
const NAME_MAX: usize = 512;
const TOKENS: usize = 256;

/// Where symbols are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel's own table, in the guest's memory.
    Memory,
    /// A System.map, or an ELF file.
    File(PathBuf),
}

impl std::str::FromStr for Source {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "memory" => Self::Memory,
            path => Self::File(path.into()),
        })
    }
}

/// Symbols, by address and by name.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// Code, rising.
    code: Vec<(u64, String)>,
    by_name: HashMap<String, u64>,
}

/// Code does not reach further behind its symbol than this: what does is something without a symbol.
const REACH: u64 = 1 << 20;

impl Symbols {
    /// Adds a symbol of this kind, a letter as `nm` has it.
    fn add(&mut self, address: u64, kind: u8, name: &str) {
        if matches!(kind, b't' | b'T' | b'w' | b'W') {
            self.code.push((address, name.to_owned()));
        }
        self.by_name.entry(name.to_owned()).or_insert(address);
    }

    /// Sorts what was added. Of several at one address the first stays.
    fn sorted(mut self) -> Self {
        self.code.sort_by_key(|(address, _)| *address);
        self.code.dedup_by_key(|(address, _)| *address);
        self
    }

    /// Adds more, of a module.
    pub fn extend(&mut self, code: impl IntoIterator<Item = (u64, String)>) {
        self.code.extend(code);
        *self = std::mem::take(self).sorted();
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.code.is_empty()
    }

    /// Where `name` is.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// What code is at `address`.
    pub fn name(&self, address: u64) -> Option<&str> {
        let behind = self.code.partition_point(|(at, _)| *at <= address);
        let (at, name) = &self.code[behind.checked_sub(1)?];
        (address - at < REACH).then_some(name)
    }

    /// All of them moved: per-CPU variables, whose addresses are offsets, are not.
    fn moved(mut self, by: u64) -> Self {
        const KERNEL: u64 = 1 << 63;
        let moved = |at: u64| {
            if at >= KERNEL {
                at.wrapping_add(by)
            } else {
                at
            }
        };
        self.code.iter_mut().for_each(|(at, _)| *at = moved(*at));
        self.by_name.values_mut().for_each(|at| *at = moved(*at));
        self.code.retain(|(at, _)| *at >= KERNEL);
        self
    }
}

#[cfg(test)]
impl Symbols {
    /// Those of a System.map.
    pub fn of_map(text: &str) -> Self {
        map(text.as_bytes())
    }
}

/// A file of symbols, as it was linked.
pub struct Linked {
    path: PathBuf,
    symbols: Symbols,
    /// What the kernel says of itself, if the file has it.
    banner: Option<Vec<u8>>,
}

/// How a kernel's banner begins (Linux, init/version-timestamp.c), and its longest.
const BANNER: &[u8] = b"Linux version ";
const BANNER_MAX: usize = 512;

impl Linked {
    /// The symbols in the file at `path`.
    ///
    /// # Errors
    /// If there are none.
    pub fn read(path: &Path) -> Outcome<Self> {
        let bytes = std::fs::read(path).during(format_args!("cannot read {}", path.display()))?;
        let (symbols, banner) = if bytes.starts_with(b"\x7fELF") {
            elf(&bytes).during(path.display())?
        } else {
            (map(&bytes), None)
        };
        if symbols.is_empty() || symbols.address("linux_banner").is_none() {
            return Err(Failure::new(format!(
                "{}: no symbols of a Linux kernel in it (it takes a System.map or a vmlinux)",
                path.display()
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            symbols,
            banner,
        })
    }

    /// The symbols where the guest's kernel has them, which is moved by `moved`.
    ///
    /// # Errors
    /// If they are of another kernel: there is another banner, or none, where this one's is.
    pub fn of_guest(&self, look: &impl Look, moved: u64) -> Outcome<Symbols> {
        let at = self.symbols.address("linux_banner").unwrap_or_default();
        let there = look.text(at.wrapping_add(moved), BANNER_MAX);
        let own = self.banner.as_deref().map(String::from_utf8_lossy);
        let is_it =
            there.as_bytes().starts_with(BANNER) && own.as_ref().is_none_or(|own| *own == there);
        if is_it {
            return Ok(self.symbols.clone().moved(moved));
        }
        let path = self.path.display();
        let says = |what: &str| terminal::visible(what.trim_end()).into_owned();
        let why = match own {
            Some(own) if there.as_bytes().starts_with(BANNER) => format!(
                "it is of '{}', the guest runs '{}'",
                says(&own),
                says(&there)
            ),
            Some(own) => format!(
                "it is of '{}', whose banner is not where it would be in the guest",
                says(&own)
            ),
            None => "the guest's banner is not where it says".to_owned(),
        };
        Err(Failure::new(format!(
            "{path}: symbols of another kernel: {why}"
        )))
    }
}

/// The symbols of an ELF file, and its banner.
fn elf(bytes: &[u8]) -> Result<(Symbols, Option<Vec<u8>>), object::Error> {
    let file = object::File::parse(bytes)?;
    let mut symbols = Symbols::default();
    let mut banner = None;
    for symbol in file.symbols() {
        let Ok(name) = symbol.name() else { continue };
        let kind = match symbol.kind() {
            object::SymbolKind::Text => b't',
            _ if name.is_empty() => continue,
            object::SymbolKind::Section | object::SymbolKind::File => continue,
            _ => b'd',
        };
        // Assembly's labels have no type; what is in a section of code is code.
        let section = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok());
        let is_code = section
            .as_ref()
            .is_some_and(|section| section.kind() == object::SectionKind::Text);
        let kind = if is_code { b't' } else { kind };
        symbols.add(symbol.address(), kind, name);
        if name == "linux_banner" {
            let data = section
                .and_then(|section| section.data_range(symbol.address(), symbol.size()).ok()?);
            banner = data.map(|data| data.split(|byte| *byte == 0).next().unwrap_or(&[]).to_vec());
        }
    }
    Ok((symbols.sorted(), banner))
}

/// The symbols of a System.map: a line for each, its address, kind and name.
fn map(bytes: &[u8]) -> Symbols {
    let mut symbols = Symbols::default();
    for line in String::from_utf8_lossy(bytes).lines() {
        let mut words = line.split_ascii_whitespace();
        let (address, kind, name) = (words.next(), words.next(), words.next());
        let address = address.and_then(|address| u64::from_str_radix(address, 16).ok());
        if let (Some(address), Some([kind]), Some(name)) = (address, kind.map(str::as_bytes), name)
        {
            symbols.add(address, *kind, name);
        }
    }
    symbols.sorted()
}

/// The kernel's own table (Linux, kernel/kallsyms.c), which `info` says the place of since Linux 6.0; none if it does
/// not, or the table makes no sense.
pub fn kallsyms(look: &impl Look, info: &VmcoreInfo) -> Option<Symbols> {
    let at = |name: &str| info.number(&format!("SYMBOL(kallsyms_{name})"), 16);
    let count = look.u32(at("num_syms")?)?.into();
    if count > COUNT_MAX {
        return None;
    }
    let tokens = tokens(look, at("token_table")?, at("token_index")?)?;
    let base = look.u64(at("relative_base")?)?;
    let offsets = look.bytes(at("offsets")?, count as usize * 4)?;
    let (offsets, _) = offsets.as_chunks::<4>();
    let names = names(look, at("names")?, count, &tokens)?;
    // Per-CPU variables are told apart by their sign, until Linux 6.15 has them with all others.
    let signed = |offset: i32| match offset {
        0.. => offset as u64,
        _ => base.wrapping_add(!offset as u64),
    };
    let unsigned = |offset: i32| base.wrapping_add(u64::from(offset as u32));
    let symbols = |of: &dyn Fn(i32) -> u64| {
        let mut symbols = Symbols::default();
        for (name, offset) in names.iter().zip(offsets) {
            let (kind, name) = name.split_at_checked(1)?;
            let address = of(i32::from_le_bytes(*offset));
            symbols.add(address, kind.as_bytes()[0], name);
        }
        Some(symbols)
    };
    let text = info.number("SYMBOL(_stext)", 16)?;
    let ways: [&dyn Fn(i32) -> u64; 2] = [&signed, &unsigned];
    let mut ways = ways.into_iter().filter_map(symbols);
    let mut found = ways.find(|symbols| symbols.address("_stext") == Some(text))?;
    found.code.retain(|(at, _)| *at >= 1 << 63);
    Some(found.sorted())
}

/// What each byte of a name stands for.
fn tokens(look: &impl Look, table: u64, index: u64) -> Option<Vec<String>> {
    let index = look.bytes(index, TOKENS * 2)?;
    let (index, _) = index.as_chunks::<2>();
    let token =
        |at: &[u8; 2]| look.text(table.wrapping_add(u16::from_le_bytes(*at).into()), NAME_MAX);
    Some(index.iter().map(token).collect())
}

/// The names, each with its kind in front.
fn names(look: &impl Look, at: u64, count: u64, tokens: &[String]) -> Option<Vec<String>> {
    /// A name's packed bytes on the average, at most; Debian's have ten.
    const PACKED_MAX: usize = 40;
    let bytes = look.up_to(at, count as usize * PACKED_MAX);
    let mut rest = &bytes[..];
    let mut next = || {
        let (first, more) = rest.split_first()?;
        rest = more;
        Some(*first)
    };
    let mut names = Vec::new();
    for _ in 0..count {
        // Long names, since Linux 6.1: seven bits, and more of them.
        let mut length = usize::from(next()?);
        if length & 0x80 != 0 {
            length = length & 0x7f | usize::from(next()?) << 7;
        }
        let mut name = String::new();
        for _ in 0..length {
            name.push_str(&tokens[usize::from(next()?)]);
            if name.len() > NAME_MAX {
                return None;
            }
        }
        names.push(name);
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::Flat;
    use super::*;

    const MAP: &str = "0000000000000000 D __per_cpu_start\n00000000000203c0 D current_task\n\
        ffffffff81000000 T _text\nffffffff81000000 T _stext\nffffffff81000040 t helper\n\
        ffffffff82000100 R linux_banner\n";

    #[test]
    fn a_system_map_is_moved_but_for_what_is_no_address() {
        let symbols = map(MAP.as_bytes()).moved(0x1_0000);
        assert_eq!(symbols.address("current_task"), Some(0x203c0));
        assert_eq!(symbols.address("helper"), Some(0xffff_ffff_8101_0040));
        assert_eq!(symbols.name(0xffff_ffff_8101_003f), Some("_text"));
        assert_eq!(symbols.name(0xffff_ffff_8101_0040), Some("helper"));
        assert_eq!(symbols.name(0xffff_ffff_8100_ffff), None);
        assert_eq!(symbols.name(0xffff_ffff_c000_0000), None);
    }

    #[test]
    fn symbols_of_another_kernel_are_noticed_by_the_banner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("System.map");
        std::fs::write(&path, MAP).unwrap();
        let linked = Linked::read(&path).unwrap();
        let mut memory = Flat::new(0xffff_ffff_8300_0000, 4096);
        memory.put(0xffff_ffff_8300_0100, b"Linux version 6.1.0 (x@y)\n\0");
        assert!(linked.of_guest(&memory, 0x100_0000).is_ok());
        let why = linked.of_guest(&memory, 0x100_0800).unwrap_err();
        assert!(why.to_string().contains("of another kernel"), "{why}");
        std::fs::write(&path, "ffffffff81000000 T main\n").unwrap();
        assert!(Linked::read(&path).is_err());
    }

    #[test]
    fn another_banner_is_quoted_in_one_line_that_says_nothing_to_the_terminal() {
        let linked = Linked {
            path: "vmlinux".into(),
            symbols: map(MAP.as_bytes()),
            banner: Some(b"Linux version 6.1.0\n".to_vec()),
        };
        let mut memory = Flat::new(0xffff_ffff_8300_0000, 4096);
        let banner = b"Linux version 6\x1b[2J\ntandem: all is well\n\0";
        memory.put(0xffff_ffff_8300_0100, banner);
        let why = linked.of_guest(&memory, 0x100_0000).unwrap_err();
        let quoted = r"the guest runs 'Linux version 6\u001b[2J\u000atandem: all is well'";
        assert!(why.to_string().ends_with(quoted), "{why}");
    }

    #[test]
    fn names_are_put_together_of_tokens() {
        let mut memory = Flat::new(0x1000, 0x1000);
        memory.put(0x1000, b"T_\0stext\0");
        let tokens = ["T_".to_owned(), "stext".to_owned()];
        memory.put(0x1100, &[2, 0, 1, 1, 1]);
        let found = names(&memory, 0x1100, 2, &tokens).unwrap();
        assert_eq!(found, ["T_stext", "stext"]);
        let mut long = vec![0x80 | 4, 1];
        long.extend([1; 132]);
        memory.put(0x1200, &long);
        assert_eq!(
            names(&memory, 0x1200, 1, &tokens),
            None,
            "too long to be one"
        );
    }
}
