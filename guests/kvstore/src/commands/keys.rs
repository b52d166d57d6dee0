//! Commands on keys and their deadlines.

use super::{Since, Unit, deadline, integer};
use crate::command::{Call, Done};
use crate::error::CommandError;
use crate::glob;
use crate::number::{self, DIGITS_MAX};

pub(crate) fn del<'a>(call: &mut Call<'a>) -> Done<'a> {
    let removed = call
        .args
        .from(1)
        .filter(|key| call.store.remove(key))
        .count();
    call.reply.integer(removed as i64);
    Ok(())
}

pub(crate) fn exists<'a>(call: &mut Call<'a>) -> Done<'a> {
    let there = call
        .args
        .from(1)
        .filter(|key| call.store.contains(key))
        .count();
    call.reply.integer(there as i64);
    Ok(())
}

pub(crate) fn type_of<'a>(call: &mut Call<'a>) -> Done<'a> {
    let there = call.store.contains(call.args.at(1));
    call.reply.simple(if there { "string" } else { "none" });
    Ok(())
}

pub(crate) fn keys<'a>(call: &mut Call<'a>) -> Done<'a> {
    let pattern = call.args.at(1);
    let found = || call.store.keys().filter(|key| glob::matches(pattern, key));
    call.reply.array(found().count());
    for key in found() {
        call.reply.bulk(key);
        if call.reply.overflowed() {
            break;
        }
    }
    Ok(())
}

/// Places for keys that SCAN looks at for each key it was asked for, so that one call ends in time in a
/// store that is nearly empty: as Redis.
const PLACES_PER_KEY: usize = 10;
/// Keys in one reply of SCAN, if the client names no number: as Redis.
const SCAN_COUNT: usize = 10;
/// Bytes of keys after which SCAN leaves the rest to the next call.
const SCAN_BYTES: usize = 64 * 1024;

/// What SCAN is asked for.
struct ScanOptions<'a> {
    pattern: Option<&'a [u8]>,
    count: usize,
    /// All keys are strings: whether strings are asked for.
    strings: bool,
}

/// The cursor is the number of the next place to look at. As keys keep their places, a client that goes
/// on until the cursor is 0 gets each key that was there all the time once.
pub(crate) fn scan<'a>(call: &mut Call<'a>) -> Done<'a> {
    let cursor = core::str::from_utf8(call.args.at(1)).ok();
    let cursor: Option<u64> = cursor.and_then(|text| text.parse().ok());
    let from = cursor.ok_or(CommandError::Cursor)?;
    let options = scan_options(call)?;
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let fits = |key: &&[u8]| {
        let pattern = options.pattern.is_none_or(|p| glob::matches(p, key));
        options.strings && pattern
    };
    let (mut places, mut keys, mut bytes, mut found) = (0, 0, 0, 0);
    let mut rest = call.store.scan(from);
    let ended = loop {
        if keys == options.count
            || places == options.count.saturating_mul(PLACES_PER_KEY)
            || bytes > SCAN_BYTES
        {
            break rest.next().is_none();
        }
        let Some(place) = rest.next() else {
            break true;
        };
        places += 1;
        if let Some(key) = place {
            keys += 1;
            if fits(&key) {
                found += 1;
                bytes += key.len();
            }
        }
    };
    drop(rest);
    let next = if ended { 0 } else { from + places };
    let mut digits = [0; DIGITS_MAX];
    call.reply.array(2);
    call.reply.bulk(number::format(next as i64, &mut digits));
    call.reply.array(found);
    for key in call.store.scan(from).take(places).flatten().filter(fits) {
        call.reply.bulk(key);
    }
    Ok(())
}

fn scan_options<'a>(call: &Call<'a>) -> Result<ScanOptions<'a>, CommandError<'a>> {
    let mut options = ScanOptions {
        pattern: None,
        count: SCAN_COUNT,
        strings: true,
    };
    let mut words = call.args.from(2);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(CommandError::Syntax)?;
        if word.eq_ignore_ascii_case(b"COUNT") {
            let count = integer(value)?;
            if count < 1 {
                return Err(CommandError::Syntax);
            }
            options.count = usize::try_from(count).unwrap_or(usize::MAX);
        } else if word.eq_ignore_ascii_case(b"MATCH") {
            options.pattern = Some(value);
        } else if word.eq_ignore_ascii_case(b"TYPE") {
            options.strings = value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(CommandError::Syntax);
        }
    }
    Ok(options)
}

pub(crate) fn dbsize<'a>(call: &mut Call<'a>) -> Done<'a> {
    call.reply.integer(call.store.len() as i64);
    Ok(())
}

/// FLUSHALL and FLUSHDB: there is one database.
pub(crate) fn flush<'a>(call: &mut Call<'a>) -> Done<'a> {
    let plain = match call.args.get(1) {
        None => true,
        Some(word) => word.eq_ignore_ascii_case(b"ASYNC") || word.eq_ignore_ascii_case(b"SYNC"),
    };
    if !plain || call.args.len() > 2 {
        return Err(CommandError::Syntax);
    }
    call.store.clear();
    call.reply.ok();
    Ok(())
}

