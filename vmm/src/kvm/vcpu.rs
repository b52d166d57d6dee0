//! A vCPU on KVM, with an instruction clock.
//!
//! # The `Blocks` clock
//!
//! ```text
//!  budget word:   n ──guest: sub 1 at each block──▶ 0 ──▶ store to the trap register ──▶ MMIO exit
//!  clock       =  clock at entry + (budget at entry - budget now) + natural exits
//! ```
//!
//! The word is set before each entry to the distance to the stop asked for. A kick may find the guest
//! between the block that used the budget up and the trap's store: then the trap is due, the word stays
//! zero and the vCPU goes on to it at once.
//!
//! # The `Instructions` clock
//!
//! Every instruction is a single step (KVM_GUESTDBG_SINGLESTEP) and counts one; those of an interrupt
//! handler up to its return do not, since taking an interrupt switches stepping off. Where KVM does not
//! step in ring 3, no step is ever reported there: `tandem doctor` finds that out.

use super::convert;
use super::tsc::TscTrap;
use super::vm::{KvmKind, Vm};
use crate::cpu::SAVED_MSRS;
use crate::engine::{Bus, Engine, EngineError, TimeBase, VmEntry, VmExit};
use crate::kick::Target;
use crate::memory::{self, PAGE_BYTES, PageSet};
use crate::state::CpuState;
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_INTERNAL_ERROR_EMULATION,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI, KVMIO, Msrs, kvm_debugregs,
    kvm_guest_debug, kvm_interrupt, kvm_mp_state, kvm_msr_entry, kvm_run, kvm_vcpu_events,
};
use kvm_ioctls::{SyncReg, VcpuFd};
use replay::{Clock, ClockKind, ExecPoint, RegisterDigest, Stop, digest};
use std::io;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

/// A budget that never runs out: 292 years of a block each nanosecond.
const ENDLESS: u64 = 1 << 63;
/// Most pieces of an access that is abandoned. KVM makes them of up to 8 bytes, and the longest operand it
/// emulates is FXSAVE's, 512 bytes.
const PIECES_MAX: u32 = 512 / 8 + 1;
/// Flags that are in no digest of registers: trap (single-step) and resume (SDM volume 3, 2.3).
const NOT_THE_GUESTS: u64 = 1 << 8 | 1 << 16;
/// The resume flag.
const RESUME: u64 = 1 << 16;
/// The interrupt flag.
const INTERRUPTS: u64 = 1 << 9;

/// A port or MMIO access the guest waits in.
#[derive(Clone, Copy, Debug)]
struct Access {
    bus: Bus,
    address: u64,
    read: bool,
    size: u8,
    /// Elements of a string instruction still to go, this one included.
    left: u32,
    /// Where this element's bytes are in the `kvm_run` mapping.
    offset: usize,
}

/// A vCPU on KVM. It belongs to the thread that made it.
pub struct KvmEngine {
    // Order matters: the kick target points into the vCPU's mapping and must go first.
    target: Target,
    _tsc: TscTrap,
    fd: VcpuFd,
    vm: Vm,
    kind: ClockKind,
    clock: u64,
    /// What the budget word was set to at the last entry.
    budget: u64,
    trap_due: bool,
    /// Whether the last entry ended with a kick.
    was_kicked: bool,
    access: Option<Access>,
    /// KVM has reported the next exit already.
    carried: bool,
    /// RIP is at the instruction, not behind it, when KVM reports a write to a port.
    at_its_writes: bool,
    registers_fresh: bool,
    /// The guest's interrupt flag is set and KVM can take an interrupt, as of the last exit.
    interruptible: bool,
    injected: bool,
    halted: bool,
    /// Dirty pages found so far, while they are noted.
    dirty: Option<PageSet>,
}

