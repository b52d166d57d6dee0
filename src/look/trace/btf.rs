//! Where the members of a kernel's structures are: its BTF, a description of its types that is in its memory (Linux,
//! Documentation/bpf/btf.rst).

/// Its first bytes.
const MAGIC: u16 = 0xeb9f;
/// Most bytes that are read of it: Debian's kernel has five million.
pub const BYTES_MAX: u64 = 64 << 20;

/// Most members that are looked at for one: Debian's `task_struct` has 300. A structure without a name may be in
/// itself, and then the number of ways through it has no bound.
const MEMBERS_MAX: u32 = 1 << 16;

const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// A kernel's types.
pub struct Btf {
    bytes: Vec<u8>,
    /// Where each type is described, from number 1 on.
    types: Vec<usize>,
    strings: usize,
}

impl Btf {
    /// Those that `bytes` describe.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let head = word(&bytes, 4)? as usize;
        let [types, types_len, strings] = [8, 12, 16].map(|at| word(&bytes, at));
        let begin = head.checked_add(types? as usize)?;
        let end = begin.checked_add(types_len? as usize)?;
        Some(Self {
            types: described(&bytes, begin..end)?,
            strings: head.checked_add(strings? as usize)?,
            bytes,
        })
    }

    /// The byte at which `member` begins in the structure `name`, those in structures without a name included.
    pub fn offset(&self, name: &str, member: &str) -> Option<u64> {
        let own = self.types.iter().copied().find(|at| {
            let kind = self.word(at + 4).map_or(0, |info| info >> 24 & 0x1f);
            kind == STRUCT && self.is_named(*at, name.as_bytes())
        });
        let mut search = Search {
            name: member.as_bytes(),
            members_left: MEMBERS_MAX,
        };
        self.member(&mut search, own?, 0)
    }

    fn member(&self, search: &mut Search, at: usize, depth: u32) -> Option<u64> {
        const DEPTH_MAX: u32 = 8;
        let info = self.word(at + 4)?;
        let is_aggregate = matches!(info >> 24 & 0x1f, STRUCT | UNION);
        if !is_aggregate || depth > DEPTH_MAX {
            return None;
        }
        for n in 0..info & 0xffff {
            search.members_left = search.members_left.checked_sub(1)?;
            let member = at + 12 + 12 * n as usize;
            // With the flag, the upper bits are how many bits a bit field has.
            let bits = self.word(member + 8)? & if info >> 31 != 0 { 0xff_ffff } else { u32::MAX };
            let offset = u64::from(bits / 8);
            if self.is_named(member, search.name) {
                return Some(offset);
            }
            if self.is_named(member, b"")
                && let Some(inner) = self.word(member + 4)?.checked_sub(1)
                && let Some(inner) = self.types.get(inner as usize)
                && let Some(found) = self.member(search, *inner, depth + 1)
            {
                return Some(offset + found);
            }
        }
        None
    }

    fn word(&self, at: usize) -> Option<u32> {
        word(&self.bytes, at)
    }

    /// Whether the string that the word at `at` is the place of is `name`. No more of it is read than that takes: how
    /// long it is, is for the guest to say.
    fn is_named(&self, at: usize, name: &[u8]) -> bool {
        let string = || {
            let from = self.strings.checked_add(self.word(at)? as usize)?;
            self.bytes.get(from..)?.strip_prefix(name)?.first()
        };
        string() == Some(&0)
    }
}

/// A member that is looked for.
struct Search<'a> {
    name: &'a [u8],
    /// So many more are looked at.
    members_left: u32,
}

/// Where each type is described in `bytes`, one behind the other in `range`.
fn described(bytes: &[u8], range: std::ops::Range<usize>) -> Option<Vec<usize>> {
    let mut offsets = Vec::new();
    let mut at = range.start;
    while at < range.end {
        offsets.push(at);
        let info = word(bytes, at.checked_add(4)?)?;
        let count = (info & 0xffff) as usize;
        at += 12
            + match info >> 24 & 0x1f {
                // What follows the three words each has (the file's section 2.2).
                2 | 7..=12 | 16 | 18 => 0,
                1 | 14 | 17 => 4,
                3 => 12,
                STRUCT | UNION | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => return None,
            };
    }
    Some(offsets)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn btf(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let length = 4 * types.len() as u32;
        for value in [24, 0, length, length, strings.len() as u32] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_are_found_in_structures_without_a_name_too() {
        // int; union { int b; }; struct a { int x; union; int y:3; }
        let types = [
            [0, 1 << 24, 4, 32].as_slice(),
            &[0, UNION << 24 | 1, 4, 1, 1, 0],
            &[
                3,
                1 << 31 | STRUCT << 24 | 3,
                12,
                5,
                1,
                0,
                0,
                2,
                32,
                7,
                1,
                3 << 24 | 64,
            ],
        ]
        .concat();
        let types = Btf::parse(btf(&types, b"\0b\0a\0x\0y\0")).unwrap();
        let offset = |member| types.offset("a", member);
        assert_eq!(offset("x"), Some(0));
        assert_eq!(offset("b"), Some(4));
        assert_eq!(offset("y"), Some(8));
        assert_eq!(offset("z"), None);
        assert_eq!(types.offset("b", "x"), None);
    }

    #[test]
    fn what_is_cut_or_leads_round_is_no_harm() {
        let looping = [0, STRUCT << 24 | 1, 4, 0, 1, 0];
        let bytes = btf(&looping, b"\0");
        for length in 0..bytes.len() {
            let cut = Btf::parse(bytes[..length].to_vec());
            assert_eq!(cut.and_then(|cut| cut.offset("a", "b")), None);
        }
        assert_eq!(Btf::parse(bytes).unwrap().offset("", "b"), None);
    }

    /// A structure with `count` members without a name, of type `of`, and then, if its name is not 0, one more.
    fn nest(name: u32, count: u32, of: u32, last: u32) -> Vec<u32> {
        let more = u32::from(last != 0);
        let mut words = vec![name, STRUCT << 24 | (count + more), 4];
        (0..count).for_each(|_| words.extend([0, of, 0]));
        words.extend([last, 0, 64].iter().take(3 * more as usize));
        words
    }

    #[test]
    fn only_so_many_members_are_looked_at_however_they_are_nested() {
        let strings = b"\0a\0z\0";
        let offset = |types: &[Vec<u32>]| {
            let types = Btf::parse(btf(&types.concat(), strings)).unwrap();
            types.offset("a", "z")
        };
        // In each of the members of the first there are those of the second, then `z` follows.
        assert_eq!(offset(&[nest(1, 200, 2, 3), nest(0, 300, 0, 0)]), Some(8));
        assert_eq!(offset(&[nest(1, 300, 2, 3), nest(0, 300, 0, 0)]), None);
        // Each is the whole again.
        assert_eq!(offset(&[nest(1, 0xfffe, 1, 3)]), None);
    }

    #[test]
    fn a_name_without_an_end_is_none() {
        let types = |strings: &[u8]| Btf::parse(btf(&nest(1, 0, 0, 3), strings)).unwrap();
        assert_eq!(types(b"\0a\0z\0").offset("a", "z"), Some(8));
        assert_eq!(types(b"\0a\0z").offset("a", "z"), None);
    }
}
