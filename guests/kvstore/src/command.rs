//! The commands: their names, what they take, and which function does them.

use core::fmt;

use crate::commands::{admin, connection, keys, strings, transactions};
use crate::error::{CommandError, SHOWN_MAX, Shown};
use crate::frame::Args;
use crate::reply::Reply;
use crate::server::{Session, State};
use crate::store::Store;

/// A command at work.
pub(crate) struct Call<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) state: &'a mut State,
    pub(crate) session: &'a mut Session,
    pub(crate) args: Args<'a>,
    pub(crate) reply: Reply<'a>,
}

/// What a command's function returns. It has written a reply unless it failed.
pub(crate) type Done<'a> = Result<(), CommandError<'a>>;

/// One command.
pub(crate) struct Command {
    /// In lower case, at most 16 bytes.
    pub(crate) name: &'static str,
    /// Number of arguments, the name included; negative: at least so many.
    pub(crate) arity: i8,
    pub(crate) run: for<'a> fn(&mut Call<'a>) -> Done<'a>,
    /// As COMMAND INFO names them, separated by spaces.
    pub(crate) flags: &'static str,
    /// Where the keys are: first, last (negative: from the end), step; zeros: no keys.
    pub(crate) keys: (i8, i8, i8),
    pub(crate) since: &'static str,
    pub(crate) group: &'static str,
    pub(crate) summary: &'static str,
}

/// Shorthand for the rows of [`COMMANDS`].
macro_rules! commands {
    ($($name:literal $arity:literal $run:path, $flags:literal, $keys:expr, $since:literal $group:literal $summary:literal;)*) => {
        &[$(Command {
            name: $name, arity: $arity, run: $run, flags: $flags, keys: $keys,
            since: $since, group: $group, summary: $summary,
        }),*]
    };
}

const NO_KEY: (i8, i8, i8) = (0, 0, 0);
const ONE_KEY: (i8, i8, i8) = (1, 1, 1);
const ALL_KEYS: (i8, i8, i8) = (1, -1, 1);

