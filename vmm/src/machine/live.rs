//! The live world: what arrives, the timer, and the host's clocks.
//!
//! ```text
//!  backends ──push──▶ Inbox ──poll──▶ vCPU thread
//!                       │ in the guest: kick
//!                       └ waiting: futex wake
//! ```

use super::lateness::Lateness;
use super::pace::{AHEAD_NS_MAX, Pace};
use crate::backends::{ArrivalSink, Attention};
use crate::hostclock;
use crate::kick::{self, Kicker};
use nix::sys::eventfd::EventFd;
use replay::{Arrival, InputsError, Question, Situation, Source, Stop};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Frames waiting at most; more are dropped, as by a network card.
const FRAMES_MAX: usize = 1024;
/// Console bytes waiting at most, besides those the guest's serial port has.
const CONSOLE_MAX: usize = 64 << 10;
/// Longest run of the guest without telling a follower how far it got, unless an entry says so anyway.
///
/// Each telling wakes the backup's receiving thread, mostly on the primary's own core where both share
/// a host: told every millisecond, a spinning guest had 0.90 of its speed there, 0.92 to 0.97 as it is.
const PROGRESS_NS: u64 = 4_000_000;

/// How long after a frame the guest counts as busy, and how long a frame may wait for it then. A guest
/// under load leaves by itself every few dozen microseconds, to send; stopping it for each frame would
/// cost more than that. The backend's thread watches that time ([`Inbox::settled`]): an alarm of the
/// vCPU's own would be set, and ring, with nearly every frame.
const BUSY_NS: u64 = 500_000;
const FRAME_WAIT_NS: u64 = 60_000;

/// How long a protected guest's network is left alone after several frames came at once, so that the next
/// come together too. Each time frames are delivered costs a frame of the log, an ack and a turn of the
/// backup's; one request at a time is never held back.
const GATHER: Duration = Duration::from_micros(150);

/// Shortest time in the guest before an alarm for [`PROGRESS_NS`].
const PROGRESS_SOONEST_NS: u64 = 60_000;

/// Longest run of a guest in derived time without a look at how far it is off.
const PACE_NS: u64 = 4_000_000;

/// Where the vCPU thread is.
mod place {
    pub const OUTSIDE: u32 = 0;
    pub const GUEST: u32 = 1;
    pub const WAITING: u32 = 2;
    /// In the guest, which is taking frames and will be out soon: no kick for one more.
    pub const GUEST_BUSY: u32 = 3;
}

#[derive(Default)]
struct Queues {
    urgent: VecDeque<Arrival>,
    /// Console input, as it was typed: delivered as the guest's serial port has room.
    console: VecDeque<Vec<u8>>,
    frames: VecDeque<Vec<u8>>,
    /// Frames that came since the backend last asked when to come back.
    frames_new: usize,
    /// When the guest was last looked after because of them, or the first of them came.
    frames_since_ns: u64,
    console_bytes: usize,
    /// Whom to tell when there is room for console input.
    console_room: Option<Arc<EventFd>>,
}

impl Queues {
    /// The console input to be delivered next, if there is room for it.
    fn next_typed(&self, now: &Situation) -> Option<&Vec<u8>> {
        let next = self.console.front();
        next.filter(|bytes| bytes.len() <= now.typed_room)
    }

    fn take_typed(&mut self, now: &Situation) -> Option<Vec<u8>> {
        self.next_typed(now)?;
        let bytes = self.console.pop_front()?;
        self.console_bytes -= bytes.len();
        if let Some(room) = self.console_room.take() {
            // It fails only if it is signalled 2^64 times.
            let _ = room.write(1);
        }
        Some(bytes)
    }
}

/// What has arrived and was not delivered yet.
pub struct Inbox {
    queues: Mutex<Queues>,
    /// Counts pushes; the vCPU thread waits on it.
    pushes: AtomicU32,
    place: AtomicU32,
    /// Frames are to come several at once: see [`GATHER`].
    gathers: AtomicBool,
    /// The machine is wanted to pause.
    pause: AtomicBool,
    kicker: Mutex<Option<Kicker>>,
    lateness: Lateness,
}

