//! Shows the guest what the host mounts below the share, and takes away what it unmounts, while the daemon serves.
//!
//! A process of its own, so that neither the broker nor the worker needs the right to mount. It knows nothing of guests
//! and takes no message from anybody: it reads the kernel's list of mounts whenever that changes, copies new mounts in
//! the host's mount namespace, where it belongs, and enters the worker's only to attach and detach the copies. What it
//! attaches has `nosuid`, `nodev`, `noexec`, private propagation, the share's id map, and is read-only if the share is:
//! as what was there from the start.
//!
//! - [`plan`]: the list of mounts → those in the share; no system call;
//! - [`tree`]: what is attached now → what should be;
//! - `mod.rs`: confinement, and the loop over changes; [`log`]: lines into the broker's pipe.
//!
//! What is absent: reading a file, opening anything by a path that is not below the share, and threads.

pub mod log;
pub mod plan;
pub mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::Resource;
use nix::unistd::{Whence, lseek, read};
use sandbox::capabilities::{self, Capability, CapabilitySet};
use sandbox::graft::{GraftError, Namespaces};
use sandbox::mountinfo::{self, Mount};
use sandbox::rlimits;
use sandbox::seccomp::{self, Policy};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::SeccompMode;
use crate::protocol::log_line::LogLevel;
use tree::{Attached, MAX_COPIES, Tree};

/// What the broker tells it, as its one argument, in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instructions {
    /// `--seccomp`
    pub seccomp: SeccompMode,
    /// `--readonly`
    pub read_only: bool,
    /// `--log-level`
    pub log_level: LogLevel,
}

/// What it gets at its start and keeps.
#[derive(Debug)]
pub struct Fds {
    /// The shared directory as the host has it.
    pub share: OwnedFd,
    /// The worker's copy.
    pub copy: OwnedFd,
    /// The worker's mount namespace.
    pub namespace: OwnedFd,
    /// Gets a byte for each mount that was detached.
    pub detached: OwnedFd,
    /// The worker's user namespace, if ids are mapped.
    pub ids: Option<OwnedFd>,
}

