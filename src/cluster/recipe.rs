//! What a machine is to be, as a file says it (TOML).
//!
//! Whatever is wrong with it is one line that says where: file, line and column.

use crate::cli::OnReset;
use crate::failure::{During, Failure, Outcome};
use crate::host::words;
use clap::ValueEnum;
use replay::ClockKind;
use replica::DiskReads;
use replica::outside::NetPlug;
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::str::FromStr;
use viewservice::{Engine, Machine, VmId};
use vmm::cpu::CpuModel;
use vmm::machine::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, TscMode, parse_mac};

/// Largest such file, in bytes.
const FILE_MAX: u64 = 64 << 10;
/// Memory of a guest that is built in, in MiB, as `tandem run` has it.
const MEMORY_MIB: u32 = 64;

/// A machine's name and what it is.
#[derive(Debug)]
pub struct Recipe {
    /// Its name.
    pub vm: VmId,
    /// What it is.
    pub machine: Machine,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default, deserialize_with = "name")]
    name: Option<VmId>,
    #[serde(deserialize_with = "guest")]
    guest: String,
    memory: Option<Number<{ MEMORY_MIB_MIN as u64 }, { MEMORY_MIB_MAX as u64 }>>,
    #[serde(default)]
    engine: Engine,
    #[serde(default, deserialize_with = "word::<CpuModel, _>")]
    cpu: Option<String>,
    #[serde(default)]
    unlike_hosts: bool,
    #[serde(default, deserialize_with = "word::<NetPlug, _>")]
    net: Option<String>,
    #[serde(default, deserialize_with = "path")]
    disk: Option<String>,
    #[serde(default)]
    disk_copy: bool,
    #[serde(default, deserialize_with = "word::<DiskReads, _>")]
    disk_read: Option<String>,
    #[serde(default, deserialize_with = "path")]
    initrd: Option<String>,
    append: Option<String>,
    #[serde(default, deserialize_with = "arguments")]
    args: Vec<String>,
    #[serde(default, deserialize_with = "word::<ClockKind, _>")]
    clock: Option<String>,
    #[serde(default, deserialize_with = "word::<TscMode, _>")]
    tsc: Option<String>,
    #[serde(default, deserialize_with = "on_reset")]
    on_reset: Option<String>,
    #[serde(default, deserialize_with = "mac")]
    mac: Option<String>,
    suspect_ms: Option<Number<40, 60_000>>,
    lag_max_ms: Option<Number<10, 60_000>>,
    log_buffer: Option<Number<1, { 1 << 20 }>>,
    handover_mib_s: Option<Number<1, { u32::MAX as u64 }>>,
}

/// A whole number within bounds.
#[derive(Clone, Copy, Debug)]
struct Number<const LEAST: u64, const MOST: u64>(u32);

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Number<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let given = i64::deserialize(from)?;
        let number = u32::try_from(given).ok();
        let number = number.filter(|number| (LEAST..=MOST).contains(&u64::from(*number)));
        let wrong = || D::Error::custom(format!("{given} is not from {LEAST} to {MOST}"));
        number.map(Self).ok_or_else(wrong)
    }
}

/// A word that `check` takes.
fn checked<'de, D: Deserializer<'de>, E: Display>(
    from: D,
    check: impl Fn(&str) -> Result<(), E>,
) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    match check(&text) {
        Ok(()) => Ok(text),
        Err(e) => Err(D::Error::custom(format!("{text:?}: {e}"))),
    }
}

/// A word as it stands on a command line.
fn word<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    checked(from, |text| text.parse::<T>().map(|_| ())).map(Some)
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<VmId>, D::Error> {
    let text = String::deserialize(from)?;
    VmId::new(text).map(Some).map_err(D::Error::custom)
}

fn is_built_in(guest: &str) -> bool {
    guests::BUILT_IN.iter().any(|(name, ..)| *name == guest)
}

fn is_path(text: &str) -> Result<(), String> {
    if Path::new(text).is_absolute() {
        return Ok(());
    }
    Err("a file is named by its whole path, which is the same on all hosts".into())
}

fn guest<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    checked(from, |text| {
        if is_built_in(text) {
            return Ok(());
        }
        let names: Vec<_> = guests::BUILT_IN.iter().map(|(name, ..)| *name).collect();
        is_path(text).map_err(|why| format!("it is not built in ({}), and {why}", names.join(", ")))
    })
}

fn path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    checked(from, is_path).map(Some)
}

fn arguments<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let words = Vec::<String>::deserialize(from)?;
    match words.iter().find(|word| !word.contains('=')) {
        None => Ok(words),
        Some(word) => Err(D::Error::custom(format!("{word:?} is not KEY=VALUE"))),
    }
}

fn on_reset<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    checked(from, |text| {
        OnReset::from_str(text, false)
            .map(|_| ())
            .map_err(|_| "it takes restart or end")
    })
    .map(Some)
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    checked(from, |text| parse_mac(text).map(|_| ())).map(Some)
}

