//! The first places at which a machine is looked at, on both engines: an arrival may come at any of them.

use super::common::{have_kvm, machine};
use replay::{
    Arrival, Clock, Delivery, ExecPoint, Here, Inputs, InputsError, Output, Question,
    RegisterDigest, Situation, StateWindow, Stop,
};
use replica::machine::{Blueprint, EngineChoice, Images, prepare};
use tandem::node::library::Library;
use tandem::node::single::on_vcpu_thread;
use vmm::machine::MachineConfig;

/// Places looked at: those of ring 0, and some of the program's.
const PLACES: usize = 16;

/// Notes where the machine stands, and brings nothing but its end.
#[derive(Default)]
struct Look(Vec<(ExecPoint, RegisterDigest)>);

impl Inputs for Look {
    fn answer(&mut self, _: &Here, _: Question) -> Result<u64, InputsError> {
        Ok(self.0.len() as u64)
    }

    fn arrival(&mut self, now: &Situation) -> Result<Option<Delivery>, InputsError> {
        self.0.push((now.here.point, now.here.registers));
        let over = self.0.len() > PLACES || now.halted;
        Ok(over.then_some(Delivery {
            arrival: Arrival::Stop,
            anchor: replay::Anchor::NONE,
        }))
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

    fn end(&mut self, _: &Here, _: u32, _: u64) -> Result<(), InputsError> {
        Ok(())
    }
}

fn places(guest: &str, engine: EngineChoice) -> Vec<(ExecPoint, RegisterDigest)> {
    let image = Library.load(guest, None).unwrap();
    let config = MachineConfig::bare(guest, image.digest(), "ip=10.77.0.2/24 gw=10.77.0.1");
    let prepared = prepare(Blueprint { config, image }, engine).unwrap();
    on_vcpu_thread("vcpu", || {
        let (mut machine, _) = prepared.boot()?;
        let mut look = Look::default();
        machine.run(&mut look)?;
        Ok(look.0)
    })
    .unwrap()
}

#[test]
fn the_registers_are_the_same_at_the_first_places_of_every_guest() {
    let _machine = machine();
    if !have_kvm("the_registers_are_the_same_at_the_first_places_of_every_guest") {
        return;
    }
    for (guest, ..) in guests::BUILT_IN {
        let [kvm, soft] =
            [EngineChoice::Kvm, EngineChoice::Soft].map(|engine| places(guest, engine));
        assert!(kvm.len() > 10, "{guest}: {} places", kvm.len());
        assert_eq!(kvm, soft, "{guest}");
    }
}
