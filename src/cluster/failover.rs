//! `tandem failover --viewservice`: primary and backup of a machine change roles, wherever they are.

use super::{LOOK, client, find};
use crate::cli::{AskArgs, SecurityArgs};
use crate::failure::{During, Failure, Outcome};
use replica::HostPort;
use std::time::{Duration, Instant};
use viewservice::VmId;

/// Longest time until the machine runs at its backup. The service repeats its order to the primary as long.
const LIMIT: Duration = Duration::from_secs(10);

/// Has the machine left to its backup, and waits until that runs it.
///
/// # Errors
/// If there is no backup, or nothing came of it.
pub fn failover(ask: &AskArgs, service: &HostPort, security: &SecurityArgs) -> Outcome {
    let vm = VmId::new(ask.vm.as_str())?;
    let client = client(service, security)?;
    client.failover(&vm)?;
    let before = client.status()?;
    let before = find(&before, &vm).map(|vm| (vm.view, vm.backup.clone()));
    let Some((view, Some(to))) = before else {
        return Err(Failure::new(format!("'{vm}' has lost its backup just now")));
    };
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let status = client.status()?;
        let now = find(&status, &vm).filter(|now| now.view > view && now.role.is_some());
        if let Some(now) = now {
            let from = now.primary.clone();
            if now.primary != to {
                return Err(Failure::new(format!(
                    "'{vm}' runs on {from}, in view {}",
                    now.view
                )));
            }
            if ask.json {
                let report = serde_json::json!({
                    "vm": vm, "result": "failed_over", "view": now.view, "to": to,
                });
                crate::sayln!("{}", serde_json::to_string(&report).during("report")?);
            } else {
                crate::sayln!("'{vm}' is left to its backup on {to}, view {}", now.view);
            }
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(Failure::new(format!(
        "'{vm}' was not left to its backup within {} s: tandem logs {vm} --errors says what its primary thinks of it",
        LIMIT.as_secs()
    )))
}
