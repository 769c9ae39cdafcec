//! TRUSTED: holds the host's privileges for one device, and never sees a byte of guest memory or a FUSE message.
//!
//! Its life, in order:
//! 1. `launch`: socket, share, limits, the worker process with its namespaces, ids and mounts; the processes that show
//!    metrics and new mounts, where they are asked for;
//! 2. `confine`: gives up what no enabled request needs;
//! 3. `serve`: one loop for requests (`requests`, one file each), log lines (`log`), signals, the end;
//! 4. `reap`: what the worker's end means; socket and lock file are removed.
//!
//! The process has one thread, and relies on it: credentials, umask and the worker's parent-death signal belong to
//! it. (Another one makes the worker's network namespace before there is a worker, and has ended by then.) What is absent: paths from the worker, memory that grows with what a worker does, and waiting for a worker.

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
use sandbox::capabilities::CapabilitySet;
use sandbox::network::{Making, NetworkNamespace};

pub use error::BrokerError;
pub use reap::Outcome;

use crate::config::{Config, SocketSource};
use crate::protocol::message::{ShareMount, Start};
use crate::protocol::metrics::MetricsMemory;
use crate::protocol::{Phase, ToWorker};
use launch::share::Share;
use launch::socket::{Listener, SocketFiles};
use launch::worker::Worker;
use requests::{Server, TrustedNames};
use sealer::Sealer;
use serve::Device;
use services::Offer;
use supervisor::Supervisor;

/// What is begun before there is a configuration, for the sake of a short start.
#[derive(Debug)]
pub struct Ahead {
    /// The worker's network namespace takes as long to make as all that comes before the worker.
    network: Option<Making>,
}

impl Ahead {
    /// Begins. Call it first of all, from the process's first thread; it opens nothing.
    pub fn begin() -> Self {
        Self { network: NetworkNamespace::begin().ok() }
    }
}

/// Serves one device from start to end. Call it from the process's first thread, before there is another and
/// before anything was opened (`--fd` takes over an inherited number). `warnings` are logged first.
///
/// # Errors
/// [`BrokerError`] for everything that keeps the device from being served; nothing is left behind then.
pub fn run<W: Display>(
    config: &Config,
    warnings: impl IntoIterator<Item = W>,
    ahead: Ahead,
) -> Result<Outcome, BrokerError> {
    // An inherited number must be taken over before anything else is opened and gets it.
    let inherited = matches!(config.socket, SocketSource::Fd(_)).then(|| Listener::open(&config.socket));
    log::init(config.log, &subject(config));
    for warning in warnings {
        ::log::warn!("{warning}");
    }
    let inherited = inherited.transpose()?;
    let signals = serve::take_signals()?;
    // What takes longest is the way of the worker to its first message: the rest is done meanwhile.
    let launched = launch(config, ahead)?;
    let Sockets { device, metrics, files } = open_sockets(config, inherited)?;
    match prepare(config, launched, device, metrics, &files, signals) {
        Err(error) => clean_up_after(error, files),
        Ok(mut device) => {
            let outcome = device.serve();
            device.server.privileges.clean_up(|| files.into_iter().for_each(SocketFiles::remove));
            outcome
        }
    }
}

/// The listening sockets.
struct Sockets {
    /// For the front end.
    device: OwnedFd,
    /// For who wants to see metrics.
    metrics: Option<OwnedFd>,
    /// What is to be removed at the end.
    files: Vec<SocketFiles>,
}

fn open_sockets(config: &Config, inherited: Option<Listener>) -> Result<Sockets, BrokerError> {
    let Listener { socket, files } = inherited.map_or_else(|| Listener::open(&config.socket), Ok)?;
    let mut sockets = Sockets { device: socket, metrics: None, files: files.into_iter().collect() };
    match config.metrics.as_ref().map(Listener::open) {
        None => {}
        Some(Ok(Listener { socket, files })) => {
            sockets.metrics = Some(socket);
            sockets.files.extend(files);
        }
        Some(Err(error)) => {
            sockets.files.into_iter().for_each(SocketFiles::remove);
            return Err(BrokerError::MetricsSocket(error));
        }
    }
    Ok(sockets)
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

fn clean_up_after(error: BrokerError, files: Vec<SocketFiles>) -> Result<Outcome, BrokerError> {
    files.into_iter().for_each(SocketFiles::remove);
    Err(error)
}

/// A worker on its way, and what it was made with.
struct Launched {
    own: CapabilitySet,
    share: Share,
    worker: Worker,
}

/// Starts the worker. Nothing is there yet that would have to be removed again.
fn launch(config: &Config, ahead: Ahead) -> Result<Launched, BrokerError> {
    let own = launch::own_capabilities();
    let share = Share::open(&config.shared_dir)?;
    launch::apply_nofile(config)?;
    let network = ahead.network.and_then(|making| launch::network(making, config.confinement.sandbox));
    let privileged = launch::is_privileged(own);
    let worker = launch::worker::start(config, &share, privileged, network.as_ref())?;
    Ok(Launched { own, share, worker })
}

/// Everything up to the worker's first message.
fn prepare(
    config: &Config,
    launched: Launched,
    socket: OwnedFd,
    metrics_socket: Option<OwnedFd>,
    files: &[SocketFiles],
    signals: SignalFd,
) -> Result<Device, BrokerError> {
    let Launched { own, share, worker } = launched;
    let supervisor = Supervisor::from_environment(std::process::id(), |name| std::env::var_os(name));
    let metrics = MetricsMemory::create()?;
    launch::report_sandbox(config.confinement.sandbox);
    ::log::info!("worker ids: {}", worker.ids_description);
    if let Some(report) = &worker.ids_shortfall {
        ::log::warn!("{report}");
    }
    let offer = Offer::of(config, &share, &worker.view, own)?;
    let Worker { process, mut channel, log_pipe, view, ids, host_ids, .. } = worker;
    let start = start_message(config, &share, view.mount, ids, &offer);

    let fds = [view.share.as_fd(), socket.as_fd(), view.fd_directory.as_fd(), metrics.fd.as_fd()];
    channel.send(&start, &fds).map_err(BrokerError::Start)?;
    let exporter = match metrics_socket {
        Some(socket) => {
            let subject = subject(config);
            Some(launch::exporter::start(
                config,
                &subject,
                socket,
                &metrics,
                &host_ids,
                launch::is_privileged(own),
            )?)
        }
        None => None,
    };
    let follower = launch::follower::start(config, &share, &view, &process, own)?;
    drop((share, view));
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
    Ok(Device::new(server, process, channel, log_pipe, signals)
        .supervised_by(supervisor)
        .with_exporter(exporter)
        .with_follower(follower))
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
