//! Starting a process that is confined from its first instruction: clone(2) with new namespaces, id maps written
//! from outside, exactly the listed file descriptors, and the exec of an open executable. Nothing of the caller's
//! memory survives.
//!
//! Not here: what the new program does to itself after exec (root, limits, capabilities, filters); see the other
//! modules.
//!
//! - `mod.rs`: the request, its checks, and the parent's half of the start;
//! - `plan.rs`: everything the child needs, allocated and computed before there is a child;
//! - `child.rs`: the child's half, between clone and exec;
//! - `handle.rs`: the running child.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::id_maps::{IdMapError, IdMaps};
use crate::namespaces::Namespaces;

mod child;
mod handle;
mod plan;

use child::Report;
pub use child::Step;
pub use handle::{Child, Exit, ProcessError};
use plan::Plan;

/// A process to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The executable: an ELF file, opened in any way (also `O_PATH`). A script does not work, as its interpreter
    /// would find this descriptor closed.
    pub exe: BorrowedFd<'a>,
    /// Arguments, the program's name first.
    pub argv: Vec<CString>,
    /// The whole environment; nothing is inherited.
    pub envp: Vec<CString>,
    /// What the process inherits: our descriptor and the number it has there. 0, 1 and 2 become /dev/null unless
    /// they are listed; all others are closed.
    pub fds: Vec<(BorrowedFd<'a>, RawFd)>,
    /// Namespaces of its own. One of mounts it begins with our root directory, and enters it by
    /// [`crate::mounts::enter_empty_root`] or [`crate::mounts::enter_own_namespace`]. Its working directory is in it.
    pub namespaces: Namespaces,
    /// The ids of its user namespace; given if and only if `namespaces` has [`Namespaces::USER`]. Id 0 must be
    /// mapped: the process becomes user 0 and group 0, without supplementary groups.
    pub id_maps: Option<IdMaps>,
}

/// Why a process could not be started. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No program name.
    #[error("cannot start a process without a program name (argv is empty)")]
    NoArguments,
    /// Two descriptors for one number.
    #[error("file descriptor number {0} is given to the process twice")]
    FdTwice(RawFd),
    /// A number that is none.
    #[error("file descriptor number {0} is out of range")]
    FdRange(RawFd),
    /// Id maps without a user namespace, or the reverse.
    #[error("id maps and a user namespace go together: there are{} id maps and{} user namespace",
        if *.id_maps { "" } else { " no" }, if *.id_maps { " no" } else { " a" })]
    MapsWithoutNamespace {
        /// Whether there are id maps.
        id_maps: bool,
    },
    /// /dev/null could not be opened.
    #[error("cannot open /dev/null for the process's standard input and output: {0}")]
    DevNull(std::io::Error),
    /// Our root directory can't be opened.
    #[error("cannot open the root directory: {0}")]
    OwnRoot(Errno),
    /// No socket pair between the process and us.
    #[error("cannot make a socket pair to the process: {0}")]
    Channel(std::io::Error),
    /// clone3 or clone failed.
    #[error("cannot make a process with namespaces {namespaces}: {errno}. {}", clone_hint(*.errno))]
    Clone {
        /// Those that were asked for.
        namespaces: Namespaces,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Its id maps could not be written.
    #[error("cannot give ids to the process: {0}")]
    IdMaps(#[from] IdMapError),
    /// One of the steps that the process itself makes before exec failed.
    #[error("the process could not {step}: {errno}{}", step.hint(*.errno))]
    Child {
        /// Which one.
        step: Step,
        /// The kernel's reason.
        errno: Errno,
    },
    /// It ended before exec without saying why.
    #[error("the process {exit} before it could execute its program")]
    Died {
        /// How it ended.
        exit: Exit,
    },
    /// It ended, or failed, and then could not be waited for.
    #[error("the process failed to start, and then {0}")]
    Lost(#[source] ProcessError),
}

fn clone_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOSPC => "A limit on namespaces is reached: see /proc/sys/user/max_*_namespaces",
        Errno::EPERM => {
            "Without privilege this needs a user namespace, which the system may forbid \
             (kernel.unprivileged_userns_clone, an AppArmor or SELinux policy, a chroot, a container's filter)"
        }
        Errno::EINVAL => "The kernel may be built without one of them",
        Errno::EAGAIN => "A limit on processes is reached",
        _ => "",
    }
}

