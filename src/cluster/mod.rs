//! What an operator does with a cluster of hosts, from anywhere: all of it is asked of the viewservice.

pub mod drain;
pub mod failover;
mod live;
pub mod logs;
mod recipe;
pub mod status;
pub mod up;

use crate::cli::{DownArgs, SecurityArgs, ServiceArgs};
use crate::failure::{Failure, Outcome};
use replica::HostPort;
use std::time::{Duration, Instant};
use viewservice::{Client, Status, VmId, VmStatus};

/// Time between two looks at what has become of a wish.
const LOOK: Duration = Duration::from_millis(100);

/// The viewservice at this address.
fn client(service: &HostPort, security: &SecurityArgs) -> Outcome<Client> {
    let client = Client::new(&service.to_string())?;
    Ok(client.secured(security.open()?))
}

impl ServiceArgs {
    fn client(&self) -> Outcome<Client> {
        client(&self.viewservice, &self.security)
    }
}

/// What `status` says of `vm`.
fn find<'a>(status: &'a Status, vm: &VmId) -> Option<&'a VmStatus> {
    status.vms.iter().find(|status| status.name == *vm)
}

/// Longest time until a machine that is to stop is gone, on hosts that live.
const GONE: Duration = Duration::from_secs(10);

/// Has a protected machine stopped. One that the service placed is waited for: its hosts tell when it is gone.
///
/// # Errors
/// If there is none, or a process of it does not end.
pub fn down(args: &DownArgs) -> Outcome {
    let (client, vm) = (args.service.client()?, VmId::new(args.vm.as_str())?);
    client.down(&vm)?;
    let status = client.status()?;
    let placed = find(&status, &vm).is_some_and(|vm| vm.guest.is_some());
    if !placed || is_gone(&client, &vm) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "'{vm}' is to stop, and is not gone after {} s: a process of it runs on, or one of its hosts does not report",
        GONE.as_secs()
    )))
}

/// Waits until nothing is left of a machine that is to stop; whether nothing is.
fn is_gone(client: &Client, vm: &VmId) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < GONE {
        let status = client.status();
        if status.is_ok_and(|status| find(&status, vm).is_none()) {
            return true;
        }
        std::thread::sleep(LOOK);
    }
    false
}
