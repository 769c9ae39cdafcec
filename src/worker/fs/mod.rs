//! (5) The passthrough file system: what each operation does on the host.
//!
//! One file per family of operations; this file has what they share. Operations take ids and names that are
//! already checked and return typed answers; they know nothing of virtqueues or of the layout of replies.
//!
//! - Authority is an fd: no path longer than one component is ever passed to the kernel, and never one that
//!   follows a symbolic link of the share.
//! - Hot path: an id to an inode is one striped read lock; there is no lock that all threads share, and no
//!   allocation.
//! - A queue thread brings its own [`Thread`]: credentials kept from the last request, and a copy of what the
//!   session negotiated.

mod attr;
mod create;
mod credentials;
mod directory;
pub(in crate::worker) mod handles;
pub(in crate::worker) mod inodes;
mod io;
mod ioctl;
pub(in crate::worker) mod keeper;
mod link;
mod lock;
mod lock_waiters;
mod lookup;
mod mount_kind;
mod names;
mod open;
mod privileged;
mod readdir;
pub(in crate::worker) mod residence;
mod seats;
mod session;
mod setid;
mod slots;
mod sync;
pub(in crate::worker) mod sys;
mod visits;
mod xattr;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use sandbox::credentials::Baseline;

pub use credentials::Thread;
pub(in crate::worker) use directory::DirStream;
pub use directory::RawEntry;
pub use lock::Attempt;
pub use lock_waiters::Wait;
pub use open::Opened;
pub(in crate::worker) use open::writes;
pub use readdir::DirSink;
pub use seats::Bounds;
pub(in crate::worker) use visits::Use;

use crate::config::id_translation::IdTranslator;
use crate::config::xattrmap::XattrMap;
use crate::config::{CachePolicy, FsConfig};
use crate::protocol::Services;
use crate::protocol::metrics::Region;
use crate::worker::broker_client::BrokerClient;
use crate::worker::fuse::negotiate::Service;
use crate::worker::fuse::operation::{Context, NodeId};
use crate::worker::fuse::wire::InitFlags;
use crate::worker::migrate::places::Tracker;
use handles::Handles;
use inodes::{Inode, Inodes};
use keeper::Keeper;
use lock::Locks;
use residence::InodeFd;
use seats::HandleSeat;
use session::Session;
use sys::Result;

/// Once, before there are threads: makes the fd directory the working directory, which is how attributes of
/// special files are reached, leaves every mode as the guest says it, and makes room for fds, of which there may be
/// `nofile`.
///
/// # Errors
/// What `fchdir` says.
pub fn prepare_process(fd_directory: BorrowedFd<'_>, nofile: u64) -> Result<()> {
    sys::set_umask(0);
    sys::learn_nameless(fd_directory);
    sys::expand_fd_table(fd_directory, i32::try_from(nofile).unwrap_or(i32::MAX).min(FDS_AT_START));
    sys::enter_fd_directory(fd_directory)
}

/// The size of the table of fds from the beginning; it takes 128 KiB of the kernel's memory.
const FDS_AT_START: i32 = 16_384;

/// A day: how long `--cache=always` and `metadata` let the guest trust what it has.
const A_DAY: Duration = Duration::from_secs(86_400);

/// Cold inodes that are opened beside one, when they are used in order.
const READ_AHEAD: u64 = 31;

/// The attributes of an inode, with ids as the guest is to see them.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// What `statx` said, ids translated.
    pub st: libc::statx,
    /// Another file system begins here, and the guest is to know.
    pub submount: bool,
    /// How long the guest may trust it.
    pub valid: Duration,
}

/// The answer to a lookup: the guest now holds a reference to the node.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Its attributes.
    pub attr: Attr,
    /// How long the guest may trust that the name leads to this node.
    pub valid: Duration,
}

/// What the passthrough needs from its process.
pub struct Resources {
    /// The root of the share: an `O_PATH` or directory fd.
    pub share: OwnedFd,
    /// Is that root also the root of a mount of its own, so that `..` can't lead out?
    pub share_is_mount_root: bool,
    /// The directory of the worker's own fds, each by its number.
    pub fd_directory: OwnedFd,
    /// The credentials that queue threads start with.
    pub baseline: Baseline,
    /// Does what takes privileges; `None` where there is nobody to ask.
    pub broker: Option<Arc<BrokerClient>>,
    /// What the broker serves.
    pub services: Services,
    /// How many fds inodes and handles may take.
    pub bounds: Bounds,
    /// Where counters go.
    pub metrics: Arc<Region>,
}

