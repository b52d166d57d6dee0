//! Replicas in this process: what they are started with, and what they tell.

#![allow(dead_code, reason = "no test file uses all of it")]

use check::resp::Client;
use check::rng::Rng;
use replica::machine::{Blueprint, EngineChoice, Image, Images};
use replica::outside::{NetPlug, Plugs};
use replica::role::Role;
use replica::{BackupSpec, Events, ForTests, HostPort, Notice, PrimarySpec, Replica, ReplicaSpec};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use testandset::VmId;
use vmm::backends::switch::{Forward, Switch};
use vmm::machine::{GuestImage, ImageSource, MachineConfig};

/// Longest time for anything here.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The guests that are built in.
pub struct Library;

struct Loaded(guests::Image);

impl Image for Loaded {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn bytes(&self) -> GuestImage<'_> {
        self.0.bytes()
    }

    fn digest(&self) -> u64 {
        self.0.digest
    }

    fn into_source(self: Box<Self>, _: bool) -> Box<dyn ImageSource> {
        self.0.into_source(None)
    }
}

impl Images for Library {
    fn load(&self, name: &str, initrd: Option<&str>) -> Result<Box<dyn Image>, String> {
        let image = guests::load(name, initrd).map_err(|e| e.to_string())?;
        Ok(Box::new(Loaded(image)))
    }
}

/// The machine of a built-in guest.
pub fn blueprint(guest: &str, cmdline: &str) -> Blueprint {
    let image = Library.load(guest, None).unwrap();
    let config = MachineConfig::bare(guest, image.digest(), cmdline);
    Blueprint { config, image }
}

/// What a replica told, in words: the notice's name and fields.
struct Told(Sender<String>);

impl Events for Told {
    fn note(&mut self, _: u64, notice: &Notice<'_>) {
        // Whoever listens may be gone.
        let _ = self.0.send(format!("{notice:?}"));
    }
}

/// A replica of a test, and what it has told so far.
pub struct Life {
    pub replica: Replica,
    told: Receiver<String>,
    heard: Vec<String>,
}

impl Life {
    /// Waits until it tells something that begins with `what`; all of that.
    #[track_caller]
    pub fn hears(&mut self, what: &str) -> String {
        self.hears_any(&[what])
    }

    /// The same for one of several beginnings.
    #[track_caller]
    pub fn hears_any(&mut self, what: &[&str]) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(told) = self.told.recv_timeout(left) else {
                panic!("not told {what:?}, but {:#?}", self.heard);
            };
            self.heard.push(told.clone());
            if what.iter().any(|what| told.starts_with(what)) {
                return told;
            }
        }
    }

    /// Waits for one more word; `false` once it is over and has told all.
    pub fn hears_more(&mut self) -> bool {
        let told = self.told.recv_timeout(LIMIT);
        assert_ne!(told, Err(RecvTimeoutError::Timeout), "{:#?}", self.heard);
        told.map(|told| self.heard.push(told)).is_ok()
    }

    /// Whether it has told something that begins with `what`, so far.
    pub fn has_told(&mut self, what: &str) -> bool {
        self.heard.extend(self.told.try_iter());
        self.heard.iter().any(|told| told.starts_with(what))
    }

    /// Where this backup listens.
    #[track_caller]
    pub fn address(&mut self) -> HostPort {
        let told = self.hears("Listening(");
        let address = told.trim_start_matches("Listening(").trim_end_matches(')');
        HostPort::to_connect(address).unwrap()
    }

    /// Waits until it runs its machine alone.
    #[track_caller]
    pub fn until_solo(&self) {
        let deadline = Instant::now() + LIMIT;
        while self.replica.handle().status().role != Some(Role::Solo) {
            let told = &self.heard;
            assert!(
                Instant::now() < deadline,
                "it does not run alone: {told:#?}"
            );
            std::thread::yield_now();
        }
    }

    /// Waits until it is over; how it ended.
    #[track_caller]
    pub fn ends(mut self) -> Result<(), String> {
        while self.hears_more() {}
        self.replica.wait().map_err(|e| e.to_string())
    }
}

/// Where replicas of one machine live: an arbiter's folder, and a network if there is one.
pub struct Site {
    pub folder: tempfile::TempDir,
    pub net: Option<PathBuf>,
    pub disk: Option<PathBuf>,
    pub handover_bytes_s: Option<NonZeroU64>,
    /// Where a replica that begins as primary waits once it has left its machine.
    pub listen: Option<HostPort>,
}

