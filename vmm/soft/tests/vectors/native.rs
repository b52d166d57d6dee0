//! Runs one instruction on the host's processor, between a given state and the one it leaves.

use std::mem::offset_of;

/// What FXSAVE writes in 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FxArea {
    pub fcw: u16,
    pub fsw: u16,
    /// One bit per physical register.
    pub tags: u8,
    pub reserved: u8,
    pub last: [u16; 9],
    pub mxcsr: u32,
    pub mxcsr_mask: u32,
    /// Relative to TOP.
    pub st: [u128; 8],
    pub xmm: [u128; 16],
    pub rest: [u8; 96],
}

impl Default for FxArea {
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            tags: 0,
            reserved: 0,
            last: [0; 9],
            mxcsr: 0x1f80,
            mxcsr_mask: 0,
            st: [0; 8],
            xmm: [0; 16],
            rest: [0; 96],
        }
    }
}

/// State before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct State {
    pub fx: FxArea,
    /// RAX, RCX, RDX, RBX.
    pub regs: [u64; 4],
    pub flags: u64,
    pad: u64,
    /// What RSI and RDI point at.
    pub memory: [u8; 512],
}

impl Default for State {
    fn default() -> Self {
        Self {
            fx: FxArea::default(),
            regs: [0; 4],
            flags: 0x202,
            pad: 0,
            memory: [0; 512],
        }
    }
}

/// A page that runs instructions.
pub struct Native {
    page: *mut u8,
}

const PAGE: usize = 4096;

/// What the handler of SIGFPE knows an instruction by: at the end of its page.
#[repr(C)]
struct Tried {
    magic: u64,
    /// Where in the page it is, and its bytes.
    start: u32,
    length: u32,
    /// It raised #XM.
    faulted: u32,
}

const MAGIC: u64 = 0x7a6e_6465_6d20_4653;
const TRIED: usize = PAGE - size_of::<Tried>();

/// An instruction of ours that raised #XM is left behind, as it is; any other ends the process.
extern "C" fn skip(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a context of this type. What is executed can be read, its page to its
    // end; the write is to our own page.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
        let page = *rip as usize & !(PAGE - 1);
        let tried = (page + TRIED) as *mut Tried;
        if (*tried).magic != MAGIC || *rip as usize - page != (*tried).start as usize {
            libc::signal(libc::SIGFPE, libc::SIG_DFL);
            return;
        }
        (*tried).faulted = 1;
        *rip += i64::from((*tried).length);
    }
}

/// Sees to it that [`skip`] handles SIGFPE.
fn handle_errors() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a function of the type these flags ask for, and calls what may be called
        // there.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = skip as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(
                libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()),
                0
            );
        }
    });
}

impl Native {
    pub fn new() -> Self {
        handle_errors();
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh anonymous mapping.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        Self { page: page.cast() }
    }

    /// Makes `instruction` the one that is run. It may use RAX, RCX, RDX, RBX and the memory at RSI.
    pub fn set(&mut self, instruction: &[u8]) {
        let mut code = Vec::new();
        let regs = offset_of!(State, regs) as i32;
        let flags = offset_of!(State, flags) as i32;
        let memory = offset_of!(State, memory) as i32;
        // push rbx; push r15; mov r15, rdi; fxrstor64 [r15]
        code.extend([0x53, 0x41, 0x57, 0x49, 0x89, 0xff, 0x49, 0x0f, 0xae, 0x0f]);
        // lea rsi, [r15 + memory]; mov rdi, rsi
        code.extend([0x49, 0x8d, 0xb7]);
        code.extend(memory.to_le_bytes());
        code.extend([0x48, 0x89, 0xf7]);
        // push [r15 + flags]; popfq
        code.extend([0x41, 0xff, 0xb7]);
        code.extend(flags.to_le_bytes());
        code.push(0x9d);
        for n in 0..4u8 {
            // mov r, [r15 + regs + n * 8]
            code.extend([0x49, 0x8b, 0x87 | n << 3]);
            code.extend((regs + i32::from(n) * 8).to_le_bytes());
        }
        let start = code.len() as u32;
        code.extend(instruction);
        for n in 0..4u8 {
            // mov [r15 + regs + n * 8], r
            code.extend([0x49, 0x89, 0x87 | n << 3]);
            code.extend((regs + i32::from(n) * 8).to_le_bytes());
        }
        // pushfq; pop [r15 + flags]; fxsave64 [r15]
        code.extend([0x9c, 0x41, 0x8f, 0x87]);
        code.extend(flags.to_le_bytes());
        code.extend([0x49, 0x0f, 0xae, 0x07]);
        // fninit; push 0x1f80; ldmxcsr [rsp]; pop rax; cld; pop r15; pop rbx; ret
        code.extend([0xdb, 0xe3, 0x68, 0x80, 0x1f, 0, 0, 0x0f, 0xae, 0x14, 0x24]);
        code.extend([0x58, 0xfc, 0x41, 0x5f, 0x5b, 0xc3]);
        assert!(code.len() < TRIED);
        let tried = Tried {
            magic: MAGIC,
            start,
            length: instruction.len() as u32,
            faulted: 0,
        };
        // SAFETY: the page is ours and as long; nothing runs in it now.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len());
            self.tried().write(tried);
        }
    }

    fn tried(&self) -> *mut Tried {
        // SAFETY: within the page.
        unsafe { self.page.add(TRIED).cast() }
    }

    /// Runs it. Returns whether it raised #XM; registers and memory are then as it left them.
    pub fn run(&self, state: &mut State) -> bool {
        // SAFETY: the page holds a function of this signature, which keeps to the ABI; the instruction
        // in it is one that touches only registers saved around it and `state.memory`.
        unsafe {
            let function: extern "sysv64" fn(*mut State) = std::mem::transmute(self.page);
            (&raw mut (*self.tried()).faulted).write_volatile(0);
            function(state);
            (&raw const (*self.tried()).faulted).read_volatile() != 0
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nothing refers to it.
        unsafe { libc::munmap(self.page.cast(), PAGE) };
    }
}
