//! Descriptors, and what is behind them but for TCP: event counters, pipes and Unix sockets, epoll.

use super::tcp::Endpoint;
use super::{Kernel, Pid, Tid, me, my_process};
use std::collections::{BTreeMap, VecDeque};

/// The number of an open file description.
pub type ObjId = usize;

/// The first simulated descriptor: the host gives none so high.
pub(crate) const FIRST: i32 = 1 << 20;
/// Bytes a pipe or a Unix socket holds.
const PIPE_BYTES: usize = 64 << 10;
/// Packets a Unix socket holds.
const PACKETS: usize = 256;

/// An epoll's interest in a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interest {
    pub obj: ObjId,
    pub events: u32,
    pub data: u64,
    /// What was told last, by how often the descriptor had become ready by then.
    pub told: (u64, u64),
}

/// One end of a pipe or of a Unix socket.
#[derive(Debug, Default)]
pub(crate) struct Unix {
    pub peer: Option<ObjId>,
    /// Of a stream what was written at a time, which is one stream all the same.
    pub queue: VecDeque<Vec<u8>>,
    pub bytes: usize,
    pub stream: bool,
    pub no_write: bool,
    pub receive_ns: Option<u64>,
}

#[derive(Debug)]
pub(crate) enum Obj {
    Counter(u64),
    Unix(Unix),
    UnixListener(VecDeque<ObjId>),
    /// A Unix socket that is neither connected nor listens.
    UnixFresh {
        stream: bool,
        receive_ns: Option<u64>,
    },
    Tcp(Endpoint),
    Epoll(BTreeMap<i32, Interest>),
}

#[derive(Debug)]
pub(crate) struct File {
    pub obj: Obj,
    refs: u32,
    pub nonblock: bool,
    /// How often it became readable, and writable.
    pub ready: (u64, u64),
    watchers: Vec<ObjId>,
    /// Threads that wait for it, or did.
    waiting: Vec<Tid>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    obj: ObjId,
    /// Whose it is; of all processes if nobody's.
    process: Option<Pid>,
}

#[derive(Debug)]
pub(crate) struct Files {
    files: Vec<Option<File>>,
    tables: Vec<BTreeMap<i32, Entry>>,
    next: i32,
    /// Unix sockets by their paths.
    pub paths: BTreeMap<Vec<u8>, ObjId>,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            tables: vec![BTreeMap::new()],
            next: FIRST,
            paths: BTreeMap::new(),
        }
    }
}

/// What poll(2) says of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The peer will say nothing more.
    pub ended: bool,
    pub hung_up: bool,
    pub error: bool,
}

impl Files {
    pub fn watchers(&self, obj: ObjId) -> Vec<ObjId> {
        let file = self.files.get(obj).and_then(Option::as_ref);
        file.map_or_else(Vec::new, |file| file.watchers.clone())
    }

    pub fn note_waiting(&mut self, obj: ObjId, tid: Tid) {
        if let Some(file) = self.get(obj)
            && !file.waiting.contains(&tid)
        {
            file.waiting.push(tid);
        }
    }

    pub fn take_waiting(&mut self, obj: ObjId) -> Vec<Tid> {
        let file = self.get(obj);
        file.map_or_else(Vec::new, |file| std::mem::take(&mut file.waiting))
    }

    /// A file that is there.
    pub fn get(&mut self, obj: ObjId) -> Option<&mut File> {
        self.files.get_mut(obj).and_then(Option::as_mut)
    }
}

impl Kernel {
    pub(crate) fn add_obj(&mut self, obj: Obj, nonblock: bool) -> ObjId {
        self.files.files.push(Some(File {
            obj,
            refs: 0,
            nonblock,
            ready: (0, 0),
            watchers: Vec::new(),
            waiting: Vec::new(),
        }));
        self.files.files.len() - 1
    }

    fn table_of(&self, tid: Tid) -> usize {
        self.threads[tid].table
    }

    /// A new descriptor of the calling thread's for `obj`.
    pub(crate) fn add_fd(&mut self, obj: ObjId) -> i32 {
        self.add_fd_of(obj, Some(my_process()))
    }

