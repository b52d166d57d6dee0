//! System instructions: modes, segments, tables, interrupts, ports.
//!
//! Nearly all end their block: they are rare, and most change how what follows is fetched, decoded or
//! interrupted.

use super::Lowered;
use super::form::{Form, segment_slot};
use crate::cpu::segment;
use crate::execute::{debug, far, loose, msr, ports, system, tables};
use crate::op::Handler;
use iced_x86::{Mnemonic, OpKind, Register};

/// The op for such an instruction; `None` if it is none.
pub(super) fn lower(form: &mut Form) -> Option<Lowered> {
    if let Some(handler) = clock(form) {
        return Some(Lowered {
            counts: true,
            ..form.ending(handler)
        });
    }
    let handler = transfer(form)
        .or_else(|| control(form))
        .or_else(|| segments(form))
        .or_else(|| port(form))?;
    // What follows these is fetched as it would have been, and no interrupt comes sooner.
    let goes_on = matches!(
        form.instruction.mnemonic(),
        Mnemonic::Cli | Mnemonic::Swapgs | Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq
    );
    Some(if goes_on {
        form.with(handler)
    } else {
        form.ending(handler)
    })
}

/// Those that read or set the clock.
fn clock(form: &Form) -> Option<Handler> {
    Some(match form.instruction.mnemonic() {
        Mnemonic::Rdtsc => system::rdtsc,
        Mnemonic::Rdmsr => msr::rdmsr,
        Mnemonic::Wrmsr => msr::wrmsr,
        _ => return None,
    })
}

/// Bytes of the operand size, of an instruction whose forms are one mnemonic per size.
fn sized(form: &mut Form, size: u8, handler: Handler) -> Handler {
    form.op.extra |= size;
    handler
}

/// Control transfers between segments and privileges, and the flags.
fn transfer(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    Some(match i.mnemonic() {
        Mnemonic::Int => {
            form.op.imm = i.immediate8().into();
            far::interrupt
        }
        Mnemonic::Int3 => interrupt(form, 3, 0),
        Mnemonic::Int1 => interrupt(form, 1, 1),
        Mnemonic::Into => interrupt(form, 4, 2),
        Mnemonic::Iret => sized(form, 2, far::iret),
        Mnemonic::Iretd => sized(form, 4, far::iret),
        Mnemonic::Iretq => sized(form, 8, far::iret),
        Mnemonic::Syscall => far::syscall,
        Mnemonic::Sysret => sized(form, 4, far::sysret),
        Mnemonic::Sysretq => sized(form, 8, far::sysret),
        // They do not exist in AMD's long mode.
        Mnemonic::Sysenter | Mnemonic::Sysexit | Mnemonic::Sysexitq => system::undefined,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => system::undefined,
        // There is no system management mode to return from (SDM volume 3, 32.2).
        Mnemonic::Rsm => system::undefined,
        Mnemonic::Jmp | Mnemonic::Call => return far_branch(form),
        Mnemonic::Retf => {
            if i.op_count() == 1 {
                form.op.imm = i.immediate16().into();
            }
            let bytes = i.stack_pointer_increment() - form.op.imm as i32;
            sized(form, (bytes / 2) as u8, far::ret)
        }
        Mnemonic::Pushf => sized(form, 2, system::pushf),
        Mnemonic::Pushfd => sized(form, 4, system::pushf),
        Mnemonic::Pushfq => sized(form, 8, system::pushf),
        Mnemonic::Popf => sized(form, 2, system::popf),
        Mnemonic::Popfd => sized(form, 4, system::popf),
        Mnemonic::Popfq => sized(form, 8, system::popf),
        _ => return None,
    })
}

fn interrupt(form: &mut Form, vector: u64, kind: u8) -> Handler {
    form.op.imm = vector;
    form.op.dst = kind;
    far::interrupt
}

fn far_branch(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    form.op.dst = u8::from(i.mnemonic() == Mnemonic::Call);
    match i.op0_kind() {
        OpKind::FarBranch32 => {
            form.op.imm = u64::from(i.far_branch32()) | u64::from(i.far_branch_selector()) << 32;
            form.op.extra = 4;
        }
        OpKind::FarBranch16 => {
            form.op.imm = u64::from(i.far_branch16()) | u64::from(i.far_branch_selector()) << 32;
            form.op.extra = 2;
        }
        OpKind::Memory if i.is_jmp_far_indirect() || i.is_call_far_indirect() => {
            // The operand is an offset and two bytes of selector.
            form.op.extra = i.memory_size().size() as u8 - 2;
            form.loose_memory();
        }
        _ => return None,
    }
    Some(far::branch)
}

/// Control and debug registers, caches, the rest that is privileged.
fn control(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    Some(match i.mnemonic() {
        Mnemonic::Mov => return special_move(form),
        Mnemonic::Clts => system::clts,
        Mnemonic::Lmsw => {
            form.loose(0, 2);
            system::lmsw
        }
        Mnemonic::Smsw => {
            let size = form.size(0);
            form.loose(0, size);
            system::smsw
        }
        Mnemonic::Invlpg => {
            form.loose_memory();
            system::invlpg
        }
        Mnemonic::Wbinvd | Mnemonic::Invd => system::flush_caches,
        Mnemonic::Clflush => {
            form.loose_memory();
            system::flush_line
        }
        Mnemonic::Rdpmc => system::rdpmc,
        Mnemonic::Cpuid => system::cpuid,
        Mnemonic::Cli => system::cli,
        Mnemonic::Sti => system::sti,
        Mnemonic::Hlt => system::hlt,
        Mnemonic::Clac => system::set_ac,
        Mnemonic::Stac => {
            form.op.imm = 1;
            system::set_ac
        }
        Mnemonic::Swapgs => system::swapgs,
        _ => return None,
    })
}

