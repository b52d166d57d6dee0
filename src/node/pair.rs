//! A replica as a process: `tandem primary`, `tandem backup`.

use super::blueprint;
use super::library::Library;
use crate::cli::{BackupArgs, PrimaryArgs, ReplicaArgs};
use crate::events::Events;
use crate::failure::{Failure, Outcome};
use crate::host::lock::{self, Held};
use crate::metrics;
use crate::signals;
use control::{Server, Socket};
use replica::outside::Plugs;
use replica::{BackupSpec, ForTests, Ordered, PrimarySpec, Replica, ReplicaSpec};
use std::num::NonZeroU64;
use std::time::Duration;
use testandset::VmId;

/// The name of a host that was given none.
const UNNAMED: &str = "host";
/// Bytes of a MiB.
const MIB: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();

/// `tandem primary`.
pub fn primary(mut args: PrimaryArgs) -> Outcome {
    let _alone = supervised(&args.replica)?;
    let set = signals::block()?;
    let replica = spec(&args.replica)?;
    let control = Controlled::new(&args.replica, &replica.vm)?;
    let metrics = metrics::Port::open(&args.replica)?;
    let events = Events::open("primary", &args.replica, metrics.as_ref())?;
    let blueprint = blueprint::blueprint(&mut args.machine)?;
    let machine = &args.machine;
    let spec = PrimarySpec {
        replica,
        machine: blueprint,
        engine: machine.engine,
        plugs: blueprint::plugs(machine, args.replica.disk_copy),
        backup: args.backup,
        backup_host: args.backup_name,
        ordered: args.ordered.then_some(Ordered { anew: args.anew }),
        view: args.view,
        lag_max_ms: args.lag_max_ms,
        require_backup: args.require_backup,
        unlike_hosts: args.unlike_hosts,
        listen: args.listen,
        images: Box::new(Library),
        disk_reads: args.disk_read,
        for_tests: ForTests {
            processor: args.host_processor,
            last_words: args.last_words_ms.map(Duration::from_millis),
        },
    };
    let replica = Replica::primary(spec, Box::new(events))?;
    live(replica, control, metrics, set)
}

/// `tandem backup`.
pub fn backup(args: BackupArgs) -> Outcome {
    let _alone = supervised(&args.replica)?;
    let set = signals::block()?;
    let replica = spec(&args.replica)?;
    let control = Controlled::new(&args.replica, &replica.vm)?;
    let metrics = metrics::Port::open(&args.replica)?;
    let events = Events::open("backup", &args.replica, metrics.as_ref())?;
    let spec = BackupSpec {
        replica,
        listen: args.listen,
        plugs: Plugs {
            net: args.net,
            disk: args.disk,
            disk_copy: args.replica.disk_copy,
            quiet: args.quiet,
        },
        engine: args.engine,
        images: Box::new(Library),
        image: args.image,
        initrd: args.initrd,
    };
    let replica = Replica::backup(spec, Box::new(events))?;
    live(replica, control, metrics, set)
}

/// A replica that a supervisor started is the only one of its machine under that, and outlives it.
fn supervised(args: &ReplicaArgs) -> Outcome<Option<Held>> {
    let Some(path) = &args.supervised else {
        return Ok(None);
    };
    // Signals of the supervisor's terminal or session are none of its business. It leads no group: it was just made.
    nix::unistd::setsid()?;
    match lock::hold(path)? {
        Some(held) => Ok(Some(held)),
        None => Err(Failure::new(format!(
            "a process of '{}' runs under this supervisor already",
            args.vm
        ))),
    }
}

fn spec(args: &ReplicaArgs) -> Outcome<ReplicaSpec> {
    let vm = VmId::new(args.vm.as_str())?;
    let security = args.security.open()?;
    let own = security.identity();
    if let Some(why) = own
        .as_ref()
        .and_then(|own| own.is_host_of(vm.as_str()).err())
    {
        return Err(Failure::new(format!("the identity in --tls: {why}")));
    }
    let certified = own.as_ref().and_then(|own| own.host());
    let host = name(args.name.as_deref(), certified)?.unwrap_or(UNNAMED);
    Ok(ReplicaSpec {
        vm,
        host: host.to_owned(),
        arbiter: testandset::parse(&args.arbiter, &security)?,
        security,
        viewservice: args.viewservice.clone(),
        log_buffer_bytes: u64::from(args.log_buffer) << 20,
        suspect_ms: args.suspect_ms,
        handover_bytes_s: args
            .handover_mib_s
            .map(|mib| MIB.saturating_mul(mib.into())),
        die_at: args.die_at,
    })
}

/// The name of this host: that it was `given`, or that of its certificate; none, if neither is there.
///
/// # Errors
/// If they differ.
pub fn name<'a>(given: Option<&'a str>, certified: Option<&'a str>) -> Outcome<Option<&'a str>> {
    match (given, certified) {
        (Some(name), Some(certified)) if name != certified => Err(Failure::usage(format!(
            "--name is {name}, and the certificate in --tls is of host {certified}"
        ))),
        (name, certified) => Ok(name.or(certified)),
    }
}

/// A replica's control socket, which may be none, before there is a replica.
struct Controlled {
    socket: Option<Socket>,
    vm: VmId,
}

impl Controlled {
    fn new(args: &ReplicaArgs, vm: &VmId) -> Outcome<Self> {
        let socket = Socket::bind(args.control.as_deref(), vm)?;
        let vm = vm.clone();
        Ok(Self { socket, vm })
    }

    fn serve(self, replica: &Replica) -> Outcome<Option<Server>> {
        let Self { socket, vm } = self;
        let start = |socket| Server::start(socket, vm, replica.handle());
        Ok(socket.map(start).transpose()?)
    }
}

/// Waits for the replica's end; the first signal asks for it.
fn live(
    replica: Replica,
    control: Controlled,
    metrics: Option<metrics::Port>,
    set: nix::sys::signal::SigSet,
) -> Outcome {
    let handle = replica.handle();
    let _metrics = metrics.map(|port| port.serve(handle.clone())).transpose()?;
    signals::watch(set, move || handle.stop())?;
    let serving = control.serve(&replica)?;
    let outcome = replica.wait();
    // Whoever asked is told how it went.
    drop(serving);
    Ok(outcome?)
}
