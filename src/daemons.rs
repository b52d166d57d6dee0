//! `tandem arbiter`, `tandem viewservice`, and what every daemon does.

use crate::cli::{ArbiterArgs, SecurityArgs, ViewserviceArgs};
use crate::failure::{During, Failure, Outcome};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use replica::HostPort;
use tls::Security;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Descriptors a server can use: some times the connections it keeps, as one that is closed may linger.
const DESCRIPTORS: u64 = 8192;

/// Runs `serve` on a runtime of one thread, which is plenty for a few requests a second.
pub(crate) fn on_runtime(serve: impl Future<Output = Outcome>) -> Outcome {
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

pub(crate) fn listen(address: &HostPort, security: &Security) -> Outcome<TcpListener> {
    let listener = address.listen().during(format_args!(
        "cannot listen on {address} (is the port taken?)"
    ))?;
    let here = listener.local_addr().during("cannot listen")?;
    security.permit(here.ip())?;
    listener.set_nonblocking(true).during("cannot listen")?;
    TcpListener::from_std(listener).during("cannot listen")
}

/// Says where, once there is something to serve.
pub(crate) fn say_where(listener: &TcpListener) -> Outcome {
    let address = listener.local_addr().during("cannot listen")?;
    crate::sayln!("listening on {address}");
    Ok(())
}

/// Ends when this process is asked to.
pub(crate) fn asked_to_end() -> Outcome<impl Future<Output = ()>> {
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
