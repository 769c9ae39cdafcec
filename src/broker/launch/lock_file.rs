//! The lock file beside the socket, `P.pid`: one daemon a socket path.
//!
//! It holds the daemon's process id in decimal, and a POSIX record lock on all of it for as long as the daemon
//! lives, so that a dead daemon's file never keeps a new one out. (Upstream uses the same kind of lock on the same
//! name: the two daemons keep each other out too.)

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::Mode;
use thiserror::Error;

use crate::broker::sys;

/// How often a lock file may vanish between opening and locking before that is an error.
const MAX_TRIES: u32 = 16;

/// Why there is no lock.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon has it.
    #[error("another virtiofsd{} serves this socket: its lock file {} is locked", pid_text(*.pid), path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, if the kernel tells.
        pid: Option<i32>,
    },
    /// A step on the lock file failed.
    #[error("cannot {step} the lock file {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn pid_text(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A held lock; closing the file releases it.
#[derive(Debug)]
pub struct LockFile {
    name: CString,
    /// Invariant: this process has no other fd of this file, since closing any of them would release the lock.
    _file: File,
}

impl LockFile {
    /// Makes the file `name` in `directory` if need be (mode 0600), locks it without waiting and writes our process
    /// id into it. `path` is for messages.
    ///
    /// # Errors
    /// [`LockError::Held`] when another process has the lock.
    pub fn acquire(directory: BorrowedFd<'_>, name: CString, path: PathBuf) -> Result<Self, LockError> {
        for _ in 0..MAX_TRIES {
            let file = open(directory, &name, &path)?;
            lock(&file, &path)?;
            if is_still_there(directory, &name, &file) {
                write_pid(&file).map_err(|source| LockError::Io { step: "write", path, source })?;
                return Ok(Self { name, _file: file });
            }
            // A daemon that was just ending has removed it: what we locked is in no directory any more.
        }
        let source = io::Error::other("it keeps being removed by others");
        Err(LockError::Io { step: "lock", path, source })
    }

    /// The file's name in its directory.
    pub fn name(&self) -> &CString {
        &self.name
    }
}

fn open(directory: BorrowedFd<'_>, name: &CString, path: &std::path::Path) -> Result<File, LockError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let fd = openat(directory, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
    fd.map(File::from).map_err(|errno| LockError::Io {
        step: "open",
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

fn lock(file: &File, path: &std::path::Path) -> Result<(), LockError> {
    match fcntl(file, FcntlArg::F_SETLK(&whole_file(libc::F_WRLCK))) {
        Ok(_) => Ok(()),
        Err(Errno::EACCES | Errno::EAGAIN) => {
            let mut holder = whole_file(libc::F_WRLCK);
            let told = fcntl(file, FcntlArg::F_GETLK(&mut holder));
            let pid = told.ok().map(|_| holder.l_pid).filter(|pid| *pid > 0);
            Err(LockError::Held { path: path.to_owned(), pid })
        }
        Err(errno) => Err(LockError::Io { step: "lock", path: path.to_owned(), source: errno.into() }),
    }
}

fn is_still_there(directory: BorrowedFd<'_>, name: &CString, file: &File) -> bool {
    match (sys::entry_id(directory, name), sys::own_id(file.as_fd())) {
        (Ok(entry), Ok(own)) => entry == own,
        _ => false,
    }
}

fn write_pid(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}
