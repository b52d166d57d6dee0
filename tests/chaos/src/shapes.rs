//! The shapes in which links are cut, replicas stopped, and services killed.

use crate::hosts::Host;

/// What is done to a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// The two replicas do not hear each other.
    PrimaryBackup,
    /// The backup does not hear its primary.
    PrimaryToBackup,
    /// The primary does not hear its backup.
    BackupToPrimary,
    /// The primary and the arbiter do not hear each other.
    PrimaryArbiter,
    /// The backup and the arbiter do not hear each other.
    BackupArbiter,
    /// The primary hears neither its backup nor the arbiter.
    PrimaryAlone,
    /// The backup hears neither its primary nor the arbiter.
    BackupAlone,
    /// Neither replica hears the viewservice.
    Views,
    /// The clients do not reach the guest.
    Clients,
    /// Of what the replicas say to each other three in ten packets are lost.
    Loss,
    /// The replicas do not hear each other for 300 ms, then do for 300 ms, and so on.
    Flapping,
    /// The primary stands still.
    PrimaryStops,
    /// The backup stands still.
    BackupStops,
    /// The arbiter is killed, then the replicas do not hear each other, then it is there again.
    ArbiterKilled,
    /// The viewservice is killed, and the replicas do not hear each other.
    ViewsKilled,
}

/// All of them.
pub const SHAPES: [Shape; 15] = [
    Shape::PrimaryBackup,
    Shape::PrimaryToBackup,
    Shape::BackupToPrimary,
    Shape::PrimaryArbiter,
    Shape::BackupArbiter,
    Shape::PrimaryAlone,
    Shape::BackupAlone,
    Shape::Views,
    Shape::Clients,
    Shape::Loss,
    Shape::Flapping,
    Shape::PrimaryStops,
    Shape::BackupStops,
    Shape::ArbiterKilled,
    Shape::ViewsKilled,
];

impl Shape {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        SHAPES
            .into_iter()
            .find(|shape| format!("{shape:?}") == name)
    }

    /// The links that are cut, each in one direction, between a primary and a backup on these hosts, and others.
    #[must_use]
    pub fn cuts(self, primary: Host, backup: Host) -> Vec<(Host, Host)> {
        use Host::{Arbiter, Views};
        let both = |one, other| vec![(one, other), (other, one)];
        match self {
            Self::PrimaryBackup
            | Self::Loss
            | Self::Flapping
            | Self::ArbiterKilled
            | Self::ViewsKilled => both(primary, backup),
            Self::PrimaryToBackup => vec![(primary, backup)],
            Self::BackupToPrimary => vec![(backup, primary)],
            Self::PrimaryArbiter => both(primary, Arbiter),
            Self::BackupArbiter => both(backup, Arbiter),
            Self::PrimaryAlone => [both(primary, backup), both(primary, Arbiter)].concat(),
            Self::BackupAlone => [both(primary, backup), both(backup, Arbiter)].concat(),
            Self::Views => [both(primary, Views), both(backup, Views)].concat(),
            Self::Clients | Self::PrimaryStops | Self::BackupStops => Vec::new(),
        }
    }

    /// What of the packets on those links is dropped, in words of nftables: all of them, unless it says less.
    #[must_use]
    pub fn rule(self) -> &'static str {
        match self {
            Self::Loss => "numgen random mod 100 < 30 ",
            _ => "",
        }
    }
}
