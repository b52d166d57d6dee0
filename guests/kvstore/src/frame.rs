//! Finds the commands in a stream of bytes, in place, however the stream is cut.
//!
//! ```text
//! *2\r\n  $3\r\n GET\r\n  $5\r\n color\r\n  |  next command ...
//! └Start  └Header └Body    └Header └Body  └─ end
//!
//! GET "color"\r\n                         |  next command ...     (inline: as typed into telnet)
//! └Start, Inline                          └─ end
//! ```

use alloc::vec::Vec;

use crate::error::ProtocolError;
use crate::number;

/// Most bytes of an inline command, as in Redis.
const INLINE_MAX: usize = 64 * 1024;
/// Most arguments of a command.
const ARGUMENTS_MAX: usize = 64 * 1024;
/// Most bytes of a length, its line end not counted: more are no length, whatever follows.
const LENGTH_DIGITS_MAX: usize = 32;
/// Arguments a frame keeps room for between commands.
const ARGUMENTS_KEPT: usize = 1024;
/// Bytes of inline arguments a frame keeps room for between commands.
const LINE_KEPT: usize = 1024;
const LINE_END: usize = 2;

/// What bounds a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameLimits {
    /// Most bytes of one argument.
    pub(crate) bulk_max: usize,
    /// Most bytes of one command.
    pub(crate) command_max: usize,
}

/// Where an argument lies. 32 bits suffice: a command is far shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Start,
    Header,
    Body { bytes: usize },
    Inline,
}

/// One command, as far as it is there.
#[derive(Debug)]
pub(crate) struct Frame {
    state: State,
    /// What is understood already, from the start of the command.
    at: usize,
    /// Arguments still to come.
    missing: usize,
    spans: Vec<Span>,
    /// The arguments of an inline command without quotes and escapes; spans point in here.
    line: Vec<u8>,
}

/// The arguments of a command; the first is its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// The arguments that lie at `spans` in `bytes`.
    pub(crate) fn new(bytes: &'a [u8], spans: &'a [Span]) -> Self {
        Self { bytes, spans }
    }

    /// Number of arguments, the name included.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Argument `index`.
    ///
    /// # Panics
    /// If there are fewer: the arity of each command is checked before it runs.
    #[inline]
    pub(crate) fn at(&self, index: usize) -> &'a [u8] {
        let span = self.spans[index];
        &self.bytes[span.start as usize..span.end as usize]
    }

    /// Argument `index`, if there are that many.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&'a [u8]> {
        (index < self.spans.len()).then(|| self.at(index))
    }

    /// The arguments from `index` on.
    pub(crate) fn from(&self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        self.spans[index..]
            .iter()
            .map(move |span| &bytes[span.start as usize..span.end as usize])
    }
}

impl Frame {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Start,
            at: 0,
            missing: 0,
            spans: Vec::new(),
            line: Vec::new(),
        }
    }

    /// Reads on in `data`, which begins with the first byte of the command and has all that was
    /// there at the last call. Returns the command's length once it is complete; it may have no
    /// argument at all, and is to be ignored then.
    ///
    /// Looks at no byte twice but for an unfinished number, so the work is in proportion to the
    /// bytes, however they are cut.
    ///
    /// # Errors
    /// If this is no command. The stream cannot be read on then.
    #[inline]
    pub(crate) fn parse(
        &mut self,
        data: &[u8],
        limits: FrameLimits,
    ) -> Result<Option<usize>, ProtocolError> {
        loop {
            match self.state {
                State::Body { bytes } => {
                    let end = self.at + bytes;
                    if end + LINE_END > data.len() {
                        return Ok(None);
                    }
                    self.spans
                        .try_reserve(1)
                        .map_err(|_| ProtocolError::TooBigCommand)?;
                    self.spans.push(Span {
                        start: self.at as u32,
                        end: end as u32,
                    });
                    self.at = end + LINE_END;
                    self.missing -= 1;
                    if self.missing == 0 {
                        return Ok(Some(self.at));
                    }
                    self.state = State::Header;
                }
                State::Header => {
                    match data.get(self.at) {
                        None => return Ok(None),
                        Some(b'$') => {}
                        Some(&byte) => return Err(ProtocolError::ExpectedDollar(byte)),
                    }
                    let error = ProtocolError::InvalidBulkLength;
                    let Some((bytes, body)) = length(data, self.at + 1, error)? else {
                        return Ok(None);
                    };
                    let bytes = usize::try_from(bytes).map_err(|_| error)?;
                    if bytes > limits.bulk_max {
                        return Err(error);
                    }
                    if body + bytes + LINE_END > limits.command_max {
                        return Err(ProtocolError::TooBigCommand);
                    }
                    self.at = body;
                    self.state = State::Body { bytes };
                }
                State::Start => match data.first() {
                    None => return Ok(None),
                    Some(b'*') => {
                        let error = ProtocolError::InvalidMultibulkLength;
                        let Some((count, after)) = length(data, 1, error)? else {
                            return Ok(None);
                        };
                        if count > ARGUMENTS_MAX as i64 {
                            return Err(error);
                        }
                        if count <= 0 {
                            return Ok(Some(after));
                        }
                        self.at = after;
                        self.missing = count as usize;
                        self.state = State::Header;
                    }
                    Some(_) => self.state = State::Inline,
                },
                State::Inline => return self.parse_inline(data),
            }
        }
    }

    fn parse_inline(&mut self, data: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let Some(found) = data[self.at..].iter().position(|&byte| byte == b'\n') else {
            if data.len() > INLINE_MAX {
                return Err(ProtocolError::TooBigInline);
            }
            self.at = data.len();
            return Ok(None);
        };
        let end = self.at + found;
        if end > INLINE_MAX {
            return Err(ProtocolError::TooBigInline);
        }
        let line = &data[..end];
        // Words are no longer than they were typed, and a blank follows each but the last.
        let room = self.line.try_reserve(line.len());
        room.and_then(|()| self.spans.try_reserve(line.len() / 2 + 1))
            .map_err(|_| ProtocolError::TooBigCommand)?;
        self.split(line.strip_suffix(b"\r").unwrap_or(line))
            .ok_or(ProtocolError::UnbalancedQuotes)?;
        Ok(Some(end + 1))
    }

    /// Splits a line into words; `None` if its quotes are not balanced.
    fn split(&mut self, line: &[u8]) -> Option<()> {
        let mut rest = line.trim_ascii_start();
        while !rest.is_empty() {
            let start = self.line.len() as u32;
            rest = word(rest, &mut self.line)?.trim_ascii_start();
            let end = self.line.len() as u32;
            self.spans.push(Span { start, end });
        }
        Some(())
    }

    /// The arguments of the complete command that starts at the start of `data`.
    #[inline]
    pub(crate) fn args<'a>(&'a self, data: &'a [u8]) -> Args<'a> {
        let bytes = if matches!(self.state, State::Inline) {
            &self.line
        } else {
            data
        };
        Args {
            bytes,
            spans: &self.spans,
        }
    }

    /// Makes ready for the next command.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.state = State::Start;
        self.at = 0;
        self.spans.clear();
        self.line.clear();
        if self.spans.capacity() > ARGUMENTS_KEPT || self.line.capacity() > LINE_KEPT {
            self.spans = Vec::new();
            self.line = Vec::new();
        }
    }

    /// Bytes of memory held.
    #[inline]
    pub(crate) fn footprint(&self) -> usize {
        self.spans.capacity() * size_of::<Span>() + self.line.capacity()
    }
}

