//! A machine on its way to a new backup, with bytes of it altered or its connection cut at chosen places: it
//! costs the attempt, and nothing else.

mod lives;

use check::resp::{Client, Reply};
use check::rng::Rng;
use lives::{Life, NET, Served, Site, through};
use logchannel::framing::{FrameKind, HEADER_LEN, seal};
use replica::HostPort;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What is done to the bytes that go to the joiner.
#[derive(Clone, Copy, Debug)]
struct Meddling {
    /// In the frame of this kind that comes as such a one, from 0 on; the last of the states is the empty one.
    kind: FrameKind,
    nth: usize,
    /// At this byte of it, or at its last one, or in the middle.
    byte: Option<usize>,
    harm: Harm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// A bit is turned.
    Turned,
    /// The same, and the frame's checksum is of what it is then.
    Resealed,
    /// All ends there.
    Cut,
}

/// The first bytes of the payloads of the states that were harmed: whether they were compressed.
type Forms = Arc<Mutex<BTreeSet<u8>>>;

/// Passes `from` on to `to`, with the meddling, frame by frame, until either ends.
fn pass_on(
    mut from: &TcpStream,
    mut to: &TcpStream,
    meddling: Meddling,
    forms: &Forms,
) -> io::Result<()> {
    let mut seen = 0;
    loop {
        let mut frame = vec![0; HEADER_LEN];
        from.read_exact(&mut frame)?;
        let length =
            usize::from(frame[1]) | usize::from(frame[2]) << 8 | usize::from(frame[3]) << 16;
        frame.resize(HEADER_LEN + length, 0);
        from.read_exact(&mut frame[HEADER_LEN..])?;
        if frame[0] == meddling.kind as u8 {
            if seen == meddling.nth {
                if let (FrameKind::State, Some(form)) = (meddling.kind, frame.get(HEADER_LEN)) {
                    forms.lock().unwrap().insert(*form);
                }
                let last = frame.len() - 1;
                let at = meddling.byte.unwrap_or(last / 2).min(last);
                if meddling.harm == Harm::Cut {
                    to.write_all(&frame[..at])?;
                    from.shutdown(Shutdown::Both)?;
                    return to.shutdown(Shutdown::Both);
                }
                frame[at] ^= 0x10;
                if meddling.harm == Harm::Resealed {
                    seal(meddling.kind, &mut frame);
                }
            }
            seen += 1;
        }
        to.write_all(&frame)?;
    }
}

/// Where the backup at `backup` is found through somebody who meddles.
fn meddled(backup: &HostPort, meddling: Meddling, forms: &Forms) -> HostPort {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let forms = forms.clone();
    through(listener, backup, move |from, to| {
        pass_on(from, to, meddling, &forms)
    })
}

/// A machine with a server in it that runs alone, and a client of it.
struct Scene {
    site: Site,
    solo: Life,
    client: Client,
    number: i64,
    _served: Served,
}

impl Scene {
    fn new() -> Self {
        let mut site = Site::new();
        let served = Served::start(&mut site);
        Self {
            solo: site.survivor("kv", NET),
            client: served.client(),
            site,
            number: 0,
            _served: served,
        }
    }

    /// The machine serves, alone.
    #[track_caller]
    fn goes_on_alone(&mut self, what: &str) {
        self.solo.until_solo();
        self.counts(what);
    }

    #[track_caller]
    fn counts(&mut self, what: &str) {
        self.number += 1;
        let said = self.client.command(&[b"INCR", b"number"]).unwrap();
        assert_eq!(said, Reply::Int(self.number), "{what}");
    }

    /// What was counted is there.
    #[track_caller]
    fn has_counted(&mut self, what: &str) {
        let said = self.client.command(&[b"GET", b"number"]).unwrap();
        let number = self.number.to_string().into_bytes();
        assert_eq!(said, Reply::Bulk(Some(number)), "{what}");
    }
}

