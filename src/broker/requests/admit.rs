//! `Admit`: file handles of a migration stream become `O_PATH` fds, where their files lie in the share.
//!
//! Whoever made the stream, or the worker itself, may have made the handle up, and a handle names any inode of the
//! file system, in the share or not. So the broker opens it as a *connectable* one: the kernel then opens it only
//! if it finds a way from the root of the mount that it is opened on (the worker's own mount of the share) down to
//! the file, and says `ESTALE` otherwise. A file that was removed while it is open, or that has several hard links,
//! counts as lying in the directories that the kernel remembers it in.
//!
//! The kernel may also forget where a file lies that nobody uses. Then it refuses one that is in the share; the
//! worker finds such files by walking through the share, which needs no trust.

use nix::errno::Errno;

use super::{Answer, Server, open_each};
use crate::broker::sys;
use crate::protocol::bounded::List;
use crate::protocol::message::Admit;
use crate::protocol::phase::Kind;
use crate::protocol::{ToWorker, Violation};

/// Opens each handle, or ends a worker that made the mount number up.
pub(super) fn admit(server: &Server, admit: &Admit) -> Result<Answer, Violation> {
    let mount = server.mounts.get(admit.mount);
    if mount.is_none() && !server.mounts.has_gone(admit.mount) {
        return Err(Violation::UnknownMount);
    }
    let handles = admit.handles.as_slice();
    let open = |handle| sys::open_foreign_handle(mount.ok_or(Errno::ESTALE)?, handle);
    let (results, fds) = open_each(handles.iter().map(open));
    let results =
        List::new(results).map_err(|_| Violation::FdCount { kind: Kind::Admit, fds: handles.len() })?;
    Ok(Answer::Reply(ToWorker::Admitted(results), fds))
}
