//! The C library's functions by which Tandem, std and tokio reach the system, for the whole program.
//!
//! A call of a simulated thread goes to the simulation's kernel, every other one to the host's. What stands here has
//! the names and the arguments that the C library's manual gives; those that take a varying number of arguments take
//! as many as can matter, which the System V ABI for x86-64 passes alike.

#![allow(
    clippy::missing_safety_doc,
    reason = "each is what its page in section 2 or 3 of the manual says"
)]
#![allow(non_snake_case, missing_docs, reason = "the C library's names")]

use super::files::{FIRST, Obj, ObjId, Unix};
use super::tcp::Address;
use super::{Wait, Woken, block, charge, kernel, me, my_process};
use libc::{
    c_char, c_int, c_long, c_uint, c_void, clockid_t, epoll_event, iovec, itimerspec, mode_t,
    msghdr, nfds_t, off_t, off64_t, pid_t, pollfd, pthread_attr_t, pthread_t, sched_param,
    sigaction as SigAction, sigevent, sigset_t, size_t, sockaddr, sockaddr_in, sockaddr_un,
    socklen_t, ssize_t, timer_t, timespec, timeval,
};
use std::arch::asm;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MONOTONIC_NS: u64 = 1_000_000_000;
/// What calls take, in nanoseconds, about: one that only looks, and one that does something.
const LOOK_NS: u64 = 150;
const WORK_NS: u64 = 2_000;