impl Inbox {
    /// An empty inbox with no vCPU yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            queues: Mutex::default(),
            pushes: AtomicU32::new(0),
            place: AtomicU32::new(place::OUTSIDE),
            gathers: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            kicker: Mutex::new(None),
            lateness: Lateness::default(),
        })
    }

    /// Whether the machine is wanted to pause at its next stop, for its state to be taken. A guest that runs
    /// or waits is told at once.
    pub fn want_pause(&self, wanted: bool) {
        self.pause.store(wanted, Ordering::SeqCst);
        if wanted {
            self.notify();
        }
    }

    /// Whether [`Inbox::want_pause`] was asked for last.
    #[must_use]
    pub fn pause_wanted(&self) -> bool {
        self.pause.load(Ordering::SeqCst)
    }

    /// How late the timer ticks were that the vCPU got.
    pub fn lateness(&self) -> &Lateness {
        &self.lateness
    }

    /// Whether frames that come closely after each other are to be delivered several at once: worth their
    /// wait while the guest is protected.
    pub fn gather_frames(&self, gathers: bool) {
        self.gathers.store(gathers, Ordering::Relaxed);
    }

    /// Kicks the guest if it is busy with other frames while some have waited long enough. Anywhere else the
    /// vCPU was told when they came, looks at them before it enters the guest, or has no room for them.
    fn look_after_frames(&self, mut queues: MutexGuard<'_, Queues>) -> Attention {
        let busy = self.place.load(Ordering::SeqCst) == place::GUEST_BUSY;
        if queues.frames.is_empty() || !busy {
            return Attention::Wire;
        }
        let now = hostclock::monotonic_ns();
        let left = FRAME_WAIT_NS.saturating_sub(now.saturating_sub(queues.frames_since_ns));
        if left > 0 {
            return Attention::Within(Duration::from_nanos(left));
        }
        queues.frames_since_ns = now;
        drop(queues);
        self.tell(true);
        Attention::Within(Duration::from_nanos(FRAME_WAIT_NS))
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes pushes reach the calling thread.
    pub fn bind_current_thread(&self) {
        let mut kicker = self.kicker.lock().unwrap_or_else(PoisonError::into_inner);
        *kicker = Some(Kicker::current_thread());
    }

    /// Tells the vCPU thread that something changed.
    pub fn notify(&self) {
        self.tell(true);
    }

    /// [`Inbox::notify`]; `urgent`: even if the guest is busy with what came before.
    fn tell(&self, urgent: bool) {
        self.pushes.fetch_add(1, Ordering::SeqCst);
        match self.place.load(Ordering::SeqCst) {
            place::WAITING => futex_wake(&self.pushes),
            place::GUEST_BUSY if !urgent => {}
            guest @ (place::GUEST | place::GUEST_BUSY) => {
                let kicker = *self.kicker.lock().unwrap_or_else(PoisonError::into_inner);
                let first = self.place.compare_exchange(
                    guest,
                    place::OUTSIDE,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                if let (Some(kicker), Ok(_)) = (kicker, first) {
                    kicker.kick();
                }
            }
            _ => {}
        }
    }
}

impl ArrivalSink for Inbox {
    fn push(&self, arrival: Arrival) -> bool {
        let urgent = !matches!(arrival, Arrival::Frame(_));
        {
            let mut queues = self.queues();
            match arrival {
                Arrival::Frame(frame) => {
                    if queues.frames.len() >= FRAMES_MAX {
                        return false;
                    }
                    if queues.frames.is_empty() {
                        queues.frames_since_ns = hostclock::monotonic_ns();
                    }
                    queues.frames.push_back(frame);
                    queues.frames_new += 1;
                }
                Arrival::Console(bytes) => {
                    if queues.console_bytes + bytes.len() > CONSOLE_MAX {
                        return false;
                    }
                    queues.console_bytes += bytes.len();
                    queues.console.push_back(bytes);
                }
                other => queues.urgent.push_back(other),
            }
        }
        self.tell(urgent);
        true
    }

    fn tell_of_room(&self, room: &Arc<EventFd>) {
        self.queues().console_room = Some(room.clone());
    }

    /// Kicks a busy guest for frames that have waited long enough, and lets those of a protected one gather.
    fn settled(&self) -> Attention {
        let mut queues = self.queues();
        let several = std::mem::take(&mut queues.frames_new) > 1;
        let attention = self.look_after_frames(queues);
        if several && self.gathers.load(Ordering::Relaxed) {
            return Attention::After(GATHER);
        }
        attention
    }
}

/// Where guest time stands: what was answered last, so that a new primary goes on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestTime {
    /// Last time-stamp counter or PIT time answered, or derived time anchored, and the host's monotonic
    /// time then.
    pub tsc: (u64, u64),
    /// Last wall clock answered.
    pub wall_ns: u64,
}