impl KvmEngine {
    pub(super) fn new(vm: Vm, mut fd: VcpuFd) -> Self {
        fd.set_sync_valid_reg(SyncReg::Register);
        let run: *mut kvm_run = fd.get_kvm_run();
        // SAFETY: the mapping lives as long as `fd`, which is dropped after the target; the engine is
        // not `Send` (it holds a raw pointer), so both stay on this thread.
        let target = unsafe { Target::new(&raw mut (*run).immediate_exit) };
        let engine = Self {
            target,
            _tsc: TscTrap::set(),
            fd,
            vm,
            kind: ClockKind::Blocks,
            clock: 0,
            budget: ENDLESS,
            trap_due: false,
            was_kicked: false,
            access: None,
            carried: false,
            at_its_writes: KvmKind::of_this_host() == KvmKind::Hardware,
            registers_fresh: false,
            interruptible: false,
            injected: false,
            halted: false,
            dirty: None,
        };
        engine.set_word(ENDLESS);
        engine
    }

    /// Counts `kind` from now on.
    ///
    /// # Errors
    /// If this engine has no such clock.
    pub fn set_clock_kind(&mut self, kind: ClockKind) -> Result<(), EngineError> {
        if kind == ClockKind::Branches {
            let why =
                "the clock 'branches' needs a performance counter, which is not supported yet";
            return Err(EngineError::Unsupported(why.into()));
        }
        if kind == ClockKind::Instructions && KvmKind::of_this_host() == KvmKind::Software {
            let why =
                "software-virtualised KVM does not single-step ring 3: use the clock 'blocks'";
            return Err(EngineError::Unsupported(why.into()));
        }
        self.kind = kind;
        Ok(())
    }

