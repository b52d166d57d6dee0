//! Handing a running machine over, within the handshake.
//!
//! ```text
//!  primary: offer_running                  joiner: Caller::answer_running
//!     │ ── Hello ──────────────────────────────────▶ │  decides
//!     │ ◀────────── HelloReply (accept, or why not) ─│
//!     │ ── Probe ... Settled ──────────────────────▶ │  as at a start
//!     │ ── State, State, ... ──────────────────────▶ │  makes the machine
//!     │ ── Probe ──────────────────────────────────▶ │  has taken all so far
//!     │ ◀─────────────────────────────────── Probe ─ │
//!     │ ── Disk, Disk, ... ────────────────────────▶ │  where each replica has a disk of its own
//!     │ ── ... State, State, State (empty) ────────▶ │
//!     │ ── Base (where its log begins) ────────────▶ │  compares the digest
//!     │ ◀────────── HelloReply (accept, or why not) ─│
//! ```
//!
//! The guest runs while most of its state is sent. So the place where its log begins is known, and said, at
//! the end only.

use crate::clock::now_us;
use crate::error::{FrameError, HandshakeError};
use crate::framing::{Frame, FrameKind, frame};
use crate::handshake::{
    Caller, Connection, Greeting, deadline_us, greet, judge, reply_of, welcome,
};
use crate::messages::{self, Hello, Probe};
use crate::packing::{Came, PIECE_MAX, Piece, Rule, STANDS_STILL, Took, unpack};
use crate::prompt::be_punctual;
use replay::{Base, DiskPart, ViewNumber};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;
use tls::Stream;

/// Longest time for one step of a transfer.
const STEP: Duration = Duration::from_secs(10);
/// Longest time for the peer to take what is on the way: megabytes, where the system's buffers are large.
const TAKEN: Duration = Duration::from_secs(60);
/// How long a refused primary is heard out.
const HEAR_OUT: Duration = Duration::from_secs(1);
/// Most bytes that wait for a wire that takes no more, besides those in flight. Else the first megabytes would
/// seem to have gone, and what the wire takes be learnt behind them.
const UNSENT_MAX: u32 = 256 << 10;

/// Where the state of a running machine is written to, on its way to the joiner.
pub struct StateWriter<'a> {
    greeting: &'a mut Greeting,
    piece: Piece,
    rule: Rule,
    /// By when all has to be over, once the guest stands still for it.
    until_us: u64,
    sent: u64,
    /// How often it was waited for the peer to have taken all.
    taken: u32,
    failed: Option<HandshakeError>,
}

impl<'a> StateWriter<'a> {
    fn new(greeting: &'a mut Greeting) -> Self {
        Self {
            greeting,
            piece: Piece::new(),
            rule: Rule::default(),
            until_us: u64::MAX,
            sent: 0,
            taken: 0,
            failed: None,
        }
    }

    /// From now on all that is left has `limit`: the guest stands still, and its clients wait. The calling thread
    /// goes before other work of the host, if it may, and so does the one that reads at the other end.
    ///
    /// # Errors
    /// If the stream takes no more.
    pub fn hurry(&mut self, limit: Duration) -> io::Result<()> {
        be_punctual();
        self.until_us = deadline_us(limit);
        self.rule.hold_no_more();
        self.moved();
        let still = frame(FrameKind::State, |out| out.extend_from_slice(&STANDS_STILL));
        let sent = self.greeting.send(&still);
        self.sent += still.len() as u64;
        self.or_failed(sent)
    }