pub(crate) fn expire<'a>(call: &mut Call<'a>) -> Done<'a> {
    set_deadline(call, (Unit::Seconds, Since::Now), "expire")
}

pub(crate) fn pexpire<'a>(call: &mut Call<'a>) -> Done<'a> {
    set_deadline(call, (Unit::Millis, Since::Now), "pexpire")
}

pub(crate) fn expireat<'a>(call: &mut Call<'a>) -> Done<'a> {
    set_deadline(call, (Unit::Seconds, Since::Epoch), "expireat")
}

pub(crate) fn pexpireat<'a>(call: &mut Call<'a>) -> Done<'a> {
    set_deadline(call, (Unit::Millis, Since::Epoch), "pexpireat")
}

/// When EXPIRE and its like set the deadline.
#[derive(Clone, Copy, Debug, Default)]
struct ExpireIf {
    missing: bool,
    present: bool,
    greater: bool,
    less: bool,
}

impl ExpireIf {
    fn parse<'a>(call: &Call<'a>) -> Result<Self, CommandError<'a>> {
        let mut only = Self::default();
        for word in call.args.from(3) {
            match word {
                [b'N' | b'n', b'X' | b'x'] => only.missing = true,
                [b'X' | b'x', b'X' | b'x'] => only.present = true,
                [b'G' | b'g', b'T' | b't'] => only.greater = true,
                [b'L' | b'l', b'T' | b't'] => only.less = true,
                _ => return Err(CommandError::UnsupportedOption(word)),
            }
        }
        if only.missing && (only.present || only.greater || only.less) {
            return Err(CommandError::ExpireIncompatible);
        }
        if only.greater && only.less {
            return Err(CommandError::ExpireGreaterAndLess);
        }
        Ok(only)
    }

    /// Whether `new_ms` may take the place of `old_ms`; no deadline counts as later than any.
    fn allows(self, old_ms: Option<u64>, new_ms: i64) -> bool {
        let old = old_ms.map_or(i128::MAX, i128::from);
        let new = i128::from(new_ms);
        !(self.missing && old_ms.is_some()
            || self.present && old_ms.is_none()
            || self.greater && new <= old
            || self.less && new >= old)
    }
}

fn set_deadline<'a>(call: &mut Call<'a>, kind: (Unit, Since), command: &'static str) -> Done<'a> {
    let only = ExpireIf::parse(call)?;
    let new_ms = deadline(call, call.args.at(2), kind, command)?;
    let key = call.args.at(1);
    let sets = match call.store.deadline_ms(key) {
        Some(old_ms) => only.allows(old_ms, new_ms),
        None => false,
    };
    if sets {
        // A deadline that has come deletes at once.
        match u64::try_from(new_ms) {
            Ok(new_ms) if new_ms > call.store.now_ms() => {
                call.store.set_deadline_ms(key, Some(new_ms));
            }
            _ => {
                call.store.remove(key);
            }
        }
    }
    call.reply.integer(sets.into());
    Ok(())
}

pub(crate) fn persist<'a>(call: &mut Call<'a>) -> Done<'a> {
    let key = call.args.at(1);
    let had = matches!(call.store.deadline_ms(key), Some(Some(_)));
    if had {
        call.store.set_deadline_ms(key, None);
    }
    call.reply.integer(had.into());
    Ok(())
}

pub(crate) fn ttl<'a>(call: &mut Call<'a>) -> Done<'a> {
    reply_deadline(call, (Unit::Seconds, Since::Now))
}

pub(crate) fn pttl<'a>(call: &mut Call<'a>) -> Done<'a> {
    reply_deadline(call, (Unit::Millis, Since::Now))
}

pub(crate) fn expiretime<'a>(call: &mut Call<'a>) -> Done<'a> {
    reply_deadline(call, (Unit::Seconds, Since::Epoch))
}

pub(crate) fn pexpiretime<'a>(call: &mut Call<'a>) -> Done<'a> {
    reply_deadline(call, (Unit::Millis, Since::Epoch))
}

fn reply_deadline<'a>(call: &mut Call<'a>, (unit, since): (Unit, Since)) -> Done<'a> {
    let reply = match call.store.deadline_ms(call.args.at(1)) {
        None => -2,
        Some(None) => -1,
        Some(Some(deadline_ms)) => {
            let ms = match since {
                Since::Now => deadline_ms.saturating_sub(call.store.now_ms()),
                Since::Epoch => deadline_ms,
            };
            let value = match unit {
                Unit::Seconds => ms.saturating_add(500) / 1000,
                Unit::Millis => ms,
            };
            value as i64
        }
    };
    call.reply.integer(reply);
    Ok(())
}