    /// Makes the next instruction a step. Asked for again after each exit of the guest's own: an `iretq`
    /// loads flags that know nothing of it.
    fn arm_step(&mut self) -> Result<(), EngineError> {
        let debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
            ..Default::default()
        };
        self.fd
            .set_guest_debug(&debug)
            .map_err(|e| ioctl("KVM_SET_GUEST_DEBUG", e))
    }

    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    pub(super) fn memory(&self) -> &crate::memory::GuestMemory {
        self.vm.memory()
    }

    /// Adds what devices wrote since the last call to the dirty pages, if those are noted. What waits is
    /// bounded by what devices do between two calls.
    fn note_writes(&mut self) {
        if let Some(dirty) = &mut self.dirty {
            for page in memory::written(self.vm.memory()) {
                dirty.insert(page..page + 1);
            }
        }
    }

    /// Adds all that was written, by devices or the guest, to the dirty pages, if those are noted.
    fn gather_dirty(&mut self) -> Result<(), EngineError> {
        self.note_writes();
        if let Some(dirty) = &mut self.dirty {
            self.vm
                .take_dirty(dirty)
                .map_err(|e| ioctl("KVM_GET_DIRTY_LOG", e))?;
        }
        Ok(())
    }

    fn word(&self) -> u64 {
        // SAFETY: the clock page outlives the engine; the guest, the only other writer, is stopped.
        unsafe { self.vm.budget().read_volatile() }
    }

    fn set_word(&self, value: u64) {
        // SAFETY: as in `word`.
        unsafe { self.vm.budget().write_volatile(value) }
    }

    /// The guest cannot go on, by its own doing alone. That counts as a natural exit does: see `SoftEngine`.
    fn fault(&mut self, why: impl Into<String>) -> EngineError {
        self.registers_fresh = false;
        self.clock += 1;
        let (at, _) = self.point().unwrap_or_default();
        EngineError::GuestFault {
            at,
            why: why.into(),
        }
    }

    /// Brings the clock up to what the guest has counted.
    fn count(&mut self) -> Result<(), EngineError> {
        if self.kind != ClockKind::Blocks {
            return Ok(());
        }
        let word = self.word();
        let Some(used) = self.budget.checked_sub(word) else {
            return Err(self.fault(format!("it altered its block budget ({word:#x})")));
        };
        self.clock += used;
        self.budget = word;
        self.trap_due = word == 0;
        Ok(())
    }

    fn natural(&mut self, exit: VmExit) -> VmExit {
        self.clock += 1;
        exit
    }

    /// One KVM_RUN; true if it ended for a kick.
    fn enter(&mut self) -> Result<bool, EngineError> {
        if std::mem::take(&mut self.carried) {
            return Ok(false);
        }
        self.registers_fresh = false;
        self.injected = false;
        let kicked = match self.fd.run() {
            Ok(_) => false,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                self.target.clear();
                true
            }
            Err(e) => return Err(ioctl("KVM_RUN", e)),
        };
        self.registers_fresh = !kicked;
        let run = self.fd.get_kvm_run();
        self.interruptible = run.if_flag != 0 && run.ready_for_interrupt_injection != 0;
        let kicked = kicked || run.exit_reason == KVM_EXIT_INTR;
        self.was_kicked = kicked;
        self.count()?;
        Ok(kicked)
    }

    /// The access KVM reports.
    fn reported_access(&mut self) -> Access {
        let run = self.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_IO {
            // SAFETY: the exit reason says which member of the union is set.
            let io = unsafe { run.__bindgen_anon_1.io };
            return Access {
                bus: Bus::Port,
                address: u64::from(io.port),
                read: u32::from(io.direction) == KVM_EXIT_IO_IN,
                size: io.size,
                left: io.count,
                offset: io.data_offset as usize,
            };
        }
        // SAFETY: the exit reason says which member of the union is set.
        let mmio = unsafe { run.__bindgen_anon_1.mmio };
        // SAFETY: only the field's address is taken.
        let data = unsafe { &raw const run.__bindgen_anon_1.mmio.data };
        Access {
            bus: Bus::Mmio,
            address: mmio.phys_addr,
            read: mmio.is_write == 0,
            size: u8::try_from(mmio.len).unwrap_or(0),
            left: 1,
            offset: data as usize - std::ptr::from_ref(run) as usize,
        }
    }

    /// The bytes of the present element, which KVM and we share.
    fn data(&mut self, access: &Access) -> &mut [u8] {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: KVM gives an offset inside its mapping, with room for `count` elements of `size` bytes;
        // `offset` only moves on by `size` while elements are left.
        unsafe {
            std::slice::from_raw_parts_mut(run.cast::<u8>().add(access.offset), access.size.into())
        }
    }

    /// Makes a single write to a port stand behind its instruction, as all writes do. KVM leaves RIP at it
    /// until the guest is entered again where the processor virtualises; software KVM does not.
    fn pass_port_write(&mut self, access: &Access) -> Result<(), EngineError> {
        if access.read || access.bus != Bus::Port || access.left > 1 || !self.at_its_writes {
            return Ok(());
        }
        if !self.end_piece()? {
            return Err(self.failed("a write to a port that does not end".into()));
        }
        // A kick that came meanwhile has its will: the guest is out, and all is looked at.
        self.fd.set_kvm_immediate_exit(0);
        Ok(())
    }

    /// Turns the present element into an exit.
    fn access_exit(&mut self, access: Access) -> Result<VmExit, EngineError> {
        let Access {
            bus, address, size, ..
        } = access;
        if !matches!(size, 1 | 2 | 4 | 8) || access.left == 0 {
            return Err(self.fault(format!("an access of {size} bytes at {address:#x}")));
        }
        self.access = Some(access);
        let exit = if access.read {
            VmExit::Read { bus, address, size }
        } else {
            let mut bytes = [0; 8];
            bytes[..size.into()].copy_from_slice(self.data(&access));
            VmExit::Write {
                bus,
                address,
                size,
                value: u64::from_le_bytes(bytes),
            }
        };
        Ok(self.natural(exit))
    }

    /// Ends the access the guest waits in; more elements of a string instruction come as exits of their
    /// own.
    fn finish_access(&mut self, entry: VmEntry) -> Result<Option<VmExit>, EngineError> {
        let Some(access) = self.access.take() else {
            assert!(
                entry == VmEntry::Resume,
                "data for a read that did not happen"
            );
            return Ok(None);
        };
        match entry {
            VmEntry::ReadData(value) if access.read => {
                let bytes = value.to_le_bytes();
                self.data(&access)
                    .copy_from_slice(&bytes[..access.size.into()]);
            }
            VmEntry::Resume if !access.read => {}
            _ => panic!("{entry:?} does not fit {access:?}"),
        }
        if access.left > 1 {
            let offset = access.offset + usize::from(access.size);
            return self
                .access_exit(Access {
                    left: access.left - 1,
                    offset,
                    ..access
                })
                .map(Some);
        }
        Ok(None)
    }

    /// Makes KVM end the piece of an access it has reported, without entering the guest; false if it reports
    /// another piece of the same access then.
    fn end_piece(&mut self) -> Result<bool, EngineError> {
        // The request stands, as a kick's would: the next entry takes it for one.
        self.fd.set_kvm_immediate_exit(1);
        match self.fd.run() {
            Err(e) if e.errno() == libc::EINTR => {
                self.access = None;
                self.registers_fresh = false;
                Ok(true)
            }
            Err(e) => Err(ioctl("KVM_RUN", e)),
            Ok(_) => Ok(false),
        }
    }

    /// Whether `access` is the store a block trap makes.
    fn is_trap(&self, access: &Access) -> bool {
        self.kind == ClockKind::Blocks
            && !access.read
            && access.bus == Bus::Mmio
            && access.address == abi::CONTROL_PAGE + abi::control::TRAP
    }

    /// Flags that are not in a saved state. With the clock `instructions` the trap flag is ours, and KVM
    /// hides the guest's. The resume flag is clear behind every instruction but `iret`, and kinds of KVM
    /// differ in what they leave of it at an exit.
    fn not_saved(&self) -> u64 {
        match self.kind {
            ClockKind::Instructions => NOT_THE_GUESTS,
            _ => RESUME,
        }
    }

    fn events(&self) -> Result<kvm_vcpu_events, EngineError> {
        self.fd
            .get_vcpu_events()
            .map_err(|e| ioctl("KVM_GET_VCPU_EVENTS", e))
    }

    fn debug_registers(&self) -> Result<kvm_debugregs, EngineError> {
        self.fd
            .get_debug_regs()
            .map_err(|e| ioctl("KVM_GET_DEBUGREGS", e))
    }

    /// Puts interrupt shadow and debug registers back, where they are not so already.
    fn put_events_and_debug(&self, state: &CpuState) -> Result<(), EngineError> {
        let mut events = self.events()?;
        if (events.interrupt.shadow != 0) != state.shadow {
            let shadow = if state.shadow {
                KVM_X86_SHADOW_INT_STI
            } else {
                0
            };
            events.interrupt.shadow = shadow as u8;
            events.flags = KVM_VCPUEVENT_VALID_SHADOW;
            self.fd
                .set_vcpu_events(&events)
                .map_err(|e| ioctl("KVM_SET_VCPU_EVENTS", e))?;
        }
        if convert::take_debug(&self.debug_registers()?) != state.debug {
            self.fd
                .set_debug_regs(&convert::debug(&state.debug))
                .map_err(|e| ioctl("KVM_SET_DEBUGREGS", e))?;
        }
        Ok(())
    }

    fn put_msrs(&self, msrs: &[(u32, u64)]) -> Result<(), EngineError> {
        for &(index, data) in msrs {
            if !SAVED_MSRS.contains(&index) {
                return Err(EngineError::Unsupported(format!(
                    "MSR {index:#x} in a vCPU state"
                )));
            }
            let entry = kvm_msr_entry {
                index,
                data,
                ..Default::default()
            };
            let msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
            let set = self.fd.set_msrs(&msrs).unwrap_or(0);
            if set != 1 && data != 0 {
                return Err(EngineError::Unsupported(format!(
                    "MSR {index:#x} on this host"
                )));
            }
        }
        Ok(())
    }

    /// KVM or the processor failed, which says nothing of another replica. Counts nothing.
    fn failed(&mut self, why: String) -> EngineError {
        self.registers_fresh = false;
        let (at, _) = self.point().unwrap_or_default();
        EngineError::Failed { at, why }
    }

    /// What an exit means behind which the vCPU cannot be entered again.
    fn last_exit(&mut self, reason: u32) -> EngineError {
        match reason {
            KVM_EXIT_SHUTDOWN => {
                let why = match self.nowhere().or_else(|| self.next_instruction()) {
                    Some(at) => format!("triple fault: {at}"),
                    None => "triple fault".to_owned(),
                };
                self.fault(why)
            }
            KVM_EXIT_INTERNAL_ERROR => self.internal_error(),
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: the exit reason says which member of the union is set.
                let fail = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.fail_entry };
                let reason = fail.hardware_entry_failure_reason;
                let at = self.at_instruction();
                self.failed(format!("the processor refuses entry ({reason:#x}){at}"))
            }
            other => {
                let at = self.at_instruction();
                self.failed(format!("unexpected KVM exit {other}{at}"))
            }
        }
    }

    /// KVM gives up. What it cannot emulate, another engine or kind of KVM may: that is the guest's doing
    /// only where there is no instruction.
    fn internal_error(&mut self) -> EngineError {
        if let Some(why) = self.outside_ram() {
            return self.fault(why);
        }
        // SAFETY: the exit reason says which member of the union is set.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let why = match (internal.suberror, self.next_instruction()) {
            (KVM_INTERNAL_ERROR_EMULATION, Some(at)) => {
                format!("KVM cannot emulate the instruction {at}")
            }
            (KVM_INTERNAL_ERROR_EMULATION, None) => {
                let words = internal.data.iter();
                let bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
                let bytes = &bytes[16..32];
                format!("KVM cannot emulate the instruction {bytes:02x?}")
            }
            (other, _) => {
                let at = self.at_instruction();
                format!("KVM internal error, suberror {other}{at}")
            }
        };
        self.failed(why)
    }

    /// The next instruction, if it can be had, to end a message with.
    fn at_instruction(&mut self) -> String {
        let at = self.nowhere().or_else(|| self.next_instruction());
        at.map_or_else(String::new, |at| format!(": {at}"))
    }
}

