//! What the broker gives up once the worker is prepared, and before it hears from it.

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat, setgroups};
use sandbox::capabilities::{self, Capability, CapabilitySet};
use sandbox::rlimits;
use sandbox::seccomp::{self, Mode, Policy};

use super::BrokerError;
use super::launch::socket::SocketFiles;
use super::privileges::Privileges;
use crate::config::SeccompMode;
use crate::protocol::Services;

/// The capabilities that stay, and the part of them that is effective between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keep {
    permitted: CapabilitySet,
    standing: CapabilitySet,
}

/// What each service needs, and nothing else.
fn needed(services: Services, own: CapabilitySet, clean_up: bool) -> Keep {
    use Capability::{
        CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_MKNOD, CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN,
    };
    let none = CapabilitySet::EMPTY;
    let standing = if services.handles { none.with(CAP_DAC_READ_SEARCH) } else { none };
    let mut permitted = standing;
    if services.make_device {
        permitted = permitted.with(CAP_MKNOD).with(CAP_DAC_OVERRIDE).with(CAP_SETUID).with(CAP_SETGID);
    }
    if services.trusted_xattr {
        permitted = permitted.with(CAP_SYS_ADMIN);
    }
    if clean_up {
        permitted = permitted.with(CAP_DAC_OVERRIDE);
    }
    Keep { permitted: permitted.intersection(own), standing: standing.intersection(own) }
}

/// Whether removing the socket at the end takes a capability: its directory is not ours to write in.
fn clean_up_needs_capability(files: Option<&SocketFiles>, own: CapabilitySet) -> bool {
    let Some(files) = files else { return false };
    if !own.contains(Capability::CAP_DAC_OVERRIDE) {
        return false;
    }
    let probe = Privileges::new(own, own.without(Capability::CAP_DAC_OVERRIDE));
    if probe.stand_down().is_err() {
        return false;
    }
    let denied =
        faccessat(files.directory(), c".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS);
    let all = Privileges::new(own, own);
    denied.is_err() && all.stand_down().is_ok()
}

/// Confines the calling process, for good. What it returns raises the capabilities that a request needs.
///
/// # Errors
/// [`BrokerError`], by step. The process must not serve then.
pub fn confine(
    services: Services,
    own: CapabilitySet,
    files: Option<&SocketFiles>,
    seccomp: SeccompMode,
) -> Result<Privileges, BrokerError> {
    let step = |step| move |errno: Errno| BrokerError::Confine { step, errno };
    if own.contains(Capability::CAP_SETGID) {
        setgroups(&[]).map_err(step("setgroups"))?;
    }
    let keep = needed(services, own, clean_up_needs_capability(files, own));
    rlimits::forbid_core_dumps()?;
    let limited = capabilities::limit_to(keep.permitted)?;
    if !limited.locked && !own.is_empty() {
        log::warn!("the broker lacks CAP_SETPCAP: its capability bounding set stays as it is");
    }
    capabilities::forbid_new_privileges()?;
    let privileges = Privileges::new(limited.held, keep.standing);
    privileges.stand_down().map_err(step("capset"))?;
    log::debug!("the broker keeps these capabilities: {}", limited.held);
    let mut widenings = Vec::new();
    widenings.extend(services.make_device.then_some("make-device"));
    widenings.extend(services.trusted_xattr.then_some("trusted-xattr"));
    let applied = seccomp::apply(Policy::Broker, seccomp_mode(seccomp), &widenings)?;
    log::debug!("the broker's seccomp filter: {applied:?}");
    Ok(privileges)
}

fn seccomp_mode(mode: SeccompMode) -> Mode {
    match mode {
        SeccompMode::None => Mode::None,
        SeccompMode::Kill => Mode::Kill,
        SeccompMode::Log => Mode::Log,
        SeccompMode::Trap => Mode::Trap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> CapabilitySet {
        CapabilitySet::from_bits(u64::MAX)
    }

    #[test]
    fn nothing_is_kept_that_no_service_needs() {
        let keep = needed(Services::default(), all(), false);
        assert!(keep.permitted.is_empty() && keep.standing.is_empty());
        let handles = Services { handles: true, ..Services::default() };
        let keep = needed(handles, all(), false);
        assert_eq!(keep.permitted, CapabilitySet::EMPTY.with(Capability::CAP_DAC_READ_SEARCH));
        assert_eq!(keep.standing, keep.permitted);
    }

    #[test]
    fn strong_capabilities_come_with_their_option_and_are_not_effective() {
        let xattr = Services { trusted_xattr: true, ..Services::default() };
        let keep = needed(xattr, all(), false);
        assert_eq!(keep.permitted, CapabilitySet::EMPTY.with(Capability::CAP_SYS_ADMIN));
        assert!(keep.standing.is_empty());
        let device = Services { make_device: true, ..Services::default() };
        let keep = needed(device, all(), false);
        assert!(keep.permitted.contains(Capability::CAP_MKNOD));
        assert!(!keep.permitted.contains(Capability::CAP_SYS_ADMIN));
        assert!(keep.standing.is_empty());
    }

    #[test]
    fn what_was_never_there_is_not_kept() {
        let every = Services { handles: true, make_device: true, trusted_xattr: true };
        assert!(needed(every, CapabilitySet::EMPTY, true).permitted.is_empty());
    }
}
