//! What the commands do, by group.

pub(crate) mod admin;
pub(crate) mod connection;
pub(crate) mod keys;
pub(crate) mod strings;
pub(crate) mod transactions;

use crate::command::Call;
use crate::error::CommandError;
use crate::number;
use crate::store::Full;

/// Unit of a time a client gives or gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    Millis,
}

/// What a time a client gives is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Now,
    /// 1970.
    Epoch,
}

impl From<Full> for CommandError<'_> {
    fn from(_: Full) -> Self {
        Self::OutOfMemory
    }
}

/// The integer that `text` is.
#[inline]
fn integer<'a>(text: &[u8]) -> Result<i64, CommandError<'a>> {
    number::parse(text).ok_or(CommandError::NotAnInteger)
}

/// The time `text` says in ms since 1970, which may lie in the past, and even before 1970. `command`
/// is to blame if there is no such time.
fn deadline<'a>(
    call: &mut Call<'_>,
    text: &[u8],
    (unit, since): (Unit, Since),
    command: &'static str,
) -> Result<i64, CommandError<'a>> {
    let error = CommandError::InvalidExpireTime(command);
    let value = integer(text)?;
    let ms = match unit {
        Unit::Seconds => value.checked_mul(1000).ok_or(error)?,
        Unit::Millis => value,
    };
    match since {
        Since::Now => {
            call.store.set_time((call.state.clock)());
            ms.checked_add(call.store.now_ms() as i64).ok_or(error)
        }
        Since::Epoch => Ok(ms),
    }
}