/// The live world of one machine; belongs to its vCPU thread.
pub struct Live {
    inbox: Arc<Inbox>,
    seen: u32,
    time: GuestTime,
    pace: Pace,
    alarm: Alarm,
    /// Whether a follower needs to know of progress.
    followed: bool,
    told_ns: u64,
    /// Until when the guest counts as busy with frames.
    busy_until_ns: u64,
    /// The host's clock at this stop, once it was asked: many frames may be delivered at one, and where the vCPU's
    /// thread has its counter switched off each look is a system call.
    stop_ns: Option<u64>,
}

impl Live {
    /// The live world from now on. `followed`: kick the vCPU out now and then, to tell of progress.
    ///
    /// # Errors
    /// If the kernel has no timer for us.
    pub fn new(inbox: Arc<Inbox>, time: GuestTime, followed: bool) -> std::io::Result<Self> {
        kick::install()?;
        inbox.bind_current_thread();
        let now = hostclock::monotonic_ns();
        // From zero, or on from the last answer plus what passed since.
        let pace = match time.tsc {
            (0, 0) => Pace::new(0, now),
            (answered, at) => Pace::new(answered, at),
        };
        Ok(Self {
            inbox,
            seen: 0,
            time,
            pace,
            alarm: Alarm::new()?,
            followed,
            told_ns: now,
            busy_until_ns: 0,
            stop_ns: None,
        })
    }

    /// Whether a follower needs to know of progress, from now on.
    pub fn set_followed(&mut self, followed: bool) {
        self.followed = followed;
    }

    /// Whether something can be delivered in this situation.
    fn has_arrivals(&self, now: &Situation) -> bool {
        let queues = self.inbox.queues();
        !queues.urgent.is_empty()
            || queues.next_typed(now).is_some()
            || (now.frames_room > 0 && !queues.frames.is_empty())
    }

    /// Holds the vCPU back while derived time is ahead of real time, until that has caught up or
    /// something is to be delivered. Returns the host's time afterwards, given that before.
    fn hold_back(&self, now: &Situation, mut clock: u64) -> u64 {
        let mut bearable = AHEAD_NS_MAX;
        loop {
            let ahead = self.pace.ahead_ns(now, clock);
            let until_due = self
                .pace
                .due_ns()
                .map_or(u64::MAX, |due| due.saturating_sub(clock));
            let seen = self.inbox.pushes.load(Ordering::SeqCst);
            if ahead <= bearable || until_due == 0 || self.has_arrivals(now) {
                return clock;
            }
            bearable = 0;
            self.inbox.place.store(place::WAITING, Ordering::SeqCst);
            futex_wait(&self.inbox.pushes, seen, Some(ahead.min(until_due)));
            self.inbox.place.store(place::OUTSIDE, Ordering::SeqCst);
            clock = hostclock::monotonic_ns();
        }
    }

    /// The wall clock, which never steps back: not where a replica with an earlier one goes on, either.
    fn wall_ns(&self) -> u64 {
        hostclock::wall_ns().max(self.time.wall_ns)
    }

    /// How long the real-time clock has still to wait for what it is to be told; `None` if it waits for nothing.
    fn clock_wait_ns(&self, now: &Situation) -> Option<u64> {
        let due_ns = now.clock_due_ns?;
        Some(due_ns.saturating_sub(self.wall_ns()))
    }

