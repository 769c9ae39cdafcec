//! `Reopen`: sealed handles become `O_PATH` fds again, each on the mount of the share that it was sealed on.
//!
//! (Handles of a migration stream are for [`super::admit`].)

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::{Answer, Server, open_each};
use crate::broker::sys;
use crate::protocol::bounded::List;
use crate::protocol::phase::Kind;
use crate::protocol::{FileHandle, SealedHandle, ToWorker, Violation};

/// Opens each of `sealed`, or ends a worker that made one of them up: then none is opened.
pub(super) fn reopen(server: &Server, sealed: &[SealedHandle]) -> Result<Answer, Violation> {
    let genuine = sealed.iter().map(|sealed| genuine(server, sealed)).collect::<Result<Vec<_>, _>>()?;
    let opened =
        genuine.into_iter().map(|(mount, handle)| sys::open_handle(mount.ok_or(Errno::ESTALE)?, handle));
    let (results, fds) = open_each(opened);
    let results =
        List::new(results).map_err(|_| Violation::FdCount { kind: Kind::Reopen, fds: sealed.len() })?;
    Ok(Answer::Reply(ToWorker::Reopened(results), fds))
}

/// The mount and the handle of what this broker sealed; no mount if that was detached since.
fn genuine<'a>(
    server: &'a Server,
    sealed: &'a SealedHandle,
) -> Result<(Option<BorrowedFd<'a>>, &'a FileHandle), Violation> {
    if !server.sealer.is_genuine(sealed) {
        return Err(Violation::ForgedHandle);
    }
    let mount = server.mounts.get(sealed.mount);
    if mount.is_none() && !server.mounts.has_gone(sealed.mount) {
        return Err(Violation::ForgedHandle);
    }
    Ok((mount, &sealed.handle))
}
