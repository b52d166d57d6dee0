//! Archives in cpio's "newc" form: what Linux unpacks as its first root, and what an image file is.
//!
//! ```text
//!  member   header (110 bytes) │ name, NUL, padding to 4 │ data, padding to 4
//!  header   "070701", then 13 fields of 8 hexadecimal digits:
//!           ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
//!  end      a member named TRAILER!!!
//! ```
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.
//! Archives written here depend on what was put in and on nothing else: inode numbers count from 1.

use thiserror::Error;

/// Type bits of a mode: a directory, a regular file, a symbolic link, a character device.
pub const S_IFDIR: u32 = 0o040_000;
/// A regular file.
pub const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120_000;
/// A character device.
pub const S_IFCHR: u32 = 0o020_000;
/// Where the type bits are.
pub const S_IFMT: u32 = 0o170_000;

const MAGIC: &[u8] = b"070701";
const FIELDS: usize = 13;
const HEADER_BYTES: usize = 6 + FIELDS * 8;
const TRAILER: &str = "TRAILER!!!";
/// Most bytes of a name with its NUL (PATH_MAX).
const NAME_MAX: usize = 4096;

/// What is wrong with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CpioError {
    /// It ends inside a member.
    #[error("the archive ends early, in the member at byte {at}")]
    Short {
        /// Where the member begins.
        at: usize,
    },
    /// A member begins with something else.
    #[error("no cpio (newc) member at byte {at}")]
    Magic {
        /// Where it should begin.
        at: usize,
    },
    /// A header field is no hexadecimal number.
    #[error("a broken header at byte {at}")]
    Header {
        /// Where the member begins.
        at: usize,
    },
    /// A name is empty, too long, not terminated or not UTF-8.
    #[error("a broken name at byte {at}")]
    Name {
        /// Where the member begins.
        at: usize,
    },
    /// Something was put in that the format has no room for.
    #[error("a member is too large for the format")]
    TooLarge,
}

/// What a member is, beside its name and data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed last, in seconds since 1970.
    pub mtime: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// Writes an archive into memory.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    members: u32,
}

impl Writer {
    /// Adds a member. Directories come before what is in them; the order is the caller's.
    ///
    /// # Errors
    /// [`CpioError::TooLarge`] for data of 4 GiB or a name over 4095 bytes.
    pub fn add(&mut self, name: &str, meta: Meta, data: &[u8]) -> Result<(), CpioError> {
        let links = if meta.mode & S_IFMT == S_IFDIR { 2 } else { 1 };
        self.members += 1;
        self.member(self.members, name, meta, links, data)
    }

    /// Adds a file of so many names (`links`) under the first of them; gives its inode's number, for the others.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn add_named(
        &mut self,
        name: &str,
        meta: Meta,
        data: &[u8],
        links: u32,
    ) -> Result<u32, CpioError> {
        self.members += 1;
        self.member(self.members, name, meta, links, data)?;
        Ok(self.members)
    }

    /// Adds another name of the file with the inode number `ino`, which was added with as many `links`. It stands
    /// there without the file's bytes.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn add_name(
        &mut self,
        name: &str,
        meta: Meta,
        ino: u32,
        links: u32,
    ) -> Result<(), CpioError> {
        self.member(ino, name, meta, links, b"")
    }

    fn member(
        &mut self,
        ino: u32,
        name: &str,
        meta: Meta,
        links: u32,
        data: &[u8],
    ) -> Result<(), CpioError> {
        let size = u32::try_from(data.len()).map_err(|_| CpioError::TooLarge)?;
        if name.len() >= NAME_MAX {
            return Err(CpioError::TooLarge);
        }
        self.put(ino, name, meta, links, size);
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    /// The archive, ended and padded to 512 bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.put(0, TRAILER, Meta::default(), 1, 0);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn put(&mut self, ino: u32, name: &str, meta: Meta, links: u32, size: u32) {
        let (major, minor) = meta.device;
        let name_size = name.len() as u32 + 1;
        let fields = [
            ino, meta.mode, meta.uid, meta.gid, links, meta.mtime, size, 0, 0, major, minor,
            name_size, 0,
        ];
        self.bytes.extend_from_slice(MAGIC);
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One member of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its name, as it stands there.
    pub name: &'a str,
    /// What it is.
    pub meta: Meta,
    /// Its bytes; a symbolic link's target.
    pub data: &'a [u8],
}

/// Reads an archive from bytes nobody vouches for.
///
/// Nothing is copied or allocated, and each step moves forward, so reading ends after at most one step a
/// header. An archive that ends without its last member is an error; what stands behind that member is
/// not looked at.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    ended: bool,
}