/// The passthrough file system of one device.
pub struct FileSystem {
    config: FsConfig,
    pub(in crate::worker) resources: Resources,
    pub(in crate::worker) inodes: Arc<Inodes>,
    pub(in crate::worker) keeper: Keeper,
    pub(in crate::worker) handles: Handles,
    /// With `--locks`.
    locks: Option<Locks>,
    session: Session,
    /// The node that was opened again last.
    last_cold: AtomicU64,
    /// Where inodes lie, while a migration is being prepared.
    pub(in crate::worker) tracker: Tracker,
    xattr_map: Option<XattrMap>,
    /// The host's name of `security.capability`, where the map gives it another.
    renamed_capability: Option<CString>,
    uids: IdTranslator,
    gids: IdTranslator,
}

impl FileSystem {
    /// A file system over a share.
    ///
    /// # Errors
    /// What `statx` on the share says; EINVAL for a configuration that was not validated; EAGAIN when a thread
    /// can't be started.
    pub fn new(config: FsConfig, resources: Resources) -> Result<Self> {
        let xattr_map = match &config.xattrmap {
            Some(text) => Some(text.parse::<XattrMap>().map_err(|_| Errno::EINVAL)?),
            None => None,
        };
        let renamed = xattr_map.as_ref().and_then(XattrMap::renamed_capability);
        let renamed_capability = renamed.map(CString::new).transpose().map_err(|_| Errno::EINVAL)?;
        let inodes = Arc::new(Inodes::new());
        let keeper = Keeper::new(
            config.inode_file_handles,
            resources.broker.clone(),
            resources.services,
            resources.bounds,
            Arc::clone(&inodes),
        );
        let locks = Locks::new(config.locks)?;
        let fs = FileSystem {
            keeper,
            uids: IdTranslator::new(&config.translate_uid).map_err(|_| Errno::EINVAL)?,
            gids: IdTranslator::new(&config.translate_gid).map_err(|_| Errno::EINVAL)?,
            config,
            resources,
            inodes,
            handles: Handles::new(),
            locks,
            session: Session::new(),
            last_cold: AtomicU64::new(0),
            tracker: Tracker::default(),
            xattr_map,
            renamed_capability,
        };
        fs.forget_everything()?;
        Ok(fs)
    }

    /// What the user asked for.
    pub fn config(&self) -> &FsConfig {
        &self.config
    }

    /// Where counters go.
    pub fn metrics(&self) -> &Arc<Region> {
        &self.resources.metrics
    }

    /// Writes down how much there is of what the guest can make more of.
    pub fn publish(&self) {
        let device = &self.resources.metrics.device;
        // Queue threads do this each time they run out of work: a line that does not change stays in all caches.
        let show = |shown: &AtomicU64, number: u64| {
            if shown.load(Ordering::Relaxed) != number {
                shown.store(number, Ordering::Relaxed);
            }
        };
        show(&device.inodes, self.inodes.len());
        show(&device.handles, self.handles.len());
        show(&device.hot_inodes, self.keeper.hot() as u64);
        let counts = self.resources.broker.iter().flat_map(|broker| broker.requests());
        for (shown, count) in device.broker_requests.iter().zip(counts) {
            show(shown, count.load(Ordering::Relaxed));
        }
    }

    /// What this file system serves beyond the options, for INIT.
    ///
    /// Not among it, whatever the cache policy: NO_OPEN_SUPPORT and NO_OPENDIR_SUPPORT. A guest that was told not
    /// to open comes with handle 0 from then on, and goes on so after a migration, on a destination that can't
    /// know: the stream has no word for it.
    pub fn service(&self) -> Service {
        let mut extra = InitFlags::empty();
        // Another target is another inode, so what the guest knows of a link holds as long as the name's entry.
        let trusted_for_long = matches!(self.config.cache, CachePolicy::Always | CachePolicy::Metadata);
        extra.set(InitFlags::CACHE_SYMLINKS, trusted_for_long);
        Service { extra, ..Service::default() }
    }

    /// The inode of a node id.
    ///
    /// # Errors
    /// EBADF for none; ESTALE for one that was lost in a migration.
    fn inode(&self, id: NodeId) -> Result<Arc<Inode>> {
        let inode = self.inodes.get(id).ok_or(Errno::EBADF)?;
        if inode.is_lost() { Err(Errno::ESTALE) } else { Ok(inode) }
    }

    /// The inode of a node id, which must be a directory.
    fn dir_inode(&self, id: NodeId) -> Result<Arc<Inode>> {
        let inode = self.inode(id)?;
        if inode.is_dir() { Ok(inode) } else { Err(Errno::ENOTDIR) }
    }

