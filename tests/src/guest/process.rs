//! Programs that a test starts: waited for with a time-out, killed when dropped, and killed by the kernel
//! when the test process itself is.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::GuestError;

/// A child process. Invariant: it is not reaped before `status` is known, so its pid and its pidfd mean it
/// and no other process.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts the command; `what` names it in errors.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(what: &str, command: Command) -> Result<Self, GuestError> {
        let step = format!("start {what} ({})", command.get_program().to_string_lossy());
        let (child, pidfd) = spawn(command).map_err(GuestError::host(step))?;
        Ok(Self { what: what.to_owned(), child, pidfd, status: None })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for its end; `None` when it still runs after `limit`.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn wait_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>, GuestError> {
        if self.status.is_none() && readable_within(&[self.pidfd.as_fd()], Instant::now() + limit)?[0] {
            let step = format!("wait for {}", self.what);
            self.status = Some(self.child.wait().map_err(GuestError::host(step))?);
        }
        Ok(self.status)
    }

    /// Sends a signal, unless it has ended.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn signal(&mut self, signal: Signal) -> Result<(), GuestError> {
        if self.status.is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(self.pid()), signal)
            .map_err(|errno| GuestError::host(format!("send {signal} to {}", self.what))(errno.into()))
    }
}

impl AsFd for Process {
    /// Its pidfd, which is readable once it has ended.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It fails only for a child that is reaped, and this one is not.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits until one of the descriptors is readable (or closed at its other end) and tells which are; all
/// `false` when the deadline passes first.
pub(super) fn readable_within(
    fds: &[std::os::fd::BorrowedFd<'_>],
    deadline: Instant,
) -> Result<Vec<bool>, GuestError> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    loop {
        // Rounded up, so that the last round does not spin.
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut polled, timeout) {
            Ok(_) => {
                return Ok(polled
                    .iter()
                    .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
                    .collect());
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(GuestError::host("wait for a descriptor")(errno.into())),
        }
    }
}

type Started = io::Result<(Child, OwnedFd)>;

/// Starts a program from a thread that lives as long as this process: the kernel sends the signal of
/// `PR_SET_PDEATHSIG` when the *thread* that forked ends, and a test's thread ends with the test.
fn spawn(command: Command) -> Started {
    static SPAWNER: OnceLock<mpsc::Sender<(Command, mpsc::Sender<Started>)>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<(Command, mpsc::Sender<Started>)>();
        std::thread::spawn(move || {
            for (command, reply) in receiver {
                // Who asked waits for the reply, so somebody receives it.
                let _ = reply.send(spawn_here(command));
            }
        });
        sender
    });
    let (reply, started) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts programs is gone");
    spawner.send((command, reply)).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

fn spawn_here(mut command: Command) -> Started {
    // SAFETY: between fork and exec the closure does one prctl system call, which is async-signal-safe, and
    // touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
    }
    let mut child = command.spawn()?;
    // SAFETY: pidfd_open takes two integers and reads no memory. The pid is our child's, not yet reaped.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    match i32::try_from(fd) {
        // SAFETY: the call above returned this descriptor, new and owned by nobody else.
        Ok(fd) if fd >= 0 => Ok((child, unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => {
            let error = io::Error::last_os_error();
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}
