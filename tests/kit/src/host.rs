//! Facts of this host that figures depend on.

use serde::Serialize;
use vmm::kvm::KvmKind;
use vmm::processor::HostProcessor;

/// The processor, as the hosts of a pair are compared by it.
#[derive(Clone, Debug, Serialize)]
pub struct Processor {
    /// What CPUID has for its maker.
    pub maker: String,
    /// Its family.
    pub family: u16,
    /// Its model; a cloud may mask it.
    pub model: u8,
    /// Its stepping, likewise.
    pub stepping: u8,
}

impl From<HostProcessor> for Processor {
    fn from(host: HostProcessor) -> Self {
        Self {
            maker: host.maker_text(),
            family: host.family,
            model: host.model,
            stepping: host.stepping,
        }
    }
}

/// What figures measured here are to be read with.
#[derive(Clone, Debug, Serialize)]
pub struct HostFacts {
    /// Processors this program may use.
    pub cores: usize,
    /// What the processor calls itself.
    pub cpu: String,
    /// Which one it is.
    pub processor: Processor,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The kind of KVM there would be.
    pub kvm: KvmKind,
}

impl HostFacts {
    /// Of the host this runs on.
    #[must_use]
    pub fn gather() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = field(&read("/proc/cpuinfo"), "model name")
            .unwrap_or("unknown")
            .to_owned();
        let memory = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(kib)
            .unwrap_or(0);
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu,
            processor: HostProcessor::of_this_host().into(),
            memory_mib: memory / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            kvm: KvmKind::of_this_host(),
        }
    }

    /// In one line.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "{} cores, {}, {} MiB, Linux {}; KVM {}",
            self.cores,
            self.cpu,
            self.memory_mib,
            self.kernel,
            kind_in_words(self.kvm)
        )
    }
}

/// What a kind of KVM is, for people.
#[must_use]
pub fn kind_in_words(kind: KvmKind) -> &'static str {
    match kind {
        KvmKind::Hardware => "hardware-virtualised (kvm_intel or kvm_amd)",
        KvmKind::Software => "software-virtualised (kvm_pvm)",
    }
}

/// The value of `key` in text of the form `key : value`.
#[must_use]
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| (name.trim() == key).then(|| value.trim()))
}

/// The number in "123 kB".
#[must_use]
pub fn kib(value: &str) -> Option<u64> {
    value.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_found_by_their_whole_name() {
        let text =
            "VmPeak:\t  9 kB\nmodel\t\t: 85\nmodel name\t: Xeon: the fast one\nVmHWM:\t  123 kB\n";
        assert_eq!(field(text, "model name"), Some("Xeon: the fast one"));
        assert_eq!(field(text, "VmHWM").and_then(kib), Some(123));
        assert_eq!(field(text, "Vm"), None);
        assert_eq!(kib("12 MB"), None);
    }

    #[test]
    fn this_host_has_cores_and_memory() {
        let facts = HostFacts::gather();
        assert!(facts.cores > 0 && facts.memory_mib > 0 && !facts.kernel.is_empty());
        assert!(facts.describe().contains("KVM"));
    }
}