/// A system call of the host's.
unsafe fn host(number: c_long, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller passes what the call takes; the registers that it changes are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

fn set_errno(error: c_int) {
    // SAFETY: the C library's place for the calling thread's error.
    unsafe { *libc::__errno_location() = error };
}

/// A result as the C library gives it.
fn told(result: isize) -> isize {
    if (-4095..0).contains(&result) {
        set_errno(-result as c_int);
        return -1;
    }
    result
}

fn failed(error: c_int) -> c_int {
    set_errno(error);
    -1
}

fn done<T>(result: Result<T, c_int>) -> c_int {
    result.map_or_else(failed, |_| 0)
}

fn sized(result: Result<usize, c_int>) -> ssize_t {
    match result {
        Ok(count) => count as ssize_t,
        Err(error) => failed(error) as ssize_t,
    }
}

macro_rules! host {
    ($number:expr $(, $arg:expr)*) => {{
        let given: &[usize] = &[$( $arg as usize ),*];
        let args = std::array::from_fn(|n| given.get(n).copied().unwrap_or(0));
        // SAFETY: the arguments are those of the function of the C library that this stands for.
        told(unsafe { host($number, args) })
    }};
}

/// The C library's own function of this name.
fn next(name: &'static std::ffi::CStr, place: &OnceLock<usize>) -> usize {
    *place.get_or_init(|| {
        // SAFETY: the name ends with a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        assert!(!found.is_null(), "the C library has no {name:?}");
        found as usize
    })
}

macro_rules! libc_fn {
    ($name:literal, $type:ty) => {{
        static PLACE: OnceLock<usize> = OnceLock::new();
        // SAFETY: the C library's function of this name has this type.
        unsafe { std::mem::transmute::<usize, $type>(next($name, &PLACE)) }
    }};
}

// What the kernel asks of the host.

/// The calling thread's number with the host.
pub(super) fn real_tid() -> c_int {
    host!(libc::SYS_gettid) as c_int
}

/// Waits while there is no turn there.
pub(super) fn host_wait(turn: &AtomicU32) {
    host!(
        libc::SYS_futex,
        turn.as_ptr(),
        libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
        0,
        0
    );
}

/// Wakes the thread whose turn it is.
pub(super) fn host_wake(turn: &AtomicU32) {
    host!(
        libc::SYS_futex,
        turn.as_ptr(),
        libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
        1
    );
}

pub(super) fn call_handler(handler: usize, signal: c_int) {
    // SAFETY: it was given to sigaction with SA_SIGINFO; the one handler here looks at neither of the pointers.
    let handler: extern "C" fn(c_int, *mut c_void, *mut c_void) =
        unsafe { std::mem::transmute(handler) };
    handler(signal, null_mut(), null_mut());
}

pub(super) fn close_real(fd: c_int) {
    host!(libc::SYS_close, fd);
}

pub(super) fn length_of(fd: c_int) -> u64 {
    // SAFETY: an all-zero stat is a valid one, and is written to.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    host!(libc::SYS_fstat, fd, &raw mut stat);
    u64::try_from(stat.st_size).unwrap_or(0)
}

pub(super) fn cut_file(fd: c_int, length: u64) {
    host!(libc::SYS_ftruncate, fd, length);
}

fn timespec_ns(time: &timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * MONOTONIC_NS
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// A relative time of the calling thread's host as a true moment.
fn after(ns: u64) -> u64 {
    let host = kernel().host_of(me().expect("a simulated thread"));
    kernel().after(host, ns)
}

fn clock_ns(clock: clockid_t) -> u64 {
    let mine = me().expect("a simulated thread");
    let host = kernel().host_of(mine);
    match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => kernel().clock(host) + super::WALL_NS,
        libc::CLOCK_THREAD_CPUTIME_ID => kernel().thread(mine).cpu_ns,
        _ => kernel().clock(host),
    }
}

// Threads.

struct Start {
    routine: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
    tid: usize,
    turn: &'static AtomicU32,
}

extern "C" fn run_thread(start: *mut c_void) -> *mut c_void {
    // SAFETY: pthread_create below made it for this thread alone.
    let start = unsafe { Box::from_raw(start.cast::<Start>()) };
    super::thread_begins(start.tid, start.turn);
    let result = (start.routine)(start.argument);
    super::thread_ends();
    result
}

type Create = unsafe extern "C" fn(
    *mut pthread_t,
    *const pthread_attr_t,
    extern "C" fn(*mut c_void) -> *mut c_void,
    *mut c_void,
) -> c_int;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    routine: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> c_int {
    let create = libc_fn!(c"pthread_create", Create);
    let Some(mine) = me() else {
        // SAFETY: as it was called.
        return unsafe { create(thread, attributes, routine, argument) };
    };
    let tid = kernel().add_thread(mine);
    let start = Box::new(Start {
        routine,
        argument,
        tid,
        turn: super::turn_of(tid),
    });
    // SAFETY: the routine takes what is made for it here.
    let result = unsafe { create(thread, attributes, run_thread, Box::into_raw(start).cast()) };
    assert!(result == 0, "the host has no thread left");
    // SAFETY: it was written to just now.
    kernel().thread(tid).pthread = unsafe { *thread };
    charge(WORK_NS * 10);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_join(thread: pthread_t, value: *mut *mut c_void) -> c_int {
    if me().is_some() {
        super::join(thread);
    }
    let join = libc_fn!(
        c"pthread_join",
        unsafe extern "C" fn(pthread_t, *mut *mut c_void) -> c_int
    );
    // SAFETY: as it was called.
    unsafe { join(thread, value) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sched_yield() -> c_int {
    if me().is_none() {
        return host!(libc::SYS_sched_yield) as c_int;
    }
    block(Wait::Nothing, Some(kernel().now + 1_000));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sched_setscheduler(
    pid: pid_t,
    policy: c_int,
    parameters: *const sched_param,
) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_sched_setscheduler, pid, policy, parameters) as c_int;
    }
    failed(libc::EPERM)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn setpriority(which: c_uint, who: c_uint, priority: c_int) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_setpriority, which, who, priority) as c_int;
    }
    failed(libc::EPERM)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpid() -> pid_t {
    match me() {
        Some(_) => (super::PID_FIRST + my_process()) as pid_t,
        None => host!(libc::SYS_getpid) as pid_t,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const SigAction,
    old: *mut SigAction,
) -> c_int {
    // SAFETY: the caller's pointer is valid or null.
    if let (Some(_), Some(new)) = (me(), unsafe { new.as_ref() })
        && signal >= libc::SIGRTMIN()
    {
        kernel().handlers.insert(signal, new.sa_sigaction);
        return 0;
    }
    let next = libc_fn!(
        c"sigaction",
        unsafe extern "C" fn(c_int, *const SigAction, *mut SigAction) -> c_int
    );
    // SAFETY: as it was called.
    unsafe { next(signal, new, old) }
}

// Time.

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_clock_gettime, clock, time) as c_int;
    }
    charge(LOOK_NS);
    let ns = clock_ns(clock);
    // SAFETY: the caller's pointer is valid.
    unsafe {
        (*time).tv_sec = (ns / MONOTONIC_NS) as i64;
        (*time).tv_nsec = (ns % MONOTONIC_NS) as i64;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nanosleep(time: *const timespec, left: *mut timespec) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_nanosleep, time, left) as c_int;
    }
    // SAFETY: the caller's pointer is valid.
    let until = after(timespec_ns(unsafe { &*time }));
    block(Wait::Nothing, Some(until));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_nanosleep(
    clock: clockid_t,
    flags: c_int,
    time: *const timespec,
    left: *mut timespec,
) -> c_int {
    if me().is_none() {
        let result = host!(libc::SYS_clock_nanosleep, clock, flags, time, left);
        if result == 0 {
            return 0;
        }
        // SAFETY: the C library's place for the calling thread's error.
        return unsafe { *libc::__errno_location() };
    }
    // SAFETY: the caller's pointer is valid.
    let ns = timespec_ns(unsafe { &*time });
    let until = if flags & libc::TIMER_ABSTIME == 0 {
        after(ns)
    } else {
        after(ns.saturating_sub(clock_ns(clock)))
    };
    block(Wait::Nothing, Some(until));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn timer_create(
    clock: clockid_t,
    event: *mut sigevent,
    timer: *mut timer_t,
) -> c_int {
    if me().is_none() {
        let next = libc_fn!(
            c"timer_create",
            unsafe extern "C" fn(clockid_t, *mut sigevent, *mut timer_t) -> c_int
        );
        // SAFETY: as it was called.
        return unsafe { next(clock, event, timer) };
    }
    // SAFETY: the caller's pointer is valid.
    let signal = unsafe { (*event).sigev_signo };
    let number = kernel().new_timer(me().expect("a simulated thread"), signal);
    // SAFETY: the caller's pointer is valid; a timer is what it is said to be.
    unsafe { *timer = (number + 1) as timer_t };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn timer_settime(
    timer: timer_t,
    flags: c_int,
    new: *const itimerspec,
    old: *mut itimerspec,
) -> c_int {
    if me().is_none() {
        let next = libc_fn!(
            c"timer_settime",
            unsafe extern "C" fn(timer_t, c_int, *const itimerspec, *mut itimerspec) -> c_int
        );
        // SAFETY: as it was called.
        return unsafe { next(timer, flags, new, old) };
    }
    charge(LOOK_NS);
    // SAFETY: the caller's pointer is valid.
    let ns = timespec_ns(unsafe { &(*new).it_value });
    let when = if flags & libc::TIMER_ABSTIME == 0 {
        after(ns)
    } else {
        after(ns.saturating_sub(clock_ns(libc::CLOCK_MONOTONIC)))
    };
    kernel().set_timer(timer as usize - 1, (ns > 0).then_some(when));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn timer_delete(timer: timer_t) -> c_int {
    if me().is_none() {
        let next = libc_fn!(c"timer_delete", unsafe extern "C" fn(timer_t) -> c_int);
        // SAFETY: as it was called.
        return unsafe { next(timer) };
    }
    kernel().set_timer(timer as usize - 1, None);
    0
}

/// Seed of what threads outside a simulation are given as random: the same each time, too.
static RANDOM: AtomicU64 = AtomicU64::new(1);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(into: *mut c_void, length: size_t, _flags: c_uint) -> ssize_t {
    // SAFETY: the caller's pointer is valid for so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(into.cast::<u8>(), length) };
    for part in bytes.chunks_mut(8) {
        let some = match me() {
            Some(_) => kernel().rng.next_u64(),
            None => RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed),
        };
        part.copy_from_slice(&some.to_le_bytes()[..part.len()]);
    }
    length as ssize_t
}

/// syscall(2): what Tandem and std call by number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if me().is_none() {
        return host!(number, a, b, c, d, e, f) as c_long;
    }
    match number {
        libc::SYS_futex => futex(a, b as c_int, c as u32, d as *const timespec),
        libc::SYS_tgkill => {
            charge(WORK_NS);
            kernel().signal(b as c_int, c as c_int);
            0
        }
        libc::SYS_clock_gettime => {
            // SAFETY: the caller passes what the call takes.
            unsafe { clock_gettime(a as clockid_t, b as *mut timespec) }.into()
        }
        // SAFETY: likewise.
        libc::SYS_getrandom => unsafe { getrandom(a as *mut c_void, b, c as c_uint) as c_long },
        libc::SYS_close_range => {
            if c as c_uint & libc::CLOSE_RANGE_UNSHARE as c_uint != 0 {
                kernel().unshare_files();
            }
            kernel().close_range(a as c_int, b as c_int);
            0
        }
        _ => host!(number, a, b, c, d, e, f) as c_long,
    }
}

