//! The worker process: started from this program's own executable, with its view of the share prepared.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir};
use sandbox::mounts::{MountError, ShareAttrs, clone_share};
use sandbox::namespaces::Namespaces;
use sandbox::network::NetworkNamespace;
use sandbox::process::{Child, Spawn, SpawnError};

use super::ids::{IdPlan, plans, shifted_mode};
use super::report_missing;
use super::share::Share;
use crate::broker::BrokerError;
use crate::broker::requests::HostIds;
use crate::config::{Config, SandboxMode};
use crate::protocol::channel;
use crate::protocol::message::{IdsInForce, Layer, LayerReport, LayerState, ShareKind, ShareMount};
use crate::protocol::{BrokerEnd, CHANNEL_FD, LOG_FD, WORKER_ARGV0};

/// A running worker that waits for [`crate::protocol::ToWorker::Start`].
#[derive(Debug)]
pub struct Worker {
    /// The process.
    pub process: Child,
    /// Our end of the channel.
    pub channel: BrokerEnd,
    /// Our end of the log pipe; does not block.
    pub log_pipe: OwnedFd,
    /// What it will get as the share.
    pub view: View,
    /// How its ids relate to the host's.
    pub ids: IdsInForce,
    /// The host's ids of its ids.
    pub host_ids: HostIds,
    /// The same in words.
    pub ids_description: String,
    /// What they are less than ids that nobody else on the host has.
    pub ids_shortfall: Option<LayerReport>,
}

/// The worker's view of files.
#[derive(Debug)]
pub struct View {
    /// The share.
    pub share: OwnedFd,
    /// Which mount that is on.
    pub mount: ShareMount,
    /// Its own `/proc/self/fd`.
    pub fd_directory: OwnedFd,
}

