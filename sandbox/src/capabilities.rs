//! Capabilities (capabilities(7)): give up all but a listed set, for good, and prove it by reading back.
//!
//! Everything here is about the calling *thread*; threads made later inherit it. Call it before there are any.

use std::fmt;

pub use caps::Capability;
use caps::errors::CapsError;
use nix::errno::Errno;
use nix::sys::prctl;

use crate::sys::{self, CapabilityBits};

/// A set of capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: Self = Self(0);

    /// From a mask whose bit n is capability n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// A mask whose bit n is capability n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether `capability` is a member.
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bitmask() != 0
    }

    /// Whether there is no member.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// This set and `capability`.
    #[must_use]
    pub fn with(self, capability: Capability) -> Self {
        Self(self.0 | capability.bitmask())
    }

    /// This set but for `capability`.
    #[must_use]
    pub fn without(self, capability: Capability) -> Self {
        Self(self.0 & !capability.bitmask())
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Capability> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = Capability>>(members: I) -> Self {
        members.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut separator = "";
        for number in (0..u64::BITS).filter(|number| self.0 >> number & 1 != 0) {
            match known(number) {
                Some(capability) => write!(f, "{separator}{capability}")?,
                None => write!(f, "{separator}capability {number}")?,
            }
            separator = " ";
        }
        Ok(())
    }
}

/// The capability with this number, if this build knows its name.
fn known(number: u32) -> Option<Capability> {
    caps::all().into_iter().find(|capability| u32::from(capability.index()) == number)
}

/// Why capabilities could not be given up. Each one leaves the thread with some of them: end the process.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// capget failed.
    #[error("cannot read the capabilities: {0}")]
    Read(Errno),
    /// PR_CAPBSET_DROP failed.
    #[error("cannot drop {capability} from the bounding set: {errno}")]
    Bounding {
        /// Which one.
        capability: CapabilitySet,
        /// The kernel's reason.
        errno: Errno,
    },
    /// PR_CAP_AMBIENT_CLEAR_ALL failed.
    #[error("cannot clear the ambient capabilities: {0}")]
    Ambient(CapsError),
    /// PR_SET_SECUREBITS failed.
    #[error("cannot set the securebits to {bits:#x}: {errno} (are some locked to another value already?)")]
    Securebits {
        /// What was asked for.
        bits: i32,
        /// The kernel's reason.
        errno: Errno,
    },
    /// capset failed.
    #[error("cannot reduce the capabilities to {keep}: {errno}")]
    Set {
        /// What was asked for.
        keep: CapabilitySet,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The kernel reported success, and yet something is left.
    #[error("the {set} set still has {left} after dropping")]
    Left {
        /// Which set.
        set: &'static str,
        /// The surplus.
        left: CapabilitySet,
    },
    /// PR_SET_NO_NEW_PRIVS failed or had no effect.
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivileges(Errno),
}

/// What is in force after [`limit_to`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// The permitted and effective set: of what was to be kept, what the thread had.
    pub held: CapabilitySet,
    /// Bounding set reduced and securebits locked. `false` when the thread lacked CAP_SETPCAP (an ordinary
    /// user); then [`forbid_new_privileges`] is what keeps it from gaining capabilities by exec.
    pub locked: bool,
}

/// Executing a program as user id 0 gives no capability, ambient ones cannot be raised, and none of that can be
/// changed back. That setfsuid(2) to another id drops the file-system capabilities stays as it is, and is
/// locked: [`crate::credentials`] relies on it.
const SECUREBITS: i32 = libc::SECBIT_NOROOT
    | libc::SECBIT_NOROOT_LOCKED
    | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
    | libc::SECBIT_KEEP_CAPS_LOCKED
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

/// Gives up every capability that is not in `keep`: in the bounding, ambient, inheritable, permitted and
/// effective sets, and locks the securebits. Inheritable and ambient become empty. Programs executed later run
/// without capabilities, unless they enter a new user namespace first.
///
/// # Errors
///
/// [`CapabilityError`], by step; also when reading back shows a capability that should be gone.
pub fn limit_to(keep: CapabilitySet) -> Result<Limited, CapabilityError> {
    let before = sys::capget().map_err(CapabilityError::Read)?;
    let held = keep.intersection(CapabilitySet(before.permitted));
    let locked = CapabilitySet(before.effective).contains(Capability::CAP_SETPCAP);
    if locked {
        drop_bounding(keep)?;
        lock_securebits()?;
    }
    caps::clear(None, caps::CapSet::Ambient).map_err(CapabilityError::Ambient)?;
    let bits = CapabilityBits { effective: held.0, permitted: held.0, inheritable: 0 };
    sys::capset(bits).map_err(|errno| CapabilityError::Set { keep: held, errno })?;
    verify(keep, held, locked)?;
    Ok(Limited { held, locked })
}