impl Spawn<'_> {
    /// Starts the process and returns once its program runs.
    ///
    /// The kernel kills it when the calling *thread* ends, so call this from one that lives as long as the
    /// process shall. It leads a session of its own, without a controlling terminal; signals have their default
    /// actions and none is blocked.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], by step; the process is then gone and reaped.
    pub fn spawn(self) -> Result<Child, SpawnError> {
        self.spawn_while(|_| ()).map(|(child, ())| child)
    }

    /// As [`Self::spawn`], and runs `meanwhile` while the process is on its way to its program: its namespaces and
    /// ids are those that it will have, its open files not yet.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], by step; the process is then gone and reaped, and what `meanwhile` gave is dropped.
    pub fn spawn_while<T>(self, meanwhile: impl FnOnce(&Child) -> T) -> Result<(Child, T), SpawnError> {
        let user_namespace = self.namespaces.contains(Namespaces::USER);
        if self.id_maps.is_some() != user_namespace {
            return Err(SpawnError::MapsWithoutNamespace { id_maps: self.id_maps.is_some() });
        }
        let null = File::options().read(true).write(true).open("/dev/null").map_err(SpawnError::DevNull)?;
        let (ours, theirs) = UnixStream::pair().map_err(SpawnError::Channel)?;
        // What a program and its libraries are mapped from stays in use as long as the process. Opened in a mount
        // namespace of its own, those would hold its copy of all the host's mounts, whose file systems could not be
        // freed any more when the host unmounts them: so they are opened in ours.
        let root = self.namespaces.contains(Namespaces::MOUNT).then(open_root).transpose()?;
        let mut plan = Plan::new(&self, &null, &theirs, root.as_ref())?;
        let child = start(&mut plan, self.namespaces)?;
        drop(theirs);
        if let Some(maps) = &self.id_maps {
            maps.write(child.pid())?;
        }
        if user_namespace {
            child.open_user_namespace();
        }
        // A child that has failed already does not read: what it said is still there to be read, so an error of
        // this send says nothing.
        let _ = send(ours.as_raw_fd(), &[child::GO], MsgFlags::MSG_NOSIGNAL);
        let done = meanwhile(&child);
        child.close_user_namespace();
        executing(child, ours).map(|child| (child, done))
    }
}

fn open_root() -> Result<OwnedFd, SpawnError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/", flags, Mode::empty()).map_err(SpawnError::OwnRoot)
}

/// linux/sched.h. (libc's constant of this name has a type too small for it.)
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// clone3; the child's half runs in the child and does not return.
fn start(plan: &mut Plan, namespaces: Namespaces) -> Result<Child, SpawnError> {
    let mut pidfd: RawFd = -1;
    let arguments = libc::clone_args {
        flags: namespaces.bits() | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM this is a fork: the child gets a copy of the address space and of this stack, and
    // it makes async-signal-safe calls only until it executes or exits (child.rs). `arguments` is a live
    // clone_args of the size that is passed, and its `pidfd` points to a live integer.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    let result = match Errno::result(result) {
        Err(Errno::ENOSYS) => Errno::result(clone_with_flags(namespaces, &mut pidfd)),
        result => result,
    };
    let pid = result.map_err(|errno| SpawnError::Clone { namespaces, errno })?;
    if pid == 0 {
        child::run(plan);
    }
    // SAFETY: the clone succeeded with CLONE_PIDFD, so the kernel stored a new descriptor there, which is ours.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child::new(Pid::from_raw(pid as libc::pid_t), pidfd))
}

/// The same by clone(2), whose flags a system call filter can look at: where new namespaces are restricted (by
/// systemd's `RestrictNamespaces=`, or a container's filter), clone3 looks as if the kernel did not have it. The
/// child gives its signals their default actions by itself ([`Step::ResetSignals`]).
fn clone_with_flags(namespaces: Namespaces, pidfd: &mut RawFd) -> libc::c_long {
    const NULL: usize = 0;
    let flags = namespaces.bits() | libc::CLONE_PIDFD as u64 | libc::SIGCHLD as u64;
    // SAFETY: as for clone3 in `start`. The stack is null, so the child goes on with its copy of this one; the third
    // argument is where CLONE_PIDFD stores the descriptor, a live integer. The last two are thread-local storage and
    // the child's id, in an order that differs among architectures, and neither is asked for.
    unsafe { libc::syscall(libc::SYS_clone, flags, NULL, &raw mut *pidfd, NULL, NULL) }
}

/// Waits for what the child says until its end of the channel closes with exec or death.
fn executing(mut child: Child, channel: UnixStream) -> Result<Child, SpawnError> {
    let mut said = Vec::new();
    // An error of the read leaves `said` short, and the child counts as dead.
    let _ = channel.take(2 * child::REPORT_SIZE as u64).read_to_end(&mut said);
    match Report::last(&said) {
        Some(Report::Executing) => Ok(child),
        Some(Report::Failed(step, errno)) => {
            child.wait().map_err(SpawnError::Lost)?;
            Err(SpawnError::Child { step, errno })
        }
        None => {
            child.kill().map_err(SpawnError::Lost)?;
            Err(SpawnError::Died { exit: child.wait().map_err(SpawnError::Lost)? })
        }
    }
}
