//! The listening vhost-user socket: made at `--socket-path`, or inherited as `--fd`.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, UnlinkatFlags, fchownat, unlinkat};
use thiserror::Error;

use super::lock_file::{LockError, LockFile};
use crate::broker::sys::{self, EntryId};
use crate::config::SocketSource;

/// Why there is no socket to listen on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path has no file name.
    #[error("--socket-path {} does not name a file", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// The lock file.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Something else is there.
    #[error("{} exists and is not a socket: it is left alone. Remove it or name another --socket-path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// A step on the socket failed.
    #[error("cannot {step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// The socket's path, or its directory's.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `--socket-group` names nobody.
    #[error("--socket-group: there is no group {0}")]
    NoGroup(String),
    /// `--fd` is not what it must be.
    #[error("--fd {fd} is not {wanted}: pass a listening UNIX stream socket that this process has inherited")]
    BadFd {
        /// The number.
        fd: RawFd,
        /// What it is not.
        wanted: &'static str,
    },
}

/// A listening socket, and what must be removed at the end.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: OwnedFd,
    /// The files that belong to it; none with `--fd`.
    pub files: Option<SocketFiles>,
}

/// The socket's entry in its directory, and the lock file.
#[derive(Debug)]
pub struct SocketFiles {
    directory: OwnedFd,
    name: CString,
    entry: EntryId,
    lock: LockFile,
    path: PathBuf,
}

impl Listener {
    /// Makes or takes over the socket.
    ///
    /// # Errors
    /// [`SocketError`], by step; nothing is left behind but, in some cases, an unlocked lock file.
    pub fn open(source: &SocketSource) -> Result<Self, SocketError> {
        match source {
            SocketSource::Fd(fd) => Ok(Self { socket: inherit(*fd)?, files: None }),
            SocketSource::Path { path, group } => listen(path, group.as_deref()),
        }
    }
}

impl SocketFiles {
    /// The directory that both files are in.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Removes socket and lock file, if they are still ours. A failure is logged: it does not change how the
    /// daemon ended, and the next one copes with files that are left.
    pub fn remove(self) {
        if sys::entry_id(self.directory.as_fd(), &self.name) == Ok(self.entry) {
            self.unlink(&self.name, "socket");
        }
        // The lock is held until `self` is dropped, so nobody else has taken this name.
        self.unlink(self.lock.name(), "lock file");
    }

    fn unlink(&self, name: &CStr, what: &str) {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => log::warn!("cannot remove the {what} of {}: {errno}", self.path.display()),
        }
    }
}

/// Splits a path into its directory and its last component.
fn split(path: &Path) -> Result<(&Path, &OsStr), SocketError> {
    let name = path.file_name().ok_or_else(|| SocketError::NoName { path: path.to_owned() })?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((directory, name))
}

fn to_cstring(name: &[u8], path: &Path) -> Result<CString, SocketError> {
    CString::new(name).map_err(|_| SocketError::NoName { path: path.to_owned() })
}

fn listen(path: &Path, group: Option<&str>) -> Result<Listener, SocketError> {
    let gid = group.map(find_group).transpose()?;
    let (parent, name) = split(path)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(parent, flags, Mode::empty()).map_err(|errno| SocketError::Io {
        step: "open the socket's directory",
        path: parent.to_owned(),
        source: errno.into(),
    })?;
    let lock_name = to_cstring(&[name.as_bytes(), b".pid"].concat(), path)?;
    let lock_path = parent.join(OsStr::from_bytes(lock_name.as_bytes()));
    let lock = LockFile::acquire(directory.as_fd(), lock_name, lock_path)?;
    let name = to_cstring(name.as_bytes(), path)?;
    let io = |step| move |source| SocketError::Io { step, path: path.to_owned(), source };

    remove_stale(directory.as_fd(), &name, path)?;
    let socket = bind(path, gid.is_some()).map_err(io("listen at"))?;
    let entry = sys::entry_id(directory.as_fd(), &name);
    let entry = entry.map_err(|errno| io("find the new socket at")(errno.into()))?;
    if let Some(gid) = gid {
        fchownat(&directory, name.as_c_str(), None, Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| io("give its group the socket")(errno.into()))?;
    }
    let path = path.to_owned();
    Ok(Listener { socket, files: Some(SocketFiles { directory, name, entry, lock, path }) })
}

/// Removes what a daemon left that did not end cleanly: nobody serves it, since we have the lock.
fn remove_stale(directory: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), SocketError> {
    let io = |step| move |errno: Errno| SocketError::Io { step, path: path.to_owned(), source: errno.into() };
    match sys::entry_id(directory, name) {
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(io("examine what is at")(errno)),
        Ok(entry) if !entry.is_socket() => Err(SocketError::NotASocket { path: path.to_owned() }),
        Ok(_) => {
            log::debug!("removing the stale socket {}", path.display());
            unlinkat(directory, name, UnlinkatFlags::NoRemoveDir).map_err(io("remove the stale socket"))
        }
    }
}

/// Binds with the umask that gives the socket its mode from the first moment.
fn bind(path: &Path, for_group: bool) -> io::Result<OwnedFd> {
    let mask = if for_group { 0o007 } else { 0o077 };
    let before = umask(Mode::from_bits_truncate(mask));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map(OwnedFd::from)
}

/// A group by name, or by number if there is no such name.
fn find_group(group: &str) -> Result<Gid, SocketError> {
    let missing = || SocketError::NoGroup(group.to_owned());
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid),
        _ => group.parse().map(Gid::from_raw).map_err(|_| missing()),
    }
}

/// Takes over an inherited fd. Call this before the process opens anything: a number that was closed then is still
/// closed now, and none of ours.
fn inherit(fd: RawFd) -> Result<OwnedFd, SocketError> {
    let bad = |wanted| SocketError::BadFd { fd, wanted };
    if fd <= libc::STDERR_FILENO || !fs::exists(format!("/proc/self/fd/{fd}")).unwrap_or(false) {
        return Err(bad("an open file descriptor above 2"));
    }
    // SAFETY: the fd is open, and by this function's contract was so when the process began: nobody here owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    check_listening(&socket).map_err(bad)?;
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| bad("usable"))?;
    Ok(socket)
}

fn check_listening(socket: &OwnedFd) -> Result<(), &'static str> {
    use std::os::fd::AsRawFd;
    let address = getsockname::<SockaddrStorage>(socket.as_raw_fd()).map_err(|_| "a socket")?;
    if address.family() != Some(AddressFamily::Unix) {
        return Err("a UNIX socket");
    }
    if getsockopt(socket, sockopt::SockType) != Ok(SockType::Stream) {
        return Err("a stream socket");
    }
    if getsockopt(socket, sockopt::AcceptConn) != Ok(true) {
        return Err("listening");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
