//! `tandem arbiter`, `tandem viewservice`, `tandem status`.

use crate::cli::{ArbiterArgs, DownArgs, SecurityArgs, StatusArgs, ViewserviceArgs};
use crate::failure::{During, Failure, Outcome};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use replica::HostPort;
use terminal::table::{Align, Table};
use tls::Security;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Descriptors a server can use: some times the connections it keeps, as one that is closed may linger.
const DESCRIPTORS: u64 = 8192;

/// Runs `serve` on a runtime of one thread, which is plenty for a few requests a second.
fn on_runtime(serve: impl Future<Output = Outcome>) -> Outcome {
    allow_connections();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during("cannot start the server")?
        .block_on(serve)
}

/// Lets this process have as many connections as it may: replicas stay connected, and strangers come on top.
/// Where that is fewer than a server keeps, it closes the least useful as it runs out.
fn allow_connections() {
    let (_, most) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(e) => return tracing::warn!("the limit of connections is not known: {e}"),
    };
    if let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, most.min(DESCRIPTORS), most) {
        tracing::warn!("the limit of connections stays as it is: {e}");
    }
}

/// How a daemon that is a service of the cluster protects its connections.
fn service(args: &SecurityArgs) -> Outcome<Security> {
    let security = args.open()?;
    match security.identity().map(|own| own.is_service()) {
        None | Some(Ok(())) => Ok(security),
        Some(Err(_)) => Err(Failure::new(
            "the identity in --tls is no service's (tandem init --service NAME makes one)",
        )),
    }
}

fn listen(address: &HostPort, security: &Security) -> Outcome<TcpListener> {
    let listener = address.listen().during(format_args!(
        "cannot listen on {address} (is the port taken?)"
    ))?;
    let here = listener.local_addr().during("cannot listen")?;
    security.permit(here.ip())?;
    listener.set_nonblocking(true).during("cannot listen")?;
    TcpListener::from_std(listener).during("cannot listen")
}

/// Says where, once there is something to serve.
fn say_where(listener: &TcpListener) -> Outcome {
    let address = listener.local_addr().during("cannot listen")?;
    crate::sayln!("listening on {address}");
    Ok(())
}

/// Ends when this process is asked to.
fn asked_to_end() -> Outcome<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).during("cannot watch signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).during("cannot watch signals")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Serves flags.
pub fn arbiter(args: &ArbiterArgs) -> Outcome {
    let security = service(&args.security)?;
    on_runtime(async {
        let end = asked_to_end()?;
        // First: a port that is taken makes no store.
        let listener = listen(&args.listen, &security)?;
        let store = open_flags(args)?;
        say_where(&listener)?;
        testandset::serve(listener, security, store, end).await;
        Ok(())
    })
}

/// Opens the store, and says what the operator must know of it.
fn open_flags(args: &ArbiterArgs) -> Outcome<testandset::Store> {
    let (mut store, recovery) = if args.existing {
        testandset::Store::open_existing(&args.store)?
    } else {
        testandset::Store::open(&args.store)?
    };
    if recovery.made {
        crate::complain!(
            "tandem: made a new, empty store in {}: machines begun under another store are not known \
             here, and could be begun a second time (if there was a store, stop this arbiter and put it \
             back)",
            args.store.display()
        );
    }
    if recovery.cut_bytes > 0 {
        crate::complain!(
            "tandem: cut {} bytes of an unfinished record off the store",
            recovery.cut_bytes
        );
    }
    if let Some(why) = recovery.read_only {
        crate::complain!("tandem: no flag can be set yet, those that are set are told: {why}");
    }
    crate::sayln!("flags that are set: {}", recovery.flags);
    if let Ok(id) = store.id() {
        crate::sayln!("store {id}");
    }
    Ok(store.with_bounds(testandset::Bounds {
        flags_per_client: args.flags_per_client,
        ..testandset::Bounds::default()
    }))
}

/// Keeps views.
pub fn viewservice(args: &ViewserviceArgs) -> Outcome {
    let security = service(&args.security)?;
    let (store, state) = viewservice::Store::open(&args.store)?;
    on_runtime(async {
        let end = asked_to_end()?;
        let listener = listen(&args.listen, &security)?;
        say_where(&listener)?;
        viewservice::serve(
            listener,
            security,
            store,
            state,
            viewservice::Settings::default(),
            end,
        )
        .await;
        Ok(())
    })
}

fn client(service: &HostPort, security: &SecurityArgs) -> Outcome<viewservice::Client> {
    let client = viewservice::Client::new(&service.to_string())?;
    Ok(client.secured(security.open()?))
}

/// Asks for machines and hosts.
pub fn status(args: &StatusArgs) -> Outcome {
    let status = client(&args.viewservice, &args.security)?.status()?;
    if args.json {
        crate::sayln!("{}", serde_json::to_string(&status).during("report")?);
        return Ok(());
    }
    let columns = [
        ("vm", Align::Left),
        ("role", Align::Left),
        ("view", Align::Right),
        ("primary", Align::Left),
        ("backup", Align::Left),
        ("lag ms", Align::Right),
    ];
    let mut table = Table::new(&columns);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for vm in &status.vms {
        table.row([
            vm.name.to_string(),
            or_dash(vm.role.map(|role| role.to_string())),
            vm.view.to_string(),
            vm.primary.to_string(),
            or_dash(vm.backup.as_ref().map(ToString::to_string)),
            or_dash(vm.lag_ms.map(|lag| lag.to_string())),
        ]);
    }
    terminal::say(&table.to_string());
    crate::sayln!("");
    let mut table = Table::new(&[
        ("host", Align::Left),
        ("address", Align::Left),
        ("state", Align::Left),
    ]);
    for host in &status.hosts {
        let state = serde_json::to_string(&host.state).during("report")?;
        let state = state.trim_matches('"').to_owned();
        table.row([
            host.name.to_string(),
            host.address.as_str().to_owned(),
            state,
        ]);
    }
    terminal::say(&table.to_string());
    Ok(())
}

/// Has a protected machine stopped.
pub fn down(args: &DownArgs) -> Outcome {
    let client = client(&args.viewservice, &args.security)?;
    Ok(client.down(&viewservice::VmId::new(args.vm.as_str())?)?)
}
