//! Why a connection or a command is refused, in Redis's words.

use core::fmt;

/// Bytes that are no command: the client is told and cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// The number after `*` is none, or too large.
    InvalidMultibulkLength,
    /// The number after `$` is none, negative, or larger than a value may be.
    InvalidBulkLength,
    /// Where the `$` of an argument should be, there is another byte.
    ExpectedDollar(u8),
    /// A line without its end, longer than a line may be.
    TooBigInline,
    /// A quote is not closed, or does not end its word.
    UnbalancedQuotes,
    /// The command is longer than one may be.
    TooBigCommand,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        match self {
            Self::InvalidMultibulkLength => f.write_str("invalid multibulk length"),
            Self::InvalidBulkLength => f.write_str("invalid bulk length"),
            Self::ExpectedDollar(byte) => write!(f, "expected '$', got '{}'", char::from(*byte)),
            Self::TooBigInline => f.write_str("too big inline request"),
            Self::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            Self::TooBigCommand => f.write_str("too big request"),
        }
    }
}

impl core::error::Error for ProtocolError {}

/// A command that was not done. Changes nothing but what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandError<'a> {
    Syntax,
    NotAnInteger,
    /// The number of arguments, for a command or for `container|subcommand`.
    Arity(&'static str, Option<&'static str>),
    UnknownSubcommand(&'static str, &'a [u8]),
    InvalidExpireTime(&'static str),
    Overflow,
    DecrementOverflow,
    TooLongString,
    OutOfMemory,
    TooBigReply,
    DbIndex,
    ExpireIncompatible,
    ExpireGreaterAndLess,
    UnsupportedOption(&'a [u8]),
    ClientName,
    ClientInfoValue(&'a [u8]),
    UnrecognizedOption(&'a [u8]),
    HelloVersion,
    HelloProtocol,
    HelloOption(&'a [u8]),
    NoPassword,
    WrongPassword,
    ConfigSet(&'a [u8]),
    /// The command that needs a MULTI before it, in upper case.
    WithoutMulti(&'static str),
    NestedMulti,
    WatchInMulti,
    NotInMulti,
    ExecAbort,
    /// EXEC itself is malformed, which ends the transaction.
    ExecArity,
    Cursor,
    TooManyClients,
    Protocol(ProtocolError),
}

impl CommandError<'_> {
    /// The word the reply begins with.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::OutOfMemory => "OOM",
            Self::ExecAbort | Self::ExecArity => "EXECABORT",
            Self::HelloProtocol => "NOPROTO",
            Self::WrongPassword => "WRONGPASS",
            _ => "ERR",
        }
    }
}

impl fmt::Display for CommandError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = match *self {
            Self::Arity(command, None) => {
                return write!(f, "wrong number of arguments for '{command}' command");
            }
            Self::Arity(command, Some(sub)) => {
                return write!(f, "wrong number of arguments for '{command}|{sub}' command");
            }
            Self::UnknownSubcommand(command, sub) => {
                let sub = Shown(sub);
                return write!(f, "unknown subcommand '{sub}'. Try {command} HELP.");
            }
            Self::InvalidExpireTime(command) => {
                return write!(f, "invalid expire time in '{command}' command");
            }
            Self::UnsupportedOption(option) => {
                return write!(f, "Unsupported option {}", Shown(option));
            }
            Self::ClientInfoValue(option) => {
                return write!(
                    f,
                    "{} cannot contain spaces, newlines or special characters.",
                    Shown(option)
                );
            }
            Self::UnrecognizedOption(option) => {
                return write!(f, "Unrecognized option '{}'", Shown(option));
            }
            Self::HelloOption(option) => {
                return write!(f, "Syntax error in HELLO option '{}'", Shown(option));
            }
            Self::ConfigSet(option) => {
                return write!(
                    f,
                    "Unknown option or number of arguments for CONFIG SET - '{}'",
                    Shown(option)
                );
            }
            Self::WithoutMulti(command) => return write!(f, "{command} without MULTI"),
            Self::Protocol(error) => return error.fmt(f),
            Self::NestedMulti => "MULTI calls can not be nested",
            Self::WatchInMulti => "WATCH inside MULTI is not allowed",
            Self::NotInMulti => "Command not allowed inside a transaction",
            Self::ExecAbort => "Transaction discarded because of previous errors.",
            Self::ExecArity => {
                "Transaction discarded because of: wrong number of arguments for 'exec' command"
            }
            Self::Cursor => "invalid cursor",
            Self::TooManyClients => "max number of clients reached",
            Self::Syntax => "syntax error",
            Self::NotAnInteger => "value is not an integer or out of range",
            Self::Overflow => "increment or decrement would overflow",
            Self::DecrementOverflow => "decrement would overflow",
            Self::TooLongString => "string exceeds maximum allowed size (proto-max-bulk-len)",
            Self::OutOfMemory => "command not allowed when used memory > 'maxmemory'.",
            Self::TooBigReply => "reply exceeds the maximum allowed size",
            Self::DbIndex => "DB index is out of range",
            Self::ExpireIncompatible => {
                "NX and XX, GT or LT options at the same time are not compatible"
            }
            Self::ExpireGreaterAndLess => "GT and LT options at the same time are not compatible",
            Self::ClientName => {
                "Client names cannot contain spaces, newlines or special characters."
            }
            Self::HelloVersion => "Protocol version is not an integer or out of range",
            Self::HelloProtocol => "unsupported protocol version",
            Self::NoPassword => {
                "AUTH <password> called without any password configured for the default user. \
                 Are you sure your configuration is correct?"
            }
            Self::WrongPassword => "invalid username-password pair or user is disabled.",
        };
        f.write_str(fixed)
    }
}

/// Bytes of a client within an error text: at most 128 of them.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

/// Most bytes of a client's word that an error repeats.
pub(crate) const SHOWN_MAX: usize = 128;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0[..self.0.len().min(SHOWN_MAX)].utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("?")?;
            }
        }
        Ok(())
    }
}
