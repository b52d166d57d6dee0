//! The host's KVM and one virtual machine on it.

use super::vcpu::KvmEngine;
use crate::cpu::{CpuModel, Offer};
use crate::engine::EngineError;
use crate::memory::{GuestMemory, PAGE_BYTES, PageSet};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_cpuid_entry2,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

/// Why KVM cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no /dev/kvm.
    #[error(
        "no /dev/kvm: this host has no KVM. Load kvm_intel, kvm_amd or kvm_pvm, or enable (nested) virtualisation"
    )]
    Missing,
    /// There is one, but not for us.
    #[error(
        "no right to open /dev/kvm: run as root, or join the group that owns it (usually 'kvm')"
    )]
    Denied,
    /// Something else is wrong with it.
    #[error("{operation}: {source}")]
    Ioctl {
        /// The operation that failed.
        operation: String,
        /// Why.
        source: std::io::Error,
    },
    /// KVM lacks something we need.
    #[error("this host's KVM lacks {0}")]
    Lacking(String),
}

impl KvmError {
    fn ioctl(operation: &str, e: kvm_ioctls::Error) -> Self {
        Self::Ioctl {
            operation: operation.to_owned(),
            source: std::io::Error::from_raw_os_error(e.errno()),
        }
    }
}

impl From<KvmError> for EngineError {
    fn from(e: KvmError) -> Self {
        Self::Unsupported(e.to_string())
    }
}

/// The two kinds of KVM found in the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmKind {
    /// kvm_intel or kvm_amd: the processor virtualises.
    Hardware,
    /// kvm_pvm: ring 3 runs natively, ring 0 is emulated.
    Software,
}

impl KvmKind {
    /// Which kind this host has, if it has KVM: the processor says whether it has VMX or SVM, and
    /// without either only a software KVM can be behind the device.
    #[must_use]
    pub fn of_this_host() -> Self {
        let vmx = std::arch::x86_64::__cpuid(1).ecx & 1 << 5 != 0;
        let svm = std::arch::x86_64::__cpuid(0x8000_0001).ecx & 1 << 2 != 0;
        if vmx || svm {
            Self::Hardware
        } else {
            Self::Software
        }
    }
}

impl From<KvmKind> for crate::engine::EngineKind {
    fn from(kind: KvmKind) -> Self {
        match kind {
            KvmKind::Hardware => Self::KvmHardware,
            KvmKind::Software => Self::KvmSoftware,
        }
    }
}

/// The host's KVM.
pub struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// See [`KvmError`].
    pub fn open() -> Result<Self, KvmError> {
        crate::kick::install().map_err(|source| KvmError::Ioctl {
            operation: "cannot install the kick signal's handler".into(),
            source,
        })?;
        let kvm = Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
            libc::EACCES | libc::EPERM => KvmError::Denied,
            _ => KvmError::ioctl("cannot open /dev/kvm", e),
        })?;
        if kvm.get_api_version() != 12 {
            return Err(KvmError::Lacking("API version 12".into()));
        }
        for (cap, name) in [
            (Cap::UserMemory, "user memory slots"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Lacking(name.into()));
            }
        }
        Ok(Self { kvm })
    }

    /// Features of `model` this host cannot run.
    ///
    /// # Errors
    /// If KVM does not tell.
    pub fn missing_features(&self, model: CpuModel) -> Result<Vec<&'static str>, KvmError> {
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| KvmError::ioctl("KVM_GET_SUPPORTED_CPUID", e))?;
        let one = supported.as_slice().iter().find(|leaf| leaf.function == 1);
        let (ecx, edx) = one.map_or((0, 0), |leaf| (leaf.ecx, leaf.edx));
        Ok(model.missing(ecx, edx))
    }

    /// Makes a virtual machine with `memory` and a clock page.
    ///
    /// # Errors
    /// See [`KvmError`].
    pub fn create_vm(&self, memory: GuestMemory, model: CpuModel) -> Result<Vm, KvmError> {
        let missing = self.missing_features(model)?;
        if !missing.is_empty() {
            return Err(KvmError::Lacking(format!(
                "what CPU model {model} has: {}",
                missing.join(", ")
            )));
        }
        let fd = uninterrupted(|| self.kvm.create_vm())
            .map_err(|e| KvmError::ioctl("KVM_CREATE_VM", e))?;
        // Intel processors without unrestricted guest need two places for KVM's own use; harmless
        // elsewhere, and refused by kinds of KVM that have no such need.
        let _ = fd.set_identity_map_address(0xfeff_c000);
        let _ = fd.set_tss_address(0xfeff_d000);
        let clock_page = MmapRegion::<()>::new(4096).map_err(|e| KvmError::Ioctl {
            operation: "cannot map the clock page".into(),
            source: std::io::Error::other(e),
        })?;
        let inner = VmInner {
            fd,
            memory,
            clock_page,
            model,
            logs_dirty: AtomicBool::new(false),
        };
        for slot in inner.slots() {
            inner
                .set_slot(slot)
                .map_err(|e| KvmError::ioctl("KVM_SET_USER_MEMORY_REGION", e))?;
        }
        Ok(Vm {
            inner: Arc::new(inner),
        })
    }
}