impl Engine for KvmEngine {
    /// In either mode: its guests' RDTSC leaves the guest by the control page, and is answered from
    /// derived time there.
    fn set_time(&mut self, _: TimeBase) -> Result<(), EngineError> {
        Ok(())
    }

    fn clock_kind(&self) -> ClockKind {
        self.kind
    }

    fn run(&mut self, entry: VmEntry, stop: Stop) -> Result<VmExit, EngineError> {
        self.halted = false;
        self.note_writes();
        if let Some(exit) = self.finish_access(entry)? {
            return Ok(exit);
        }
        let goal = match stop {
            Stop::Never => None,
            Stop::Soon | Stop::Window => Some(self.clock + 1),
            Stop::At(clock) => Some(clock.0),
        };
        assert!(
            goal.is_none_or(|goal| goal > self.clock || self.trap_due),
            "stop lies behind"
        );
        let mut kicked = false;
        loop {
            if self.kind == ClockKind::Blocks && !self.trap_due {
                self.budget = goal.map_or(ENDLESS, |goal| goal - self.clock);
                self.set_word(self.budget);
            }
            // Not after a kick: where that finds the guest in a handler, and so not stepping, differs
            // from run to run.
            if self.kind == ClockKind::Instructions && !self.was_kicked {
                self.arm_step()?;
            }
            if self.enter()? {
                kicked = true;
                if self.trap_due {
                    continue;
                }
                return Ok(VmExit::Kicked);
            }
            match self.fd.get_kvm_run().exit_reason {
                KVM_EXIT_IO | KVM_EXIT_MMIO => {
                    let access = self.reported_access();
                    if !self.is_trap(&access) {
                        let exit = self.access_exit(access)?;
                        self.pass_port_write(&access)?;
                        return Ok(exit);
                    }
                    if !std::mem::take(&mut self.trap_due) {
                        return Err(self.fault("it stored to the trap register within its budget"));
                    }
                }
                KVM_EXIT_DEBUG if self.kind == ClockKind::Instructions => self.clock += 1,
                KVM_EXIT_HLT => {
                    self.halted = true;
                    return Ok(self.natural(VmExit::Halt));
                }
                KVM_EXIT_IRQ_WINDOW_OPEN => continue,
                other => return Err(self.last_exit(other)),
            }
            // A block trap or a step ended.
            if goal == Some(self.clock) {
                return Ok(VmExit::Stopped);
            }
            if kicked {
                return Ok(VmExit::Kicked);
            }
        }
    }

