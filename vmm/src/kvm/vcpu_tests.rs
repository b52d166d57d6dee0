//! A vCPU's state goes into a vCPU that never ran, and comes out the same.

use super::*;
use crate::cpu::CpuModel;
use crate::kvm::Host;
use crate::memory::GuestMemory;
use vm_memory::GuestAddress;

#[test]
fn a_state_goes_through_a_fresh_vcpu_unchanged() {
    let host = match Host::open() {
        Ok(host) => host,
        Err(why) => {
            eprintln!("skipped: {why}");
            return;
        }
    };
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
