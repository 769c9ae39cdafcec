//! Finding out where inodes lie, for a stream of paths: what the kernel calls an open inode, checked by looking
//! there; and for what is left, a walk through the whole share.
//!
//! The same is done twice: while the guest still runs, which may take its time, and once more when it stands
//! still, for the few that are missing then.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::walk::{Directory, Walker, components};
use crate::worker::fs::inodes::{Identity, Inode};
use crate::worker::fs::sys::{self, Result};
use crate::worker::fs::{DirStream, FileSystem};
use crate::worker::fuse::operation::NodeId;

/// Inodes whose paths are sorted together: bounds the memory for them.
const BATCH: usize = 4096;
/// Cold inodes are opened one by one, through the broker, only when there are no more than these: a walk is faster.
const MAX_REOPENED: usize = 4096;
/// Entries of a directory that are looked at together; operations that change names wait meanwhile.
const PIECE: usize = 256;
/// The walk goes no deeper than this.
const MAX_DEPTH: usize = 1024;

/// Finds the places of all inodes of the guest that the tracker doesn't know yet. `cancelled` ends it early.
///
/// # Errors
/// When the root of the share can't be read; an inode that is not found is no error.
pub fn find_places(fs: &FileSystem, cancelled: &AtomicBool) -> Result<()> {
    let wanted: Vec<_> = fs.inodes.all().into_iter().filter(|inode| is_wanted(fs, inode)).collect();
    fs.tracker.expect(wanted.len());
    let (hot, cold): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|inode| inode.residence.is_hot());
    by_link(fs, &hot, cancelled)?;
    if cold.len() <= MAX_REOPENED {
        by_link(fs, &cold, cancelled)?;
    }
    let left = hot.iter().chain(&cold).filter(|inode| is_wanted(fs, inode) && has_name(fs, inode));
    let left: HashSet<Identity> = left.map(|inode| inode.identity).collect();
    if left.is_empty() || cancelled.load(Ordering::Relaxed) { Ok(()) } else { by_walk(fs, left, cancelled) }
}

fn is_wanted(fs: &FileSystem, inode: &Inode) -> bool {
    inode.id != NodeId::ROOT && !inode.is_lost() && !fs.tracker.knows(&inode.identity)
}

/// May there still be a name that leads to it? Unknown of a cold one.
fn has_name(fs: &FileSystem, inode: &Arc<Inode>) -> bool {
    if !inode.residence.is_hot() {
        return true;
    }
    let st = fs.fd(inode).and_then(|fd| sys::statx_fd(fd.as_fd()));
    // A removed directory keeps a link count on some file systems, but no name; the walk won't find it.
    st.is_ok_and(|st| st.stx_nlink > 0)
}

/// Asks the kernel for the paths of open inodes, and looks there.
fn by_link(fs: &FileSystem, inodes: &[Arc<Inode>], cancelled: &AtomicBool) -> Result<()> {
    let mut walker = Walker::new(fs)?;
    let prefix = link(fs, fs.resources.share.as_fd()).unwrap_or_default();
    for batch in inodes.chunks(BATCH) {
        let mut paths: Vec<(Vec<CString>, Identity)> = Vec::with_capacity(batch.len());
        for inode in batch {
            if cancelled.load(Ordering::Relaxed) {
                return Ok(());
            }
            let path = fs.fd(inode).ok().and_then(|fd| link(fs, fd.as_fd()));
            let path = path.as_deref().and_then(|path| below(path, &prefix));
            paths.extend(path.and_then(|path| components(path).ok()).map(|path| (path, inode.identity)));
        }
        paths.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (path, identity) in paths {
            let Some((name, parents)) = path.split_last() else { continue };
            check_and_record(fs, &mut walker, parents, name, &identity);
        }
    }
    Ok(())
}

/// The path of an open file as the kernel tells it; `None` where it is too long to be told.
pub(super) fn link(fs: &FileSystem, fd: std::os::fd::BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut path = vec![0; libc::PATH_MAX as usize];
    let length = sys::path_of_fd(fs.fd_directory(), fd, &mut path).ok()?;
    path.truncate(length);
    Some(path)
}

/// What is left of a path below the share's own, which is `/` for a detached mount.
pub(super) fn below<'a>(path: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix)?.strip_prefix(b"/")
}

/// Records an inode's place if it is really there. No operation changes a name in between.
fn check_and_record(
    fs: &FileSystem,
    walker: &mut Walker<'_>,
    parents: &[CString],
    name: &CString,
    identity: &Identity,
) {
    let _order = fs.tracker.change();
    let record = |parent: &Identity, name: &std::ffi::CStr, child: &Identity| {
        fs.tracker.record(parent, name, child);
    };
    let Ok(parent) = walker.enter(parents, record) else { return };
    if sys::statx_at(parent.fd, name).is_ok_and(|st| Identity::of(&st) == *identity) {
        fs.tracker.record(&parent.identity, name, identity);
    }
}