fn futex(word: usize, operation: c_int, value: u32, time: *const timespec) -> c_long {
    let kind = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    match kind {
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let woken = kernel().wake_futex(word, value as usize);
            charge(LOOK_NS * 4);
            woken as c_long
        }
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            charge(LOOK_NS);
            // SAFETY: the caller's pointer is valid or null.
            let until = unsafe { time.as_ref() }.map(|time| {
                let ns = timespec_ns(time);
                let left = match kind {
                    libc::FUTEX_WAIT => ns,
                    _ if operation & libc::FUTEX_CLOCK_REALTIME != 0 => {
                        ns.saturating_sub(clock_ns(libc::CLOCK_REALTIME))
                    }
                    _ => ns.saturating_sub(clock_ns(libc::CLOCK_MONOTONIC)),
                };
                after(left)
            });
            // SAFETY: the word is the caller's, and is accessed atomically.
            let found = unsafe { AtomicU32::from_ptr(word as *mut u32) }.load(Ordering::SeqCst);
            if found != value {
                return failed(libc::EAGAIN).into();
            }
            match block(Wait::Futex(word), until) {
                Woken::Told => 0,
                Woken::TimedOut => failed(libc::ETIMEDOUT).into(),
                Woken::Interrupted => failed(libc::EINTR).into(),
            }
        }
        other => super::fail(&format!("futex operation {other} is not simulated")),
    }
}