    /// An fd of the inode, for as long as the value lives.
    pub(in crate::worker) fn fd<'a>(&self, inode: &'a Arc<Inode>) -> Result<InodeFd<'a>> {
        self.keeper.hold(inode, || self.neighbours(inode))
    }

    /// Cold inodes that will be needed soon, when a guest goes through them in the order in which it came to know them:
    /// a program that visits a large tree once more, one request after another.
    fn neighbours(&self, inode: &Inode) -> Vec<Arc<Inode>> {
        let before = self.last_cold.swap(inode.id.0, Ordering::Relaxed);
        let distance = inode.id.0.wrapping_sub(before);
        // Right behind the last one, or behind what was opened beside it.
        if !distance.is_multiple_of(slots::STEP) || !(1..=READ_AHEAD + 1).contains(&(distance / slots::STEP))
        {
            return Vec::new();
        }
        let ids = (1..=READ_AHEAD).filter_map(|step| inode.id.0.checked_add(step * slots::STEP));
        let known = ids.filter_map(|id| self.inodes.get(NodeId(id)));
        known.filter(|inode| !inode.residence.is_hot()).collect()
    }

    /// Are there inodes that the guest knows and that have no fd? (Or some that are coming or going.)
    pub(in crate::worker) fn has_cold_inodes(&self) -> bool {
        self.inodes.len() > self.keeper.hot() as u64
    }

    /// Opens those of the nodes that have no fd, all together, for the calling thread's next requests, or to be kept.
    /// [`FileSystem::end_visits`] when these are served.
    pub(in crate::worker) fn visit(&self, nodes: impl Iterator<Item = (NodeId, Use)>) {
        let (mut cold, mut kept): (Vec<Arc<Inode>>, Vec<NodeId>) = Default::default();
        for (node, wanted) in nodes {
            let Some(inode) = self.inodes.get(node).filter(|inode| !inode.residence.is_hot()) else {
                continue;
            };
            if wanted == Use::Often {
                kept.push(node);
            }
            if !cold.iter().any(|other| Arc::ptr_eq(other, &inode)) {
                cold.push(inode);
            }
        }
        // A single one is opened when it is used.
        if cold.len() > 1 {
            self.keeper.visit(&cold, &kept);
        }
    }

    /// Closes what was only opened for the calling thread's last requests.
    pub(in crate::worker) fn end_visits(&self) {
        visits::end();
    }

    pub(in crate::worker) fn fd_directory(&self) -> BorrowedFd<'_> {
        self.resources.fd_directory.as_fd()
    }

    /// A file description for the inode itself, whatever became of its name.
    pub(in crate::worker) fn reopen(&self, inode: &Arc<Inode>, flags: i32) -> Result<OwnedFd> {
        self.reopen_fd(self.fd(inode)?.as_fd(), flags)
    }

    /// A file description for the inode that an `O_PATH` fd is of.
    fn reopen_fd(&self, fd: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
        let name = sys::FdName::new(fd);
        let flags = flags & !libc::O_NOFOLLOW;
        self.keeper.with_room(|| sys::openat(self.fd_directory(), name.as_cstr(), flags, 0))
    }

    /// A seat for a new handle.
    ///
    /// # Errors
    /// ENFILE when the guest has as many as `--max-handles` lets it have, or there is no room for one more.
    fn handle_seat(&self) -> Result<HandleSeat> {
        if self.config.max_handles.is_some_and(|max| self.handles.len() >= max) {
            self.resources.metrics.device.refused_handles.fetch_add(1, Ordering::Relaxed);
            return Err(Errno::ENFILE);
        }
        self.keeper.handle_seat()
    }

    /// May the guest know one more inode? (A few more, when several queues ask at the same time.)
    ///
    /// # Errors
    /// ENFILE when it knows as many as `--max-inodes` lets it know.
    fn inode_room(&self) -> Result<()> {
        if self.config.max_inodes.is_some_and(|max| self.inodes.len() >= max) {
            self.resources.metrics.device.refused_inodes.fetch_add(1, Ordering::Relaxed);
            return Err(Errno::ENFILE);
        }
        Ok(())
    }

    /// EROFS on a read-only device.
    fn writable(&self) -> Result<()> {
        if self.config.readonly { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// How long the guest may trust attributes and names.
    fn validity(&self) -> Duration {
        match self.config.cache {
            CachePolicy::Auto => Duration::from_secs(1),
            CachePolicy::Always | CachePolicy::Metadata => A_DAY,
            CachePolicy::Never => Duration::ZERO,
        }
    }

    /// The host user and group that a request acts as.
    ///
    /// # Errors
    /// EPERM for an id that `--translate-uid` or `--translate-gid` forbids.
    fn owner(&self, ctx: &Context) -> Result<(u32, u32)> {
        let uid = self.uids.guest_to_host(ctx.uid.0).map_err(|_| Errno::EPERM)?;
        let gid = self.gids.guest_to_host(ctx.gid.0).map_err(|_| Errno::EPERM)?;
        Ok((uid, gid))
    }
}

/// Shorter than `as_fd()` with its trait.
fn borrow(fd: &OwnedFd) -> BorrowedFd<'_> {
    fd.as_fd()
}
