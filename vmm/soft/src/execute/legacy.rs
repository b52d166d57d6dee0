//! Instructions that only 32-bit code has: decimal arithmetic and BOUND (SDM volume 2).
//!
//! Flags the architecture leaves undefined: OF is clear after all of them; after AAA and AAS, SF, ZF and PF
//! are those of AL; after AAM and AAD, CF and AF are clear.

use crate::flags::{self, Arithmetic};
use crate::op::{Address, Op, slot};
use crate::trap::{Exception, vector};
use crate::word::Word;
use crate::{Cpu, Trap};

const AL: u8 = slot::RAX;
const AH: u8 = slot::RAX | slot::HIGH;

/// Flags of `al` with these AF and CF.
fn decimal_flags(al: u8, half: bool, carry: bool) -> Arithmetic {
    let bits = Arithmetic::logic(al.sext()).bits();
    let half = u64::from(half) * flags::AF;
    Arithmetic::from_bits(bits | half | u64::from(carry))
}

/// `daa`, or `das` if `DOWN`.
pub(crate) fn decimal_adjust<const DOWN: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let (old, before) = (u8::get(cpu, AL), cpu.arithmetic);
    let step = |al: u8, by: u8| {
        if DOWN {
            al.overflowing_sub(by)
        } else {
            al.overflowing_add(by)
        }
    };
    let (mut al, mut carry) = (old, before.carry());
    let half = old & 0xf > 9 || before.half();
    if half {
        let (value, over) = step(al, 6);
        al = value;
        carry |= over;
    }
    if old > 0x99 || before.carry() {
        al = step(al, 0x60).0;
        carry = true;
    } else if !DOWN {
        carry = false;
    }
    al.set(cpu, AL);
    cpu.arithmetic = decimal_flags(al, half, carry);
    Ok(())
}

/// `aaa`, or `aas` if `DOWN`.
pub(crate) fn ascii_adjust<const DOWN: bool>(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let mut ax = u16::get(cpu, slot::RAX);
    let adjust = ax & 0xf > 9 || cpu.arithmetic.half();
    if adjust {
        ax = if DOWN {
            ax.wrapping_sub(0x106)
        } else {
            ax.wrapping_add(0x106)
        };
    }
    ax &= 0xff0f;
    ax.set(cpu, slot::RAX);
    cpu.arithmetic = decimal_flags(ax as u8, adjust, adjust);
    Ok(())
}

/// `aam base`.
pub(crate) fn aam(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (al, base) = (u8::get(cpu, AL), op.imm as u8);
    if base == 0 {
        return Err(cpu.divide_error());
    }
    (al / base).set(cpu, AH);
    (al % base).set(cpu, AL);
    cpu.arithmetic = decimal_flags(al % base, false, false);
    Ok(())
}

/// `aad base`.
pub(crate) fn aad(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let (al, ah) = (u8::get(cpu, AL), u8::get(cpu, AH));
    let value = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    u16::from(value).set(cpu, slot::RAX);
    cpu.arithmetic = decimal_flags(value, false, false);
    Ok(())
}

/// `salc`: AL is all CF. Not documented, there on every processor.
pub(crate) fn salc(cpu: &mut Cpu, _: &Op) -> Result<(), Trap> {
    let al = if cpu.arithmetic.carry() { 0xff } else { 0 };
    u8::set(al, cpu, AL);
    Ok(())
}

/// `bound register, memory`: #BR unless the register is within the two signed bounds there.
pub(crate) fn bound<W: Word, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let address = A::linear(cpu, op);
    let lower = cpu.load::<W>(address)?.sext() as i64;
    let upper = cpu.load::<W>(address.wrapping_add(W::BYTES))?.sext() as i64;
    if (lower..=upper).contains(&(W::get(cpu, op.dst).sext() as i64)) {
        return Ok(());
    }
    Err(cpu.raise(Exception::plain(vector::BR)))
}
