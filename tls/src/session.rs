//! What TLS makes of the bytes of one connection. It has no socket: whoever has one says how to use it.

use crate::peer::Peer;
use crate::security::Check;
use rustls::Connection;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

/// Bytes of ciphertext read from a socket at a time.
const CIPHER_LEN: usize = 64 << 10;
/// Most plaintext handed to rustls at a time, in bytes; what it makes of that waits there for the socket.
const SEAL_MAX: usize = 64 << 10;

/// One connection's keys, and what waits there to be sent.
pub struct Session {
    connection: Connection,
    check: Option<Box<Check>>,
    peer: Option<Peer>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.peer.as_ref().map(Peer::member))
    }
}

/// What was read from a socket, and not looked at yet.
pub struct Cipher {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Cipher {
    fn default() -> Self {
        Self {
            bytes: vec![0; CIPHER_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Cipher {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Has `read` read more, once all was looked at. How much that is; 0: there will be none.
    ///
    /// # Errors
    /// What `read` says.
    pub fn refill<E>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        debug_assert!(self.is_empty());
        let count = read(&mut self.bytes)?;
        (self.start, self.end) = (0, count);
        Ok(count)
    }
}

impl Session {
    pub(crate) fn new(connection: impl Into<Connection>, check: Box<Check>) -> Self {
        Self {
            connection: connection.into(),
            check: Some(check),
            peer: None,
        }
    }

    /// The other end, once its certificate was checked.
    #[must_use]
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Takes of `bytes` what there is room for, and makes ciphertext of it; how much that is.
    ///
    /// # Errors
    /// If keys are worn out and cannot be renewed.
    pub fn seal(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(SEAL_MAX)];
        self.connection.writer().write(bytes)
    }

    /// Has `socket` take what waits for it. False if it has no room for all of it (`WouldBlock`).
    ///
    /// # Errors
    /// What `socket` says.
    pub fn flush(&mut self, socket: &mut dyn Write) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Fills `space` with plaintext, as far as `cipher` goes. `None`: nothing was left, more is to be read.
    /// `Some(0)`: the other end has said that there is no more.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`]: what came is not the other end's, came before, or came in another order; or the
    /// other end is not who it is to be. What is to be said of that to the other end waits to be sent.
    pub fn open(&mut self, cipher: &mut Cipher, space: &mut [u8]) -> io::Result<Option<usize>> {
        let mut count = 0;
        while count < space.len() {
            match self.connection.reader().read(&mut space[count..]) {
                Ok(0) => return Ok(Some(count)),
                Ok(more) => {
                    count += more;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Its end without a goodbye of TLS: frames and lines have their own.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(Some(count)),
                Err(e) => return Err(e),
            }
            if cipher.is_empty() {
                break;
            }
            let mut rest = &cipher.bytes[cipher.start..cipher.end];
            cipher.start += self.connection.read_tls(&mut rest)?;
            self.process()?;
        }
        Ok((count > 0).then_some(count))
    }

    /// Goes on with the handshake, as far as `cipher` goes. Whether it is done, and the other end was checked.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn shake(&mut self, cipher: &mut Cipher) -> io::Result<bool> {
        while self.peer.is_none() && !cipher.is_empty() {
            let mut rest = &cipher.bytes[cipher.start..cipher.end];
            cipher.start += self.connection.read_tls(&mut rest)?;
            self.process()?;
        }
        Ok(self.peer.is_some())
    }

    fn process(&mut self) -> io::Result<()> {
        let processed = self.connection.process_new_packets();
        processed.map_err(|e| invalid(said_of(&e)))?;
        if self.connection.is_handshaking() {
            return Ok(());
        }
        if let Some(check) = self.check.take() {
            let peer = Peer::shown(self.connection.peer_certificates());
            let checked = peer.and_then(|peer| check(&peer).map(|()| peer));
            self.peer = Some(checked.map_err(invalid)?);
        }
        Ok(())
    }
}

/// Whether what a peer has said begins as a TLS record does with which it greets, or refuses who does not (RFC 8446,
/// section 5.1: content types handshake and alert, and the version before).
#[must_use]
pub fn is_tls(said: &[u8]) -> bool {
    matches!(said, [0x15 | 0x16, 3, ..])
}

/// What a failed connection is to a person, where rustls is behind it.
#[must_use]
pub fn said(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.map_or_else(|| error.to_string(), said_of)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

/// Words for what TLS says, where its own would leave a person alone.
pub(crate) fn said_of(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    match error {
        Error::InvalidMessage(_) => "it does not speak TLS (is it without --tls?)".into(),
        Error::NoCertificatesPresented => "it shows no certificate".into(),
        Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer | Bad::BadSignature => {
                "its certificate is not of this cluster's authority".into()
            }
            Bad::Expired | Bad::ExpiredContext { .. } => "its certificate has expired".into(),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "its certificate is not valid yet (is a clock wrong?)".into()
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "its certificate is not for what it is called for".into()
            }
            bad => format!("its certificate: {bad}"),
        },
        Error::AlertReceived(alert) => match alert {
            Alert::CertificateExpired => "it says that this side's certificate has expired".into(),
            Alert::CertificateRequired | Alert::BadCertificate => {
                "it does not take this side's certificate".into()
            }
            Alert::UnknownCA | Alert::DecryptError => {
                "it says that this side's certificate is not of its cluster's authority".into()
            }
            Alert::CertificateUnknown | Alert::UnsupportedCertificate | Alert::AccessDenied => {
                "it does not take this side's certificate for this".into()
            }
            alert => format!("it says: {alert:?}"),
        },
        Error::DecryptError => {
            "a record that is not the other end's, or came before, or in another order".into()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Member, Role, Tls};

    /// The two ends of a connection, which have agreed on keys.
    fn ends() -> [Session; 2] {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), 2).unwrap();
        let [near, far] = ["a", "b"].map(|name| {
            let member = Member::host(name).unwrap();
            let identity = authority.issue(&member, &["vm".into()], 1, false);
            Tls::open(&identity.unwrap()).unwrap()
        });
        let of_vm = || Box::new(|peer: &Peer| peer.is_host_of("vm"));
        let mut ends = [
            Session::new(near.client(Role::Host).unwrap(), of_vm()),
            Session::new(far.server().unwrap(), of_vm()),
        ];
        for turn in [0, 1, 0, 1] {
            let said = sent(&mut ends[turn]);
            let mut cipher = Cipher::default();
            give(&mut cipher, &said);
            ends[1 - turn].shake(&mut cipher).unwrap();
        }
        assert!(ends.iter().all(|end| end.peer().is_some()));
        ends
    }