impl Recipe {
    /// Of the file at `path`; `name` is the machine's, in place of what the file says.
    ///
    /// # Errors
    /// One line: where, and what.
    pub fn read(path: &Path, name: Option<&str>) -> Outcome<Self> {
        let shown = path.display().to_string();
        let mut text = String::new();
        let file = std::fs::File::open(path).during(format_args!("cannot read {shown}"))?;
        std::io::Read::read_to_string(&mut std::io::Read::take(file, FILE_MAX + 1), &mut text)
            .during(format_args!("cannot read {shown}"))?;
        if text.len() as u64 > FILE_MAX {
            return Err(Failure::usage(format!(
                "{shown} has more than {FILE_MAX} bytes"
            )));
        }
        let file: File = toml::from_str(&text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start);
            let why = e.message().replace('\n', " ");
            Failure::usage(format!("{shown}:{}: {why}", place(&text, at)))
        })?;
        let name = name.map(VmId::new).transpose()?.or(file.name.clone());
        let vm = name.ok_or_else(|| {
            Failure::usage(format!(
                "{shown} has no name = \"...\" for the machine (or give --name)"
            ))
        })?;
        Self::of(vm, file)
            .during(shown)
            .map_err(|e| Failure::usage(e.to_string()))
    }

    /// Of a guest, with all else as it usually is.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn of_guest(guest: &str, name: Option<&str>) -> Outcome<Self> {
        let guest = if is_built_in(guest) || !Path::new(guest).exists() {
            guest.to_owned()
        } else {
            let path = Path::new(guest).canonicalize().during(guest)?;
            path.to_str()
                .map(str::to_owned)
                .ok_or_else(|| Failure::usage("no text in that path"))?
        };
        if !is_built_in(&guest) && is_path(&guest).is_err() {
            return Err(Failure::usage(format!(
                "'{guest}' is no guest that is built in, no file here, and no FILE.toml"
            )));
        }
        let stem = Path::new(&guest).file_stem().and_then(|stem| stem.to_str());
        let name = name.or(stem).unwrap_or_default();
        let vm = VmId::new(name).during("--name")?;
        Self::of(
            vm,
            File {
                guest,
                ..File::default()
            },
        )
    }

    fn of(vm: VmId, file: File) -> Outcome<Self> {
        if is_built_in(&file.guest) {
            let checked = guests::arguments::check(&file.guest, &file.args);
            checked.map_err(|why| Failure::usage(format!("args: {why}")))?;
        }
        if file.disk.is_none() && (file.disk_copy || file.disk_read.is_some()) {
            return Err(Failure::usage(
                "disk-copy and disk-read are of a disk, and there is none",
            ));
        }
        let memory_mib = match file.memory {
            Some(Number(mib)) => mib,
            None => usual_memory_mib(&file)?,
        };
        let (options, of_both) = file.options(&vm);
        let machine = Machine {
            guest: file.guest,
            memory_mib,
            engine: file.engine,
            cpu: file
                .cpu
                .unwrap_or_else(|| CpuModel::default().name().to_owned()),
            unlike_hosts: file.unlike_hosts,
            net: file.net,
            disk: file.disk,
            disk_copy: file.disk_copy,
            initrd: file.initrd,
            options,
            of_both,
        };
        // What its replicas will be told is looked at by the parser that they have, too.
        let words = words::to_check(&vm, &machine).map_err(Failure::usage)?;
        if let Err(e) = <crate::cli::Cli as clap::Parser>::try_parse_from(words) {
            let said = e.to_string();
            let first = said.lines().next().unwrap_or_default();
            return Err(Failure::usage(
                first.trim_start_matches("error: ").to_owned(),
            ));
        }
        Ok(Self { vm, machine })
    }
}

/// Options of a machine's replicas, and their values.
type Options = Vec<(String, String)>;

impl File {
    /// What is handed on to the hosts as it is: to the primary, and to both replicas.
    fn options(&self, vm: &VmId) -> (Options, Options) {
        let number = |name: &str, number: Option<u32>| {
            number.map(|number| (name.to_owned(), number.to_string()))
        };
        let word = |name: &str, word: &Option<String>| {
            let word = word.clone()?;
            Some((name.to_owned(), word))
        };
        let mac = self.mac.clone().unwrap_or_else(|| mac_of(vm));
        let of_primary = [
            word("append", &self.append),
            word("clock", &self.clock),
            word("tsc", &self.tsc),
            word("on-reset", &self.on_reset),
            word("mac", &Some(mac)),
            word("disk-read", &self.disk_read),
            number("lag-max-ms", self.lag_max_ms.map(|n| n.0)),
        ];
        let args = self.args.iter().map(|arg| ("arg".to_owned(), arg.clone()));
        let of_both = [
            number("suspect-ms", self.suspect_ms.map(|n| n.0)),
            number("log-buffer", self.log_buffer.map(|n| n.0)),
            number("handover-mib-s", self.handover_mib_s.map(|n| n.0)),
        ];
        (
            of_primary.into_iter().flatten().chain(args).collect(),
            of_both.into_iter().flatten().collect(),
        )
    }
}