/// Moves to and from control, debug and segment registers.
fn special_move(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    let special = |r: Register| r.is_cr() || r.is_dr() || r.is_segment_register();
    let register = |n| {
        if form.is_register(n) {
            i.op_register(n)
        } else {
            Register::None
        }
    };
    let (to, from) = (register(0), register(1));
    let (special, other, writes) = if special(to) {
        (to, 1, true)
    } else if special(from) {
        (from, 0, false)
    } else {
        return None;
    };
    form.op.dst = special.number() as u8;
    let size = form.size(other);
    form.loose(other, size);
    Some(if special.is_cr() {
        if writes {
            system::write_control
        } else {
            system::read_control
        }
    } else if special.is_dr() {
        if writes { debug::write } else { debug::read }
    } else if !writes {
        tables::store_system
    } else if usize::from(form.op.dst) == segment::CS {
        system::undefined
    } else {
        tables::to_segment
    })
}

/// Segment registers and descriptor tables.
fn segments(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    Some(match i.mnemonic() {
        Mnemonic::Lgdt => table(form, 0, tables::load_table),
        Mnemonic::Lidt => table(form, 1, tables::load_table),
        Mnemonic::Sgdt => table(form, 0, tables::store_table),
        Mnemonic::Sidt => table(form, 1, tables::store_table),
        Mnemonic::Lldt => operand(form, 0, tables::lldt),
        Mnemonic::Ltr => operand(form, 0, tables::ltr),
        Mnemonic::Sldt => {
            form.op.dst = segment::LDTR as u8;
            operand(form, 0, tables::store_system)
        }
        Mnemonic::Str => {
            form.op.dst = segment::TR as u8;
            operand(form, 0, tables::store_system)
        }
        Mnemonic::Lar => judged(form, tables::lar),
        Mnemonic::Lsl => judged(form, tables::lsl),
        Mnemonic::Verr => operand(form, 0, tables::verify),
        Mnemonic::Verw => {
            form.op.dst = 1;
            operand(form, 0, tables::verify)
        }
        Mnemonic::Arpl => {
            form.dst(1).loose(0, 2);
            tables::arpl
        }
        Mnemonic::Push => stacked(form, tables::push_segment)?,
        Mnemonic::Pop => stacked(form, tables::pop_segment)?,
        Mnemonic::Lss => pointer(form, segment::SS),
        Mnemonic::Lfs => pointer(form, segment::FS),
        Mnemonic::Lgs => pointer(form, segment::GS),
        Mnemonic::Lds => pointer(form, segment::DS),
        Mnemonic::Les => pointer(form, segment::ES),
        _ => return None,
    })
}

fn table(form: &mut Form, which: u8, handler: Handler) -> Handler {
    form.op.dst = which;
    form.loose_memory();
    handler
}

fn operand(form: &mut Form, number: u32, handler: Handler) -> Handler {
    let size = form.size(number);
    form.loose(number, size);
    handler
}

/// LAR and LSL: the destination's size is not the source's.
fn judged(form: &mut Form, handler: Handler) -> Handler {
    form.dst(0);
    form.op.imm = form.size(0) as u64;
    operand(form, 1, handler)
}

/// PUSH and POP of a segment register.
fn stacked(form: &mut Form, handler: Handler) -> Option<Handler> {
    let i = form.instruction;
    if !form.is_register(0) || !i.op0_register().is_segment_register() {
        return None;
    }
    form.op.dst = i.op0_register().number() as u8;
    form.op.extra = i.stack_pointer_increment().unsigned_abs() as u8;
    Some(handler)
}

fn pointer(form: &mut Form, register: usize) -> Handler {
    form.dst(0);
    form.op.imm = register as u64;
    form.op.extra = form.size(0) as u8;
    form.loose_memory();
    tables::load_pointer
}

/// Ports.
fn port(form: &mut Form) -> Option<Handler> {
    let i = form.instruction;
    let size = match i.mnemonic() {
        Mnemonic::In => {
            port_number(form, 1);
            form.op.extra = form.size(0) as u8;
            return Some(ports::read);
        }
        Mnemonic::Out => {
            port_number(form, 0);
            form.op.extra = form.size(1) as u8;
            return Some(ports::write);
        }
        Mnemonic::Insb | Mnemonic::Outsb => 1,
        Mnemonic::Insw | Mnemonic::Outsw => 2,
        Mnemonic::Insd | Mnemonic::Outsd => 4,
        _ => return None,
    };
    let reads = matches!(
        i.mnemonic(),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd
    );
    let kind = i.op_kind(if reads { 0 } else { 1 });
    form.op.extra = size;
    form.op.extra |= match kind {
        OpKind::MemoryESRDI | OpKind::MemorySegRSI => 0,
        OpKind::MemoryESDI | OpKind::MemorySegSI => ports::SHORT,
        _ => loose::NARROW,
    };
    form.op.dst = u8::from(i.has_rep_prefix() || i.has_repne_prefix());
    let register = if reads {
        Register::ES
    } else {
        i.memory_segment()
    };
    form.op.base = segment_slot(register, form.long);
    Some(if reads {
        ports::read_string
    } else {
        ports::write_string
    })
}

fn port_number(form: &mut Form, operand: u32) {
    if form.is_register(operand) {
        form.op.dst = 1;
    } else {
        form.op.imm = form.instruction.immediate8().into();
    }
}
