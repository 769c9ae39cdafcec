//! `Reopen`: a sealed handle becomes an `O_PATH` fd again, on the mount of the share that it was sealed on.
//!
//! (A handle that this broker did not seal, such as one of a migration stream, needs a request of its own, which
//! opens it on a mount of the table, proves that the file lies inside the share, and only then seals it.)

use super::{Answer, Server};
use crate::broker::sys;
use crate::protocol::{SealedHandle, ToWorker, Violation};

/// Opens `sealed`, or ends a worker that made it up.
pub(super) fn reopen(server: &Server, sealed: &SealedHandle) -> Result<Answer, Violation> {
    if !server.sealer.is_genuine(sealed) {
        return Err(Violation::ForgedHandle);
    }
    let mount = server.mounts.get(sealed.mount).ok_or(Violation::ForgedHandle)?;
    Ok(match sys::open_handle(mount, &sealed.handle) {
        Ok(fd) => Answer::Reply(ToWorker::Reopened(Ok(())), vec![fd]),
        Err(errno) => Answer::Reply(ToWorker::Reopened(Err(errno.into())), Vec::new()),
    })
}