    pub(crate) fn add_fd_of(&mut self, obj: ObjId, process: Option<Pid>) -> i32 {
        let table = self.table_of(me().expect("a thread of the simulation"));
        let fd = self.files.next;
        self.files.next += 1;
        self.files.tables[table].insert(fd, Entry { obj, process });
        self.files.get(obj).expect("it was made").refs += 1;
        fd
    }

    /// What `fd` is for the calling thread.
    pub(crate) fn obj_of(&self, fd: i32) -> Option<ObjId> {
        let table = self.table_of(me()?);
        let entry = self.files.tables[table].get(&fd)?;
        // A descriptor of another process's is none of this one's.
        let here = entry.process.is_none_or(|process| process == my_process());
        here.then_some(entry.obj)
    }

    /// Closes a descriptor of the calling thread's; false if it has none of this number.
    pub(crate) fn close_fd(&mut self, fd: i32) -> bool {
        let table = self.table_of(me().expect("a thread of the simulation"));
        let Some(entry) = self.files.tables[table].remove(&fd) else {
            return false;
        };
        self.release(entry.obj);
        true
    }

    fn release(&mut self, obj: ObjId) {
        let Some(file) = self.files.get(obj) else {
            return;
        };
        file.refs -= 1;
        if file.refs > 0 {
            return;
        }
        let file = self.files.files[obj].take().expect("it was there");
        for watcher in file.watchers {
            if let Some(File {
                obj: Obj::Epoll(interests),
                ..
            }) = self.files.get(watcher)
            {
                interests.retain(|_, interest| interest.obj != obj);
            }
        }
        match file.obj {
            Obj::Unix(Unix {
                peer: Some(peer), ..
            }) => {
                if let Some(File {
                    obj: Obj::Unix(other),
                    ..
                }) = self.files.get(peer)
                {
                    other.peer = None;
                }
                self.became_ready(peer, true, true);
            }
            Obj::UnixListener(backlog) => {
                self.files.paths.retain(|_, listener| *listener != obj);
                for waiting in backlog {
                    self.files.get(waiting).expect("it waits").refs += 1;
                    self.release(waiting);
                }
            }
            Obj::Tcp(endpoint) => self.close_endpoint(obj, endpoint),
            _ => {}
        }
    }

    /// Something can be read, or written.
    pub(crate) fn became_ready(&mut self, obj: ObjId, readable: bool, writable: bool) {
        let Some(file) = self.files.get(obj) else {
            return;
        };
        file.ready.0 += u64::from(readable);
        file.ready.1 += u64::from(writable);
        self.notify(obj);
    }

    /// The calling thread has a table of descriptors of its own from now on.
    pub(crate) fn unshare_files(&mut self) {
        let mine = me().expect("a thread of the simulation");
        let process = my_process();
        let copied: BTreeMap<i32, Entry> = self.files.tables[self.table_of(mine)]
            .iter()
            .filter(|(_, entry)| entry.process.is_none_or(|other| other == process))
            .map(|(fd, entry)| (*fd, *entry))
            .collect();
        for entry in copied.values() {
            self.files.get(entry.obj).expect("it is open").refs += 1;
        }
        self.files.tables.push(copied);
        self.threads[mine].table = self.files.tables.len() - 1;
    }

    /// Closes what the calling thread has from `first` to `last`.
    pub(crate) fn close_range(&mut self, first: i32, last: i32) {
        let table = self.table_of(me().expect("a thread of the simulation"));
        let there = self.files.tables[table].range(first..=last);
        let there: Vec<i32> = there.map(|(fd, _)| *fd).collect();
        for fd in there {
            self.close_fd(fd);
        }
    }

    /// The table of a thread that has ended, if it was its own.
    pub(crate) fn drop_table(&mut self, tid: Tid) {
        let table = self.table_of(tid);
        if table != 0 {
            self.close_all(self.threads[tid].process, Some(table));
        }
    }