impl<'a> Reader<'a> {
    /// Begins at the first member.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            ended: false,
        }
    }

    fn member(&mut self) -> Result<Option<Member<'a>>, CpioError> {
        let at = self.at;
        let header = self.take(at, HEADER_BYTES)?;
        if !header.starts_with(MAGIC) {
            return Err(CpioError::Magic { at });
        }
        let mut fields = [0u32; FIELDS];
        for (field, digits) in fields.iter_mut().zip(header[MAGIC.len()..].chunks_exact(8)) {
            *field = hex(digits).ok_or(CpioError::Header { at })?;
        }
        let name_size = fields[11] as usize;
        if !(1..=NAME_MAX).contains(&name_size) {
            return Err(CpioError::Name { at });
        }
        let name = match self.take(at, name_size)?.split_last() {
            Some((0, name)) if !name.contains(&0) => name,
            _ => return Err(CpioError::Name { at }),
        };
        let name = std::str::from_utf8(name).map_err(|_| CpioError::Name { at })?;
        if name == TRAILER {
            return Ok(None);
        }
        if name.is_empty() {
            return Err(CpioError::Name { at });
        }
        self.align();
        let data = self.take(at, fields[6] as usize)?;
        self.align();
        let meta = Meta {
            mode: fields[1],
            uid: fields[2],
            gid: fields[3],
            mtime: fields[5],
            device: (fields[9], fields[10]),
        };
        Ok(Some(Member { name, meta, data }))
    }

    /// The next `len` bytes, of the member that begins at `at`.
    fn take(&mut self, at: usize, len: usize) -> Result<&'a [u8], CpioError> {
        let end = self.at.checked_add(len).ok_or(CpioError::Short { at })?;
        let bytes = self.bytes.get(self.at..end);
        self.at = end;
        bytes.ok_or(CpioError::Short { at })
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(4);
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Member<'a>, CpioError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let member = self.member().transpose();
        self.ended = !matches!(member, Some(Ok(_)));
        member
    }
}

/// Eight hexadecimal digits and nothing else (`from_str_radix` takes a sign).
fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |value, digit| {
        Some(value << 4 | char::from(*digit).to_digit(16)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(mode: u32) -> Meta {
        Meta {
            mode: S_IFREG | mode,
            ..Meta::default()
        }
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::default();
        let console = Meta {
            mode: S_IFCHR | 0o600,
            device: (5, 1),
            ..Meta::default()
        };
        writer.add("dev/console", console, b"").unwrap();
        writer.add("a", file(0o644), b"12345").unwrap();
        writer.finish()
    }

    #[test]
    fn what_was_written_is_read_back() {
        let bytes = sample();
        let members: Vec<_> = Reader::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(members.len(), 2);
        assert_eq!(members[0].name, "dev/console");
        assert_eq!(members[0].meta.device, (5, 1));
        assert_eq!(members[1].data, b"12345");
        assert_eq!(members[1].meta, file(0o644));
    }

    #[test]
    fn the_header_is_laid_out_as_linux_reads_it() {
        let mut writer = Writer::default();
        writer.add("ab", file(0o755), b"x").unwrap();
        let bytes = writer.finish();
        let text = std::str::from_utf8(&bytes[..110]).unwrap();
        assert_eq!(
            text,
            "07070100000001000081ed000000000000000000000001000000000000000100000000000000000000000\
             0000000000000000300000000"
        );
        assert_eq!(
            &bytes[110..117],
            b"ab\0\0\0\0x".as_slice().get(..7).unwrap()
        );
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn an_archive_cut_anywhere_before_its_end_is_an_error() {
        let bytes = sample();
        let end = bytes.windows(10).position(|w| w == b"TRAILER!!!").unwrap() + 11;
        for cut in 0..end {
            let last = Reader::new(&bytes[..cut]).last();
            assert!(matches!(last, Some(Err(CpioError::Short { .. }))), "{cut}");
        }
        assert!(Reader::new(&bytes[..end]).all(|member| member.is_ok()));
    }

    #[test]
    fn a_sign_is_no_digit() {
        let mut bytes = sample();
        bytes[6] = b'+';
        let first = Reader::new(&bytes).next();
        assert_eq!(first, Some(Err(CpioError::Header { at: 0 })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            for member in Reader::new(&bytes).flatten() {
                prop_assert!(member.data.len() <= bytes.len());
            }
        }

        #[test]
        fn a_changed_byte_is_read_or_refused(at in 0usize..400, with in any::<u8>()) {
            let mut bytes = sample();
            bytes[at] = with;
            prop_assert!(Reader::new(&bytes).count() <= 4);
        }

        #[test]
        fn any_members_come_back(members in prop::collection::vec(
            ("[a-z/]{1,40}", any::<u16>(), prop::collection::vec(any::<u8>(), 0..100)), 0..8)) {
            let mut writer = Writer::default();
            for (name, mode, data) in &members {
                writer.add(name, file((*mode).into()), data).unwrap();
            }
            let bytes = writer.finish();
            let read: Vec<_> = Reader::new(&bytes).map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), members.len());
            for (read, (name, _, data)) in read.iter().zip(&members) {
                prop_assert_eq!(read.name, name);
                prop_assert_eq!(read.data, data);
            }
        }
    }
}