/// All commands.
#[rustfmt::skip]
pub(crate) static COMMANDS: &[Command] = commands! {
    "append" 3 strings::append, "write denyoom fast", ONE_KEY, "2.0.0" "string" "Append a value to a key";
    "auth" -2 connection::auth, "noscript loading stale fast no_auth allow_busy", NO_KEY, "1.0.0" "connection" "Authenticate to the server";
    "client" -2 connection::client, "", NO_KEY, "2.4.0" "connection" "A container for client connection commands";
    "command" -1 admin::command, "loading stale", NO_KEY, "2.8.13" "server" "Get array of Redis command details";
    "config" -2 admin::config, "", NO_KEY, "2.0.0" "server" "A container for server configuration commands";
    "dbsize" 1 keys::dbsize, "readonly fast", NO_KEY, "1.0.0" "server" "Return the number of keys in the selected database";
    "decr" 2 strings::decr, "write denyoom fast", ONE_KEY, "1.0.0" "string" "Decrement the integer value of a key by one";
    "decrby" 3 strings::decrby, "write denyoom fast", ONE_KEY, "1.0.0" "string" "Decrement the integer value of a key by the given number";
    "del" -2 keys::del, "write", ALL_KEYS, "1.0.0" "generic" "Delete a key";
    "discard" 1 transactions::discard, "noscript loading stale fast allow_busy", NO_KEY, "2.0.0" "transactions" "Discard all commands issued after MULTI";
    "echo" 2 connection::echo, "fast", NO_KEY, "1.0.0" "connection" "Echo the given string";
    "exec" 1 transactions::exec, "noscript loading stale skip_slowlog", NO_KEY, "1.2.0" "transactions" "Execute all commands issued after MULTI";
    "exists" -2 keys::exists, "readonly fast", ALL_KEYS, "1.0.0" "generic" "Determine if a key exists";
    "expire" -3 keys::expire, "write fast", ONE_KEY, "1.0.0" "generic" "Set a key's time to live in seconds";
    "expireat" -3 keys::expireat, "write fast", ONE_KEY, "1.2.0" "generic" "Set the expiration for a key as a UNIX timestamp";
    "expiretime" 2 keys::expiretime, "readonly fast", ONE_KEY, "7.0.0" "generic" "Get the expiration Unix timestamp for a key";
    "flushall" -1 keys::flush, "write", NO_KEY, "1.0.0" "server" "Remove all keys from all databases";
    "flushdb" -1 keys::flush, "write", NO_KEY, "1.0.0" "server" "Remove all keys from the current database";
    "get" 2 strings::get, "readonly fast", ONE_KEY, "1.0.0" "string" "Get the value of a key";
    "getdel" 2 strings::getdel, "write fast", ONE_KEY, "6.2.0" "string" "Get the value of a key and delete the key";
    "getset" 3 strings::getset, "write denyoom fast", ONE_KEY, "1.0.0" "string" "Set the string value of a key and return its old value";
    "hello" -1 connection::hello, "noscript loading stale fast no_auth allow_busy", NO_KEY, "6.0.0" "connection" "Handshake with Redis";
    "incr" 2 strings::incr, "write denyoom fast", ONE_KEY, "1.0.0" "string" "Increment the integer value of a key by one";
    "incrby" 3 strings::incrby, "write denyoom fast", ONE_KEY, "1.0.0" "string" "Increment the integer value of a key by the given amount";
    "info" -1 admin::info, "loading stale", NO_KEY, "1.0.0" "server" "Get information and statistics about the server";
    "keys" 2 keys::keys, "readonly", NO_KEY, "1.0.0" "generic" "Find all keys matching the given pattern";
    "mget" -2 strings::mget, "readonly fast", ALL_KEYS, "1.0.0" "string" "Get the values of all the given keys";
    "mset" -3 strings::mset, "write denyoom", (1, -1, 2), "1.0.1" "string" "Set multiple keys to multiple values";
    "multi" 1 transactions::multi, "noscript loading stale fast allow_busy", NO_KEY, "1.2.0" "transactions" "Mark the start of a transaction block";
    "persist" 2 keys::persist, "write fast", ONE_KEY, "2.2.0" "generic" "Remove the expiration from a key";
    "pexpire" -3 keys::pexpire, "write fast", ONE_KEY, "2.6.0" "generic" "Set a key's time to live in milliseconds";
    "pexpireat" -3 keys::pexpireat, "write fast", ONE_KEY, "2.6.0" "generic" "Set the expiration for a key as a UNIX timestamp specified in milliseconds";
    "pexpiretime" 2 keys::pexpiretime, "readonly fast", ONE_KEY, "7.0.0" "generic" "Get the expiration Unix timestamp for a key in milliseconds";
    "ping" -1 connection::ping, "fast", NO_KEY, "1.0.0" "connection" "Ping the server";
    "psetex" 4 strings::psetex, "write denyoom", ONE_KEY, "2.6.0" "string" "Set the value and expiration in milliseconds of a key";
    "pttl" 2 keys::pttl, "readonly fast", ONE_KEY, "2.6.0" "generic" "Get the time to live for a key in milliseconds";
    "quit" -1 connection::quit, "noscript loading stale fast no_auth allow_busy", NO_KEY, "1.0.0" "connection" "Close the connection";
    "scan" -2 keys::scan, "readonly", NO_KEY, "2.8.0" "generic" "Incrementally iterate the keys space";
    "select" 2 connection::select, "loading stale fast", NO_KEY, "1.0.0" "connection" "Change the selected database for the current connection";
    "set" -3 strings::set, "write denyoom", ONE_KEY, "1.0.0" "string" "Set the string value of a key";
    "setex" 4 strings::setex, "write denyoom", ONE_KEY, "2.0.0" "string" "Set the value and expiration of a key";
    "setnx" 3 strings::setnx, "write denyoom fast", ONE_KEY, "1.0.0" "string" "Set the value of a key, only if the key does not exist";
    "shutdown" -1 admin::shutdown, "admin noscript loading stale no_multi allow_busy", NO_KEY, "1.0.0" "server" "Switch the machine off";
    "strlen" 2 strings::strlen, "readonly fast", ONE_KEY, "2.2.0" "string" "Get the length of the value stored in a key";
    "time" 1 admin::time, "loading stale fast", NO_KEY, "2.6.0" "server" "Return the current server time";
    "ttl" 2 keys::ttl, "readonly fast", ONE_KEY, "1.0.0" "generic" "Get the time to live for a key in seconds";
    "type" 2 keys::type_of, "readonly fast", ONE_KEY, "1.0.0" "generic" "Determine the type stored at key";
    "unlink" -2 keys::del, "write fast", ALL_KEYS, "4.0.0" "generic" "Delete a key asynchronously in another thread. Otherwise it is just as DEL, but non blocking.";
    "unwatch" 1 transactions::unwatch, "noscript loading stale fast allow_busy", NO_KEY, "2.2.0" "transactions" "Forget about all watched keys";
    "watch" -2 transactions::watch, "noscript loading stale fast allow_busy", ALL_KEYS, "2.2.0" "transactions" "Watch the given keys to determine execution of the MULTI/EXEC block";
};

/// Longest name: what fits the word it is compared as.
const NAME_MAX: usize = 16;
/// No command, in [`INDEX`].
const NO_COMMAND: u8 = u8::MAX;

/// Hash table of [`COMMANDS`]: numbers of commands, each at the first free place from [`home`] on.
static INDEX: [u8; 256] = index();
/// The names as words, in the order of [`COMMANDS`].
static WORDS: [u128; COMMANDS.len()] = words();

/// A name as one word, in lower case. Only a name of letters gives the word of one.
const fn word(name: &[u8]) -> u128 {
    let mut word = 0;
    let mut at = 0;
    while at < name.len() {
        word = word << 8 | (name[at] | 0x20) as u128;
        at += 1;
    }
    word
}

