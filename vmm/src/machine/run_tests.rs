//! Whose doing it is that a machine stops, and what is told of it.

use super::super::reset::tests::machine;
use super::*;
use crate::devices::DeviceError;
use replay::StateWindow;

/// Brings one arrival; takes what leaves, and perhaps the end.
#[derive(Default)]
struct Once {
    arrival: Option<Arrival>,
    refuses: Option<InputsError>,
    ends: Vec<u32>,
}

impl Inputs for Once {
    fn answer(&mut self, _: &Here, _: Question) -> Result<u64, InputsError> {
        Ok(0)
    }

    fn arrival(&mut self, _: &Situation) -> Result<Option<Delivery>, InputsError> {
        let anchor = Anchor::NONE;
        let arrival = self.arrival.take();
        Ok(arrival.map(|arrival| Delivery { arrival, anchor }))
    }

    fn output(&mut self, _: &Here, _: Output) -> Result<(), InputsError> {
        Ok(())
    }

    fn next_stop(&mut self, _: &Situation) -> Result<Stop, InputsError> {
        Ok(Stop::Never)
    }

    fn kicked(&mut self, _: Clock) -> Result<(), InputsError> {
        Ok(())
    }

    fn state_due(&mut self, _: &Here) -> Result<Option<StateWindow>, InputsError> {
        Ok(None)
    }

    fn state(&mut self, _: &Here, _: StateWindow, _: u64) -> Result<(), InputsError> {
        Ok(())
    }

    fn end(&mut self, _: &Here, code: u32, _: u64) -> Result<(), InputsError> {
        self.ends.push(code);
        self.refuses.take().map_or(Ok(()), Err)
    }
}

#[test]
fn a_halt_that_nothing_ends_is_the_guests_doing_and_is_noted() {
    let mut inputs = Once::default();
    let error = machine().run(&mut inputs).unwrap_err();
    assert!(error.is_the_guests(), "{error}");
    assert_eq!(inputs.ends, [FAULT_STATUS]);
}

/// A machine for Linux that halts with interrupts disabled, having written this exit status.
fn halts(status: u64) -> Ended {
    let mut machine = machine();
    machine.config.board = crate::machine::BoardKind::Pc;
    machine.board = Board::new(&machine.config);
    let write = Write {
        bus: crate::engine::Bus::Mmio,
        address: crate::devices::exit_status::ADDRESS,
        size: 1,
        value: status,
    };
    let (ask, out) = (&mut |_: Question| Ok(0), &mut Vec::new());
    machine
        .board
        .write(&machine.memory, write, ask, out)
        .unwrap();
    let mut inputs = Once::default();
    let ended = machine.run(&mut inputs).unwrap();
    assert_eq!(inputs.ends, [ended.code]);
    ended
}

#[test]
fn a_linux_guest_that_halts_for_good_ends_its_machine() {
    let ended = halts(0);
    assert_eq!((ended.code, ended.stopped), (HALT_STATUS, false));
    assert_eq!(halts(7).code, 7);
}

#[test]
fn the_end_of_a_disk_request_nobody_made_is_not_the_guests_doing() {
    let data = Vec::new();
    let arrival = Some(Arrival::DiskDone {
        tag: 7,
        ok: true,
        data,
    });
    let mut inputs = Once {
        arrival,
        ..Once::default()
    };
    let error = machine().run(&mut inputs).unwrap_err();
    assert!(!error.is_the_guests(), "{error}");
    let MachineError::Board { error, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(
        error,
        BoardError::Device(DeviceError::UnknownTag(7))
    ));
    assert!(inputs.ends.is_empty(), "the log has no such end");
}

#[test]
fn why_the_guest_failed_is_told_though_it_could_not_be_noted() {
    let lost = "the backup is gone";
    let mut inputs = Once {
        refuses: Some(InputsError::Halted(lost.into())),
        ..Once::default()
    };
    let error = machine().run(&mut inputs).unwrap_err();
    let line = error.to_string();
    assert!(line.contains(lost), "{line}");
    assert!(line.contains("halted with interrupts disabled"), "{line}");
    assert!(!error.is_the_guests(), "nobody was told of an end");
    assert!(error.divergence().is_none());
}