/// Does what a signal may cut short (a process stopped and let go on while KVM waits for the kernel, say)
/// until it is not. For steps that have changed nothing when they end so.
fn uninterrupted<T>(
    mut step: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match step() {
            Err(e) if e.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

/// One virtual machine.
#[derive(Clone)]
pub struct Vm {
    inner: Arc<VmInner>,
}

struct VmInner {
    fd: VmFd,
    memory: GuestMemory,
    clock_page: MmapRegion,
    model: CpuModel,
    /// Whether KVM logs which pages of memory the guest writes.
    logs_dirty: AtomicBool,
}

impl VmInner {
    /// Where memory and the clock page, the last of them, are.
    fn slots(&self) -> Vec<kvm_userspace_memory_region> {
        let logs = if self.logs_dirty.load(Ordering::Relaxed) {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        };
        let memory = self.memory.iter().map(|region| {
            let host = region.as_ptr() as u64;
            (region.start_addr().0, region.len(), host, logs)
        });
        let clock_page = (abi::CLOCK_PAGE, 4096, self.clock_page.as_ptr() as u64, 0);
        (0..)
            .zip(memory.chain([clock_page]))
            .map(
                |(slot, (guest_phys_addr, memory_size, userspace_addr, flags))| {
                    kvm_userspace_memory_region {
                        slot,
                        flags,
                        guest_phys_addr,
                        memory_size,
                        userspace_addr,
                    }
                },
            )
            .collect()
    }

    /// Where memory is.
    fn memory_slots(&self) -> Vec<kvm_userspace_memory_region> {
        let mut slots = self.slots();
        slots.pop();
        slots
    }

    /// Gives KVM a slot of [`VmInner::slots`], or takes it (length 0).
    fn set_slot(&self, slot: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: the mapping stays alive as long as the VM: both are kept in `Vm`, and the engine keeps
        // the `Vm`.
        unsafe { self.fd.set_user_memory_region(slot) }
    }
}

impl Vm {
    /// Makes KVM forget what it derived from guest memory, which was written from outside: it follows the
    /// guest's own writes to page tables only. The vCPU must not be running.
    pub(super) fn forget_translations(&self) -> Result<(), kvm_ioctls::Error> {
        for slot in self.inner.slots() {
            let gone = kvm_userspace_memory_region {
                memory_size: 0,
                ..slot
            };
            self.inner.set_slot(gone)?;
            self.inner.set_slot(slot)?;
        }
        Ok(())
    }

    /// Makes KVM log which pages of guest memory the guest writes, or no longer do. The vCPU must not be
    /// running.
    pub(super) fn log_dirty(&self, on: bool) -> Result<(), kvm_ioctls::Error> {
        self.inner.logs_dirty.store(on, Ordering::Relaxed);
        for slot in self.inner.memory_slots() {
            self.inner.set_slot(slot)?;
        }
        Ok(())
    }

    /// Adds the pages the guest wrote since the last call, or since KVM logs them, to `pages`.
    pub(super) fn take_dirty(&self, pages: &mut PageSet) -> Result<(), kvm_ioctls::Error> {
        for slot in self.inner.memory_slots() {
            let bytes = usize::try_from(slot.memory_size).expect("it is mapped");
            let words = self.inner.fd.get_dirty_log(slot.slot, bytes)?;
            let mut written = PageSet::new(slot.memory_size / PAGE_BYTES);
            written.insert_words(&words);
            let first = slot.guest_phys_addr / PAGE_BYTES;
            for run in written.runs() {
                pages.insert(first + run.start..first + run.end);
            }
        }
        Ok(())
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.inner.memory
    }

    /// The clock page's budget word, in host memory.
    pub(super) fn budget(&self) -> NonNull<u64> {
        NonNull::new(self.inner.clock_page.as_ptr().cast()).expect("a mapping is not at null")
    }

    /// Makes the machine's one vCPU. To be called on the thread that will run it.
    ///
    /// # Errors
    /// See [`KvmError`].
    pub fn create_engine(&self) -> Result<KvmEngine, KvmError> {
        let fd = uninterrupted(|| self.inner.fd.create_vcpu(0))
            .map_err(|e| KvmError::ioctl("KVM_CREATE_VCPU", e))?;
        let leaves: Vec<kvm_cpuid_entry2> = self
            .inner
            .model
            .leaves(Offer::Bare)
            .into_iter()
            .map(|leaf| kvm_cpuid_entry2 {
                function: leaf.function,
                index: leaf.index,
                eax: leaf.registers[0],
                ebx: leaf.registers[1],
                ecx: leaf.registers[2],
                edx: leaf.registers[3],
                ..Default::default()
            })
            .collect();
        let cpuid = CpuId::from_entries(&leaves)
            .map_err(|e| KvmError::Lacking(format!("room for the CPUID table ({e:?})")))?;
        fd.set_cpuid2(&cpuid)
            .map_err(|e| KvmError::ioctl("KVM_SET_CPUID2", e))?;
        Ok(KvmEngine::new(self.clone(), fd))
    }
}