    /// Closes all descriptors of a process in its threads' table, or in the main one.
    pub(crate) fn close_all(&mut self, process: Pid, table: Option<usize>) {
        let entries = &mut self.files.tables[table.unwrap_or(0)];
        let gone: Vec<(i32, Entry)> = entries
            .iter()
            .filter(|(_, entry)| table.is_some() || entry.process == Some(process))
            .map(|(fd, entry)| (*fd, *entry))
            .collect();
        for (fd, entry) in gone {
            self.files.tables[table.unwrap_or(0)].remove(&fd);
            self.release(entry.obj);
        }
    }

    /// A process is gone with its host: nobody is told anything.
    pub(crate) fn forget_all(&mut self, process: Pid) {
        let tables: Vec<usize> = self
            .threads
            .iter()
            .filter(|thread| thread.process == process && thread.table != 0)
            .map(|thread| thread.table)
            .collect();
        for table in tables {
            self.close_all(process, Some(table));
        }
        self.close_all(process, None);
    }

    /// What can be done with a file now.
    pub(crate) fn readiness(&mut self, obj: ObjId) -> Readiness {
        let Some(file) = self.files.get(obj) else {
            return Readiness::default();
        };
        match &file.obj {
            Obj::Counter(count) => Readiness {
                readable: *count > 0,
                writable: *count < u64::MAX - 1,
                ..Readiness::default()
            },
            Obj::UnixListener(backlog) => Readiness {
                readable: !backlog.is_empty(),
                ..Readiness::default()
            },
            Obj::UnixFresh { .. } => Readiness::default(),
            Obj::Unix(unix) => {
                let over = unix.peer.is_none();
                let readable = !unix.queue.is_empty() || over;
                let room = unix.peer;
                let writable = room.is_none_or(|peer| self.unix_room(peer) > 0);
                Readiness {
                    readable,
                    writable,
                    ended: over,
                    hung_up: over,
                    error: false,
                }
            }
            Obj::Epoll(interests) => {
                let interests: Vec<Interest> = interests.values().copied().collect();
                let readable = interests.iter().any(|one| self.epoll_events(one) != 0);
                Readiness {
                    readable,
                    ..Readiness::default()
                }
            }
            Obj::Tcp(endpoint) => {
                let endpoint = endpoint.clone();
                self.tcp_readiness(&endpoint)
            }
        }
    }

    fn unix_room(&mut self, obj: ObjId) -> usize {
        let Some(File {
            obj: Obj::Unix(unix),
            ..
        }) = self.files.get(obj)
        else {
            return PIPE_BYTES;
        };
        if unix.stream {
            PIPE_BYTES - unix.bytes.min(PIPE_BYTES)
        } else if unix.queue.len() < PACKETS {
            PIPE_BYTES
        } else {
            0
        }
    }