    /// Bytes the wire was given so far, heads of frames among them: fewer than the state has where it is compressed.
    /// What was gathered and not sent yet is not counted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sent
    }

    /// Says that it was waited for `us` microseconds, as what went would else have been too fast. That counts as
    /// the wire's: it is what compressing can save.
    pub fn held_back(&mut self, us: u64) {
        self.rule.held(us);
    }

    /// The peer has as long again for its next step, within the time for all of them.
    fn moved(&mut self) {
        self.greeting.deadline_us = deadline_us(STEP).min(self.until_us);
    }

    /// Sends what was gathered. If nothing was, that says that the state is whole.
    fn send(&mut self) -> Result<(), HandshakeError> {
        self.moved();
        let form = self.rule.next();
        let begun_us = now_us();
        let frame = self.piece.frame(form);
        let framed_us = now_us();
        let sent = self.greeting.send(frame);
        self.sent += frame.len() as u64;
        self.rule.took(Took {
            form,
            bytes: self.piece.len(),
            packing_us: framed_us - begun_us,
            us: now_us() - begun_us,
        });
        self.piece.clear();
        self.or_refused(sent)
    }

    /// Sends part of the contents of the machine's disk: all of it once, in order, and then what changed again.
    ///
    /// # Errors
    /// If the stream takes no more.
    pub fn disk(&mut self, part: DiskPart<'_>) -> io::Result<()> {
        self.moved();
        let frame = messages::disk_frame(part);
        let sent = self.greeting.send(&frame);
        self.sent += frame.len() as u64;
        let sent = self.or_refused(sent);
        self.or_failed(sent)
    }

    /// What becomes of something that was `sent`.
    fn or_refused(&mut self, sent: Result<(), HandshakeError>) -> Result<(), HandshakeError> {
        // Only a refusal comes before all was said.
        match sent {
            Ok(()) if !self.greeting.is_answered() => Ok(()),
            Ok(()) => Err(self.refusal().unwrap_or(HandshakeError::OutOfPlace {
                frame: FrameKind::HelloReply.name(),
            })),
            // The peer may have said why before it hung up.
            Err(failed) => Err(self
                .refusal()
                .filter(HandshakeError::is_refusal)
                .unwrap_or(failed)),
        }
    }

    /// Waits until the peer has taken all of the state that has come here: what stands in the buffers on the way
    /// would else be waited for by a guest that stands still.
    ///
    /// # Errors
    /// If the stream takes no more, or nothing comes back.
    pub fn wait_taken(&mut self) -> io::Result<()> {
        self.flush()?;
        self.greeting.deadline_us = deadline_us(TAKEN).min(self.until_us);
        self.taken += 1;
        let number = self.taken;
        let asked = self.greeting.send(&Probe { number }.to_frame());
        let told = asked.and_then(|()| {
            self.greeting.receive(|frame| match frame {
                Frame::Probe(probe) if probe.number == number => Some(Ok(())),
                Frame::HelloReply(reply) => Some(welcome(reply).map(|_| ())),
                _ => None,
            })
        });
        self.or_failed(told.and_then(|told| told))
    }

    fn refusal(&mut self) -> Option<HandshakeError> {
        self.greeting.receive(reply_of).and_then(welcome).err()
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let sent = self.send();
        self.or_failed(sent)
    }

    /// What failed is kept for [`offer_running`]: whoever writes hears of it in words only.
    fn or_failed(&mut self, done: Result<(), HandshakeError>) -> io::Result<()> {
        done.map_err(of_state).map_err(|failed| {
            let told = io::Error::other(failed.to_string());
            self.failed = Some(failed);
            told
        })
    }
}

impl Write for StateWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.piece.gather(bytes);
        if self.piece.is_full() {
            self.pass_on()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.pass_on()
    }
}

/// A link that fails behind the greeting does so with the machine's state under way.
fn of_state(failed: HandshakeError) -> HandshakeError {
    match failed {
        HandshakeError::Io { source, .. } => HandshakeError::State {
            why: source.to_string(),
        },
        other => other,
    }
}

/// What is said at the end of a machine's state.
pub struct Given {
    /// Where its log begins.
    pub base: Base,
    /// What else its replica has to say of it there: at most [`messages::BESIDE_MAX`] bytes.
    pub beside: Vec<u8>,
}

