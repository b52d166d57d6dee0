//! `tandem drain`: all replicas leave a host, one by one.

use super::LOOK;
use super::up::is_protected;
use crate::cli::DrainArgs;
use crate::failure::Outcome;
use std::collections::BTreeSet;
use std::time::Duration;
use viewservice::{HostId, Status, ViewError, VmId};

/// Time between two complaints of the same.
const AGAIN: Duration = Duration::from_secs(30);

/// Has the host drained, and waits until nothing is there any more.
///
/// # Errors
/// If there is no such host, or the service does not answer.
pub fn drain(args: &DrainArgs) -> Outcome {
    let host = HostId::new(args.host.as_str())?;
    let client = args.service.client()?;
    client.drain(&host, !args.undo)?;
    if args.undo {
        crate::sayln!("host {host} may have replicas again");
        return Ok(());
    }
    if args.no_wait {
        return Ok(());
    }
    let mut here: Option<BTreeSet<VmId>> = None;
    let mut left: BTreeSet<VmId> = BTreeSet::new();
    let mut told: Option<(String, std::time::Instant)> = None;
    loop {
        match client.status() {
            Ok(status) => {
                let now = on(&status, &host);
                for vm in here.iter().flatten().filter(|vm| !now.contains(*vm)) {
                    crate::sayln!("'{vm}' has left {host}");
                    left.insert(vm.clone());
                }
                left.retain(|vm| is_being_protected(&status, vm));
                if now.is_empty() && left.is_empty() {
                    crate::sayln!("host {host} is drained: no replica is there");
                    return Ok(());
                }
                let why = waits_for(&status, &host, &now);
                let again = |(said, at): &(String, std::time::Instant)| {
                    *said != why || at.elapsed() >= AGAIN
                };
                if !now.is_empty() && told.as_ref().is_none_or(again) {
                    crate::complain!("tandem: {why}");
                    told = Some((why, std::time::Instant::now()));
                }
                here = Some(now);
            }
            // It goes on without being asked again.
            Err(ViewError::Unreachable { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether a machine has left and is being given its new backup: the host is not called empty before that.
fn is_being_protected(status: &Status, vm: &VmId) -> bool {
    super::find(status, vm).is_some_and(|vm| !is_protected(vm) && vm.trouble.is_none())
}

/// The machines with a replica on `host`.
fn on(status: &Status, host: &HostId) -> BTreeSet<VmId> {
    let here = status.vms.iter().filter(|vm| {
        let named = vm.named.as_ref().is_some_and(|view| view.has(host));
        vm.primary == *host
            || vm.backup.as_ref() == Some(host)
            || named
            || vm.roles.contains_key(host)
    });
    here.map(|vm| vm.name.clone()).collect()
}

fn waits_for(status: &Status, host: &HostId, here: &BTreeSet<VmId>) -> String {
    let others = status
        .hosts
        .iter()
        .filter(|other| other.name != *host)
        .map(|other| match (&other.room, other.left_mib) {
            _ if other.drained => format!("{} is drained", other.name),
            (Some(_), Some(left)) => format!("{} has {left} MiB left", other.name),
            _ => format!("{} has no tandem host", other.name),
        });
    let others: Vec<_> = others.collect();
    let here: Vec<_> = here.iter().map(VmId::as_str).collect();
    format!(
        "on {host} there are: {} (each leaves once another host can have it; {})",
        here.join(", "),
        others.join(", ")
    )
}
