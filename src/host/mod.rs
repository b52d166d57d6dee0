//! `tandem host`: the supervisor of a host, one process for each replica under it.
//!
//! ```text
//!                     orders, every 250 ms                 spawn, lock
//!   viewservice ◀───────────────────────▶ supervisor ───────────────────▶ tandem primary, tandem backup
//!        ▲                                    │  finds them by their locks        │
//!        │                                    ▼                                   │
//!        │                          port: console, events                         │
//!        └────────────────────────── what each replica is ────────────────────────┘
//! ```
//!
//! Replicas outlive it: each is in a session of its own, prints to files, and speaks to viewservice and arbiter itself.

pub mod folder;
pub mod lock;
pub mod port;
mod supervisor;
pub mod words;

use crate::cli::HostArgs;
use crate::daemons;
use crate::failure::{During, Failure, Outcome};
use crate::node::pair;
use folder::Folder;
use port::Port;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::mpsc::channel;
use supervisor::{Made, Supervisor};
use tls::Security;
use viewservice::{Address, Client, HostId, Room};
use vmm::cpu::CpuModel;
use vmm::kvm::{Host, KvmKind};
use vmm::processor::HostProcessor;
use vmm::soft::Executor;
use words::{Common, option};

/// Supervises this host's replicas until it is asked to end; they go on.
pub fn host(args: &HostArgs) -> Outcome {
    let security = args.security.open()?;
    let host = name(args, &security)?;
    // Told now, and not by each replica later.
    testandset::parse(&args.arbiter, &security)?;
    daemons::on_runtime(async {
        let end = daemons::asked_to_end()?;
        let listener = daemons::listen(&args.listen, &security)?;
        let here = listener.local_addr().during("cannot listen")?;
        if here.ip().is_unspecified() {
            return Err(Failure::usage(format!(
                "--listen {here}: replicas listen at that address, too, and say it to other hosts: name one that \
                 they reach"
            )));
        }
        let folder = Arc::new(Folder::open(&args.state)?);
        let address = match here.ip() {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let made = Made {
            address: Address::new(here.to_string())?,
            room: room(args, &security)?,
            client: Client::new(&args.viewservice.to_string())?.secured(security.clone()),
            folder: folder.clone(),
            common: Common {
                options: common(args, &host)?,
                address,
            },
            host,
        };
        daemons::say_where(&listener)?;
        let supervisor = Supervisor::new(made)?;
        let (stop, stopped) = channel();
        let works = std::thread::Builder::new()
            .name("supervisor".into())
            .spawn(move || supervisor.run(&stopped))
            .during("cannot start a thread")?;
        Port { folder }.serve(listener, security, end).await;
        // It may be gone, which the next line tells.
        let _ = stop.send(());
        works
            .join()
            .map_err(|_| Failure::new("the supervisor failed"))
    })
}

/// The name of this host.
fn name(args: &HostArgs, security: &Security) -> Outcome<HostId> {
    let own = security.identity();
    if let Some(own) = &own
        && own.host().is_none()
    {
        return Err(Failure::new(
            "the identity in --tls is no host's (tandem init --host NAME --vm '*' makes one)",
        ));
    }
    let certified = own.as_ref().and_then(|own| own.host());
    match pair::name(args.name.as_deref(), certified)? {
        Some(name) => Ok(HostId::new(name)?),
        None => Err(Failure::usage(
            "--name is needed, where there is no certificate that says it",
        )),
    }
}

/// What all replicas of this host are told.
fn common(args: &HostArgs, host: &HostId) -> Outcome<Vec<OsString>> {
    // They are started in the root folder.
    let absolute = |path: &std::path::Path| {
        std::path::absolute(path).during(format_args!("cannot find {}", path.display()))
    };
    let arbiter = match args.arbiter.strip_prefix("file:") {
        Some(folder) => {
            let mut word = OsString::from("file:");
            word.push(absolute(folder.as_ref())?);
            word
        }
        None => OsString::from(&args.arbiter),
    };
    let mut options = vec![
        option("name", host.as_str()),
        option("arbiter", arbiter),
        option("viewservice", args.viewservice.to_string()),
    ];
    if let Some(tls) = &args.security.tls {
        options.push(option("tls", absolute(tls)?));
    }
    if args.security.insecure {
        options.push("--insecure".into());
    }
    let executor = Executor::of_process();
    if executor != Executor::default() {
        options.push(option("executor", executor.name()));
    }
    if let Some(control) = &args.control {
        options.push(option("control", absolute(control)?));
    }
    Ok(options)
}

/// What this host has.
fn room(args: &HostArgs, security: &Security) -> Outcome<Room> {
    let own = security.identity();
    let any = |vms: &&[String]| vms.iter().any(|vm| vm == "*");
    let vms = own.as_ref().map(|own| own.vms()).filter(|vms| !any(vms));
    let kvm = Host::open().ok();
    let is_whole = |model: &CpuModel| {
        let missing = kvm.as_ref().map(|kvm| kvm.missing_features(*model));
        matches!(missing, Some(Ok(missing)) if missing.is_empty())
    };
    let models = CpuModel::ALL.into_iter().filter(is_whole);
    let processor = HostProcessor::of_this_host();
    let kind = kvm.as_ref().map(|_| match KvmKind::of_this_host() {
        KvmKind::Hardware => "hardware".to_owned(),
        KvmKind::Software => "software".to_owned(),
    });
    Ok(Room {
        memory_mib: match args.memory {
            Some(mib) => mib,
            None => memory_mib()? / 4 * 3,
        },
        cpu_models: models.map(|model| model.name().to_owned()).collect(),
        kvm: kind,
        maker: processor.maker_text(),
        processor: processor.to_string(),
        vms: vms.map(<[String]>::to_vec),
    })
}

/// This machine's memory, in MiB.
fn memory_mib() -> Outcome<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").during("cannot read /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|total| total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let kib =
        kib.ok_or_else(|| Failure::new("/proc/meminfo does not say MemTotal (give --memory)"))?;
    Ok(kib >> 10)
}
