//! The destination's side: a guest's nodes and handles from a [`DeviceState`], under the ids that it knows.
//!
//! A stream is as hostile as a guest. All that it can name lies in the share: paths are walked from its root,
//! component by component and never through a symbolic link; a file handle is opened by the broker, which lets
//! the kernel prove that the file lies in the share (see `handles`). Nothing is allocated beyond a small
//! multiple of the stream's size.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use thiserror::Error;

use super::format::{DecodeError, DeviceState, FileHandle, Handle, HandleSource, Inode, InodeLocation};
use super::handles::{AT_ONCE, HandleFinder};
use super::walk::{Walker, components, open_at, reached};
use crate::config::{MigrationOnError, Negotiate};
use crate::worker::fs::inodes::{Identity, Inode as Node};
use crate::worker::fs::residence::Residence;
use crate::worker::fs::sys;
use crate::worker::fs::{FileSystem, writes};
use crate::worker::fuse::negotiate::Negotiated;
use crate::worker::fuse::operation::{HandleId, NodeId};

/// Lost inodes and handles that are logged one by one.
const MAX_LOGGED: usize = 20;
/// Names of a path that a message tells, from its end on.
const MAX_NAMES: usize = 64;

/// Why a stream is not taken.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Its form.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The share.
    #[error("cannot look into the shared directory: {0}")]
    Share(Errno),
    /// An option of the source that was not given here.
    #[error(
        "the guest uses {what}, which this daemon was not started with: start the destination with {option}"
    )]
    Option {
        /// What the guest negotiated.
        what: &'static str,
        /// What to do.
        option: &'static str,
    },
    /// Two records of one id.
    #[error("{what} {id} is twice in the migration stream")]
    Duplicate {
        /// Inode or handle.
        what: &'static str,
        /// The id.
        id: u64,
    },
    /// Ids that no daemon gives out.
    #[error("the migration stream has {what} {id}, which no daemon gives out")]
    BadId {
        /// Inode or handle.
        what: &'static str,
        /// The id.
        id: u64,
    },
    /// With `--migration-on-error=abort`.
    #[error(
        "{0}. The migration is refused (--migration-on-error=abort); the guest goes on at the source. With guest-error \
         it could migrate without what is lost"
    )]
    Lost(Loss),
}

/// An inode or handle that can't be had here.
#[derive(Debug, Error)]
pub enum Loss {
    /// An inode.
    #[error("inode {id} ({location}) of the migration stream cannot be found here: {reason}")]
    Inode {
        /// The node.
        id: u64,
        /// Where it was.
        location: String,
        /// Why not.
        reason: Why,
    },
    /// A handle.
    #[error("handle {id} of the migration stream, of inode {inode}, cannot be opened here: {reason}")]
    Handle {
        /// The handle.
        id: u64,
        /// The node that it is open on.
        inode: u64,
        /// Why not.
        reason: Why,
    },
}

/// Why something is lost.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Why {
    /// The source says so.
    #[error("the source did not find it: it was removed while open, or its name is not UTF-8")]
    AtSource,
    /// The kernel says so.
    #[error("{0}")]
    Kernel(#[from] Errno),
    /// `--migration-verify-handles` on the source.
    #[error("another file is in its place (its file handle differs from the one at the source)")]
    OtherFile,
    /// Its directory is not in the stream, or lost itself.
    #[error("its directory is lost")]
    NoDirectory,
    /// There are no handles here.
    #[error("this daemon cannot open file handles: its log says why at the start")]
    NoHandles,
    /// The handle's mount.
    #[error("the mount of its file handle is not in the share here")]
    NoMount,
    /// The handle leads nowhere.
    #[error("no file in the share has its file handle")]
    NoFile,
    /// Its inode is lost, or not in the stream.
    #[error("its inode is lost")]
    NoInode,
    /// The inode is no file or directory.
    #[error("it is open on something that cannot be opened")]
    NotOpenable,
}

/// What was restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Restored {
    /// Nodes.
    pub inodes: usize,
    /// Open files and directories.
    pub handles: usize,
    /// Nodes and handles that answer errors.
    pub lost: usize,
}

/// Takes over a guest.
///
/// # Errors
/// [`RestoreError`]; the device is as new then.
pub fn restore(
    fs: &FileSystem,
    on_error: MigrationOnError,
    state: &DeviceState,
) -> Result<Restored, RestoreError> {
    check_options(fs, state)?;
    check_ids(state)?;
    fs.forget_everything().map_err(RestoreError::Share)?;
    let mut restorer = Restorer { fs, on_error, state, named: OnceCell::new(), done: Restored::default() };
    restorer.run().inspect_err(|_| {
        if let Err(e) = fs.end_session() {
            log::error!("migration: cannot go back to the root of the share: {e}");
        }
    })?;
    Ok(restorer.done)
}