/// Why it ended.
#[derive(Debug, Error)]
pub enum FollowerError {
    /// Started by hand.
    #[error("no instructions: only the broker starts this")]
    Instructions,
    /// A step of confinement.
    #[error(transparent)]
    Limits(#[from] rlimits::RlimitError),
    /// A step of confinement.
    #[error(transparent)]
    Capabilities(#[from] capabilities::CapabilityError),
    /// A step of confinement.
    #[error(transparent)]
    Seccomp(#[from] seccomp::SeccompError),
    /// The mount namespaces.
    #[error(transparent)]
    Graft(#[from] GraftError),
    /// Something about the lists of mounts.
    #[error("cannot {0}: {1}")]
    Mounts(&'static str, Errno),
}

/// Between two looks at the list: nine times as long as a look takes, so that a host with many mounts, which come and go
/// all the time, loses a tenth of a CPU for each daemon; at least and at most so long.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// When what could not be done is tried again: first, and then each time twice as long, up to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));

/// How often what was done is looked at again before the next change.
const MAX_CHECKS: usize = 3;

/// Longest list of mounts that is read; at about 150 bytes each, more than the kernel allows a namespace by default.
const MAX_LIST: usize = 32 << 20;

/// File descriptors besides those of the copies.
const OWN_FDS: usize = 32;

/// The follower's whole life: confined first, then until the broker ends it.
///
/// # Errors
/// [`FollowerError`]; it never ends otherwise.
pub fn run(instructions: &Instructions, fds: Fds) -> Result<(), FollowerError> {
    let Fds { share, copy, namespace, detached, ids } = fds;
    let namespaces = Namespaces::new(namespace)?;
    confine(instructions.seccomp)?;
    let list = List::of_this_namespace(&namespaces)?;
    let attached = Attached { share, copy, ids, detached };
    let mut tree = Tree::new(namespaces, attached, instructions.read_only)
        .map_err(|errno| FollowerError::Mounts("tell mounts apart", errno))?;
    let worker = await_copy(&tree)?;
    tree.adopt(list.read()?, worker)?;
    follow(&mut tree, &list)
}

/// What it needs: to enter the worker's namespace and change its mounts, and to find what is mounted in directories
/// that are closed to others. Not Landlock: a process under it may not mount at all.
fn confine(seccomp: SeccompMode) -> Result<(), FollowerError> {
    rlimits::forbid_core_dumps()?;
    rlimits::lower(Resource::RLIMIT_NOFILE, (MAX_COPIES + OWN_FDS) as u64)?;
    for resource in [Resource::RLIMIT_NPROC, Resource::RLIMIT_FSIZE, Resource::RLIMIT_MEMLOCK] {
        rlimits::lower(resource, 0)?;
    }
    capabilities::forbid_new_privileges()?;
    let needed = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_CHROOT, Capability::CAP_DAC_READ_SEARCH];
    capabilities::limit_to(needed.into_iter().collect::<CapabilitySet>())?;
    let mode = match seccomp {
        SeccompMode::None => seccomp::Mode::None,
        SeccompMode::Kill => seccomp::Mode::Kill,
        SeccompMode::Log => seccomp::Mode::Log,
        SeccompMode::Trap => seccomp::Mode::Trap,
    };
    seccomp::apply(Policy::Follower, mode, &[])?;
    Ok(())
}

/// A list of mounts, kept open.
struct List(OwnedFd);

impl List {
    fn of_this_namespace(namespaces: &Namespaces) -> Result<Self, FollowerError> {
        let list = namespaces.mountinfo();
        list.map(Self).map_err(|errno| FollowerError::Mounts("open the list of mounts", errno))
    }

    fn read(&self) -> Result<Vec<Mount>, FollowerError> {
        let failed = |errno| FollowerError::Mounts("read the list of mounts", errno);
        lseek(&self.0, 0, Whence::SeekSet).map_err(failed)?;
        let mut text = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            let len = match read(&self.0, &mut chunk) {
                Ok(0) => return Ok(mountinfo::parse(&text)),
                Ok(len) => len,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            text.extend_from_slice(chunk.get(..len).unwrap_or_default());
            // Half a list would look as if the rest had been unmounted.
            if text.len() > MAX_LIST {
                return Err(failed(Errno::EFBIG));
            }
        }
    }

    /// Waits for a change, at most for `limit`; whether there was one.
    fn changed(&self, limit: Option<Duration>) -> Result<bool, FollowerError> {
        // Rounded up, so that the time has passed when the wait is over.
        let limit = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, limit) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(FollowerError::Mounts("wait for mounts", errno)),
        }
    }
}

/// Waits until the worker has left the host's tree and attached its copy of the share; its list of mounts then.
fn await_copy(tree: &Tree) -> Result<Vec<Mount>, FollowerError> {
    loop {
        // Opened anew each time: the list shows what can be reached from the root of the one who opened it, and the
        // worker is about to replace that.
        let list = tree.namespaces.inside(|| List::of_this_namespace(&tree.namespaces))??;
        let mounts = list.read()?;
        if mounts.iter().any(|mount| mount.id == tree.copy_mount) {
            return Ok(mounts);
        }
        list.changed(None)?;
    }
}

fn follow(tree: &mut Tree, list: &List) -> Result<(), FollowerError> {
    let mut retry = RETRY.0;
    loop {
        let mut begun = Instant::now();
        let mut progress = tree.update(list.read()?, false)?;
        for _ in 0..MAX_CHECKS {
            if !progress.changed {
                break;
            }
            begun = Instant::now();
            progress = tree.update(list.read()?, true)?;
        }
        // Of the last one, which mostly found nothing to do.
        pause((begun.elapsed() * 9).clamp(PAUSE.0, PAUSE.1))?;
        let limit = (progress.pending || progress.changed).then_some(retry);
        let changed = list.changed(limit)?;
        retry = if changed || limit.is_none() { RETRY.0 } else { (retry * 2).min(RETRY.1) };
    }
}

fn pause(time: Duration) -> Result<(), FollowerError> {
    let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [], time) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(FollowerError::Mounts("wait", errno)),
    }
}

/// The follower from its argument and its descriptors; what it has to say goes to `pipe`.
///
/// # Errors
/// [`FollowerError`], which is also in the log.
pub fn start(instructions: &str, pipe: BorrowedFd<'static>, fds: Fds) -> Result<(), FollowerError> {
    let instructions: Instructions =
        serde_json::from_str(instructions).map_err(|_| FollowerError::Instructions)?;
    // It is the first logger.
    let _ = log::init(pipe, instructions.log_level.into());
    run(&instructions, fds).inspect_err(|error| ::log::error!("{error}"))
}
