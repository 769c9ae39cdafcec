//! Both sides of the protocol as processes: the broker from launch to clean-up, with a worker that does what the test
//! tells it.
//!
//! This program has no test harness, because it plays all three parts: by its `argv[0]` it is the worker, with the
//! first argument `broker` it is the daemon with the command line that follows, and else it is the test. It needs
//! root; where it says so it becomes an ordinary user itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test, which clippy does not see without a harness"
)]

use std::process::ExitCode;

mod daemon;
mod scenarios;
mod worker;

fn main() -> ExitCode {
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
