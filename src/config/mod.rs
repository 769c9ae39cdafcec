//! Everything the user can set, parsed once into one validated [`Config`].
//!
//! [`cli::parse`] turns argv (with the legacy `-o` options, and with the file of `--config`) into a `Config`;
//! nothing behind it looks at argv again. The parts that the worker needs are serialisable and travel over the broker channel; the worker gets
//! no path, no socket name and no host id from here.
//!
//! To add an option: a field in `options::Options`, a line in `validate`, a field here, and its entries in the
//! two manual pages, which a test asks for. It is then a key of configuration files, too.
//!
//! What this module does not do: print, end the process, or look at the file system but for the configuration
//! file. Whether the shared
//! directory exists or a group has an id is found out by who opens it.

mod activation;
pub mod cli;
mod environment;
mod error;
mod file;
mod id_map;
pub mod id_translation;
mod legacy;
mod log_level;
mod modcaps;
#[cfg(test)]
mod option_table_tests;
mod options;
mod rate_limit;
mod validate;
mod vhost_user_json;
mod warning;
mod words;
mod worker_ids;
pub mod xattrmap;

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use activation::Activation;
pub use environment::Environment;
pub use error::CliError;
pub use file::{FileError, Place};
pub use id_map::IdMapError;
pub use legacy::LegacyError;
pub use modcaps::ModcapsError;
pub use rate_limit::RateLimit;
pub use warning::Warning;

/// The whole configuration of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory (or regular file) that the guest gets.
    pub shared_dir: PathBuf,
    /// Where the front end connects.
    pub socket: SocketSource,
    /// How much of the host is taken away from the worker.
    pub confinement: Confinement,
    /// Whether the guest sees what is mounted below the share later.
    pub follow_mounts: FollowMounts,
    /// Where metrics are shown, if anywhere.
    pub metrics: Option<SocketSource>,
    /// Where log lines go.
    pub log: LogConfig,
    /// RLIMIT_NOFILE of the worker: `Some(0)` leaves it as inherited, `None` is the default
    /// min(1,000,000, fs.nr_open), lowered to the hard limit with a warning.
    pub rlimit_nofile: Option<u64>,
    /// What the worker needs to know.
    pub worker: WorkerConfig,
}

/// Where the listening socket comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketSource {
    /// Make one at this path.
    Path {
        /// The UNIX socket's path.
        path: PathBuf,
        /// Give it to this group (mode 0660 instead of 0600).
        group: Option<String>,
    },
    /// An inherited listening socket.
    Fd(RawFd),
}

/// `--sandbox`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum SandboxMode {
    /// All namespaces and an empty root
    Namespace,
    /// An empty root by chroot, no namespaces: for containers that can't make any
    Chroot,
    /// No namespaces, no change of root (not recommended)
    None,
}

/// `--seccomp`: what happens when a process makes a system call that its policy doesn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum SeccompMode {
    /// No filter (not recommended)
    None,
    /// The process is killed
    Kill,
    /// The kernel logs the call and lets it through (for debugging)
    Log,
    /// The process gets SIGSYS (for debugging)
    Trap,
}

/// `--landlock`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum LandlockMode {
    /// No Landlock
    Off,
    /// Deny what a worker never needs, at no cost on the data path
    Free,
    /// Also confine reads and writes to the share, at a small cost for each open
    Full,
}

/// `--follow-mounts`: whether what the host mounts and unmounts below the share while it is served is the guest's to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FollowMounts {
    /// Where the mount that the share is on gets or shares mounts
    Auto,
    /// Everywhere; an error where that is not possible
    Always,
    /// What is mounted is what was mounted at the start
    Never,
}

/// `--worker-ids`: how guest ids map to the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerIds {
    /// Shifted with an idmapped mount where the file system has them, else identity.
    Auto,
    /// Ids `0..count` of the worker are `base..base+count` of the host.
    Shifted {
        /// First host id.
        base: u32,
        /// Number of ids.
        count: u32,
    },
    /// Shifted to the ranges that this user (name or number) has in /etc/subuid and /etc/subgid.
    Subids(String),
    /// One to one.
    Identity,
}

/// One line of `--uid-map` or `--gid-map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapEntry {
    /// First id inside.
    pub inner: u32,
    /// First id outside.
    pub outer: u32,
    /// How many.
    pub count: u32,
}

