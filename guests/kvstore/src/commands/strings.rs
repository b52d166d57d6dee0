//! Commands on values.

use super::{Since, Unit, deadline, integer};
use crate::command::{Call, Done};
use crate::error::CommandError;
use crate::number::{self, DIGITS_MAX};
use crate::store::Expiry;

/// When SET stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Always,
    /// NX
    Missing,
    /// XX
    Present,
}

/// What follows the value of a SET.
struct SetOptions {
    condition: Condition,
    expiry: Expiry,
    /// Reply with the old value.
    get: bool,
}

#[inline]
pub(crate) fn get<'a>(call: &mut Call<'a>) -> Done<'a> {
    let value = call.store.get(call.args.at(1));
    call.reply.bulk_or_null(value);
    Ok(())
}

pub(crate) fn set<'a>(call: &mut Call<'a>) -> Done<'a> {
    let (key, value) = (call.args.at(1), call.args.at(2));
    if call.args.len() == 3 {
        call.store.set(key, value, Expiry::Never)?;
        call.reply.ok();
        return Ok(());
    }
    let options = set_options(call)?;
    let old = call.store.get(key);
    let stores = match options.condition {
        Condition::Always => true,
        Condition::Missing => old.is_none(),
        Condition::Present => old.is_some(),
    };
    if options.get {
        let start = call.reply.mark();
        call.reply.bulk_or_null(old);
        if stores && let Err(full) = call.store.set(key, value, options.expiry) {
            call.reply.take_back(start);
            return Err(full.into());
        }
    } else if stores {
        call.store.set(key, value, options.expiry)?;
        call.reply.ok();
    } else {
        call.reply.null();
    }
    Ok(())
}

fn set_options<'a>(call: &mut Call<'a>) -> Result<SetOptions, CommandError<'a>> {
    let mut options = SetOptions {
        condition: Condition::Always,
        expiry: Expiry::Never,
        get: false,
    };
    let mut time = None;
    let mut words = call.args.from(3);
    while let Some(word) = words.next() {
        let mut upper = [0; 8];
        let upper = upper.get_mut(..word.len()).ok_or(CommandError::Syntax)?;
        upper.copy_from_slice(word);
        upper.make_ascii_uppercase();
        let free = time.is_none() && options.expiry == Expiry::Never;
        let kind = match (&*upper, options.condition) {
            (b"NX", Condition::Always | Condition::Missing) => {
                options.condition = Condition::Missing;
                continue;
            }
            (b"XX", Condition::Always | Condition::Present) => {
                options.condition = Condition::Present;
                continue;
            }
            (b"GET", _) => {
                options.get = true;
                continue;
            }
            (b"KEEPTTL", _) if time.is_none() => {
                options.expiry = Expiry::Keep;
                continue;
            }
            (b"EX", _) => (Unit::Seconds, Since::Now),
            (b"PX", _) => (Unit::Millis, Since::Now),
            (b"EXAT", _) => (Unit::Seconds, Since::Epoch),
            (b"PXAT", _) => (Unit::Millis, Since::Epoch),
            _ => return Err(CommandError::Syntax),
        };
        match words.next() {
            Some(text) if free => time = Some((text, kind)),
            _ => return Err(CommandError::Syntax),
        }
    }
    // Redis looks at the time only once all words make sense.
    if let Some((text, kind)) = time {
        options.expiry = expiry(call, text, kind, "set")?;
    }
    Ok(options)
}

/// The deadline `text` says, which must be a positive number.
fn expiry<'a>(
    call: &mut Call<'a>,
    text: &[u8],
    kind: (Unit, Since),
    command: &'static str,
) -> Result<Expiry, CommandError<'a>> {
    if integer(text)? <= 0 {
        return Err(CommandError::InvalidExpireTime(command));
    }
    Ok(Expiry::At(
        deadline(call, text, kind, command)?.unsigned_abs(),
    ))
}