    /// What the real-time clock is to be told now.
    fn clock(&mut self, now: &Situation) -> Option<Arrival> {
        if self.clock_wait_ns(now)? > 0 {
            return None;
        }
        self.time.wall_ns = self.wall_ns();
        let wall_ns = self.time.wall_ns;
        Some(Arrival::Clock { wall_ns })
    }

    /// When timer or clock are due, by the host's monotonic clock.
    fn due_ns(&self, now: &Situation) -> Option<u64> {
        let wait_ns = self.clock_wait_ns(now);
        let clock = wait_ns.map(|ns| hostclock::monotonic_ns().saturating_add(ns));
        [self.pace.due_ns(), clock].into_iter().flatten().min()
    }

    /// The host's clock, as it was when this stop was first asked for.
    fn stop_ns(&mut self) -> u64 {
        *self.stop_ns.get_or_insert_with(hostclock::monotonic_ns)
    }

    fn timer(&mut self) -> Option<Arrival> {
        self.pace.due_ns()?;
        let now_ns = self.stop_ns();
        let tick = self.pace.tick(now_ns)?;
        self.inbox.lateness.record(tick.late_ns);
        Some(Arrival::Timer {
            periods: tick.periods,
        })
    }
}

impl Source for Live {
    fn answer(&mut self, question: Question) -> u64 {
        match question {
            // Both are nanoseconds of the one guest clock that never steps back.
            Question::Tsc | Question::PitElapsed(_) | Question::PmElapsed => {
                const { assert!(abi::TSC_HZ == 1_000_000_000, "one tick is one nanosecond") };
                let now = hostclock::monotonic_ns();
                let tsc = self.pace.real_ns(now).max(self.time.tsc.0 + 1);
                self.time.tsc = (tsc, now);
                tsc
            }
            Question::WallClock => {
                self.time.wall_ns = self.wall_ns();
                self.time.wall_ns
            }
            Question::Entropy => entropy(),
        }
    }

    fn guest_ns(&mut self) -> u64 {
        self.pace.real_ns(hostclock::monotonic_ns())
    }

    fn poll(&mut self, now: &Situation) -> Result<Option<Arrival>, InputsError> {
        self.inbox.place.store(place::OUTSIDE, Ordering::SeqCst);
        self.pace.follow(now, hostclock::monotonic_ns);
        if let Some(tick) = self.timer() {
            return Ok(Some(tick));
        }
        if let Some(told) = self.clock(now) {
            return Ok(Some(told));
        }
        self.seen = self.inbox.pushes.load(Ordering::SeqCst);
        let mut queues = self.inbox.queues();
        if let Some(arrival) = queues.urgent.pop_front() {
            return Ok(Some(arrival));
        }
        if let Some(bytes) = queues.take_typed(now) {
            return Ok(Some(Arrival::Console(bytes)));
        }
        let frame = if now.frames_room > 0 {
            queues.frames.pop_front()
        } else {
            None
        };
        drop(queues);
        if frame.is_some() && self.busy_until_ns == 0 {
            self.busy_until_ns = self.stop_ns() + BUSY_NS;
        }
        let alone = frame.is_none() && now.time_ns.is_some();
        if !alone {
            return Ok(frame.map(Arrival::Frame));
        }
        let host_ns = self.stop_ns();
        if self.pace.is_behind(now, host_ns) {
            return Ok(Some(Arrival::IrqWindow));
        }
        Ok(None)
    }

    fn wait(&mut self, now: &Situation) -> Result<(), InputsError> {
        self.stop_ns = None;
        let tick = self
            .pace
            .due_ns()
            .map(|due| due.saturating_sub(hostclock::monotonic_ns()));
        let timeout = [tick, self.clock_wait_ns(now)].into_iter().flatten().min();
        self.inbox.place.store(place::WAITING, Ordering::SeqCst);
        futex_wait(&self.inbox.pushes, self.seen, timeout);
        self.inbox.place.store(place::OUTSIDE, Ordering::SeqCst);
        Ok(())
    }