/// What the broker takes away, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Layers by namespaces.
    pub sandbox: SandboxMode,
    /// System-call filters.
    pub seccomp: SeccompMode,
    /// File-system rules.
    pub landlock: LandlockMode,
    /// Id mapping.
    pub worker_ids: WorkerIds,
    /// `--uid-map`, empty for none.
    pub uid_map: Vec<IdMapEntry>,
    /// `--gid-map`, empty for none.
    pub gid_map: Vec<IdMapEntry>,
    /// Broker requests that `--modcaps` enables.
    pub privileged: PrivilegedRequests,
    /// The capabilities, all of them, that the worker keeps in its own user namespace (none of them reaches
    /// the host): [`WorkerCapability::DEFAULT`] as changed by `--modcaps`.
    pub worker_caps: BTreeSet<WorkerCapability>,
}

/// A capability that the worker may hold in its own user namespace. The numbers are those of
/// `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum WorkerCapability {
    /// Change owners.
    Chown = 0,
    /// Bypass permission bits.
    DacOverride = 1,
    /// Bypass permission bits for reading and searching; not held unless asked for, since the broker and not
    /// the worker opens file handles.
    DacReadSearch = 2,
    /// Bypass checks for ownership (chmod, utimes).
    Fowner = 3,
    /// Keep set-id bits when a file changes.
    Fsetid = 4,
    /// Act with any group id of the namespace.
    Setgid = 6,
    /// Act with any user id of the namespace.
    Setuid = 7,
    /// Set `security.capability`.
    Setfcap = 31,
}

impl WorkerCapability {
    /// What a worker keeps when `--modcaps` says nothing.
    pub const DEFAULT: [Self; 7] = [
        Self::Chown,
        Self::DacOverride,
        Self::Fowner,
        Self::Fsetid,
        Self::Setgid,
        Self::Setuid,
        Self::Setfcap,
    ];

    /// The kernel's number of this capability.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The kernel's name, such as `CAP_CHOWN`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chown => "CAP_CHOWN",
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::Fowner => "CAP_FOWNER",
            Self::Fsetid => "CAP_FSETID",
            Self::Setgid => "CAP_SETGID",
            Self::Setuid => "CAP_SETUID",
            Self::Setfcap => "CAP_SETFCAP",
        }
    }
}

/// Which privileged requests the broker serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivilegedRequests {
    /// `--modcaps=+mknod`: device nodes.
    pub make_device: bool,
    /// `--modcaps=+sys_admin`: `trusted.*` attributes.
    pub trusted_xattr: bool,
}

/// Where log lines go, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Lines above this level are dropped at their source.
    pub level: log::LevelFilter,
    /// To syslog (facility user) instead of stderr.
    pub syslog: bool,
}

/// The part of the configuration that goes to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// The virtio device.
    pub device: DeviceConfig,
    /// The file system.
    pub fs: FsConfig,
    /// Live migration.
    pub migration: MigrationConfig,
}

/// The virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// Mount tag, 1–36 bytes; with one, the device has a config space of its own.
    pub tag: Option<String>,
    /// Request queues, 1–63 (the high-priority queue is not counted).
    pub num_request_queues: u16,
    /// Helper threads for slow work; 0 serves everything on the queue's thread.
    pub thread_pool_size: u16,
    /// How long a queue thread polls for more work before it sleeps, in microseconds.
    pub poll_us: u32,
    /// How fast the request queues are served.
    pub limits: Limits,
}

/// Limits of speed, for all request queues of a device together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `--limit-ops`, in requests.
    pub operations: Option<RateLimit>,
    /// `--limit-bandwidth`, in bytes of file data.
    pub bandwidth: Option<RateLimit>,
}

/// `--cache`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum CachePolicy {
    /// Names and attributes are valid for a second, data until the file changes
    Auto,
    /// All is valid for a day: only when nobody else writes in the share
    Always,
    /// Names and attributes are valid for a day, data is not cached
    Metadata,
    /// Nothing is cached
    Never,
}

/// `--inode-file-handles`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum InodeFileHandles {
    /// Every inode that the guest knows keeps a file descriptor
    Never,
    /// File handles where the file system has them, else file descriptors
    #[value(alias = "fallback")]
    Prefer,
    /// File handles; fail at start when the file system has none
    Mandatory,
}

