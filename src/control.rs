//! `tandem protect`, `tandem move`, `tandem failover`.

use crate::cli::{AskArgs, FailoverArgs, MoveArgs, ProtectArgs};
use crate::failure::{During, Failure, Outcome};
use control::{Leader, Request};
use replica::Told;
use replica::role::ViewNumber;
use serde::Serialize;
use testandset::VmId;

/// What a command prints with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    vm: &'a VmId,
    result: &'static str,
    /// The view the machine is in by then.
    view: ViewNumber,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
}

/// Gives a machine that runs alone a new backup.
pub fn protect(args: &ProtectArgs) -> Outcome {
    let backup = args.backup.to_string();
    let leader = find(&args.ask)?;
    let last = ask(&leader, &Request::Protect { backup }, |answer| {
        !matches!(answer, Told::Joining { .. } | Told::Sent { .. })
    })?;
    let vm = leader.vm();
    let (view, backup) = match &last {
        Told::Protected { view, backup } => (*view, backup),
        other => return Err(refused(vm, "has got no new backup", other)),
    };
    if args.ask.json {
        return report(&Report {
            vm,
            result: "protected",
            view,
            backup: Some(backup),
            to: None,
        });
    }
    crate::sayln!("'{vm}' is protected, view {view}: backup at {backup}");
    Ok(())
}

/// Moves a machine that runs alone to another host.
pub fn move_to(args: &MoveArgs) -> Outcome {
    let to = args.to.to_string();
    let leader = find(&args.ask)?;
    let last = ask(&leader, &Request::Move { to }, |answer| {
        !matches!(
            answer,
            Told::Joining { .. } | Told::Sent { .. } | Told::Protected { .. }
        )
    })?;
    left(leader.vm(), args.ask.json, &last, "moved", "was not moved")
}

/// Leaves a machine to its backup.
pub fn failover(args: &FailoverArgs) -> Outcome {
    if let Some(service) = &args.viewservice {
        return crate::cluster::failover::failover(&args.ask, service, &args.security);
    }
    let leader = find(&args.ask)?;
    let last = ask(&leader, &Request::Failover { leave: args.leave }, |_| true)?;
    let not = "was not left to its backup";
    left(leader.vm(), args.ask.json, &last, "failed_over", not)
}

fn find(args: &AskArgs) -> Outcome<Leader> {
    let vm = VmId::new(args.vm.as_str())?;
    Ok(Leader::find(&vm, args.control.as_deref())?)
}

/// Asks, and shows what comes before the `last` answer.
fn ask(leader: &Leader, request: &Request, last: impl Fn(&Told) -> bool) -> Outcome<Told> {
    let progress = Progress::default();
    Ok(leader.ask(request, last, |answer| progress.tell(answer))?)
}

/// How far a machine is on its way, on a terminal; nothing elsewhere.
struct Progress(indicatif::ProgressBar);

impl Default for Progress {
    fn default() -> Self {
        Self(indicatif::ProgressBar::new_spinner())
    }
}

impl Progress {
    fn tell(&self, answer: &Told) {
        tracing::info!("{answer:?}");
        let words = match answer {
            Told::Joining { backup } => format!("to {backup}"),
            Told::Sent { bytes } => format!("{} MiB sent", bytes >> 20),
            _ => return,
        };
        self.0.set_message(words);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn report(report: &Report<'_>) -> Outcome {
    crate::sayln!("{}", serde_json::to_string(report).during("report")?);
    Ok(())
}

/// Tells of a machine that this host's replica has left, if it has.
fn left(vm: &VmId, json: bool, last: &Told, result: &'static str, not: &str) -> Outcome {
    let (view, to, follows) = match last {
        Told::Left { view, to, follows } => (*view, to, *follows),
        other => return Err(refused(vm, not, other)),
    };
    if json {
        return report(&Report {
            vm,
            result,
            view,
            backup: None,
            to: Some(to),
        });
    }
    match result {
        "moved" => crate::sayln!("'{vm}' has moved, view {view}: it runs at {to}"),
        _ if follows => crate::sayln!(
            "'{vm}' is left to its backup at {to}, view {view}; the replica here waits to be its new one"
        ),
        _ => crate::sayln!("'{vm}' is left to its backup at {to}, view {view}"),
    }
    Ok(())
}

/// That it is not done.
fn refused(vm: &VmId, not: &str, last: &Told) -> Failure {
    match last {
        Told::Failed { why } => Failure::new(format!("'{vm}' {not}: {why}")),
        other => Failure::new(format!(
            "the replica of '{vm}' gave an answer to something else: {other:?}"
        )),
    }
}
