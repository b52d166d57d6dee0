//! The vCPU's registers as gdb wants them.

use gdbstub::arch::{Arch, Registers};
use vmm::state::{CpuState, Fpu};

/// x86-64 with what a kernel's debugger wants besides: segment bases, control registers.
///
/// Why not that of `gdbstub_arch`: its registers have no segment bases.
pub enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = File;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// All registers, in the order and the widths of the target description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    rip: u64,
    bytes: Vec<u8>,
}

impl Registers for File {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, write_byte: impl FnMut(Option<u8>)) {
        self.bytes.iter().copied().map(Some).for_each(write_byte);
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.bytes = bytes.to_vec();
        Ok(())
    }
}

impl From<&CpuState> for File {
    fn from(state: &CpuState) -> Self {
        let mut bytes = Vec::with_capacity(700);
        let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp] = std::array::from_fn(|n| state.general[n]);
        for value in [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp] {
            bytes.extend(value.to_le_bytes());
        }
        for value in &state.general[8..] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(state.rip.to_le_bytes());
        bytes.extend((state.rflags as u32).to_le_bytes());
        let [cs, ds, es, fs, gs, ss, _, _] = state.segments;
        for segment in [cs, ss, ds, es, fs, gs] {
            bytes.extend(u32::from(segment.selector).to_le_bytes());
        }
        let fpu = &state.fpu;
        for register in &fpu.x87 {
            bytes.extend(&register[..10]);
        }
        let [fcw, fsw, tags] = [fpu.fcw, fpu.fsw, tag_word(fpu)].map(u32::from);
        // The last-instruction pointers are not part of the machine.
        for value in [fcw, fsw, tags, 0, 0, 0, 0, 0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(fpu.xmm.as_flattened());
        bytes.extend(fpu.mxcsr.to_le_bytes());
        let [cr0, cr2, cr3, cr4, _] = state.control;
        for value in [fs.base, gs.base, cr0, cr2, cr3, cr4, state.efer] {
            bytes.extend(value.to_le_bytes());
        }
        Self {
            rip: state.rip,
            bytes,
        }
    }
}

/// The x87 tag word: two bits for each physical register (SDM volume 1, 8.1.7), from the abridged tags.
fn tag_word(fpu: &Fpu) -> u16 {
    let top = usize::from(fpu.fsw >> 11 & 7);
    let mut word = 0;
    for physical in 0..8 {
        let register = &fpu.x87[(physical + 8 - top) % 8];
        let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
        let empty = fpu.ftw & 1 << physical == 0;
        let tag = match exponent {
            _ if empty => 3,
            0 if register[..8] == [0; 8] => 1,
            0 | 0x7fff => 2,
            _ if register[7] & 0x80 == 0 => 2,
            _ => 0,
        };
        word |= tag << (2 * physical);
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registers_are_as_long_as_the_description_says() {
        let bits: usize = include_str!("target.xml")
            .split("bitsize=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse::<usize>().unwrap())
            .sum();
        assert_eq!(File::from(&CpuState::default()).bytes.len() * 8, bits);
    }

    #[test]
    fn tags_tell_empty_zero_special_and_valid_apart() {
        let mut fpu = Fpu {
            fsw: 6 << 11,
            ftw: 0b1100_0001,
            ..Fpu::default()
        };
        // ST(0) is physical register 6: 1.0; ST(1), 7: zero; ST(2), 0: infinity.
        fpu.x87[0][7..10].copy_from_slice(&[0x80, 0xff, 0x3f]);
        fpu.x87[2][7..10].copy_from_slice(&[0x80, 0xff, 0x7f]);
        assert_eq!(tag_word(&fpu), 0b01_00_11_11_11_11_11_10);
    }
}