    fn sent(session: &mut Session) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(session.flush(&mut bytes).unwrap());
        bytes
    }

    fn give(cipher: &mut Cipher, bytes: &[u8]) {
        let read = |space: &mut [u8]| -> io::Result<usize> {
            space[..bytes.len()].copy_from_slice(bytes);
            Ok(bytes.len())
        };
        cipher.refill(read).unwrap();
    }

    fn sealed(session: &mut Session, said: &[u8]) -> Vec<u8> {
        assert_eq!(session.seal(said).unwrap(), said.len());
        sent(session)
    }

    fn opened(session: &mut Session, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let (mut cipher, mut space) = (Cipher::default(), [0; 256]);
        give(&mut cipher, bytes);
        let count = session.open(&mut cipher, &mut space)?.unwrap_or(0);
        Ok(space[..count].to_vec())
    }

    #[test]
    fn what_is_said_is_heard_either_way_and_after_new_keys() {
        let [mut near, mut far] = ends();
        for round in 0..3 {
            let record = sealed(&mut near, b"there");
            assert!(!record.windows(5).any(|part| part == b"there"));
            assert_eq!(opened(&mut far, &record).unwrap(), b"there");
            let record = sealed(&mut far, b"and back");
            assert_eq!(opened(&mut near, &record).unwrap(), b"and back");
            if round == 1 {
                near.connection.refresh_traffic_keys().unwrap();
            }
        }
    }

    #[test]
    fn a_record_again_or_before_another_or_changed_is_refused_for_good() {
        type Meddle = fn([Vec<u8>; 2]) -> Vec<u8>;
        let meddled: [(&str, Meddle); 4] = [
            ("again", |[first, _]| [first.clone(), first].concat()),
            ("in another order", |[first, second]| {
                [second, first].concat()
            }),
            ("without the first", |[_, second]| second),
            ("changed", |[mut first, _]| {
                *first.last_mut().unwrap() ^= 1;
                first
            }),
        ];
        for (what, meddle) in meddled {
            let [mut near, mut far] = ends();
            let records = [sealed(&mut near, b"one"), sealed(&mut near, b"two")];
            let error = opened(&mut far, &meddle(records)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{what}: {error}");
            assert!(error.to_string().contains("not the other end's"), "{error}");
            // Nothing of it is believed afterwards.
            let next = sealed(&mut near, b"three");
            assert!(opened(&mut far, &next).is_err(), "{what}");
        }
    }

    #[test]
    fn records_of_another_connection_are_refused() {
        let [mut near, _] = ends();
        let [_, mut far] = ends();
        assert!(opened(&mut far, &sealed(&mut near, b"hello")).is_err());
    }
}