fn check_options(fs: &FileSystem, state: &DeviceState) -> Result<(), RestoreError> {
    if state.negotiated.writeback && !fs.config().writeback {
        return Err(RestoreError::Option { what: "the write-back cache", option: "--writeback" });
    }
    if state.negotiated.posix_acl && fs.config().posix_acl == Negotiate::Never {
        return Err(RestoreError::Option { what: "POSIX ACLs", option: "--posix-acl" });
    }
    Ok(())
}

fn check_ids(state: &DeviceState) -> Result<(), RestoreError> {
    unique("inode", state.inodes.iter().map(|inode| inode.id))?;
    unique("handle", state.handles.iter().map(|handle| handle.id))?;
    for inode in &state.inodes {
        let is_root = matches!(inode.location, InodeLocation::RootNode);
        if is_root != (inode.id == NodeId::ROOT.0) || inode.id == 0 || inode.id == u64::MAX {
            return Err(RestoreError::BadId { what: "inode", id: inode.id });
        }
    }
    Ok(())
}

fn unique(what: &'static str, ids: impl Iterator<Item = u64>) -> Result<(), RestoreError> {
    let mut ids: Vec<u64> = ids.collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair.first() == pair.last()) {
        Some(pair) => Err(RestoreError::Duplicate { what, id: pair.first().copied().unwrap_or(0) }),
        None => Ok(()),
    }
}

struct Restorer<'a> {
    fs: &'a FileSystem,
    on_error: MigrationOnError,
    state: &'a DeviceState,
    /// Parent and name of each inode that is named within another one, for messages; made for the first of them.
    named: OnceCell<HashMap<u64, (u64, &'a str)>>,
    done: Restored,
}

