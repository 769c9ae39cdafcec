//! The table of options: one field each, with its help text. Everything that looks at a single value stands
//! here; what looks at several stands in `validate`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Parser, value_parser};
use log::LevelFilter;

use super::rate_limit::{parse_bandwidth, parse_ops};
use super::xattrmap::{ParseError, XattrMap};
use super::{
    CachePolicy, FollowMounts, IdMapEntry, IdTranslation, InodeFileHandles, LandlockMode, LockKind,
    MigrationMode, MigrationOnError, Negotiate, RateLimit, SandboxMode, SeccompMode, WorkerIds,
};

/// VIRTIO specification, 5.11.4: the tag field has 36 bytes.
const MAX_TAG: usize = 36;

/// vhost-user-backend tells virtqueues apart in a mask of 64 bits, and one is the high-priority queue.
pub(super) const MAX_REQUEST_QUEUES: u16 = 63;

/// Polling for longer than a second is a busy loop.
const MAX_POLL_US: u32 = 1_000_000;
/// Less than a sleep and a wake-up take, which it saves; docs/performance.md has the measurement.
const DEFAULT_POLL_US: u32 = 20;

const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Share a directory of the host with a virtual machine by virtio-fs
///
/// The virtual machine monitor connects to the socket as a vhost-user front end. The daemon serves one
/// connection and ends with it.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "virtiofsd",
    version,
    args_override_self = true,
    arg_required_else_help = true,
    override_usage = "virtiofsd --shared-dir <DIR> <--socket-path <PATH>|--fd <FD>> [OPTIONS]"
)]
pub(super) struct Options {
    /// Directory that the guest gets (a regular file can be shared too)
    #[arg(long, value_name = "DIR", help_heading = "Share")]
    #[arg(required_unless_present_any = ["legacy", "print_capabilities"])]
    pub shared_dir: Option<PathBuf>,

    /// Listen on a UNIX socket at this path
    ///
    /// Only the daemon's user can connect, unless --socket-group is given. A lock file, PATH.pid, keeps a second
    /// daemon away.
    #[arg(long, value_name = "PATH", help_heading = "Share")]
    #[arg(required_unless_present_any = ["fd", "socket", "print_capabilities"])]
    pub socket_path: Option<PathBuf>,

    /// Let this group connect to the socket too
    #[arg(long, value_name = "GROUP", help_heading = "Share")]
    #[arg(conflicts_with_all = ["fd", "print_capabilities"])]
    pub socket_group: Option<String>,

    /// Use this inherited, listening socket
    #[arg(long, value_name = "FD", help_heading = "Share", conflicts_with_all = ["socket_path", "socket"])]
    #[arg(value_parser = value_parser!(i32).range(0..))]
    pub fd: Option<RawFd>,

    /// Tell the guest this mount tag (1 to 36 bytes)
    ///
    /// With a tag the device has a configuration space of its own (VHOST_USER_PROTOCOL_F_CONFIG). QEMU takes the
    /// tag from its own command line and ignores this one; versions 7.1 to 8.0 crash on it.
    #[arg(long, value_name = "TAG", help_heading = "Share", value_parser = parse_tag)]
    pub tag: Option<String>,

    /// Refuse every change with EROFS
    #[arg(long, help_heading = "Share")]
    pub readonly: bool,

    /// How long the guest may believe what it has read
    #[arg(long, value_name = "POLICY", help_heading = "File system")]
    #[arg(value_enum, ignore_case = true, default_value = "auto")]
    pub cache: CachePolicy,

    /// Let the guest map files into memory with --cache=metadata and --cache=never
    ///
    /// Only for a directory that nobody else changes.
    #[arg(long, help_heading = "File system")]
    pub allow_mmap: bool,

    /// Let the guest gather writes in its own cache
    #[arg(long, help_heading = "File system")]
    pub writeback: bool,

    /// Keep the guest's O_DIRECT
    #[arg(long, help_heading = "File system")]
    pub allow_direct_io: bool,

