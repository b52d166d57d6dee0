//! The KVM engine: the only place with KVM ioctls.

mod convert;
pub mod counter;
mod describe;
mod tsc;
mod vcpu;
mod vm;

pub use vcpu::KvmEngine;
pub use vm::{Host, KvmError, KvmKind, Vm};
