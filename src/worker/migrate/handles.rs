//! Files by the handles of a stream. The broker opens them, and only those that the kernel proves to lie in the share;
//! what it can't prove, or can't open on this kernel, is looked for in the whole share.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;

use super::find::each_directory;
use super::format::{DeviceState, FileHandle, Inode, InodeLocation};
use super::restore::{RestoreError, Why, open_path};
use super::walk::{Walker, open_at};
use crate::protocol::bounded::Bytes;
use crate::protocol::{self, MAX_FDS, SealedHandle};
use crate::worker::broker_client::BrokerClient;
use crate::worker::fs::FileSystem;
use crate::worker::fs::sys;

/// Handles that are opened together: as many fds come at once.
pub const AT_ONCE: usize = 64;

/// A file that the broker did not open.
fn refused(errno: protocol::Errno) -> Why {
    match Errno::from_raw(errno.code()) {
        errno @ (Errno::EMFILE | Errno::ENFILE) => Why::Kernel(errno),
        _ => Why::NoFile,
    }
}

/// A handle with the broker's number of its mount.
type Key = (u32, i32, Vec<u8>);

/// Finds files by handles.
pub struct HandleFinder<'a> {
    fs: &'a FileSystem,
    /// The broker's numbers of the stream's mounts.
    mounts: HashMap<u64, u32>,
}

impl<'a> HandleFinder<'a> {
    /// Looks for the mounts of all handles that are locations. (A stream of version 1 has no paths of mounts: then all
    /// are the share's root.)
    ///
    /// # Errors
    /// When the root of the share can't be read.
    pub fn new(fs: &'a FileSystem, state: &DeviceState) -> sys::Result<Self> {
        let mut walker = Walker::new(fs)?;
        let handles = state.inodes.iter().filter_map(|inode| match &inode.location {
            InodeLocation::FileHandle { handle } => Some(handle.mnt_id),
            _ => None,
        });
        let ids: HashSet<u64> = handles.collect();
        let mut mounts = HashMap::new();
        for id in ids {
            let root = state.mount_paths.is_empty().then_some(".");
            let Some(path) = state.mount_paths.get(&id).map(String::as_str).or(root) else { continue };
            let fd = open_path(fs, &mut walker, path).and_then(|fd| {
                let st = sys::statx_fd(fd.as_fd())?;
                super::walk::reached(fs, &st, fd.as_fd())?;
                Ok(fd)
            });
            let Some(broker) = &fs.resources.broker else { break };
            let sealed = fd.ok().and_then(|fd| broker.seal(&[fd.as_fd()]).ok()?.pop()?.ok());
            mounts.extend(sealed.map(|sealed| (id, sealed.mount)));
        }
        Ok(HandleFinder { fs, mounts })
    }

    /// An `O_PATH` fd of each file, up to [`AT_ONCE`]; [`Why::NoFile`] where only a walk can tell.
    pub fn open(&self, handles: &[(&Inode, &FileHandle)]) -> Vec<Result<OwnedFd, Why>> {
        let usable: Vec<_> = handles.iter().map(|(_, handle)| self.usable(handle)).collect();
        let mounts: HashSet<u32> = usable.iter().flatten().map(|(mount, _)| *mount).collect();
        let mut opened: HashMap<usize, Result<OwnedFd, Why>> = HashMap::with_capacity(handles.len());
        for mount in mounts {
            let there = usable.iter().enumerate().filter_map(|(place, usable)| match usable {
                Ok((on, handle)) if *on == mount => Some((place, handle.clone())),
                _ => None,
            });
            let (places, wanted): (Vec<_>, Vec<_>) = there.unzip();
            opened.extend(places.into_iter().zip(self.admit(mount, wanted)));
        }
        let each = usable.into_iter().enumerate();
        each.map(|(place, usable)| usable.and_then(|_| opened.remove(&place).unwrap_or(Err(Why::NoFile))))
            .collect()
    }

