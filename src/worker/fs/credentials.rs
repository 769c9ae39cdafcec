//! Who a queue thread is: its file-system credentials, umask, and its copy of the session.
//!
//! Changing credentials there and back costs more than most operations, so a thread keeps those of its last
//! request and changes only when the next one needs others. An operation that works on what is already open
//! needs none.

use sandbox::capabilities::Capability;
use sandbox::credentials::ThreadCredentials;

use super::FileSystem;
use super::lookup::Habit;
use super::mount_kind::LastMount;
use super::names::Names;
use super::sys::{self, Result};
use crate::config::Negotiate;
use crate::worker::fuse::negotiate::Negotiated;

/// The state that belongs to one queue thread.
pub struct Thread {
    credentials: ThreadCredentials,
    umask: u32,
    /// May change its capabilities: the system-call filter lets it only where an option needs it.
    drops_fsetid: bool,
    session: Negotiated,
    seen: u64,
    /// What to expect of the next lookup.
    pub(super) habit: Habit,
    /// What to expect of the next entry of a directory that is listed with attributes.
    pub(super) listing: Habit,
    /// Under which names files were met.
    pub(super) names: Names,
    /// What mount files were opened on.
    pub(super) last_mount: LastMount,
    /// Lists of attribute names: the host's, and what the guest may see of it.
    xattr_names: (Vec<u8>, Vec<u8>),
}

impl Thread {
    /// For the calling thread, which gets an umask of its own if it will ever have another than 0.
    ///
    /// # Errors
    /// What `unshare` says.
    pub fn new(fs: &FileSystem) -> Result<Self> {
        if fs.config.posix_acl != Negotiate::Never {
            sys::unshare_fs()?;
        }
        Ok(Thread {
            drops_fsetid: fs.config.killpriv_v2 || fs.config.posix_acl != Negotiate::Never,
            credentials: ThreadCredentials::new(&fs.resources.baseline).map_err(|e| e.errno())?,
            umask: 0,
            session: Negotiated::default(),
            seen: 0,
            habit: Habit::default(),
            listing: Habit::default(),
            names: Names::default(),
            last_mount: LastMount::default(),
            xattr_names: (Vec::new(), Vec::new()),
        })
    }

    /// What the session negotiated, as of the last [`Thread::refresh`].
    pub fn session(&self) -> &Negotiated {
        &self.session
    }

    /// Looks whether the session changed; once per request.
    pub fn refresh(&mut self, fs: &FileSystem) {
        if let Some((version, session)) = fs.session_of(self.seen) {
            (self.seen, self.session) = (version, session);
        }
    }

    /// The worker's own root, with all the capabilities that it has over the share.
    pub(super) fn become_root(&mut self) {
        self.credentials.become_root();
    }

    /// The guest's user, with no capability that bypasses permissions.
    pub(super) fn become_user(&mut self, uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
        self.credentials.become_user(uid, gid, groups).map_err(|e| e.errno())
    }

    /// Runs a call without `CAP_FSETID`, so that the kernel drops set-id bits.
    pub(super) fn without_fsetid<T>(&mut self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.drops_fsetid {
            return call();
        }
        let without = self.credentials.without_capability(Capability::CAP_FSETID);
        let _without = without.map_err(|e| e.errno())?;
        call()
    }

    /// Two empty lists, kept between requests.
    pub(super) fn name_lists(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        let (host, guest) = &mut self.xattr_names;
        guest.clear();
        (host, guest)
    }

    pub(super) fn set_umask(&mut self, umask: u32) {
        if self.umask != umask {
            sys::set_umask(umask);
            self.umask = umask;
        }
    }
}
