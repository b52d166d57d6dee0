//! `tandem status`: machines and hosts, once or as they change.

use super::client;
use super::live;
use super::up::is_protected;
use crate::cli::StatusArgs;
use crate::failure::{During, Outcome};
use replica::role::Role;
use terminal::table::{Align, Table};
use viewservice::{HostState, HostStatus, Status, VmStatus};

/// Shows machines and hosts.
///
/// # Errors
/// If the viewservice does not say.
pub fn status(args: &StatusArgs) -> Outcome {
    let client = client(&args.viewservice, &args.security)?;
    if args.watch {
        return live::watch(&client);
    }
    let status = client.status()?;
    if args.json {
        crate::sayln!("{}", serde_json::to_string(&status).during("report")?);
        return Ok(());
    }
    let mut table = Table::new(&VM_COLUMNS);
    for vm in &status.vms {
        table.row(vm_row(vm));
    }
    terminal::say(&table.to_string());
    crate::sayln!("");
    let mut table = Table::new(&HOST_COLUMNS);
    for host in &status.hosts {
        table.row(host_row(host));
    }
    terminal::say(&table.to_string());
    let troubles = troubles(&status);
    if !troubles.is_empty() {
        crate::sayln!("");
    }
    for line in troubles {
        crate::sayln!("{}", terminal::visible(&line));
    }
    Ok(())
}

/// The columns of a machine.
pub const VM_COLUMNS: [(&str, Align); 6] = [
    ("vm", Align::Left),
    ("role", Align::Left),
    ("view", Align::Right),
    ("primary", Align::Left),
    ("backup", Align::Left),
    ("lag ms", Align::Right),
];

/// The columns of a host.
pub const HOST_COLUMNS: [(&str, Align); 5] = [
    ("host", Align::Left),
    ("address", Align::Left),
    ("state", Align::Left),
    ("MiB left", Align::Right),
    ("KVM", Align::Left),
];

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

/// A machine's row.
#[must_use]
pub fn vm_row(vm: &VmStatus) -> [String; 6] {
    [
        vm.name.to_string(),
        or_dash(vm.role.map(|role| role.to_string())),
        vm.view.to_string(),
        vm.primary.to_string(),
        or_dash(vm.backup.as_ref().map(ToString::to_string)),
        or_dash(vm.lag_ms.map(|lag| lag.to_string())),
    ]
}

/// A host's row. `KVM` is of hosts with a supervisor, which alone say it.
#[must_use]
pub fn host_row(host: &HostStatus) -> [String; 5] {
    let left = match (&host.room, host.left_mib) {
        (Some(room), Some(left)) => Some(format!("{left} of {}", room.memory_mib)),
        _ => None,
    };
    let kvm = host.room.as_ref().map(|room| match &room.kvm {
        Some(kind) => format!("{kind}, {}", room.maker),
        None => "none".into(),
    });
    [
        host.name.to_string(),
        host.address.to_string(),
        host_state(host),
        or_dash(left),
        or_dash(kvm),
    ]
}

fn host_state(host: &HostStatus) -> String {
    let state = match host.state {
        HostState::Live => "live",
        HostState::Dead => "dead",
        HostState::Unheard => "unheard",
    };
    match host.drained {
        true => format!("{state}, drained"),
        false => state.into(),
    }
}

/// What is wrong, a line for each machine.
#[must_use]
pub fn troubles(status: &Status) -> Vec<String> {
    let trouble = |vm: &VmStatus| Some(format!("{}: {}", vm.name, vm.trouble.as_ref()?));
    status.vms.iter().filter_map(trouble).collect()
}

/// A machine in one line, which changes only where something happened.
#[must_use]
pub fn vm_line(vm: &VmStatus) -> String {
    let mut line = match (vm.role, &vm.backup) {
        _ if is_protected(vm) => format!(
            "protected: view {}, primary {}, backup {}",
            vm.view,
            vm.primary,
            or_dash(vm.backup.as_ref().map(ToString::to_string))
        ),
        (Some(Role::Solo), _) => format!("alone: view {}, on {}", vm.view, vm.primary),
        (_, Some(backup)) if is_first(vm) => format!(
            "starts: view {}, primary {}, backup {backup}",
            vm.view, vm.primary
        ),
        (_, Some(backup)) => format!(
            "not heard of as a pair: view {}, primary {}, backup {backup}",
            vm.view, vm.primary
        ),
        (_, None) => format!("not heard of: view {}, on {}", vm.view, vm.primary),
    };
    let next = vm.named.as_ref().filter(|named| named.number > vm.view);
    if let Some((number, backup)) = next.and_then(|next| Some((next.number, next.backup.as_ref()?)))
    {
        line += &format!("; view {number} is to have {backup} as backup");
    }
    if vm.stopping {
        line += "; is to stop";
    }
    if let Some(trouble) = &vm.trouble {
        line += &format!("; {trouble}");
    }
    line
}

/// Whether the view that it is in was named, and nobody has begun it yet.
fn is_first(vm: &VmStatus) -> bool {
    let named = vm.named.as_ref().map(|named| named.number);
    named == Some(vm.view)
}

/// A host in one line, likewise.
#[must_use]
pub fn host_line(host: &HostStatus) -> String {
    let room = match (&host.room, host.left_mib) {
        (Some(room), Some(left)) => format!(", {left} of {} MiB left", room.memory_mib),
        _ => ", no tandem host".into(),
    };
    format!("{}{room}", host_state(host))
}
