//! The file-system credentials of one thread: act as another user for some system calls, and back.
//!
//! Only what file access looks at is changed: fsuid, fsgid and the supplementary groups, by system calls that are
//! about the calling thread. When the fsuid leaves 0 the kernel takes the capabilities that bypass file permissions
//! out of the effective set (CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, MKNOD,
//! MAC_OVERRIDE), and gives them back with 0; others, such as CAP_SETFCAP and those that allow the way back,
//! stay. The thread's signals, tracing and limits go by its other ids, which stay too.
//!
//! A change costs two system calls an id (setfsuid(2) reports no error, so it is asked again) and one for the
//! groups; the current ones are remembered, so that no change costs none.
//!
//! Two side effects of the kernel: the thread forgets its parent-death signal, and the process becomes undumpable.
//! So use this in threads, and not in the one that [`crate::process::Spawn`] has started.
//!
//! System calls: [`Baseline::capture`] makes capget, prctl(PR_GET_SECUREBITS), getgroups, setgroups, setfsuid and
//! setfsgid; after it only setgroups, setfsuid, setfsgid and capset are made.

use std::marker::PhantomData;

use nix::errno::Errno;
use nix::unistd::getgroups;

use crate::capabilities::{Capability, CapabilitySet};
use crate::sys::{self, CapabilityBits, NO_ID};

/// The capabilities that go and come with the fsuid: `CAP_FS_SET` of the kernel, capabilities(7).
const FILE_SYSTEM: CapabilitySet = CapabilitySet::from_bits(
    1 << Capability::CAP_CHOWN as u64
        | 1 << Capability::CAP_DAC_OVERRIDE as u64
        | 1 << Capability::CAP_DAC_READ_SEARCH as u64
        | 1 << Capability::CAP_FOWNER as u64
        | 1 << Capability::CAP_FSETID as u64
        | 1 << Capability::CAP_LINUX_IMMUTABLE as u64
        | 1 << Capability::CAP_MKNOD as u64
        | 1 << Capability::CAP_MAC_OVERRIDE as u64,
);

/// Why credentials could not be read or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The thread's credentials could not be read.
    #[error("cannot read this thread's credentials ({call}): {errno}")]
    Read {
        /// The system call.
        call: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// SECBIT_NO_SETUID_FIXUP is set.
    #[error(
        "the securebit no-setuid-fixup is set: with it, a thread that acts as another user would keep the \
         capabilities that bypass file permissions. Start the daemon without it"
    )]
    SetuidFixup,
    /// This thread is not what [`Baseline::capture`] saw.
    #[error("this thread runs as fsuid {uid}, fsgid {gid}, and not as the thread that the baseline is of")]
    OtherThread {
        /// Its fsuid.
        uid: u32,
        /// Its fsgid.
        gid: u32,
    },
    /// setgroups failed.
    #[error("cannot set {count} supplementary groups: {errno}")]
    Groups {
        /// How many.
        count: usize,
        /// The kernel's reason; EINVAL for a group that the user namespace doesn't have.
        errno: Errno,
    },
    /// setfsgid had no effect.
    #[error("cannot act as group {gid}: it is not in the user namespace's map, or CAP_SETGID is missing")]
    Gid {
        /// The group.
        gid: u32,
    },
    /// setfsuid had no effect.
    #[error("cannot act as user {uid}: it is not in the user namespace's map, or CAP_SETUID is missing")]
    Uid {
        /// The user.
        uid: u32,
    },
    /// capset failed.
    #[error("cannot change the effective capabilities to {wanted}: {errno}")]
    Capabilities {
        /// What was asked for.
        wanted: CapabilitySet,
        /// The kernel's reason.
        errno: Errno,
    },
}

impl CredentialsError {
    /// The errno that a request gets which needed these credentials.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Read { errno, .. } | Self::Groups { errno, .. } | Self::Capabilities { errno, .. } => {
                *errno
            }
            Self::Gid { .. } | Self::Uid { .. } | Self::SetuidFixup | Self::OtherThread { .. } => {
                Errno::EPERM
            }
        }
    }
}

/// What a thread's credentials are while it acts as nobody else. Capture it once the process has the capabilities
/// that it keeps, and before a system-call filter; threads made later start with the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    groups_fixed: bool,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
}