#[test]
fn a_state_altered_or_cut_anywhere_on_its_way_costs_the_attempt_only() {
    let mut scene = Scene::new();
    let mut backup = scene.site.backup();
    let address = backup.address();
    let mut places: Vec<Meddling> = Vec::new();
    let mut harm = |kind, nth, byte, harm| {
        places.push(Meddling {
            kind,
            nth,
            byte,
            harm,
        });
    };
    let either = [Harm::Turned, Harm::Cut];
    // The base and what is said beside it. A length that is altered would have more waited for, for ten seconds.
    let base = [0].into_iter().chain((4..HEADER_LEN + 33 + 16).step_by(3));
    for byte in base {
        for how in either {
            harm(FrameKind::Base, 0, Some(byte), how);
        }
    }
    for byte in [Some(0), Some(6), Some(8), Some(20), None] {
        for how in either {
            for kind in [FrameKind::Hello, FrameKind::Probe, FrameKind::Settled] {
                harm(kind, 0, byte, how);
            }
            for nth in [0, 1, 3] {
                harm(FrameKind::State, nth, byte, how);
            }
        }
    }
    // The second state is compressed, to try that. Its form, the length it says, how its block begins and what
    // that ends with: a frame that is sound for all its checksum can tell.
    for byte in [
        HEADER_LEN,
        HEADER_LEN + 1,
        HEADER_LEN + 4,
        HEADER_LEN + 5,
        usize::MAX,
    ] {
        harm(FrameKind::State, 1, Some(byte), Harm::Resealed);
    }
    let forms = Forms::default();
    for meddling in places {
        let through = meddled(&address, meddling, &forms);
        scene.solo.replica.handle().protect(through);
        let told = scene.solo.hears("JoinFailed");
        scene.goes_on_alone(&format!("{meddling:?}: {told}"));
    }
    let forms = forms.lock().unwrap().clone();
    assert_eq!(forms, BTreeSet::from([0, 1]), "as it is, and compressed");
    // The same backup takes the machine all the same.
    scene.solo.replica.handle().protect(address);
    scene.solo.hears("Protected");
    backup.hears("Welcomed");
    scene.solo.replica.handle().halt("the host died");
    backup.hears("Live");
    scene.has_counted("after all that");
    backup.replica.handle().stop();
    assert_eq!(backup.ends(), Ok(()));
}

/// The machine's host dies while it is handed over, at any moment: the joiner has it and is a backup, or has no
/// right to it. What a client was told is there, if the machine is.
#[test]
fn a_host_that_dies_while_it_hands_over_leaves_one_machine_or_none() {
    let mut rng = Rng::new(1, 0);
    // How long a join takes here that nothing happens to.
    let most_us = {
        let scene = Scene::new();
        let mut backup = scene.site.backup();
        let address = backup.address();
        let begun = Instant::now();
        scene.solo.replica.handle().protect(address);
        backup.hears("Welcomed");
        let took = begun.elapsed();
        scene.solo.replica.handle().stop();
        assert_eq!((scene.solo.ends(), backup.ends()), (Ok(()), Ok(())));
        u64::try_from(took.as_micros()).unwrap() * 3 / 2
    };
    let mut lived = 0;
    for round in 0..40 {
        let mut scene = Scene::new();
        scene.goes_on_alone("before");
        let mut backup = scene.site.backup();
        scene.solo.replica.handle().protect(backup.address());
        // The moment is what is tested.
        let moment = Duration::from_micros(rng.below(most_us));
        let what = format!("round {round}, {moment:?}");
        std::thread::sleep(moment);
        // This waits for a guest that stands still, so not each time.
        if round % 2 == 0 {
            scene.counts(&what);
        }
        scene.solo.replica.handle().halt("the host died");
        // It is a backup, and goes live. Or it was a joiner still, or its caller is gone.
        let over = ["Live", "Halted", "PrimaryTurnedAway", "CallerTurnedAway"];
        let told = backup.hears_any(&over);
        if !told.starts_with("Live") {
            backup.replica.handle().stop();
            while backup.hears_more() {}
            let contends = ["Live", "FlagWon"].map(|word| backup.has_told(word));
            assert_eq!(contends, [false, false], "{what}: {told}");
            assert!(scene.solo.ends().is_err(), "{what}");
            continue;
        }
        lived += 1;
        scene.has_counted(&what);
        backup.replica.handle().stop();
        assert_eq!(backup.ends(), Ok(()), "{what}");
        assert!(scene.solo.ends().is_err(), "{what}");
    }
    assert!((1..40).contains(&lived), "{lived} were backups in time");
}

/// The word that makes it a backup does not come: the joiner has no right to anything, and the machine, whose next
/// flag nobody else asks for, runs on.
#[test]
fn a_joiner_that_never_hears_that_it_is_the_backup_ends() {
    let mut scene = Scene::new();
    for (byte, harm) in [
        (0, Harm::Turned),
        (5, Harm::Turned),
        (HEADER_LEN, Harm::Turned),
        (0, Harm::Cut),
        (9, Harm::Cut),
    ] {
        let mut backup = scene.site.backup();
        let meddling = Meddling {
            kind: FrameKind::Welcome,
            nth: 0,
            byte: Some(byte),
            harm,
        };
        let through = meddled(&backup.address(), meddling, &Forms::default());
        scene.solo.replica.handle().protect(through);
        scene.solo.hears("LinkEnd");
        scene.goes_on_alone(&format!("{meddling:?}"));
        while backup.hears_more() {}
        assert!(!backup.has_told("Live"), "{meddling:?}");
        assert!(backup.ends().is_err(), "{meddling:?}");
    }
}
