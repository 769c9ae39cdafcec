//! Chooses the role (broker, worker, exporter, follower, or who asks the exporter) and is the only place where the process ends.
//!
//! The C library calls [`main`] itself, without the standard library's preparations: to be able to say that a stack
//! overflowed, those read `/proc/self/maps` and give each thread a stack for signals, which takes a twentieth of a start.
//! (A stack that overflows still ends the process, with SIGSEGV.) What is needed of them is in [`prepare`]; the words of
//! the command line are there without them, on Linux with the GNU C library.
#![no_main]

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::Mode;
use virtiofsd::config::Environment;
use virtiofsd::config::cli::{self, Action};
use virtiofsd::{broker, exporter, follower, protocol, stat, worker};

/// Exit status when all is well.
const SUCCESS: u8 = 0;
/// Exit status of what the log tells of.
const FAILURE: u8 = 1;
/// Exit status after a panic, in builds where that does not abort: the standard library's.
const PANICKED: u8 = 101;

/// # Safety
/// Only the C library calls it, once, when the process begins.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _words: *const *const c_char) -> c_int {
    prepare();
    // A panic must not leave a function of C's; the hook has told of it.
    let status = std::panic::catch_unwind(role).unwrap_or(PANICKED);
    let _ = std::io::stdout().flush();
    c_int::from(status)
}

/// A broken pipe is an error of the write, and no file that we open gets the number of a standard stream that the
/// parent had closed.
fn prepare() {
    // SAFETY: no handler runs: the signal is ignored from now on.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    for number in 0..3 {
        // SAFETY: the fd is only asked about, and an answer that there is none is what we want to know.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        if fcntl(stream, FcntlArg::F_GETFD) == Err(Errno::EBADF) {
            // It gets the lowest number that is free. Without it, writes to the stream go nowhere, as before.
            let null = open("/dev/null", OFlag::O_RDWR, Mode::empty());
            let _ = null.map(IntoRawFd::into_raw_fd);
        }
    }
}

fn role() -> u8 {
    let name = std::env::args_os().next().unwrap_or_default();
    let is = |role: &CStr| name == OsStr::from_bytes(role.to_bytes());
    if is(protocol::WORKER_ARGV0) {
        run_worker()
    } else if is(protocol::EXPORTER_ARGV0) {
        run_exporter()
    } else if is(protocol::FOLLOWER_ARGV0) {
        run_follower()
    } else if std::env::args_os().nth(1).is_some_and(|word| word == "stat") {
        run_stat()
    } else {
        run_broker()
    }
}

fn run_broker() -> u8 {
    let ahead = broker::Ahead::begin();
    match cli::parse(std::env::args_os(), &Environment::of_this_process()) {
        Ok(Action::Run(config, warnings)) => {
            let code = match broker::run(&config, warnings, ahead) {
                Ok(outcome) => outcome.exit_code(),
                Err(e) => {
                    log::error!("{e}");
                    FAILURE
                }
            };
            log::logger().flush();
            code
        }
        Ok(Action::Checked(text, warnings)) => {
            for warning in warnings {
                let _ = writeln!(std::io::stderr(), "virtiofsd: {warning}");
            }
            let _ = std::io::stdout().write_all(text.as_bytes());
            SUCCESS
        }
        Ok(Action::PrintCapabilities(text) | Action::Help(text) | Action::Version(text)) => {
            // A reader that has gone wants no more of it.
            let _ = std::io::stdout().write_all(text.as_bytes());
            SUCCESS
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "virtiofsd: {e}");
            e.exit_status()
        }
    }
}

/// Nobody reads what it would say; the broker tells of its end.
fn run_exporter() -> u8 {
    // SAFETY: the broker starts the exporter with these two at these numbers and nothing else has used them yet; if
    // they are not open, or others, the exporter ends at the first call on them.
    let (listener, memory) = unsafe {
        (
            OwnedFd::from_raw_fd(protocol::EXPORTER_SOCKET_FD),
            OwnedFd::from_raw_fd(protocol::EXPORTER_MEMORY_FD),
        )
    };
    let instructions = std::env::args().nth(1).unwrap_or_default();
    match exporter::run(&instructions, listener, memory) {
        Ok(()) => SUCCESS,
        Err(_) => FAILURE,
    }
}

/// Its errors go to its log, which is the broker's to show.
fn run_follower() -> u8 {
    // SAFETY: the broker starts the follower with these at these numbers, and the last one only with mapped ids; nothing
    // else has used them yet. If one is not open, or another, the follower ends at the first call on it.
    let (pipe, fds) = unsafe {
        let own = |number| OwnedFd::from_raw_fd(number);
        let ids = BorrowedFd::borrow_raw(protocol::FOLLOWER_IDS_FD);
        let mapped = fcntl(ids, FcntlArg::F_GETFD).is_ok();
        let fds = follower::Fds {
            share: own(protocol::FOLLOWER_SHARE_FD),
            copy: own(protocol::FOLLOWER_COPY_FD),
            namespace: own(protocol::FOLLOWER_NAMESPACE_FD),
            detached: own(protocol::FOLLOWER_DETACHED_FD),
            ids: mapped.then(|| own(protocol::FOLLOWER_IDS_FD)),
        };
        (BorrowedFd::borrow_raw(protocol::LOG_FD), fds)
    };
    let instructions = std::env::args().nth(1).unwrap_or_default();
    match follower::start(&instructions, pipe, fds) {
        Ok(()) => SUCCESS,
        Err(_) => FAILURE,
    }
}

fn run_stat() -> u8 {
    match stat::run(std::env::args_os().skip(1)) {
        Ok(()) => SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "virtiofsd stat: {e}");
            e.exit_status()
        }
    }
}

/// The worker's errors go to its log, which is the broker's to show.
fn run_worker() -> u8 {
    // SAFETY: the broker starts the worker with the log pipe at this number, and nothing ever closes it.
    let log_pipe = unsafe { BorrowedFd::borrow_raw(protocol::LOG_FD) };
    // SAFETY: the broker starts the worker with the channel at this number and nothing else has used it yet; if it
    // is not open, or not ours, every call on it fails and the worker ends.
    let channel = unsafe { OwnedFd::from_raw_fd(protocol::CHANNEL_FD) };
    let _ = worker::log::init(log_pipe);
    match worker::run(channel) {
        Ok(()) => SUCCESS,
        Err(e) => {
            log::error!("{e}");
            FAILURE
        }
    }
}
