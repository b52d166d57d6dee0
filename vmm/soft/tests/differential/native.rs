//! The host's own processor, in ring 3.
//!
//! ```text
//!  run: int3 ─▶ handler: keeps the host's registers, puts the case's in their place
//!                 └─ sigreturn ─▶ the instruction ─▶ int3 after it, or a fault
//!                                                     └─▶ handler: takes the result, puts the host's back
//!                                                          └─ sigreturn ─▶ run goes on
//! ```
//!
//! The signal frame holds all registers, so no code has to load or store them.

use crate::state::{ARENA, ARENA_ALL, ARENA_LEN, AT, CODE, Case, Ending, Fault, Fx, State};
use std::cell::UnsafeCell;
use std::sync::{Mutex, MutexGuard};

/// What the handler and `run` hand each other. Only one thread is in `run`.
struct Exchange {
    /// A case is being run.
    running: bool,
    long: bool,
    want: State,
    got: Ending,
    host: [i64; 23],
    host_fx: Fx,
}

struct ExchangeCell(UnsafeCell<Option<Exchange>>);
// SAFETY: used by the holder of `LOCK` and by signals its own instructions raise.
unsafe impl Sync for ExchangeCell {}
static SHARED: ExchangeCell = ExchangeCell(UnsafeCell::new(None));
static LOCK: Mutex<()> = Mutex::new(());

/// The registers in a signal frame in the order of [`State::regs`].
const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const SIGNALS: [i32; 5] = [
    libc::SIGTRAP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
];

/// Selectors Linux gives ring 3 for 64-bit and 32-bit code.
const CODE_64: i64 = 0x33;
const CODE_32: i64 = 0x23;

unsafe extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a context; the exchange belongs to the thread the signal interrupts.
    let (context, exchange) = unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        (context, &mut *SHARED.0.get())
    };
    let gregs = &mut context.uc_mcontext.gregs;
    let fpregs = context.uc_mcontext.fpregs.cast::<Fx>();
    let breakpoint = gregs[libc::REG_TRAPNO as usize] == 3;
    match exchange {
        Some(exchange) if exchange.running => {
            take(exchange, gregs, fpregs, breakpoint);
            exchange.running = false;
            *gregs = exchange.host;
            // SAFETY: the frame's image, which the kernel restores.
            unsafe { set_fx(fpregs, &exchange.host_fx) };
        }
        Some(exchange) if breakpoint => {
            exchange.host = *gregs;
            // SAFETY: as above.
            exchange.host_fx = unsafe { *fpregs };
            exchange.running = true;
            let want = &exchange.want;
            for (value, place) in want.regs.iter().zip(ORDER) {
                gregs[place as usize] = *value as i64;
            }
            gregs[libc::REG_RIP as usize] = want.rip as i64;
            gregs[libc::REG_EFL as usize] = want.flags as i64;
            let selector = if exchange.long { CODE_64 } else { CODE_32 };
            let segments = &mut gregs[libc::REG_CSGSFS as usize];
            *segments = *segments & !0xffff | selector;
            // SAFETY: as above.
            unsafe { set_fx(fpregs, &want.fx) };
        }
        _ => {
            for signal in SIGNALS {
                // SAFETY: the fault happens again and ends the process.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
        }
    }
}

fn take(exchange: &mut Exchange, gregs: &[i64; 23], fpregs: *const Fx, breakpoint: bool) {
    let state = &mut exchange.got.state;
    for (value, place) in state.regs.iter_mut().zip(ORDER) {
        *value = gregs[place as usize] as u64;
    }
    state.flags = gregs[libc::REG_EFL as usize] as u64;
    state.rip = gregs[libc::REG_RIP as usize] as u64;
    // SAFETY: the frame's image.
    state.fx = unsafe { *fpregs };
    exchange.got.fault = None;
    if breakpoint {
        state.rip -= 1;
    } else if state.rip == exchange.want.rip {
        let vector = gregs[libc::REG_TRAPNO as usize] as u8;
        let paging = vector == 14;
        exchange.got.fault = Some(Fault {
            vector,
            address: paging.then_some(gregs[libc::REG_CR2 as usize] as u64),
            write: paging && gregs[libc::REG_ERR as usize] & 2 != 0,
        });
    }
    // Else it retired, and what it branched to could not be fetched.
}

