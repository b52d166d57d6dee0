//! What the processor says it is, and the instructions that follow from it.

/// One CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// EAX going in.
    pub function: u32,
    /// ECX going in, where it matters.
    pub index: u32,
    /// EAX, EBX, ECX, EDX coming out.
    pub registers: [u32; 4],
}

/// A processor model: its CPUID table. An instruction the table does not advertise raises #UD.
#[derive(Clone, Debug, Default)]
pub struct Model {
    leaves: Vec<Leaf>,
}

impl Model {
    /// The model of this table.
    #[must_use]
    pub fn new(leaves: Vec<Leaf>) -> Self {
        Self { leaves }
    }

    /// What CPUID answers. A leaf beyond the highest of its range reads as zero.
    #[must_use]
    pub fn cpuid(&self, function: u32, index: u32) -> [u32; 4] {
        let leaf = |l: &&Leaf| l.function == function && (l.index == index || l.index == 0);
        self.leaves
            .iter()
            .find(|l| l.function == function && l.index == index)
            .or_else(|| self.leaves.iter().find(leaf))
            .map_or([0; 4], |l| l.registers)
    }

    /// Whether CPUID `function`'s register `number` (EAX to EDX) has bit `bit` set.
    #[must_use]
    pub fn has(&self, function: u32, number: usize, bit: u32) -> bool {
        self.cpuid(function, 0)[number] & 1 << bit != 0
    }
}
