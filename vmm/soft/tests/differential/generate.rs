//! Making cases: for any [`Code`] of iced-x86, an instruction with random operands in every form it has,
//! and registers and memory such that it does no harm to the process it runs in.

use crate::random::Random;
use crate::state::{ARENA, ARENA_LEN, AT, CODE, Case, Fx, State};
use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpCodeOperandKind, OpKind,
    Register,
};

/// Makes cases for one code size.
pub struct Generator {
    pub bitness: u32,
    /// Memory operands may have FS and GS, which on the host are somebody else's.
    pub any_segment: bool,
    /// Also fills the x87 and SSE registers.
    pub fill_fx: Option<fn(&mut Random) -> Fx>,
}

/// Numbers of RAX to R15, as instructions encode them.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

fn number(register: Register) -> usize {
    register.full_register().number()
}

impl Generator {
    /// A case for `code`; `None` if this attempt made no valid instruction.
    pub fn case(&self, code: Code, random: &mut Random) -> Option<Case> {
        let instruction = self.instruction(code, random)?;
        let mut encoder = Encoder::new(self.bitness);
        encoder.encode(&instruction, AT).ok()?;
        let bytes = encoder.take_buffer();
        let mut case = Case {
            instruction,
            bytes,
            bitness: self.bitness,
            state: self.state(random),
            pokes: Vec::new(),
        };
        self.place_implicit(&mut case, random);
        let address = self.place_memory(&mut case, random);
        self.aim(&mut case, address, random);
        self.divide(&mut case, address, random);
        if self.bitness == 32 {
            for value in &mut case.state.regs {
                *value &= 0xffff_ffff;
            }
            case.state.regs[8..].fill(0);
        }
        Some(case)
    }

    fn state(&self, random: &mut Random) -> State {
        let mut regs = [0; 16];
        regs.fill_with(|| random.word());
        // The arithmetic flags and DF; IF is what ring 3 has.
        let flags = random.next() & 0x8d5 | 0x202 | u64::from(random.percent(30)) << 10;
        State {
            regs,
            rip: AT,
            flags,
            fx: self.fill_fx.map_or_else(Fx::default, |fill| fill(random)),
        }
    }

    // ---- the instruction ----