/// Changes the image in a signal frame.
///
/// # Safety
/// `to` must be the image of a frame with the extended state after it, as Linux makes them.
unsafe fn set_fx(to: *mut Fx, from: &Fx) {
    // The last 48 bytes describe the frame; the header of the extended state follows the image and says
    // which parts are not as after reset: x87 and SSE now.
    let own = 512 - 96;
    // SAFETY: the caller's.
    unsafe {
        std::ptr::copy_nonoverlapping(std::ptr::from_ref(from).cast::<u8>(), to.cast::<u8>(), own);
        *to.add(1).cast::<u64>() |= 3;
    }
}

/// The host's processor, with the memory cases use.
pub struct Native {
    _lock: MutexGuard<'static, ()>,
    /// The code page, where it can be written.
    code: *mut u8,
    stack: Box<[u8]>,
}

/// Maps memory that nobody else has, or with `file` its first page, where nothing is; anywhere for address
/// zero.
fn map(address: u64, len: u64, protection: i32, file: Option<i32>) -> u64 {
    let kind = match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    let fixed = if address == 0 {
        0
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    let (at, len, file) = (
        address as *mut libc::c_void,
        len as usize,
        file.unwrap_or(-1),
    );
    // SAFETY: a fresh mapping where nothing is.
    let got = unsafe { libc::mmap(at, len, protection, kind | fixed, file, 0) };
    assert!(
        got != libc::MAP_FAILED && (address == 0 || got == at),
        "the low addresses are free"
    );
    got as u64
}

/// Maps the code page so that the code in it cannot write it; returns where it can be written.
fn map_code() -> *mut u8 {
    // SAFETY: makes a file of its own, closed when both mappings are there.
    unsafe {
        let file = libc::memfd_create(c"code".as_ptr(), 0);
        assert!(file >= 0 && libc::ftruncate(file, 0x1000) == 0);
        let code = map(0, 0x1000, libc::PROT_READ | libc::PROT_WRITE, Some(file)) as *mut u8;
        map(CODE, 0x1000, libc::PROT_READ | libc::PROT_EXEC, Some(file));
        libc::close(file);
        std::ptr::write_bytes(code, 0xcc, 0x1000);
        code
    }
}

impl Native {
    pub fn new() -> Self {
        let lock = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let write = libc::PROT_READ | libc::PROT_WRITE;
        map(ARENA, ARENA_ALL, write, None);
        let code = map_code();
        let mut stack = vec![0; 1 << 16].into_boxed_slice();
        let alternate = libc::stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: the stack lives until `drop` takes it back; the handler has the type SA_SIGINFO wants.
        // The data segments, which 64-bit code does not use, are flat ones for 32-bit code.
        unsafe {
            assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0);
            for signal in SIGNALS {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
            std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0x2b, options(nostack));
        }
        Self {
            _lock: lock,
            code,
            stack,
        }
    }

    /// The arena.
    pub fn arena(&mut self) -> &mut [u8] {
        // SAFETY: mapped in `new`, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(ARENA as *mut u8, ARENA_ALL as usize) }
    }

    /// Makes the last page of the arena read-only, or not.
    pub fn protect(&mut self, on: bool) {
        let protection = libc::PROT_READ | if on { 0 } else { libc::PROT_WRITE };
        let page = (ARENA + ARENA_LEN) as *mut libc::c_void;
        // SAFETY: a page of the arena.
        assert_eq!(unsafe { libc::mprotect(page, 0x1000, protection) }, 0);
    }

    pub fn run(&mut self, case: &Case) -> Ending {
        // SAFETY: the code page is ours. While the case runs the exchange is the handler's.
        unsafe {
            let at = self.code.add((AT - CODE) as usize);
            std::ptr::write_bytes(at, 0xcc, 16);
            std::ptr::copy_nonoverlapping(case.bytes.as_ptr(), at, case.bytes.len());
            *SHARED.0.get() = Some(Exchange {
                running: false,
                long: case.bitness == 64,
                want: case.state.clone(),
                got: Ending {
                    state: case.state.clone(),
                    fault: None,
                },
                host: [0; 23],
                host_fx: Fx::default(),
            });
            std::arch::asm!("int3", options(nostack));
            let exchange = (*SHARED.0.get()).take().expect("set above");
            exchange.got
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: gives back what `new` took.
        unsafe {
            for signal in SIGNALS {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut off: libc::stack_t = std::mem::zeroed();
            off.ss_flags = libc::SS_DISABLE;
            libc::sigaltstack(&off, std::ptr::null_mut());
            libc::munmap(CODE as *mut libc::c_void, 0x1000);
            libc::munmap(self.code.cast(), 0x1000);
            libc::munmap(ARENA as *mut libc::c_void, ARENA_ALL as usize);
        }
        self.stack.fill(0);
    }
}
