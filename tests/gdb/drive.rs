//! gdb at a replay, by script; and what its guest looks like from outside.

use crate::common::{PROGRAM, skipped, text};
use object::{Object, ObjectSegment, ObjectSymbol};
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Whether there is a gdb for the calling test, which is counted as skipped if not.
pub fn have_gdb() -> bool {
    let there = Command::new("gdb").arg("--version").output();
    if let Err(e) = &there {
        skipped::skip_this(&format!("gdb: {e}"));
    }
    there.is_ok()
}

/// A guest's image.
pub struct Guest(Vec<u8>);

impl Guest {
    /// The built-in guest `name`.
    pub fn built_in(name: &str) -> Self {
        let image = guests::load(name, None).expect("a built-in guest");
        Self(image.bytes().kernel.to_vec())
    }

    fn file(&self) -> object::File<'_> {
        object::File::parse(&*self.0).expect("an ELF file")
    }

    /// The address of `symbol`.
    pub fn symbol(&self, symbol: &str) -> u64 {
        let file = self.file();
        let found = file.symbols().find(|s| s.name() == Ok(symbol));
        found.expect("a symbol of the guest's").address()
    }

    /// The first bytes at `address`.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let file = self.file();
        let found = file.segments().find_map(|segment| {
            let data = segment.data_range(address, len as u64).ok()?;
            data.map(<[u8]>::to_vec)
        });
        found.expect("bytes of the image")
    }
}

/// A replay that waits for gdb.
pub struct Gdb {
    replay: Child,
    errors: BufReader<std::process::ChildStderr>,
    address: String,
}

/// What gdb printed.
pub struct Printed(pub String);

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Printed {
    /// What follows `start` on the lines that begin with it.
    pub fn after(&self, start: &str) -> Vec<&str> {
        let lines = self.0.lines();
        lines.filter_map(|line| line.strip_prefix(start)).collect()
    }

    /// The bytes `x/16xb` printed for `address`.
    pub fn bytes_at(&self, address: u64) -> Vec<u8> {
        let lines = [address, address + 8].map(|at| {
            let start = format!("{at:#x}");
            let line = self.0.lines().find_map(|line| {
                let (head, bytes) = line.split_once(":\t")?;
                let head = head.trim_start_matches("=> ");
                (head == start || head.starts_with(&format!("{start} "))).then_some(bytes)
            });
            line.unwrap_or_else(|| panic!("bytes at {start} in: {self}"))
        });
        let words = lines.iter().flat_map(|line| line.split_whitespace());
        words
            .map(|word| u8::from_str_radix(word.trim_start_matches("0x"), 16).expect("a byte"))
            .collect()
    }
}

impl Gdb {
    /// Begins to replay `log` for gdb.
    pub fn start(log: &Path) -> Self {
        Self::start_with(log, &[])
    }

    /// The same, with more arguments.
    pub fn start_with(log: &Path, more: &[&str]) -> Self {
        let mut replay = Command::new(PROGRAM)
            .args(["replay", text(log), "--gdb", "0", "--json"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        let mut errors = BufReader::new(replay.stderr.take().expect("piped"));
        let mut line = String::new();
        errors.read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("tandem: gdb: target remote ");
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        Self {
            replay,
            errors,
            address,
        }
    }

    /// Runs gdb with these commands; what it printed, what the replay said meanwhile, and its report.
    pub fn run(self, script: &[String]) -> (Printed, String, serde_json::Value) {
        let mut gdb = Command::new("gdb");
        gdb.args(["-batch", "-nx"]);
        for command in [
            "set pagination off",
            "set confirm off",
            "set debuginfod enabled off",
        ] {
            gdb.args(["-ex", command]);
        }
        gdb.args(["-ex", &format!("target remote {}", self.address)]);
        for command in script {
            gdb.args(["-ex", command]);
        }
        let output = gdb.output().expect("gdb runs");
        let printed = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        if !output.status.success() {
            println!("{printed}");
        }
        let (errors, report) = self.end();
        (Printed(printed), errors, report)
    }

    /// Where the replay listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits for the end of the replay, which must be a good one; what it said meanwhile, and its report.
    pub fn end(mut self) -> (String, serde_json::Value) {
        let mut errors = String::new();
        self.errors.read_to_string(&mut errors).expect("text");
        let mut report = String::new();
        let stdout = self.replay.stdout.as_mut().expect("piped");
        stdout.read_to_string(&mut report).expect("text");
        let status = self.replay.wait().expect("it ends");
        assert!(status.success(), "{errors}");
        let report = serde_json::from_str(&report).expect("JSON on stdout");
        (errors, report)
    }
}
