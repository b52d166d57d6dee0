//! Real members of etcd, as Debian ships it: processes of this test's, gone when it is over.

use serde_json::Value;
use std::fmt::Display;
use std::fmt::Write as _;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use testing::skipped::skip_this;

/// Longest wait for a member to serve.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Whether there is an etcd here; says that the test is skipped if not.
pub fn is_here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    let here = *HERE.get_or_init(|| {
        let mut etcd = Command::new("etcd");
        etcd.arg("--version").stdout(Stdio::null());
        etcd.status().is_ok_and(|status| status.success())
    });
    if !here {
        skip_this(&"no etcd (Debian's package etcd-server)");
    }
    here
}

/// An address and port nobody else has: an address of this process's own, and a port below those that the kernel
/// gives to clients.
pub fn place() -> String {
    static PORT: AtomicU32 = AtomicU32::new(20_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    assert!(port < 32_000, "a port below the clients' is left");
    format!("127.{}.{b}.{c}:{port}", 128 + a % 64)
}

/// One member.
pub struct EtcdMember {
    /// Where clients find it: `HOST:PORT`.
    pub client: String,
    peer: String,
    name: String,
    /// What its command line begins with.
    prefix: Vec<String>,
    child: Option<Child>,
}

/// How members are started.
#[derive(Clone, Default)]
pub struct Options {
    /// Command-line options, of each.
    pub more: Vec<String>,
    /// Clients are served by TLS.
    pub tls: bool,
}

/// A cluster, in a folder of its own.
pub struct Etcd {
    /// Its folder, where tests may keep things, too.
    pub dir: TempDir,
    /// Its members, running or not.
    pub members: Vec<EtcdMember>,
    options: Options,
}

impl Etcd {
    /// Starts `count` members, and does not wait for them.
    pub fn start(count: usize, options: Options) -> Self {
        let places = (0..count).map(|_| (place(), place())).collect();
        Self::start_at(places, vec![Vec::new(); count], options)
    }

    /// Starts a member at each of `places`, for clients and for members, by a command line that begins with one of
    /// `prefixes`.
    pub fn start_at(
        places: Vec<(String, String)>,
        prefixes: Vec<Vec<String>>,
        options: Options,
    ) -> Self {
        let members = places.into_iter().zip(prefixes).enumerate();
        let members: Vec<_> = members
            .map(|(n, ((client, peer), prefix))| EtcdMember {
                client,
                peer,
                name: format!("m{n}"),
                prefix,
                child: None,
            })
            .collect();
        let mut etcd = Self {
            dir: tempfile::tempdir().unwrap(),
            members,
            options,
        };
        (0..etcd.members.len()).for_each(|n| etcd.start_member(n));
        etcd
    }

    /// Members' addresses, with commas.
    pub fn words(&self) -> String {
        let all: Vec<_> = self.members.iter().map(|m| m.client.as_str()).collect();
        all.join(",")
    }

    /// Has members that are started from now on be started so.
    pub fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    /// What member `n` answers to `body`, at `path` behind `/v3/`: status, and JSON. Without TLS only.
    pub fn try_api(&self, n: usize, path: &str, body: &str, token: Option<&str>) -> (u16, Value) {
        let url = format!("http://{}/v3/{path}", self.members[n].client);
        ask(&url, body, token).unwrap()
    }

    /// The same, of a request that must succeed.
    pub fn api_as(&self, n: usize, path: &str, body: &str, token: Option<&str>) -> Value {
        let (status, said) = self.try_api(n, path, body, token);
        assert_eq!(status, 200, "{path}: {said}");
        said
    }

    /// The same, of nobody.
    pub fn api(&self, n: usize, path: &str, body: &str) -> Value {
        self.api_as(n, path, body, None)
    }

    /// Which member leads.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for n in (0..self.members.len()).filter(|n| self.members[*n].child.is_some()) {
                let url = format!("http://{}/v3/maintenance/status", self.members[n].client);
                let Ok((_, status)) = ask(&url, "{}", None) else {
                    continue;
                };
                let leader = &status["leader"];
                if leader.is_string() && *leader == status["header"]["member_id"] {
                    return n;
                }
            }
            assert!(Instant::now() < deadline, "no member leads");
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until member `n` serves, whoever asks: it has a leader then. Without TLS only.
    pub fn wait_until_serving(&mut self, n: usize) {
        let url = format!("http://{}/v3/kv/range", self.members[n].client);
        self.wait_for(|| match ask(&url, r#"{"key":"YQ=="}"#, None) {
            // Not let in, where users are enabled, is an answer, too.
            Ok((200 | 400, _)) => Ok(()),
            Ok((status, said)) => Err(format!("{status} {said}")),
            Err(error) => Err(error),
        });
    }

    /// Starts member `n`, on the data it has.
    pub fn start_member(&mut self, n: usize) {
        let cluster = self.members.iter().fold(String::new(), |mut all, member| {
            write!(all, "{}=http://{},", member.name, member.peer).unwrap();
            all
        });
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("m{n}.log")))
            .unwrap();
        // Milliseconds. One alone is elected sooner by this; of three a busy host must not depose the leader.
        let (heartbeat, election) = match self.members.len() {
            1 => ("20", "200"),
            _ => ("50", "500"),
        };
        let member = &mut self.members[n];
        assert!(member.child.is_none(), "it runs");
        let scheme = if self.options.tls { "https" } else { "http" };
        let words = [member.prefix.as_slice(), &["etcd".into()]].concat();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["--name", &member.name, "--logger", "zap"])
            .arg("--data-dir")
            .arg(self.dir.path().join(&member.name))
            .args([
                "--heartbeat-interval",
                heartbeat,
                "--election-timeout",
                election,
            ])
            .args([
                "--listen-client-urls",
                &format!("{scheme}://{}", member.client),
            ])
            .args([
                "--advertise-client-urls",
                &format!("{scheme}://{}", member.client),
            ])
            .args(["--listen-peer-urls", &format!("http://{}", member.peer)])
            .args([
                "--initial-advertise-peer-urls",
                &format!("http://{}", member.peer),
            ])
            .args(["--initial-cluster", cluster.trim_end_matches(',')])
            .args(&self.options.more)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        member.child = Some(child);
    }

    /// The process id of member `n`, which runs.
    pub fn pid(&self, n: usize) -> nix::unistd::Pid {
        let child = self.members[n].child.as_ref().expect("it runs");
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap())
    }

    /// Kills member `n` (SIGKILL).
    pub fn kill(&mut self, n: usize) {
        let mut child = self.members[n].child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until `is_ready` says so.
    ///
    /// # Panics
    /// With its log if a member ends meanwhile; if it takes too long.
    pub fn wait_for<E: Display>(&mut self, is_ready: impl Fn() -> Result<(), E>) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = is_ready() {
            self.assert_running();
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(LOOK);
        }
    }

    fn assert_running(&mut self) {
        for (n, member) in self.members.iter_mut().enumerate() {
            let ended = member.child.as_mut().and_then(|c| c.try_wait().unwrap());
            if let Some(status) = ended {
                let log = std::fs::read_to_string(self.dir.path().join(format!("m{n}.log")));
                panic!("etcd ended, {status}: {}", log.unwrap_or_default());
            }
        }
    }

    /// Where member `n` has its data.
    pub fn data(&self, n: usize) -> PathBuf {
        self.dir.path().join(&self.members[n].name)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for n in 0..self.members.len() {
            if self.members[n].child.is_some() {
                self.kill(n);
            }
        }
    }
}

/// What answers at `url`.
fn ask(url: &str, body: &str, token: Option<&str>) -> Result<(u16, Value), String> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build()
        .new_agent();
    let mut request = agent.post(url);
    if let Some(token) = token {
        request = request.header("Authorization", token);
    }
    let mut reply = request.send(body).map_err(|e| e.to_string())?;
    let said = reply.body_mut().read_to_vec().map_err(|e| e.to_string())?;
    let said = serde_json::from_slice(&said).map_err(|e| e.to_string())?;
    Ok((reply.status().as_u16(), said))
}
