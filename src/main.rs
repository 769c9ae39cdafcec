//! Chooses the role (broker, worker, exporter, or who asks the exporter) and is the only place where the process ends.

use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use virtiofsd::config::Environment;
use virtiofsd::config::cli::{self, Action};
use virtiofsd::{broker, exporter, protocol, stat, worker};

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let is = |role: &CStr| name == OsStr::from_bytes(role.to_bytes());
    if is(protocol::WORKER_ARGV0) {
        run_worker()
    } else if is(protocol::EXPORTER_ARGV0) {
        run_exporter()
    } else if std::env::args_os().nth(1).is_some_and(|word| word == "stat") {
        run_stat()
    } else {
        run_broker()
    }
}

fn run_broker() -> ExitCode {
    let ahead = broker::Ahead::begin();
    match cli::parse(std::env::args_os(), &Environment::of_this_process()) {
        Ok(Action::Run(config, warnings)) => {
            let code = match broker::run(&config, warnings, ahead) {
                Ok(outcome) => ExitCode::from(outcome.exit_code()),
                Err(e) => {
                    log::error!("{e}");
                    ExitCode::FAILURE
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
            ExitCode::SUCCESS
        }
        Ok(Action::PrintCapabilities(text) | Action::Help(text) | Action::Version(text)) => {
            // A reader that has gone wants no more of it.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "virtiofsd: {e}");
            ExitCode::from(e.exit_status())
        }
    }
}

/// Nobody reads what it would say; the broker tells of its end.
fn run_exporter() -> ExitCode {
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
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run_stat() -> ExitCode {
    match stat::run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "virtiofsd stat: {e}");
            ExitCode::from(e.exit_status())
        }
    }
}

/// The worker's errors go to its log, which is the broker's to show.
fn run_worker() -> ExitCode {
    // SAFETY: the broker starts the worker with the log pipe at this number, and nothing ever closes it.
    let log_pipe = unsafe { BorrowedFd::borrow_raw(protocol::LOG_FD) };
    // SAFETY: the broker starts the worker with the channel at this number and nothing else has used it yet; if it
    // is not open, or not ours, every call on it fails and the worker ends.
    let channel = unsafe { OwnedFd::from_raw_fd(protocol::CHANNEL_FD) };
    let _ = worker::log::init(log_pipe);
    match worker::run(channel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("{e}");
            ExitCode::FAILURE
        }
    }
}