    /// What an epoll tells of one of its files now; 0 if nothing new.
    fn epoll_events(&mut self, interest: &Interest) -> u32 {
        let ready = self
            .files
            .get(interest.obj)
            .map_or((0, 0), |file| file.ready);
        let is = self.readiness(interest.obj);
        let edge = interest.events & libc::EPOLLET as u32 != 0;
        let (reads, writes) = (
            !edge || ready.0 != interest.told.0,
            !edge || ready.1 != interest.told.1,
        );
        let mut events = 0;
        if is.readable && reads {
            events |= libc::EPOLLIN;
        }
        if is.writable && writes {
            events |= libc::EPOLLOUT;
        }
        if is.ended && reads {
            events |= libc::EPOLLRDHUP;
        }
        let asked = interest.events | (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        if is.hung_up && (reads || writes) {
            events |= libc::EPOLLHUP;
        }
        if is.error && (reads || writes) {
            events |= libc::EPOLLERR;
        }
        events as u32 & asked
    }

    /// What an epoll has to tell, at most so much of it; it is told then.
    pub(crate) fn epoll_take(&mut self, epoll: ObjId, most: usize) -> Vec<(u32, u64)> {
        let Some(File {
            obj: Obj::Epoll(interests),
            ..
        }) = self.files.get(epoll)
        else {
            return Vec::new();
        };
        let all: Vec<(i32, Interest)> = interests.iter().map(|(fd, one)| (*fd, *one)).collect();
        let mut told = Vec::new();
        for (fd, interest) in all {
            let events = self.epoll_events(&interest);
            if events == 0 || told.len() == most {
                continue;
            }
            told.push((events, interest.data));
            let ready = self
                .files
                .get(interest.obj)
                .map_or((0, 0), |file| file.ready);
            if let Some(File {
                obj: Obj::Epoll(interests),
                ..
            }) = self.files.get(epoll)
                && let Some(interest) = interests.get_mut(&fd)
            {
                interest.told = ready;
            }
        }
        told
    }

    /// Changes what an epoll waits for; false if that cannot be.
    pub(crate) fn epoll_set(
        &mut self,
        epoll: ObjId,
        fd: i32,
        set: Option<(ObjId, u32, u64)>,
    ) -> bool {
        // Ready as it may be, that is news.
        let never = (u64::MAX, u64::MAX);
        let Some(File {
            obj: Obj::Epoll(interests),
            ..
        }) = self.files.get(epoll)
        else {
            return false;
        };
        match set {
            None => return interests.remove(&fd).is_some(),
            Some((obj, events, data)) => {
                interests.insert(
                    fd,
                    Interest {
                        obj,
                        events,
                        data,
                        told: never,
                    },
                );
                if let Some(file) = self.files.get(obj)
                    && !file.watchers.contains(&epoll)
                {
                    file.watchers.push(epoll);
                }
                self.notify(epoll);
            }
        }
        true
    }

    /// Two ends of a Unix socket, or of a pipe that leads from the second to the first.
    pub(crate) fn unix_pair(&mut self, stream: bool, nonblock: bool) -> (ObjId, ObjId) {
        let end = |kernel: &mut Self| {
            let unix = Unix {
                stream,
                ..Unix::default()
            };
            kernel.add_obj(Obj::Unix(unix), nonblock)
        };
        let (a, b) = (end(self), end(self));
        for (one, other) in [(a, b), (b, a)] {
            if let Some(File {
                obj: Obj::Unix(unix),
                ..
            }) = self.files.get(one)
            {
                unix.peer = Some(other);
            }
        }
        (a, b)
    }

    /// Takes from a Unix socket what is there, up to the length of `into`: how much; none if nothing is yet.
    pub(crate) fn unix_take(&mut self, obj: ObjId, into: &mut [u8]) -> Option<usize> {
        let Some(File {
            obj: Obj::Unix(unix),
            ..
        }) = self.files.get(obj)
        else {
            return Some(0);
        };
        let peer = unix.peer;
        let Some(mut packet) = unix.queue.pop_front() else {
            return peer.is_none().then_some(0);
        };
        let count = packet.len().min(into.len());
        into[..count].copy_from_slice(&packet[..count]);
        if unix.stream {
            unix.bytes -= count;
            if count < packet.len() {
                unix.queue.push_front(packet.split_off(count));
            }
        } else {
            unix.bytes -= packet.len();
        }
        if let Some(peer) = peer {
            self.became_ready(peer, false, true);
        }
        Some(count)
    }

    /// Puts `bytes` into a Unix socket: how many; none if there is no room now.
    ///
    /// # Errors
    /// EPIPE.
    pub(crate) fn unix_put(&mut self, obj: ObjId, bytes: &[u8]) -> Result<Option<usize>, i32> {
        let Some(File {
            obj: Obj::Unix(unix),
            ..
        }) = self.files.get(obj)
        else {
            return Err(libc::EBADF);
        };
        let Some(peer) = unix.peer.filter(|_| !unix.no_write) else {
            return Err(libc::EPIPE);
        };
        let stream = unix.stream;
        let room = self.unix_room(peer);
        if room == 0 {
            return Ok(None);
        }
        let count = if stream {
            bytes.len().min(room)
        } else {
            bytes.len()
        };
        if let Some(File {
            obj: Obj::Unix(other),
            ..
        }) = self.files.get(peer)
        {
            other.queue.push_back(bytes[..count].to_vec());
            other.bytes += count;
        }
        self.became_ready(peer, true, false);
        Ok(Some(count))
    }
}