    /// Keep the guest's O_NOATIME, which fails on files that the guest's user does not own
    #[arg(long, help_heading = "File system")]
    pub preserve_noatime: bool,

    /// List directories without the attributes of what is in them
    #[arg(long, help_heading = "File system")]
    pub no_readdirplus: bool,

    /// Tell the guest where other file systems begin (the default)
    ///
    /// The guest then sees a device number for each of them, and syncs each of them.
    #[arg(long, help_heading = "File system")]
    pub announce_submounts: bool,

    /// Show everything as one file system
    #[arg(long, help_heading = "File system", overrides_with = "announce_submounts")]
    pub no_announce_submounts: bool,

    /// Show the guest what the host mounts below the shared directory later, and take away what it unmounts
    ///
    /// auto: where the file system that the directory is on was mounted shared or slave, as systemd does, so that mounts
    /// come and go there too. A process of its own does it.
    #[arg(long, value_name = "WHEN", help_heading = "File system", value_enum, default_value = "auto")]
    pub follow_mounts: FollowMounts,

    /// How the daemon keeps track of files that are not open
    #[arg(long, value_name = "MODE", help_heading = "File system")]
    #[arg(value_enum, require_equals = true, default_value = "prefer")]
    pub inode_file_handles: InodeFileHandles,

    /// Leave it to the daemon to drop set-id bits and capabilities of files that change
    #[arg(long, help_heading = "File system")]
    pub killpriv_v2: bool,

    /// Leave it to the guest (the default)
    #[arg(long, help_heading = "File system", overrides_with = "killpriv_v2")]
    pub no_killpriv_v2: bool,

    /// Locks of the guest's programs that hold on the host, too: posix (fcntl), flock, or both
    #[arg(long, value_name = "KINDS", help_heading = "File system", value_enum, value_delimiter = ',')]
    pub locks: Vec<LockKind>,

    /// Let the guest read and set flags and project ids of files (lsattr, chattr)
    #[arg(long, help_heading = "File system")]
    pub ioctl: bool,

    /// Most files that may be open at a time; 0 leaves the limit as it is (by default 1000000 or what the system
    /// allows)
    #[arg(long, value_name = "N", help_heading = "File system")]
    pub rlimit_nofile: Option<u64>,

    /// Extended attributes
    #[arg(long, help_heading = "Extended attributes")]
    pub xattr: bool,

    /// POSIX access control lists (implies --xattr)
    #[arg(long, value_name = "MODE", help_heading = "Extended attributes", value_enum)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always", default_value = "never")]
    pub posix_acl: Negotiate,

    /// Security labels (SELinux) of new files (implies --xattr)
    #[arg(long, value_name = "MODE", help_heading = "Extended attributes", value_enum)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "always", default_value = "never")]
    pub security_label: Negotiate,

    /// Rename extended attributes between guest and host, e.g. ":map::user.virtiofs.:" (implies --xattr)
    ///
    /// The manual page has the rules.
    #[arg(long, value_name = "RULES", help_heading = "Extended attributes")]
    pub xattrmap: Option<XattrMapArg>,

    /// Change user ids between guest and host (repeatable)
    ///
    /// guest:GUEST:HOST:COUNT         guest ids on their way to the host
    /// host:HOST:GUEST:COUNT          host ids on their way to the guest
    /// map:GUEST:HOST:COUNT           both
    /// squash-guest:GUEST:HOST:COUNT  a range of guest ids to one host id
    /// squash-host:HOST:GUEST:COUNT   a range of host ids to one guest id
    /// forbid-guest:GUEST:COUNT       the guest may not use these
    #[arg(long, value_name = "RULE", help_heading = "Users and groups", verbatim_doc_comment)]
    pub translate_uid: Vec<IdTranslation>,

    /// Change group ids between guest and host (repeatable); rules as for --translate-uid
    #[arg(long, value_name = "RULE", help_heading = "Users and groups")]
    pub translate_gid: Vec<IdTranslation>,

