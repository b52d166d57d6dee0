//! From a machine, as the viewservice tells of it, to the command line of its replica.
//!
//! Every value stands in one word with its option (`--net=tap:x`), and the guest behind `--`: none is taken for an
//! option of its own.

use std::ffi::OsString;
use std::path::Path;
use viewservice::{Machine, Wanted};
use viewservice::{Role, VmId};

/// Options of a primary that the description of a machine may give.
pub const OPTIONS: [&str; 8] = [
    "append",
    "arg",
    "clock",
    "tsc",
    "on-reset",
    "mac",
    "lag-max-ms",
    "disk-read",
];
/// And of both replicas.
pub const OF_BOTH: [&str; 3] = ["suspect-ms", "log-buffer", "handover-mib-s"];

/// What all replicas of a host are told.
pub struct Common {
    /// Its name, the arbiter, the viewservice, how connections are protected, the control folder.
    pub options: Vec<OsString>,
    /// The address at which they listen.
    pub address: String,
}

/// `--name=value`.
#[must_use]
pub fn option(name: &str, value: impl AsRef<std::ffi::OsStr>) -> OsString {
    let mut word = OsString::from(format!("--{name}="));
    word.push(value);
    word
}

/// The command line of the replica that is `wanted`, whose files are in `folder`.
///
/// # Errors
/// If the machine has an option that is none of a machine's.
pub fn command_line(
    wanted: &Wanted,
    common: &Common,
    folder: &Path,
) -> Result<Vec<OsString>, String> {
    let machine = &wanted.machine;
    let mut words = vec![match wanted.role {
        Role::Backup => "backup".into(),
        _ => OsString::from("primary"),
    }];
    words.extend(common.options.iter().cloned());
    words.extend(of_replica(&wanted.vm, machine)?);
    words.push(option("listen", format!("{}:0", common.address)));
    for (name, file) in [
        ("events", "events"),
        ("metrics", "metrics"),
        ("supervised", "lock"),
    ] {
        words.push(option(name, folder.join(file)));
    }
    if wanted.role == Role::Backup {
        return Ok(words);
    }
    let backup = wanted.backup.as_ref().ok_or("the order names no backup")?;
    words.push("--ordered".into());
    if wanted.anew {
        words.push("--anew".into());
    }
    words.push(option("backup", backup.as_str()));
    words.extend(of_primary(machine)?);
    Ok(words)
}

/// What both replicas are told of their machine.
fn of_replica(vm: &VmId, machine: &Machine) -> Result<Vec<OsString>, String> {
    let mut words = vec![
        option("vm", vm.as_str()),
        option("engine", machine.engine.to_string()),
    ];
    words.extend(machine.net.iter().map(|net| option("net", net)));
    words.extend(machine.disk.iter().map(|disk| option("disk", disk)));
    if machine.disk_copy {
        words.push("--disk-copy".into());
    }
    words.extend(options(&machine.of_both, &OF_BOTH)?);
    Ok(words)
}

fn of_primary(machine: &Machine) -> Result<Vec<OsString>, String> {
    let mut words = vec![
        option("memory", machine.memory_mib.to_string()),
        option("cpu", &machine.cpu),
    ];
    words.extend(machine.initrd.iter().map(|file| option("initrd", file)));
    if machine.unlike_hosts {
        words.push("--unlike-hosts".into());
    }
    words.extend(options(&machine.options, &OPTIONS)?);
    words.extend(["--".into(), machine.guest.clone().into()]);
    Ok(words)
}

fn options(given: &[(String, String)], known: &[&str]) -> Result<Vec<OsString>, String> {
    given
        .iter()
        .map(|(name, value)| {
            if known.contains(&name.as_str()) {
                return Ok(option(name, value));
            }
            Err(format!("'{name}' is no option of a machine here"))
        })
        .collect()
}

/// The command line of a primary of `machine`, as far as the machine decides it: to be checked before anybody is
/// asked to start it.
///
/// # Errors
/// As [`command_line`].
pub fn to_check(vm: &VmId, machine: &Machine) -> Result<Vec<OsString>, String> {
    let mut words: Vec<OsString> = [
        "tandem",
        "primary",
        "--arbiter=file:/",
        "--backup=127.0.0.1:1",
    ]
    .map(OsString::from)
    .to_vec();
    words.extend(of_replica(vm, machine)?);
    words.extend(of_primary(machine)?);
    Ok(words)
}

/// The files that the replicas of `machine` read on their hosts.
pub fn files(machine: &Machine) -> Vec<&str> {
    let is_built_in = guests::BUILT_IN
        .iter()
        .any(|(name, ..)| *name == machine.guest);
    let guest = (!is_built_in).then_some(machine.guest.as_str());
    let others = [machine.initrd.as_deref(), machine.disk.as_deref()];
    guest
        .into_iter()
        .chain(others.into_iter().flatten())
        .collect()
}
