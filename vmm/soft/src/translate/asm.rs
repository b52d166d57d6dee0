//! Host instructions as bytes.
//!
//! Only what the translator uses: a register and a register or memory operand, immediates, jumps of 32 bits.
//! An encoder of every x86 form costs twenty times as much per instruction, and translating is on a guest's way.

/// A host register, as instructions encode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reg(pub u8);

/// RAX: scratch.
pub(super) const RAX: Reg = Reg(0);
/// RCX.
pub(super) const RCX: Reg = Reg(1);
/// RDX.
pub(super) const RDX: Reg = Reg(2);
/// RBX.
pub(super) const RBX: Reg = Reg(3);
/// RSP: the host's stack.
pub(super) const RSP: Reg = Reg(4);
/// RBP: the processor's state.
pub(super) const RBP: Reg = Reg(5);
/// RSI.
pub(super) const RSI: Reg = Reg(6);
/// RDI.
pub(super) const RDI: Reg = Reg(7);
/// R10: scratch.
pub(super) const R10: Reg = Reg(10);
/// R11: see [`super::state::FREE`].
pub(super) const R11: Reg = Reg(11);
/// R12.
pub(super) const R12: Reg = Reg(12);
/// R13.
pub(super) const R13: Reg = Reg(13);
/// R14.
pub(super) const R14: Reg = Reg(14);
/// R15: see [`super::state::FREE`].
pub(super) const R15: Reg = Reg(15);

/// A memory operand of the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mem {
    base: Option<Reg>,
    /// Never RSP.
    index: Option<Reg>,
    /// log2 of the index's scale.
    scale: u8,
    disp: i32,
}

impl Mem {
    /// `[base + disp]`.
    pub fn at(base: Reg, disp: i32) -> Self {
        Self {
            base: Some(base),
            index: None,
            scale: 0,
            disp,
        }
    }

    /// The same, so many bytes on.
    pub fn plus(self, bytes: i32) -> Self {
        Self {
            disp: self.disp + bytes,
            ..self
        }
    }

    /// `[base + index << scale + disp]`.
    pub fn indexed(base: Option<Reg>, index: Reg, scale: u8, disp: i32) -> Self {
        assert!(index != RSP, "RSP is no index");
        Self {
            base,
            index: Some(index),
            scale,
            disp,
        }
    }
}

/// A register or memory operand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rm {
    Reg(Reg),
    Mem(Mem),
}

impl From<Reg> for Rm {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<Mem> for Rm {
    fn from(mem: Mem) -> Self {
        Self::Mem(mem)
    }
}

/// An opcode: a mandatory prefix (or 0), how many of `0F 38` or `0F 3A` come first, and its byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opcode {
    pub prefix: u8,
    pub map: &'static [u8],
    pub byte: u8,
}

/// An opcode of the first map.
pub(super) const fn one(byte: u8) -> Opcode {
    Opcode {
        prefix: 0,
        map: &[],
        byte,
    }
}

/// An opcode after 0F.
pub(super) const fn two(byte: u8) -> Opcode {
    Opcode {
        prefix: 0,
        map: &[0x0f],
        byte,
    }
}

/// A jump whose 32-bit distance is not known yet: where that is.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Hole(usize);

/// Code on its way.
pub(super) struct Asm {
    /// Where its first byte will run.
    base: u64,
    code: Vec<u8>,
}

