//! Walking in the share by path: one component at a time from the root, never through a symbolic link, never up.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::worker::fs::FileSystem;
use crate::worker::fs::inodes::Identity;
use crate::worker::fs::sys::{self, Result};

/// Directories that stay open between two paths: neighbours in order have most of them in common.
const MAX_LEVELS: usize = 64;

/// A directory on the way.
struct Level {
    name: CString,
    fd: OwnedFd,
    identity: Identity,
}

/// Walks to one directory after another; cheap when they come in the order of their paths.
pub struct Walker<'a> {
    fs: &'a FileSystem,
    root: Identity,
    levels: Vec<Level>,
    /// The directory walked to, where it lies deeper than [`MAX_LEVELS`].
    deep: Option<Level>,
}

/// A directory that was walked to.
#[derive(Clone, Copy)]
pub struct Directory<'a> {
    /// An `O_PATH` fd.
    pub fd: BorrowedFd<'a>,
    /// Which one it is.
    pub identity: Identity,
}

/// The components of a path; `.` and empty ones mean nothing.
///
/// # Errors
/// EINVAL for `..` and for a NUL.
pub fn components(path: &[u8]) -> Result<Vec<CString>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.map(|name| if name == b".." { Err(Errno::EINVAL) } else { c_name(name) }).collect()
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

impl<'a> Walker<'a> {
    /// A walker at the root of the share.
    ///
    /// # Errors
    /// What `statx` of the root says.
    pub fn new(fs: &'a FileSystem) -> Result<Self> {
        let root = Identity::of(&sys::statx_fd(fs.resources.share.as_fd())?);
        Ok(Walker { fs, root, levels: Vec::new(), deep: None })
    }

    fn fs(&self) -> &'a FileSystem {
        self.fs
    }

    /// Walks to a directory. `met` is told of each directory on the way that is opened anew: its own directory, its
    /// name and itself.
    ///
    /// # Errors
    /// What `openat` says: ENOENT, and ENOTDIR or ELOOP where something else than a directory is in the way.
    pub fn enter(
        &mut self,
        path: &[CString],
        mut met: impl FnMut(&Identity, &CStr, &Identity),
    ) -> Result<Directory<'_>> {
        self.deep = None;
        let common = self.levels.iter().zip(path).take_while(|(level, name)| level.name == **name).count();
        self.levels.truncate(common);
        for name in path.iter().skip(common) {
            let level = self.step(name)?;
            met(&self.here().identity, name, &level.identity);
            if self.levels.len() < MAX_LEVELS && self.deep.is_none() {
                self.levels.push(level);
            } else {
                self.deep = Some(level);
            }
        }
        Ok(self.here())
    }

    /// Where the walker stands.
    fn here(&self) -> Directory<'_> {
        match self.deep.as_ref().or(self.levels.last()) {
            Some(level) => Directory { fd: level.fd.as_fd(), identity: level.identity },
            None => Directory { fd: self.fs.resources.share.as_fd(), identity: self.root },
        }
    }

    fn step(&self, name: &CStr) -> Result<Level> {
        let fd = open_at(self.fs(), self.here().fd, name, libc::O_DIRECTORY)?;
        let st = sys::statx_fd(fd.as_fd())?;
        reached(self.fs(), &st, fd.as_fd())?;
        Ok(Level { name: name.to_owned(), fd, identity: Identity::of(&st) })
    }
}

/// An `O_PATH` fd of a name in a directory.
///
/// # Errors
/// What `openat` says.
pub fn open_at(fs: &FileSystem, directory: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | flags;
    fs.keeper.with_room(|| sys::openat(directory, name, flags, 0))
}

/// Tells the broker of a mount whose root was walked to: only then can it seal what lies there.
///
/// # Errors
/// As [`crate::worker::fs::keeper::Keeper::reached_mount`].
pub fn reached(fs: &FileSystem, st: &libc::statx, fd: BorrowedFd<'_>) -> Result<()> {
    if st.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 == 0 {
        return Ok(());
    }
    fs.keeper.reached_mount(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_components() {
        let names = |path: &[u8]| components(path).map(|names| names.len());
        assert_eq!(names(b"."), Ok(0));
        assert_eq!(names(b"a/./b//c/"), Ok(3));
        assert_eq!(names(b"a/../b"), Err(Errno::EINVAL));
        assert_eq!(names(b"a\0b"), Err(Errno::EINVAL));
    }
}