    /// User ids of the daemon's user namespace, for users other than root (repeatable)
    ///
    /// More than one's own id needs a range in /etc/subuid.
    #[arg(long, value_name = ":INNER:OUTER:COUNT:", help_heading = "Users and groups")]
    pub uid_map: Vec<IdMapEntry>,

    /// Group ids of the daemon's user namespace, for users other than root (repeatable)
    #[arg(long, value_name = ":INNER:OUTER:COUNT:", help_heading = "Users and groups")]
    pub gid_map: Vec<IdMapEntry>,

    /// Which host ids the worker runs with: auto, identity, shifted, shifted:BASE:COUNT or subids:USER
    ///
    /// shifted: ids 0 to COUNT-1 of the guest are ids of the host that nobody else has, and a mount of the share
    /// translates them back, so that files on disk have the guest's ids. subids: the same with the ranges that
    /// USER has in /etc/subuid and /etc/subgid. identity: the guest's ids are the host's, for file systems that
    /// cannot be mounted so. auto: shifted where it can be had. In all of them the worker has no privilege on
    /// the host.
    #[arg(long, value_name = "MODE", help_heading = "Users and groups", default_value = "auto")]
    #[arg(conflicts_with_all = ["uid_map", "gid_map"])]
    pub worker_ids: WorkerIds,

    /// How the worker is cut off from the host
    #[arg(long, value_name = "MODE", help_heading = "Confinement")]
    #[arg(value_enum, ignore_case = true, default_value = "namespace")]
    pub sandbox: SandboxMode,

    /// What happens at a system call that is not on the list
    #[arg(long, value_name = "ACTION", help_heading = "Confinement", value_enum, default_value = "kill")]
    pub seccomp: SeccompMode,

    /// How much Landlock denies
    #[arg(long, value_name = "MODE", help_heading = "Confinement", value_enum, default_value = "free")]
    pub landlock: LandlockMode,

    /// Change what the guest's root may do, e.g. --modcaps=+mknod:-chown
    ///
    /// +mknod lets it make device nodes, +sys_admin lets it use trusted.* attributes: the broker does both, for
    /// the worker never has a capability on the host. A minus takes one of the worker's own away: chown,
    /// dac_override, fowner, fsetid, setgid, setuid, setfcap.
    #[arg(long, value_name = "LIST", help_heading = "Confinement")]
    pub modcaps: Option<String>,

    /// Request queues, 1 to 63, each with a thread (by default one for each CPU)
    #[arg(long, value_name = "N", help_heading = "Performance")]
    #[arg(value_parser = value_parser!(u16).range(1..=i64::from(MAX_REQUEST_QUEUES)))]
    pub num_request_queues: Option<u16>,

    /// Helper threads for slow requests; 0 for none
    #[arg(long, value_name = "N", help_heading = "Performance", default_value_t = 0)]
    pub thread_pool_size: u16,

    /// How long a queue's thread looks for more requests before it sleeps, in microseconds; 0 for not at all
    ///
    /// It does so only as long as it finds some: looks in vain become rare.
    #[arg(long, value_name = "N", help_heading = "Performance", default_value_t = DEFAULT_POLL_US)]
    #[arg(value_parser = value_parser!(u32).range(0..=i64::from(MAX_POLL_US)))]
    pub poll_us: u32,

    /// Most requests a second, e.g. 5000 or 5000/100 with the number that may come at once
    ///
    /// Requests above it wait. It holds for the request queues together; the high-priority queue is not limited.
    #[arg(long, value_name = "N[/BURST]", help_heading = "Limits", value_parser = parse_ops)]
    pub limit_ops: Option<RateLimit>,

    /// Most bytes of file data a second, read and written together, e.g. 200M
    #[arg(long, value_name = "BYTES[/BURST]", help_heading = "Limits", value_parser = parse_bandwidth)]
    pub limit_bandwidth: Option<RateLimit>,