// Descriptors.

/// What a simulated thread has behind `fd`; none: it is the host's, or a thread of the host's asks.
fn simulated(fd: c_int) -> Option<Result<ObjId, c_int>> {
    me()?;
    (fd >= FIRST).then(|| kernel().obj_of(fd).ok_or(libc::EBADF))
}

macro_rules! simulated_or_host {
    ($fd:expr, $host:expr) => {
        match simulated($fd) {
            None => return $host as _,
            Some(Err(error)) => return failed(error) as _,
            Some(Ok(obj)) => obj,
        }
    };
}

/// Waits until something about `obj` changes, for `limit_ns` at most.
fn wait_for(obj: ObjId, until: Option<u64>) -> Result<(), c_int> {
    match block(Wait::Objs(vec![obj]), until) {
        Woken::TimedOut => Err(libc::EAGAIN),
        Woken::Told | Woken::Interrupted => Ok(()),
    }
}

fn limits(obj: ObjId) -> (bool, Option<u64>, Option<u64>) {
    let Some(file) = kernel().files.get(obj) else {
        return (true, None, None);
    };
    match &file.obj {
        Obj::Tcp(tcp) => (file.nonblock, tcp.receive_ns, tcp.send_ns),
        Obj::Unix(unix) => (file.nonblock, unix.receive_ns, None),
        _ => (file.nonblock, None, None),
    }
}

fn take(obj: ObjId, into: &mut [u8], no_wait: bool, peek: bool) -> Result<usize, c_int> {
    charge(WORK_NS);
    if peek {
        return Err(libc::EOPNOTSUPP);
    }
    let (nonblock, limit, _) = limits(obj);
    let until = limit.map(after);
    loop {
        let kernel = kernel();
        let file = kernel.files.get(obj).ok_or(libc::EBADF)?;
        let taken = match &mut file.obj {
            Obj::Counter(count) => {
                let value = std::mem::take(count);
                if value > 0 {
                    into[..8].copy_from_slice(&value.to_ne_bytes());
                }
                (value > 0).then_some(8)
            }
            Obj::Unix(_) => kernel.unix_take(obj, into),
            Obj::Tcp(_) => kernel.tcp_take(obj, into)?,
            _ => return Err(libc::EINVAL),
        };
        match taken {
            Some(count) => return Ok(count),
            None if nonblock || no_wait => return Err(libc::EAGAIN),
            None => wait_for(obj, until)?,
        }
    }
}

fn put(obj: ObjId, bytes: &[u8], no_wait: bool) -> Result<usize, c_int> {
    charge(WORK_NS);
    let (nonblock, _, limit) = limits(obj);
    let until = limit.map(after);
    let mut written = 0;
    loop {
        let kernel = kernel();
        let file = kernel.files.get(obj).ok_or(libc::EBADF)?;
        let rest = &bytes[written..];
        let put = match &mut file.obj {
            Obj::Counter(count) => {
                let more = rest.try_into().map_err(|_| libc::EINVAL)?;
                *count = count.saturating_add(u64::from_ne_bytes(more));
                kernel.became_ready(obj, true, false);
                Ok(Some(8))
            }
            Obj::Unix(_) => kernel.unix_put(obj, rest),
            Obj::Tcp(_) => kernel.tcp_put(obj, rest),
            _ => return Err(libc::EINVAL),
        };
        match put {
            Ok(Some(count)) => written += count,
            Ok(None) if nonblock || no_wait => {
                return if written > 0 {
                    Ok(written)
                } else {
                    Err(libc::EAGAIN)
                };
            }
            Ok(None) => wait_for(obj, until)?,
            Err(_) if written > 0 => return Ok(written),
            Err(error) => return Err(error),
        }
        if written >= bytes.len() || nonblock || no_wait {
            return Ok(written);
        }
    }
}

/// The caller's buffer.
unsafe fn buffer<'a>(from: *const c_void, length: size_t) -> &'a [u8] {
    // SAFETY: the caller's pointer is valid for so many bytes.
    unsafe { std::slice::from_raw_parts(from.cast(), length) }
}

/// The caller's buffer, to be filled.
unsafe fn buffer_mut<'a>(into: *mut c_void, length: size_t) -> &'a mut [u8] {
    // SAFETY: the caller's pointer is valid for so many bytes.
    unsafe { std::slice::from_raw_parts_mut(into.cast(), length) }
}

