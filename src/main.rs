//! Chooses the role (broker or worker) and is the only place where the process ends.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use virtiofsd::config::Environment;
use virtiofsd::config::cli::{self, Action};
use virtiofsd::{broker, protocol, worker};

fn main() -> ExitCode {
    let worker = OsStr::from_bytes(protocol::WORKER_ARGV0.to_bytes());
    if std::env::args_os().next().is_some_and(|name| name == worker) { run_worker() } else { run_broker() }
}

fn run_broker() -> ExitCode {
    match cli::parse(std::env::args_os(), &Environment::of_this_process()) {
        Ok(Action::Run(config, warnings)) => match broker::run(&config, warnings) {
            Ok(outcome) => ExitCode::from(outcome.exit_code()),
            Err(e) => {
                log::error!("{e}");
                ExitCode::FAILURE
            }
        },
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