/// Starts a worker by the first plan for its ids that works here, in `network` or a network namespace made with it.
///
/// # Errors
/// [`BrokerError`], by step; no process is left then.
pub fn start(
    config: &Config,
    share: &Share,
    privileged: bool,
    network: Option<&NetworkNamespace>,
) -> Result<Worker, BrokerError> {
    let exe = open("/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(BrokerError::OwnExecutable)?;
    let mut plans = plans(&config.confinement, privileged)?;
    // There is at least one plan; the last one's failure is final.
    while plans.len() > 1 {
        let plan = plans.remove(0);
        match try_start(config, share, &exe, &plan, network) {
            Err(error) if is_about_ids(&error) => {
                log::info!("worker ids: not {}: {error}", plan.description);
            }
            result => return result,
        }
    }
    match plans.first() {
        Some(plan) => try_start(config, share, &exe, plan, network).map_err(|error| explain(error, config)),
        None => Err(BrokerError::Prepare {
            what: "an id map",
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        }),
    }
}

fn is_about_ids(error: &BrokerError) -> bool {
    matches!(
        error,
        BrokerError::CloneShare(MountError::IdmapUnsupported { .. } | MountError::Idmap { .. })
            | BrokerError::Spawn { source: SpawnError::IdMaps(_) }
    )
}

fn explain(error: BrokerError, config: &Config) -> BrokerError {
    match (error, shifted_mode(&config.confinement.worker_ids)) {
        (
            BrokerError::CloneShare(
                source @ (MountError::IdmapUnsupported { .. } | MountError::Idmap { .. }),
            ),
            Some(mode),
        ) => BrokerError::ShiftedImpossible { mode, source },
        (error, _) => error,
    }
}

fn try_start(
    config: &Config,
    share: &Share,
    exe: &OwnedFd,
    plan: &IdPlan,
    network: Option<&NetworkNamespace>,
) -> Result<Worker, BrokerError> {
    let prepare = |what| move |source| BrokerError::Prepare { what, source };
    let (ours, theirs) = channel::pair().map_err(prepare("the channel"))?;
    // Neither side may ever wait on the log: the worker drops lines, the broker reads what there is.
    let (log_pipe, log_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(|errno| prepare("the log pipe")(errno.into()))?;
    let request = |namespaces| Spawn {
        exe: exe.as_fd(),
        argv: vec![WORKER_ARGV0.to_owned()],
        envp: worker_environment(),
        fds: vec![(log_end.as_fd(), LOG_FD), (theirs.as_fd(), CHANNEL_FD)],
        namespaces,
        id_maps: plan.maps.clone(),
    };
    // What takes longest at a start is the worker's exec; its view is prepared meanwhile.
    let prepare = |process: &Child| prepare_view(config, share, plan, process);
    let (process, view) = in_directory(share, || match (config.confinement.sandbox, network) {
        (SandboxMode::Namespace, Some(network)) => {
            let others = Namespaces::all().difference(Namespaces::NET);
            Ok(network.inside(|| spawn_in_namespaces(others, request, prepare, report_missing))??)
        }
        (SandboxMode::Namespace, None) => {
            Ok(spawn_in_namespaces(Namespaces::all(), request, prepare, report_missing)?)
        }
        (SandboxMode::Chroot | SandboxMode::None, _) => {
            Ok::<_, BrokerError>(request(Namespaces::empty()).spawn_while(prepare)?)
        }
    })??;
    let view = view?;
    Ok(Worker {
        process,
        channel: BrokerEnd::for_broker(ours),
        log_pipe,
        view,
        ids: plan.in_force,
        host_ids: plan.host_ids(),
        ids_description: plan.description.clone(),
        ids_shortfall: plan.shortfall(),
    })
}

/// Without these there is no confinement. The others keep the worker from what its system call filter also denies.
const NEEDED: Namespaces = Namespaces::USER.union(Namespaces::MOUNT).union(Namespaces::PID);

/// With the namespaces that are wanted, or with those that are needed where making the others is forbidden: by
/// systemd's `RestrictNamespaces=`, say, in a unit that has private ones for the broker and its processes. `tell` hears
/// of those that are missing then, and why.
///
/// # Errors
/// [`SpawnError`], by step; no process is left then.
pub fn spawn_in_namespaces<'a, T>(
    wanted: Namespaces,
    request: impl Fn(Namespaces) -> Spawn<'a>,
    meanwhile: impl Fn(&Child) -> T,
    tell: impl FnOnce(&[Layer], &str),
) -> Result<(Child, T), SpawnError> {
    let refused = match request(wanted).spawn_while(&meanwhile) {
        Err(refused @ SpawnError::Clone { errno: Errno::EPERM, .. }) => refused,
        result => return result,
    };
    // Where those that are needed are forbidden too, the first error says it.
    let started = request(NEEDED).spawn_while(&meanwhile).map_err(|_| refused)?;
    let optional = [
        (Namespaces::NET, Layer::NetworkNamespace),
        (Namespaces::IPC, Layer::IpcNamespace),
        (Namespaces::UTS, Layer::UtsNamespace),
        (Namespaces::CGROUP, Layer::CgroupNamespace),
    ];
    // One that is not wanted has been made before.
    let missing = optional.into_iter().filter(|(namespace, _)| wanted.contains(*namespace));
    let missing: Vec<Layer> = missing.map(|(_, layer)| layer).collect();
    let reason = "it is the broker's: making others is forbidden here (EPERM), for instance by RestrictNamespaces= \
                  of a unit";
    tell(&missing, reason);
    Ok(started)
}

/// Nothing of the user's but what changes how a crash is shown.
fn worker_environment() -> Vec<CString> {
    let backtrace = std::env::var("RUST_BACKTRACE").ok();
    backtrace.and_then(|value| CString::new(format!("RUST_BACKTRACE={value}")).ok()).into_iter().collect()
}

/// Runs `act` in the share's directory. A worker whose share the broker can't clone inherits it as its working
/// directory, and clones it in its own mount namespace, where it is allowed to.
fn in_directory<T>(share: &Share, act: impl FnOnce() -> T) -> Result<T, BrokerError> {
    let change = |step| move |errno| BrokerError::Confine { step, errno };
    if share.kind == ShareKind::Directory {
        fchdir(&share.fd).map_err(change("fchdir to the shared directory"))?;
    }
    let result = act();
    // The broker itself keeps no directory busy.
    chdir("/").map_err(change("chdir to /"))?;
    Ok(result)
}

fn prepare_view(config: &Config, share: &Share, plan: &IdPlan, process: &Child) -> Result<View, BrokerError> {
    let attrs = ShareAttrs { read_only: config.worker.fs.readonly, ..ShareAttrs::default() };
    let namespace = if plan.idmapped { Some(process.user_namespace()?) } else { None };
    match clone_share(share.fd.as_fd(), attrs, namespace.as_ref().map(AsFd::as_fd)) {
        Ok(clone) => Ok(View {
            share: clone,
            mount: if plan.idmapped { ShareMount::Idmapped } else { ShareMount::Detached },
            fd_directory: process.fd_directory()?,
        }),
        Err(error @ MountError::Clone { .. }) if !plan.idmapped => host_view(config, share, process, &error),
        Err(error) => Err(error.into()),
    }
}

/// What there is without CAP_SYS_ADMIN.
fn host_view(
    config: &Config,
    share: &Share,
    process: &Child,
    reason: &MountError,
) -> Result<View, BrokerError> {
    if config.confinement.sandbox != SandboxMode::Namespace {
        let report = LayerReport::new(Layer::ShareMount, LayerState::Missing, &reason.to_string());
        log::warn!("{report}");
    }
    let prepare = |what| move |errno: nix::errno::Errno| BrokerError::Prepare { what, source: errno.into() };
    let path = format!("/proc/{}/fd", process.pid());
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(View {
        share: share.fd.try_clone().map_err(|source| BrokerError::Prepare { what: "the share", source })?,
        mount: ShareMount::Host,
        fd_directory: open(path.as_str(), flags, Mode::empty()).map_err(prepare("its fd directory"))?,
    })
}
