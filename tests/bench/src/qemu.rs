//! QEMU's translator with the same guest: for those who hold Tandem beside it.

use kit::cluster::TAPS;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

pub use crate::soft::qemu as program;

/// The processor it plays; its features are those of the model `v2`.
pub const CPU: &str = "Nehalem";
/// The guest's hardware address, on every engine.
const MAC: &str = "52:54:00:7a:4d:01";
/// For how long the host's time-stamp counter is held against its clock.
const TSC_LOOK: Duration = Duration::from_millis(200);

/// A Linux guest on the first of a private network's TAPs.
pub struct Machine<'a> {
    /// Its kernel.
    pub kernel: &'a Path,
    /// Its first root.
    pub initrd: &'a Path,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Its memory.
    pub memory_mib: u32,
    /// Its disk, if it has one: a raw image.
    pub disk: Option<&'a Path>,
}

impl Machine<'_> {
    /// Arguments of QEMU: a machine with virtio over MMIO, as Tandem's is, and nothing else Linux does
    /// not need to boot.
    ///
    /// It has no PM timer to hold the time-stamp counter against (docs/system/i386/microvm.rst), so the kernel is
    /// told that counter's rate, which on Tandem is told too: TCG hands out the host's own.
    #[must_use]
    pub fn args(&self, tsc_khz: u64) -> Vec<OsString> {
        let mut args: Vec<OsString> = ["-machine", "microvm,acpi=on", "-nodefaults"]
            .into_iter()
            .chain(["-no-user-config", "-no-reboot", "-display", "none"])
            .chain(["-serial", "stdio", "-accel", "tcg"])
            .chain(["-cpu", CPU, "-smp", "1"])
            .map(OsString::from)
            .collect();
        let cmdline = format!("tsc_early_khz={tsc_khz} {}", self.cmdline);
        let tap = format!("tap,id=net,ifname={},script=no,downscript=no", TAPS[0]);
        let device = format!("virtio-net-device,netdev=net,mac={MAC}");
        let mut options = vec![
            ("-m", OsString::from(self.memory_mib.to_string())),
            ("-kernel", self.kernel.into()),
            ("-initrd", self.initrd.into()),
            ("-append", cmdline.into()),
            ("-netdev", tap.into()),
            ("-device", device.into()),
        ];
        if let Some(disk) = self.disk {
            let mut drive = OsString::from("if=none,format=raw,id=disk,file=");
            drive.push(disk);
            options.push(("-drive", drive));
            options.push(("-device", "virtio-blk-device,drive=disk".into()));
        }
        for (option, value) in options {
            args.extend([option.into(), value]);
        }
        args
    }
}

/// The rate of this host's time-stamp counter, in kHz.
pub fn tsc_khz() -> u64 {
    let look = || {
        // SAFETY: the instruction is there on every x86-64 processor, and only reads a counter.
        let ticks = unsafe { std::arch::x86_64::_rdtsc() };
        (Instant::now(), ticks)
    };
    let (begun, from) = look();
    std::thread::sleep(TSC_LOOK);
    let (ended, to) = look();
    let us = (ended - begun).as_micros().max(1);
    let ticks = u128::from(to.wrapping_sub(from));
    u64::try_from(ticks * 1000 / us).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_runs_as_fast_as_processors_do() {
        assert!((100_000..20_000_000).contains(&tsc_khz()), "{}", tsc_khz());
    }
}
