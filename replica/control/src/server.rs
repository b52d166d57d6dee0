//! The replica's end of its control socket: takes what is asked, and tells what comes of it.

use crate::protocol::{ASKING_MAX, Lines, Request, Status, VERSION, deadline, failed, say};
use crate::socket::Socket;
use names::VmId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use replica::{During, Handle, HostPort, Outcome, Told};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most connections at once. One more, and the oldest that has not asked anything yet is closed.
const CONNECTIONS_MAX: usize = 16;
/// Longest time from a connection to the end of the line that asks.
const ASKING: Duration = Duration::from_secs(5);
/// Longest time for a line to be taken.
const TAKING: Duration = Duration::from_secs(2);
/// Longest time the replica's end waits for its last answers to be told.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves a replica's control socket until it is dropped, which removes that. To be dropped when the replica is
/// over: whoever waits is told how it went first.
pub struct Server {
    crowd: Arc<Crowd>,
    /// Closed to end the thread that accepts.
    stay: Option<UnixStream>,
    accepting: Option<JoinHandle<()>>,
}

/// What is known of a replica besides its status.
struct Replica {
    vm: VmId,
    handle: Handle,
}

impl Server {
    /// Answers whoever calls at `socket` for the replica of `handle`.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(socket: Socket, vm: VmId, handle: Handle) -> Outcome<Self> {
        let starting = "cannot serve the control socket";
        socket.listener().set_nonblocking(true).during(starting)?;
        let (stay, leave) = UnixStream::pair().during(starting)?;
        let crowd = Arc::new(Crowd::default());
        let replica = Arc::new(Replica { vm, handle });
        let accepting = std::thread::Builder::new()
            .name("control-socket".into())
            .spawn({
                let crowd = crowd.clone();
                move || accept(&socket, &leave, &replica, &crowd)
            })
            .during(starting)?;
        Ok(Self {
            crowd,
            stay: Some(stay),
            accepting: Some(accepting),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stay.take());
        if let Some(accepting) = self.accepting.take() {
            // If it panicked, this process has ended.
            let _ = accepting.join();
        }
        self.crowd.farewell();
    }
}

/// Accepts callers until the other end of `leave` is closed.
fn accept(socket: &Socket, leave: &UnixStream, replica: &Arc<Replica>, crowd: &Arc<Crowd>) {
    loop {
        let mut fds =
            [leave.as_fd(), socket.listener().as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(e) => return tracing::warn!("the control socket is served no more: {e}"),
            Ok(_) if fds[0].any() != Some(false) => return,
            Ok(_) => {}
        }
        let Ok((stream, _)) = socket.listener().accept() else {
            // The caller may be gone already. If it was for want of descriptors, they come back.
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        let Some(place) = Place::take(crowd, &stream) else {
            continue;
        };
        let replica = replica.clone();
        let thread = std::thread::Builder::new().name("control-asker".into());
        let serve = move || {
            if let Err(e) = serve(stream, &replica, &place) {
                tracing::debug!("a caller at the control socket: {e}");
            }
        };
        if let Err(e) = thread.spawn(serve) {
            tracing::warn!("a caller at the control socket was turned away: {e}");
        }
    }
}

/// One connection: a line that asks, and the lines that answer.
fn serve(mut stream: UnixStream, replica: &Replica, place: &Place) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(TAKING))?;
    let asked = Lines::of(&stream, ASKING_MAX).next_as(deadline(ASKING));
    let request = match asked {
        Ok(None) => return Ok(()),
        Ok(Some(request)) => request,
        Err(e) => return say(&mut stream, &failed(e.to_string())),
    };
    if !place.has_asked() {
        return Ok(());
    }
    let to_connect =
        |text: &str| HostPort::to_connect(text).map_err(|why| failed(format!("'{text}': {why}")));
    let told = match request {
        Request::Status => return say(&mut stream, &status(replica)),
        Request::Protect { backup } => {
            to_connect(&backup).map(|backup| replica.handle.protect(backup))
        }
        Request::Move { to } => to_connect(&to).map(|to| replica.handle.move_to(to)),
        Request::Failover { leave: false } => Ok(replica.handle.failover()),
        Request::Failover { leave: true } => Ok(replica.handle.leave()),
    };
    match told {
        Err(refusal) => say(&mut stream, &refusal),
        // It ends with what was asked, or with the replica.
        Ok(told) => told.into_iter().try_for_each(|told| match told {
            Told::Failed { why } => say(&mut stream, &failed(why)),
            told => say(&mut stream, &told),
        }),
    }
}

fn status(replica: &Replica) -> Status {
    let status = replica.handle.status();
    Status {
        version: VERSION,
        vm: replica.vm.clone(),
        pid: std::process::id(),
        role: status.role,
        view: status.view,
        lag_ms: status.lag_ms,
    }
}

/// Who is connected, the oldest first.
#[derive(Default)]
struct Crowd {
    present: Mutex<Vec<Caller>>,
    /// How many there have been.
    came: AtomicU64,
    left: Condvar,
}

struct Caller {
    number: u64,
    stream: UnixStream,
    has_asked: bool,
}

