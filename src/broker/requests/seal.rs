//! `Seal`: handles of files that the worker holds fds of. Possession of the fd is the proof of access.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Server;
use crate::broker::sys;
use crate::protocol::bounded::List;
use crate::protocol::phase::Kind;
use crate::protocol::{Errno, SealedHandle, ToWorker, Violation};

/// Seals each of `fds`, at most 253 by the gate.
pub(super) fn seal(server: &mut Server, fds: &[OwnedFd]) -> Result<ToWorker, Violation> {
    let results = fds.iter().map(|fd| seal_one(server, fd.as_fd())).collect();
    let results = List::new(results).map_err(|_| Violation::FdCount { kind: Kind::Seal, fds: fds.len() })?;
    Ok(ToWorker::Sealed(results))
}

fn seal_one(server: &mut Server, fd: BorrowedFd<'_>) -> Result<SealedHandle, Errno> {
    let (handle, mount) = match sys::handle_of(fd) {
        Ok(found) => found,
        Err(errno) => {
            // Other requests work on a mount without handles, once it is known.
            let _ = server.mounts.check(fd);
            return Err(errno.into());
        }
    };
    let mount = server.mounts.index_of(mount, fd)?;
    Ok(server.sealer.seal(mount, handle))
}
