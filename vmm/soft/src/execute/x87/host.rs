//! The host's x87 unit carries out what is exact: arithmetic, comparisons, conversions.
//!
//! IEEE 754 and the architecture leave these one result, flags and rounding direction included, on every
//! processor; `tests/vectors/proof.rs` compares each with a reference in integers. What they leave open is
//! not the unit's: the reserved precision control (`precise`), digits of FBLD above 9, how far an unmasked
//! overflow of FSCALE goes. The instruction runs under the guest's control word, masks and all: an unmasked error makes
//! the unit leave undone what the guest's would have, and is cleared before anything waits for it.

/// Control word of the unit when nothing runs on it, as `fninit` leaves it.
const RUST: u16 = 0x37f;

/// Operands in, results out.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct Host {
    /// ST(0), before and after; 80 bits.
    pub st0: u128,
    /// ST(1), and the memory operand. Afterwards: the memory operand.
    pub other: u128,
    /// ST(1) afterwards.
    pub st1: u128,
    /// Control word.
    pub control: u16,
    /// Status word afterwards: flags and condition codes of this instruction alone.
    pub status: u16,
    rust: u16,
}

impl Host {
    pub(crate) fn new(control: u16, st0: u128, other: u128) -> Self {
        Self {
            st0,
            other,
            st1: 0,
            control: precise(control),
            status: 0,
            rust: RUST,
        }
    }

    /// ST(0) and the status.
    pub(super) fn raised(self) -> (u128, u16) {
        (self.st0, self.status)
    }
}

/// The control word to run under: precision control 1, which the manuals reserve (SDM volume 1, table 8-2;
/// APM volume 1, table 6-6), is 3 here, 64 bits.
fn precise(control: u16) -> u16 {
    if control & 0x300 == 0x100 {
        return control | 0x200;
    }
    control
}