/// What several buffers hold, one after the other.
unsafe fn gathered(parts: *const iovec, count: usize) -> Vec<u8> {
    // SAFETY: the caller's pointer is valid for so many, each of which is a buffer of its own.
    let parts = unsafe { std::slice::from_raw_parts(parts, count) };
    // SAFETY: likewise.
    let each = parts
        .iter()
        .map(|part| unsafe { buffer(part.iov_base, part.iov_len) });
    each.collect::<Vec<_>>().concat()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, into: *mut c_void, length: size_t) -> ssize_t {
    let obj = simulated_or_host!(fd, host!(libc::SYS_read, fd, into, length));
    // SAFETY: as it was called.
    sized(take(obj, unsafe { buffer_mut(into, length) }, false, false))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    let obj = simulated_or_host!(fd, host!(libc::SYS_readv, fd, parts, count));
    // SAFETY: the caller's pointer is valid for at least one.
    let first = unsafe { &*parts };
    // SAFETY: it is a buffer of the caller's.
    sized(take(
        obj,
        unsafe { buffer_mut(first.iov_base, first.iov_len) },
        false,
        false,
    ))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, from: *const c_void, length: size_t) -> ssize_t {
    let obj = simulated_or_host!(fd, host!(libc::SYS_write, fd, from, length));
    // SAFETY: as it was called.
    sized(put(obj, unsafe { buffer(from, length) }, false))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    let obj = simulated_or_host!(fd, host!(libc::SYS_writev, fd, parts, count));
    // SAFETY: as it was called.
    sized(put(obj, &unsafe { gathered(parts, count as usize) }, false))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(
    fd: c_int,
    into: *mut c_void,
    length: size_t,
    flags: c_int,
) -> ssize_t {
    let obj = simulated_or_host!(fd, host!(libc::SYS_recvfrom, fd, into, length, flags, 0, 0));
    let (no_wait, peek) = (flags & libc::MSG_DONTWAIT != 0, flags & libc::MSG_PEEK != 0);
    // SAFETY: as it was called.
    sized(take(
        obj,
        unsafe { buffer_mut(into, length) },
        no_wait,
        peek,
    ))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(
    fd: c_int,
    from: *const c_void,
    length: size_t,
    flags: c_int,
) -> ssize_t {
    let obj = simulated_or_host!(fd, host!(libc::SYS_sendto, fd, from, length, flags, 0, 0));
    // SAFETY: as it was called.
    sized(put(
        obj,
        unsafe { buffer(from, length) },
        flags & libc::MSG_DONTWAIT != 0,
    ))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    let obj = simulated_or_host!(fd, host!(libc::SYS_sendmsg, fd, message, flags));
    // SAFETY: the caller's pointer is valid, and so are those in it.
    let bytes = unsafe { gathered((*message).msg_iov, (*message).msg_iovlen) };
    sized(put(obj, &bytes, flags & libc::MSG_DONTWAIT != 0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    if me().is_some() && fd >= FIRST {
        charge(LOOK_NS);
        return if kernel().close_fd(fd) {
            0
        } else {
            failed(libc::EBADF)
        };
    }
    if me().is_some() {
        kernel().processes[my_process()].real.remove(&fd);
    }
    host!(libc::SYS_close, fd) as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    let obj = simulated_or_host!(fd, {
        let result = host!(libc::SYS_fcntl, fd, command, argument);
        if me().is_some()
            && [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC].contains(&command)
            && result >= 0
        {
            note_real(result as c_int);
        }
        result
    });
    let kernel = kernel();
    let Some(file) = kernel.files.get(obj) else {
        return failed(libc::EBADF);
    };
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => kernel.add_fd(obj),
        libc::F_GETFL => libc::O_RDWR | if file.nonblock { libc::O_NONBLOCK } else { 0 },
        libc::F_SETFL => {
            file.nonblock = argument as c_int & libc::O_NONBLOCK != 0;
            0
        }
        _ => 0,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: libc::c_ulong, argument: usize) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_ioctl, fd, request, argument));
    if request != libc::FIONBIO {
        return failed(libc::ENOTTY);
    }
    if let Some(file) = kernel().files.get(obj) {
        // SAFETY: this request takes the address of a number.
        file.nonblock = unsafe { *(argument as *const c_int) } != 0;
    }
    0
}

fn poll_all(fds: &mut [pollfd], until: Option<u64>, no_wait: bool) -> c_int {
    charge(LOOK_NS * 2);
    loop {
        let mut ready = 0;
        let mut objs = Vec::with_capacity(fds.len());
        for fd in fds.iter_mut() {
            fd.revents = 0;
            if fd.fd < 0 {
                continue;
            }
            let Some(obj) = kernel().obj_of(fd.fd) else {
                fd.revents = libc::POLLNVAL;
                ready += 1;
                continue;
            };
            objs.push(obj);
            let is = kernel().readiness(obj);
            let told = [
                (is.readable, libc::POLLIN),
                (is.writable, libc::POLLOUT),
                (is.ended, libc::POLLRDHUP),
            ];
            for (_, event) in told
                .iter()
                .filter(|(is, event)| *is && fd.events & event != 0)
            {
                fd.revents |= event;
            }
            fd.revents |= if is.hung_up { libc::POLLHUP } else { 0 };
            fd.revents |= if is.error { libc::POLLERR } else { 0 };
            ready += c_int::from(fd.revents != 0);
        }
        if ready > 0 || no_wait {
            return ready;
        }
        match block(Wait::Objs(objs), until) {
            Woken::Told => {}
            Woken::TimedOut => return 0,
            Woken::Interrupted => return failed(libc::EINTR),
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn poll(fds: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    let all = if count == 0 {
        // It may be null.
        &mut []
    } else {
        // SAFETY: the caller's pointer is valid for so many.
        unsafe { std::slice::from_raw_parts_mut(fds, count as usize) }
    };
    // std looks at its standard descriptors at the start.
    if me().is_none() || all.iter().any(|fd| (0..FIRST).contains(&fd.fd)) {
        return host!(libc::SYS_poll, fds, count, timeout_ms) as c_int;
    }
    let until = u64::try_from(timeout_ms)
        .ok()
        .map(|ms| after(ms * 1_000_000));
    poll_all(all, until, timeout_ms == 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    if me().is_none() {
        let next = libc_fn!(
            c"ppoll",
            unsafe extern "C" fn(*mut pollfd, nfds_t, *const timespec, *const sigset_t) -> c_int
        );
        // SAFETY: as it was called.
        return unsafe { next(fds, count, timeout, mask) };
    }
    // SAFETY: the caller's pointer is valid for so many.
    let all = unsafe { std::slice::from_raw_parts_mut(fds, count as usize) };
    // SAFETY: the caller's pointer is valid or null.
    let ns = unsafe { timeout.as_ref() }.map(timespec_ns);
    poll_all(all, ns.map(after), ns == Some(0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn eventfd(value: c_uint, flags: c_int) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_eventfd2, value, flags) as c_int;
    }
    let nonblock = flags & libc::EFD_NONBLOCK != 0;
    let obj = kernel().add_obj(Obj::Counter(value.into()), nonblock);
    kernel().add_fd(obj)
}

fn new_pair(stream: bool, flags: c_int, pair: *mut c_int, of_process: bool) -> c_int {
    let nonblock = flags & libc::O_NONBLOCK != 0;
    let (a, b) = kernel().unix_pair(stream, nonblock);
    let process = of_process.then(my_process);
    let fds = [a, b].map(|obj| kernel().add_fd_of(obj, process));
    // SAFETY: the caller's pointer is valid for two.
    unsafe { std::ptr::copy_nonoverlapping(fds.as_ptr(), pair, 2) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pipe2(pair: *mut c_int, flags: c_int) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_pipe2, pair, flags) as c_int;
    }
    new_pair(true, flags, pair, true)
}

/// tokio makes one for the signals of all its runtimes, which here are in several processes: it is nobody's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn socketpair(
    domain: c_int,
    kind: c_int,
    protocol: c_int,
    pair: *mut c_int,
) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_socketpair, domain, kind, protocol, pair) as c_int;
    }
    new_pair(true, kind, pair, false)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_epoll_create1, flags) as c_int;
    }
    let obj = kernel().add_obj(Obj::Epoll(std::collections::BTreeMap::new()), false);
    kernel().add_fd(obj)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_ctl(
    epoll: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    let obj = simulated_or_host!(
        epoll,
        host!(libc::SYS_epoll_ctl, epoll, operation, fd, event)
    );
    charge(LOOK_NS);
    let Some(watched) = kernel().obj_of(fd) else {
        return failed(libc::EBADF);
    };
    // SAFETY: the caller's pointer is valid, but for a deletion.
    let set = unsafe { event.as_ref() }.filter(|_| operation != libc::EPOLL_CTL_DEL);
    let set = set.map(|event| (watched, event.events, event.u64));
    if kernel().epoll_set(obj, fd, set) {
        0
    } else {
        failed(libc::ENOENT)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout_ms: c_int,
) -> c_int {
    let obj = simulated_or_host!(
        epoll,
        host!(libc::SYS_epoll_wait, epoll, events, most, timeout_ms)
    );
    charge(WORK_NS);
    let until = u64::try_from(timeout_ms)
        .ok()
        .map(|ms| after(ms * 1_000_000));
    loop {
        let told = kernel().epoll_take(obj, most as usize);
        if !told.is_empty() {
            for (n, (events_told, data)) in told.iter().enumerate() {
                let event = epoll_event {
                    events: *events_told,
                    u64: *data,
                };
                // SAFETY: the caller's pointer is valid for `most`.
                unsafe { events.add(n).write(event) };
            }
            return told.len() as c_int;
        }
        if timeout_ms == 0 {
            return 0;
        }
        match block(Wait::Objs(vec![obj]), until) {
            Woken::Told => {}
            Woken::TimedOut => return 0,
            Woken::Interrupted => return failed(libc::EINTR),
        }
    }
}

// Sockets.

#[unsafe(no_mangle)]
pub unsafe extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_socket, domain, kind, protocol) as c_int;
    }
    let stream = kind & 0xf == libc::SOCK_STREAM;
    let obj = match domain {
        libc::AF_INET if stream => Obj::Tcp(super::tcp::Endpoint::default()),
        libc::AF_UNIX => Obj::UnixFresh {
            stream,
            receive_ns: None,
        },
        _ => return failed(libc::EAFNOSUPPORT),
    };
    let obj = kernel().add_obj(obj, kind & libc::SOCK_NONBLOCK != 0);
    kernel().add_fd(obj)
}