/// A feature that can be negotiated (1.14's `--posix-acl=`, `--security-label=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Negotiate {
    /// Refuse a guest that doesn't offer it
    Always,
    /// Use it when the guest offers it
    Auto,
    /// Don't use it
    Never,
}

/// A word of `--locks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LockKind {
    /// Byte-range locks (fcntl)
    Posix,
    /// Whole-file locks (flock)
    Flock,
}

/// `--locks`: which locks of the guest are locks on the host. The default is none: they hold within the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    /// Byte-range locks.
    pub posix: bool,
    /// Whole-file locks.
    pub flock: bool,
}

/// The passthrough file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsConfig {
    /// Cache policy.
    pub cache: CachePolicy,
    /// `--allow-mmap`
    pub allow_mmap: bool,
    /// READDIRPLUS; off with `--no-readdirplus`.
    pub readdirplus: bool,
    /// Write-back cache in the guest.
    pub writeback: bool,
    /// Keep the guest's `O_DIRECT`.
    pub allow_direct_io: bool,
    /// Extended attributes.
    pub xattr: bool,
    /// POSIX ACLs.
    pub posix_acl: Negotiate,
    /// Security labels at creation.
    pub security_label: Negotiate,
    /// Xattr map rules, in the text form of `--xattrmap`, already validated; `None` for no mapping.
    pub xattrmap: Option<String>,
    /// Every change gets EROFS.
    pub readonly: bool,
    /// Tell the guest where other file systems begin.
    pub announce_submounts: bool,
    /// What an idle inode is kept by.
    pub inode_file_handles: InodeFileHandles,
    /// `--max-inodes`
    pub max_inodes: Option<u64>,
    /// `--max-handles`
    pub max_handles: Option<u64>,
    /// HANDLE_KILLPRIV_V2.
    pub killpriv_v2: bool,
    /// Keep the guest's `O_NOATIME`.
    pub preserve_noatime: bool,
    /// Which locks of the guest are locks on the host.
    pub locks: Locks,
    /// Inode flags and projects by ioctl.
    pub ioctl: bool,
    /// `--translate-uid`, validated; empty for none.
    pub translate_uid: Vec<IdTranslation>,
    /// `--translate-gid`, validated; empty for none.
    pub translate_gid: Vec<IdTranslation>,
    /// Privileged requests that the broker will serve.
    pub privileged: PrivilegedRequests,
}

/// One rule of `--translate-uid` or `--translate-gid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdTranslation {
    /// Guest ids `guest..guest+count` become `host..` on the way to the host.
    Guest {
        /// First guest id.
        guest: u32,
        /// First host id.
        host: u32,
        /// How many.
        count: u32,
    },
    /// Host ids `host..host+count` become `guest..` on the way to the guest.
    Host {
        /// First host id.
        host: u32,
        /// First guest id.
        guest: u32,
        /// How many.
        count: u32,
    },
    /// All of `guest..guest+count` become the one id `host`.
    SquashGuest {
        /// First guest id.
        guest: u32,
        /// The host id.
        host: u32,
        /// How many.
        count: u32,
    },
    /// All of `host..host+count` become the one id `guest`.
    SquashHost {
        /// First host id.
        host: u32,
        /// The guest id.
        guest: u32,
        /// How many.
        count: u32,
    },
    /// Requests that would use `guest..guest+count` fail with EPERM.
    ForbidGuest {
        /// First guest id.
        guest: u32,
        /// How many.
        count: u32,
    },
    /// Both ways, one to one.
    Map {
        /// First guest id.
        guest: u32,
        /// First host id.
        host: u32,
        /// How many.
        count: u32,
    },
}

/// `--migration-mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum MigrationMode {
    /// The stream holds paths relative to the share
    FindPaths,
    /// The stream holds file handles: both sides must share the same file system
    FileHandles,
}

/// `--migration-on-error`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum MigrationOnError {
    /// Refuse the stream; the source goes on
    Abort,
    /// Take it; the inodes that were lost answer errors
    GuestError,
}

/// Live migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationConfig {
    /// How the source names inodes.
    pub mode: MigrationMode,
    /// What the destination does about lost ones.
    pub on_error: MigrationOnError,
    /// Add handles to the stream for verification.
    pub verify_handles: bool,
    /// Check paths again at switch-over.
    pub confirm_paths: bool,
}
