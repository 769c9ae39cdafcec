//! A running child process.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::mounts::{self, MountError};
use crate::sys;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status, 0 to 255.
    Status(i32),
    /// A signal ended it.
    Signal {
        /// Its number.
        signal: i32,
        /// It left a core dump.
        core_dumped: bool,
    },
}

impl Exit {
    /// It exited with status 0.
    pub fn success(self) -> bool {
        self == Self::Status(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Signal { signal, core_dumped } => {
                match Signal::try_from(*signal) {
                    Ok(known) => write!(f, "was killed by {known}")?,
                    Err(_) => write!(f, "was killed by signal {signal}")?,
                }
                f.write_str(if *core_dumped { " and dumped core" } else { "" })
            }
        }
    }
}

/// Why something could not be done with a running process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its user namespace could not be opened.
    #[error("cannot open the user namespace of process {pid}: {errno}")]
    UserNamespace {
        /// The process.
        pid: Pid,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Its directory of descriptors could not be cloned.
    #[error("cannot take the descriptor directory of process {pid}: {source}")]
    FdDirectory {
        /// The process.
        pid: Pid,
        /// Why.
        source: MountError,
    },
    /// It could not be killed.
    #[error("cannot kill process {pid}: {errno}")]
    Kill {
        /// The process.
        pid: Pid,
        /// The kernel's reason.
        errno: Errno,
    },
    /// It could not be waited for.
    #[error("cannot wait for process {pid}: {errno} (ECHILD: somebody else has, or SIGCHLD is ignored)")]
    Wait {
        /// The process.
        pid: Pid,
        /// The kernel's reason.
        errno: Errno,
    },
}

/// A child process. Dropping this kills the process if it still runs, and reaps it; that waits until it is gone,
/// which a process inside an uninterruptible system call delays.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    exit: Option<Exit>,
    /// Only while the process is on its way to its program.
    namespace: RefCell<Option<OwnedFd>>,
}

impl Child {
    pub(super) fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, exit: None, namespace: RefCell::new(None) }
    }

    /// Opens the user namespace for [`Self::user_namespace`] while the process still has its parent's ids: between
    /// its change of ids and its exec, only CAP_SYS_PTRACE may. An error is that function's to tell.
    pub(super) fn open_user_namespace(&self) {
        self.namespace.replace(self.user_namespace().ok());
    }

    /// It is executing: what was opened ahead is closed.
    pub(super) fn close_user_namespace(&self) {
        self.namespace.replace(None);
    }

    /// Its process id, in our pid namespace. It belongs to this process until [`Self::wait`] or
    /// [`Self::try_wait`] has returned its end.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor of the process (pidfd_open(2)): readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its user namespace, for [`crate::mounts::clone_share`].
    ///
    /// # Errors
    ///
    /// [`ProcessError::UserNamespace`], for one when it has ended.
    pub fn user_namespace(&self) -> Result<OwnedFd, ProcessError> {
        if let Some(opened) = self.namespace.take() {
            return Ok(opened);
        }
        let path = format!("/proc/{}/ns/user", self.pid);
        open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| ProcessError::UserNamespace { pid: self.pid, errno })
    }

    /// A detached clone of its `/proc/PID/fd`: with it the process turns its own `O_PATH` descriptors into open
    /// files (`openat(directory, "17", O_RDWR)`) without seeing a proc file system; `..` in it leads nowhere, and
    /// no other process's descriptors can be opened through it. Needs CAP_SYS_ADMIN; without, the process uses
    /// [`crate::mounts::clone_own_fd_directory`].
    ///
    /// # Errors
    ///
    /// [`ProcessError::FdDirectory`], for one when it has ended.
    pub fn fd_directory(&self) -> Result<OwnedFd, ProcessError> {
        mounts::clone_fd_directory(self.pid)
            .map_err(|source| ProcessError::FdDirectory { pid: self.pid, source })
    }

    /// Sends SIGKILL. That it has ended already is no error.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Kill`].
    pub fn kill(&self) -> Result<(), ProcessError> {
        match sys::pidfd_send_signal(self.pidfd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(ProcessError::Kill { pid: self.pid, errno }),
        }
    }

    /// Waits until it has ended, and reaps it. Later calls return the same again.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Wait`].
    pub fn wait(&mut self) -> Result<Exit, ProcessError> {
        loop {
            if let Some(exit) = self.reap(0)? {
                return Ok(exit);
            }
        }
    }

    /// As [`Self::wait`], but `None` at once while it runs.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Wait`].
    pub fn try_wait(&mut self) -> Result<Option<Exit>, ProcessError> {
        self.reap(libc::WNOHANG)
    }

    fn reap(&mut self, flags: i32) -> Result<Option<Exit>, ProcessError> {
        if self.exit.is_none() {
            self.exit = match sys::wait_pidfd(self.pidfd(), flags) {
                Ok(Some((libc::CLD_EXITED, status))) => Some(Exit::Status(status)),
                Ok(Some((code, signal))) => {
                    Some(Exit::Signal { signal, core_dumped: code == libc::CLD_DUMPED })
                }
                Ok(None) | Err(Errno::EINTR) => None,
                Err(errno) => return Err(ProcessError::Wait { pid: self.pid, errno }),
            };
        }
        Ok(self.exit)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() {
            // A process that cannot be killed would be waited for without end.
            let reaped = self.kill().and_then(|()| self.wait());
            if let Err(error) = reaped {
                log::warn!("a child process may be left behind: {error}");
            }
        }
    }
}
