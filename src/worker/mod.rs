//! HOSTILE once a guest runs: the vhost-user loop and the passthrough file system.
//!
//! The walk of one request, in order: `queue` (1) → `buffers` (2) → `fuse` decode (3) → `dispatch` (4) →
//! `fs` (5) → system calls, or `broker_client` (6) for the few things that only the broker can do → `fuse`
//! encode → `queue`. `device` is the vhost-user back end around it, `confine` what happens before.

pub mod broker_client;
pub mod buffers;
pub mod chain;
mod confine;
mod deferred;
pub mod device;
mod dirty_log;
mod dispatch;
pub mod fs;
pub mod fuse;
mod heap;
pub mod log;
mod lookahead;
pub mod migrate;
mod pace;
mod poll;
mod pool;
mod queue;
pub mod recorder;
pub mod regions;
mod request;
mod returns;
pub mod rings;
mod view;
mod vring;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use thiserror::Error;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;

use broker_client::{BrokerClient, BrokerClientError};
use confine::ConfineError;
use device::{AtomicMemory, Device, Memory};
use fs::{Bounds, FileSystem, Resources};
use pool::Pool;
use view::{View, ViewError};

use crate::protocol::message::{LayerReport, Start};
use crate::protocol::metrics::{MetricsMemoryError, Region};

/// The name of the thread that serves the front end's messages.
const CONTROL_THREAD: &str = "vhost-user";

/// Why the worker ended otherwise than by the front end's leaving.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// It was started by hand, or the broker is gone.
    #[error("no broker to work for: {0}")]
    Broker(#[from] BrokerClientError),
    /// What it is to see of the host's files can't be made.
    #[error("{0}")]
    View(#[from] ViewError),
    /// Confinement failed.
    #[error("confinement: {0}")]
    Confine(#[from] ConfineError),
    /// The memory for metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsMemoryError),
    /// The share can't be used.
    #[error("the shared directory cannot be used: {0}")]
    Share(Errno),
    /// The helpers of `--thread-pool-size`.
    #[error("cannot start a helper thread: {0}; use a smaller --thread-pool-size")]
    Helpers(std::io::Error),
    /// The vhost-user side can't be set up.
    #[error("vhost-user: cannot {step}: {reason}")]
    Setup {
        /// What was tried.
        step: &'static str,
        /// Why not.
        reason: DaemonError,
    },
    /// The timers of limits.
    #[error("cannot set up timers for limits: {0}")]
    Timer(Errno),
    /// The thread that serves the front end panicked: in a build that unwinds, which a release doesn't.
    #[error("vhost-user: the thread that serves the front end broke down; closing the connection")]
    BrokeDown,
    /// The front end sent something that can't be understood.
    #[error("vhost-user: the front end's message cannot be served: {0}; closing the connection")]
    FrontEnd(DaemonError),
}

/// The worker's whole life: confined first, then one connection of one front end.
///
/// # Errors
/// [`WorkerError`]; `Ok` when the front end has disconnected.
pub fn run(channel: OwnedFd) -> Result<(), WorkerError> {
    heap::prepare();
    let (broker, start, fds) = BrokerClient::start(channel)?;
    log::set_level(start.log_level);
    log::log_panics(CONTROL_THREAD);
    let metrics = Arc::new(Region::writable(&fds.metrics)?);
    let View { share, share_is_mount_root, fd_directory, listener } = View::new(&start, fds)?;
    let (baseline, missing) = confine::confine(&start, share.as_fd())?;
    let (nofile, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(WorkerError::Share)?;
    fs::prepare_process(fd_directory.as_fd(), nofile).map_err(WorkerError::Share)?;
    let broker = Arc::new(broker);
    let resources = Resources {
        share,
        share_is_mount_root,
        fd_directory,
        baseline,
        broker: Some(Arc::clone(&broker)),
        services: start.services,
        bounds: Bounds::within(nofile, 1 + u64::from(start.config.device.num_request_queues)),
        metrics,
    };
    let fs = FileSystem::new(start.config.fs.clone(), resources).map_err(WorkerError::Share)?;
    serve(&start, fs, listener, &broker, missing)
}

/// How long a front end takes to set the device up: some 25 messages, each of which waits for the answer to the one before.
const SET_UP: Duration = Duration::from_millis(1);

/// Keeps this CPU from going to sleep while nobody else wants it. To wake it up for each message would take longer than
/// to serve it, and a virtual machine waits for that at its start.
fn stay_awake(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::yield_now();
    }
}

/// Serves one connection.
fn serve(
    start: &Start,
    fs: FileSystem,
    listener: OwnedFd,
    broker: &BrokerClient,
    mut missing: Vec<LayerReport>,
) -> Result<(), WorkerError> {
    let memory: AtomicMemory = GuestMemoryAtomic::new(Memory::new());
    let fs = Arc::new(fs);
    let pool = Pool::start(&fs, start.config.device.thread_pool_size).map_err(WorkerError::Helpers)?;
    let device = Device::new(
        fs,
        start.config.device.clone(),
        start.config.migration.clone(),
        memory.clone(),
        pool.as_ref(),
    );
    let device = Arc::new(device.map_err(WorkerError::Timer)?);
    let setup = |step| move |reason| WorkerError::Setup { step, reason };
    let daemon = VhostUserDaemon::new(CONTROL_THREAD.to_owned(), Arc::clone(&device), memory);
    // On the way out, queue threads that wait for the host's file system must not hold up the process: it ends
    // without joining them.
    let mut daemon = std::mem::ManuallyDrop::new(daemon.map_err(setup("start the queue threads"))?);
    let handlers = daemon.get_epoll_handlers();
    for (thread, timer) in device.timers() {
        let Some(handler) = handlers.get(thread) else { continue };
        handler
            .register_listener(timer.as_fd().as_raw_fd(), EventSet::IN, device.timer_event())
            .map_err(|error| WorkerError::Timer(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
    }
    confine::filter_system_calls(start, &mut missing)?;
    broker.confined(missing)?;
    let mut listener = Listener::from(UnixListener::from(listener));
    daemon.start(&mut listener).map_err(setup("accept the front end's connection"))?;
    // One connection only: further ones are refused from here on.
    drop(listener);
    broker.attached()?;
    stay_awake(SET_UP);
    match daemon.wait() {
        Ok(()) => Ok(()),
        Err(DaemonError::HandleRequest(
            VhostUserError::Disconnected | VhostUserError::PartialMessage | VhostUserError::SocketBroken(_),
        )) => Ok(()),
        Err(DaemonError::WaitDaemon(_)) => Err(WorkerError::BrokeDown),
        Err(e) => Err(WorkerError::FrontEnd(e)),
    }
}