/// One instruction of the host, with `Host::st0` as ST(0), `Host::other` as ST(1) and at `[{p} + 16]`.
macro_rules! run {
    ($control:expr, $st0:expr, $other:expr, $text:expr) => {{
        let mut host = $crate::execute::x87::host::Host::new($control, $st0, $other);
        // SAFETY: loads, one instruction and stores, within `host`; pending errors are cleared before the
        // next instruction that waits; the unit is left as it was, empty and with its usual control word.
        unsafe {
            std::arch::asm!(
                "fninit",
                "fld tbyte ptr [{p} + 16]",
                "fld tbyte ptr [{p}]",
                "fldcw word ptr [{p} + 48]",
                $text,
                "fnstsw word ptr [{p} + 50]",
                "fnclex",
                "fldcw word ptr [{p} + 52]",
                "fstp tbyte ptr [{p}]",
                "fstp tbyte ptr [{p} + 32]",
                "fninit",
                p = in(reg) &raw mut host,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        host
    }};
}

/// Source of an arithmetic instruction: ST(1), or memory, in one of its formats.
pub(crate) mod source {
    /// ST(1).
    pub const REGISTER: u8 = 0;
    /// 32-bit number.
    pub const SINGLE: u8 = 1;
    /// 64-bit number.
    pub const DOUBLE: u8 = 2;
    /// 80-bit number.
    pub const EXTENDED: u8 = 3;
    /// 16-bit integer.
    pub const INT16: u8 = 4;
    /// 32-bit integer.
    pub const INT32: u8 = 5;
    /// 64-bit integer.
    pub const INT64: u8 = 6;
    /// 18 decimal digits; stored by the host, loaded by [`super::super::transfer`].
    pub const DECIMAL: u8 = 7;
}

/// `ST(0) = ST(0) op source`, or a comparison of the two: the source's format, control word, ST(0) and
/// the source.
pub(crate) type Binary = fn(u8, u16, u128, u128) -> Host;

macro_rules! binary {
    ($($name:ident = $text:literal, $integer:literal;)*) => {$(
        fn $name(form: u8, control: u16, a: u128, b: u128) -> Host {
            match form {
                source::SINGLE => {
                    run!(control, a, b, concat!($text, " dword ptr [{p} + 16]"))
                }
                source::DOUBLE => {
                    run!(control, a, b, concat!($text, " qword ptr [{p} + 16]"))
                }
                source::INT16 => {
                    run!(control, a, b, concat!($integer, " word ptr [{p} + 16]"))
                }
                source::INT32 => {
                    run!(control, a, b, concat!($integer, " dword ptr [{p} + 16]"))
                }
                _ => run!(control, a, b, concat!($text, " st, st(1)")),
            }
        }
    )*};
}

binary! {
    fadd = "fadd", "fiadd";
    fmul = "fmul", "fimul";
    fsub = "fsub", "fisub";
    fsubr = "fsubr", "fisubr";
    fdiv = "fdiv", "fidiv";
    fdivr = "fdivr", "fidivr";
}

/// Arithmetic instructions by number.
pub(crate) const ARITHMETIC: [Binary; 6] = [fadd, fmul, fsub, fsubr, fdiv, fdivr];

/// `fcom` in all its forms.
pub(crate) fn fcom(form: u8, control: u16, a: u128, b: u128) -> Host {
    match form {
        source::SINGLE => run!(control, a, b, "fcom dword ptr [{p} + 16]"),
        source::DOUBLE => run!(control, a, b, "fcom qword ptr [{p} + 16]"),
        source::INT16 => run!(control, a, b, "ficom word ptr [{p} + 16]"),
        source::INT32 => run!(control, a, b, "ficom dword ptr [{p} + 16]"),
        _ => run!(control, a, b, "fcom st(1)"),
    }
}

/// `fucom`.
pub(crate) fn fucom(_: u8, control: u16, a: u128, b: u128) -> Host {
    run!(control, a, b, "fucom st(1)")
}

/// Loads what is in memory, but for decimals: ST(0) of the result, if nothing unmasked was wrong.
pub(crate) fn load(form: u8, control: u16, b: u128) -> Host {
    match form {
        source::SINGLE => run!(control, 0, b, "fld dword ptr [{p} + 16]"),
        source::DOUBLE => run!(control, 0, b, "fld qword ptr [{p} + 16]"),
        source::EXTENDED => run!(control, 0, b, "fld tbyte ptr [{p} + 16]"),
        source::INT16 => run!(control, 0, b, "fild word ptr [{p} + 16]"),
        source::INT32 => run!(control, 0, b, "fild dword ptr [{p} + 16]"),
        _ => run!(control, 0, b, "fild qword ptr [{p} + 16]"),
    }
}

/// Stores ST(0): the memory operand of the result, if nothing unmasked was wrong.
pub(crate) fn store(form: u8, control: u16, a: u128) -> Host {
    match form {
        source::SINGLE => run!(control, a, 0, "fst dword ptr [{p} + 16]"),
        source::DOUBLE => run!(control, a, 0, "fst qword ptr [{p} + 16]"),
        source::EXTENDED => run!(control, a, 0, "fstp tbyte ptr [{p} + 16]"),
        source::INT16 => run!(control, a, 0, "fist word ptr [{p} + 16]"),
        source::INT32 => run!(control, a, 0, "fist dword ptr [{p} + 16]"),
        source::INT64 => run!(control, a, 0, "fistp qword ptr [{p} + 16]"),
        _ => run!(control, a, 0, "fbstp tbyte ptr [{p} + 16]"),
    }
}

/// An instruction on ST(0), or on ST(0) and ST(1).
pub(crate) type Unary = fn(u16, u128, u128) -> Host;

macro_rules! unary {
    ($($name:ident = $text:literal;)*) => {$(
        #[doc = concat!("`", $text, "`.")]
        pub(crate) fn $name(control: u16, a: u128, b: u128) -> Host {
            run!(control, a, b, $text)
        }
    )*};
}

unary! {
    fsqrt = "fsqrt";
    frndint = "frndint";
    fxtract = "fxtract";
    ftst = "ftst";
    fld1 = "fld1";
    fldl2t = "fldl2t";
    fldl2e = "fldl2e";
    fldpi = "fldpi";
    fldlg2 = "fldlg2";
    fldln2 = "fldln2";
    fldz = "fldz";
}

/// Constants by number, in the order instructions encode them (D9 E8 to D9 EE).
pub(crate) const CONSTANTS: [Unary; 7] = [fld1, fldl2t, fldl2e, fldpi, fldlg2, fldln2, fldz];
