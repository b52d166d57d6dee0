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

/// Leaves that differ by ECX (SDM volume 2A, CPUID): those with an ECX they do not know read as zero.
const WITH_SUBLEAVES: [u32; 7] = [4, 7, 0xb, 0xd, 0xf, 0x10, 0x8000_001d];

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

    /// What CPUID answers. A leaf or subleaf that is not in the table reads as zero; ECX says nothing to
    /// leaves that have none.
    #[must_use]
    pub fn cpuid(&self, function: u32, index: u32) -> [u32; 4] {
        let index = if WITH_SUBLEAVES.contains(&function) {
            index
        } else {
            0
        };
        self.leaves
            .iter()
            .find(|l| l.function == function && l.index == index)
            .map_or([0; 4], |l| l.registers)
    }

    /// Whether CPUID `function`'s register `number` (EAX to EDX) has bit `bit` set.
    #[must_use]
    pub fn has(&self, function: u32, number: usize, bit: u32) -> bool {
        self.cpuid(function, 0)[number] & 1 << bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecx_matters_where_there_are_subleaves() {
        let leaf = |function, registers| Leaf {
            function,
            index: 0,
            registers,
        };
        let model = Model::new(vec![leaf(1, [1, 2, 3, 4]), leaf(7, [0, 1 << 7, 0, 0])]);
        for ecx in [0, 1, u32::MAX] {
            assert_eq!(model.cpuid(1, ecx), [1, 2, 3, 4]);
        }
        assert_eq!(model.cpuid(7, 0), [0, 1 << 7, 0, 0]);
        for ecx in [1, 2, u32::MAX] {
            assert_eq!(model.cpuid(7, ecx), [0; 4]);
        }
        assert_eq!(model.cpuid(2, 0), [0; 4]);
    }
}