/// Reads everything back, so that a bug here or a surprising kernel is an error and not a hole.
fn verify(keep: CapabilitySet, held: CapabilitySet, locked: bool) -> Result<(), CapabilityError> {
    let now = sys::capget().map_err(CapabilityError::Read)?;
    let bounding = if locked { bounding_set().difference(keep) } else { CapabilitySet::EMPTY };
    for (set, left) in [
        ("effective", CapabilitySet(now.effective).difference(held)),
        ("permitted", CapabilitySet(now.permitted).difference(held)),
        // The kernel keeps the ambient set within the inheritable one.
        ("inheritable", CapabilitySet(now.inheritable)),
        ("bounding", bounding),
    ] {
        if !left.is_empty() {
            return Err(CapabilityError::Left { set, left });
        }
    }
    Ok(())
}

/// The kernel numbers capabilities without gaps and answers EINVAL beyond its last, so this also finds those
/// that are newer than this code.
fn bounding_set() -> CapabilitySet {
    let members = (0..u64::BITS).map_while(|number| sys::bounding_has(number).ok().map(|has| (number, has)));
    CapabilitySet(members.fold(0, |bits, (number, has)| bits | u64::from(has) << number))
}

/// The kernel numbers capabilities without gaps and answers EINVAL beyond its last.
fn drop_bounding(keep: CapabilitySet) -> Result<(), CapabilityError> {
    for number in (0..u64::BITS).filter(|number| keep.0 >> number & 1 == 0) {
        match sys::bounding_drop(number) {
            Ok(()) => {}
            Err(Errno::EINVAL) if number > 0 => break,
            Err(errno) => {
                return Err(CapabilityError::Bounding { capability: CapabilitySet(1 << number), errno });
            }
        }
    }
    Ok(())
}

fn lock_securebits() -> Result<(), CapabilityError> {
    let before = sys::securebits().map_err(CapabilityError::Read)?;
    let bits = (before | SECUREBITS) & !(libc::SECBIT_NO_SETUID_FIXUP | libc::SECBIT_KEEP_CAPS);
    sys::set_securebits(bits).map_err(|errno| CapabilityError::Securebits { bits, errno })
}

/// Sets no_new_privs on this thread, for good: exec gains nothing from set-id bits and file capabilities, and
/// an unprivileged thread may load seccomp filters and Landlock rules.
///
/// # Errors
///
/// [`CapabilityError::NoNewPrivileges`]; EIO when the kernel reported success and it is still off.
pub fn forbid_new_privileges() -> Result<(), CapabilityError> {
    prctl::set_no_new_privs().map_err(CapabilityError::NoNewPrivileges)?;
    match prctl::get_no_new_privs() {
        Ok(true) => Ok(()),
        Ok(false) => Err(CapabilityError::NoNewPrivileges(Errno::EIO)),
        Err(errno) => Err(CapabilityError::NoNewPrivileges(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_do_what_sets_do() {
        let both: CapabilitySet = [Capability::CAP_CHOWN, Capability::CAP_FSETID].into_iter().collect();
        assert!(both.contains(Capability::CAP_FSETID) && !both.contains(Capability::CAP_SYS_ADMIN));
        assert_eq!(both.bits(), 0b1_0001);
        assert_eq!(both.without(Capability::CAP_FSETID).bits(), 1);
        assert_eq!(both.difference(CapabilitySet::from_bits(1)).bits(), 0b1_0000);
        assert_eq!(both.intersection(CapabilitySet::from_bits(3)).bits(), 1);
        assert_eq!(both.union(CapabilitySet::from_bits(2)).bits(), 0b1_0011);
    }

    #[test]
    fn sets_are_shown_by_name_in_order() {
        assert_eq!(CapabilitySet::EMPTY.to_string(), "none");
        let set = CapabilitySet::EMPTY.with(Capability::CAP_FSETID).with(Capability::CAP_CHOWN);
        assert_eq!(set.to_string(), "CAP_CHOWN CAP_FSETID");
        assert_eq!(CapabilitySet::from_bits(1 << 63).to_string(), "capability 63");
    }
}