/// Where the search for `word` begins: the top bits of a product with an odd constant (2^64 divided
/// by the golden ratio).
const fn home(word: u128) -> u8 {
    let folded = word as u64 ^ (word >> 64) as u64;
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

const fn words() -> [u128; COMMANDS.len()] {
    let mut words = [0; COMMANDS.len()];
    let mut at = 0;
    while at < words.len() {
        assert!(COMMANDS[at].name.len() <= NAME_MAX);
        words[at] = word(COMMANDS[at].name.as_bytes());
        at += 1;
    }
    words
}

const fn index() -> [u8; 256] {
    let mut index = [NO_COMMAND; 256];
    let words = words();
    let mut command = 0;
    while command < words.len() {
        let mut place = home(words[command]);
        while index[place as usize] != NO_COMMAND {
            place = place.wrapping_add(1);
        }
        index[place as usize] = command as u8;
        command += 1;
    }
    index
}

/// The command of that name, in whatever case.
#[inline]
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    if name.len() > NAME_MAX {
        return None;
    }
    let word = word(name);
    let mut place = home(word);
    loop {
        let command = usize::from(INDEX[usize::from(place)]);
        if *WORDS.get(command)? == word {
            return Some(&COMMANDS[command]);
        }
        place = place.wrapping_add(1);
    }
}

impl Command {
    /// Whether it takes `count` arguments, its name included.
    fn takes(&self, count: usize) -> bool {
        let count = count as isize;
        let arity = isize::from(self.arity);
        count == arity || (arity < 0 && count >= -arity) || self.name == "exec"
    }

    /// Whether it is done at once in a transaction too.
    fn is_about_transactions(&self) -> bool {
        matches!(self.name, "exec" | "discard" | "multi" | "watch" | "quit")
    }
}

/// Runs the command of `call`, or queues it in a transaction, and sees to it that there is a reply.
#[inline]
pub(crate) fn run(call: &mut Call<'_>) {
    if call.session.transaction.is_open() {
        return run_or_queue(call);
    }
    let Some(command) = find(call.args.at(0)) else {
        call.reply.error_text("ERR", &Unknown(call.args));
        return;
    };
    let done = if command.takes(call.args.len()) {
        (command.run)(call)
    } else {
        Err(CommandError::Arity(command.name, None))
    };
    if let Err(error) = done {
        call.reply.error(&error);
    }
}

/// As [`run`], in a transaction: what cannot be queued makes it fail.
#[cold]
fn run_or_queue(call: &mut Call<'_>) {
    let Some(command) = find(call.args.at(0)) else {
        call.session.transaction.fail();
        call.reply.error_text("ERR", &Unknown(call.args));
        return;
    };
    let not_queued = if !command.takes(call.args.len()) {
        Err(CommandError::Arity(command.name, None))
    } else if command.is_about_transactions() {
        if let Err(error) = (command.run)(call) {
            call.reply.error(&error);
        }
        return;
    } else if command.flags.contains("no_multi") {
        Err(CommandError::NotInMulti)
    } else {
        transactions::queue(call)
    };
    if let Err(error) = not_queued {
        call.session.transaction.fail();
        call.reply.error(&error);
    }
}

/// Runs a command that was queued, `args`, and adds its reply to that of `call`.
pub(crate) fn run_queued(call: &mut Call<'_>, args: Args<'_>) {
    let mut queued = Call {
        store: &mut *call.store,
        state: &mut *call.state,
        session: &mut *call.session,
        args,
        reply: call.reply.nested(),
    };
    run(&mut queued);
    let ended = queued.reply.ended();
    call.reply.go_on(ended);
}

/// Names an unknown command and its first arguments.
struct Unknown<'a>(Args<'a>);

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Shown(self.0.at(0));
        write!(f, "unknown command '{name}', with args beginning with: ")?;
        let mut shown = 0;
        for arg in self.0.from(1) {
            if shown >= SHOWN_MAX {
                break;
            }
            let part = &arg[..arg.len().min(SHOWN_MAX - shown)];
            write!(f, "'{}' ", Shown(part))?;
            shown += part.len() + 3;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_in_any_case() {
        for command in COMMANDS {
            let found = find(command.name.as_bytes()).map(|found| found.name);
            assert_eq!(found, Some(command.name));
            let found = find(command.name.to_uppercase().as_bytes()).map(|found| found.name);
            assert_eq!(found, Some(command.name));
            assert!(command.name.bytes().all(|byte| byte.is_ascii_lowercase()));
        }
    }

    #[test]
    fn nothing_else_is_found() {
        for name in [
            &b""[..],
            b"ge",
            b"gett",
            b"g\x05t",
            b" get",
            b"get ",
            b"get\0",
            b"\0get",
            b"abcdefghijklmnopqrstuvwxyz",
            b"\xe7et",
        ] {
            assert!(find(name).is_none(), "{name:?}");
        }
    }
}
