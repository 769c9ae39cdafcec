//! From configuration to a worker that waits for its first message: everything that needs the host's privileges
//! once.

pub mod exporter;
pub mod follower;
pub mod ids;
pub mod lock_file;
pub mod share;
pub mod socket;
pub mod worker;

use caps::{CapSet, Capability};
use nix::sys::resource::{Resource, getrlimit};
use sandbox::capabilities::CapabilitySet;
use sandbox::network::{Making, NetworkNamespace};
use sandbox::rlimits::{RlimitError, default_nofile, set_nofile};

use super::BrokerError;
use crate::config::{Config, SandboxMode};
use crate::protocol::MAX_FDS;
use crate::protocol::message::{Layer, LayerReport, LayerState};

use super::mounts::MAX_MOUNTS;

/// Fewest open files with which the broker can serve every request.
const MIN_NOFILE: u64 = (2 * MAX_FDS + MAX_MOUNTS + 64) as u64;

/// The capabilities that the broker started with.
pub fn own_capabilities() -> CapabilitySet {
    // Not being able to ask counts as having none: everything that needs one is then off, and logged.
    let permitted = caps::read(None, CapSet::Effective).unwrap_or_default();
    permitted.into_iter().collect()
}

/// Whether processes can be given any ids, and mounts be made.
pub fn is_privileged(own: CapabilitySet) -> bool {
    [Capability::CAP_SYS_ADMIN, Capability::CAP_SETUID, Capability::CAP_SETGID]
        .into_iter()
        .all(|capability| own.contains(capability))
}

/// The network namespace that was begun, for a sandbox that has one. Without it (it takes CAP_SYS_ADMIN), the worker's
/// is made with its user namespace, and if that can't be either, the reason is told then.
pub fn network(making: Making, sandbox: SandboxMode) -> Option<NetworkNamespace> {
    let made = making.finish().inspect_err(|error| log::debug!("{error}")).ok();
    made.filter(|_| sandbox == SandboxMode::Namespace)
}

/// `--rlimit-nofile`: set here, since the worker inherits it and can't raise it.
///
/// # Errors
/// When limits can't be read or set, or are too low for the broker.
pub fn apply_nofile(config: &Config) -> Result<(), BrokerError> {
    match config.rlimit_nofile {
        Some(0) => {}
        wanted => {
            let wanted = wanted.map_or_else(default_nofile, Ok)?;
            if let Some(warning) = set_nofile(wanted)?.warning {
                log::warn!("{warning}");
            }
        }
    }
    let resource = Resource::RLIMIT_NOFILE;
    let (soft, _) = getrlimit(resource).map_err(|errno| RlimitError::Get { resource, errno })?;
    if soft < MIN_NOFILE {
        log::warn!(
            "the limit of open files is {soft}; below {MIN_NOFILE} large requests of the worker may fail"
        );
    }
    Ok(())
}

/// Logs the layers that `--sandbox` leaves out, once, by name.
pub fn report_sandbox(mode: SandboxMode) {
    let reason = match mode {
        SandboxMode::Namespace => return,
        SandboxMode::Chroot => "--sandbox=chroot",
        SandboxMode::None => "--sandbox=none",
    };
    let layers = [
        Layer::UserNamespace,
        Layer::MountNamespace,
        Layer::PidNamespace,
        Layer::NetworkNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::CgroupNamespace,
        Layer::ShiftedIds,
    ];
    report_missing(&layers, reason);
}

/// Logs layers that are not there, each by its name.
pub fn report_missing(layers: &[Layer], reason: &str) {
    for layer in layers {
        log::warn!("{}", LayerReport::new(*layer, LayerState::Missing, reason));
    }
}