/// The address in a caller's structure.
unsafe fn inet(address: *const sockaddr) -> Address {
    // SAFETY: the caller passes one of this family.
    let address = unsafe { &*address.cast::<sockaddr_in>() };
    (
        u32::from_be(address.sin_addr.s_addr),
        u16::from_be(address.sin_port),
    )
}

/// The path in a caller's structure.
unsafe fn path(address: *const sockaddr) -> Vec<u8> {
    // SAFETY: the caller passes one of this family.
    let address = unsafe { &*address.cast::<sockaddr_un>() };
    let bytes = address.sun_path.iter().map(|byte| *byte as u8);
    bytes.take_while(|byte| *byte != 0).collect()
}

/// Tells a caller an address.
unsafe fn tell_inet(address: Address, into: *mut sockaddr, length: *mut socklen_t) {
    if into.is_null() {
        return;
    }
    // SAFETY: an all-zero one is valid.
    let mut told: sockaddr_in = unsafe { std::mem::zeroed() };
    told.sin_family = libc::AF_INET as u16;
    told.sin_addr.s_addr = address.0.to_be();
    told.sin_port = address.1.to_be();
    // SAFETY: the caller's pointers are valid, and its structure is large enough for any address.
    unsafe {
        into.cast::<sockaddr_in>().write(told);
        *length = size_of::<sockaddr_in>() as socklen_t;
    }
}

