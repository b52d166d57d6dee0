//! A replica's numbers for Prometheus: `--metrics-listen`.
//!
//! The control thread tells what it tells anyway, notices and four times a second the counters, and this keeps the
//! last of it. A thread of its own answers those who ask. Nothing of it is the vCPU's work.

use crate::cli::ReplicaArgs;
use crate::failure::{During, Outcome};
use api::{Limits, MetricKind, Page, Seconds, Stats};
use axum::Router;
use axum::routing::get;
use replica::{Counters, Handle, Notice, Role, Status};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tls::Security;
use tokio::sync::oneshot;

/// A few at a time ask, and a scraper stays connected.
const LIMITS: Limits = Limits {
    connections: 64,
    ..Limits::for_bodies(1024)
};

/// What a replica has told, and when that was last looked at.
#[derive(Debug, Default)]
pub struct Told {
    /// Of a replica that leads a pair.
    counters: Option<Counters>,
    failovers: u64,
    joins: u64,
    joins_failed: u64,
    links_lost: u64,
    unanswered: u64,
    callers_turned_away: u64,
}

/// [`Told`], where both sides find it.
pub type Shared = Arc<Mutex<Told>>;

fn lock(told: &Shared) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what a notice comes to.
pub fn note(told: &Shared, notice: &Notice<'_>) {
    let mut told = lock(told);
    match notice {
        Notice::FlagWon(_) => told.failovers += 1,
        Notice::Protected { .. } => told.joins += 1,
        Notice::JoinFailed { .. } => told.joins_failed += 1,
        Notice::ArbiterUnreachable(_) => told.unanswered += 1,
        Notice::CallerTurnedAway { so_far, .. } => told.callers_turned_away = *so_far,
        Notice::LinkEnd(_) => {
            told.links_lost += 1;
            told.counters = None;
        }
        _ => {}
    }
}

/// Takes the counters.
pub fn count(told: &Shared, counters: &Counters) {
    lock(told).counters = Some(counters.clone());
}

/// A port that is listened at, before there is a replica.
pub struct Port {
    listener: TcpListener,
    security: Security,
    vm: String,
    told: Shared,
}

impl Port {
    /// The port that `args` name, if they name one.
    ///
    /// # Errors
    /// If it cannot be listened at, or must not be.
    pub fn open(args: &ReplicaArgs) -> Outcome<Option<Self>> {
        let Some(address) = &args.metrics_listen else {
            return Ok(None);
        };
        let security = args.security.open()?;
        let listener = address.listen().during(format_args!(
            "cannot listen for --metrics-listen on {address} (is the port taken?)"
        ))?;
        let here = listener.local_addr().during("cannot listen")?;
        security.permit(here.ip())?;
        listener.set_nonblocking(true).during("cannot listen")?;
        crate::sayln!("metrics at {here}");
        Ok(Some(Self {
            listener,
            security,
            vm: args.vm.clone(),
            told: Shared::default(),
        }))
    }

    /// Where what is told is kept.
    #[must_use]
    pub fn told(&self) -> Shared {
        Arc::clone(&self.told)
    }

    /// Serves what `replica` is and has told, until the result is dropped.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn serve(self, replica: Handle) -> Outcome<Serving> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .during("cannot serve metrics")?;
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || {
            let Self {
                listener,
                security,
                vm,
                told,
            } = self;
            let stats = Arc::new(Stats::default());
            let health = {
                let replica = replica.clone();
                move || async move { health(replica.status()) }
            };
            let strangers = Arc::clone(&stats);
            let page = move || async move {
                let mut page = Page::default();
                show(&mut page, &vm, replica.status(), &lock(&told));
                strangers.show(&mut page);
                page
            };
            let router = Router::new()
                .route("/metrics", get(page))
                .route("/healthz", get(health));
            runtime.block_on(async {
                match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => {
                        let stopped = async {
                            let _ = stopped.await;
                        };
                        api::serve(listener, security, LIMITS, router, stats, stopped).await;
                    }
                    Err(e) => tracing::warn!("no metrics are served: {e}"),
                }
            });
        };
        let thread = std::thread::Builder::new().name("metrics".into());
        let thread = thread.spawn(serve).during("cannot start a thread")?;
        Ok(Serving {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A replica that is over, or has no part yet, is not what somebody wants to find here.
fn health(status: Status) -> Result<&'static str, api::Failure> {
    match status.role {
        Some(_) => Ok("ok\n"),
        None => Err(api::Failure::new(
            api::StatusCode::SERVICE_UNAVAILABLE,
            "the replica has no role",
        )),
    }
}

/// Metrics that are served.
pub struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, it serves nothing either.
            let _ = thread.join();
        }
    }
}