    fn clock(&self) -> Clock {
        Clock(self.clock)
    }

    fn point(&mut self) -> Result<(ExecPoint, RegisterDigest), EngineError> {
        let regs = if self.registers_fresh {
            self.fd.sync_regs().regs
        } else {
            self.fd.get_regs().map_err(|e| ioctl("KVM_GET_REGS", e))?
        };
        let point = ExecPoint {
            clock: Clock(self.clock),
            rip: regs.rip,
            rcx: regs.rcx,
        };
        let flags = regs.rflags & !NOT_THE_GUESTS;
        Ok((
            point,
            digest::registers(regs.rip, flags, &convert::general(&regs)),
        ))
    }

    fn interruptible(&self) -> bool {
        self.interruptible && !self.injected
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        let interrupt = kvm_interrupt { irq: vector.into() };
        // SAFETY: the ioctl reads the structure it is given.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_INTERRUPT(), &interrupt) };
        if result != 0 {
            return Err(EngineError::Ioctl {
                operation: format!("KVM_INTERRUPT {vector}"),
                source: io::Error::last_os_error(),
            });
        }
        self.injected = true;
        // The interrupt ends the halt, though it is taken at the next entry only.
        self.halted = false;
        Ok(())
    }

    /// KVM ends an access only when it is entered again.
    fn settle(&mut self) -> Result<(), EngineError> {
        let Some(access) = self.access else {
            return Ok(());
        };
        let busy = || EngineError::Unsupported("the guest is in the middle of an access".into());
        if access.read || access.left > 1 || self.carried {
            return Err(busy());
        }
        if self.end_piece()? {
            return Ok(());
        }
        // To be handled when the guest is entered.
        self.carried = true;
        Err(busy())
    }

