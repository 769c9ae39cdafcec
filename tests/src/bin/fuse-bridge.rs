//! Mounts what a vhost-user-fs daemon serves through the host kernel's FUSE client, without a VM.
//!
//! Runs until it gets SIGINT, SIGTERM or SIGHUP, or the mount is unmounted, or the daemon ends. Exits with 1 when
//! the daemon broke the protocol or the mount could not be unmounted.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tests::bridge::{Bridge, BridgeOptions};

/// Mounts what a vhost-user-fs daemon serves.
#[derive(Debug, Parser)]
struct Arguments {
    /// The daemon's vhost-user socket.
    #[arg(long)]
    socket: PathBuf,
    /// Where to mount.
    #[arg(long)]
    mountpoint: PathBuf,
    /// Request queues, each with a thread.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// How long replies to READ, WRITE and FSYNC are held back, in microseconds: to have slow storage.
    #[arg(long, default_value_t = 0)]
    delay_us: u64,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("fuse-bridge: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    // Before any thread starts, so that all of them have these blocked.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().map_err(|e| format!("cannot block signals: {e}"))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
        .map_err(|e| format!("cannot make a signalfd: {e}"))?;

    let socket = arguments.socket.display();
    let stream =
        UnixStream::connect(&arguments.socket).map_err(|e| format!("cannot connect to {socket}: {e}"))?;
    let delay = Duration::from_micros(arguments.delay_us);
    let options = BridgeOptions { delay, ..BridgeOptions::with_queues(arguments.queues) };
    let bridge = Bridge::connect(stream, &arguments.mountpoint, options).map_err(|e| e.to_string())?;
    // For a script that waits for the mount.
    println!("mounted {}", arguments.mountpoint.display());
    io::stdout().flush().map_err(|e| format!("cannot write to stdout: {e}"))?;

    let mut fds =
        [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(bridge.ended_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE).map_err(|e| format!("poll: {e}"))?;
    bridge.unmount()
}
