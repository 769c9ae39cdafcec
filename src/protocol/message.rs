//! The messages: [`ToWorker`] and [`ToBroker`], one enum per direction, every limit beside its field.
//!
//! Most requests have one reply of the same name, and the worker has at most one request outstanding; which have
//! none, how many fds each carries and when it may come is in [`super::phase`].

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::bounded::{Bytes, List};
use super::errno::Errno;
use super::handle::{FileHandle, SealedHandle};
use super::log_line::LogLevel;
use super::name::{EntryName, TrustedName};
use super::{MAX_FDS, Services};
use crate::config::{LandlockMode, SandboxMode, SeccompMode, WorkerCapability, WorkerConfig};

/// Largest value of an extended attribute in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_SIZE_MAX: usize = 65536;

/// Largest list of names of extended attributes in bytes (`XATTR_LIST_MAX`).
pub const XATTR_LIST_MAX: usize = 65536;

/// Longest reason in a [`LayerReport`] in bytes.
pub const MAX_REASON: usize = 400;

/// Most entries in a [`ToBroker::Confined`].
pub const MAX_REPORTS: usize = 32;

/// Broker → worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first message, once. Fds, in this order: the share, the listening vhost-user socket, the worker's own
    /// `/proc/self/fd`, the memory for metrics.
    Start(Box<Start>),
    /// Reply to [`ToBroker::Seal`]: one result for each of its fds, in their order.
    Sealed(List<Result<SealedHandle, Errno>, MAX_FDS>),
    /// Reply to [`ToBroker::Reopen`]: one result for each of its handles, in their order, and with each `Ok` one
    /// `O_PATH` fd. `ESTALE` when the file is gone.
    Reopened(List<Result<(), Errno>, MAX_FDS>),
    /// Reply to [`ToBroker::Admit`]: one result for each of its handles, in their order, and with each `Ok` one
    /// `O_PATH` fd. `ESTALE` when the handle leads to no file that is proven to lie in the share.
    Admitted(List<Result<(), Errno>, MAX_FDS>),
    /// Reply to [`ToBroker::MakeDevice`].
    DeviceMade(Result<(), Errno>),
    /// Reply to [`ToBroker::TrustedXattr`].
    TrustedXattr(Result<XattrReply, Errno>),
}

/// Worker → broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBroker {
    /// The worker is confined and listens; it names the layers that are missing or weaker than asked for. No
    /// reply.
    Confined(List<LayerReport, MAX_REPORTS>),
    /// The front end has connected. No reply.
    Attached,
    /// Seal the files of the 1–253 fds that come with it (of any access mode, usually `O_PATH`).
    Seal,
    /// Open the files of these handles: as many as one reply has room for fds.
    Reopen(List<SealedHandle, MAX_FDS>),
    /// Open file handles that a migration stream had: as many as one reply has room for fds.
    Admit(Admit),
    /// Make a device node in the directory whose fd comes with it.
    MakeDevice(MakeDevice),
    /// A `trusted.*` attribute of the file whose fd (of any access mode) comes with it.
    TrustedXattr(TrustedXattr),
}

/// All that a worker needs to begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What the user asked for.
    pub config: WorkerConfig,
    /// Least severe level that the worker writes into the log pipe.
    pub log_level: LogLevel,
    /// `--sandbox`
    pub sandbox: SandboxMode,
    /// `--seccomp`
    pub seccomp: SeccompMode,
    /// `--landlock`
    pub landlock: LandlockMode,
    /// The capabilities that the worker keeps in its own user namespace.
    pub capabilities: BTreeSet<WorkerCapability>,
    /// What the share's fd is.
    pub share: ShareKind,
    /// Whether the share's fd is on a mount of its own.
    pub share_mount: ShareMount,
    /// How far the worker can act as other users.
    pub ids: IdsInForce,
    /// What the broker will serve; any other request is a violation.
    pub services: Services,
}

/// What `--shared-dir` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareKind {
    /// A directory.
    Directory,
    /// A single file.
    RegularFile,
}

/// Which mount the share's fd is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareMount {
    /// A detached clone, idmapped with the worker's user namespace: `..` ends at its root.
    Idmapped,
    /// A detached clone: `..` ends at its root.
    Detached,
    /// The host's mount, as the broker can't make others. A worker in namespaces of its own starts with the share as
    /// its working directory: it clones that in its own mount namespace, and its `/proc/self/fd` too, and uses the
    /// clones in place of the fds that came with [`ToWorker::Start`].
    Host,
}

/// How the worker's ids relate to the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdsInForce {
    /// Ids below this number are valid; the host sees them in another range.
    Shifted(u32),
    /// All ids, one to one.
    Identity,
    /// As `--uid-map` and `--gid-map` say, or as the caller's sub-ids.
    Mapped,
    /// Only the user's own: no acting as others.
    OwnOnly,
}