    /// KVM would go on with the access over the registers that are put back: with the rest of a store it
    /// makes in pieces, it reports an exit of the old life to the new one.
    fn abandon(&mut self) -> Result<(), EngineError> {
        if self.access.is_none() && !self.carried {
            return Ok(());
        }
        for _ in 0..PIECES_MAX {
            if self.end_piece()? {
                self.carried = false;
                return Ok(());
            }
        }
        Err(self.failed("an access that does not end".into()))
    }

    fn culprit(&mut self, exit: VmExit) -> Option<String> {
        self.words_for(exit)
    }

    /// A write to CR3 that changes it makes KVM drop the tables it runs the guest by, and the processor's
    /// translations with them, when the guest is entered next. So it is changed, and changed back.
    fn flush_translations(&mut self) -> Result<(), EngineError> {
        let sregs = self.fd.get_sregs().map_err(|e| ioctl("KVM_GET_SREGS", e))?;
        let mut other = sregs;
        other.cr3 ^= PAGE_BYTES;
        for sregs in [&other, &sregs] {
            self.fd
                .set_sregs(sregs)
                .map_err(|e| ioctl("KVM_SET_SREGS", e))?;
        }
        if self.kind != ClockKind::Blocks {
            self.budget = ENDLESS;
            self.set_word(ENDLESS);
        }
        Ok(())
    }

    fn note_dirty_pages(&mut self, noted: bool) -> Result<(), EngineError> {
        for region in self.vm.memory().iter() {
            let writes = region.bitmap().writes();
            writes.unwatch();
            if noted {
                writes.watch();
            }
        }
        self.vm
            .log_dirty(noted)
            .map_err(|e| ioctl("KVM_SET_USER_MEMORY_REGION", e))?;
        let pages = memory::page_count(self.vm.memory());
        self.dirty = noted.then(|| PageSet::new(pages));
        if noted {
            // What was logged before, if it was.
            self.dirty_pages()?;
        }
        Ok(())
    }

