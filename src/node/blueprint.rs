//! From a command line to a machine that has not run yet.

use super::bundled;
use super::library::Loaded;
use crate::cli::{MachineArgs, OnReset};
use crate::failure::{During, Failure, Outcome};
use guests::Image;
use replay::ClockKind;
use replica::machine::{Blueprint, EngineChoice, disk_sectors};
use replica::outside::Plugs;
use std::net::Ipv4Addr;
use vmm::cpu::CpuModel;
use vmm::machine::{BoardKind, MachineConfig, TSC_HZ, TscMode};

/// The guest's network address unless its arguments say otherwise.
pub const GUEST_ADDRESS: &str = "10.77.0.2/24";
/// And its gateway: the host's side of the demo's bridge.
pub const GATEWAY: &str = "10.77.0.1";

/// Hardware address of the guest's network device unless the command line says otherwise.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x7a, 0x4d, 0x01];

/// Guest memory unless the command line or the image says otherwise.
const MEMORY_MIB: u32 = 64;

/// A Linux kernel's command line unless another is given: messages on the serial port.
const LINUX_CMDLINE: &str = "console=ttyS0";

/// What the command line asks for. If the image has a disk, and the arguments name none, they have its from here on;
/// and the ports it exposes.
pub fn blueprint(args: &mut MachineArgs) -> Outcome<Blueprint> {
    let image = guests::load(&args.guest, args.initrd.as_deref())?;
    if let Some(manifest) = &image.manifest {
        args.disk = bundled::disk(manifest, args.guest.as_ref(), args.disk.as_deref())?;
        args.ports = bundled::tcp_ports(manifest);
    }
    let args = &*args;
    let initrd = args.initrd.as_deref();
    let board = image.bytes().board()?;
    if image.manifest.as_ref().is_some_and(|m| !m.tells_status) {
        crate::complain!(
            "tandem: {}: made by an older version, whose guests end with status 0 whatever their command's is \
             (tandem image makes it anew)",
            args.guest
        );
    }
    let disk_sectors = args.disk.as_deref().map(disk_sectors).transpose()?;
    let clock_kind = args.clock.unwrap_or(match board {
        BoardKind::Bare => ClockKind::Blocks,
        BoardKind::FirstPc | BoardKind::Pc => ClockKind::Instructions,
    });
    if board.is_pc() && clock_kind == ClockKind::Blocks {
        return Err(Failure::usage(
            "--clock blocks is for guests that count their own blocks, which Linux does not: \
             use --clock instructions",
        ));
    }
    let counted = clock_kind == ClockKind::Instructions && args.engine != EngineChoice::Kvm;
    let config = MachineConfig {
        guest: args.guest.clone(),
        image_digest: image.digest,
        memory_mib: args
            .memory
            .unwrap_or(image.manifest.as_ref().map_or(MEMORY_MIB, |m| m.memory_mib)),
        cmdline: cmdline(args, board, &image)?,
        cpu: args.cpu.unwrap_or(CpuModel::V1),
        clock_kind,
        // KVM counts no RDTSC: it leaves the guest.
        tsc: args.tsc.unwrap_or(TscMode::usual(counted)),
        mac: args.mac.unwrap_or(MAC),
        disk_sectors,
        initrd: initrd.map(str::to_owned),
        board,
        reboots: args.on_reset.unwrap_or(match image.manifest {
            None => OnReset::Restart,
            Some(_) => OnReset::End,
        }) == OnReset::Restart,
    };
    config.check()?;
    Ok(Blueprint {
        config,
        image: Box::new(Loaded(image)),
    })
}

/// A bare-metal guest's arguments, with its addresses; or a Linux kernel's command line.
fn cmdline(args: &MachineArgs, board: BoardKind, image: &Image) -> Outcome<String> {
    if board.is_pc() {
        let append = args.append.clone();
        let mut words = match &image.manifest {
            Some(manifest) => vec![manifest.cmdline.clone(), append.unwrap_or_default()],
            None => vec![append.unwrap_or(LINUX_CMDLINE.to_owned())],
        };
        words.extend(args.args.iter().cloned());
        let words = words.join(" ");
        if image.manifest.is_some() {
            bundled::check_command(&words)?;
        }
        return Ok(with_tsc_rate(&words));
    }
    if args.append.is_some() {
        return Err(Failure::usage(
            "--append is for Linux kernels; this guest takes --arg KEY=VALUE",
        ));
    }
    let checked = guests::arguments::check(&args.guest, &args.args);
    checked.map_err(|why| Failure::usage(format!("--arg {why}")))?;
    let mut words = Vec::new();
    for (key, value) in [("ip", GUEST_ADDRESS), ("gw", GATEWAY)] {
        if !args
            .args
            .iter()
            .any(|arg| arg.split_once('=').is_some_and(|(k, _)| k == key))
        {
            words.push(format!("{key}={value}"));
        }
    }
    words.extend(args.args.iter().cloned());
    Ok(words.join(" "))
}

/// A Linux kernel's command line that says how fast the time-stamp counter runs, unless it does already.
///
/// Otherwise the kernel measures that against the PIT, and where the host keeps the vCPU from running in the
/// midst of it, guest time steps on there: one guest found 5 MHz, and its clocks ran two hundred times too
/// fast (`tsc_early_khz` in the kernel's list of parameters).
fn with_tsc_rate(cmdline: &str) -> String {
    const WORD: &str = "tsc_early_khz=";
    if cmdline.split(' ').any(|word| word.starts_with(WORD)) {
        return cmdline.to_owned();
    }
    // In front: what follows a "--" is the first program's.
    format!("{WORD}{} {cmdline}", TSC_HZ / 1000)
}

/// What the machine's devices are plugged into.
pub fn plugs(args: &MachineArgs, disk_copy: bool) -> Plugs {
    Plugs {
        net: args.net.clone(),
        disk: args.disk.clone(),
        disk_copy,
        quiet: args.quiet,
    }
}

/// The address a guest with these arguments has.
///
/// # Errors
/// If `ip=` is no address.
pub fn guest_ip(words: &[String]) -> Outcome<Ipv4Addr> {
    let given = words.iter().rev().find_map(|word| word.strip_prefix("ip="));
    let text = given.unwrap_or(GUEST_ADDRESS);
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address
        .parse()
        .during(format_args!("the guest's argument ip={text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_told_how_fast_its_time_stamps_run() {
        let said = with_tsc_rate("console=ttyS0 -- single");
        assert_eq!(said, "tsc_early_khz=1000000 console=ttyS0 -- single");
        assert_eq!(with_tsc_rate(&said), said, "once");
        let own = "quiet tsc_early_khz=7";
        assert_eq!(with_tsc_rate(own), own);
    }

    #[test]
    fn a_guest_has_the_address_it_is_given() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(Into::into).collect() };
        let ip = |text| guest_ip(&words(text)).map_err(|e| e.to_string());
        assert_eq!(ip("ticks=3"), Ok(Ipv4Addr::new(10, 77, 0, 2)));
        assert_eq!(
            ip("gw=10.0.0.1 ip=10.0.0.7/8"),
            Ok(Ipv4Addr::new(10, 0, 0, 7))
        );
        assert_eq!(ip("ip=10.0.0.9"), Ok(Ipv4Addr::new(10, 0, 0, 9)));
        assert!(ip("ip=guest").unwrap_err().contains("ip=guest"));
    }
}