/// Goes through the whole share, until all inodes are found.
fn by_walk(fs: &FileSystem, mut wanted: HashSet<Identity>, cancelled: &AtomicBool) -> Result<()> {
    log::info!("migration: looking for {} inodes in the whole share", wanted.len());
    let numbers: HashSet<u64> = wanted.iter().map(|identity| identity.ino).collect();
    let mut trail = Walker::new(fs)?;
    each_directory(fs, cancelled, |walker, path, entries| {
        let Ok(here) = walker.enter(path, |_, _, _| {}) else { return true };
        let _order = fs.tracker.change();
        let mut any = false;
        for entry in entries.iter().filter(|entry| numbers.contains(&entry.ino)) {
            let Ok(st) = sys::statx_at(here.fd, &entry.name) else { continue };
            let identity = Identity::of(&st);
            if wanted.remove(&identity) {
                fs.tracker.record(&here.identity, &entry.name, &identity);
                any = true;
            }
        }
        if any {
            // The directories on the way: the guest need not know them. Where that fails, somebody renames just now; what
            // is missing then is looked for once more when the guest stands still.
            let record = |parent: &Identity, name: &std::ffi::CStr, child: &Identity| {
                wanted.remove(child);
                fs.tracker.record(parent, name, child);
            };
            let _ = trail.enter(path, record);
        }
        !wanted.is_empty()
    })
}

/// An entry of a directory.
pub(super) struct Entry {
    pub ino: u64,
    /// `DT_*`
    pub kind: u8,
    pub name: CString,
}

/// Reads every directory of the share and hands its entries to `each`, some at a time, which says whether to go on. What
/// can't be read is left out. Whatever its size, a directory takes little memory, and nobody waits for its end.
pub(super) fn each_directory(
    fs: &FileSystem,
    cancelled: &AtomicBool,
    mut each: impl FnMut(&mut Walker<'_>, &[CString], &[Entry]) -> bool,
) -> Result<()> {
    let mut walker = Walker::new(fs)?;
    let mut path: Vec<CString> = Vec::new();
    let mut pending: Vec<(usize, Option<CString>)> = vec![(0, None)];
    while let Some((depth, name)) = pending.pop() {
        path.truncate(depth);
        path.extend(name);
        let reader = walker.enter(&path, |_, _, _| {}).and_then(|here| Reader::open(fs, here));
        let Ok(mut reader) = reader else { continue };
        let mut first = true;
        while let Ok(entries) = reader.next() {
            if cancelled.load(Ordering::Relaxed) {
                return Ok(());
            }
            if entries.is_empty() && !first {
                break;
            }
            if !each(&mut walker, &path, &entries) {
                return Ok(());
            }
            if path.len() < MAX_DEPTH {
                let below = entries.into_iter().filter(|e| matches!(e.kind, libc::DT_DIR | libc::DT_UNKNOWN));
                pending.extend(below.map(|entry| (path.len(), Some(entry.name))));
            }
            first = false;
        }
    }
    Ok(())
}

/// An open directory that is read piece by piece.
struct Reader {
    file: OwnedFd,
    stream: DirStream,
    offset: u64,
}

impl Reader {
    fn open(fs: &FileSystem, directory: Directory<'_>) -> Result<Self> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let file = fs.keeper.with_room(|| sys::openat(directory.fd, c".", flags, 0))?;
        Ok(Reader { file, stream: DirStream::default(), offset: 0 })
    }

    /// The next entries; none at the end.
    fn next(&mut self) -> Result<Vec<Entry>> {
        let (mut entries, mut offset) = (Vec::new(), self.offset);
        self.stream.read(self.file.as_fd(), self.offset, |entry| {
            if entries.len() == PIECE {
                return Ok(false);
            }
            offset = entry.next;
            if !entry.is_dot() {
                entries.push(Entry { ino: entry.ino, kind: entry.kind, name: entry.name.to_owned() });
            }
            Ok(true)
        })?;
        self.offset = offset;
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_share() {
        assert_eq!(below(b"/a/b", b"/"), Some(&b"a/b"[..]));
        assert_eq!(below(b"/srv/share/a", b"/srv/share"), Some(&b"a"[..]));
        assert_eq!(below(b"/srv/shared/a", b"/srv/share"), None);
        assert_eq!(below(b"/srv/share", b"/srv/share"), None);
    }
}
