//! The service: the view machine behind HTTP, on a durable state.

use crate::protocol::{MAX_REQUEST, Reply, Request};
use crate::watch::{EVERY, History};
use crate::{Change, HostId, Report, Settings, State, Store, ViewError, ViewEvent, Views, VmId};
use api::{Asker, Limits, Stats, StatusCode};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tls::{Peer, Security};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;

/// Hosts stay connected, command lines ask and go.
const LIMITS: Limits = Limits::for_bodies(MAX_REQUEST);

/// Serves the views on `listener` until `shutdown` ends, inside a tokio runtime with time and I/O,
/// going on from what [`Store::open`] gave.
///
/// Nobody is told of a change before it is durable. While it cannot be made durable, every request
/// fails.
///
/// Who may ask is `security`'s to say. Of those who show certificates a host speaks of itself only, and of the machines
/// its certificate names; what has a machine end is an operator's; everyone may ask for the status.
pub async fn serve(
    listener: TcpListener,
    security: Security,
    store: Store,
    state: State,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) {
    let stats = Arc::new(Stats::default());
    let service = Arc::new(Service {
        inner: Mutex::new(Inner {
            views: Views::new(state, settings),
            store,
            unsaved: false,
            stats: Arc::clone(&stats),
            history: History::default(),
        }),
        stats: Arc::clone(&stats),
        events: watch::channel(Arc::from("")).0,
    });
    let watched = Arc::clone(&service);
    let router = crate::routes::router(Arc::clone(&service));
    let ticks = async {
        let interval = Duration::from_millis(settings.ping_interval_ms.max(1));
        let mut interval = tokio::time::interval(interval);
        // After a pause of this process, hosts get their time again.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let service = Arc::clone(&service);
            let tick = tokio::task::spawn_blocking(move || service.tick());
            // A bug anywhere in the machine shows here at the latest, and ends the service.
            match tick.await.map_err(JoinError::try_into_panic) {
                Ok(()) => {}
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                Err(Err(_cancelled)) => return,
            }
        }
    };
    let watching = async {
        let mut times = tokio::time::interval(EVERY);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            let service = Arc::clone(&watched);
            // A bug in it shows at the next tick of the service.
            let _ = tokio::task::spawn_blocking(move || service.look()).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = api::serve(listener, security, LIMITS, router, stats, shutdown) => {}
        () = ticks => {}
    }
}

pub(crate) struct Service {
    inner: Mutex<Inner>,
    pub(crate) stats: Arc<Stats>,
    /// What those who watch are told, the last of it.
    pub(crate) events: watch::Sender<Arc<str>>,
}

struct Inner {
    views: Views,
    store: Store,
    /// The views have changes that may not be on the disk. Nobody was told of these.
    unsaved: bool,
    stats: Arc<Stats>,
    history: History,
}

