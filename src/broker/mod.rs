//! TRUSTED: holds the host's privileges for one device, and never sees a byte of guest memory or a FUSE message.
//!
//! Its life, in order:
//! 1. `launch`: socket, share, limits, the worker process with its namespaces, ids and mounts;
//! 2. `confine`: gives up what no enabled request needs;
//! 3. `serve`: one loop for requests (`requests`, one file each), log lines (`log`), signals, the end;
//! 4. `reap`: what the worker's end means; socket and lock file are removed.
//!
//! The process has one thread, and relies on it: credentials, umask and the worker's parent-death signal belong to
//! it. What is absent: paths from the worker, memory that grows with what a worker does, and waiting for a worker.

mod confine;
mod error;
mod launch;
mod log;
mod mounts;
mod privileges;
mod reap;
mod requests;
mod sealer;
mod serve;
mod services;
mod supervisor;
mod sys;

use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::sys::signalfd::SignalFd;

pub use error::BrokerError;
pub use reap::Outcome;

use crate::config::{Config, SocketSource};
use crate::protocol::message::{ShareMount, Start};
use crate::protocol::{Phase, ToWorker};
use launch::share::Share;
use launch::socket::{Listener, SocketFiles};
use launch::worker::Worker;
use requests::{Server, TrustedNames};
use sealer::Sealer;
use serve::Device;
use services::Offer;
use supervisor::Supervisor;

/// Serves one device from start to end. Call it from the process's first thread, before there is another and
/// before anything was opened (`--fd` takes over an inherited number). `warnings` are logged first.
///
/// # Errors
/// [`BrokerError`] for everything that keeps the device from being served; nothing is left behind then.
pub fn run<W: Display>(
    config: &Config,
    warnings: impl IntoIterator<Item = W>,
) -> Result<Outcome, BrokerError> {
    let listener = Listener::open(&config.socket);
    log::init(config.log, &subject(config));
    for warning in warnings {
        ::log::warn!("{warning}");
    }
    let Listener { socket, files } = listener?;
    let signals = match serve::take_signals() {
        Ok(signals) => signals,
        Err(error) => return clean_up_after(error, files),
    };
    match prepare(config, socket, files.as_ref(), signals) {
        Err(error) => clean_up_after(error, files),
        Ok(mut device) => {
            let outcome = device.serve();
            device.server.privileges.clean_up(|| files.map(SocketFiles::remove).unwrap_or_default());
            outcome
        }
    }
}

/// What the log calls this device.
fn subject(config: &Config) -> log::Subject {
    let device = match (&config.worker.device.tag, &config.socket) {
        (Some(tag), _) => tag.clone().into_bytes(),
        (None, SocketSource::Path { path, .. }) => path.as_os_str().as_bytes().to_vec(),
        (None, SocketSource::Fd(fd)) => format!("fd {fd}").into_bytes(),
    };
    log::Subject { share: config.shared_dir.as_os_str().as_bytes().to_vec(), device }
}

fn clean_up_after(error: BrokerError, files: Option<SocketFiles>) -> Result<Outcome, BrokerError> {
    if let Some(files) = files {
        files.remove();
    }
    Err(error)
}

/// Everything up to the worker's first message.
fn prepare(
    config: &Config,
    socket: OwnedFd,
    files: Option<&SocketFiles>,
    signals: SignalFd,
) -> Result<Device, BrokerError> {
    let own = launch::own_capabilities();
    let supervisor = Supervisor::from_environment(std::process::id(), |name| std::env::var_os(name));
    let share = Share::open(&config.shared_dir)?;
    launch::apply_nofile(config)?;
    launch::report_sandbox(config.confinement.sandbox);
    let worker = launch::worker::start(config, &share, launch::is_privileged(own))?;
    let offer = Offer::of(config, &share, &worker.view, own)?;
    let Worker { process, mut channel, log_pipe, view, ids, host_ids } = worker;
    let start = start_message(config, &share, view.mount, ids, &offer);
    drop(share);

    let fds = [view.share.as_fd(), socket.as_fd(), view.fd_directory.as_fd()];
    channel.send(&start, &fds).map_err(BrokerError::Start)?;
    // The worker confines itself at the same time. Nothing that it says is read before the broker is confined.
    let privileges = confine::confine(offer.services, own, files, config.confinement.seccomp)?;
    let server = Server {
        phase: Phase::Starting,
        services: offer.services,
        sealer: Sealer::new().map_err(BrokerError::Key)?,
        mounts: offer.mounts,
        privileges,
        host_ids,
        trusted_names: TrustedNames::of(config.worker.fs.xattrmap.as_deref()),
        readonly: config.worker.fs.readonly,
    };
    Ok(Device::new(server, process, channel, log_pipe, signals).supervised_by(supervisor))
}

fn start_message(
    config: &Config,
    share: &Share,
    mount: ShareMount,
    ids: crate::protocol::message::IdsInForce,
    offer: &Offer,
) -> ToWorker {
    ToWorker::Start(Box::new(Start {
        config: config.worker.clone(),
        log_level: config.log.level.into(),
        sandbox: config.confinement.sandbox,
        seccomp: config.confinement.seccomp,
        landlock: config.confinement.landlock,
        capabilities: config.confinement.worker_caps.clone(),
        share: share.kind,
        share_mount: mount,
        ids,
        services: offer.services,
    }))
}
