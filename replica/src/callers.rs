//! Who calls at a backup's port before it has a primary. Anybody may: nobody is waited for.

use crate::Message;
use crate::address::HostPort;
use crate::asked::Ask;
use crate::error::{During, Outcome, ReplicaError};
use crate::notice::{Log, Notice};
use crate::partners::Partners;
use logchannel::{Caller, Hello};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use testandset::Contender;
use tls::Strangers;

/// Longest time for a caller to greet, once connected.
const GREETING: Duration = Duration::from_secs(2);
/// Most callers listened to at a time; the one who has been silent longest makes room.
const CALLERS_MAX: usize = 16;
/// Milliseconds between two looks at what this process is asked.
const LOOK_MS: u16 = 100;

/// A port, and who is connected there without having greeted.
pub struct Callers {
    listener: TcpListener,
    partners: Partners,
    strangers: Strangers,
    /// The oldest first.
    silent: Vec<Caller>,
}

impl Callers {
    /// Listens at `address`.
    ///
    /// # Errors
    /// If it is not to be had.
    pub fn at(address: &HostPort, partners: Partners) -> Outcome<Self> {
        let listener = partners.listen(address).during(format_args!(
            "cannot listen on {address} (is another backup using the port?)"
        ))?;
        Self::of(listener, partners)
    }

