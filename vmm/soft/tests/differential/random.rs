//! Random values, likelier at the corners.

/// SplitMix64 (Steele, Lea and Flood 2014): any seed will do.
pub struct Random(u64);

impl Random {
    /// The generator of case `number` of a run with `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True this often in a hundred.
    pub fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A word: a corner of some size, a few bits, a small number, or anything.
    pub fn word(&mut self) -> u64 {
        let size = self.pick(&[8, 16, 32, 64]);
        let top = 1u64 << (size - 1);
        match self.below(8) {
            0 => self.pick(&[0, 1, 2, u64::MAX, u64::MAX - 1]),
            1 => top.wrapping_add(self.below(5)).wrapping_sub(2),
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => self.below(256),
            5 => (self.next() as i64 >> self.below(64)) as u64,
            _ => self.next(),
        }
    }
}
