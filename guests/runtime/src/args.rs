//! The command line: `key=value` words.

use core::fmt::Display;
use core::str::FromStr;

/// The words of the command line.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    line: &'a str,
}

impl<'a> Args<'a> {
    /// The words of `line`, separated by white space.
    #[must_use]
    pub fn new(line: &'a str) -> Self {
        Self { line }
    }

    /// The value of the last `key=value`, if there is one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.line
            .split_ascii_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value of `key`, or `default` if it is not given.
    ///
    /// # Panics
    /// If it is given and makes no sense: a guest told nonsense ends with a message.
    #[must_use]
    pub fn parse<T: FromStr<Err: Display>>(&self, key: &str, default: T) -> T {
        match self.get(key).map(str::parse) {
            None => default,
            Some(Ok(value)) => value,
            Some(Err(error)) => panic!("{key}={}: {error}", self.get(key).unwrap_or_default()),
        }
    }
}

#[cfg(not(test))]
impl Args<'static> {
    /// The command line the machine gave; empty if it is not UTF-8.
    #[must_use]
    pub(crate) fn from_machine() -> Self {
        let start = core::ptr::with_exposed_provenance::<u8>(abi::CMDLINE as usize);
        // SAFETY: the machine put the line there, it is mapped, and nothing changes it.
        let bytes = unsafe { core::slice::from_raw_parts(start, abi::CMDLINE_MAX) };
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        Self::new(core::str::from_utf8(&bytes[..end]).unwrap_or(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_words_by_key() {
        let args = Args::new("  ip=10.77.0.2/24 hz=250\tempty=  flag hz=1000\n");
        assert_eq!(args.get("ip"), Some("10.77.0.2/24"));
        assert_eq!(args.get("empty"), Some(""));
        assert_eq!(args.get("flag"), None);
        assert_eq!(args.get("i"), None);
        assert_eq!(args.parse("hz", 1), 1000, "the last one counts");
        assert_eq!(args.parse("port", 7), 7);
    }

    #[test]
    #[should_panic(expected = "hz=fast")]
    fn nonsense_is_named() {
        let _: u32 = Args::new("hz=fast").parse("hz", 100);
    }
}
