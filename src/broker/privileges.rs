//! The capabilities that requests need, effective only for as long as one request acts.
//!
//! The broker keeps in its permitted set what enabled services need; effective is only what `Reopen` needs, as
//! that is the frequent one. Failing to go back aborts: a broker that goes on as somebody else, or with more than
//! it should have, is a broken invariant.

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use sandbox::capabilities::{Capability, CapabilitySet};

use super::sys;

/// Raises and lowers this thread's effective capabilities and file-system ids.
#[derive(Debug)]
pub struct Privileges {
    permitted: CapabilitySet,
    standing: CapabilitySet,
}

impl Privileges {
    /// For a thread whose permitted set is `permitted`. From the first use on, `standing` is effective between
    /// requests.
    pub fn new(permitted: CapabilitySet, standing: CapabilitySet) -> Self {
        Self { permitted, standing }
    }

    /// Makes only the standing set effective.
    ///
    /// # Errors
    /// When `standing` is not within `permitted`.
    pub fn stand_down(&self) -> Result<(), Errno> {
        sys::set_capabilities(self.permitted, self.standing)
    }

    /// Runs `act` with `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// `EPERM` without the capability, and those of `act`.
    pub fn trusted_xattr<T>(&self, act: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        self.raise(&[Capability::CAP_SYS_ADMIN])?;
        let result = act();
        self.lower();
        result
    }

    /// Runs `act` as this user and group of the host, with the two capabilities that a guest's root uses when it
    /// makes a device node.
    ///
    /// # Errors
    /// `EPERM` without the capabilities or when the ids can't be had, and those of `act`.
    pub fn make_device<T>(
        &self,
        uid: u32,
        gid: u32,
        act: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        use Capability::{CAP_DAC_OVERRIDE, CAP_MKNOD, CAP_SETGID, CAP_SETUID};
        self.raise(&[CAP_SETUID, CAP_SETGID])?;
        let identity = FsIdentity::take(uid, gid);
        let result = match &identity {
            // Changing the fsuid away from 0 has taken file capabilities out of the effective set: raise after it.
            Ok(_) => self.raise(&[CAP_MKNOD, CAP_DAC_OVERRIDE]).and_then(|()| act()),
            Err(errno) => Err(*errno),
        };
        drop(identity);
        self.lower();
        result
    }

    /// Runs `act`, which removes the daemon's own files, with `CAP_DAC_OVERRIDE` if it was kept for that.
    pub fn clean_up(&self, act: impl FnOnce()) {
        // Without the capability the files' directory is one that needs none.
        let raised = self.raise(&[Capability::CAP_DAC_OVERRIDE]).is_ok();
        act();
        if raised {
            self.lower();
        }
    }

    fn raise(&self, wanted: &[Capability]) -> Result<(), Errno> {
        let wanted = wanted.iter().copied().collect::<CapabilitySet>().union(self.standing);
        sys::set_capabilities(self.permitted, wanted)
    }

    fn lower(&self) {
        if let Err(errno) = self.stand_down() {
            log::error!("the broker cannot give up capabilities that it raised for a request: {errno}");
            std::process::abort();
        }
    }
}

/// Other file-system ids, until dropped.
struct FsIdentity {
    uid: Uid,
    gid: Gid,
}

/// The kernel reports no error, so ask what the ids have become: `-1` changes nothing.
fn current() -> (Uid, Gid) {
    (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)))
}

impl FsIdentity {
    fn take(uid: u32, gid: u32) -> Result<Self, Errno> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let before = Self { gid: setfsgid(gid), uid: setfsuid(uid) };
        if current() == (uid, gid) { Ok(before) } else { Err(Errno::EPERM) }
    }
}

impl Drop for FsIdentity {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
        if current() != (self.uid, self.gid) {
            log::error!("the broker cannot return to its own file-system ids");
            std::process::abort();
        }
    }
}
