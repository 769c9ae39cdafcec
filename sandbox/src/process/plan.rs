//! What the child will do, worked out in the parent: between clone and exec nothing may be allocated, because
//! another thread of the parent may have held the allocator's lock at the moment of the clone.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use nix::errno::Errno;

use super::{Spawn, SpawnError};
use crate::fds::gaps;

/// Highest number that a descriptor may get, far above any that is of use; two more are needed above it.
const FD_MAX: RawFd = 1 << 20;

/// One descriptor on its way to its number.
#[derive(Debug)]
pub(super) struct Move {
    /// The parent's number.
    pub source: RawFd,
    /// A number above all targets, for the time in which targets are still other descriptors' sources.
    pub parked: RawFd,
    /// The number in the new program.
    pub target: RawFd,
    /// Closed by exec.
    pub close_on_exec: bool,
}

/// The child's instructions.
#[derive(Debug)]
pub(super) struct Plan {
    /// The channel to the parent; its number changes as descriptors move.
    pub channel: RawFd,
    /// A path to what stays its root directory; without one, that of its mount namespace does.
    pub root: Option<CString>,
    /// Where the executable will be.
    pub exe: RawFd,
    /// The channel comes first, so that a later failure can be reported.
    pub moves: Vec<Move>,
    /// Lowest number for parked descriptors.
    pub floor: RawFd,
    /// What is closed when all are in place.
    pub gaps: Vec<(u32, u32)>,
    /// NULL-terminated, into `strings`.
    pub argv: Vec<*const libc::c_char>,
    /// NULL-terminated, into `strings`.
    pub envp: Vec<*const libc::c_char>,
    /// There is a new user namespace to become root of.
    pub become_root: bool,
    /// ... in which setgroups(2) is allowed.
    pub clear_groups: bool,
    /// What `argv` and `envp` point into.
    _strings: Vec<CString>,
}

impl Plan {
    /// Descriptors and strings of `request`, `null`, `channel` and the descriptor of `root` must stay open and alive while
    /// the plan is used.
    pub(super) fn new(
        request: &Spawn<'_>,
        null: &File,
        channel: &UnixStream,
        root: Option<&OwnedFd>,
    ) -> Result<Self, SpawnError> {
        let root = root.map(|root| CString::new(format!("/proc/self/fd/{}", root.as_raw_fd())));
        let root = root.transpose().map_err(|_| SpawnError::OwnRoot(Errno::EINVAL))?;
        if request.argv.is_empty() {
            return Err(SpawnError::NoArguments);
        }
        let mut targets: Vec<RawFd> = request.fds.iter().map(|(_, target)| *target).collect();
        check_targets(&mut targets)?;
        let standard: Vec<RawFd> = (0..3).filter(|number| !targets.contains(number)).collect();
        let highest = targets.last().map_or(2, |last| *last.max(&2));
        let (channel_target, exe) = (highest + 1, highest + 2);

        let to = |source, target, close_on_exec| Move { source, parked: -1, target, close_on_exec };
        let mut moves =
            vec![to(channel.as_raw_fd(), channel_target, true), to(request.exe.as_raw_fd(), exe, true)];
        moves.extend(request.fds.iter().map(|(source, target)| to(source.as_raw_fd(), *target, false)));
        moves.extend(standard.iter().map(|number| to(null.as_raw_fd(), *number, false)));
        let kept: Vec<RawFd> = moves.iter().map(|step| step.target).collect();

        let strings: Vec<CString> = request.argv.iter().chain(&request.envp).cloned().collect();
        let (argv, envp) = strings.split_at(request.argv.len());
        let maps = request.id_maps.as_ref();
        Ok(Self {
            channel: channel.as_raw_fd(),
            root,
            exe,
            moves,
            floor: exe + 1,
            gaps: gaps(&kept),
            argv: pointers(argv),
            envp: pointers(envp),
            become_root: maps.is_some(),
            clear_groups: maps.is_some_and(|maps| !maps.setgroups_deny),
            _strings: strings,
        })
    }
}

/// Sorts them, and refuses doubles and impossible ones.
fn check_targets(targets: &mut [RawFd]) -> Result<(), SpawnError> {
    targets.sort_unstable();
    if let Some(bad) = targets.iter().find(|target| !(0..=FD_MAX).contains(*target)) {
        return Err(SpawnError::FdRange(*bad));
    }
    match targets.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(SpawnError::FdTwice(pair.first().copied().unwrap_or_default())),
        None => Ok(()),
    }
}

/// The pointers stay valid when `strings` moves: a `CString` owns its bytes on the heap.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}
