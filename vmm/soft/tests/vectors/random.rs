//! Numbers to try instructions on.

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// 32 bits that may be a remarkable number.
    pub fn single(&mut self) -> u32 {
        const SPECIAL: [u32; 24] = [
            0,
            1,
            2,
            0x0040_0000,
            0x007f_ffff,
            0x0080_0000,
            0x0080_0001,
            0x3f80_0000,
            0x3f80_0001,
            0x3f7f_ffff,
            0x3f00_0000,
            0x3fc0_0000,
            0x4000_0000,
            0x4b00_0000,
            0x4b7f_ffff,
            0x4eff_ffff,
            0x4f00_0000,
            0x5eff_ffff,
            0x5f00_0000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fc0_0000,
            0x7fff_ffff,
        ];
        let sign = (self.next() as u32) & 0x8000_0000;
        match self.below(8) {
            0..=2 => self.of(&SPECIAL) | sign,
            3 => (self.next() as u32) & 0x807f_ffff | 0x3f80_0000,
            4 => (0x3f00_0000 + (self.below(40) as u32) * 0x0080_0000) | self.next() as u32 & 0xff,
            5 => (self.below(2000) as u32).wrapping_sub(1000),
            6 => (self.next() as u32) & 0x80ff_ffff,
            _ => self.next() as u32,
        }
    }

    /// 64 bits that may be a remarkable number.
    pub fn double(&mut self) -> u64 {
        const SPECIAL: [u64; 24] = [
            0,
            1,
            2,
            0x0008_0000_0000_0000,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x0010_0000_0000_0001,
            0x3ff0_0000_0000_0000,
            0x3ff0_0000_0000_0001,
            0x3fef_ffff_ffff_ffff,
            0x3fe0_0000_0000_0000,
            0x3ff8_0000_0000_0000,
            0x4000_0000_0000_0000,
            0x41df_ffff_ffc0_0000,
            0x41e0_0000_0000_0000,
            0x43df_ffff_ffff_ffff,
            0x43e0_0000_0000_0000,
            0x380f_ffff_e000_0000,
            0x47ef_ffff_e000_0000,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0x7ff8_0000_0000_0000,
            0x7fff_ffff_ffff_ffff,
        ];
        let sign = self.next() & 1 << 63;
        match self.below(8) {
            0..=2 => self.of(&SPECIAL) | sign,
            3 => self.next() & 0x800f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000,
            4 => f64::from(self.single() as i32).to_bits() | sign,
            5 => f64::from(f32::from_bits(self.single())).to_bits() | self.below(2),
            6 => (self.below(0xff) << 52) | sign | self.next() & 0xff,
            _ => self.next(),
        }
    }

    /// A vector whose lanes may be remarkable numbers of either size.
    pub fn vector(&mut self) -> u128 {
        match self.below(4) {
            0 => u128::from(self.next()) << 64 | u128::from(self.next()),
            1 => u128::from(self.double()) << 64 | u128::from(self.double()),
            2 => {
                // Bytes with many equal ones, for comparisons, and small counts for shifts.
                let byte = self.next();
                let mask = self.next() & self.next();
                let high = self.below(3) * 0x0101_0101_0101_0101;
                u128::from(high ^ byte & mask) << 64 | u128::from(self.below(80))
            }
            _ => (0..4).fold(0, |v, _| v << 32 | u128::from(self.single())),
        }
    }

    /// An 80-bit number that may be a remarkable one, or none at all.
    pub fn extended(&mut self) -> u128 {
        const SPECIAL: [(u16, u64); 26] = [
            (0, 0),
            (0, 1),
            (0, 0x7fff_ffff_ffff_ffff),
            (0, 0x8000_0000_0000_0000),
            (1, 0x8000_0000_0000_0000),
            (1, 0xffff_ffff_ffff_ffff),
            (0x3fff, 0x8000_0000_0000_0000),
            (0x3fff, 0x8000_0000_0000_0001),
            (0x3ffe, 0xffff_ffff_ffff_ffff),
            (0x3ffe, 0x8000_0000_0000_0000),
            (0x3fff, 0xc000_0000_0000_0000),
            (0x4000, 0x8000_0000_0000_0000),
            (0x4000, 0xc90f_daa2_2168_c235),
            (0x403e, 0x8000_0000_0000_0000),
            (0x403d, 0xffff_ffff_ffff_ffff),
            (0x401e, 0x8000_0000_0000_0000),
            (0x400e, 0x8000_0000_0000_0000),
            (0x400d, 0xfffe_0000_0000_0000),
            (0x7ffe, 0xffff_ffff_ffff_ffff),
            (0x7fff, 0x8000_0000_0000_0000),
            (0x7fff, 0x8000_0000_0000_0001),
            (0x7fff, 0xc000_0000_0000_0000),
            (0x7fff, 0xffff_ffff_ffff_ffff),
            // Unsupported ones.
            (0x7fff, 0),
            (0x3fff, 0x4000_0000_0000_0000),
            (0x7fff, 0x7fff_ffff_ffff_ffff),
        ];
        let sign = u128::from(self.next() & 1) << 79;
        let (exponent, significand) = match self.below(8) {
            0 | 1 => self.of(&SPECIAL),
            2 => (0x3fff, self.next() | 1 << 63),
            3 => (0x3fe0 + self.below(0x60) as u16, self.next() | 1 << 63),
            4 => (
                0x3ffc + self.below(6) as u16,
                (self.next() & 0xff) << 56 | 1 << 63,
            ),
            5 => (
                0x3fff - 0x3ff + self.below(0x7fe) as u16,
                self.next() >> 11 << 11 | 1 << 63,
            ),
            6 => (self.below(3) as u16 * 0x3fff, self.next() | 1 << 63),
            _ => (self.next() as u16 & 0x7fff, self.next() | 1 << 63),
        };
        sign | u128::from(exponent) << 64 | u128::from(significand)
    }
}