impl Service {
    /// The machine; one that a panic left half-changed is served no more.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no earlier request panicked")
    }

    fn tick(&self) {
        let mut inner = self.lock();
        if let Err(error) = inner.handle(&ViewEvent::Tick) {
            tracing::error!(%error, "tick");
        }
    }

    /// Answers `request`.
    ///
    /// # Errors
    /// 403: it is not the asker's to make.
    pub(crate) fn answer(&self, asker: &Asker, request: Request) -> Result<Reply, api::Failure> {
        let allowed = asker.may(&self.stats.refused, |peer| may_ask(peer, &request));
        allowed.map_err(|reason| api::Failure::new(StatusCode::FORBIDDEN, reason))?;
        Ok(self.handle(request))
    }

    /// What is so, if all of it is on disk.
    pub(crate) fn status(&self) -> Result<crate::Status, ViewError> {
        let mut inner = self.lock();
        inner.save()?;
        Ok(inner.views.status())
    }

    /// Looks at what is so now, and tells those who watch. What could not be made durable nobody is told.
    fn look(&self) {
        let mut inner = self.lock();
        if inner.save().is_err() {
            return;
        }
        let status = inner.views.status();
        inner.history.look(&status);
        if self.events.receiver_count() > 0 {
            let event = inner.history.event(&status);
            self.events.send_replace(event.into());
        }
    }

    /// What was seen, as JSON.
    pub(crate) fn history(&self) -> Result<String, ViewError> {
        let mut inner = self.lock();
        inner.save()?;
        Ok(inner.history.all())
    }

    fn handle(&self, request: Request) -> Reply {
        let mut inner = self.lock();
        let outcome = match request {
            Request::Ping(ping) => {
                let host = ping.host.clone();
                let handled = inner.handle(&ViewEvent::Ping(ping));
                handled.map(|()| Reply::Orders(inner.views.orders(&host)))
            }
            Request::Report(report) => inner
                .handle(&ViewEvent::Report(report))
                .map(|()| Reply::Done),
            Request::Register(wish) => {
                let vm = wish.vm.clone();
                let handled = inner.handle(&ViewEvent::Register(wish));
                handled.map(|()| {
                    let registered = inner.views.registered(&vm);
                    Reply::Registered(registered.expect("it has just been registered"))
                })
            }
            Request::Down { vm } => inner.handle(&ViewEvent::Down(vm)).map(|()| Reply::Done),
            Request::Host(ping) => {
                let host = ping.host.clone();
                let handled = inner.handle(&ViewEvent::Host(ping));
                handled.map(|()| Reply::HostOrders(inner.views.host_orders(&host)))
            }
            Request::Up(wish) => {
                let vm = wish.vm.clone();
                let handled = inner.handle(&ViewEvent::Up(wish));
                handled.map(|()| {
                    let registered = inner.views.registered(&vm);
                    Reply::Registered(registered.expect("it has just been placed"))
                })
            }
            Request::Drain { host, drained } => inner
                .handle(&ViewEvent::Drain(host, drained))
                .map(|()| Reply::Done),
            Request::Failover { vm } => {
                inner.handle(&ViewEvent::Failover(vm)).map(|()| Reply::Done)
            }
            Request::Status => inner
                .save()
                .map(|()| Reply::Status(inner.views.status()))
                .map_err(Failure::Unsaved),
        };
        outcome.unwrap_or_else(|failure| match failure {
            Failure::Rejected(why) => Reply::Refused {
                reason: why.to_string(),
            },
            Failure::Unsaved(error) => {
                tracing::error!(%error, "not durable");
                Reply::Failed {
                    reason: error.to_string(),
                }
            }
        })
    }
}

/// Whether `peer`, who is no operator, may ask for this.
fn may_ask(peer: &Peer, request: &Request) -> Result<(), String> {
    let is_of = |host: &HostId| {
        if peer.host() == Some(host.as_str()) {
            return Ok(());
        }
        Err(format!("{peer} may not speak for host {host}"))
    };
    let may_run = |vm: &VmId| peer.is_host_of(vm.as_str());
    match request {
        Request::Ping(ping) => {
            is_of(&ping.host)?;
            ping.held.iter().try_for_each(|held| may_run(&held.vm))?;
            ping.waits.iter().try_for_each(may_run)?;
            ping.of.iter().try_for_each(may_run)
        }
        Request::Host(ping) => is_of(&ping.host),
        Request::Report(Report::Solo { host, vm, .. } | Report::Ended { host, vm, .. }) => {
            is_of(host)?;
            may_run(vm)
        }
        Request::Register(wish) => {
            // One that the service is to choose may be any.
            let primary = wish
                .primary
                .as_ref()
                .ok_or("it takes an operator to have a host chosen")?;
            is_of(primary)?;
            may_run(&wish.vm)
        }
        Request::Down { .. }
        | Request::Up(_)
        | Request::Drain { .. }
        | Request::Failover { .. } => Err(format!("{peer} is no operator")),
        Request::Status => Ok(()),
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Rejected(#[from] crate::Rejected),
    #[error(transparent)]
    Unsaved(#[from] ViewError),
}

impl Inner {
    /// Takes an event, and makes what changed durable.
    fn handle(&mut self, event: &ViewEvent) -> Result<(), Failure> {
        self.save()?;
        let changes = self.views.handle(event)?;
        for change in &changes {
            self.history.changed(change);
            match change {
                Change::ClaimIgnored(..) => tracing::debug!("{change}"),
                _ => tracing::info!("{change}"),
            }
        }
        self.unsaved = changes.iter().any(Change::is_durable);
        Ok(self.save()?)
    }

    fn save(&mut self) -> Result<(), ViewError> {
        if self.unsaved {
            let began = Instant::now();
            self.store.save(self.views.state())?;
            self.stats.store.add(began.elapsed());
            self.unsaved = false;
        }
        Ok(())
    }
}
