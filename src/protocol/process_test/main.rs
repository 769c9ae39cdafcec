//! Both sides of the protocol as processes: the broker from launch to clean-up, with a worker that does what the test
//! tells it.
//!
//! This program has no test harness, because it plays all three parts: by its `argv[0]` it is the worker, with the
//! first argument `broker` it is the daemon with the command line that follows, and else it is the test. It needs
//! root; where it says so it becomes an ordinary user itself.

#![no_main]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test, which clippy does not see without a harness"
)]

use std::ffi::{c_char, c_int};
use std::process::ExitCode;

mod daemon;
mod scenarios;
mod worker;

/// As the daemon's: the standard library's would end the process with calls that its broker may not make.
///
/// # Safety
/// Only the C library calls it, once.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _words: *const *const c_char) -> c_int {
    let code = std::panic::catch_unwind(role).unwrap_or(ExitCode::FAILURE);
    if code == ExitCode::SUCCESS {
        0
    } else if code == ExitCode::from(2) {
        2
    } else {
        1
    }
}

fn role() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if name.as_encoded_bytes() == virtiofsd::protocol::WORKER_ARGV0.to_bytes() {
        return worker::main();
    }
    match args.next() {
        Some(role) if role == "broker" => daemon::broker_main(args),
        filter => scenarios::run(filter.as_deref().and_then(|filter| filter.to_str())),
    }
}