impl Restorer<'_> {
    fn run(&mut self) -> Result<(), RestoreError> {
        let state = self.state;
        let last = |next: u64, ids: Option<u64>| next.max(ids.map_or(0, |id| id.saturating_add(1)));
        let inodes = last(state.next_inode, state.inodes.iter().map(|inode| inode.id).max());
        let handles = last(state.next_handle, state.handles.iter().map(|handle| handle.id).max());
        self.fs.inodes.continue_from(inodes, state.inodes.len());
        self.fs.handles.continue_from(handles, state.handles.len());
        let options = Negotiated::migrated(&state.negotiated, self.fs.config(), &self.fs.service());
        self.by_path(state)?;
        self.by_handle(state)?;
        self.by_parent(state)?;
        self.lose_the_rest(state)?;
        for handle in &state.handles {
            self.open(handle, &options)?;
        }
        self.drop_extra_references(state);
        self.fs.resume_session(options);
        Ok(())
    }

    /// Nodes that have a path of their own. In the order of their paths, neighbours share their directories.
    fn by_path(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let mut paths: Vec<(&str, &Inode)> = Vec::new();
        for inode in &state.inodes {
            if let InodeLocation::FullPath { filename } = &inode.location {
                paths.push((filename, inode));
            }
        }
        paths.sort_unstable_by_key(|(path, _)| *path);
        let mut walker = Walker::new(self.fs).map_err(RestoreError::Share)?;
        for (path, inode) in paths {
            let result = open_path(self.fs, &mut walker, path);
            self.take(inode, result.map_err(Why::Kernel))?;
        }
        Ok(())
    }

    /// Nodes that have a file handle.
    fn by_handle(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let mut wanted: Vec<(&Inode, &FileHandle)> = Vec::new();
        for inode in &state.inodes {
            if let InodeLocation::FileHandle { handle } = &inode.location {
                wanted.push((inode, handle));
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let finder = HandleFinder::new(self.fs, state).map_err(RestoreError::Share)?;
        let mut left = Vec::new();
        let mut wanted = wanted.as_slice();
        while !wanted.is_empty() {
            // Room for the fds that come; where there is none, the inode says so that takes one.
            let _ = self.fs.keeper.make_room();
            let seats = self.fs.keeper.reserve(AT_ONCE.min(wanted.len()));
            let (now, later) = wanted.split_at(seats.len().max(1));
            let results = finder.open(now);
            drop(seats);
            for ((inode, handle), result) in now.iter().zip(results) {
                match result {
                    Err(Why::NoFile) => left.push((*inode, *handle)),
                    result => self.take(inode, result)?,
                }
            }
            wanted = later;
        }
        finder.walk(left, |inode, result| self.take(inode, result))
    }

    /// Nodes that are named within others, from those that are there downwards.
    fn by_parent(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let mut children: HashMap<u64, Vec<(&Inode, &str)>> = HashMap::new();
        for inode in &state.inodes {
            if let InodeLocation::Path { parent, filename } = &inode.location {
                children.entry(*parent).or_default().push((inode, filename));
            }
        }
        let mut there: Vec<u64> = children.keys().copied().collect();
        there.retain(|parent| self.fs.inodes.get(NodeId(*parent)).is_some());
        while let Some(parent) = there.pop() {
            let Some(children_here) = children.remove(&parent) else { continue };
            let directory = self.fs.inodes.get(NodeId(parent)).filter(|directory| !directory.is_lost());
            let Some(directory) = directory else { continue };
            for (inode, filename) in children_here {
                let result = components(filename.as_bytes())
                    .and_then(|names| {
                        let directory = self.fs.fd(&directory)?;
                        open_below(self.fs, directory.as_fd(), &names)
                    })
                    .map_err(Why::Kernel);
                self.take(inode, result)?;
                there.push(inode.id);
            }
        }
        Ok(())
    }

    /// Gives up the references that nodes had for being the directory of others, and nodes that had no other ones.
    fn drop_extra_references(&self, state: &DeviceState) {
        let parents = state.inodes.iter().filter_map(|inode| match &inode.location {
            InodeLocation::Path { parent, .. } => Some(*parent),
            _ => None,
        });
        let none = state.inodes.iter().filter(|inode| inode.refcount == 0).map(|inode| inode.id);
        for node in parents.chain(none) {
            self.fs.forget(NodeId(node), 1);
        }
    }

    /// Nodes that nothing led to: invalid ones, and those below them.
    fn lose_the_rest(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        for inode in &state.inodes {
            if self.fs.inodes.get(NodeId(inode.id)).is_none() {
                let invalid = matches!(inode.location, InodeLocation::Invalid);
                self.take(inode, Err(if invalid { Why::AtSource } else { Why::NoDirectory }))?;
            }
        }
        Ok(())
    }

    /// Makes a node of what was found for it.
    fn take(&mut self, inode: &Inode, found: Result<OwnedFd, Why>) -> Result<(), RestoreError> {
        let added = found.and_then(|fd| self.add(inode, fd));
        let Err(reason) = added else {
            self.done.inodes += 1;
            return Ok(());
        };
        let id = inode.id;
        self.lose(|this| Loss::Inode { id, location: this.location(inode), reason })?;
        let nobody = Identity { mount: u64::MAX, device: 0, ino: inode.id };
        self.insert(inode, nobody, 0, Residence::lost());
        Ok(())
    }

    fn add(&self, inode: &Inode, fd: OwnedFd) -> Result<(), Why> {
        let st = sys::statx_fd(fd.as_fd())?;
        reached(self.fs, &st, fd.as_fd())?;
        if let Some(expected) = &inode.file_handle {
            let broker = self.fs.resources.broker.as_ref().filter(|_| self.fs.resources.services.handles);
            let broker = broker.ok_or(Why::NoHandles)?;
            let sealed = broker.seal(&[fd.as_fd()]).map_err(|_| Why::NoHandles)?.pop();
            let handle = match sealed {
                Some(Ok(sealed)) => sealed.handle,
                _ => return Err(Why::NoHandles),
            };
            if handle.handle_type != expected.handle_type
                || handle.bytes.as_slice() != expected.handle.as_slice()
            {
                return Err(Why::OtherFile);
            }
        }
        let kind = u32::from(st.stx_mode) & libc::S_IFMT;
        self.fs.keeper.make_room()?;
        let residence = Residence::hot(self.fs.keeper.seat(fd));
        self.fs.keeper.heated(self.insert(inode, Identity::of(&st), kind, residence).id);
        Ok(())
    }

    fn insert(&self, inode: &Inode, identity: Identity, kind: u32, residence: Residence) -> Arc<Node> {
        self.fs.inodes.insert_at(NodeId(inode.id), inode.refcount.max(1), identity, kind, residence)
    }

    /// Where the source says that an inode is, in words.
    fn location(&self, inode: &Inode) -> String {
        match &inode.location {
            InodeLocation::Path { .. } => format!("{:?}", self.path(inode.id)),
            InodeLocation::FullPath { filename } => format!("{filename:?}"),
            InodeLocation::FileHandle { .. } => "known by its file handle".to_owned(),
            InodeLocation::RootNode => "the root".to_owned(),
            InodeLocation::Invalid => "without a path; the source's log may tell the last one".to_owned(),
        }
    }

    /// The path of an inode that is named within another one: the names on the way to it from the root, or from an
    /// inode that is found in another way.
    fn path(&self, id: u64) -> String {
        let named = self.named.get_or_init(|| {
            let named = self.state.inodes.iter().filter_map(|inode| match &inode.location {
                InodeLocation::Path { parent, filename } => Some((inode.id, (*parent, filename.as_str()))),
                _ => None,
            });
            named.collect()
        });
        let (mut names, mut at) = (Vec::new(), id);
        while let Some((parent, name)) = named.get(&at).filter(|_| names.len() < MAX_NAMES) {
            names.push(*name);
            at = *parent;
        }
        if at != NodeId::ROOT.0 {
            let top = self.state.inodes.iter().find(|inode| inode.id == at);
            match top.map(|inode| &inode.location) {
                Some(InodeLocation::FullPath { filename }) => names.push(filename),
                _ => names.push("…"),
            }
        }
        names.reverse();
        names.join("/")
    }

    /// Something is lost: the end of it all, or a line in the log.
    fn lose(&mut self, loss: impl FnOnce(&Self) -> Loss) -> Result<(), RestoreError> {
        if self.on_error == MigrationOnError::Abort {
            return Err(RestoreError::Lost(loss(self)));
        }
        self.done.lost += 1;
        if self.done.lost <= MAX_LOGGED {
            log::warn!("migration: {}", loss(self));
        } else if self.done.lost == MAX_LOGGED + 1 {
            log::warn!("migration: further losses are only counted");
        }
        Ok(())
    }

    fn open(&mut self, handle: &Handle, options: &Negotiated) -> Result<(), RestoreError> {
        match self.try_open(handle, options) {
            Ok(()) => self.done.handles += 1,
            Err(reason) => {
                self.lose(|_| Loss::Handle { id: handle.id, inode: handle.inode, reason })?;
            }
        }
        Ok(())
    }

    fn try_open(&self, handle: &Handle, options: &Negotiated) -> Result<(), Why> {
        let HandleSource::OpenInode { flags } = handle.source;
        let once = libc::O_TRUNC | libc::O_CREAT | libc::O_EXCL;
        let flags = (flags & !once).cast_unsigned();
        let inode = self.fs.inodes.get(NodeId(handle.inode)).filter(|inode| !inode.is_lost());
        let inode = inode.ok_or(Why::NoInode)?;
        let seat = self.fs.keeper.handle_seat()?;
        let file = match inode.kind {
            libc::S_IFDIR => {
                let directory = self.fs.fd(&inode)?;
                let open = || sys::openat(directory.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0);
                self.fs.keeper.with_room(open)?
            }
            libc::S_IFREG => {
                let host = self.fs.host_flags(options, flags);
                if self.fs.config().readonly && writes(host) {
                    return Err(Why::Kernel(Errno::EROFS));
                }
                self.fs.reopen(&inode, host)?
            }
            _ => return Err(Why::NotOpenable),
        };
        self.fs.handles.insert_at(HandleId(handle.id), inode, flags, file, seat);
        Ok(())
    }
}

/// An `O_PATH` fd of a path from the root of the share.
pub(super) fn open_path(fs: &FileSystem, walker: &mut Walker<'_>, path: &str) -> sys::Result<OwnedFd> {
    let names = components(path.as_bytes())?;
    match names.split_last() {
        Some((name, parents)) => {
            let parent = walker.enter(parents, |_, _, _| {})?;
            open_at(fs, parent.fd, name, 0)
        }
        None => fs.resources.share.try_clone().map_err(|_| Errno::last()),
    }
}

/// An `O_PATH` fd of a path below a directory, or of the directory itself.
fn open_below(fs: &FileSystem, from: BorrowedFd<'_>, names: &[CString]) -> sys::Result<OwnedFd> {
    let Some((first, others)) = names.split_first() else {
        return from.try_clone_to_owned().map_err(|_| Errno::last());
    };
    let mut at = open_at(fs, from, first, 0)?;
    for name in others {
        at = open_at(fs, at.as_fd(), name, 0)?;
    }
    Ok(at)
}
