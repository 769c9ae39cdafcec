//! The child's half of the start, between clone and exec.
//!
//! Invariant: no allocation, no lock, no panic, and no function of the C library that is not async-signal-safe; ids
//! are changed by direct system calls, since the C library's functions would wait for threads that do not exist in
//! the child. Whatever fails is reported as a step and an errno, and the child exits.

use std::ffi::{c_int, c_long};
use std::fmt;
use std::os::fd::RawFd;
use std::ptr;

use nix::errno::Errno;

use super::plan::Plan;

/// The byte with which the parent says that the id maps are written.
pub(super) const GO: u8 = 1;

/// A report is the number of the step that failed, or [`EXECUTING`], and the errno, little-endian.
pub(super) const REPORT_SIZE: usize = 5;

/// All steps are done, and exec comes next. Only a failure of that can follow.
const EXECUTING: u8 = 0;

/// Exit status after a failure, which has been reported; nobody looks at it.
const FAILED: c_int = 127;

/// What the new process does before its program runs, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Take the parent's root directory in place of that of its mount namespace.
    KeepRoot = 1,
    /// Give its descriptors their numbers.
    PlaceFds,
    /// Close all others.
    CloseFds,
    /// Wait until the parent has written the id maps.
    AwaitMaps,
    /// Give up the inherited supplementary groups.
    ClearGroups,
    /// Become group 0 of its user namespace.
    SetGid,
    /// Become user 0 of its user namespace.
    SetUid,
    /// Leave the terminal's session.
    NewSession,
    /// Give signals their default actions.
    ResetSignals,
    /// Tie its life to the parent's.
    DieWithParent,
    /// Execute the program.
    Exec,
}

const STEPS: [Step; 11] = [
    Step::KeepRoot,
    Step::PlaceFds,
    Step::CloseFds,
    Step::AwaitMaps,
    Step::ClearGroups,
    Step::SetGid,
    Step::SetUid,
    Step::NewSession,
    Step::ResetSignals,
    Step::DieWithParent,
    Step::Exec,
];

impl Step {
    /// What to do about it, as an addition to the message.
    pub(super) fn hint(self, errno: Errno) -> &'static str {
        match (self, errno) {
            (Self::PlaceFds, Errno::EINVAL | Errno::EMFILE | Errno::EBADF) => {
                " (is the limit of open files above the highest number?)"
            }
            (Self::KeepRoot, Errno::ENOENT) => " (is a proc file system mounted on /proc?)",
            (Self::CloseFds, _) => " (close_range needs Linux 5.9)",
            (Self::ClearGroups, Errno::EPERM) => " (setgroups may be denied in the parent's user namespace)",
            (Self::SetGid | Self::SetUid, Errno::EINVAL) => " (the id maps must have an id 0 inside)",
            (Self::Exec, Errno::ENOENT) => " (a script, or the ELF interpreter is missing)",
            _ => "",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeepRoot => "keep its parent's root directory",
            Self::PlaceFds => "give its file descriptors their numbers",
            Self::CloseFds => "close the other file descriptors",
            Self::AwaitMaps => "wait for its id maps",
            Self::ClearGroups => "give up its supplementary groups",
            Self::SetGid => "become group 0 of its user namespace",
            Self::SetUid => "become user 0 of its user namespace",
            Self::NewSession => "start a session",
            Self::ResetSignals => "reset its signal handling",
            Self::DieWithParent => "tie its life to its parent's",
            Self::Exec => "execute its program",
        })
    }
}

/// What a child said last before its end of the channel closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// It was about to execute its program, and has not said that this failed.
    Executing,
    /// This step failed.
    Failed(Step, Errno),
}

impl Report {
    /// From all bytes that came; `None` without a whole report.
    pub(super) fn last(said: &[u8]) -> Option<Self> {
        let (reports, _) = said.as_chunks::<REPORT_SIZE>();
        let [step, errno @ ..] = reports.last()?;
        if *step == EXECUTING {
            return Some(Self::Executing);
        }
        let step = STEPS.into_iter().find(|known| *known as u8 == *step)?;
        Some(Self::Failed(step, Errno::from_raw(i32::from_le_bytes(*errno))))
    }
}

