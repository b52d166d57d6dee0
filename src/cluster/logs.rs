//! `tandem logs`: what a machine's replicas printed and noted, read at the ports of their hosts.

use super::find;
use crate::cli::LogsArgs;
use crate::failure::{Failure, Outcome};
use crate::host::port::{self, What};
use std::time::Duration;
use viewservice::{Client, HostId, VmId};

/// Time between two questions to a host.
const INTERVAL: Duration = Duration::from_millis(500);

/// Shows what there is, and goes on if asked to.
///
/// # Errors
/// If there is no such machine or host, or the host cannot be asked.
pub fn logs(args: &LogsArgs) -> Outcome {
    let vm = VmId::new(args.vm.as_str())?;
    let security = args.service.security.open()?;
    let client = args.service.client()?;
    let what = match (args.events, args.errors) {
        (true, _) => What::Events,
        (_, true) => What::Errors,
        _ => What::Console,
    };
    let given = args.host.as_deref().map(HostId::new).transpose()?;
    let (mut host, mut address) = place(&client, &vm, given.as_ref())?;
    let (text, mut next) = port::read(&address, &security, &vm, what, None)?;
    terminal::say(&text);
    if !args.follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(INTERVAL);
        // The machine may have gone elsewhere, and there its console goes on.
        if given.is_none()
            && let Ok((now, at)) = place(&client, &vm, None)
            && now != host
        {
            crate::complain!("tandem: '{vm}' runs on {now} by now");
            (host, address) = (now, at);
            next = 0;
        }
        match port::read(&address, &security, &vm, what, Some(next)) {
            Ok((text, end)) => {
                terminal::say(&text);
                next = end;
            }
            Err(e) => tracing::info!("{e}"),
        }
        if terminal::unsaid().is_some() {
            return Ok(());
        }
    }
}

/// The host to ask, and where it is.
fn place(client: &Client, vm: &VmId, given: Option<&HostId>) -> Outcome<(HostId, String)> {
    let status = client.status()?;
    let host = match given {
        Some(host) => host.clone(),
        None => find(&status, vm)
            .map(|vm| vm.primary.clone())
            .ok_or_else(|| {
                Failure::new(format!(
                    "there is no machine '{vm}' (of one that is over, --host says where its replica was)"
                ))
            })?,
    };
    let known = status.hosts.iter().find(|known| known.name == host);
    let known = known.ok_or_else(|| Failure::new(format!("there is no host {host}")))?;
    if known.room.is_none() {
        return Err(Failure::new(format!(
            "host {host} has no `tandem host` that could be asked: its replicas were started by hand, or it is dead"
        )));
    }
    Ok((host, known.address.to_string()))
}
