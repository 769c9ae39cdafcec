//! LOOKUP, FORGET: from names to nodes and back.
//!
//! A warm lookup is one system call: `statx` by name gives an identity, and an inode of that identity which is
//! already known and hot is held open, so its number can't have been reused. Another takes two: it is opened, and then
//! `statx` says what was opened. Which it will be is guessed from what the thread's last lookups found ([`Habit`]);
//! a wrong guess costs the other's calls as well, and nothing else.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::inodes::{Found, Identity, Inode};
use super::residence::HotFd;
use super::sys::{self, Result};
use super::{Attr, Entry, FileSystem, Thread, Use};
use crate::worker::fuse::operation::{ForgetList, LookupName, NodeId};

/// What a thread's last lookups led to: hot inodes, or new and cold ones. A guest that walks through files that are new or
/// were not used for long, or revalidates what it has, does so for a while.
#[derive(Default)]
pub(super) struct Habit(u8);

/// What was known of an inode when it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Known, and held open: asking for its identity would have done.
    Hot,
    /// Nothing, or a handle only.
    NotHot,
}

impl Habit {
    const MOST: u8 = 3;

    pub(super) fn expects_hot(&self) -> bool {
        self.0 > Self::MOST / 2
    }

    pub(super) fn saw(&mut self, before: Before) {
        self.0 = match before {
            Before::Hot => (self.0 + 1).min(Self::MOST),
            Before::NotHot => self.0.saturating_sub(1),
        };
    }
}

impl FileSystem {
    /// LOOKUP. The guest gets a reference to the node.
    #[inline(always)]
    pub fn lookup(&self, thread: &mut Thread, parent: NodeId, name: LookupName<'_>) -> Result<Entry> {
        let parent = self.dir_inode(parent)?;
        thread.become_root();
        match name {
            LookupName::Name(name) => {
                let entry = self.lookup_in(thread, &parent, name.as_cstr())?;
                thread.names.met(&entry, parent.id, name.as_cstr());
                Ok(entry)
            }
            LookupName::Current => {
                let st = sys::statx_fd(self.fd(&parent)?.as_fd())?;
                let fd = sys::duplicate(self.fd(&parent)?.as_fd())?;
                let (node, _) = self.adopt(&st, fd, Use::Often)?;
                Ok(self.entry(node, st, &parent.identity))
            }
            LookupName::Parent => self.lookup_parent(&parent),
        }
    }

    /// The parent directory, for the guest's export support. The share's root is its own parent.
    fn lookup_parent(&self, child: &Arc<Inode>) -> Result<Entry> {
        let name = if child.id == NodeId::ROOT { c"." } else { c".." };
        if child.id != NodeId::ROOT && !self.resources.share_is_mount_root {
            // Without a mount of our own, a directory that someone moved out of the share would lead out.
            return Err(Errno::ESTALE);
        }
        self.keeper.make_room()?;
        let fd = self.open_path(child, name, libc::O_DIRECTORY)?;
        let st = sys::statx_fd(super::borrow(&fd))?;
        let identity = Identity::of(&st);
        let (node, _) = self.adopt(&st, fd, Use::Often)?;
        Ok(self.entry(node, st, &identity))
    }

    /// Looks up a name, which must be a single component, and takes a reference for the guest.
    #[inline(always)]
    pub(super) fn lookup_in(&self, thread: &mut Thread, parent: &Arc<Inode>, name: &CStr) -> Result<Entry> {
        if thread.habit.expects_hot()
            && let Some(entry) = self.lookup_hot(parent, name)?
        {
            thread.habit.saw(Before::Hot);
            return Ok(entry);
        }
        let (entry, before) = self.lookup_new(parent, name, Use::Often)?;
        thread.habit.saw(before);
        Ok(entry)
    }

    /// Looks up a name whose inode is probably hot: asks what it leads to. `None` when it isn't.
    #[inline(always)]
    pub(super) fn lookup_hot(&self, parent: &Arc<Inode>, name: &CStr) -> Result<Option<Entry>> {
        let st = sys::statx_at(self.fd(parent)?.as_fd(), name)?;
        let identity = Identity::of(&st);
        let Some(node) = self.inodes.find_hot(&identity, st.stx_mode) else { return Ok(None) };
        self.tracker.saw(&parent.identity, name, &identity);
        Ok(Some(self.entry(node, st, &parent.identity)))
    }