    fn is_progress_due(&mut self) -> bool {
        let now = hostclock::monotonic_ns();
        let due = now >= self.told_ns + PROGRESS_NS;
        if due {
            self.told_ns = now;
        }
        due
    }

    fn next_stop(&mut self, now: &Situation) -> Stop {
        self.stop_ns = None;
        self.pace.follow(now, hostclock::monotonic_ns);
        let mut place = place::GUEST;
        let derived = now.time_ns.is_some();
        let due_ns = self.due_ns(now);
        if self.followed || derived || due_ns.is_some() || self.busy_until_ns != 0 {
            let clock = self.hold_back(now, hostclock::monotonic_ns());
            if due_ns.is_some_and(|due| due <= clock) || self.pace.is_behind(now, clock) {
                return Stop::Soon;
            }
            let mut ring = due_ns.unwrap_or(u64::MAX);
            if derived {
                ring = ring.min(clock + PACE_NS);
            }
            if self.followed {
                ring = ring.min((self.told_ns + PROGRESS_NS).max(clock + PROGRESS_SOONEST_NS));
            }
            if clock < self.busy_until_ns {
                place = place::GUEST_BUSY;
            } else {
                self.busy_until_ns = 0;
            }
            if ring != u64::MAX {
                self.alarm.ring_at(ring, clock);
            }
        }
        self.inbox.place.store(place, Ordering::SeqCst);
        if self.has_arrivals(now) || self.inbox.pause_wanted() {
            return Stop::Soon;
        }
        Stop::Never
    }

    fn pause_asked(&self) -> bool {
        self.inbox.pause_wanted()
    }
}

/// Eight bytes of the host's random number generator.
fn entropy() -> u64 {
    let mut bytes = [0u8; 8];
    loop {
        // SAFETY: the pointer and length are those of `bytes`.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // Up to 256 bytes come whole, unless a signal comes before the generator is seeded (getrandom(2)).
        if got == bytes.len() as isize {
            return u64::from_ne_bytes(bytes);
        }
        let error = std::io::Error::last_os_error();
        let again = error.kind() == std::io::ErrorKind::Interrupted;
        assert!(again, "getrandom: {error}");
    }
}

/// A POSIX timer that kicks the thread that made it.
struct Alarm {
    timer: libc::timer_t,
    rings_ns: u64,
}

impl Alarm {
    fn new() -> std::io::Result<Self> {
        // SAFETY: an all-zero sigevent is a valid one; the fields that count are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = kick::signal();
        event.sigev_notify_thread_id = Kicker::current_thread().thread();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        let result =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { timer, rings_ns: 0 })
    }

    /// Rings at `at` (monotonic nanoseconds), unless it is set to ring earlier anyway.
    fn ring_at(&mut self, at: u64, now: u64) {
        let pending = self.rings_ns > now;
        if pending && self.rings_ns <= at {
            return;
        }
        self.rings_ns = at;
        let time = libc::timespec {
            tv_sec: i64::try_from(at / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(at % 1_000_000_000).expect("under a second"),
        };
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spec = libc::itimerspec {
            it_interval: zero,
            it_value: time,
        };
        // SAFETY: the timer is ours and the pointers are valid for the call.
        let result = unsafe {
            libc::timer_settime(
                self.timer,
                libc::TIMER_ABSTIME,
                &raw const spec,
                std::ptr::null_mut(),
            )
        };
        assert!(result == 0, "a valid timer takes a valid time");
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and not used again.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address, which is valid.
    unsafe {
        let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        libc::syscall(libc::SYS_futex, word.as_ptr(), op, 1);
    }
}

/// Waits while `word` is `seen`, for `timeout_ns` at most. Comes back early for signals.
fn futex_wait(word: &AtomicU32, seen: u32, timeout_ns: Option<u64>) {
    let timeout = timeout_ns.map(|ns| libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).expect("under a second"),
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the timeout are valid for the call.
    unsafe {
        let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        libc::syscall(libc::SYS_futex, word.as_ptr(), op, seen, timeout);
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
