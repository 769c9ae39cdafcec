//! Opening a file for reading by a name that it was met under lately.
//!
//! The directory of the worker's own fds leads to an inode whatever became of its name, but takes the kernel half as much
//! time again as a name does. So a thread remembers under which names its last requests met files, opens by that name, and
//! asks what it has opened. A name may lead elsewhere by now: then that is closed, unused, and the file is opened the other
//! way. Names are hints; nothing that the guest gets depends on them.
//!
//! What lies under the name by now must not suffer by it, nor the daemon: it is opened for reading only, without truncating,
//! waiting (for a FIFO's writer, a lease's holder) or following a symbolic link, and only on mounts that refuse to open
//! devices. A FIFO or a file that was put there meanwhile is opened and closed again at once. That is all that a hostile
//! guest can reach by moving names about.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::inodes::{Identity, Inode};
use super::slots::STEP;
use super::{Entry, FileSystem, Thread, sys, writes};
use crate::worker::fuse::operation::NodeId;

/// Files whose names a thread remembers; a power of two. A guest opens what it has just looked up, or found in a listing.
const FILES: usize = 1024;

/// Bytes of the longest name that is remembered, with its NUL. An entry fills a cache line.
const LONGEST: usize = 48;

/// Where a file was met.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Met {
    file: NodeId,
    directory: NodeId,
    name: [u8; LONGEST],
}

const _: () = assert!(size_of::<Met>() == 64);

/// What a thread remembers: none or [`FILES`] places, each for the file whose node id leads there and was met last.
#[derive(Default)]
pub struct Names(Vec<Met>);

impl Names {
    /// A request has met this inode.
    pub fn met(&mut self, entry: &Entry, directory: NodeId, name: &CStr) {
        if u32::from(entry.attr.st.stx_mode) & libc::S_IFMT == libc::S_IFREG {
            self.remember(entry.node, directory, name);
        }
    }

    fn remember(&mut self, file: NodeId, directory: NodeId, name: &CStr) {
        let bytes = name.to_bytes_with_nul();
        if self.0.is_empty() {
            self.0 = vec![Met { file: NodeId(0), directory: NodeId(0), name: [0; LONGEST] }; FILES];
        }
        if let Some(met) = self.0.get_mut(place(file))
            && let Some(room) = met.name.get_mut(..bytes.len())
        {
            room.copy_from_slice(bytes);
            (met.file, met.directory) = (file, directory);
        }
    }

    /// The directory and the name that a file was met under.
    fn of(&self, file: NodeId) -> Option<(NodeId, &CStr)> {
        let met = self.0.get(place(file)).filter(|met| met.file == file)?;
        Some((met.directory, CStr::from_bytes_until_nul(&met.name).ok()?))
    }

    /// What is remembered of a file is wrong.
    fn forget(&mut self, file: NodeId) {
        if let Some(met) = self.0.get_mut(place(file)).filter(|met| met.file == file) {
            met.file = NodeId(0);
        }
    }
}

/// A file's place. Of [`FILES`] node ids that one thread gave out in a row, which are [`STEP`] apart, each has its own; so
/// has, but for one, each of as many that all threads gave out.
fn place(file: NodeId) -> usize {
    const EACH: u64 = FILES as u64 / STEP;
    let place = file.0 / STEP + file.0 % STEP * EACH;
    place as usize % FILES
}

impl FileSystem {
    /// Opens a file for reading by the name that this thread met it under. `fd` keeps the inode, so that no other can
    /// have its identity. `None` when it must be opened the other way.
    pub(super) fn open_by_name(
        &self,
        thread: &mut Thread,
        inode: &Inode,
        fd: BorrowedFd<'_>,
        flags: i32,
    ) -> Option<OwnedFd> {
        if writes(flags) {
            return None;
        }
        let (directory, name) = thread.names.of(inode.id)?;
        // Other ids are used again: what is known of such a mount would have to be asked each time.
        if !inode.identity.has_unique_mount() {
            return None;
        }
        let mount = thread.last_mount.kind(&inode.identity, fd);
        if !mount.is_plain || !mount.is_nodev {
            return None;
        }
        let opened = self.open_named(directory, name, flags, &inode.identity);
        if opened.is_none() {
            thread.names.forget(inode.id);
        }
        opened
    }

    /// What a name leads to, if it is the inode of this identity.
    fn open_named(&self, directory: NodeId, name: &CStr, flags: i32, identity: &Identity) -> Option<OwnedFd> {
        let directory = self.inodes.get(directory)?;
        let directory = directory.residence.fd()?;
        let flags = flags | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY;
        let file = sys::openat(directory.as_fd(), name, flags, 0).ok()?;
        let st = sys::identity_fd(file.as_fd()).ok()?;
        (Identity::of(&st) == *identity).then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: NodeId = NodeId(1);

    #[test]
    fn the_last_name_counts() {
        let mut names = Names::default();
        assert_eq!(names.of(NodeId(5)), None);
        assert_eq!(names.of(NodeId(0)), None);
        names.remember(NodeId(5), DIRECTORY, c"a long one");
        names.remember(NodeId(5), NodeId(7), c"short");
        assert_eq!(names.of(NodeId(5)), Some((NodeId(7), c"short")));
        assert_eq!(names.of(NodeId(5 + (1 << 32))), None);
        names.forget(NodeId(5 + (1 << 32)));
        assert!(names.of(NodeId(5)).is_some());
        names.forget(NodeId(5));
        assert_eq!(names.of(NodeId(5)), None);
    }

    #[test]
    fn long_names_are_left_out() {
        let mut names = Names::default();
        for length in [1, LONGEST - 1, LONGEST, 255] {
            let name = std::ffi::CString::new(vec![b'n'; length]).unwrap();
            names.remember(NodeId(9), DIRECTORY, c"before");
            names.remember(NodeId(9), DIRECTORY, &name);
            let expected = if length < LONGEST { &*name } else { c"before" };
            assert_eq!(names.of(NodeId(9)), Some((DIRECTORY, expected)), "{length}");
        }
    }

    #[test]
    fn as_many_files_as_there_are_places_get_one_each() {
        for (step, without) in [(STEP, 0), (1, 1)] {
            for first in [2, 1000, (7 << 32) + 77] {
                let mut names = Names::default();
                let files = || (0..FILES as u64).map(|n| NodeId(first + n * step));
                files().for_each(|file| names.remember(file, DIRECTORY, c"name"));
                let forgotten = files().filter(|file| names.of(*file).is_none()).count();
                assert!(forgotten <= without, "{forgotten}, {first} {step}");
            }
        }
    }
}
