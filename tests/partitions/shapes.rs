//! What is done to a pair: which links are cut, who is stopped or killed, and what has to go on meanwhile.

use crate::hosts::Host;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Nobody hears the viewservice.
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

/// Those of the gate.
pub const QUICK: [Shape; 4] = [
    Shape::PrimaryBackup,
    Shape::PrimaryToBackup,
    Shape::BackupToPrimary,
    Shape::PrimaryAlone,
];

/// What has to become of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// It stays a pair.
    Whole,
    /// One of the two goes on alone, while the links are cut.
    OneGoesOn,
    /// This replica goes on alone, while the links are cut.
    GoesOn(&'static str),
    /// It may part or not.
    Either,
}

impl Shape {
    /// The links that are cut, each in one direction.
    pub fn cuts(self) -> Vec<(Host, Host)> {
        use Host::{A, Arbiter, B, Views};
        let both = |one, other| vec![(one, other), (other, one)];
        match self {
            Self::PrimaryBackup
            | Self::Loss
            | Self::Flapping
            | Self::ArbiterKilled
            | Self::ViewsKilled => both(A, B),
            Self::PrimaryToBackup => vec![(A, B)],
            Self::BackupToPrimary => vec![(B, A)],
            Self::PrimaryArbiter => both(A, Arbiter),
            Self::BackupArbiter => both(B, Arbiter),
            Self::PrimaryAlone => [both(A, B), both(A, Arbiter)].concat(),
            Self::BackupAlone => [both(A, B), both(B, Arbiter)].concat(),
            Self::Views => [both(A, Views), both(B, Views)].concat(),
            Self::Clients | Self::PrimaryStops | Self::BackupStops => Vec::new(),
        }
    }

    /// What has to become of the pair.
    pub fn becomes(self) -> Becomes {
        match self {
            Self::PrimaryBackup | Self::PrimaryToBackup | Self::BackupToPrimary => {
                Becomes::OneGoesOn
            }
            Self::ArbiterKilled | Self::ViewsKilled => Becomes::OneGoesOn,
            Self::PrimaryAlone => Becomes::GoesOn("backup"),
            Self::BackupAlone => Becomes::GoesOn("primary"),
            Self::PrimaryArbiter | Self::BackupArbiter | Self::Views | Self::Clients => {
                Becomes::Whole
            }
            Self::Loss | Self::Flapping | Self::PrimaryStops | Self::BackupStops => Becomes::Either,
        }
    }
}