    fn instruction(&self, code: Code, random: &mut Random) -> Option<Instruction> {
        let info = code.op_code();
        let mut i = Instruction::default();
        i.set_code(code);
        for (n, kind) in info.op_kinds().iter().enumerate() {
            self.operand(&mut i, n as u32, *kind, random)?;
        }
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        if memory && info.can_use_lock_prefix() && i.op0_kind() == OpKind::Memory {
            i.set_has_lock_prefix(random.percent(20));
        }
        if is_string(&i) {
            match random.below(4) {
                0 if info.can_use_rep_prefix() => i.set_has_rep_prefix(true),
                1 if info.can_use_repne_prefix() => i.set_has_repne_prefix(true),
                _ => {}
            }
        }
        if memory && random.percent(5) {
            let segments = [Register::ES, Register::CS, Register::SS, Register::DS];
            let writes = !matches!(info.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
            // 32-bit code cannot write through CS.
            let usable = if self.bitness == 32 && writes { 3 } else { 4 };
            let segment = match random.below(2) {
                0 if self.any_segment => random.pick(&[Register::FS, Register::GS]),
                _ => segments[random.below(usable) as usize],
            };
            if self.bitness == 64 || segment != Register::CS {
                i.set_segment_prefix(segment);
            }
        }
        Some(i)
    }

    fn operand(
        &self,
        i: &mut Instruction,
        n: u32,
        kind: OpCodeOperandKind,
        random: &mut Random,
    ) -> Option<()> {
        use OpCodeOperandKind as K;
        let registers = if self.bitness == 64 { 16 } else { 8 };
        let mut set = |i: &mut Instruction, first: Register, count: u64| {
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, first + random.below(count) as u32);
        };
        match kind {
            // AL to BH, SPL to DIL, R8L to R15L.
            K::r8_reg | K::r8_opcode => set(i, Register::AL, if registers == 16 { 20 } else { 8 }),
            K::r16_reg | K::r16_rm | K::r16_opcode => set(i, Register::AX, registers),
            K::r32_reg | K::r32_rm | K::r32_opcode => set(i, Register::EAX, registers),
            K::r64_reg | K::r64_rm | K::r64_opcode => set(i, Register::RAX, registers),
            K::xmm_reg | K::xmm_rm => set(i, Register::XMM0, registers),
            K::mm_reg | K::mm_rm => set(i, Register::MM0, 8),
            K::sti_opcode => set(i, Register::ST0, 8),
            K::st0 => set(i, Register::ST0, 1),
            K::al => set(i, Register::AL, 1),
            K::cl => set(i, Register::CL, 1),
            K::ax => set(i, Register::AX, 1),
            K::dx => set(i, Register::DX, 1),
            K::eax => set(i, Register::EAX, 1),
            K::rax => set(i, Register::RAX, 1),
            K::mem => self.memory(i, n, random),
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::xmm_or_mem
            | K::mm_or_mem => {
                if random.percent(50) {
                    self.memory(i, n, random);
                } else {
                    let register = match kind {
                        K::r8_or_mem => K::r8_reg,
                        K::r16_or_mem => K::r16_reg,
                        K::r32_or_mem => K::r32_reg,
                        K::r64_or_mem => K::r64_reg,
                        K::xmm_or_mem => K::xmm_reg,
                        _ => K::mm_reg,
                    };
                    return self.operand(i, n, register, random);
                }
            }
            K::mem_offs => {
                i.set_op_kind(n, OpKind::Memory);
                let long = self.bitness == 64 && random.percent(70);
                i.set_memory_displ_size(if long { 8 } else { 4 });
                i.set_memory_displacement64(self.address(8, random).min(u32::MAX.into()));
            }
            K::seg_rSI | K::es_rDI | K::seg_rBX_al => {
                // Both operands of a string instruction have one address size.
                let wide = match (n, i.op0_kind()) {
                    (1, OpKind::MemorySegESI | OpKind::MemoryESEDI) => false,
                    (1, OpKind::MemorySegRSI | OpKind::MemoryESRDI) => true,
                    _ => self.bitness == 64 && random.percent(75),
                };
                match (kind, wide) {
                    (K::seg_rSI, true) => i.set_op_kind(n, OpKind::MemorySegRSI),
                    (K::seg_rSI, false) => i.set_op_kind(n, OpKind::MemorySegESI),
                    (K::es_rDI, true) => i.set_op_kind(n, OpKind::MemoryESRDI),
                    (K::es_rDI, false) => i.set_op_kind(n, OpKind::MemoryESEDI),
                    _ => {
                        i.set_op_kind(n, OpKind::Memory);
                        i.set_memory_base(if wide { Register::RBX } else { Register::EBX });
                        i.set_memory_index(Register::AL);
                    }
                }
            }
            _ => return self.immediate(i, n, kind, random),
        }
        Some(())
    }