/// Tells all of it.
fn show(page: &mut Page, vm: &str, status: Status, told: &Told) {
    use MetricKind::{Counter, Gauge};
    let of_vm = [("vm", vm)];
    let name = "tandem_replica_role";
    page.head(
        name,
        Gauge,
        "1 for what the replica is, 0 for what it is not.",
    );
    for role in [Role::Primary, Role::Backup, Role::Solo] {
        let is = u8::from(status.role == Some(role));
        page.sample(name, &[("vm", vm), ("role", &role.to_string())], is);
    }
    let mut one = |name: &str, kind, help: &str, value: &dyn std::fmt::Display| {
        page.head(name, kind, help);
        page.sample(name, &of_vm, value);
    };
    one(
        "tandem_replica_view",
        Gauge,
        "The view it is in.",
        &status.view.0,
    );
    let lag = Seconds(status.lag_ms.saturating_mul(1000));
    let help = "How far the backup's execution is behind.";
    one("tandem_replica_lag_seconds", Gauge, help, &lag);
    let help = "Flags this replica has won: failovers, and changes of roles.";
    one(
        "tandem_replica_failovers_total",
        Counter,
        help,
        &told.failovers,
    );
    let help = "New backups that were given the machine.";
    one("tandem_replica_joins_total", Counter, help, &told.joins);
    let help = "New backups that were not given the machine.";
    one(
        "tandem_replica_joins_failed_total",
        Counter,
        help,
        &told.joins_failed,
    );
    let help = "Links to the other replica that ended.";
    one(
        "tandem_replica_links_ended_total",
        Counter,
        help,
        &told.links_lost,
    );
    let help = "Times the arbiter gave no answer.";
    one(
        "tandem_replica_arbiter_failures_total",
        Counter,
        help,
        &told.unanswered,
    );
    let help = "Callers of a backup that were no primary.";
    let callers = &told.callers_turned_away;
    one(
        "tandem_replica_callers_turned_away_total",
        Counter,
        help,
        callers,
    );
    if let Some(counters) = &told.counters {
        show_link(page, vm, counters);
    }
}

/// Tells what a replica that leads a pair counts. All of it begins anew with each link.
fn show_link(page: &mut Page, vm: &str, counters: &Counters) {
    use MetricKind::{Counter, Gauge};
    let of_vm = [("vm", vm)];
    let Counters { link, cursors, .. } = counters;
    let name = "tandem_replica_log_index";
    page.head(name, Gauge, "How far the log has come, by cursor.");
    for (cursor, index) in [
        ("appended", cursors.appended),
        ("sent", cursors.sent),
        ("acked", cursors.acked),
        ("released", cursors.released),
    ] {
        page.sample(name, &[("vm", vm), ("cursor", cursor)], index.0);
    }
    let kinds = || link.kinds.iter().map(|kind| (kind.kind.to_string(), kind));
    let name = "tandem_replica_log_entries_total";
    page.head(name, Counter, "Log entries by kind.");
    for (kind, counts) in kinds() {
        page.sample(name, &[("vm", vm), ("kind", &kind)], counts.entries);
    }
    let name = "tandem_replica_log_bytes_total";
    page.head(
        name,
        Counter,
        "Bytes of log entries by kind, without what frames add.",
    );
    for (kind, counts) in kinds() {
        page.sample(name, &[("vm", vm), ("kind", &kind)], counts.bytes);
    }
    let name = "tandem_replica_wire_bytes_total";
    page.head(name, Counter, "Bytes of the logging channel by direction.");
    for (direction, bytes) in [("sent", link.bytes_sent), ("received", link.bytes_received)] {
        page.sample(name, &[("vm", vm), ("direction", direction)], bytes);
    }
    let mut one = |name: &str, kind, help: &str, value: &dyn std::fmt::Display| {
        page.head(name, kind, help);
        page.sample(name, &of_vm, value);
    };
    let help = "Log entries the backup has not executed.";
    one(
        "tandem_replica_lag_entries",
        Gauge,
        help,
        &counters.lag.entries,
    );
    let help = "Steps of the instruction clock the backup has executed.";
    one(
        "tandem_replica_backup_steps_total",
        Counter,
        help,
        &counters.lag.executed_clock.0,
    );
    let help = "Times the guest waited for room in the log buffer.";
    one("tandem_replica_stalls_total", Counter, help, &link.stalls);
    let help = "Times the socket had no room.";
    one(
        "tandem_replica_socket_full_total",
        Counter,
        help,
        &link.socket_full,
    );
    let help = "Records of the channel that were not the other replica's.";
    one(
        "tandem_replica_forged_records_total",
        Counter,
        help,
        &link.forged,
    );
    let help = "How fast the guest may run, so that its backup keeps up.";
    let speed = Seconds(counters.speed_permille.saturating_mul(1000));
    one("tandem_replica_speed_ratio", Gauge, help, &speed);
    let help = "Time the guest was held, so that its backup keeps up.";
    let braked = Seconds(counters.braked_us);
    one(
        "tandem_replica_braked_seconds_total",
        Counter,
        help,
        &braked,
    );
    let help = "Bytes the console holds for its reader.";
    one(
        "tandem_replica_console_held_bytes",
        Gauge,
        help,
        &counters.console_held,
    );
    let help = "Whether a tether holds the two replicas together.";
    one(
        "tandem_replica_tethered",
        Gauge,
        help,
        &u8::from(counters.tied),
    );
    let name = "tandem_replica_gate_wait_seconds";
    let help = "Time from a frame's flush to its ack: what its outputs wait in the gate.";
    let bounds: Vec<_> = (0..logchannel::metrics::LATENCY_BUCKETS - 1)
        .map(|n| (1_u64 << n) - 1)
        .collect();
    let (counts, sum_us) = (&link.ack_latency_us, link.ack_latency_sum_us);
    page.histogram(name, help, &of_vm, &bounds, counts, sum_us);
}