/// A hardware address for the machine of this name: there may be several on one network.
fn mac_of(vm: &VmId) -> String {
    let mut hasher = DefaultHasher::new();
    vm.as_str().hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_le_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

/// The memory of a guest whose file does not say it.
fn usual_memory_mib(file: &File) -> Outcome<u32> {
    if is_built_in(&file.guest) {
        return Ok(MEMORY_MIB);
    }
    let image = guests::load(&file.guest, file.initrd.as_deref());
    let image = image
        .during("memory is not given, and the guest, which may say it, cannot be read here")?;
    Ok(image
        .manifest
        .map_or(MEMORY_MIB, |manifest| manifest.memory_mib))
}

/// Line and column of a byte of `text`, from 1 on.
fn place(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    format!("{line}:{column}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Recipe, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::read(&path, None).map_err(|e| {
            assert_eq!(e.code(), 2);
            let e = e.to_string();
            assert_eq!(e.lines().count(), 1, "{e}");
            e.split_once("web.toml")
                .expect("the file is named")
                .1
                .to_owned()
        })
    }

    #[test]
    fn a_file_is_a_machine() {
        let text = "
name = 'web'
guest = 'kv'
memory = 128
engine = 'soft'
net = 'tap:tap-web'
args = ['ip=10.0.0.7/24']
suspect-ms = 500
mac = '52:54:00:00:00:07'
";
        let recipe = read(text).unwrap();
        assert_eq!(recipe.vm.as_str(), "web");
        let machine = recipe.machine;
        assert_eq!((machine.memory_mib, machine.engine), (128, Engine::Soft));
        assert_eq!(machine.cpu, "v1");
        assert_eq!(machine.net.as_deref(), Some("tap:tap-web"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            machine.options,
            [
                pair("mac", "52:54:00:00:00:07"),
                pair("arg", "ip=10.0.0.7/24")
            ]
        );
        assert_eq!(machine.of_both, [pair("suspect-ms", "500")]);
        assert_eq!(read("name='k'\nguest='kv'").unwrap().machine.memory_mib, 64);
    }

    #[test]
    fn what_is_wrong_is_said_with_line_and_column() {
        for (text, said) in [
            (
                "name='a'\nguest='kv'\nmemroy=64",
                ":3:1: unknown field `memroy`",
            ),
            ("name='a'\nguest='kv'\nmemory = 1", ":3:10: 1 is not from "),
            (
                "name='a'\nguest='kv'\nmemory = '64'",
                ":3:10: invalid type: string",
            ),
            (
                "name='a'\nguest='kv'\n  engine = 'xen'",
                ":3:12: unknown variant `xen`",
            ),
            ("name='a'\nguest='kv'\nnet = 'eth0'", ":3:7: \"eth0\""),
            ("name='a'\nguest='kv'\nmac = '1'", ":3:7: \"1\""),
            ("name='a'\nguest='kv'\ncpu = 'v3'", ":3:7: \"v3\""),
            ("name='a b'\nguest='kv'", ":1:6: "),
            (
                "name='a'\nguest='nothing'",
                ":2:7: \"nothing\": it is not built in",
            ),
            (
                "name='a'\nguest='kv'\nargs=['x']",
                ":3:6: \"x\" is not KEY=VALUE",
            ),
            (
                "name='a'\nguest='kv'\ndisk='d.img'",
                ":3:6: \"d.img\": a file is named by",
            ),
            (
                "name='a'\nguest='kv'\nsuspect-ms=1",
                ":3:12: 1 is not from 40",
            ),
            ("name='a'\nguest=", ":2:7: "),
            ("name='a'\nname='b'\nguest='kv'", ":2:1: duplicate key"),
            ("name='a'", ":1:1: missing field `guest`"),
            ("guest='kv'", " has no name"),
            (
                "name='a'\nguest='kv'\ndisk-copy=true",
                "disk-copy and disk-read are of a disk",
            ),
            ("name='a'\nguest='kv'\nargs=['nothing=1']", "args: "),
        ] {
            let found = read(text).unwrap_err();
            assert!(
                found.contains(said),
                "{text}: expected {said}, found {found}"
            );
        }
    }

    #[test]
    fn a_guest_alone_is_a_machine_too() {
        let recipe = Recipe::of_guest("kv", None).unwrap();
        assert_eq!((recipe.vm.as_str(), recipe.machine.memory_mib), ("kv", 64));
        let named = Recipe::of_guest("kv", Some("web")).unwrap();
        let macs = [&recipe, &named].map(|recipe| recipe.machine.options[0].clone());
        assert!(
            macs.iter()
                .all(|(name, mac)| name == "mac" && parse_mac(mac).is_ok())
        );
        assert_ne!(macs[0], macs[1], "they may be on one network");
        assert_eq!(named.vm.as_str(), "web");
        let none = Recipe::of_guest("nothing", None).unwrap_err();
        assert!(
            none.to_string().contains("no guest that is built in"),
            "{none}"
        );
    }
}