    /// Most files and directories that the guest may know at a time; beyond it are ENFILE errors
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = value_parser!(u64).range(1..))]
    pub max_inodes: Option<u64>,

    /// Most files and directories that the guest may have open at a time; beyond it are ENFILE errors
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = value_parser!(u64).range(1..))]
    pub max_handles: Option<u64>,

    /// How the source of a live migration names files
    #[arg(
        long,
        value_name = "MODE",
        help_heading = "Live migration",
        value_enum,
        default_value = "find-paths"
    )]
    pub migration_mode: MigrationMode,

    /// What the destination of a live migration does about files that it cannot find
    #[arg(long, value_name = "ACTION", help_heading = "Live migration", value_enum, default_value = "abort")]
    pub migration_on_error: MigrationOnError,

    /// Let the destination check that it found the very same files (find-paths; same file system on both sides)
    #[arg(long, help_heading = "Live migration")]
    pub migration_verify_handles: bool,

    /// Check all paths again at switch-over (find-paths; takes time while the guest stands still)
    #[arg(long, help_heading = "Live migration")]
    pub migration_confirm_paths: bool,

    /// Which messages are logged; the variable RUST_LOG overrides it
    #[arg(long, value_name = "LEVEL", help_heading = "Messages", ignore_case = true, default_value = "info")]
    #[arg(value_parser = PossibleValuesParser::new(LOG_LEVELS).try_map(|level| level.parse::<LevelFilter>()))]
    pub log_level: LevelFilter,

    /// Log to syslog instead of standard error
    #[arg(long, help_heading = "Messages")]
    pub syslog: bool,

    /// Show counters and latencies at a UNIX socket at this path
    ///
    /// GET /metrics gives OpenMetrics text, GET /stat JSON; virtiofsd stat shows a table. Only the daemon's user
    /// can connect, and the group of --socket-group.
    #[arg(long, value_name = "PATH", help_heading = "Messages")]
    pub metrics_socket: Option<PathBuf>,

    /// Tell a management layer, in JSON, what this program can do
    #[arg(long, help_heading = "Messages")]
    pub print_capabilities: bool,

    /// Take options from this file (TOML), which the command line overrides
    ///
    /// A key for each option, without the dashes before it: shared-dir = "/srv/data". See virtiofsd.toml(5).
    #[arg(long, value_name = "FILE", help_heading = "Configuration file")]
    pub config: Option<PathBuf>,

    /// Only check the configuration file (by default the one of --config) and the command line
    ///
    /// The exit status is 0 if a daemon could be started with it, else 2.
    #[arg(long, value_name = "FILE", help_heading = "Configuration file", num_args = 0..=1)]
    pub check_config: Option<Option<PathBuf>>,

    /// Options as of the C virtiofsd, NAME[=VALUE] with commas between them
    #[arg(short = 'o', value_name = "OPTIONS", help_heading = "Deprecated", hide_short_help = true)]
    #[arg(action = ArgAction::Append)]
    pub legacy: Vec<OsString>,

    /// The same as --socket-path
    #[arg(long, value_name = "PATH", help_heading = "Deprecated", hide_short_help = true)]
    pub socket: Option<PathBuf>,

    /// The same as --log-level=debug
    #[arg(short = 'd', help_heading = "Deprecated", hide_short_help = true)]
    pub legacy_debug: bool,

    /// No effect
    #[arg(short = 'f', help_heading = "Deprecated", hide_short_help = true)]
    pub legacy_foreground: bool,
}

/// A map with the text that it was made from, which is what the worker gets.
#[derive(Clone, Debug)]
pub(super) struct XattrMapArg {
    pub text: String,
    pub map: XattrMap,
}

impl FromStr for XattrMapArg {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { map: text.parse()?, text: text.to_owned() })
    }
}

fn parse_tag(tag: &str) -> Result<String, String> {
    match tag.len() {
        1..=MAX_TAG => Ok(tag.to_owned()),
        length => Err(format!("it has {length} bytes, but a tag has 1 to {MAX_TAG}")),
    }
}
