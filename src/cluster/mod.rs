//! What an operator does with a cluster of hosts, from anywhere: all of it is asked of the viewservice.

pub mod drain;
pub mod failover;
mod live;
pub mod logs;
mod recipe;
pub mod status;
pub mod up;

use crate::cli::{DownArgs, SecurityArgs, ServiceArgs};
use crate::failure::Outcome;
use replica::HostPort;
use std::time::Duration;
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

/// Has a protected machine stopped.
pub fn down(args: &DownArgs) -> Outcome {
    Ok(args.service.client()?.down(&VmId::new(args.vm.as_str())?)?)
}