/// Runs the plan; ends in the new program or in `_exit`.
pub(super) fn run(plan: &mut Plan) -> ! {
    let (step, errno) = match prepare(plan) {
        Ok(()) => (Step::Exec, exec(plan)),
        Err(failure) => failure,
    };
    report(plan.channel, step as u8, errno as i32);
    // SAFETY: _exit takes an integer, runs no exit handlers, and is async-signal-safe.
    unsafe { libc::_exit(FAILED) }
}

type Outcome = Result<(), (Step, Errno)>;

fn at(step: Step, result: Result<c_long, Errno>) -> Outcome {
    match result {
        Ok(_) => Ok(()),
        Err(errno) => Err((step, errno)),
    }
}

fn prepare(plan: &mut Plan) -> Outcome {
    if let Some(root) = &plan.root {
        // The working directory stays: perhaps nobody could come back to it.
        // SAFETY: the path is NUL-terminated.
        let result = unsafe { libc::chroot(root.as_ptr()) };
        at(Step::KeepRoot, Errno::result(result).map(c_long::from))?;
    }
    // Descriptors first: until this process has closed its copies of other processes' channels, those could not
    // see that their parent is gone.
    place_fds(plan).map_err(|errno| (Step::PlaceFds, errno))?;
    for (first, last) in &plan.gaps {
        // SAFETY: closing takes integers; what is closed belongs to a copy of the parent that never runs again.
        let result = unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) };
        at(Step::CloseFds, Errno::result(result))?;
    }
    await_maps(plan.channel)?;
    if plan.become_root {
        become_root(plan.clear_groups)?;
    }
    // SAFETY: setsid takes no argument.
    at(Step::NewSession, Errno::result(unsafe { libc::setsid() }).map(c_long::from))?;
    reset_signals()?;
    die_with_parent(plan.channel)
}

/// In two passes, as a target may be the source of another.
fn place_fds(plan: &mut Plan) -> Result<(), Errno> {
    for step in &mut plan.moves {
        // SAFETY: this command takes integers and makes a new descriptor.
        let parked = unsafe { libc::fcntl(step.source, libc::F_DUPFD_CLOEXEC, plan.floor) };
        step.parked = Errno::result(parked)?;
        if step.source == plan.channel {
            plan.channel = step.parked;
        }
    }
    for step in &plan.moves {
        let flags = if step.close_on_exec { libc::O_CLOEXEC } else { 0 };
        // SAFETY: dup3 takes integers. What it closes at `target` is a copy of the parent's that nothing here
        // uses any more: all that is needed is parked above every target.
        Errno::result(unsafe { libc::dup3(step.parked, step.target, flags) })?;
    }
    if let Some(channel) = plan.moves.first() {
        plan.channel = channel.target;
    }
    Ok(())
}

/// Waits for the parent's byte; without one the parent is gone, and so is every reason to go on.
/// How often the child looks for the parent's word before it sleeps. The maps take the parent some 50 µs, and to be
/// woken takes as long again; this many looks are about 200 µs.
const LOOKS: u32 = 500;

fn await_maps(channel: RawFd) -> Outcome {
    let mut byte = 0u8;
    let mut looks = LOOKS;
    loop {
        let flags = if looks > 0 { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: the buffer is one live byte.
        match Errno::result(unsafe { libc::recv(channel, (&raw mut byte).cast(), 1, flags) }) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err((Step::AwaitMaps, Errno::EPIPE)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if looks > 0 => {
                looks -= 1;
                // SAFETY: the call takes nothing.
                unsafe { libc::sched_yield() };
            }
            Err(errno) => return Err((Step::AwaitMaps, errno)),
        }
    }
}

fn become_root(clear_groups: bool) -> Outcome {
    if clear_groups {
        // SAFETY: with a count of 0 the pointer is not used.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, 0, ptr::null::<u32>()) };
        at(Step::ClearGroups, Errno::result(result))?;
    }
    // SAFETY: the call takes integers.
    at(Step::SetGid, Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) }))?;
    // SAFETY: the call takes integers.
    at(Step::SetUid, Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }))
}