fn is_tcp(obj: ObjId) -> bool {
    matches!(
        kernel().files.get(obj).map(|file| &file.obj),
        Some(Obj::Tcp(_))
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_bind, fd, address, length));
    charge(WORK_NS);
    if is_tcp(obj) {
        // SAFETY: as it was called.
        return done(kernel().bind(obj, unsafe { inet(address) }));
    }
    // SAFETY: as it was called.
    let path = unsafe { path(address) };
    if kernel().files.paths.contains_key(&path) {
        return failed(libc::EADDRINUSE);
    }
    kernel().files.paths.insert(path, obj);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_listen, fd, backlog));
    if is_tcp(obj) {
        return done(kernel().listen(obj));
    }
    if let Some(file) = kernel().files.get(obj) {
        file.obj = Obj::UnixListener(std::collections::VecDeque::new());
    }
    0
}

fn connect_unix(obj: ObjId, path: &[u8]) -> Result<(), c_int> {
    let kernel = kernel();
    let listener = *kernel.files.paths.get(path).ok_or(libc::ENOENT)?;
    let file = kernel.files.get(obj).ok_or(libc::EBADF)?;
    let Obj::UnixFresh { stream, receive_ns } = file.obj else {
        return Err(libc::EISCONN);
    };
    let far = kernel.add_obj(
        Obj::Unix(Unix {
            stream,
            peer: Some(obj),
            ..Unix::default()
        }),
        false,
    );
    let near = Unix {
        stream,
        receive_ns,
        peer: Some(far),
        ..Unix::default()
    };
    kernel.files.get(obj).ok_or(libc::EBADF)?.obj = Obj::Unix(near);
    match &mut kernel.files.get(listener).ok_or(libc::ECONNREFUSED)?.obj {
        Obj::UnixListener(backlog) => backlog.push_back(far),
        _ => return Err(libc::ECONNREFUSED),
    }
    kernel.became_ready(listener, true, false);
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_connect, fd, address, length));
    charge(WORK_NS);
    if !is_tcp(obj) {
        // SAFETY: as it was called.
        return done(connect_unix(obj, &unsafe { path(address) }));
    }
    // SAFETY: as it was called.
    if let Err(error) = kernel().connect(obj, unsafe { inet(address) }) {
        return failed(error);
    }
    let (nonblock, _, limit) = limits(obj);
    if nonblock {
        return failed(libc::EINPROGRESS);
    }
    let until = limit.map(after);
    loop {
        match kernel().is_connected(obj) {
            Ok(true) => return 0,
            Err(error) => return failed(error),
            Ok(false) => {}
        }
        if wait_for(obj, until).is_err() {
            return failed(libc::EINPROGRESS);
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
    flags: c_int,
) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_accept4, fd, address, length, flags));
    charge(WORK_NS);
    let (nonblock, ..) = limits(obj);
    loop {
        let accepted = match kernel().files.get(obj).map(|file| &mut file.obj) {
            Some(Obj::UnixListener(backlog)) => Ok(backlog.pop_front()),
            _ => kernel().accept(obj),
        };
        match accepted {
            Err(error) => return failed(error),
            Ok(Some(accepted)) => {
                if let Some(file) = kernel().files.get(accepted) {
                    file.nonblock = flags & libc::SOCK_NONBLOCK != 0;
                }
                let (_, peer) = kernel().addresses(accepted);
                // SAFETY: as it was called.
                unsafe { tell_inet(peer.unwrap_or_default(), address, length) };
                return kernel().add_fd(accepted);
            }
            Ok(None) if nonblock => return failed(libc::EAGAIN),
            Ok(None) => {
                let _ = wait_for(obj, None);
            }
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockname(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_getsockname, fd, address, length));
    let (own, _) = kernel().addresses(obj);
    // SAFETY: as it was called.
    unsafe { tell_inet(own.unwrap_or_default(), address, length) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getpeername(
    fd: c_int,
    address: *mut sockaddr,
    length: *mut socklen_t,
) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_getpeername, fd, address, length));
    let (_, Some(peer)) = kernel().addresses(obj) else {
        return failed(libc::ENOTCONN);
    };
    // SAFETY: as it was called.
    unsafe { tell_inet(peer, address, length) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: socklen_t,
) -> c_int {
    let obj = simulated_or_host!(
        fd,
        host!(libc::SYS_setsockopt, fd, level, name, value, length)
    );
    if level == libc::SOL_SOCKET && [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO].contains(&name) {
        // SAFETY: these take one.
        let time = unsafe { &*value.cast::<timeval>() };
        let ns = (time.tv_sec as u64) * MONOTONIC_NS + (time.tv_usec as u64) * 1_000;
        let limit = (ns > 0).then_some(ns);
        match kernel().files.get(obj).map(|file| &mut file.obj) {
            Some(Obj::Tcp(tcp)) if name == libc::SO_RCVTIMEO => tcp.receive_ns = limit,
            Some(Obj::Tcp(tcp)) => tcp.send_ns = limit,
            Some(Obj::Unix(Unix { receive_ns, .. }) | Obj::UnixFresh { receive_ns, .. })
                if name == libc::SO_RCVTIMEO =>
            {
                *receive_ns = limit;
            }
            _ => {}
        }
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut socklen_t,
) -> c_int {
    let obj = simulated_or_host!(
        fd,
        host!(libc::SYS_getsockopt, fd, level, name, value, length)
    );
    let told = if level == libc::SOL_SOCKET && name == libc::SO_ERROR {
        kernel().socket_error(obj)
    } else {
        0
    };
    // SAFETY: all options that are asked for are numbers, and the caller's pointer is valid for one.
    unsafe { value.cast::<c_int>().write(told) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    let obj = simulated_or_host!(fd, host!(libc::SYS_shutdown, fd, how));
    charge(LOOK_NS);
    done(kernel().tcp_shutdown(obj, how))
}

// Files of the host: whose they are, and what of them is durable.

fn note_real(fd: c_int) {
    if me().is_some() && fd >= 0 {
        kernel().processes[my_process()].real.insert(fd, None);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let fd = host!(libc::SYS_open, path, flags | libc::O_LARGEFILE, mode) as c_int;
    note_real(fd);
    fd
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as it was called.
    unsafe { open64(path, flags, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    fd: c_int,
    from: *const c_void,
    length: size_t,
    offset: off64_t,
) -> ssize_t {
    if me().is_some() {
        charge(WORK_NS);
        let before = length_of(fd);
        if let Some(synced) = kernel().processes[my_process()].real.get_mut(&fd) {
            // What is written over is there all the same: the store writes its last line again when it opens.
            synced.get_or_insert(before);
        }
    }
    host!(libc::SYS_pwrite64, fd, from, length, offset)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(
    fd: c_int,
    from: *const c_void,
    length: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: as it was called.
    unsafe { pwrite64(fd, from, length, offset) }
}

/// The disk has taken a sync, after a while. What the host does with it is of no interest.
fn synced(fd: c_int) -> c_int {
    let host = kernel().host_of(me().expect("a simulated thread"));
    let most = kernel().hosts[host].sync_ns;
    let until = kernel().now + 20_000 + kernel().rng.below(most);
    block(Wait::Nothing, Some(until));
    if let Some(synced) = kernel().processes[my_process()].real.get_mut(&fd) {
        *synced = None;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_fsync, fd) as c_int;
    }
    synced(fd)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    if me().is_none() {
        return host!(libc::SYS_fdatasync, fd) as c_int;
    }
    synced(fd)
}
