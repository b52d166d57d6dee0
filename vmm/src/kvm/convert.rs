//! Between KVM's register layouts and ours.

use crate::state::{CpuState, Fpu, Segment, Table};
use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs, kvm_xsave};

pub(super) fn general(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rsp, regs.rbp, regs.r8,
        regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

pub(super) fn regs(state: &CpuState) -> kvm_regs {
    let [
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.general;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

/// A segment that cannot be used (a null selector, such as that of SS after an interrupt from ring 3) has
/// its base and privilege level only: processors and kinds of KVM differ in what else they keep of it.
fn segment_out(s: &kvm_segment) -> Segment {
    if s.unusable & 1 == 1 || s.present & 1 == 0 {
        return Segment {
            base: s.base,
            limit: 0,
            selector: s.selector,
            attributes: u16::from(s.dpl & 3) << 5 | 1 << 12,
        };
    }
    let bits = [
        (s.type_ & 0xf, 0),
        (s.s & 1, 4),
        (s.dpl & 3, 5),
        (s.present & 1, 7),
        (s.avl & 1, 8),
        (s.l & 1, 9),
        (s.db & 1, 10),
        (s.g & 1, 11),
        (s.unusable & 1, 12),
    ];
    let attributes = bits
        .iter()
        .fold(0, |word, (value, at)| word | u16::from(*value) << at);
    // Kinds of KVM say differently that there is none.
    if s.present & 1 == 0 {
        return Segment {
            base: s.base,
            selector: s.selector,
            attributes: 1 << 12,
            ..Default::default()
        };
    }
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        attributes,
    }
}

fn segment_in(s: &Segment) -> kvm_segment {
    let bits = |at: u32, mask: u16| (s.attributes >> at & mask) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: bits(0, 0xf),
        s: bits(4, 1),
        dpl: bits(5, 3),
        present: bits(7, 1),
        avl: bits(8, 1),
        l: bits(9, 1),
        db: bits(10, 1),
        g: bits(11, 1),
        unusable: bits(12, 1),
        padding: 0,
    }
}

/// Copies what KVM keeps in its special registers into `state`.
pub(super) fn take_sregs(state: &mut CpuState, s: &kvm_sregs) {
    state.segments = [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt].map(segment_out);
    state.tables = [&s.gdt, &s.idt].map(|t| Table {
        base: t.base,
        limit: t.limit,
    });
    state.control = [s.cr0, s.cr2, s.cr3, s.cr4, s.cr8];
    state.efer = s.efer;
    state.injected = s
        .interrupt_bitmap
        .iter()
        .enumerate()
        .find(|(_, word)| **word != 0)
        .map(|(n, word)| (n * 64) as u8 + word.trailing_zeros() as u8);
}

/// The other way; `base` supplies what we do not model (the local APIC's base).
pub(super) fn sregs(state: &CpuState, base: &kvm_sregs) -> kvm_sregs {
    let [cs, ds, es, fs, gs, ss, tr, ldt] = state.segments.each_ref().map(segment_in);
    let table = |t: &Table| kvm_dtable {
        base: t.base,
        limit: t.limit,
        ..Default::default()
    };
    let [cr0, cr2, cr3, cr4, cr8] = state.control;
    let mut interrupt_bitmap = [0; 4];
    if let Some(vector) = state.injected {
        interrupt_bitmap[usize::from(vector / 64)] = 1 << (vector % 64);
    }
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        interrupt_bitmap,
        gdt: table(&state.tables[0]),
        idt: table(&state.tables[1]),
        efer: state.efer,
        apic_base: base.apic_base,
    }
}

pub(super) fn take_fpu(fpu: &kvm_fpu) -> Fpu {
    Fpu {
        x87: fpu.fpr,
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftw: fpu.ftwx,
        xmm: fpu.xmm,
        // KVM_GET_FPU does not tell it: see `take_mxcsr`.
        mxcsr: 0,
    }
}

/// MXCSR and its mask in the XSAVE area, in words (SDM volume 1, 10.5.1).
const MXCSR: usize = 24 / 4;
/// XSTATE_BV in the XSAVE header, in words, and its bit for SSE (SDM volume 1, 13.4.2).
const XSTATE_BV: usize = 512 / 4;
const XSTATE_SSE: u32 = 1 << 1;

pub(super) fn take_mxcsr(xsave: &kvm_xsave) -> u32 {
    xsave.region[MXCSR]
}

pub(super) fn put_mxcsr(xsave: &mut kvm_xsave, mxcsr: u32) {
    xsave.region[MXCSR] = mxcsr;
    xsave.region[XSTATE_BV] |= XSTATE_SSE;
}

pub(super) fn fpu(fpu: &Fpu) -> kvm_fpu {
    kvm_fpu {
        fpr: fpu.x87,
        fcw: fpu.fcw,
        fsw: fpu.fsw,
        ftwx: fpu.ftw,
        xmm: fpu.xmm,
        mxcsr: fpu.mxcsr,
        ..Default::default()
    }
}