    /// Of a port that is listened at.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn of(listener: TcpListener, partners: Partners) -> Outcome<Self> {
        // A caller may be gone between being announced and accepted.
        listener.set_nonblocking(true).during("cannot listen")?;
        Ok(Self {
            listener,
            partners,
            strangers: Strangers::default(),
            silent: Vec::new(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn address(&self) -> Outcome<SocketAddr> {
        self.listener.local_addr().during("cannot listen")
    }

    /// The port, with whoever calls there next; those who have not greeted are hung up on.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }

    /// Waits for somebody who greets.
    ///
    /// # Errors
    /// If this replica is asked to stop, or the port fails.
    pub fn next(
        &mut self,
        messages: &Receiver<Message>,
        log: &mut Log,
    ) -> Outcome<(Caller, Hello)> {
        loop {
            if is_stopped(messages, log) {
                return Err(ReplicaError::refused(STOPPED));
            }
            self.wait()?;
            self.accept(log)?;
            if let Some(greeted) = self.listen(log) {
                return Ok(greeted);
            }
        }
    }

    fn wait(&self) -> Outcome {
        let mut fds: Vec<PollFd> = self
            .silent
            .iter()
            .map(|caller| PollFd::new(caller.as_fd(), PollFlags::POLLIN))
            .collect();
        fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        match poll(&mut fds, LOOK_MS) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn accept(&mut self, log: &mut Log) -> Outcome {
        use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        let socket = match self.listener.accept() {
            Ok((socket, _)) => socket,
            Err(e) if [WouldBlock, Interrupted, ConnectionAborted].contains(&e.kind()) => {
                return Ok(());
            }
            Err(e) => return Err(e).during("cannot accept a primary"),
        };
        let caller = self
            .partners
            .answer(socket)
            .map_err(|e| e.to_string())
            .and_then(|stream| Caller::new(stream, GREETING).map_err(|e| e.to_string()));
        match caller {
            Ok(caller) => {
                if self.silent.len() >= CALLERS_MAX {
                    self.silent.remove(0);
                }
                self.silent.push(caller);
            }
            Err(e) => self.turn_away(&e, log),
        }
        Ok(())
    }

    fn turn_away(&self, why: &str, log: &mut Log) {
        if let Some(so_far) = self.strangers.add() {
            log.note(Notice::CallerTurnedAway { why, so_far });
        }
    }

    /// Takes what the callers have said; the first who has greeted.
    fn listen(&mut self, log: &mut Log) -> Option<(Caller, Hello)> {
        let mut at = 0;
        while let Some(caller) = self.silent.get_mut(at) {
            match caller.listen() {
                Ok(None) => at += 1,
                Ok(Some(hello)) => {
                    let caller = self.silent.remove(at);
                    match names_itself(&caller, &hello) {
                        Ok(()) => return Some((caller, hello)),
                        Err(why) => self.turn_away(&why, log),
                    }
                }
                Err(e) => {
                    self.silent.remove(at);
                    self.turn_away(&e.to_string(), log);
                }
            }
        }
        None
    }
}

/// Whether a primary goes by the name of the host that its certificate names.
fn names_itself(caller: &Caller, hello: &Hello) -> Result<(), String> {
    let Some(peer) = caller.identity() else {
        return Ok(());
    };
    let named = Contender::new(hello.incarnation.as_str()).ok();
    if named.as_ref().and_then(Contender::host) == peer.host() {
        return Ok(());
    }
    Err(format!("{peer} calls itself {}", hello.incarnation))
}

/// How a backup ends that is asked to before it has a primary.
pub const STOPPED: &str = "stopped before a primary came";

/// Hears what this backup, which has no primary yet, was asked since the last time: whether to stop.
pub fn is_stopped(messages: &Receiver<Message>, log: &mut Log) -> bool {
    match messages.try_recv() {
        Ok(Message::StopAsked | Message::HaltAsked(_)) => return true,
        Ok(Message::Asked(ask, asker)) => {
            let why = "this is a backup that waits for its primary";
            if let Ask::Protect(backup) | Ask::Move(backup) = ask {
                let backup = &backup.to_string();
                log.note(Notice::JoinFailed { backup, why });
            }
            asker.refuse(why);
        }
        _ => {}
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anywhere() -> Callers {
        let vm = testandset::VmId::new("vm").unwrap();
        let partners = Partners::new(tls::Security::Loopback, vm);
        Callers::at(&HostPort::to_listen("127.0.0.1:0").unwrap(), partners).unwrap()
    }
    use logchannel::{Settings, offer};
    use replay::ViewNumber;
    use std::net::TcpStream;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    fn hello() -> Hello {
        Hello {
            vm: "vm".into(),
            incarnation: "a".into(),
            base: replay::Base::boot(ViewNumber(1), 0),
            store: [0; 16],
            settings: Settings::default(),
            config: Vec::new(),
        }
    }

    #[test]
    fn a_primary_is_heard_however_many_are_silent() {
        let mut callers = anywhere();
        let address = callers.address().unwrap();
        let begun = Instant::now();
        let _silent: Vec<_> = (0..CALLERS_MAX + 3)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let limit = Duration::from_secs(20);
        let primary = std::thread::spawn(move || {
            let socket = TcpStream::connect(address).unwrap();
            offer(socket, &hello(), limit).map(|_| ())
        });
        let (_keep, messages) = channel();
        let (caller, heard) = callers.next(&messages, &mut Log(Box::new(()))).unwrap();
        assert_eq!(heard.incarnation, "a");
        caller.answer(&heard, limit, |_| Ok(None)).unwrap();
        primary.join().unwrap().unwrap();
        assert!(begun.elapsed() < GREETING, "it waited for a silent one");
        assert!(callers.silent.len() <= CALLERS_MAX);
    }

    #[test]
    fn the_silent_are_dropped_when_their_time_is_over() {
        let mut callers = anywhere();
        let silent = TcpStream::connect(callers.address().unwrap()).unwrap();
        let (stop, messages) = channel();
        let serving =
            std::thread::spawn(move || callers.next(&messages, &mut Log(Box::new(()))).map(|_| ()));
        let mut silent = silent;
        let read = std::io::Read::read(&mut silent, &mut [0]).unwrap();
        assert_eq!(read, 0, "it hung up");
        stop.send(Message::StopAsked).unwrap();
        let stopped = serving.join().unwrap().unwrap_err();
        assert!(stopped.to_string().contains("stopped before"));
    }

    #[test]
    fn a_stop_is_obeyed_while_somebody_is_silent() {
        let mut callers = anywhere();
        let _silent = TcpStream::connect(callers.address().unwrap()).unwrap();
        callers.wait().unwrap();
        callers.accept(&mut Log(Box::new(()))).unwrap();
        assert_eq!(callers.silent.len(), 1);
        let (stop, messages) = channel();
        let begun = Instant::now();
        stop.send(Message::StopAsked).unwrap();
        assert!(callers.next(&messages, &mut Log(Box::new(()))).is_err());
        assert!(begun.elapsed() < GREETING);
    }
}
