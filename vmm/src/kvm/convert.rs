//! Between KVM's register layouts and ours.

use crate::state::{CpuState, Fpu, Segment, Table};
use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_xsave};

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

/// Where FXSAVE's image, the beginning of an XSAVE area, has x87 control and status, MXCSR, the x87 and the
/// XMM registers, in bytes (SDM volume 1, table 10-2).
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const MXCSR: usize = 24;
const X87: usize = 32;
const XMM: usize = 160;
/// XSTATE_BV in the XSAVE header, in bytes, and its bits for x87 and SSE (SDM volume 1, 13.4.2).
const XSTATE_BV: usize = 512;
const XSTATE_X87_SSE: u32 = 3;
/// Bytes of an x87 register; the rest of its 16 is reserved.
const X87_BYTES: usize = 10;

/// x87 and SSE, from an XSAVE area as KVM_GET_XSAVE has it: parts the processor did not store are filled in
/// with what they are then. (KVM_GET_FPU may tell stale bytes of those, and no MXCSR.)
pub(super) fn take_fpu(xsave: &kvm_xsave) -> Fpu {
    let area: Vec<u8> = xsave.region.iter().flat_map(|w| w.to_le_bytes()).collect();
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    Fpu {
        x87: std::array::from_fn(|n| {
            let mut register = [0; 16];
            let at = X87 + n * 16;
            register[..X87_BYTES].copy_from_slice(&area[at..at + X87_BYTES]);
            register
        }),
        fcw: word(FCW),
        fsw: word(FSW),
        ftw: area[FTW],
        xmm: std::array::from_fn(|n| std::array::from_fn(|byte| area[XMM + n * 16 + byte])),
        mxcsr: u32::from(word(MXCSR)) | u32::from(word(MXCSR + 2)) << 16,
    }
}

/// The other way. Both parts are marked as present: KVM takes what is not for initial, whatever it says.
pub(super) fn put_fpu(xsave: &mut kvm_xsave, fpu: &Fpu) {
    let mut put = |at: usize, bytes: &[u8]| {
        for (n, byte) in bytes.iter().enumerate() {
            let (word, shift) = ((at + n) / 4, (at + n) % 4 * 8);
            let word = &mut xsave.region[word];
            *word = *word & !(0xff << shift) | u32::from(*byte) << shift;
        }
    };
    put(FCW, &fpu.fcw.to_le_bytes());
    put(FSW, &fpu.fsw.to_le_bytes());
    put(FTW, &[fpu.ftw]);
    put(MXCSR, &fpu.mxcsr.to_le_bytes());
    for (n, register) in fpu.x87.iter().enumerate() {
        put(X87 + n * 16, &register[..X87_BYTES]);
    }
    put(XMM, fpu.xmm.as_flattened());
    xsave.region[XSTATE_BV / 4] |= XSTATE_X87_SSE;
}

/// DR6 and DR7 at reset (SDM volume 3, table 10-1).
const DR6_AT_RESET: u64 = 0xffff_0ff0;
const DR7_AT_RESET: u64 = 0x400;

pub(super) fn take_debug(d: &kvm_debugregs) -> [u64; 6] {
    let [dr0, dr1, dr2, dr3] = d.db;
    [
        dr0,
        dr1,
        dr2,
        dr3,
        d.dr6 ^ DR6_AT_RESET,
        d.dr7 ^ DR7_AT_RESET,
    ]
}

pub(super) fn debug(state: &[u64; 6]) -> kvm_debugregs {
    let [dr0, dr1, dr2, dr3, dr6, dr7] = *state;
    kvm_debugregs {
        db: [dr0, dr1, dr2, dr3],
        dr6: dr6 ^ DR6_AT_RESET,
        dr7: dr7 ^ DR7_AT_RESET,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x87_and_sse_go_through_an_xsave_area() {
        let fpu = Fpu {
            x87: std::array::from_fn(|n| {
                std::array::from_fn(|byte| if byte < 10 { (n * 10 + byte) as u8 } else { 0 })
            }),
            fcw: 0x27f,
            fsw: 0x3800,
            ftw: 0x81,
            xmm: std::array::from_fn(|n| std::array::from_fn(|byte| (n * 16 + byte) as u8 ^ 0x5a)),
            mxcsr: 0xffbf,
        };
        let mut xsave = kvm_xsave::default();
        xsave.region.fill(0xeeee_eeee);
        xsave.region[XSTATE_BV / 4] = 0;
        put_fpu(&mut xsave, &fpu);
        assert_eq!(take_fpu(&xsave), fpu);
        assert_eq!(xsave.region[XSTATE_BV / 4], 3);
        assert_eq!(
            xsave.region[XSTATE_BV / 4 - 1],
            0xeeee_eeee,
            "and nothing else"
        );
        assert_eq!(xsave.region[104], 0xeeee_eeee, "behind XMM15");
    }

    #[test]
    fn debug_registers_at_reset_are_zero() {
        assert_eq!(take_debug(&debug(&[0; 6])), [0; 6]);
        assert_eq!(debug(&[0; 6]).dr6, 0xffff_0ff0);
        let set = [1, 2, 3, 4, 1 << 14, 0x2ff];
        assert_eq!(take_debug(&debug(&set)), set);
    }
}
