//! The process that shows the guest what is mounted below the share later: whether there is one, and its start.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use sandbox::capabilities::{Capability, CapabilitySet};
use sandbox::mountinfo;
use sandbox::namespaces::Namespaces;
use sandbox::process::{Child, Spawn, SpawnError};

use super::share::Share;
use super::worker::View;
use crate::broker::BrokerError;
use crate::config::{Config, FollowMounts, SandboxMode};
use crate::follower::Instructions;
use crate::protocol::message::{ShareKind, ShareMount};
use crate::protocol::{
    FOLLOWER_ARGV0, FOLLOWER_COPY_FD, FOLLOWER_DETACHED_FD, FOLLOWER_IDS_FD, FOLLOWER_NAMESPACE_FD,
    FOLLOWER_SHARE_FD, LOG_FD,
};

/// The running process, and what the broker watches with it.
#[derive(Debug)]
pub struct Follower {
    /// The process.
    pub process: Child,
    /// Our end of its log pipe; does not block.
    pub log_pipe: OwnedFd,
    /// Something to read here tells that mounts were detached; does not block.
    pub detached: OwnedFd,
}

/// Starts it if it is asked for; `worker` waits for its first message or has got it.
///
/// # Errors
/// [`BrokerError`]; with `--follow-mounts=auto` what keeps it from starting is only told.
pub fn start(
    config: &Config,
    share: &Share,
    view: &View,
    worker: &Child,
    own: CapabilitySet,
) -> Result<Option<Follower>, BrokerError> {
    let always = match config.follow_mounts {
        FollowMounts::Never => return Ok(None),
        FollowMounts::Auto => false,
        FollowMounts::Always => true,
    };
    let obstacle = obstacle(config, share, view, own);
    if let Some(reason) = obstacle.filter(|_| always) {
        return Err(BrokerError::FollowImpossible(reason));
    }
    if !always && !mountinfo::propagates(share.fd.as_fd()).unwrap_or(false) {
        return Ok(None);
    }
    match obstacle {
        None => {}
        // The others are what was asked for.
        Some(CHROOT) => {
            log::info!("what the host mounts below the shared directory from now on is not shown: {CHROOT}");
            return Ok(None);
        }
        Some(_) => return Ok(None),
    }
    match spawn(config, share, view, worker) {
        Ok(follower) => Ok(Some(follower)),
        Err(error) if always => Err(error),
        Err(error) => {
            log::warn!("what the host mounts below the shared directory from now on is not shown: {error}");
            Ok(None)
        }
    }
}

/// What a privileged daemon may lack.
const CHROOT: &str = "it takes CAP_SYS_CHROOT, to enter the worker's mount namespace";

/// Why there can't be one.
fn obstacle(config: &Config, share: &Share, view: &View, own: CapabilitySet) -> Option<&'static str> {
    if share.kind != ShareKind::Directory {
        return Some("the share is a single file");
    }
    if config.confinement.sandbox != SandboxMode::Namespace {
        return Some("the worker has no mount namespace of its own");
    }
    if view.mount == ShareMount::Host || !own.contains(Capability::CAP_SYS_ADMIN) {
        return Some("it takes CAP_SYS_ADMIN, which an ordinary user's daemon does not have");
    }
    if !own.contains(Capability::CAP_SYS_CHROOT) {
        return Some(CHROOT);
    }
    None
}

/// With all namespaces of its own, but for the host's mounts and users, which it is about; or with those that it is
/// allowed to have, where a unit's `RestrictNamespaces=` forbids some.
fn spawn_with_most<'a>(request: impl Fn(Namespaces) -> Spawn<'a>) -> Result<Child, SpawnError> {
    let all = Namespaces::all().difference(Namespaces::MOUNT | Namespaces::USER);
    let mut wanted = all;
    for fewer in [Namespaces::PID, Namespaces::empty()] {
        match request(wanted).spawn() {
            Err(SpawnError::Clone { errno: Errno::EPERM, .. }) => wanted = fewer,
            result => return result.inspect(|_| report_missing(all.difference(wanted))),
        }
    }
    report_missing(all);
    request(wanted).spawn()
}

fn report_missing(missing: Namespaces) {
    if !missing.is_empty() {
        log::info!(
            "the process that follows mounts is in the broker's {missing} namespaces: making others is forbidden here \
             (EPERM), for instance by RestrictNamespaces= of a unit"
        );
    }
}

fn spawn(config: &Config, share: &Share, view: &View, worker: &Child) -> Result<Follower, BrokerError> {
    let prepare = |what| move |errno: Errno| BrokerError::PrepareFollower { what, source: errno.into() };
    let exe = open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(BrokerError::OwnExecutable)?;
    let pipe = |what| nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(prepare(what));
    let (log_pipe, log_end) = pipe("the log pipe")?;
    let (detached, detached_end) = pipe("a pipe")?;
    // Not more of the worker's files in /proc: an open list of its mounts, for one, would keep all file systems of the
    // host in use, since it holds on to the root that the worker has now and is about to leave.
    let path = format!("/proc/{}/ns/mnt", worker.pid());
    let namespace = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(prepare("the worker's mount namespace"))?;
    let ids = match view.mount {
        ShareMount::Idmapped => Some(worker.user_namespace()?),
        ShareMount::Detached | ShareMount::Host => None,
    };
    let instructions = instructions(config)?;
    let mut fds: Vec<(BorrowedFd<'_>, _)> = vec![
        (log_end.as_fd(), LOG_FD),
        (share.fd.as_fd(), FOLLOWER_SHARE_FD),
        (view.share.as_fd(), FOLLOWER_COPY_FD),
        (namespace.as_fd(), FOLLOWER_NAMESPACE_FD),
        (detached_end.as_fd(), FOLLOWER_DETACHED_FD),
    ];
    fds.extend(ids.as_ref().map(|ids| (ids.as_fd(), FOLLOWER_IDS_FD)));
    let request = |namespaces| Spawn {
        exe: exe.as_fd(),
        argv: vec![FOLLOWER_ARGV0.to_owned(), instructions.clone()],
        envp: Vec::new(),
        fds: fds.clone(),
        namespaces,
        id_maps: None,
    };
    let process = spawn_with_most(request).map_err(BrokerError::SpawnFollower)?;
    log::debug!("the guest will see what is mounted below the shared directory later");
    Ok(Follower { process, log_pipe, detached })
}

fn instructions(config: &Config) -> Result<CString, BrokerError> {
    let instructions = Instructions {
        seccomp: config.confinement.seccomp,
        read_only: config.worker.fs.readonly,
        log_level: config.log.level.into(),
    };
    let failed = |source| BrokerError::PrepareFollower { what: "its instructions", source };
    let json = serde_json::to_string(&instructions).map_err(|error| failed(error.into()))?;
    // JSON has no NUL.
    CString::new(json).map_err(|error| failed(error.into()))
}