    /// Looks up a name whose inode is probably not known yet, or cold: open first, then ask what was opened.
    #[inline(always)]
    pub(super) fn lookup_new(
        &self,
        parent: &Arc<Inode>,
        name: &CStr,
        wanted: Use,
    ) -> Result<(Entry, Before)> {
        self.keeper.make_room()?;
        let fd = self.open_path(parent, name, libc::O_NOFOLLOW)?;
        let st = sys::statx_fd(super::borrow(&fd))?;
        self.tracker.saw(&parent.identity, name, &Identity::of(&st));
        let (node, before) = self.adopt(&st, fd, wanted)?;
        Ok((self.entry(node, st, &parent.identity), before))
    }

    /// An `O_PATH` fd of a name in a directory.
    pub(super) fn open_path(&self, parent: &Arc<Inode>, name: &CStr, flags: i32) -> Result<OwnedFd> {
        let parent = self.fd(parent)?;
        self.keeper.with_room(|| sys::openat(parent.as_fd(), name, libc::O_PATH | flags, 0))
    }

    /// The inode behind a fresh `O_PATH` fd, with a reference for the guest. One that is known and cold stays so if it is
    /// `wanted` once.
    pub(super) fn adopt(&self, st: &libc::statx, fd: OwnedFd, wanted: Use) -> Result<(NodeId, Before)> {
        let identity = Identity::of(st);
        if self.config.max_inodes.is_some() && !self.inodes.knows(&identity) {
            self.inode_room()?;
        }
        if st.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0 {
            self.keeper.reached_mount(fd.as_fd())?;
        }
        let mut fd = Some(self.keeper.seat(fd));
        loop {
            match self.inodes.find_or_insert(identity, st.stx_mode, &mut fd) {
                Found::New(node) => {
                    self.keeper.heated(node);
                    return Ok((node, Before::NotHot));
                }
                Found::Hot(node) => return Ok((node, Before::Hot)),
                Found::Cold(inode) => {
                    if self.adopt_cold(&inode, st, &mut fd, wanted)? {
                        return Ok((inode.id, Before::NotHot));
                    }
                }
                Found::NoFd => return Err(Errno::EIO),
            }
        }
    }

    /// The inode behind `fd` has the identity of a cold one. If it is the same, takes a reference for the guest, and perhaps
    /// the fd; `false` if it isn't, or was forgotten meanwhile.
    #[cold]
    fn adopt_cold(
        &self,
        inode: &Arc<Inode>,
        st: &libc::statx,
        fd: &mut Option<HotFd>,
        wanted: Use,
    ) -> Result<bool> {
        let opened = fd.as_ref().ok_or(Errno::EIO)?;
        if !self.keeper.is_same(inode, opened.as_fd(), inode.identity.has_unique_mount())? {
            self.inodes.disown(inode);
            return Ok(false);
        }
        if !self.inodes.take(inode) {
            return Ok(false);
        }
        inode.saw_mode(st.stx_mode);
        if let Some(fd) = fd.take() {
            self.keeper.opened(inode, fd, wanted);
        }
        Ok(true)
    }

    /// The answer for an inode that the guest has just got a reference to; `parent` tells where a submount begins.
    #[inline(always)]
    pub(super) fn entry(&self, node: NodeId, st: libc::statx, parent: &Identity) -> Entry {
        let is_dir = u32::from(st.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        let submount = self.session.announces_submounts() && is_dir && !Identity::of(&st).same_volume(parent);
        Entry { node, attr: self.plain_attr(st, submount), valid: self.validity() }
    }

    /// Attributes as the guest is to see them.
    #[inline(always)]
    pub(super) fn plain_attr(&self, mut st: libc::statx, submount: bool) -> Attr {
        st.stx_uid = self.uids.host_to_guest(st.stx_uid);
        st.stx_gid = self.gids.host_to_guest(st.stx_gid);
        Attr { st, submount, valid: self.validity() }
    }

    /// FORGET.
    pub fn forget(&self, node: NodeId, count: u64) {
        if let Some(inode) = self.inodes.forget(node, count) {
            self.forget_locks(&inode);
            // Its fd closes here, not under a lock of the table.
            drop(inode);
        }
    }

    /// BATCH_FORGET.
    pub fn batch_forget(&self, list: ForgetList<'_>) {
        for (node, count) in list.iter() {
            self.forget(node, count);
        }
    }
}
