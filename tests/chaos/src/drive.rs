//! A run under way: one fault after the other, each seen to its end.

use crate::Spec;
use crate::hosts::Hosts;
use crate::machine::{Machine, PairedOn};
use crate::plan::{Fault, Plan, Step};
use crate::report::{Became, Report};
use crate::services::{Service, Services};
use crate::shapes::Shape;
use check::{Load, LoadOptions, Pace};
use kit::guest::Served;
use kit::round::silent;
use kit::{During, KitError, KitResult};
use std::time::{Duration, Instant};
use terminal::sayln;
use viewservice::Client;

/// What clients do in a second at most, all of them together: a run of an hour is kept in memory, and judged.
const OPS_A_SECOND: u32 = 400;
/// How long links flap in one way.
const FLAP: Duration = Duration::from_millis(300);
/// Longest time for the viewservice to know what the replicas know: some pings.
const TOLD: Duration = Duration::from_secs(60);

/// The load of a run: few enough operations that all of them can be judged.
pub(crate) fn load_options(spec: &Spec, guest: &Served, seed: u64) -> LoadOptions {
    let seconds = usize::try_from(spec.lasts.as_secs()).unwrap_or(usize::MAX);
    LoadOptions {
        pace: Pace::AtMost(OPS_A_SECOND),
        // The time faults last, and what it takes to get over the last one, many times over.
        max_ops: seconds
            .saturating_add(600)
            .saturating_mul(2 * OPS_A_SECOND as usize),
        reply_limit: guest.patience,
        ..kit::round::load_options(guest, spec.clients, seed)
    }
}

/// Everything that runs.
pub(crate) struct Drive<'a> {
    // Before the machine, whose end it must not see.
    pub(crate) load: Load,
    pub(crate) machine: Machine<'a>,
    services: Services<'a>,
    hosts: &'a Hosts,
    patience: Duration,
}

impl<'a> Drive<'a> {
    pub(crate) fn new(
        hosts: &'a Hosts,
        services: Services<'a>,
        machine: Machine<'a>,
        load: Load,
        patience: Duration,
    ) -> Self {
        Self {
            load,
            machine,
            services,
            hosts,
            patience,
        }
    }

    /// Makes faults for as long as `spec` says, and adds up in `report` what came of them. The pair at the end.
    pub(crate) fn go(&mut self, spec: &Spec, report: &mut Report) -> KitResult<PairedOn> {
        let begun = Instant::now();
        let mut pair = self.settle()?;
        for step in Plan::new(report.seed) {
            std::thread::sleep(step.calm);
            if begun.elapsed() >= spec.lasts || self.load.broken() > 0 {
                break;
            }
            let at_s = begun.elapsed().as_secs_f64();
            let what = |why| KitError::During {
                what: format!("{} at {at_s:.1} s", step.fault),
                why: Box::new(why),
            };
            let made = Instant::now();
            let dropped = self.make(&step, pair).map_err(what)?;
            let healed = Instant::now();
            let after = self.settle().map_err(what)?;
            let became = Became::of(pair, after);
            let took = (healed.elapsed(), made.elapsed());
            report.add(step.fault, became, dropped, took.0);
            if !spec.json {
                sayln!(
                    "{at_s:7.1} s  {:16} {became}, all well again after {:.2} s",
                    step.fault.to_string(),
                    took.1.as_secs_f64()
                );
            }
            pair = after;
        }
        self.agreed(pair)?;
        report.views = pair.view;
        Ok(pair)
    }

    /// Waits until every client was served twice from now on, and the machine is protected. A client that has noticed
    /// something ends that.
    fn settle(&mut self) -> KitResult<PairedOn> {
        for _ in 0..2 {
            let now = self.load.epoch().now_ns();
            if !self.load.wait_all_replied(now, self.patience) {
                return Err(silent(&self.load));
            }
        }
        self.machine.wait_protected(self.patience)
    }

    /// Makes a fault of `pair`, and heals it. How many packets were dropped.
    fn make(&mut self, step: &Step, pair: PairedOn) -> KitResult<u64> {
        if let Some(service) = step.fault.service() {
            self.services.kill(service)?;
        }
        match step.fault {
            Fault::Shape(Shape::PrimaryStops) => self.machine.stop_for(pair.primary, step.lasts)?,
            Fault::Shape(Shape::BackupStops) => self.machine.stop_for(pair.backup, step.lasts)?,
            Fault::Shape(shape) => return self.cut(shape, step.lasts, pair),
            Fault::KillPrimary => self.machine.kill(pair.primary)?,
            Fault::KillBackup => self.machine.kill(pair.backup)?,
            Fault::KillSpare => {
                if let Some(spare) = self.machine.spare(pair) {
                    self.machine.kill(spare)?;
                }
            }
            Fault::KillJoiner => self.kill_joiner(step.lasts, pair)?,
            Fault::KillArbiter | Fault::KillViews => std::thread::sleep(step.lasts),
        }
        self.services.mend()?;
        Ok(0)
    }

    fn cut(&mut self, shape: Shape, lasts: Duration, pair: PairedOn) -> KitResult<u64> {
        let (begun, mut dropped) = (Instant::now(), 0);
        loop {
            for (from, to) in shape.cuts(pair.primary, pair.backup) {
                self.hosts.cut(from, to, shape.rule())?;
            }
            match shape {
                Shape::Clients => self.hosts.cut_clients()?,
                Shape::ArbiterKilled | Shape::ViewsKilled => {
                    std::thread::sleep(lasts / 2);
                    self.services.mend()?;
                }
                _ => {}
            }
            let left = lasts.saturating_sub(begun.elapsed());
            if shape != Shape::Flapping {
                std::thread::sleep(left);
            } else {
                std::thread::sleep(FLAP);
            }
            dropped += self.hosts.dropped()?;
            self.hosts.heal()?;
            if shape != Shape::Flapping || left < 2 * FLAP {
                return Ok(dropped);
            }
            std::thread::sleep(FLAP);
        }
    }

    /// Kills the primary, and then the replica that waits, while it is given the machine: `late` after that begins.
    fn kill_joiner(&mut self, late: Duration, pair: PairedOn) -> KitResult {
        let Some(spare) = self.machine.spare(pair) else {
            return Ok(());
        };
        let from_ns = vmm::hostclock::monotonic_ns();
        self.machine.kill(pair.primary)?;
        if self
            .machine
            .wait_joining(pair.backup, from_ns, self.patience)
        {
            std::thread::sleep(late);
        }
        // It may be the backup by now; the machine goes on alone in either case.
        self.machine.kill(spare)
    }

    /// Waits until the viewservice, too, says that the machine is this pair.
    fn agreed(&self, pair: PairedOn) -> KitResult {
        let during = "the viewservice does not say what the replicas do";
        let address = Service::Views.address().to_string();
        // The network is nobody else's.
        let client = Client::new(&address).during(during)?;
        let client = client.secured(tls::Security::Insecure);
        let deadline = Instant::now() + TOLD;
        loop {
            let said = client.status();
            if let Ok(status) = &said
                && let Some(vm) = status.vms.first()
                && vm.view.0 == pair.view
                && vm.primary.as_str() == pair.primary.name()
                && vm
                    .backup
                    .as_ref()
                    .is_some_and(|it| it.as_str() == pair.backup.name())
                && vm.named.is_none()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let why = format!("{said:?}, not {pair:?}").into();
                let what = during.into();
                return Err(KitError::During { what, why });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