impl Baseline {
    /// Reads the calling thread's credentials.
    ///
    /// # Errors
    ///
    /// [`CredentialsError::Read`], [`CredentialsError::SetuidFixup`].
    pub fn capture() -> Result<Self, CredentialsError> {
        let read = |call| move |errno| CredentialsError::Read { call, errno };
        if sys::securebits().map_err(read("prctl"))? & libc::SECBIT_NO_SETUID_FIXUP != 0 {
            return Err(CredentialsError::SetuidFixup);
        }
        let bits = sys::capget().map_err(read("capget"))?;
        let groups = getgroups().map_err(read("getgroups"))?;
        let groups: Vec<u32> = groups.into_iter().map(|group| group.as_raw()).collect();
        // Setting what is set already tells whether they can be set at all.
        let groups_fixed = sys::setgroups(&groups).is_err();
        Ok(Self {
            uid: sys::setfsuid(NO_ID),
            gid: sys::setfsgid(NO_ID),
            groups,
            groups_fixed,
            effective: CapabilitySet::from_bits(bits.effective),
            permitted: CapabilitySet::from_bits(bits.permitted),
            inheritable: CapabilitySet::from_bits(bits.inheritable),
        })
    }

    /// The user id that threads have.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The group id that threads have.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether threads may act as others: CAP_SETUID and CAP_SETGID. Without, [`ThreadCredentials::become_user`]
    /// works for the thread's own ids only. The user namespace's map decides which others.
    pub fn can_become_others(&self) -> bool {
        self.effective.contains(Capability::CAP_SETUID) && self.effective.contains(Capability::CAP_SETGID)
    }

    /// Whether supplementary groups stay what they are, because setgroups(2) is not allowed.
    pub fn groups_fixed(&self) -> bool {
        self.groups_fixed
    }
}

/// The credentials of the thread that made this value, which cannot leave it. Dropping it restores the baseline.
#[derive(Debug)]
pub struct ThreadCredentials {
    baseline: Baseline,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    effective: CapabilitySet,
    /// Credentials belong to a thread: neither Send nor Sync.
    thread: PhantomData<*const ()>,
}

impl ThreadCredentials {
    /// For the calling thread, which must still have the credentials of `baseline`.
    ///
    /// # Errors
    ///
    /// [`CredentialsError::OtherThread`] when its ids differ.
    pub fn new(baseline: &Baseline) -> Result<Self, CredentialsError> {
        let (uid, gid) = (sys::setfsuid(NO_ID), sys::setfsgid(NO_ID));
        if (uid, gid) != (baseline.uid, baseline.gid) {
            return Err(CredentialsError::OtherThread { uid, gid });
        }
        // The kernel's record of a thread's credentials is the one of the thread that made it, until they are set. It
        // counts who uses it, each open file among them: threads with a record of their own don't wait for each other.
        if !baseline.groups_fixed {
            let _ = sys::setgroups(&baseline.groups);
        }
        Ok(Self {
            uid,
            gid,
            groups: baseline.groups.clone(),
            effective: baseline.effective,
            baseline: baseline.clone(),
            thread: PhantomData,
        })
    }

    /// Acts as this user from now on, with these supplementary groups (at most 65536; without effect where
    /// [`Baseline::groups_fixed`]). No system call when nothing changes.
    ///
    /// # Errors
    ///
    /// [`CredentialsError::Groups`], [`CredentialsError::Gid`], [`CredentialsError::Uid`]; the thread then has its
    /// baseline credentials.
    ///
    /// # Aborts
    ///
    /// As [`Self::become_root`], when that does not work after a failure.
    pub fn become_user(&mut self, uid: u32, gid: u32, groups: &[u32]) -> Result<(), CredentialsError> {
        let result = self.switch(uid, gid, groups);
        if result.is_err() {
            self.become_root();
        }
        result
    }

    /// Acts as itself again, that is, with the baseline's credentials: the root of the thread's user namespace, in
    /// a confined process. No system call when nothing changes.
    ///
    /// # Aborts
    ///
    /// The process, when the kernel refuses: the thread would serve the next request with the rights of the
    /// wrong user, and whoever shares the process could not tell. (Process 1 of a pid namespace ignores SIGABRT,
    /// so there the abort shows as SIGSEGV or SIGILL, from the trap instruction that follows.)
    pub fn become_root(&mut self) {
        let groups = std::mem::take(&mut self.baseline.groups);
        let result = self.switch(self.baseline.uid, self.baseline.gid, &groups);
        self.baseline.groups = groups;
        if let Err(error) = result {
            abort(&error);
        }
    }

