//! A vCPU's state goes into a vCPU that never ran, and comes out the same.

use super::*;
use crate::cpu::CpuModel;
use crate::kvm::Host;
use crate::machine::{GuestImage, boot, small};
use crate::memory::GuestMemory;
use testing::skipped::skip_this;
use vm_memory::{Bytes, GuestAddress};

/// The host's KVM; without one the test that asks is skipped, and counted as such.
fn host() -> Option<Host> {
    Host::open().inspect_err(|why| skip_this(why)).ok()
}

#[test]
fn a_state_goes_through_a_fresh_vcpu_unchanged() {
    let Some(host) = host() else { return };
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let fresh = || {
        let vm = host.create_vm(memory.clone(), CpuModel::V1).unwrap();
        vm.create_engine().unwrap()
    };
    let mut state = fresh().save().unwrap();
    assert_eq!((state.debug, state.shadow), ([0; 6], false), "at reset");
    state.clock = Clock(77);
    state.general[15] = 5;
    state.rflags |= 0x100; // the guest steps itself
    state.debug = [0x1000, 0, 0, 0x2000, 1 << 14, 0x2];
    state.shadow = true;
    state.fpu.mxcsr = 0x1fa0;
    state.fpu.fsw = 0x3800;
    state.fpu.ftw = 0x80;
    for (n, register) in state.fpu.xmm.iter_mut().enumerate() {
        register.fill(n as u8 + 1);
    }
    for (n, register) in state.fpu.x87.iter_mut().enumerate() {
        register[..10].fill(n as u8 + 0x81);
    }
    let mut engine = fresh();
    engine.restore(&state).unwrap();
    assert_eq!(engine.save().unwrap(), state);
    state.shadow = false;
    state.debug = [0; 6];
    engine.restore(&state).unwrap();
    assert_eq!(engine.save().unwrap(), state, "and back");
}

/// An engine at `rip`, with 1 MiB of memory, no paging and no segment's base.
fn standing_at(host: &Host, rip: u64) -> KvmEngine {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    memory
        .write_slice(&[0x0f, 0xa2], GuestAddress(0x1000))
        .unwrap(); // cpuid
    let vm = host.create_vm(memory, CpuModel::V1).unwrap();
    let mut engine = vm.create_engine().unwrap();
    let state = engine.save().unwrap();
    engine.restore(&CpuState { rip, ..state }).unwrap();
    engine
}

#[test]
fn what_kvm_cannot_do_is_not_the_guests_doing() {
    let Some(host) = host() else { return };
    for (reason, suberror, words) in [
        (KVM_EXIT_INTERNAL_ERROR, 1, "cannot emulate the instruction"),
        (KVM_EXIT_INTERNAL_ERROR, 4, "suberror 4: "),
        (KVM_EXIT_FAIL_ENTRY, 0, "refuses entry"),
        (77, 0, "unexpected KVM exit 77: "),
    ] {
        let mut engine = standing_at(&host, 0x1000);
        engine.fd.get_kvm_run().__bindgen_anon_1.internal.suberror = suberror;
        let error = engine.last_exit(reason);
        assert!(matches!(error, EngineError::Failed { .. }), "{error:?}");
        let line = error.to_string();
        assert!(line.contains(words), "{line}");
        assert!(
            line.contains("[0f, a2]") && line.contains("0x1000"),
            "{line}"
        );
        assert_eq!(engine.clock, 0, "nothing of the guest's was counted");
    }
    let guests = |rip, reason| {
        let mut engine = standing_at(&host, rip);
        engine.fd.get_kvm_run().__bindgen_anon_1.internal.suberror = 1;
        let error = engine.last_exit(reason);
        assert!(matches!(error, EngineError::GuestFault { .. }), "{error:?}");
        assert_eq!(engine.clock, 1, "as a natural exit");
        error.to_string()
    };
    assert!(guests(0x1000, KVM_EXIT_SHUTDOWN).contains("triple fault"));
    let nowhere = guests(0x20_0000, KVM_EXIT_INTERNAL_ERROR);
    assert!(nowhere.contains("no RAM"), "{nowhere}");
}

/// A store of 16 bytes to where there is no RAM, which KVM makes in pieces.
const LONG_STORE: &[u8] = b"\xb8\0\0\xc0\xfe\x0f\x11\0\xf4"; // mov $0xfec00000, %eax; movups %xmm0, (%rax); hlt

#[test]
fn nothing_of_an_abandoned_access_comes_out_of_the_next_life() {
    let Some(host) = host() else { return };
    let image = small::elf(LONG_STORE);
    let config = small::config(&image);
    let memory = boot::memory(&config).unwrap();
    let state = boot::load(&config, &GuestImage::new(&image), &memory).unwrap();
    let vm = host.create_vm(memory, CpuModel::V1).unwrap();
    let mut engine = vm.create_engine().unwrap();
    let write = |engine: &mut KvmEngine| loop {
        match engine.run(VmEntry::Resume, Stop::Never).unwrap() {
            VmExit::Kicked => {}
            exit => return exit,
        }
    };
    for life in 1..4 {
        engine.restore(&state).unwrap();
        let exit = write(&mut engine);
        let VmExit::Write { address, .. } = exit else {
            panic!("{exit:?}");
        };
        assert_eq!(address, 0xfec0_0000, "the first piece, in life {life}");
        engine.abandon().unwrap();
    }
}