impl Crowd {
    fn present(&self) -> MutexGuard<'_, Vec<Caller>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, for a moment, until everybody has been told what is to be told. Whoever has not asked is hung up on.
    fn farewell(&self) {
        let mut present = self.present();
        for caller in present.iter().filter(|caller| !caller.has_asked) {
            // It may be gone.
            let _ = caller.stream.shutdown(Shutdown::Both);
        }
        let until = Instant::now() + FAREWELL;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if present.is_empty() || left.is_zero() {
                return;
            }
            let waited = self.left.wait_timeout(present, left);
            present = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A connection's place in the crowd.
struct Place {
    crowd: Arc<Crowd>,
    number: u64,
}

impl Place {
    /// A place for `stream`; none if all are taken by callers that wait for an answer.
    fn take(crowd: &Arc<Crowd>, stream: &UnixStream) -> Option<Self> {
        let stream = stream.try_clone().ok()?;
        let mut present = crowd.present();
        if present.len() >= CONNECTIONS_MAX {
            let silent = present.iter().position(|caller| !caller.has_asked)?;
            // Its thread ends by that.
            let _ = present.remove(silent).stream.shutdown(Shutdown::Both);
        }
        let number = crowd.came.fetch_add(1, Ordering::Relaxed);
        present.push(Caller {
            number,
            stream,
            has_asked: false,
        });
        let crowd = crowd.clone();
        Some(Self { crowd, number })
    }

    /// It has asked, and is not closed for another any more; false if it was already.
    fn has_asked(&self) -> bool {
        let mut present = self.crowd.present();
        let mut present = present.iter_mut();
        let caller = present.find(|caller| caller.number == self.number);
        caller.map(|caller| caller.has_asked = true).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let number = self.number;
        self.crowd
            .present()
            .retain(|caller| caller.number != number);
        self.crowd.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::call;
    use replica::machine::{EngineChoice, Image, Images};
    use replica::outside::Plugs;
    use replica::{BackupSpec, ReplicaSpec};
    use std::io::{Read, Write};
    use std::path::PathBuf;

    /// Longest time for anything here.
    const LIMIT: Duration = Duration::from_secs(60);

    /// Nobody asks for any.
    struct NoImages;

    impl Images for NoImages {
        fn load(&self, name: &str, _: Option<&str>) -> Result<Box<dyn Image>, String> {
            Err(format!("no image '{name}' here"))
        }
    }

    /// A backup that waits for its primary, and its control socket.
    struct Site {
        folder: tempfile::TempDir,
        replica: replica::Replica,
        server: Server,
        path: PathBuf,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let flags = folder.path().join("flags");
            std::fs::create_dir(&flags).unwrap();
            let vm = VmId::new("web").unwrap();
            let spec = BackupSpec {
                replica: ReplicaSpec {
                    vm: vm.clone(),
                    host: "here".into(),
                    arbiter: Box::new(testandset::SharedDisk::open(&flags).unwrap()),
                    security: tls::Security::Loopback,
                    viewservice: None,
                    log_buffer_bytes: 1 << 20,
                    suspect_ms: 1000,
                    handover_bytes_s: None,
                    die_at: None,
                },
                listen: HostPort::to_listen("127.0.0.1:0").unwrap(),
                plugs: Plugs::default(),
                engine: EngineChoice::Soft,
                images: Box::new(NoImages),
                image: None,
                initrd: None,
            };
            let replica = replica::Replica::backup(spec, Box::new(())).unwrap();
            let socket = Socket::bind(Some(folder.path()), &vm).unwrap().unwrap();
            let path = socket.path().to_owned();
            let server = Server::start(socket, vm, replica.handle()).unwrap();
            Self {
                folder,
                replica,
                server,
                path,
            }
        }

        fn call(&self) -> UnixStream {
            let stream = call(&self.path).unwrap().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream
        }

        /// All that is answered to `said`.
        fn answers(&self, said: &[u8]) -> String {
            let mut stream = self.call();
            stream.write_all(said).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }

        /// Ends it.
        fn end(self) {
            self.replica.handle().stop();
            assert!(self.replica.wait().is_err(), "no primary came");
            drop(self.server);
            assert!(!self.path.exists());
            drop(self.folder);
        }
    }

    #[test]
    fn requests_are_answered_and_nonsense_is_refused() {
        let site = Site::new();
        let status = site.answers(b"{\"ask\":\"status\"}\n");
        assert!(
            status.starts_with(r#"{"is":"status","version":1,"vm":"web""#),
            "{status}"
        );
        assert!(status.contains(r#""role":null"#), "{status}");
        for (said, why) in [
            (&b"hello\n"[..], "not understood"),
            (b"\xff\xfe\x00\n", "not understood"),
            (b"{\"ask\":\"protect\"}\n", "not understood"),
            (b"{\"ask\":\"move\",\"to\":\"nowhere\"}\n", "HOST:PORT"),
            (
                b"{\"ask\":\"protect\",\"backup\":\"127.0.0.1:1\"}\n",
                "waits for its primary",
            ),
            (b"{\"ask\":\"failover\"}\n", "waits for its primary"),
            (&[b'x'; ASKING_MAX + 1], "more than"),
        ] {
            let answer = site.answers(said);
            assert!(answer.starts_with(r#"{"is":"failed","why":"#), "{answer}");
            assert!(answer.contains(why), "{answer}");
            assert_eq!(answer.lines().count(), 1, "{answer}");
        }
        site.end();
    }

    #[test]
    fn callers_that_say_nothing_keep_nobody_out_and_hold_up_no_end() {
        let site = Site::new();
        let mut silent: Vec<_> = (0..3 * CONNECTIONS_MAX)
            .map(|_| {
                let mut stream = site.call();
                // The server has taken the one before by the time there is an answer.
                stream.write_all(b"{\"ask\"").unwrap();
                site.answers(b"{\"ask\":\"status\"}\n");
                stream
            })
            .collect();
        assert!(site.server.crowd.present().len() <= CONNECTIONS_MAX);
        let mut byte = [0];
        assert_eq!(silent[0].read(&mut byte).unwrap(), 0, "it made room");
        let begun = Instant::now();
        site.end();
        assert!(begun.elapsed() < ASKING, "it waited for the silent");
    }
}