impl Site {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("flags")).unwrap();
        Self {
            folder,
            net: None,
            disk: None,
            handover_bytes_s: None,
            listen: None,
        }
    }

    fn flags(&self) -> PathBuf {
        self.folder.path().join("flags")
    }

    fn plugs(&self) -> Plugs {
        Plugs {
            net: self.net.clone().map(NetPlug::Switch),
            disk: self.disk.clone(),
            quiet: true,
            disk_copy: false,
        }
    }

    /// What a replica at the arbiter `arbiter` is told.
    pub fn spec(&self, arbiter: &Path) -> ReplicaSpec {
        let arbiter = testandset::SharedDisk::open(arbiter).unwrap();
        ReplicaSpec {
            vm: VmId::new("vm").unwrap(),
            host: "here".into(),
            arbiter: Box::new(arbiter),
            security: tls::Security::Loopback,
            viewservice: None,
            log_buffer_bytes: 64 << 20,
            // A busy host is no death.
            suspect_ms: 5_000,
            handover_bytes_s: self.handover_bytes_s,
            die_at: None,
        }
    }

    pub fn backup(&self) -> Life {
        self.backup_of(EngineChoice::Soft)
    }

    pub fn backup_of(&self, engine: EngineChoice) -> Life {
        let (tell, told) = channel();
        let spec = BackupSpec {
            replica: self.spec(&self.flags()),
            listen: HostPort::to_listen("127.0.0.1:0").unwrap(),
            plugs: self.plugs(),
            engine,
            images: Box::new(Library),
            image: None,
            initrd: None,
        };
        let replica = Replica::backup(spec, Box::new(Told(tell))).unwrap();
        let heard = Vec::new();
        Life {
            replica,
            told,
            heard,
        }
    }

    pub fn primary(&self, machine: Blueprint, backup: HostPort) -> Life {
        self.primary_of(machine, backup, EngineChoice::Soft)
    }

    pub fn primary_of(&self, machine: Blueprint, backup: HostPort, engine: EngineChoice) -> Life {
        let (tell, told) = channel();
        let spec = PrimarySpec {
            replica: self.spec(&self.flags()),
            machine,
            engine,
            plugs: self.plugs(),
            backup,
            backup_host: None,
            ordered: None,
            view: None,
            lag_max_ms: 500,
            require_backup: false,
            unlike_hosts: false,
            listen: self.listen.clone(),
            images: Box::new(Library),
            disk_reads: replica::DiskReads::Log,
            for_tests: ForTests::default(),
        };
        let replica = Replica::primary(spec, Box::new(Told(tell))).unwrap();
        let heard = Vec::new();
        Life {
            replica,
            told,
            heard,
        }
    }

    /// Gives the machine of `solo` a new backup, and waits until both know that they are a pair.
    pub fn protect(&self, solo: &mut Life, engine: EngineChoice) -> Life {
        let mut backup = self.backup_of(engine);
        solo.replica.handle().protect(backup.address());
        solo.hears("Protected");
        backup.hears("Welcomed");
        backup
    }

    /// A pair that runs `guest`.
    pub fn pair(&self, guest: &str, cmdline: &str) -> [Life; 2] {
        let mut backup = self.backup();
        let address = backup.address();
        let mut primary = self.primary(blueprint(guest, cmdline), address);
        primary.hears("Primary");
        backup.hears("Backup");
        [primary, backup]
    }

    /// A machine that runs `guest` alone in view 2, its primary being dead.
    pub fn survivor(&self, guest: &str, cmdline: &str) -> Life {
        self.survivor_of(blueprint(guest, cmdline), EngineChoice::Soft)
    }

    /// The same of any machine, on any engine.
    pub fn survivor_of(&self, machine: Blueprint, engine: EngineChoice) -> Life {
        let mut survivor = self.backup_of(engine);
        let address = survivor.address();
        let primary = self.primary_of(machine, address, engine);
        survivor.hears("Backup");
        primary.replica.handle().halt("the host died");
        survivor.hears("Live");
        assert!(primary.ends().unwrap_err().contains("the host died"));
        survivor
    }
}

/// An address nobody listens at.
pub fn nobody() -> HostPort {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    HostPort::to_connect(&address.to_string()).unwrap()
}

/// Where a guest is on the network of [`Served`].
pub const NET: &str = "ip=10.77.0.2/24 gw=10.77.0.1";

/// A key-value server behind a forwarded port, as its clients see it.
pub struct Served {
    _switch: Switch,
    forward: Forward,
}

impl Served {
    /// Makes the network of `site`.
    pub fn start(site: &mut Site) -> Self {
        let socket = site.folder.path().join("switch");
        let switch = Switch::start(&socket).unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let guest = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 2), 6379);
        let forward = Forward::start(&socket, listen, guest).unwrap();
        site.net = Some(socket);
        Self {
            _switch: switch,
            forward,
        }
    }

    /// Where clients find it.
    pub fn at(&self) -> SocketAddr {
        self.forward.local_addr()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.at(), LIMIT, LIMIT).unwrap()
    }
}

/// Bytes of a [`value`].
pub const VALUE: usize = 16 << 10;

/// The value of this number: half noise, half zeros, a line of either in turn. LZ4 leaves some half of it, as of a
/// Linux guest's memory.
pub fn value(number: u64) -> Vec<u8> {
    const LINE: usize = 64;
    let mut noise = Rng::new(number, 1);
    let mut value = vec![0; VALUE];
    for line in value.chunks_exact_mut(2 * LINE) {
        for word in line[..LINE].as_chunks_mut().0 {
            *word = noise.next_u64().to_le_bytes();
        }
    }
    value
}

/// What a join cost, out of what was told of it.
pub fn cost(told: &str) -> [u64; 3] {
    ["still_us: ", "sent_bytes: ", "full_bytes: "].map(|field| {
        let (_, rest) = told.split_once(field).expect(told);
        let number = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        number.parse().unwrap()
    })
}

/// Where `backup` is found through `listener`: `forth` passes on what goes there, and what comes back is passed on.
pub fn through(
    listener: TcpListener,
    backup: &HostPort,
    forth: impl Fn(&TcpStream, &TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> HostPort {
    let address = listener.local_addr().unwrap().to_string();
    let backup = backup.to_string();
    std::thread::spawn(move || {
        // The tether comes here, too, once the pair is formed.
        for primary in listener.incoming() {
            let (primary, joiner) = (primary.unwrap(), TcpStream::connect(&backup).unwrap());
            for end in [&primary, &joiner] {
                end.set_nodelay(true).unwrap();
            }
            let (mut back, mut to) = (joiner.try_clone().unwrap(), primary.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = io::copy(&mut back, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let forth = forth.clone();
            std::thread::spawn(move || {
                // Either end may be gone.
                let _ = forth(&primary, &joiner);
                for end in [primary, joiner] {
                    let _ = end.shutdown(Shutdown::Both);
                }
            });
        }
    });
    HostPort::to_connect(&address).unwrap()
}