/// The number at `from`, and where its line ends; `None` if the line is not there yet.
#[inline]
fn length(
    data: &[u8],
    from: usize,
    error: ProtocolError,
) -> Result<Option<(i64, usize)>, ProtocolError> {
    // Nearly every length there is has one or two digits and is all there.
    match data.get(from..from + 4) {
        Some(&[ones @ b'0'..=b'9', b'\r', _, _]) => {
            return Ok(Some((i64::from(ones - b'0'), from + 3)));
        }
        Some(&[tens @ b'1'..=b'9', ones @ b'0'..=b'9', b'\r', _]) => {
            return Ok(Some((
                i64::from(tens - b'0') * 10 + i64::from(ones - b'0'),
                from + 4,
            )));
        }
        _ => {}
    }
    any_length(data, from, error)
}

#[cold]
fn any_length(
    data: &[u8],
    from: usize,
    error: ProtocolError,
) -> Result<Option<(i64, usize)>, ProtocolError> {
    let rest = data.get(from..).unwrap_or_default();
    let text = &rest[..rest.len().min(LENGTH_DIGITS_MAX)];
    match text.iter().position(|&byte| byte == b'\r') {
        Some(digits) if rest.len() < digits + LINE_END => Ok(None),
        Some(digits) => match number::parse(&text[..digits]) {
            Some(value) => Ok(Some((value, from + digits + LINE_END))),
            None => Err(error),
        },
        None if text.len() == LENGTH_DIGITS_MAX => Err(error),
        None => Ok(None),
    }
}

/// Appends the first word of `line`, which is not empty and starts with no space, to `out`, without
/// its quotes and escapes, and returns the rest; `None` if its quotes are not balanced.
fn word<'a>(line: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let mut rest = line;
    let mut quote = None;
    loop {
        rest = match (quote, rest) {
            (None, []) => return Some(rest),
            (Some(_), []) => return None,
            (None, [byte, ..]) if byte.is_ascii_whitespace() => return Some(&rest[1..]),
            (None, [byte @ (b'"' | b'\''), after @ ..]) => {
                quote = Some(*byte);
                after
            }
            (Some(b'"'), [b'\\', b'x', high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                out.push(hex(*high) << 4 | hex(*low));
                after
            }
            (Some(b'"'), [b'\\', escaped, after @ ..]) => {
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                after
            }
            (Some(b'\''), [b'\\', b'\'', after @ ..]) => {
                out.push(b'\'');
                after
            }
            // A closing quote ends the word: a space or the end of the line must follow.
            (Some(open), [byte, after @ ..]) if *byte == open => {
                let ends = after.first().is_none_or(u8::is_ascii_whitespace);
                return ends.then_some(after);
            }
            (_, [byte, after @ ..]) => {
                out.push(*byte);
                after
            }
        };
    }
}

/// Value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}