    fn immediate(
        &self,
        i: &mut Instruction,
        n: u32,
        kind: OpCodeOperandKind,
        random: &mut Random,
    ) -> Option<()> {
        use OpCodeOperandKind as K;
        let value = random.word();
        let (short, near) = (self.target(true, random), self.target(false, random));
        let enter = matches!(i.mnemonic(), Mnemonic::Enter);
        match kind {
            K::imm8 if n == 1 && enter => {
                i.set_op_kind(n, OpKind::Immediate8_2nd);
                i.set_immediate8_2nd(random.below(40) as u8);
            }
            K::imm8 if n == 2 && i.op1_kind() == OpKind::Immediate8 => {
                i.set_op_kind(n, OpKind::Immediate8_2nd);
                i.set_immediate8_2nd(value as u8);
            }
            K::imm8 => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(value as u8);
            }
            K::imm8_const_1 => {
                i.set_op_kind(n, OpKind::Immediate8);
                i.set_immediate8(1);
            }
            K::imm8sex16 => {
                i.set_op_kind(n, OpKind::Immediate8to16);
                i.set_immediate8to16((value as i8).into());
            }
            K::imm8sex32 => {
                i.set_op_kind(n, OpKind::Immediate8to32);
                i.set_immediate8to32((value as i8).into());
            }
            K::imm8sex64 => {
                i.set_op_kind(n, OpKind::Immediate8to64);
                i.set_immediate8to64((value as i8).into());
            }
            K::imm16 => {
                i.set_op_kind(n, OpKind::Immediate16);
                i.set_immediate16(if enter {
                    value as u16 % 600
                } else {
                    value as u16
                });
            }
            K::imm32 => {
                i.set_op_kind(n, OpKind::Immediate32);
                i.set_immediate32(value as u32);
            }
            K::imm32sex64 => {
                i.set_op_kind(n, OpKind::Immediate32to64);
                i.set_immediate32to64((value as i32).into());
            }
            K::imm64 => {
                i.set_op_kind(n, OpKind::Immediate64);
                i.set_immediate64(value);
            }
            K::br16_1 | K::br16_2 => {
                i.set_op_kind(n, OpKind::NearBranch16);
                i.set_near_branch16(short as u16);
            }
            K::br32_1 | K::br32_4 => {
                i.set_op_kind(n, OpKind::NearBranch32);
                i.set_near_branch32(if kind == K::br32_1 { short } else { near } as u32);
            }
            K::br64_1 | K::br64_4 => {
                i.set_op_kind(n, OpKind::NearBranch64);
                i.set_near_branch64(if kind == K::br64_1 { short } else { near });
            }
            _ => return None,
        }
        Some(())
    }

    /// An explicit memory operand: which registers it is made of. Their values come later.
    fn memory(&self, i: &mut Instruction, n: u32, random: &mut Random) {
        i.set_op_kind(n, OpKind::Memory);
        let narrow = self.bitness == 32 || random.percent(20);
        let first = if narrow { Register::EAX } else { Register::RAX };
        let count = if self.bitness == 64 { 16 } else { 8 };
        let any = |random: &mut Random| first + random.below(count) as u32;
        let full = if narrow { 4 } else { 8 };
        let shape = random.below(100);
        if self.bitness == 64 && shape < 10 {
            i.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
            i.set_memory_displ_size(full);
            return;
        }
        if shape >= 18 {
            i.set_memory_base(any(random));
        }
        if shape < 60 {
            let index = any(random);
            if number(index) != RSP {
                i.set_memory_index(index);
                i.set_memory_index_scale(1 << random.below(4));
            }
        }
        let none = i.memory_base() == Register::None;
        i.set_memory_displ_size(if none {
            full
        } else {
            random.pick(&[0, 1, full])
        });
        let displacement = match i.memory_displ_size() {
            0 => 0,
            1 => random.next() as i8 as i64 as u64,
            _ => random.next() as i16 as i64 as u64,
        };
        self.set_displacement(i, displacement);
        self.settle(i, random);
    }

    /// Addresses without a register to put right later get their displacement now.
    fn settle(&self, i: &mut Instruction, random: &mut Random) {
        let (base, index) = (i.memory_base(), i.memory_index());
        let full = if self.bitness == 64 && base.size() != 4 && index.size() != 4 {
            8
        } else {
            4
        };
        if base == Register::None && index == Register::None {
            let address = self.address(16, random).min(0x7fff_ffff);
            self.set_displacement(i, address);
            i.set_memory_displ_size(full);
        }
        if base != Register::None && base == index {
            // Its value will be small: the displacement alone gets there.
            i.set_memory_displ_size(full);
        }
    }

    fn set_displacement(&self, i: &mut Instruction, value: u64) {
        let narrow =
            i.memory_base().size() == 4 || i.memory_index().size() == 4 || self.bitness == 32;
        i.set_memory_displacement64(if narrow { value & 0xffff_ffff } else { value });
    }

    // ---- what it works on ----

    /// An address for `size` bytes: mostly in the arena, likelier where pages meet, seldom where nothing is.
    fn address(&self, size: u64, random: &mut Random) -> u64 {
        let size = size.max(1);
        let near = |edge: u64, random: &mut Random| edge - size - 4 + random.below(size + 8);
        match random.below(100) {
            0..60 => (ARENA + random.below(ARENA_LEN - size)) & !(size.next_power_of_two() - 1),
            60..75 => ARENA + random.below(ARENA_LEN - size),
            75..85 => near(ARENA + 0x1000 * (1 + random.below(3)), random),
            85..91 => near(ARENA + ARENA_LEN, random),
            91..94 => near(ARENA + ARENA_LEN + 0x1000, random),
            94..96 => near(ARENA, random),
            96..98 => 0x1000 + random.below(0xe000),
            _ if self.bitness == 64 => match random.below(3) {
                0 => 0x8000_0000_0000 + random.below(1 << 40),
                1 => 0x8000_0000_0000 - 20 + random.below(30),
                _ => 0xffff_8000_0000_0000 - 20 + random.below(30),
            },
            _ => 0x3800_0000 + random.below(0x1000),
        }
    }

    fn place_implicit(&self, case: &mut Case, random: &mut Random) {
        let i = &case.instruction;
        let regs = &mut case.state.regs;
        if is_string(i) {
            regs[RSI] = self.string_address(random);
            regs[RDI] = if random.percent(30) {
                // Where the strings overlap.
                regs[RSI].wrapping_add(random.below(64)).wrapping_sub(32)
            } else {
                self.string_address(random)
            };
            regs[RCX] = match random.below(10) {
                0 => 0,
                1 => random.below(6000),
                2 => random.word(),
                _ => random.below(40),
            };
            if random.percent(40) {
                // Something to find, and something equal.
                let byte = random.pick(&[0, 0xff, 0x41]);
                regs[RAX] = u64::from_le_bytes([byte; 8]);
                for at in [RSI, RDI] {
                    let start = regs[at].clamp(ARENA, ARENA + ARENA_LEN - 64);
                    let len = random.below(64) as usize;
                    case.pokes.push((start, vec![byte; len]));
                }
            }
            let narrow = (0..i.op_count())
                .any(|n| matches!(i.op_kind(n), OpKind::MemorySegESI | OpKind::MemoryESEDI));
            if narrow && self.bitness == 64 {
                for register in [RSI, RDI, RCX] {
                    let any = random.next() >> 32;
                    let high = random.pick(&[0, 1, 0xffff_ffff, any]);
                    regs[register] = regs[register] & 0xffff_ffff | high << 32;
                }
            }
            return;
        }
        if i.is_stack_instruction() || matches!(i.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
            regs[RSP] = self.address(8, random);
            regs[RBP] = self.address(8, random);
            if i.mnemonic() == Mnemonic::Enter && random.percent(70) {
                regs[RSP] = ARENA + 0x1000 + random.below(0x3000);
                regs[RBP] = ARENA + 0x1000 + random.below(0x3000);
            }
        }
        if i.mnemonic() == Mnemonic::Loop || i.mnemonic() == Mnemonic::Loope {
            let any = random.next();
            regs[RCX] = random.pick(&[0, 1, 2, 1 << 32, (1 << 32) + 1, any]);
        }
    }

    fn string_address(&self, random: &mut Random) -> u64 {
        self.address(random.pick(&[1, 2, 4, 8]), random)
    }

    /// Gives the registers of the explicit memory operand values such that it lies well; returns where,
    /// and for how many bytes.
    fn place_memory(&self, case: &mut Case, random: &mut Random) -> Option<(u64, u64)> {
        let i = &mut case.instruction;
        (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory)?;
        let size = (i.memory_size().size() as u64).max(1);
        let (base, index) = (i.memory_base(), i.memory_index());
        let regs = &mut case.state.regs;
        if i.mnemonic() == Mnemonic::Xlatb {
            regs[RBX] = self.address(1, random).wrapping_sub(regs[RAX] & 0xff);
            return None;
        }
        let scale = u64::from(i.memory_index_scale());
        let displacement = i.memory_displacement64();
        let narrow = base.size() == 4 || index.size() == 4 || self.bitness == 32;
        if base == Register::None && index == Register::None {
            return Some((displacement, size));
        }
        let mut address = self.address(size, random);
        let fixed = matches!(base, Register::RIP | Register::EIP)
            || base == Register::None
            || base == index;
        if narrow || fixed {
            address = address.min(0x7fff_0000);
        }
        if matches!(base, Register::RIP | Register::EIP) {
            i.set_memory_displacement64(address);
        } else if base == Register::None || base == index {
            let factor = if base == index { scale + 1 } else { scale };
            let value = random.below(0x100_0000);
            regs[number(index)] = value;
            let rest = address.wrapping_sub(value * factor);
            i.set_memory_displacement64(if narrow { rest & 0xffff_ffff } else { rest });
        } else {
            if index != Register::None {
                regs[number(index)] = random.below(0x1_0000).wrapping_sub(0x8000);
                if narrow {
                    regs[number(index)] &= 0xffff_ffff;
                }
            }
            let offset = if index == Register::None {
                0
            } else {
                regs[number(index)].wrapping_mul(scale)
            };
            regs[number(base)] = address.wrapping_sub(offset).wrapping_sub(displacement);
        }
        if narrow && self.bitness == 64 {
            for register in [base, index] {
                if register.is_gpr() {
                    let low = regs[number(register)] & 0xffff_ffff;
                    regs[number(register)] = low | random.next() << 32;
                }
            }
        }
        self.bound_bit_offset(case, random);
        let mut encoder = Encoder::new(self.bitness);
        if encoder.encode(&case.instruction, AT).is_ok() {
            case.bytes = encoder.take_buffer();
        }
        Some((address, size))
    }

    /// A bit offset in a register reaches far from the operand: it stays where nothing of ours is.
    fn bound_bit_offset(&self, case: &mut Case, random: &mut Random) {
        let i = &case.instruction;
        let tests = [Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc];
        if !tests.contains(&i.mnemonic()) || i.op1_kind() != OpKind::Register {
            return;
        }
        let register = i.op1_register();
        let parts = [
            i.memory_base().full_register(),
            i.memory_index().full_register(),
        ];
        if parts.contains(&register.full_register()) {
            return;
        }
        let near = random.below(0x1_0000).wrapping_sub(0x8000);
        let far = random.next() as i32 as i64 as u64;
        case.state.regs[number(register)] = random.pick(&[near, near, far]);
    }

    /// Where a branch may go: the code page, which is full of breakpoints, or where nothing is.
    fn target(&self, short: bool, random: &mut Random) -> u64 {
        let target = if short {
            AT - 100 + random.below(200)
        } else {
            match random.below(3) {
                0 => CODE + random.below(0x1000),
                1 => 0x1000 + random.below(0xe000),
                _ => 0x3800_0000 + random.below(0x1000),
            }
        };
        if (AT - 1..AT + 16).contains(&target) {
            return AT + 20;
        }
        target
    }

    /// Gives an indirect branch a harmless target.
    fn aim(&self, case: &mut Case, operand: Option<(u64, u64)>, random: &mut Random) {
        let i = &case.instruction;
        let target = if self.bitness == 64 && random.percent(10) {
            random.pick(&[0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63])
        } else {
            self.target(false, random)
        };
        let place = match i.mnemonic() {
            Mnemonic::Ret => Some((case.state.regs[RSP], 8)),
            _ if i.is_jmp_near_indirect() || i.is_call_near_indirect() => operand,
            _ => return,
        };
        if i.op0_kind() == OpKind::Register {
            case.state.regs[number(i.op0_register())] = target;
        }
        let Some((address, _)) = place else { return };
        if (ARENA..ARENA + ARENA_LEN - 8).contains(&address) {
            case.pokes.push((address, target.to_le_bytes().to_vec()));
            return;
        }
        // Not where the target can be put: nowhere.
        let away = 0x3800_0000;
        if i.mnemonic() == Mnemonic::Ret {
            case.state.regs[RSP] = away;
        } else if i.op0_kind() == OpKind::Memory {
            let (base, index) = (i.memory_base(), i.memory_index());
            if base.is_gpr() && base != index {
                let register = &mut case.state.regs[number(base)];
                *register = register.wrapping_sub(address).wrapping_add(away);
            } else {
                case.pokes.clear();
            }
        }
    }

    /// Makes most divisions ones that do not overflow.
    fn divide(&self, case: &mut Case, operand: Option<(u64, u64)>, random: &mut Random) {
        let i = &case.instruction;
        if !matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) || random.percent(30) {
            return;
        }
        let used = InstructionInfoFactory::new()
            .info(i)
            .used_memory()
            .iter()
            .flat_map(|m| [m.base(), m.index()])
            .filter(|r| r.is_gpr())
            .map(number)
            .collect::<Vec<_>>();
        let small = random.percent(50);
        let regs = &mut case.state.regs;
        let value = if small {
            random.below(4)
        } else if i.mnemonic() == Mnemonic::Idiv {
            ((regs[RAX] as i64) >> 63) as u64
        } else {
            0
        };
        let size = if operand.is_some() {
            i.memory_size().size()
        } else {
            i.op0_register().size()
        };
        if size == 1 && !used.contains(&RAX) {
            regs[RAX] = regs[RAX] & !0xff00 | (value & 0xff) << 8;
        } else if !used.contains(&RDX) {
            regs[RDX] = value;
        }
    }
}

/// Whether it is MOVS, STOS, LODS, SCAS or CMPS.
fn is_string(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| {
        matches!(
            i.op_kind(n),
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemoryESRDI | OpKind::MemoryESEDI
        )
    })
}
