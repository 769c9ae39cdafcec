//! Runs a piece of a test in a child process and tells how it ended.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It returned this from its function (0 to 254), or panicked (255).
    Returned(i32),
    /// A signal ended it.
    Killed(Signal),
}

/// Forks and runs `body`; its result becomes the exit status.
pub fn run(body: impl FnOnce() -> i32) -> End {
    // SAFETY: the C library's fork leaves its own locks usable in the child, and `body` takes none of the
    // test harness's: it neither prints nor starts tests.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(255);
            // SAFETY: ends the child without the destructors and buffers that belong to the parent.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, status) => return End::Returned(status),
                WaitStatus::Signaled(_, signal, _) => return End::Killed(signal),
                _ => {}
            }
        },
    }
}
