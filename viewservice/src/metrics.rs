//! What `/metrics` says of the views.

use crate::{HostState, Role, Status};
use api::{MetricKind, Page, Stats};
use std::collections::BTreeMap;

/// The page.
pub(crate) fn page(status: &Status, stats: &Stats) -> Page {
    let mut page = Page::default();
    hosts(status, &mut page);
    machines(status, &mut page);
    stats.show(&mut page);
    page
}

fn hosts(status: &Status, page: &mut Page) {
    let count = |state| {
        status
            .hosts
            .iter()
            .filter(|host| host.state == state)
            .count()
    };
    let name = "tandem_hosts";
    page.head(
        name,
        MetricKind::Gauge,
        "Hosts by what is known of their life.",
    );
    for (word, state) in [
        ("live", HostState::Live),
        ("dead", HostState::Dead),
        ("unheard", HostState::Unheard),
    ] {
        page.sample(name, &[("state", word)], count(state));
    }
    let spares = status.hosts.iter().filter(|host| host.spare).count();
    let help = "Hosts that live and are in no machine's view.";
    page.one("tandem_spare_hosts", MetricKind::Gauge, help, spares);
}

fn machines(status: &Status, page: &mut Page) {
    let mut states = BTreeMap::from([
        ("protected", 0),
        ("solo", 0),
        ("unknown", 0),
        ("stopping", 0),
    ]);
    for vm in &status.vms {
        let state = match (vm.stopping, vm.role) {
            (true, _) => "stopping",
            (false, Some(Role::Primary | Role::Backup)) => "protected",
            (false, Some(Role::Solo)) => "solo",
            (false, None) => "unknown",
        };
        *states.entry(state).or_default() += 1;
    }
    let name = "tandem_machines";
    page.head(
        name,
        MetricKind::Gauge,
        "Machines by whether they are protected.",
    );
    for (state, count) in states {
        page.sample(name, &[("state", state)], count);
    }
    let name = "tandem_machine_view";
    page.head(name, MetricKind::Gauge, "The view each machine runs in.");
    for vm in &status.vms {
        page.sample(name, &[("vm", vm.name.as_str())], vm.view.0);
    }
    let name = "tandem_machine_lag_seconds";
    page.head(
        name,
        MetricKind::Gauge,
        "How far each machine's backup is behind.",
    );
    for vm in &status.vms {
        if let Some(lag_ms) = vm.lag_ms {
            let lag = api::Seconds(lag_ms.saturating_mul(1000));
            page.sample(name, &[("vm", vm.name.as_str())], lag);
        }
    }
}