    /// The user and group that the thread acts as.
    pub fn current(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// The effective capabilities now.
    pub fn effective(&self) -> CapabilitySet {
        self.effective
    }

    /// Takes one capability out of the effective set until the guard goes. No system call when it is not in
    /// there: CAP_FSETID, say, while the thread acts as a user other than 0.
    ///
    /// # Errors
    ///
    /// [`CredentialsError::Capabilities`].
    pub fn without_capability(&mut self, which: Capability) -> Result<EffectiveGuard<'_>, CredentialsError> {
        self.change_effective(self.effective.without(which))
    }

    /// Puts one permitted capability into the effective set until the guard goes. No system call when it is
    /// there already.
    ///
    /// # Errors
    ///
    /// [`CredentialsError::Capabilities`]; EPERM when the thread is not permitted to have it.
    pub fn with_capability(&mut self, which: Capability) -> Result<EffectiveGuard<'_>, CredentialsError> {
        self.change_effective(self.effective.with(which))
    }

    fn change_effective(&mut self, wanted: CapabilitySet) -> Result<EffectiveGuard<'_>, CredentialsError> {
        let before = self.effective;
        self.set_effective(wanted)?;
        Ok(EffectiveGuard { credentials: self, before })
    }

    fn set_effective(&mut self, wanted: CapabilitySet) -> Result<(), CredentialsError> {
        if wanted == self.effective {
            return Ok(());
        }
        let bits = CapabilityBits {
            effective: wanted.bits(),
            permitted: self.baseline.permitted.bits(),
            inheritable: self.baseline.inheritable.bits(),
        };
        sys::capset(bits).map_err(|errno| CredentialsError::Capabilities { wanted, errno })?;
        self.effective = wanted;
        Ok(())
    }

    /// Groups and gid first: neither needs a capability that the change of uid takes away, but so the order is
    /// the usual one.
    fn switch(&mut self, uid: u32, gid: u32, groups: &[u32]) -> Result<(), CredentialsError> {
        // One by one, since there are few of them, and mostly the same as before: a call of memcmp costs more.
        if !self.groups.iter().eq(groups) && !self.baseline.groups_fixed {
            sys::setgroups(groups)
                .map_err(|errno| CredentialsError::Groups { count: groups.len(), errno })?;
            self.groups.clear();
            self.groups.extend_from_slice(groups);
        }
        if self.gid != gid {
            sys::setfsgid(gid);
            if gid == NO_ID || sys::setfsgid(NO_ID) != gid {
                return Err(CredentialsError::Gid { gid });
            }
            self.gid = gid;
        }
        if self.uid != uid {
            sys::setfsuid(uid);
            if uid == NO_ID || sys::setfsuid(NO_ID) != uid {
                return Err(CredentialsError::Uid { uid });
            }
            self.follow_uid(uid);
        }
        Ok(())
    }

    /// Notes the new fsuid, and what the kernel has done to the effective set.
    fn follow_uid(&mut self, uid: u32) {
        match (self.uid, uid) {
            (0, _) => self.effective = self.effective.difference(FILE_SYSTEM),
            (_, 0) => {
                self.effective = self.effective.union(self.baseline.permitted.intersection(FILE_SYSTEM));
            }
            _ => {}
        }
        self.uid = uid;
    }
}

impl Drop for ThreadCredentials {
    fn drop(&mut self) {
        self.become_root();
    }
}

/// A changed effective set; dropping it restores the one before, and aborts the process when that fails, for the
/// same reason as [`ThreadCredentials::become_root`].
#[derive(Debug)]
#[must_use = "the capability changes back at once"]
pub struct EffectiveGuard<'a> {
    credentials: &'a mut ThreadCredentials,
    before: CapabilitySet,
}

impl Drop for EffectiveGuard<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.credentials.set_effective(self.before) {
            abort(&error);
        }
    }
}

fn abort(error: &CredentialsError) -> ! {
    log::error!("cannot get this thread's own credentials back, so the process ends: {error}");
    std::process::abort()
}
