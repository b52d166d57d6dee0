//! `tandem up`: a machine on two hosts that have room for it.

use super::recipe::Recipe;
use super::{LOOK, find, is_gone};
use crate::cli::UpArgs;
use crate::failure::{During, Failure, Outcome};
use replica::role::Role;
use std::path::Path;
use std::time::Instant;
use viewservice::{Client, Status, Up, ViewError, VmId, VmStatus};

/// Has the machine placed and started, and waits until it is protected.
///
/// # Errors
/// If there is no room, or it does not start: then nothing is left of it.
pub fn up(args: &UpArgs) -> Outcome {
    let name = args.name.as_deref();
    let recipe = match Path::new(&args.what).extension() {
        Some(toml) if toml == "toml" => Recipe::read(Path::new(&args.what), name)?,
        _ => Recipe::of_guest(&args.what, name)?,
    };
    let client = args.service.client()?;
    let vm = recipe.vm;
    client.up(&Up {
        vm: vm.clone(),
        machine: recipe.machine,
        anew: args.anew,
    })?;
    let status = wait(args, &client, &vm)?;
    let vm = find(&status, &vm).expect("it was found protected");
    let backup = vm
        .backup
        .as_ref()
        .map_or("?".to_owned(), ToString::to_string);
    if args.json {
        let report = serde_json::json!({
            "vm": vm.name, "result": "protected", "view": vm.view, "primary": vm.primary, "backup": vm.backup,
        });
        crate::sayln!("{}", serde_json::to_string(&report).during("report")?);
        return Ok(());
    }
    crate::sayln!(
        "'{}' is protected, view {}: it runs on {}, and its backup on {backup}",
        vm.name,
        vm.view,
        vm.primary
    );
    Ok(())
}

/// What there is once the machine is protected.
fn wait(args: &UpArgs, client: &Client, vm: &VmId) -> Outcome<Status> {
    let begun = Instant::now();
    loop {
        let status = match client.status() {
            Ok(status) => status,
            Err(ViewError::Unreachable { .. }) if begun.elapsed() < args.wait => {
                std::thread::sleep(LOOK);
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let Some(now) = find(&status, vm) else {
            return Err(Failure::new(format!("'{vm}' has ended, or was taken down")));
        };
        if is_protected(now) {
            return Ok(status);
        }
        // It has not begun: its start is over, and what is left of that goes.
        let begins = now.named.is_some() && now.roles.is_empty();
        if let Some(why) = now.trouble.as_ref().filter(|_| begins) {
            client.down(vm)?;
            // Whoever asks again at once is not to find it there. If it stays, that is told then.
            is_gone(client, vm);
            return Err(Failure::new(format!("'{vm}' was not started: {why}")));
        }
        if begun.elapsed() >= args.wait {
            let why = now
                .trouble
                .clone()
                .unwrap_or_else(|| format!("it is to run on {}", now.primary));
            return Err(Failure::new(format!(
                "'{vm}' is not protected after {} s: {why} (it is not taken down: tandem status shows what becomes \
                 of it)",
                args.wait.as_secs()
            )));
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether both sides of a pair say that they are one.
pub fn is_protected(vm: &VmStatus) -> bool {
    let backup = vm.backup.as_ref().and_then(|backup| vm.roles.get(backup));
    vm.named.is_none() && vm.role == Some(Role::Primary) && backup == Some(&Role::Backup)
}