    /// What the broker is to open, and on which mount.
    fn usable(&self, handle: &FileHandle) -> Result<(u32, protocol::FileHandle), Why> {
        if self.broker().is_none() {
            return Err(Why::NoHandles);
        }
        let mount = *self.mounts.get(&handle.mnt_id).ok_or(Why::NoMount)?;
        if !self.fs.resources.services.admit {
            return Err(Why::NoFile);
        }
        let bytes = Bytes::new(handle.handle.as_slice()).map_err(|_| Why::NoFile)?;
        Ok((mount, protocol::FileHandle { handle_type: handle.handle_type, bytes }))
    }

    fn broker(&self) -> Option<&BrokerClient> {
        self.fs.resources.broker.as_deref().filter(|_| self.fs.resources.services.handles)
    }

    fn admit(&self, mount: u32, handles: Vec<protocol::FileHandle>) -> Vec<Result<OwnedFd, Why>> {
        let Some(broker) = self.broker() else { return Vec::new() };
        match broker.admit(mount, handles) {
            Ok(results) => results.into_iter().map(|result| result.map_err(refused)).collect(),
            Err(e) => {
                log::error!("migration: cannot have file handles opened: {e}");
                Vec::new()
            }
        }
    }

    /// Goes through the whole share, seals every file and compares; `take` gets each of `wanted`.
    ///
    /// # Errors
    /// What `take` says; when the root of the share can't be read.
    pub fn walk<'s>(
        &self,
        wanted: Vec<(&'s Inode, &'s FileHandle)>,
        mut take: impl FnMut(&'s Inode, Result<OwnedFd, Why>) -> Result<(), RestoreError>,
    ) -> Result<(), RestoreError> {
        if wanted.is_empty() {
            return Ok(());
        }
        log::info!("migration: looking for {} file handles in the whole share", wanted.len());
        let mut left: HashMap<Key, &Inode> = HashMap::with_capacity(wanted.len());
        let mut twice = Vec::new();
        for (inode, handle) in wanted {
            let mount = self.mounts.get(&handle.mnt_id).copied().unwrap_or(u32::MAX);
            twice.extend(left.insert((mount, handle.handle_type, handle.handle.clone()), inode));
        }
        let mut outcome = Ok(());
        let never = AtomicBool::new(false);
        each_directory(self.fs, &never, |walker, path, entries| {
            let Ok(here) = walker.enter(path, |_, _, _| {}) else { return true };
            let mut batch: Vec<OwnedFd> = here.fd.try_clone_to_owned().ok().into_iter().collect();
            let files = entries.iter().filter(|entry| entry.kind != libc::DT_DIR);
            for entry in files {
                batch.extend(open_at(self.fs, here.fd, &entry.name, 0).ok());
                if batch.len() >= MAX_FDS / 2 {
                    let found = self.compare(std::mem::take(&mut batch), &mut left);
                    outcome = found.into_iter().try_for_each(|(inode, fd)| take(inode, Ok(fd)));
                    if outcome.is_err() || left.is_empty() {
                        return false;
                    }
                }
            }
            let found = self.compare(batch, &mut left);
            outcome = found.into_iter().try_for_each(|(inode, fd)| take(inode, Ok(fd)));
            outcome.is_ok() && !left.is_empty()
        })
        .map_err(RestoreError::Share)?;
        outcome?;
        left.into_values().chain(twice).try_for_each(|inode| take(inode, Err(Why::NoFile)))
    }

    /// Those of the files whose handles are wanted.
    fn compare<'s>(
        &self,
        files: Vec<OwnedFd>,
        left: &mut HashMap<Key, &'s Inode>,
    ) -> Vec<(&'s Inode, OwnedFd)> {
        let Some(broker) = self.fs.resources.broker.as_ref().filter(|_| !files.is_empty()) else {
            return Vec::new();
        };
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let Ok(sealed) = broker.seal(&fds) else { return Vec::new() };
        let key = |sealed: SealedHandle| {
            (sealed.mount, sealed.handle.handle_type, sealed.handle.bytes.as_slice().to_vec())
        };
        let matches = files.into_iter().zip(sealed).filter_map(|(file, result)| {
            let inode = left.remove(&key(result.ok()?))?;
            Some((inode, file))
        });
        matches.collect()
    }
}
