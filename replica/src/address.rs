//! Where a peer or a service is, as its operator writes it.

use crate::error::{During, Outcome, ReplicaError};
use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// `HOST:PORT`; the host is a name or a numeric address (IPv6 in brackets).
///
/// A name is looked up where it is used, not where it is read: what it stands for may change, and a name
/// server that is away is no wrong usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(String);

impl HostPort {
    /// Where to listen: port 0 is any that is free.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn to_listen(text: &str) -> Result<Self, String> {
        let (host, port) = text
            .rsplit_once(':')
            .ok_or("it takes HOST:PORT, the host by name or address")?;
        let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let plain = v6.map_or(!host.contains(':'), |host| !host.is_empty());
        if host.is_empty() || host.contains(char::is_whitespace) || !plain {
            return Err(format!(
                "'{host}' is no host: it takes a name, an IPv4 address, or an IPv6 address in brackets"
            ));
        }
        if port.parse::<u16>().is_err() {
            return Err(format!("'{port}' is no port: it takes 0 to 65535"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Where to connect to: as [`Self::to_listen`], but not to port 0.
    ///
    /// # Errors
    /// What is wrong with `text`.
    pub fn to_connect(text: &str) -> Result<Self, String> {
        let address = Self::to_listen(text)?;
        if text.ends_with(":0") {
            return Err("nobody can be reached at port 0".into());
        }
        Ok(address)
    }

    /// All addresses it stands for; at least one.
    ///
    /// # Errors
    /// If the host is unknown, or nobody can be asked.
    pub fn resolve(&self) -> Outcome<Vec<SocketAddr>> {
        let unknown = format!("the host of {self} is not found");
        let addresses: Vec<_> = self.0.to_socket_addrs().during(&unknown)?.collect();
        if addresses.is_empty() {
            return Err(ReplicaError::refused(unknown));
        }
        Ok(addresses)
    }

    /// Listens at the first of its addresses that this host has.
    ///
    /// # Errors
    /// If the host is unknown, none of its addresses is this host's, or the port is taken: at another of its
    /// addresses those who know it by name would not look first.
    pub fn listen(&self) -> Outcome<TcpListener> {
        let mut last = ReplicaError::refused("no address");
        for address in self.resolve()? {
            match TcpListener::bind(address) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(error.into()),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// A connection to the first of its addresses that takes one, each given `limit`.
    ///
    /// # Errors
    /// If the host is unknown, or what the last address failed with.
    pub fn connect(&self, limit: Duration) -> Outcome<TcpStream> {
        let mut last = ReplicaError::refused("no address");
        for address in self.resolve()? {
            match TcpStream::connect_timeout(&address, limit) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_goes_by_name_or_address_and_nonsense_is_told() {
        for good in [
            "localhost:7700",
            "10.0.0.1:0",
            "[::1]:7700",
            "a-b.example:1",
        ] {
            assert_eq!(HostPort::to_listen(good).unwrap().to_string(), good);
        }
        for (bad, word) in [
            ("localhost", "HOST:PORT"),
            (":7700", "no host"),
            ("a b:7700", "no host"),
            ("::1:7700", "brackets"),
            ("[]:7700", "no host"),
            ("localhost:", "no port"),
            ("localhost:65536", "no port"),
            ("localhost:http", "no port"),
        ] {
            let why = HostPort::to_connect(bad).unwrap_err();
            assert!(why.contains(word), "{bad}: {why}");
        }
        assert!(HostPort::to_connect("localhost:0").is_err());
    }

    #[test]
    fn a_name_connects_to_whichever_of_its_addresses_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let named = HostPort::to_connect(&format!("localhost:{port}")).unwrap();
        named.connect(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_name_whose_port_is_taken_is_refused_though_another_address_of_it_is_free() {
        let listen = |port: u16| {
            let named = format!("localhost:{port}");
            HostPort::to_listen(&named).unwrap().listen()
        };
        let taken = listen(0).unwrap();
        let refused = listen(taken.local_addr().unwrap().port()).unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
    }
}
