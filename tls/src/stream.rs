//! A socket, and what protects it, if anything does.

use crate::peer::Peer;
use crate::session::{Cipher, Session};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

/// A connection: plaintext, or TLS. It waits, or does not, as its socket does.
pub struct Stream {
    socket: TcpStream,
    secret: Option<Box<(Session, Cipher)>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Stream");
        shown.field("socket", &self.socket);
        shown.field("session", &self.secret.as_ref().map(|secret| &secret.0));
        shown.finish()
    }
}

impl From<TcpStream> for Stream {
    /// Plaintext.
    fn from(socket: TcpStream) -> Self {
        let secret = None;
        Self { socket, secret }
    }
}

impl Stream {
    pub(crate) fn secret(socket: TcpStream, session: Session) -> Self {
        let secret = Some(Box::new((session, Cipher::default())));
        Self { socket, secret }
    }

    /// Its socket: for settings, addresses, and to wait at.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The other end, once its certificate was checked; `None` for plaintext.
    #[must_use]
    pub fn peer(&self) -> Option<&Peer> {
        self.secret.as_ref().and_then(|secret| secret.0.peer())
    }

    /// What it is made of: the socket, and TLS if there is.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, Option<(Session, Cipher)>) {
        (self.socket, self.secret.map(|secret| *secret))
    }

    /// The same, for one use or several of which `ready` is called before each use of the socket: reading and writing
    /// may take several, so a caller that has a deadline keeps it.
    ///
    /// Reading and writing fail with what the socket says, and with [`ErrorKind::InvalidData`] as [`Session::open`].
    pub fn using<F: FnMut(&TcpStream) -> io::Result<()>>(&mut self, ready: F) -> Using<'_, F> {
        Using {
            stream: self,
            ready,
        }
    }

    /// Has the two agree on keys, and each check whom the other's certificate names, if they have not.
    ///
    /// # Errors
    /// What the socket says, and [`ErrorKind::InvalidData`] as [`Session::open`].
    pub fn handshake(&mut self, ready: impl FnMut(&TcpStream) -> io::Result<()>) -> io::Result<()> {
        let Self { socket, secret } = self;
        let Some(secret) = secret else { return Ok(()) };
        let (session, cipher) = &mut **secret;
        if session.peer().is_some() {
            return Ok(());
        }
        let mut socket = Ready { socket, ready };
        loop {
            match session.shake(cipher) {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => return Err(last_word(session, &mut socket, e)),
            }
            session.flush(&mut socket)?;
            match cipher.refill(|bytes| socket.read(bytes)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        session.flush(&mut socket).map(|_| ())
    }
}

/// Tells the other end why, which it need not hear, and returns that.
fn last_word(session: &mut Session, socket: &mut dyn Write, why: io::Error) -> io::Error {
    let _ = session.flush(socket);
    why
}

/// A socket that is made ready before each use.
struct Ready<'a, F> {
    socket: &'a TcpStream,
    ready: F,
}

impl<F: FnMut(&TcpStream) -> io::Result<()>> Read for Ready<'_, F> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        (self.ready)(self.socket)?;
        self.socket.read(space)
    }
}

impl<F: FnMut(&TcpStream) -> io::Result<()>> Write for Ready<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.ready)(self.socket)?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A [`Stream`] whose socket is made ready before each use.
pub struct Using<'a, F> {
    stream: &'a mut Stream,
    ready: F,
}

impl<F: FnMut(&TcpStream) -> io::Result<()>> Read for Using<'_, F> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let Self { stream, ready } = self;
        stream.handshake(&mut *ready)?;
        let Stream { socket, secret } = stream;
        let mut socket = Ready { socket, ready };
        let Some(secret) = secret else {
            return socket.read(space);
        };
        let (session, cipher) = &mut **secret;
        loop {
            match session.open(cipher, space) {
                Ok(Some(count)) => return Ok(count),
                Ok(None) => {}
                Err(e) => return Err(last_word(session, &mut socket, e)),
            }
            // An answer that keys were changed, as a rule nothing.
            session.flush(&mut socket)?;
            if cipher.refill(|bytes| socket.read(bytes))? == 0 {
                return Ok(0);
            }
        }
    }
}

impl<F: FnMut(&TcpStream) -> io::Result<()>> Write for Using<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { stream, ready } = self;
        stream.handshake(&mut *ready)?;
        let Stream { socket, secret } = stream;
        let mut socket = Ready { socket, ready };
        let Some(secret) = secret else {
            return socket.write(bytes);
        };
        let session = &mut secret.0;
        if !session.flush(&mut socket)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = session.seal(bytes)?;
        // What does not fit goes out with the next bytes, or at the next read.
        session.flush(&mut socket)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let Self { stream, ready } = self;
        let Stream { socket, secret } = stream;
        let Some(secret) = secret else {
            return Ok(());
        };
        if secret.0.flush(&mut Ready { socket, ready })? {
            return Ok(());
        }
        Err(ErrorKind::WouldBlock.into())
    }
}

impl Read for Stream {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        self.using(|_| Ok(())).read(space)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.using(|_| Ok(())).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.using(|_| Ok(())).flush()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