impl Asm {
    /// Code that will run at `base`.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            code: Vec::with_capacity(1024),
        }
    }

    /// Where the next byte will run.
    pub fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.code
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// Bytes of nothing up to a multiple of `to`.
    pub fn align(&mut self, to: u64) {
        while !self.here().is_multiple_of(to) {
            self.code.push(0xcc);
        }
    }

    /// An instruction with ModRM on operands of `size` bytes. With a size of 1, byte registers are meant.
    pub fn op(&mut self, size: u8, opcode: Opcode, reg: u8, rm: impl Into<Rm>) {
        let rm = rm.into();
        let bytes = size == 1;
        self.encode(size, opcode, reg, rm, bytes, bytes);
    }

    /// The same where `reg` is a wide register, and only a register in `rm` is a byte.
    pub fn op_from_byte(&mut self, size: u8, opcode: Opcode, reg: Reg, rm: impl Into<Rm>) {
        self.encode(size, opcode, reg.0, rm.into(), false, true);
    }

    fn encode(&mut self, size: u8, opcode: Opcode, reg: u8, rm: Rm, byte_reg: bool, byte_rm: bool) {
        if size == 2 {
            self.code.push(0x66);
        }
        if opcode.prefix != 0 {
            self.code.push(opcode.prefix);
        }
        let (mut rex, mut needed) = (u8::from(size == 8) << 3 | (reg >> 3) << 2, false);
        needed |= byte_reg && reg >= 4;
        match rm {
            Rm::Reg(rm) => {
                rex |= rm.0 >> 3;
                needed |= byte_rm && rm.0 >= 4;
            }
            Rm::Mem(mem) => {
                rex |= mem.base.map_or(0, |r| r.0 >> 3);
                rex |= mem.index.map_or(0, |r| r.0 >> 3) << 1;
            }
        }
        if rex != 0 || needed {
            self.code.push(0x40 | rex);
        }
        for byte in opcode.map {
            self.code.push(*byte);
        }
        self.code.push(opcode.byte);
        match rm {
            Rm::Reg(rm) => self.code.push(0xc0 | (reg & 7) << 3 | rm.0 & 7),
            Rm::Mem(mem) => self.address(reg & 7, mem),
        }
    }

    /// ModRM, SIB and displacement of a memory operand (SDM volume 2A, 2.1.5).
    fn address(&mut self, reg: u8, mem: Mem) {
        let Some(base) = mem.base else {
            // A SIB byte whose base is 5, with ModRM's mode 0: no base, 32 bits of displacement.
            self.code.push(reg << 3 | 4);
            let index = mem.index.map_or(4, |r| r.0 & 7);
            self.code.push(mem.scale << 6 | index << 3 | 5);
            self.code.extend_from_slice(&mem.disp.to_le_bytes());
            return;
        };
        let mode = match mem.disp {
            0 if base.0 & 7 != 5 => 0,
            -128..=127 => 1,
            _ => 2,
        };
        match mem.index {
            None if base.0 & 7 != 4 => self.code.push(mode << 6 | reg << 3 | base.0 & 7),
            index => {
                self.code.push(mode << 6 | reg << 3 | 4);
                let index = index.map_or(4, |r| r.0 & 7);
                self.code.push(mem.scale << 6 | index << 3 | base.0 & 7);
            }
        }
        match mode {
            1 => self.code.push(mem.disp as u8),
            2 => self.code.extend_from_slice(&mem.disp.to_le_bytes()),
            _ => {}
        }
    }

    /// `mov reg, rm`.
    pub fn load(&mut self, size: u8, reg: Reg, rm: impl Into<Rm>) {
        self.op(size, one(if size == 1 { 0x8a } else { 0x8b }), reg.0, rm);
    }

    /// `mov rm, reg`.
    pub fn store(&mut self, size: u8, rm: impl Into<Rm>, reg: Reg) {
        self.op(size, one(if size == 1 { 0x88 } else { 0x89 }), reg.0, rm);
    }

    /// `mov reg, reg`, all 64 bits; nothing if they are one.
    pub fn copy(&mut self, to: Reg, from: Reg) {
        if to != from {
            self.load(8, to, from);
        }
    }

    /// `lea reg, mem`.
    pub fn lea(&mut self, size: u8, reg: Reg, mem: Mem) {
        self.op(size, one(0x8d), reg.0, mem);
    }

    /// `mov reg, value`, in the shortest form that is no arithmetic: flags stay.
    pub fn set(&mut self, reg: Reg, value: u64) {
        let low = reg.0 & 7;
        if u32::try_from(value).is_ok() {
            if reg.0 >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | low);
            self.code.extend_from_slice(&(value as u32).to_le_bytes());
        } else if i32::try_from(value as i64).is_ok() {
            self.op(8, one(0xc7), 0, reg);
            self.code.extend_from_slice(&(value as u32).to_le_bytes());
        } else {
            self.code.push(0x48 | reg.0 >> 3);
            self.code.push(0xb8 | low);
            self.code.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// `mov rm, value` of `size` bytes; 8 bytes are sign-extended from four.
    pub fn store_value(&mut self, size: u8, rm: impl Into<Rm>, value: i32) {
        self.op(size, one(if size == 1 { 0xc6 } else { 0xc7 }), 0, rm);
        self.code
            .extend_from_slice(&value.to_le_bytes()[..usize::from(size.min(4))]);
    }

    /// Arithmetic `code` (0 ADD, 1 OR, 2 ADC, 3 SBB, 4 AND, 5 SUB, 6 XOR, 7 CMP): `reg, rm`.
    pub fn alu(&mut self, code: u8, size: u8, reg: Reg, rm: impl Into<Rm>) {
        let opcode = code << 3 | if size == 1 { 2 } else { 3 };
        self.op(size, one(opcode), reg.0, rm);
    }

    /// The same: `rm, reg`.
    pub fn alu_to(&mut self, code: u8, size: u8, rm: impl Into<Rm>, reg: Reg) {
        let opcode = code << 3 | u8::from(size != 1);
        self.op(size, one(opcode), reg.0, rm);
    }

    /// The same: `rm, value`.
    pub fn alu_value(&mut self, code: u8, size: u8, rm: impl Into<Rm>, value: i32) {
        let short = i8::try_from(value).is_ok();
        let opcode = match (size, short) {
            (1, _) => 0x80,
            (_, true) => 0x83,
            (_, false) => 0x81,
        };
        self.op(size, one(opcode), code, rm);
        let bytes = if size == 1 || short { 1 } else { size.min(4) };
        self.code
            .extend_from_slice(&value.to_le_bytes()[..usize::from(bytes)]);
    }

    /// Shift `code` (0 ROL, 1 ROR, 4 SHL, 5 SHR, 7 SAR) by `count`.
    pub fn shift(&mut self, code: u8, size: u8, rm: impl Into<Rm>, count: u8) {
        self.op(size, one(if size == 1 { 0xc0 } else { 0xc1 }), code, rm);
        self.code.push(count);
    }

    /// The same by CL.
    pub fn shift_cl(&mut self, code: u8, size: u8, rm: impl Into<Rm>) {
        self.op(size, one(if size == 1 { 0xd2 } else { 0xd3 }), code, rm);
    }

    /// `jCC`, to be filled.
    pub fn jump_if(&mut self, condition: u8) -> Hole {
        self.code.extend_from_slice(&[0x0f, 0x80 | condition]);
        self.hole()
    }

    /// `jmp`, to be filled.
    pub fn jump(&mut self) -> Hole {
        self.code.push(0xe9);
        self.hole()
    }

    /// `lea reg, [rip + ...]`, to be filled.
    pub fn lea_here(&mut self, reg: Reg) -> Hole {
        self.code
            .extend_from_slice(&[0x48 | (reg.0 >> 3) << 2, 0x8d, (reg.0 & 7) << 3 | 5]);
        self.hole()
    }

    fn hole(&mut self) -> Hole {
        self.code.extend_from_slice(&[0; 4]);
        Hole(self.code.len() - 4)
    }

    /// Where the distance of `hole` will be.
    pub fn place(&self, hole: Hole) -> u64 {
        self.base + hole.0 as u64
    }

    /// Fills `hole`: it leads to `target`.
    pub fn fill(&mut self, hole: Hole, target: u64) {
        let distance = distance(self.place(hole), target);
        self.code[hole.0..hole.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// Fills `hole`: it leads here.
    pub fn fill_here(&mut self, hole: Hole) {
        self.fill(hole, self.here());
    }

    /// `jmp target`.
    pub fn jump_to(&mut self, target: u64) {
        let hole = self.jump();
        self.fill(hole, target);
    }

    /// `call target`.
    pub fn call(&mut self, target: u64) {
        self.code.push(0xe8);
        let hole = self.hole();
        self.fill(hole, target);
    }

    /// `jmp reg` (4) or `call reg` (2).
    pub fn go(&mut self, code: u8, reg: Reg) {
        self.op(4, one(0xff), code, reg);
    }

    /// `push reg`.
    pub fn push(&mut self, reg: Reg) {
        if reg.0 >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x50 | reg.0 & 7);
    }

    /// `pop reg`.
    pub fn pop(&mut self, reg: Reg) {
        if reg.0 >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0x58 | reg.0 & 7);
    }
}

/// What stands at `place` for a jump to `target`. Code memory is smaller than 2 GiB.
pub(super) fn distance(place: u64, target: u64) -> i32 {
    target.wrapping_sub(place + 4) as i64 as i32
}