    fn dirty_pages(&mut self) -> Result<PageSet, EngineError> {
        self.gather_dirty()?;
        let dirty = self.dirty.as_mut().ok_or_else(EngineError::not_noted)?;
        let none = PageSet::new(memory::page_count(self.vm.memory()));
        Ok(std::mem::replace(dirty, none))
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        let regs = self.fd.get_regs().map_err(|e| ioctl("KVM_GET_REGS", e))?;
        let sregs = self.fd.get_sregs().map_err(|e| ioctl("KVM_GET_SREGS", e))?;
        let xsave = self.fd.get_xsave().map_err(|e| ioctl("KVM_GET_XSAVE", e))?;
        let events = self.events()?;
        let mut state = CpuState {
            clock: Clock(self.clock),
            general: convert::general(&regs),
            rip: regs.rip,
            rflags: regs.rflags & !self.not_saved(),
            fpu: convert::take_fpu(&xsave),
            debug: convert::take_debug(&self.debug_registers()?),
            shadow: events.interrupt.shadow != 0,
            halted: self.halted,
            ..Default::default()
        };
        convert::take_sregs(&mut state, &sregs);
        for index in SAVED_MSRS {
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            let mut msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
            // A kind of KVM without this register reports none read: the guest cannot have used it.
            let got = self.fd.get_msrs(&mut msrs).unwrap_or(0);
            let value = if got == 1 { msrs.as_slice()[0].data } else { 0 };
            state.msrs.push((index, value));
        }
        Ok(state)
    }

    fn restore(&mut self, state: &CpuState) -> Result<(), EngineError> {
        if state.tsc_offset != 0 {
            let why = "a vCPU state with a moved TSC: KVM's guests have none";
            return Err(EngineError::Unsupported(why.into()));
        }
        // The log goes with the slots.
        self.gather_dirty()?;
        self.vm
            .forget_translations()
            .map_err(|e| ioctl("KVM_SET_USER_MEMORY_REGION", e))?;
        let base = self.fd.get_sregs().map_err(|e| ioctl("KVM_GET_SREGS", e))?;
        let sregs = convert::sregs(state, &base);
        self.fd
            .set_sregs(&sregs)
            .map_err(|e| ioctl("KVM_SET_SREGS", e))?;
        self.fd
            .set_regs(&convert::regs(state))
            .map_err(|e| ioctl("KVM_SET_REGS", e))?;
        let mut xsave = self.fd.get_xsave().map_err(|e| ioctl("KVM_GET_XSAVE", e))?;
        convert::put_fpu(&mut xsave, &state.fpu);
        // SAFETY: no feature with state beyond 4 KiB is enabled for the guest.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(|e| ioctl("KVM_SET_XSAVE", e))?;
        self.put_events_and_debug(state)?;
        self.put_msrs(&state.msrs)?;
        // A halted vCPU is entered as a runnable one: the halt has exited, and an interrupt wakes it.
        let _ = self.fd.set_mp_state(kvm_mp_state::default());
        self.clock = state.clock.0;
        self.budget = ENDLESS;
        self.set_word(ENDLESS);
        self.trap_due = false;
        self.was_kicked = false;
        self.access = None;
        self.carried = false;
        self.halted = state.halted;
        self.injected = state.injected.is_some();
        self.interruptible = state.rflags & INTERRUPTS != 0 && !state.shadow;
        self.registers_fresh = false;
        Ok(())
    }
}

fn ioctl(operation: &str, e: kvm_ioctls::Error) -> EngineError {
    EngineError::Ioctl {
        operation: operation.to_owned(),
        source: io::Error::from_raw_os_error(e.errno()),
    }
}

#[cfg(test)]
#[path = "vcpu_tests.rs"]
mod tests;