/// Ignored signals would stay ignored in the new program, and blocked ones blocked.
fn reset_signals() -> Outcome {
    // All zero is "default action, no flags, empty mask" in the kernel's struct sigaction and in a signal mask on
    // every architecture; both are at most this big.
    let zero = [0u64; 8];
    const MASK_SIZE: usize = 8;
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the kernel reads a struct sigaction (at most 32 bytes) from a live 64-byte buffer.
        let result = unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, zero.as_ptr(), ptr::null::<u64>(), MASK_SIZE)
        };
        at(Step::ResetSignals, Errno::result(result))?;
    }
    // SAFETY: the kernel reads an 8-byte mask from a live buffer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            zero.as_ptr(),
            ptr::null::<u64>(),
            MASK_SIZE,
        )
    };
    at(Step::ResetSignals, Errno::result(result))
}

/// After the last change of ids, which would undo it. A parent that ended just before shows by its end of the
/// channel; getppid says nothing in a new pid namespace.
fn die_with_parent(channel: RawFd) -> Outcome {
    // SAFETY: this command takes an integer only.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
    at(Step::DieWithParent, Errno::result(result).map(c_long::from))?;
    let mut poll = libc::pollfd { fd: channel, events: 0, revents: 0 };
    // SAFETY: one live pollfd; a timeout of 0 does not wait.
    let result = unsafe { libc::poll(&raw mut poll, 1, 0) };
    at(Step::DieWithParent, Errno::result(result).map(c_long::from))?;
    if poll.revents != 0 { Err((Step::DieWithParent, Errno::EPIPE)) } else { Ok(()) }
}

/// Returns only when it fails.
fn exec(plan: &Plan) -> Errno {
    report(plan.channel, EXECUTING, 0);
    // SAFETY: both arrays end with a null pointer, and their strings are NUL-terminated and live in the plan.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            plan.exe,
            c"".as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Errno::last()
}

/// Without a parent there is nobody to report to, so a failure here changes nothing.
fn report(channel: RawFd, step: u8, errno: i32) {
    let [a, b, c, d] = errno.to_le_bytes();
    let bytes: [u8; REPORT_SIZE] = [step, a, b, c, d];
    // SAFETY: the buffer is live and of the length passed.
    unsafe { libc::send(channel, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_last_whole_report_counts() {
        assert_eq!(Report::last(&[]), None);
        assert_eq!(Report::last(&[EXECUTING, 0, 0, 0]), None);
        assert_eq!(Report::last(&[EXECUTING, 0, 0, 0, 0]), Some(Report::Executing));
        let failed = Some(Report::Failed(Step::Exec, Errno::EACCES));
        assert_eq!(Report::last(&[EXECUTING, 0, 0, 0, 0, 11, 13, 0, 0, 0]), failed);
        assert_eq!(Report::last(&[2, 9, 0, 0, 0]), Some(Report::Failed(Step::PlaceFds, Errno::EBADF)));
        assert_eq!(Report::last(&[12, 9, 0, 0, 0]), None);
    }

    #[test]
    fn every_step_can_be_reported() {
        for (position, step) in STEPS.into_iter().enumerate() {
            assert_eq!(step as usize, position + 1, "{step:?} has its place in STEPS");
        }
    }

    #[test]
    fn a_parent_that_is_gone_ends_the_wait() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(await_maps(ours.as_raw_fd()), Err((Step::AwaitMaps, Errno::EPIPE)));
    }

    #[test]
    fn a_parent_that_has_just_gone_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // In a thread of its own, as the parent-death signal belongs to the thread.
        std::thread::spawn(move || {
            assert_eq!(die_with_parent(ours.as_raw_fd()), Ok(()));
            drop(theirs);
            assert_eq!(die_with_parent(ours.as_raw_fd()), Err((Step::DieWithParent, Errno::EPIPE)));
        })
        .join()
        .unwrap();
    }
}