/// A layer of the worker's confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Layer {
    /// A user namespace of its own.
    UserNamespace,
    /// A mount namespace of its own.
    MountNamespace,
    /// A pid namespace of its own.
    PidNamespace,
    /// A network namespace of its own.
    NetworkNamespace,
    /// An IPC namespace of its own.
    IpcNamespace,
    /// A UTS namespace of its own.
    UtsNamespace,
    /// A cgroup namespace of its own.
    CgroupNamespace,
    /// Ids that are nobody else's on the host.
    ShiftedIds,
    /// The share as a mount of its own.
    ShareMount,
    /// An empty root directory.
    EmptyRoot,
    /// Resource limits.
    ResourceLimits,
    /// `no_new_privs`.
    NoNewPrivileges,
    /// Not dumpable, not traceable by its own user.
    NotDumpable,
    /// Dropped capabilities.
    Capabilities,
    /// Landlock.
    Landlock,
    /// System-call filter.
    Seccomp,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserNamespace => "user namespace",
            Self::MountNamespace => "mount namespace",
            Self::PidNamespace => "pid namespace",
            Self::NetworkNamespace => "network namespace",
            Self::IpcNamespace => "IPC namespace",
            Self::UtsNamespace => "UTS namespace",
            Self::CgroupNamespace => "cgroup namespace",
            Self::ShiftedIds => "shifted ids",
            Self::ShareMount => "own mount of the share",
            Self::EmptyRoot => "empty root directory",
            Self::ResourceLimits => "resource limits",
            Self::NoNewPrivileges => "no_new_privs",
            Self::NotDumpable => "non-dumpable process",
            Self::Capabilities => "dropped capabilities",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp filter",
        })
    }
}

/// Less than the whole layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerState {
    /// Not there.
    Missing,
    /// There, with less effect than asked for.
    Weakened,
}

/// A layer that is not fully there, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer.
    pub layer: Layer,
    /// How much of it is gone.
    pub state: LayerState,
    /// Why, in words for the operator; UTF-8 expected, escaped before it is shown.
    pub reason: Bytes<0, MAX_REASON>,
}

impl LayerReport {
    /// Makes a report; a reason longer than [`MAX_REASON`] bytes is cut.
    pub fn new(layer: Layer, state: LayerState, reason: &str) -> Self {
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        Self { layer, state, reason: Bytes::shortened(&reason.as_bytes()[..end]) }
    }
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            LayerState::Missing => "missing",
            LayerState::Weakened => "weakened",
        };
        write!(f, "confinement: {}: {state}: {}", self.layer, String::from_utf8_lossy(self.reason.as_slice()))
    }
}

/// The two kinds of device node. (FIFOs, sockets and whiteouts the worker makes itself.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A character device.
    Character,
}

/// Permission bits with set-id and sticky bits: at most `0o7777`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Permissions(u16);

impl Permissions {
    /// The bits of `mode` below the file type.
    pub fn of_mode(mode: u32) -> Self {
        Self((mode & 0o7777) as u16)
    }

    /// The bits, as in `st_mode`.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }
}

/// Bits outside `0o7777`.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:#o} has bits that are no permissions")]
pub struct NotPermissions(u16);

impl TryFrom<u16> for Permissions {
    type Error = NotPermissions;

    fn try_from(bits: u16) -> Result<Self, NotPermissions> {
        if bits & !0o7777 == 0 { Ok(Self(bits)) } else { Err(NotPermissions(bits)) }
    }
}

impl From<Permissions> for u16 {
    fn from(permissions: Permissions) -> u16 {
        permissions.0
    }
}

/// A device node to make (`--modcaps=+mknod`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDevice {
    /// Its name in the directory.
    pub name: EntryName,
    /// Block or character.
    pub kind: DeviceKind,
    /// Its permissions before the umask.
    pub permissions: Permissions,
    /// The guest's umask: applied unless the directory has a default ACL, as the kernel does.
    pub umask: Permissions,
    /// Device major number.
    pub major: u32,
    /// Device minor number.
    pub minor: u32,
    /// Its owner, as the worker's namespace numbers users.
    pub uid: u32,
    /// Its group, as the worker's namespace numbers groups.
    pub gid: u32,
}

/// File handles of a migration stream, which anybody may have made up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admit {
    /// The mount to open them on, as in a [`SealedHandle`] of a file there.
    pub mount: u32,
    /// The handles.
    pub handles: List<FileHandle, MAX_FDS>,
}

/// What to do with a `trusted.*` attribute (`--modcaps=+sys_admin`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustedXattr {
    /// Its value.
    Get {
        /// The attribute.
        name: TrustedName,
    },
    /// Set it.
    Set {
        /// The attribute.
        name: TrustedName,
        /// Its new value, at most 64 KiB.
        value: Bytes<0, XATTR_SIZE_MAX>,
        /// What if it exists or doesn't.
        mode: XattrSetMode,
    },
    /// The names of all that the xattr map can produce.
    List,
    /// Remove it.
    Remove {
        /// The attribute.
        name: TrustedName,
    },
}

/// `setxattr(2)`'s flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrSetMode {
    /// Create or replace.
    Any,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

/// What a [`TrustedXattr`] gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrReply {
    /// The value.
    Value(Bytes<0, XATTR_SIZE_MAX>),
    /// The names, each with a NUL behind it.
    Names(Bytes<0, XATTR_LIST_MAX>),
    /// Set or removed.
    Done,
}
