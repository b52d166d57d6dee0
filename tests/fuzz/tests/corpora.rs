//! All that is in the corpora, and what is close to it, is taken or refused.

use fuzzed::{TARGETS, Target};
use logchannel::framing::FrameKind;
use std::path::{Path, PathBuf};
use vmm::cpu::Offer;
use vmm::machine::{Machine, MachineConfig, boot};
use vmm::soft::SoftEngine;

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpora")
        .join(target.name)
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let files = std::fs::read_dir(folder(target)).expect("a corpus");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).expect("a file");
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

/// How many changes of a file are tried.
fn changes(target: &Target) -> usize {
    match target.name {
        // Real sockets, or a machine each time.
        "switch" | "handover" => 2,
        "snapshot" | "log" => 4,
        _ => 64,
    }
}

#[test]
fn what_is_in_the_corpora_and_close_to_it_is_taken_or_refused() {
    for target in &TARGETS {
        let begun = std::time::Instant::now();
        let files = corpus(target);
        assert!(!files.is_empty(), "no corpus of {}", target.name);
        for (path, bytes) in &files {
            println!("{}", path.display());
            (target.take)(bytes);
            let many = changes(target).min(bytes.len());
            for nth in 0..many {
                let at = nth * bytes.len() / many;
                println!("  byte {at} changed, then cut there");
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (nth % 8);
                (target.take)(&changed);
                (target.take)(&bytes[..at]);
            }
        }
        let took = begun.elapsed().as_millis();
        println!("{}: {} files, {took} ms", target.name, files.len());
    }
}

/// Writes what fuzzers begin with: one sound input of each form.
#[test]
#[ignore = "writes into the corpora"]
fn seeds() {
    for target in &TARGETS {
        let seeds: Vec<Vec<u8>> = match target.name {
            "frames" | "handover" => frames(),
            "entries" => vec![entries()],
            "log" => logs(),
            "snapshot" => vec![snapshot()],
            "bundle" => bundles(),
            "block" => vec![queue_of_block()],
            "net" => vec![queue_of_net()],
            "switch" => vec![
                [
                    &[1, 60, 0][..],
                    &[0xff; 6],
                    &[2, 0, 0, 0, 0, 2, 8, 6],
                    &[0; 46],
                ]
                .concat(),
            ],
            other => panic!("no seeds of {other}"),
        };
        std::fs::create_dir_all(folder(target)).unwrap();
        for (nth, seed) in seeds.iter().enumerate() {
            std::fs::write(folder(target).join(format!("seed-{nth}")), seed).unwrap();
        }
    }
}

/// The greeting of a primary over a real socket, as the targets take frames: kind, length, payload.
fn frames() -> Vec<Vec<u8>> {
    use logchannel::framing::HEADER_LEN;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let hello = logchannel::Hello {
        vm: "web".into(),
        incarnation: "here".into(),
        base: replay::Base::boot(replay::ViewNumber(1), 7),
        store: [1; logchannel::messages::STORE_LEN],
        settings: logchannel::Settings::default(),
        config: b"config".to_vec(),
    };
    let offers = std::thread::spawn(move || {
        let socket = std::net::TcpStream::connect(to).unwrap();
        logchannel::offer(socket, &hello, std::time::Duration::from_secs(1)).unwrap_err();
    });
    let (mut socket, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 4096];
    let count = std::io::Read::read(&mut socket, &mut bytes).unwrap();
    drop(socket);
    offers.join().unwrap();
    let plain = [&[0][..], &bytes[..count]].concat();
    let payload = &bytes[HEADER_LEN..count];
    let place = u8::try_from(FrameKind::Hello as usize).unwrap() - 1;
    let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
    let parts = [&[1, place][..], &length, payload];
    vec![plain, parts.concat(), parts[1..].concat()]
}

fn entries() -> Vec<u8> {
    use replay::{Anchor, Arrival, Clock, Event, LogEntry, RegisterDigest, Stand};
    let mut encoder = replay::codec::Encoder::new();
    let mut out = Vec::new();
    for clock in [5, 9, 1000] {
        let stand = Stand {
            rip: Some(0x1000 + clock),
            registers: RegisterDigest::default(),
        };
        let entry = LogEntry {
            clock: Clock(clock),
            stand: Some(stand),
            anchor: Anchor::NONE,
            event: Event::Arrival(Arrival::Frame(vec![1; 60])),
        };
        encoder.encode(&entry, &mut out);
    }
    out
}

fn logs() -> Vec<Vec<u8>> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    let names = ["v1.log", "v5.log", "v6.log", "v7.log", "v7-state.log"];
    names
        .iter()
        .map(|name| [&[0][..], &read(name)].concat())
        .collect()
}

fn snapshot() -> Vec<u8> {
    let mut config = MachineConfig::bare("counter", 5, "hz=1000 ticks=5");
    config.memory_mib = 16;
    config.disk_sectors = Some(64);
    let memory = boot::memory(&config).unwrap();
    let vcpu = SoftEngine::new(memory.clone(), config.cpu, Offer::Bare, config.clock_kind);
    let image = guests::load("counter", None).unwrap();
    config.image_digest = image.digest;
    let mut machine = Machine::boot(vcpu.unwrap(), memory, config, &image.bytes()).unwrap();
    let mut saved = Vec::new();
    machine.save(&mut saved).unwrap();
    saved
}

fn bundles() -> Vec<Vec<u8>> {
    let empty = bundle::sha256(b"");
    let manifest = format!(
        r#"{{"format":1,"kernel":{{"name":"k","version":"1","sha256":""}},"kernel_release":"6","packages":[],"modules":[],
        "command":null,"cmdline":"","memory_mib":256,"disk":false,"inputs_sha256":"","kernel_sha256":"{empty}",
        "initrd_sha256":"{empty}"}}"#
    );
    let mut writer = bundle::cpio::Writer::default();
    writer
        .add("a", bundle::cpio::Meta::default(), b"xyz")
        .unwrap();
    vec![
        [&[0][..], &writer.finish()].concat(),
        [&[1][..], manifest.as_bytes()].concat(),
    ]
}

/// A request to read a sector: header, data, status.
fn queue_of_block() -> Vec<u8> {
    let descriptor = |place: u8, head: u8, address: u32, length: u16, flags: u8, next: u8| {
        let mut step = vec![3, 0, place, head];
        step.extend(address.to_le_bytes());
        step.extend(length.to_le_bytes());
        step.extend([flags, next]);
        step
    };
    [
        descriptor(1, 1, 0x5000, 512, 3, 2),
        descriptor(2, 2, 0x6000, 1, 2, 0),
        descriptor(0, 0, 0x4000, 16, 1, 1),
        vec![4, 0, 1, 0],
        vec![5, 0, 0],
    ]
    .concat()
}

/// A frame out, and one in.
fn queue_of_net() -> Vec<u8> {
    let descriptor = |queue: u8, address: u32, flags: u8| {
        let mut step = vec![3, queue, 0, 0];
        step.extend(address.to_le_bytes());
        step.extend(100u16.to_le_bytes());
        step.extend([flags, 0]);
        step
    };
    let frame = [
        &[5, 60, 0][..],
        &[0xff; 6],
        &[2, 0, 0, 0, 0, 2, 8, 6],
        &[0; 46],
    ]
    .concat();
    [
        descriptor(0, 0x5000, 2),
        vec![4, 0, 1, 0],
        descriptor(1, 0x4000, 0),
        vec![4, 1, 1, 0],
        frame,
    ]
    .concat()
}
