//! The entropy source (virtio 1.2, section 5.4): one queue of buffers to fill.
//!
//! Its bytes are answers ([`replay::Question::Entropy`]), eight at a time: random on the primary, the
//! same ones on the backup. A buffer gets [`FILL_MAX`] bytes at most, so that what one notification
//! costs the log is bounded by the queue: a driver asks again for more.

use super::VirtioDevice;
use super::mmio::VirtioMmio;
use super::ring::{Ring, length, scatter};
use crate::memory::GuestMemory;
use replay::{InputsError, Output};

/// Most bytes of one buffer that are filled. Linux hands in buffers of this size.
pub const FILL_MAX: usize = 64;

/// The source.
#[derive(Debug, Default)]
pub struct Entropy;

impl VirtioDevice for Entropy {
    const ID: u32 = 4;
    const QUEUES: usize = 1;
    const QUEUE_SIZE: u16 = 16;
    const KIND: &'static str = "virtio-rng";
    type State = ();

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Nothing yet: [`VirtioMmio::<Entropy>::serve`] follows each write.
    fn notify(&mut self, _: usize, _: &mut [Ring], _: &GuestMemory, _: &mut Vec<Output>) -> bool {
        false
    }

    fn stopped(&mut self, _: usize) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), &'static str> {
        Ok(())
    }
}

impl VirtioMmio<Entropy> {
    /// Fills the buffers the driver has made available; `word` asks for eight random bytes. Whether the
    /// line pulses.
    ///
    /// # Errors
    /// If the bytes cannot be had.
    pub fn serve(
        &mut self,
        memory: &GuestMemory,
        word: &mut dyn FnMut() -> Result<u64, InputsError>,
    ) -> Result<bool, InputsError> {
        let Some(ring) = self.running_ring(0) else {
            return Ok(false);
        };
        let mut wanted = false;
        for _ in 0..ring.available(memory).unwrap_or(0) {
            let Some(chain) = ring.pop(memory) else { break };
            let room = if chain.broken {
                0
            } else {
                usize::try_from(length(&chain.writable))
                    .unwrap_or(FILL_MAX)
                    .min(FILL_MAX)
            };
            let mut bytes = Vec::with_capacity(FILL_MAX);
            while bytes.len() < room {
                bytes.extend_from_slice(&word()?.to_le_bytes());
            }
            bytes.truncate(room);
            let written = scatter(memory, &chain.writable, &bytes);
            let written = u32::try_from(written).expect("at most FILL_MAX");
            wanted |= ring.push(memory, chain.head, written);
        }
        Ok(self.pulse(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BUFFERS, HOLE, Rig, Wild, wild};
    use super::*;
    use crate::devices::tests::conforms;
    use proptest::prelude::*;

    /// Serves with words 1, 2, ...; how many were asked for, and whether the line pulsed.
    fn serve(rng: &mut Rig<Entropy>) -> (u64, bool) {
        let mut asked = 0;
        let pulse = rng.device.serve(&rng.memory, &mut || {
            asked += 1;
            Ok(asked * 0x0101_0101_0101_0101)
        });
        (asked, pulse.unwrap())
    }

    #[test]
    fn buffers_are_filled_with_what_is_answered() {
        let mut rng = Rig::new(Entropy);
        rng.chain(0, 0, &[(BUFFERS, 10, true), (BUFFERS + 0x100, 7, true)]);
        rng.offer(0, 0);
        rng.notify(0);
        assert_eq!(serve(&mut rng), (3, true));
        assert_eq!(rng.bytes(BUFFERS, 11), [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 0]);
        assert_eq!(rng.bytes(BUFFERS + 0x100, 8), [2, 2, 2, 2, 2, 2, 3, 0]);
        assert_eq!(rng.used(0), [(0, 17)]);
        assert_eq!(serve(&mut rng), (0, false), "nothing left to do");
    }

    #[test]
    fn a_long_buffer_is_filled_in_part() {
        let mut rng = Rig::new(Entropy);
        rng.chain(0, 0, &[(BUFFERS, 4096, true)]);
        rng.offer(0, 0);
        assert_eq!(serve(&mut rng), (8, true));
        assert_eq!(rng.used(0), [(0, 64)]);
        assert_eq!(rng.bytes(BUFFERS + 64, 1), [0]);
    }

    #[test]
    fn a_broken_chain_comes_back_empty() {
        let mut rng = Rig::new(Entropy);
        rng.chain(0, 0, &[(HOLE - 4, 8, true)]);
        rng.offer(0, 0);
        assert_eq!(serve(&mut rng).0, 0);
        assert_eq!(rng.used(0), [(0, 0)]);
    }

    #[test]
    fn nothing_is_asked_before_the_driver_is_ready() {
        let mut rng = Rig::fresh(Entropy);
        rng.chain(0, 0, &[(BUFFERS, 8, true)]);
        rng.offer(0, 0);
        assert_eq!(serve(&mut rng), (0, false));
    }

    #[test]
    fn an_error_of_the_answers_is_passed_on() {
        let mut rng = Rig::new(Entropy);
        rng.chain(0, 0, &[(BUFFERS, 8, true)]);
        rng.offer(0, 0);
        let mut refuse = || Err(InputsError::Halted("no".into()));
        assert!(rng.device.serve(&rng.memory, &mut refuse).is_err());
    }

    #[test]
    fn conformance() {
        let changed = Rig::new(Entropy);
        conforms(Rig::fresh(Entropy).device, &changed.device);
    }

    proptest! {
        #[test]
        fn whatever_the_ring_says_the_answers_are_bounded(
            table in wild::table(),
            ring in wild::ring(),
        ) {
            let mut rng = Rig::new(Entropy);
            let table: Vec<Wild> = table;
            rng.fill(0, &table, &ring);
            let most = u64::from(Entropy::QUEUE_SIZE) * (FILL_MAX as u64 / 8);
            rng.notify(0);
            prop_assert!(serve(&mut rng).0 <= most);
        }
    }
}
