//! Why an image cannot be built.

use crate::deb::PackageError;
use crate::modules::ModuleError;
use crate::services::Service;
use crate::tools::ToolFailure;
use bundle::BundleError;
use bundle::cpio::CpioError;
use std::fmt::Display;
use std::path::PathBuf;
use thiserror::Error;

/// Why an image cannot be built.
#[derive(Debug, Error)]
pub enum Error {
    /// The user asked to end.
    #[error("interrupted")]
    Interrupted,
    /// A file or a process could not be worked with.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, and to which file.
        doing: String,
        /// What came of it.
        source: std::io::Error,
    },
    /// What was asked for cannot be a package.
    #[error("'{0}' is no package's name")]
    NoName(String),
    /// No service is known by the name that was asked for.
    #[error("no service '{0}' is known; there are {known}", known = Service::names())]
    NoService(String),
    /// The command to run is more than a line.
    #[error("a command takes one line")]
    CommandLines,
    /// Image and disk would be written to the same place, or to what they are made of.
    #[error("the image, its disk and what they are made of cannot be the same file")]
    SameFile,
    /// What should be written is a directory.
    #[error("cannot write {0}: it is a directory")]
    Directory(PathBuf),
    /// The disk has no room for its files.
    #[error("a disk of {size_mib} MiB has no room for its files; they need {least_mib} or more")]
    DiskTooSmall {
        /// The size that was asked for, in MiB.
        size_mib: u64,
        /// A size that has room, in MiB.
        least_mib: u64,
    },
    /// There is no place for the cache.
    #[error("no place for the cache: neither XDG_CACHE_HOME nor HOME is set")]
    NoCache,
    /// What was put into the cache is not there, though nobody else may change it.
    #[error("the cache changes while it is held")]
    CacheChanges,
    /// A package's file is another than the package lists name.
    #[error("{file} is not what the package lists say: its SHA-256 is {found}, not {expected}")]
    OtherFile {
        /// The file's name.
        file: String,
        /// Its SHA-256, in hexadecimal.
        found: String,
        /// The one the lists have, in hexadecimal.
        expected: String,
    },
    /// A tool of the system is not there.
    #[error(
        "{tool} is missing (Debian's package {package}): images are built with it, apt install {package}"
    )]
    ToolMissing {
        /// The tool.
        tool: String,
        /// The package it is in.
        package: String,
    },
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolFailure),
    /// debugfs went on after a line it could not carry out.
    #[error("debugfs failed: {0}")]
    Debugfs(String),
    /// apt knows no such package.
    #[error("apt knows no package '{name}' ({})", near_words(.near))]
    UnknownPackage {
        /// The name.
        name: String,
        /// Names of packages it does know that are like it.
        near: Vec<String>,
    },
    /// apt knows no such installation.
    #[error("apt cannot choose packages: {0}")]
    NoChoice(String),
    /// apt's answer is not understood.
    #[error("apt-get says what is not understood: {0}")]
    AptAnswer(String),
    /// An installation apt chose lacks what every image needs.
    #[error("apt does not choose {0}")]
    NotChosen(String),
    /// Packages could not be fetched.
    #[error("cannot fetch packages: {0}")]
    NotFetched(String),
    /// A package's file cannot be read.
    #[error("{package}: {source}")]
    Package {
        /// The package's name.
        package: String,
        /// Why not.
        source: Box<Error>,
    },
    /// The archive in a package's file is not understood.
    #[error("cannot read a package: {0}")]
    Archive(#[from] PackageError),
    /// A package does not hold what it is there for.
    #[error("{package} has no {what}")]
    Lacks {
        /// The package's name.
        package: String,
        /// What it lacks.
        what: &'static str,
    },
    /// Packages could not be installed.
    #[error("cannot install the packages: {0}")]
    NotInstalled(String),
    /// systemd is asked for along with what it leaves no room for.
    #[error(
        "systemd runs the units of the packages, from a disk: no command, no service, no root in memory"
    )]
    SystemdRuns,
    /// A cloud image cannot be used.
    #[error("{path} makes no guest: {why}")]
    Cloud {
        /// Where it is.
        path: String,
        /// Why not.
        why: String,
    },
    /// What cloud-init is to do is larger than is taken.
    #[error("{path} is larger than {most} bytes", path = path.display())]
    UserDataTooLarge {
        /// The file.
        path: PathBuf,
        /// Most bytes.
        most: u64,
    },
    /// A container's image cannot be used.
    #[error("{path} is no container's image for a guest: {why}")]
    Container {
        /// Where it is.
        path: String,
        /// Why not.
        why: String,
    },
    /// A container's image is asked for along with what it leaves no room for.
    #[error(
        "a container's image says what is in the root and what runs: no packages, command, service or systemd"
    )]
    ContainerAlone,
    /// A file of the root stands below something that is no directory.
    #[error("the root has {0} below something that is no directory")]
    Misplaced(String),
    /// A size was given for a disk that is not asked for.
    #[error("a size of {0} MiB is given, and there is no disk")]
    SizeOfNoDisk(u32),
    /// The root is too large to be kept in memory, or more memory is asked for than there is.
    #[error(
        "a first root of {root_mib} MiB needs {needed_mib} MiB of memory; machines have {most_mib} at most (a root on a \
         disk needs less)"
    )]
    TooLargeForMemory {
        /// Its files' size, in MiB.
        root_mib: u64,
        /// Memory it needs, in MiB.
        needed_mib: u64,
        /// Most memory of a machine, in MiB.
        most_mib: u64,
    },
    /// A kernel module cannot be used.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// Files do not fit into an archive.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// What was built is no image.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Something of ours could not be put into words for a file.
    #[error("{what}: {source}")]
    Json {
        /// What.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
}

/// What to do about a name that is not known.
fn near_words(near: &[String]) -> String {
    match near {
        [] => "is the name right, and are the lists there? apt-get update fetches them".to_owned(),
        near => format!("the nearest it knows: {}", near.join(", ")),
    }
}

/// What most of this crate returns.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Says what was being done when something failed.
pub(crate) trait During<T> {
    /// [`Error::Io`], with `doing` in front of it.
    fn during(self, doing: impl Display) -> Result<T>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, doing: impl Display) -> Result<T> {
        self.map_err(|source| Error::Io {
            doing: doing.to_string(),
            source,
        })
    }
}