/// The primary's side, for a machine that runs: greets the backup as [`crate::offer`], and once that is welcome
/// hands over the state that `give` writes. Each step of that has ten seconds, and what is left once it
/// [hurries](StateWriter::hurry) as long as it says.
///
/// # Errors
/// See [`HandshakeError`]; [`HandshakeError::State`] with what `give` said.
pub fn offer_running(
    socket: impl Into<Stream>,
    hello: &Hello,
    limit: Duration,
    give: impl FnOnce(&mut StateWriter<'_>) -> Result<Given, String>,
) -> Result<Connection, HandshakeError> {
    let (mut greeting, settled, remark) = greet(socket.into(), hello, limit)?;
    greeting.leave_unsent(UNSENT_MAX)?;
    let mut state = StateWriter::new(&mut greeting);
    let given = give(&mut state).and_then(|given| {
        state.flush().map_err(|e| e.to_string())?;
        Ok(given)
    });
    let Given { base, beside } = match (given, state.failed.take()) {
        (_, Some(failed)) => return Err(failed),
        (Err(why), None) => return Err(HandshakeError::State { why }),
        (Ok(given), None) => given,
    };
    base.check()?;
    state.send().map_err(of_state)?;
    state.moved();
    let told = greeting.send(&messages::base_frame(&base, &beside));
    let answered = told.and_then(|()| greeting.receive(reply_of));
    answered.and_then(welcome).map_err(of_state)?;
    greeting.leave_unsent(0)?;
    greeting.done(base, settled, remark)
}

impl Caller {
    /// [`Self::answer`] to a caller that hands over a running machine. `restore` makes it here of what it reads,
    /// and says whether it is the one whose [`StateReader::base`] was told.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn answer_running(
        self,
        hello: &Hello,
        limit: Duration,
        decide: impl FnOnce(&Hello) -> Result<Option<String>, String>,
        restore: impl FnOnce(&mut StateReader<'_>) -> Result<(), String>,
    ) -> Result<Connection, HandshakeError> {
        let mut greeting = self.into_greeting(limit)?;
        let remark = greeting.tell(judge(hello, decide))?;
        let settled = greeting.answer_probes()?;
        let mut state = StateReader::new(&mut greeting, hello);
        let restored = restore(&mut state).and_then(|()| Ok(state.base()?.base));
        let verdict = restored.as_ref().map(|_| None).map_err(Clone::clone);
        if let Err(refused) = greeting.tell(verdict) {
            hear_out(&mut greeting);
            return Err(refused);
        }
        let base = restored.map_err(|why| HandshakeError::State { why })?;
        greeting.done(base, settled, remark)
    }
}

/// Takes what a refused primary goes on to send, for a moment: a socket that is closed over unread bytes
/// takes the refusal along (tcp(7), RST).
fn hear_out(greeting: &mut Greeting) {
    greeting.deadline_us = deadline_us(HEAR_OUT);
    let mut socket = greeting.socket.socket();
    let _ = socket.shutdown(Shutdown::Write);
    let mut sink = [0; 16 << 10];
    while let Ok(left) = greeting.remaining() {
        let limited = socket.set_read_timeout(Some(left));
        if !limited.is_ok_and(|()| matches!(socket.read(&mut sink), Ok(1..))) {
            return;
        }
    }
}

/// Where the contents of a machine's disk go that comes with its state.
pub trait DiskSink: Send {
    /// Takes part of them, which may come again with other contents.
    ///
    /// # Errors
    /// Why it cannot be taken: the machine is not taken over.
    fn part(&mut self, part: DiskPart<'_>) -> Result<(), String>;

    /// That was all of the machine.
    ///
    /// # Errors
    /// If the disk is not whole.
    fn end(&mut self) -> Result<(), String>;
}

/// The state of a running machine, as it comes. The thread that reads it goes before other work of its host, if it
/// may, once the guest stands still.
pub struct StateReader<'a> {
    greeting: &'a mut Greeting,
    view: ViewNumber,
    /// What came last, as it was before it was compressed.
    piece: Vec<u8>,
    at: usize,
    ended: bool,
    given: Option<Given>,
    disk: Option<Box<dyn DiskSink>>,
}

impl<'a> StateReader<'a> {
    fn new(greeting: &'a mut Greeting, hello: &Hello) -> Self {
        Self {
            greeting,
            view: hello.base.view,
            piece: Vec::with_capacity(PIECE_MAX),
            at: 0,
            ended: false,
            given: None,
            disk: None,
        }
    }

    /// Has `disk` take the contents of the machine's disk, which must come then. Without it none may come.
    pub fn take_disk(&mut self, disk: Box<dyn DiskSink>) {
        self.disk = Some(disk);
    }

    fn receive<T>(&mut self, take: impl Fn(Frame<'_>) -> Option<T>) -> Result<T, HandshakeError> {
        self.greeting.deadline_us = deadline_us(STEP);
        self.greeting.receive(take)
    }

    /// Has the next piece of the state here, or part of the disk where it belongs, or answers that all before was
    /// taken.
    fn next_piece(&mut self) -> io::Result<()> {
        enum Said {
            State(Result<Came, FrameError>),
            Probe(Probe),
            Disk(Result<(), String>),
        }
        self.greeting.deadline_us = deadline_us(STEP);
        let (piece, disk) = (&mut self.piece, &mut self.disk);
        let said = self.greeting.receive(|frame| match frame {
            Frame::State(payload) => Some(Said::State(unpack(payload, piece))),
            Frame::Probe(probe) => Some(Said::Probe(probe)),
            // Without a disk to take it, it is out of place.
            Frame::Disk(part) => disk.as_mut().map(|disk| Said::Disk(disk.part(part))),
            _ => None,
        });
        match said.map_err(io::Error::other)? {
            Said::State(came) => {
                match came
                    .map_err(HandshakeError::from)
                    .map_err(io::Error::other)?
                {
                    Came::Piece => self.at = 0,
                    Came::All => self.ended = true,
                    Came::StandsStill => be_punctual(),
                }
                Ok(())
            }
            Said::Probe(probe) => {
                let answered = self.greeting.send(&probe.to_frame());
                answered.map_err(io::Error::other)
            }
            Said::Disk(put) => put.map_err(io::Error::other),
        }
    }

    /// Takes in what comes next, if nothing of the state waits to be taken; false once that is whole. What comes may
    /// be part of the disk, or a word, and leave nothing to be taken.
    ///
    /// # Errors
    /// If it does not come, or the disk does not take it.
    pub fn step(&mut self) -> io::Result<bool> {
        if self.at == self.piece.len() && !self.ended {
            self.next_piece()?;
        }
        Ok(!self.ended)
    }

    /// What has come of the state and was not taken.
    pub fn take(&mut self) -> &[u8] {
        let at = std::mem::replace(&mut self.at, self.piece.len());
        &self.piece[at..]
    }

    /// Where the machine's log begins, and what else its primary said of it there. What is left of the state is
    /// read before that, and nothing made of it.
    ///
    /// # Errors
    /// If it does not come, or is of another view than the greeting.
    pub fn base(&mut self) -> Result<&Given, String> {
        io::copy(self, &mut io::sink()).map_err(|e| e.to_string())?;
        if self.given.is_none() {
            self.disk.as_mut().map_or(Ok(()), |disk| disk.end())?;
            let given = self.receive(|frame| match frame {
                Frame::Base(base, beside) => Some(Given {
                    base,
                    beside: beside.to_vec(),
                }),
                _ => None,
            });
            let given = given.map_err(|e| e.to_string())?;
            if given.base.view != self.view {
                return Err("it was greeted in another view".into());
            }
            self.given = Some(given);
        }
        Ok(self.given.as_ref().expect("it is here"))
    }
}

impl Read for StateReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.step()? && self.at == self.piece.len() {}
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::{FrameBuffer, HEADER_LEN};
    use crate::messages::{BESIDE_MAX, Settings, base_frame};
    use replay::{BaseOrigin, Clock, LogIndex};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    const LIMIT: Duration = Duration::from_secs(20);

    fn base(view: u64) -> Base {
        Base {
            view: ViewNumber(view),
            index: LogIndex(7),
            clock: Clock(1_000),
            digest: 5,
            origin: BaseOrigin::State,
        }
    }

    fn hello() -> Hello {
        Hello {
            vm: "vm".into(),
            incarnation: "here".into(),
            base: base(3),
            store: [1; 16],
            settings: Settings::default(),
            config: Vec::new(),
        }
    }

    /// Hands over what `give` writes to a joiner that does `restore` with it: what came of it on either side.
    fn hand_over(
        give: impl FnOnce(&mut StateWriter<'_>) -> Result<Given, String>,
        restore: impl FnOnce(&mut StateReader<'_>) -> Result<(), String> + Send + 'static,
    ) -> [Result<Connection, HandshakeError>; 2] {
        hand_over_by(|joiner| joiner, give, restore)
    }

    /// The same by a `way` to the joiner.
    fn hand_over_by(
        way: impl FnOnce(SocketAddr) -> SocketAddr,
        give: impl FnOnce(&mut StateWriter<'_>) -> Result<Given, String>,
        restore: impl FnOnce(&mut StateReader<'_>) -> Result<(), String> + Send + 'static,
    ) -> [Result<Connection, HandshakeError>; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let joiner = std::thread::spawn(move || {
            let mut caller = Caller::new(listener.accept().unwrap().0, LIMIT)?;
            let hello = loop {
                if let Some(hello) = caller.listen()? {
                    break hello;
                }
                std::thread::yield_now();
            };
            caller.answer_running(&hello, LIMIT, |_| Ok(None), restore)
        });
        let socket = TcpStream::connect(way(address)).unwrap();
        let given = offer_running(socket, &hello(), LIMIT, give);
        [given, joiner.join().unwrap()]
    }

    /// Bytes of no period a piece has.
    fn state(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n % 251) as u8).collect()
    }

    fn given(view: u64) -> Result<Given, String> {
        Ok(Given {
            base: base(view),
            beside: vec![9; BESIDE_MAX],
        })
    }

    #[test]
    fn a_state_of_any_length_arrives_whole_and_its_base_behind_it() {
        for length in [0, 1, PIECE_MAX - 1, PIECE_MAX, PIECE_MAX + 1, 3_000_000] {
            let sends = state(length);
            let expected = sends.clone();
            let both = hand_over(
                move |out| {
                    let (first, last) = sends.split_at(length / 2);
                    out.write_all(first).map_err(|e| e.to_string())?;
                    out.hurry(LIMIT).map_err(|e| e.to_string())?;
                    out.write_all(last).map_err(|e| e.to_string())?;
                    out.flush().map_err(|e| e.to_string())?;
                    let heads = (length.div_ceil(PIECE_MAX) + 1) * (HEADER_LEN + 1);
                    assert!(out.bytes() <= (length + heads) as u64);
                    given(3)
                },
                move |from| {
                    let mut got = Vec::new();
                    from.read_to_end(&mut got).map_err(|e| e.to_string())?;
                    assert!(got == expected, "{length}");
                    let Given { base: at, beside } = from.base()?;
                    assert_eq!((*at, beside.len()), (base(3), BESIDE_MAX));
                    Ok(())
                },
            );
            for side in both {
                assert_eq!(side.unwrap().base(), base(3));
            }
        }
    }

    /// A way to `joiner` of `MIB_S` MiB a second there, and with little on it.
    fn slow_way(joiner: SocketAddr) -> SocketAddr {
        const MIB_S: u64 = 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener)
            .set_recv_buffer_size(64 << 10)
            .unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut from = listener.accept().unwrap().0;
            let mut to = TcpStream::connect(joiner).unwrap();
            let [mut back, mut forth] = [&to, &from].map(|end| end.try_clone().unwrap());
            std::thread::spawn(move || io::copy(&mut back, &mut forth));
            let (mut some, mut passed) = ([0; 16 << 10], 0);
            let begun_us = now_us();
            while let Ok(count @ 1..) = from.read(&mut some) {
                passed += count as u64;
                let due_us = begun_us + passed * 1_000_000 / (MIB_S << 20);
                std::thread::sleep(Duration::from_micros(due_us.saturating_sub(now_us())));
                if to.write_all(&some[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        address
    }

    #[test]
    fn over_a_slow_wire_a_state_goes_compressed_and_arrives_whole() {
        let sends = state(8 << 20);
        let expected = sends.clone();
        let both = hand_over_by(
            slow_way,
            move |out| {
                out.write_all(&sends).map_err(|e| e.to_string())?;
                out.wait_taken().map_err(|e| e.to_string())?;
                let (went, has) = (out.bytes(), sends.len() as u64);
                // Some pieces go as they are, before it is known how slow it is, and to try it again.
                assert!(went < has * 3 / 4, "{went} of {has}");
                given(3)
            },
            move |from| {
                let mut got = Vec::new();
                from.read_to_end(&mut got).map_err(|e| e.to_string())?;
                assert!(got == expected);
                from.base().map(drop)
            },
        );
        for side in both {
            side.unwrap();
        }
    }

    #[test]
    fn a_state_that_is_held_back_goes_compressed() {
        let both = hand_over(
            |out| {
                let has = 40 * PIECE_MAX as u64;
                for _ in 0..40 {
                    let before = out.bytes();
                    out.write_all(&state(PIECE_MAX))
                        .map_err(|e| e.to_string())?;
                    // Nobody waits: that it was said is what counts.
                    out.held_back((out.bytes() - before) * 1_000_000 / (20 << 20));
                }
                let went = out.bytes();
                assert!(went < has / 4, "{went} of {has}");
                given(3)
            },
            |from| from.base().map(drop),
        );
        assert!(both.iter().all(Result::is_ok));
    }

    #[test]
    fn what_was_sent_is_taken_before_the_giver_goes_on() {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        let both = hand_over(
            |out| {
                for round in 1..=3 {
                    out.write_all(&state(700_000)).map_err(|e| e.to_string())?;
                    out.wait_taken().map_err(|e| e.to_string())?;
                    // All but the piece that is being read.
                    assert!(TAKEN.load(SeqCst) + PIECE_MAX >= round * 700_000);
                }
                given(3)
            },
            |from| {
                let mut some = [0; 1000];
                loop {
                    match from.read(&mut some).map_err(|e| e.to_string())? {
                        0 => return Ok(()),
                        count => TAKEN.fetch_add(count, SeqCst),
                    };
                }
            },
        );
        assert!(both.iter().all(Result::is_ok));
    }

    /// What came of a disk.
    #[derive(Default)]
    struct Taken(Vec<(u64, u64, Vec<u8>)>);

    impl DiskSink for Taken {
        fn part(&mut self, part: DiskPart<'_>) -> Result<(), String> {
            match part {
                DiskPart::Data { at: 13, .. } => return Err("a bad sector".into()),
                DiskPart::Data { at, bytes } => self.0.push((at, 0, bytes.to_vec())),
                DiskPart::Zeros { at, length } => self.0.push((at, length, Vec::new())),
            }
            Ok(())
        }

        fn end(&mut self) -> Result<(), String> {
            let expected = [
                (0, 0, state(PIECE_MAX)),
                (1 << 40, u64::MAX, Vec::new()),
                (7, 0, vec![1]),
            ];
            let is_whole = self.0 == expected;
            is_whole.then_some(()).ok_or("the disk is not whole".into())
        }
    }

    #[test]
    fn a_disk_comes_among_the_state_and_only_to_those_who_take_one() {
        let give = |parts: usize| {
            move |out: &mut StateWriter<'_>| {
                let bytes = state(PIECE_MAX);
                let all = [
                    DiskPart::Data {
                        at: 0,
                        bytes: &bytes,
                    },
                    DiskPart::Zeros {
                        at: 1 << 40,
                        length: u64::MAX,
                    },
                    DiskPart::Data { at: 7, bytes: &[1] },
                    DiskPart::Data {
                        at: 13,
                        bytes: &[1],
                    },
                ];
                for part in &all[..parts] {
                    out.write_all(&[1; 10]).map_err(|e| e.to_string())?;
                    out.disk(*part).map_err(|e| e.to_string())?;
                }
                given(3)
            }
        };
        let take = |takes: bool| {
            move |from: &mut StateReader<'_>| {
                if takes {
                    from.take_disk(Box::<Taken>::default());
                }
                let mut got = Vec::new();
                from.read_to_end(&mut got).map_err(|e| e.to_string())?;
                from.base().map(drop)
            }
        };
        for side in hand_over(give(3), take(true)) {
            assert!(side.is_ok());
        }
        let refused = |[given, joined]: [Result<Connection, HandshakeError>; 2], why: &str| {
            for side in [given, joined] {
                let said = side.unwrap_err().to_string();
                assert!(said.contains(why), "{said}");
            }
        };
        refused(hand_over(give(2), take(true)), "the disk is not whole");
        refused(hand_over(give(4), take(true)), "a bad sector");
        refused(
            hand_over(give(1), take(false)),
            "disk frame in the handshake",
        );
    }

    #[test]
    fn a_part_of_a_disk_is_bytes_or_zeros() {
        let parse = |at: u64, zeros: u64, bytes: &[u8]| {
            let payload = [&at.to_le_bytes()[..], &zeros.to_le_bytes(), bytes].concat();
            let framed = frame(FrameKind::Disk, |out| out.extend_from_slice(&payload));
            let mut buffer = FrameBuffer::new();
            buffer.space()[..framed.len()].copy_from_slice(&framed);
            buffer.filled(framed.len());
            buffer.next().map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(parse(5, 0, &[1]), Ok(()));
        assert_eq!(parse(5, 9, &[]), Ok(()));
        assert!(parse(5, 0, &[]).is_err() && parse(5, 9, &[1]).is_err());
    }

    #[test]
    fn either_side_may_give_up_in_its_own_words() {
        let [given_up, joined] = hand_over(|_| Err("it never pauses".into()), |_| Ok(()));
        assert_eq!(
            given_up.unwrap_err().to_string(),
            "the machine's state: it never pauses"
        );
        assert!(joined.is_err());
        let endless = |out: &mut StateWriter<'_>| loop {
            out.write_all(&state(PIECE_MAX))
                .map_err(|e| e.to_string())?;
        };
        let [refused, joined] = hand_over(endless, |from| {
            from.read_exact(&mut [0; 100]).map_err(|e| e.to_string())?;
            Err("no room".into())
        });
        for side in [refused, joined] {
            assert!(side.unwrap_err().to_string().contains("no room"));
        }
        let [refused, _] = hand_over(|_| given(4), |from| from.base().map(drop));
        let why = refused.unwrap_err().to_string();
        assert!(why.contains("in another view"), "{why}");
    }

    #[test]
    fn a_base_that_is_a_boot_or_says_too_much_is_malformed() {
        let read = |frame: &[u8]| {
            let mut buffer = FrameBuffer::new();
            buffer.space()[..frame.len()].copy_from_slice(frame);
            buffer.filled(frame.len());
            match buffer.next() {
                Ok(Some(Frame::Base(base, beside))) => Ok((base, beside.to_vec())),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        let most = [3; BESIDE_MAX];
        assert_eq!(
            read(&base_frame(&base(3), &most)).unwrap(),
            (base(3), most.into())
        );
        let payload = base_frame(&base(3), &most)[8..].to_vec();
        let more = frame(FrameKind::Base, |out| {
            out.extend_from_slice(&payload);
            out.push(0);
        });
        assert!(read(&more).unwrap_err().contains("too long"));
        let boot = Base::boot(ViewNumber(3), 5);
        assert!(
            read(&base_frame(&boot, &[]))
                .unwrap_err()
                .contains("booted before")
        );
    }
}
