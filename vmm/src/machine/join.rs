//! What both sides of a join do at its [`replay::ExecPoint`].

use super::error::MachineError;
use super::state::{Machine, Standing};
use crate::engine::{Engine, VmEntry};
use crate::memory::PageSet;
use replay::StateWindow;

impl<E: Engine> Machine<E> {
    /// Makes a machine that ran on, and one that was restored from its snapshot, the same from here on: the
    /// vCPU forgets its translations, and what no state has of the guest's own counting. A primary and a joining
    /// backup both call it at the join's `ExecPoint`, as part of what the join's entry means, and so does every
    /// replay that passes there.
    ///
    /// Why: a snapshot has no translations, and a guest can tell. One that clears an accessed bit without a
    /// flush finds it set again when the page is next used, or does not, as its translation was forgotten or
    /// was not.
    ///
    /// # Errors
    /// See [`crate::engine::EngineError`].
    ///
    /// # Panics
    /// Anywhere but where a snapshot can be taken: where [`Machine::run_until`] paused, or before the first
    /// run.
    pub fn flush_for_join(&mut self) -> Result<(), MachineError> {
        let between = matches!(self.standing, Standing::BEGIN | Standing::Settled { .. });
        assert!(
            between && self.entry == VmEntry::Resume,
            "a join where the machine is not whole"
        );
        Ok(self.engine.flush_translations()?)
    }

    /// Digest by which both sides of a join know that they have the same vCPU and devices. Memory is not in it:
    /// the guest stands still meanwhile, and to read all of its memory takes longer than it may. Each page has
    /// come with a checksum, and the digests of the log behind the join go over all of them.
    ///
    /// # Errors
    /// If the vCPU's state cannot be read.
    pub fn digest_for_join(&mut self) -> Result<u64, MachineError> {
        let nothing = StateWindow {
            first_page: 0,
            pages: 0,
        };
        self.digest(Some(nothing))
    }

    /// Has the vCPU note which pages of memory are written from now on, by the guest or by devices, or no
    /// longer do: for whoever sends memory while the guest runs. Only where [`Machine::run_until`] paused.
    ///
    /// # Errors
    /// See [`crate::engine::EngineError`].
    pub fn note_written(&mut self, noted: bool) -> Result<(), MachineError> {
        Ok(self.engine.note_dirty_pages(noted)?)
    }

