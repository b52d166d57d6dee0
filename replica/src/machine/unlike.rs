//! Two hosts whose KVM runs the same guest, and how unlike their processors are.
//!
//! KVM lets the guest's instructions run on the host's processor, so whatever the architecture leaves open
//! is as that processor has it. Makers differ there, families of one maker seldom. The software engine does
//! the same on every host, so it is no party to this.

use super::setup::Origin;
use crate::error::{Outcome, ReplicaError};
use replay::ClockKind;
use vmm::processor::HostProcessor;

/// In what makers differ, as far as is known.
const OPEN: &str =
    "undefined flags, RCPPS and RSQRTPS, x87 transcendentals, which of two faults comes first";

/// How two processors differ, by what matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlike {
    /// Not of one maker.
    Makers,
    /// Of one maker, not of one family.
    Families,
}

impl Unlike {
    /// How the processors that run the guest of either differ. `None` if they do not, or if one of the two
    /// is not known or does not run the guest: [`Origin::processor`].
    ///
    /// Models and steppings are not looked at: clouds mask them, and a guest that is moved from one host of
    /// a cloud to the next is not warned either.
    #[must_use]
    pub fn between(one: Option<HostProcessor>, other: Option<HostProcessor>) -> Option<Self> {
        let (one, other) = (one?, other?);
        if one.maker != other.maker {
            return Some(Self::Makers);
        }
        (one.family != other.family).then_some(Self::Families)
    }

    /// Why that may matter.
    fn why(self) -> String {
        match self {
            Self::Makers => format!("their makers differ in what instructions leave open ({OPEN})"),
            Self::Families => {
                "families of one maker may differ in what instructions leave open".into()
            }
        }
    }
}

/// Whether a backup of `here` may follow a primary of `primary`; what both sides are to be warned of, if
/// anything. `vouched`: the primary's operator knows that the guest does nothing on which they differ.
///
/// # Errors
/// If their processors are of different makers and nobody vouches.
pub fn pair(primary: &Origin, here: &Origin, vouched: bool) -> Outcome<Option<String>> {
    let Some(unlike) = Unlike::between(primary.processor, here.processor) else {
        return Ok(None);
    };
    let said = format!(
        "the primary's processor is {}, the backup's {}: {}, so the backup may diverge",
        name(primary),
        name(here),
        unlike.why()
    );
    if unlike == Unlike::Families || vouched {
        return Ok(Some(said));
    }
    let sides = match primary.config.clock_kind {
        ClockKind::Blocks => "either side",
        // Single steps on KVM and the software engine do not count alike.
        _ => "both sides",
    };
    Err(ReplicaError::refused(format!(
        "{said}: give {sides} --engine soft, or the primary --unlike-hosts if the guest surely does nothing \
         of the kind"
    )))
}

/// What to warn of when a recording of `recorded` is replayed on `here`.
#[must_use]
pub fn replay(recorded: &Origin, here: &Origin) -> Option<String> {
    let unlike = Unlike::between(recorded.processor, here.processor)?;
    Some(format!(
        "recorded on {}, replayed on {}: {}, so the replay may diverge; --engine soft does the same on every \
         host, as AMD's processors do where makers differ, with rules of its own for approximations",
        name(recorded),
        name(here),
        unlike.why()
    ))
}

fn name(origin: &Origin) -> String {
    origin
        .processor
        .map_or("unknown".into(), |processor| processor.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::setup::tests::config;
    use vmm::engine::EngineKind;

    const INTEL: HostProcessor = HostProcessor {
        maker: *b"GenuineIntel",
        family: 6,
        model: 143,
        stepping: 8,
    };
    const AMD: HostProcessor = HostProcessor {
        maker: *b"AuthenticAMD",
        family: 25,
        model: 17,
        stepping: 1,
    };

    fn origin(engine: EngineKind, processor: HostProcessor) -> Origin {
        Origin::new(config(), engine, processor)
    }

    fn refused(primary: &Origin, here: &Origin) -> String {
        pair(primary, here, false).unwrap_err().to_string()
    }

    /// Every pair of processors on every pair of engines; what that is.
    #[test]
    fn only_the_processors_of_two_kvms_are_compared() {
        let family = |family| HostProcessor { family, ..AMD };
        let next = HostProcessor {
            model: 18,
            stepping: 3,
            ..AMD
        };
        let hygon = HostProcessor {
            maker: *b"HygonGenuine",
            ..AMD
        };
        let processors = [
            INTEL,
            AMD,
            next,
            family(26),
            hygon,
            HostProcessor {
                family: 25,
                ..INTEL
            },
        ];
        let kinds = [
            EngineKind::KvmHardware,
            EngineKind::KvmSoftware,
            EngineKind::Soft,
        ];
        for (one, other) in processors
            .iter()
            .flat_map(|one| processors.map(|other| (*one, other)))
        {
            for (here, there) in kinds
                .iter()
                .flat_map(|here| kinds.map(|there| (*here, there)))
            {
                let unlike =
                    Unlike::between(origin(here, one).processor, origin(there, other).processor);
                let expected = if here == EngineKind::Soft || there == EngineKind::Soft {
                    None
                } else if one.maker != other.maker {
                    Some(Unlike::Makers)
                } else if one.family != other.family {
                    Some(Unlike::Families)
                } else {
                    None
                };
                assert_eq!(unlike, expected, "{one} on {here}, {other} on {there}");
                let (primary, backup) = (origin(here, one), origin(there, other));
                let verdict = |vouched| pair(&primary, &backup, vouched).map_err(|_| ());
                assert_eq!(verdict(false).is_err(), expected == Some(Unlike::Makers));
                assert_eq!(verdict(true).unwrap().is_some(), expected.is_some());
                assert_eq!(replay(&primary, &backup).is_some(), expected.is_some());
            }
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        let kvm = |processor| origin(EngineKind::KvmHardware, processor);
        let why = refused(&kvm(INTEL), &kvm(AMD));
        for words in [
            "the primary's processor is GenuineIntel family 6 model 143 stepping 8",
            "the backup's AuthenticAMD family 25 model 17 stepping 1",
            "undefined flags",
            "give either side --engine soft",
            "the primary --unlike-hosts",
        ] {
            assert!(why.contains(words), "'{words}' in: {why}");
        }
        assert!(
            why.len() < logchannel::messages::REASON_MAX,
            "it is told whole"
        );
        let mut steps = kvm(INTEL);
        steps.config.clock_kind = ClockKind::Instructions;
        assert!(refused(&steps, &kvm(AMD)).contains("both sides --engine soft"));
    }

    #[test]
    fn a_log_whose_processor_is_not_known_warns_of_nothing() {
        let kvm = |processor| origin(EngineKind::KvmHardware, processor);
        let old = Origin {
            processor: None,
            ..kvm(INTEL)
        };
        assert_eq!(replay(&old, &kvm(AMD)), None);
    }
}
