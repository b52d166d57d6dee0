//! Numbers in as few bytes as they need, taken from the front of a slice.
//!
//! What is wrong with untrusted bytes is told in a few words; whoever reads an entry adds the place.

/// Appends `value`, seven bits a byte, the least significant first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// A number as [`put_varint`] writes it, or in more bytes than it needs, of which there are ten at most.
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err("number too large");
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("number too long")
}

/// Appends the difference of `value` to `last`, which it becomes.
pub fn put_zigzag(out: &mut Vec<u8>, value: u64, last: &mut u64) {
    let delta = value.wrapping_sub(*last).cast_signed();
    *last = value;
    put_varint(out, (delta << 1 ^ delta >> 63).cast_unsigned());
}

/// A number as [`put_zigzag`] writes it; `last` becomes it.
pub fn take_zigzag(bytes: &mut &[u8], last: &mut u64) -> Result<u64, &'static str> {
    let raw = take_varint(bytes)?;
    let delta = (raw >> 1) ^ (raw & 1).wrapping_neg();
    *last = last.wrapping_add(delta);
    Ok(*last)
}

/// Takes `count` bytes.
pub fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], &'static str> {
    let (head, tail) = bytes.split_at_checked(count).ok_or("entry cut short")?;
    *bytes = tail;
    Ok(head)
}
