//! Words for what a guest on KVM did last.

use super::vcpu::KvmEngine;
use crate::engine::{Bus, VmExit};
use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use soft::describe::{Standing, disassemble, length_of_writer};
use soft::trap::{Access, Space};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Longest instruction (SDM volume 2A, 2.3.11).
const LONGEST: u64 = 15;
const PAGE: u64 = 4096;

/// Where `linear` is in the guest's physical memory.
fn translate(fd: &VcpuFd, linear: u64) -> Option<u64> {
    let found = fd.translate_gva(linear).ok()?;
    (found.valid != 0).then_some(found.physical_address)
}

/// The general registers as instructions number them.
fn in_encoding_order(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
        regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

impl KvmEngine {
    /// Bytes, disassembly and address of the instruction that made `exit`; of a write, which KVM tells of
    /// when its instruction is behind it, only if the registers still say which that was.
    pub(super) fn words_for(&mut self, exit: VmExit) -> Option<String> {
        let (bus, address, size, value) = match exit {
            VmExit::Write {
                bus,
                address,
                size,
                value,
            } => (bus, address, size, value),
            _ => return self.next_instruction(),
        };
        let space = match bus {
            Bus::Port => Space::Port,
            Bus::Mmio => Space::Memory,
            Bus::Tsc => return None,
        };
        let write = Access {
            space,
            address,
            size,
            value: Some(value),
        };
        let (regs, long) = self.standing()?;
        let from = regs.rip.saturating_sub(LONGEST);
        let before = self.bytes(from, regs.rip - from);
        let now = Standing {
            general: &in_encoding_order(&regs),
            rip: regs.rip,
            long,
        };
        let length = length_of_writer(&before, now, &write, |linear| translate(self.fd(), linear))?;
        let start = before.len() - length;
        disassemble(&before[start..], regs.rip - length as u64, long)
    }

    /// Bytes, disassembly and address of the instruction at RIP; `None` if no RAM is there.
    pub(super) fn next_instruction(&mut self) -> Option<String> {
        let (regs, long) = self.standing()?;
        disassemble(&self.bytes(regs.rip, LONGEST), regs.rip, long)
    }

    /// Why there is no instruction at RIP, if there is none.
    pub(super) fn nowhere(&mut self) -> Option<String> {
        let (regs, _) = self.standing()?;
        if !self.bytes(regs.rip, 1).is_empty() {
            return None;
        }
        self.outside_ram().or_else(|| {
            Some(format!(
                "it executes at {:#x}, which is not mapped",
                regs.rip
            ))
        })
    }

    /// Why there is no instruction at RIP, if it is mapped to where there is no RAM.
    pub(super) fn outside_ram(&mut self) -> Option<String> {
        let (regs, _) = self.standing()?;
        let physical = translate(self.fd(), regs.rip)?;
        if self.memory().address_in_range(GuestAddress(physical)) {
            return None;
        }
        let rip = regs.rip;
        let there = format!("{rip:#x}, physical {physical:#x}");
        Some(format!("it executes at {there}, where there is no RAM"))
    }

    fn standing(&self) -> Option<(kvm_regs, bool)> {
        let regs = self.fd().get_regs().ok()?;
        let sregs = self.fd().get_sregs().ok()?;
        Some((regs, sregs.cs.l != 0))
    }

    /// Up to `length` (at most a page) bytes at `linear`, to where no RAM is.
    fn bytes(&self, linear: u64, length: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let at = linear.wrapping_add(bytes.len() as u64);
            let here = (PAGE - at % PAGE).min(length - bytes.len() as u64);
            let mut part = vec![0; here as usize];
            let read = translate(self.fd(), at).is_some_and(|at| {
                self.memory()
                    .read_slice(&mut part, GuestAddress(at))
                    .is_ok()
            });
            if !read {
                break;
            }
            bytes.append(&mut part);
        }
        bytes
    }
}
