//! Primaries with gate and lease, over the links that the logging channel's own tests use.

#![allow(dead_code, reason = "no test file uses all of it")]

pub use logchannel_testing as wire;

use logchannel::{Connection, LinkEnd, ReceiverOptions, Sender, SenderOptions, Settings};
use replay::{Base, InputsError, LogIndex, Outlet, Output};
use replica::{GateOutlet, Gatekeeper, Lease};
use std::sync::{Arc, mpsc};
use wire::{Backup, backup};

/// Tells a test what came out.
pub struct Told(pub mpsc::Sender<(LogIndex, Output)>);

impl Outlet for Told {
    fn emit(&mut self, index: LogIndex, output: Output) -> Result<(), InputsError> {
        self.0
            .send((index, output))
            .map_err(|e| InputsError::Backend(e.to_string()))
    }
}

pub struct Primary {
    pub sender: Sender,
    pub keeper: Arc<Gatekeeper>,
    pub lease: Arc<Lease>,
    pub ended: mpsc::Receiver<LinkEnd>,
    /// What left the gate, unless the test has an outlet of its own.
    pub emitted: mpsc::Receiver<(LogIndex, Output)>,
}

impl Primary {
    /// Where a recorder would put its outputs.
    pub fn outlet(&self) -> GateOutlet {
        self.keeper.outlet(self.sender.handle())
    }
}

pub fn primary(connection: Connection, options: SenderOptions) -> Primary {
    let (tell_output, emitted) = mpsc::channel();
    let outlet = Box::new(Told(tell_output));
    Primary {
        emitted,
        ..primary_before(connection, options, outlet)
    }
}

/// A primary whose outputs go to `outlet`.
pub fn primary_before(
    connection: Connection,
    options: SenderOptions,
    outlet: Box<dyn Outlet + Send>,
) -> Primary {
    let (tell_end, ended) = mpsc::channel();
    let on_end = move |end| tell_end.send(end).unwrap();
    let lease = Lease::new();
    let unprinted = Box::new(|| None);
    let keeper = Gatekeeper::new(connection.base().index, outlet, lease.clone(), unprinted);
    Primary {
        sender: Sender::start(connection, keeper.clone(), options, on_end).unwrap(),
        keeper,
        lease,
        ended,
        emitted: mpsc::channel().1,
    }
}

pub fn pair(
    base: Base,
    settings: Settings,
    sending: SenderOptions,
    receiving: ReceiverOptions,
) -> (Primary, Backup) {
    let wire = wire::wire(base, settings);
    (
        primary(wire.primary, sending),
        backup(wire.backup, receiving),
    )
}