pub(crate) fn setnx<'a>(call: &mut Call<'a>) -> Done<'a> {
    let (key, value) = (call.args.at(1), call.args.at(2));
    let stores = !call.store.contains(key);
    if stores {
        call.store.set(key, value, Expiry::Never)?;
    }
    call.reply.integer(stores.into());
    Ok(())
}

pub(crate) fn setex<'a>(call: &mut Call<'a>) -> Done<'a> {
    set_with_time(call, Unit::Seconds, "setex")
}

pub(crate) fn psetex<'a>(call: &mut Call<'a>) -> Done<'a> {
    set_with_time(call, Unit::Millis, "psetex")
}

fn set_with_time<'a>(call: &mut Call<'a>, unit: Unit, command: &'static str) -> Done<'a> {
    let expiry = expiry(call, call.args.at(2), (unit, Since::Now), command)?;
    call.store.set(call.args.at(1), call.args.at(3), expiry)?;
    call.reply.ok();
    Ok(())
}

pub(crate) fn getset<'a>(call: &mut Call<'a>) -> Done<'a> {
    let start = call.reply.mark();
    call.reply.bulk_or_null(call.store.get(call.args.at(1)));
    if let Err(full) = call
        .store
        .set(call.args.at(1), call.args.at(2), Expiry::Never)
    {
        call.reply.take_back(start);
        return Err(full.into());
    }
    Ok(())
}

pub(crate) fn getdel<'a>(call: &mut Call<'a>) -> Done<'a> {
    get(call)?;
    call.store.remove(call.args.at(1));
    Ok(())
}

pub(crate) fn mget<'a>(call: &mut Call<'a>) -> Done<'a> {
    call.reply.array(call.args.len() - 1);
    for key in call.args.from(1) {
        call.reply.bulk_or_null(call.store.get(key));
        if call.reply.overflowed() {
            break;
        }
    }
    Ok(())
}

/// Unlike the others, this one stores what there is room for before it fails.
pub(crate) fn mset<'a>(call: &mut Call<'a>) -> Done<'a> {
    if call.args.len().is_multiple_of(2) {
        return Err(CommandError::Arity("mset", None));
    }
    for pair in (1..call.args.len()).step_by(2) {
        call.store
            .set(call.args.at(pair), call.args.at(pair + 1), Expiry::Never)?;
    }
    call.reply.ok();
    Ok(())
}

pub(crate) fn append<'a>(call: &mut Call<'a>) -> Done<'a> {
    let (key, tail) = (call.args.at(1), call.args.at(2));
    let length = call.store.get(key).map_or(0, <[u8]>::len);
    if length + tail.len() > call.state.limits.bulk_bytes_max {
        return Err(CommandError::TooLongString);
    }
    let length = call.store.append(key, tail)?;
    call.reply.integer(length as i64);
    Ok(())
}

pub(crate) fn strlen<'a>(call: &mut Call<'a>) -> Done<'a> {
    let length = call.store.get(call.args.at(1)).map_or(0, <[u8]>::len);
    call.reply.integer(length as i64);
    Ok(())
}

pub(crate) fn incr<'a>(call: &mut Call<'a>) -> Done<'a> {
    add(call, 1)
}

pub(crate) fn decr<'a>(call: &mut Call<'a>) -> Done<'a> {
    add(call, -1)
}

pub(crate) fn incrby<'a>(call: &mut Call<'a>) -> Done<'a> {
    add(call, integer(call.args.at(2))?)
}

pub(crate) fn decrby<'a>(call: &mut Call<'a>) -> Done<'a> {
    let by = integer(call.args.at(2))?;
    add(
        call,
        by.checked_neg().ok_or(CommandError::DecrementOverflow)?,
    )
}

fn add<'a>(call: &mut Call<'a>, by: i64) -> Done<'a> {
    let key = call.args.at(1);
    let old = match call.store.get(key) {
        Some(text) => integer(text)?,
        None => 0,
    };
    let new = old.checked_add(by).ok_or(CommandError::Overflow)?;
    let mut buffer = [0; DIGITS_MAX];
    call.store
        .set(key, number::format(new, &mut buffer), Expiry::Keep)?;
    call.reply.integer(new);
    Ok(())
}