    /// The pages that were written since [`Machine::note_written`], or since they were last asked for. Only
    /// where [`Machine::run_until`] paused.
    ///
    /// # Errors
    /// See [`crate::engine::EngineError`].
    pub fn written(&mut self) -> Result<PageSet, MachineError> {
        Ok(self.engine.dirty_pages()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::boot;
    use super::super::reset::tests::{engine, machine_of};
    use super::super::run::Ended;
    use super::super::snapshot::Snapshot;
    use super::*;
    use crate::soft::SoftEngine;
    use iced_x86::code_asm::*;
    use replay::{
        Clock, Delivery, Here, Inputs, InputsError, Output, Question, Situation, StateWindow, Stop,
    };

    /// Nothing ever arrives; the vCPU stops at a place.
    struct Nothing(Clock);

    impl Inputs for Nothing {
        fn answer(&mut self, _: &Here, _: Question) -> Result<u64, InputsError> {
            Ok(0)
        }

        fn arrival(&mut self, _: &Situation) -> Result<Option<Delivery>, InputsError> {
            Ok(None)
        }

        fn output(&mut self, _: &Here, _: Output) -> Result<(), InputsError> {
            Ok(())
        }

        fn next_stop(&mut self, now: &Situation) -> Result<Stop, InputsError> {
            Ok(if now.here.point.clock < self.0 {
                Stop::At(self.0)
            } else {
                Stop::Never
            })
        }

        fn kicked(&mut self, _: Clock) -> Result<(), InputsError> {
            Ok(())
        }

        fn state_due(&mut self, _: &Here) -> Result<Option<StateWindow>, InputsError> {
            Ok(None)
        }

        fn state(&mut self, _: &Here, _: StateWindow, _: u64) -> Result<(), InputsError> {
            Ok(())
        }

        fn end(&mut self, _: &Here, _: u32, _: u64) -> Result<(), InputsError> {
            Ok(())
        }
    }

    /// A page of 2 MiB, and its entry in the page directory the machine begins with.
    const PAGE: u64 = 0x60_0000;
    const ENTRY: u64 = 0x8000 + PAGE / 0x20_0000 * 8;
    /// Instructions before the join.
    const JOIN: Clock = Clock(2);

    /// Uses a page, clears its accessed bit and does not flush; behind the join uses the page again, and ends.
    fn guest() -> Vec<u8> {
        let mut a = CodeAssembler::new(64).unwrap();
        a.mov(eax, dword_ptr(PAGE)).unwrap();
        a.and(byte_ptr(ENTRY), !0x20).unwrap();
        a.mov(eax, dword_ptr(PAGE)).unwrap();
        a.mov(eax, (abi::CONTROL_PAGE + abi::control::POWER_OFF) as u32)
            .unwrap();
        a.xor(ecx, ecx).unwrap();
        a.mov(dword_ptr(rax), ecx).unwrap();
        a.assemble(abi::IMAGE_BASE).unwrap()
    }

    /// Counts a block, as instrumented guests do on every clock; behind the join ends with what it has left.
    fn counting_guest() -> Vec<u8> {
        let mut a = CodeAssembler::new(64).unwrap();
        a.mov(edx, abi::CLOCK_PAGE as u32).unwrap();
        a.sub(qword_ptr(rdx), 1).unwrap();
        a.mov(rcx, qword_ptr(rdx)).unwrap();
        a.mov(eax, (abi::CONTROL_PAGE + abi::control::POWER_OFF) as u32)
            .unwrap();
        a.mov(dword_ptr(rax), ecx).unwrap();
        a.assemble(abi::IMAGE_BASE).unwrap()
    }

    /// The ends of the machine that ran `guest` on and of the one that was restored, each after `at_join`.
    fn both(guest: &[u8], at_join: impl Fn(&mut Machine<SoftEngine>)) -> [Ended; 2] {
        let mut inputs = Nothing(JOIN);
        let mut primary = machine_of(guest);
        let paused = primary.run_until(&mut inputs, |now| now.here.point.clock >= JOIN);
        assert_eq!(paused.unwrap(), None);
        let mut saved = Vec::new();
        primary.save(&mut saved).unwrap();
        let snapshot = Snapshot::open(&saved[..]).unwrap();
        let memory = boot::memory(snapshot.config()).unwrap();
        let engine = engine(snapshot.config(), &memory);
        let backup = Machine::restore(engine, memory, snapshot).unwrap();
        [primary, backup].map(|mut machine| {
            assert_eq!(machine.engine.clock(), JOIN);
            at_join(&mut machine);
            machine.run(&mut inputs).unwrap()
        })
    }

    #[test]
    fn who_ran_on_and_who_was_restored_are_one_machine_behind_a_join() {
        let [primary, backup] = both(&guest(), |_| {});
        assert_ne!(
            primary.digest, backup.digest,
            "this guest can tell whether its translations were forgotten"
        );
        let [primary, backup] = both(&guest(), |machine| machine.flush_for_join().unwrap());
        assert_eq!(primary, backup);
    }

    #[test]
    fn what_a_guest_counts_beside_the_processor_begins_anew_at_a_join() {
        let [primary, backup] = both(&counting_guest(), |_| {});
        assert_ne!(primary.code, backup.code, "no state has it");
        let join = |machine: &mut Machine<SoftEngine>| machine.flush_for_join().unwrap();
        let [primary, backup] = both(&counting_guest(), join);
        assert_eq!(primary, backup);
    }

    #[test]
    #[should_panic(expected = "not whole")]
    fn there_is_no_join_inside_an_entry() {
        let mut machine = machine_of(&guest());
        machine.standing = Standing::Inside(Stop::Never);
        let _ = machine.flush_for_join();
    }
}
