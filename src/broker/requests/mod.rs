//! Everything that the worker may ask for: one file per privileged request.
//!
//! Each handler has the same shape: gate (here, by [`crate::protocol::phase::RULES`]) → names and sizes (in the
//! types, at decoding) → number of fds (gate) → what the fds are → act → reply. A handler reports what the kernel
//! or a check refused as an errno, and what an honest worker can't have sent as a [`Violation`].
//!
//! What an fd is: a file on one of the share's mounts ([`MountTable`]), or refused with `EXDEV`. That excludes
//! sockets, pipes, memory files and all files of the host's other mounts. Handlers only ask for metadata of an fd
//! and use it as a directory to start from, so its access mode does not matter: nothing reads from it, writes to it
//! or waits for it.
//!
//! [`Server`] knows nothing of processes and sockets, so tests can put any sequence of requests to it.

mod admit;
mod make_device;
mod reopen;
mod seal;
mod trusted_xattr;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::mounts::MountTable;
use super::privileges::Privileges;
use super::sealer::Sealer;
use crate::protocol::message::LayerReport;
use crate::protocol::phase::{Kind, gate};
use crate::protocol::{Errno, Phase, Services, ToBroker, ToWorker, Violation};

pub use make_device::HostIds;
pub use trusted_xattr::TrustedNames;

/// One device's broker state behind the channel.
pub struct Server {
    /// How far the worker has come.
    pub phase: Phase,
    /// What is served.
    pub services: Services,
    /// Makes and checks seals.
    pub sealer: Sealer,
    /// The share's mounts.
    pub mounts: MountTable,
    /// What each service may use.
    pub privileges: Privileges,
    /// Host ids of the worker's ids.
    pub host_ids: HostIds,
    /// The `trusted.*` names that the xattr map can produce.
    pub trusted_names: TrustedNames,
    /// `--readonly`
    pub readonly: bool,
}

/// What follows from a request.
#[derive(Debug)]
pub enum Answer {
    /// Send this, with these fds.
    Reply(ToWorker, Vec<OwnedFd>),
    /// The worker is confined but for these layers; no reply.
    Confined(Vec<LayerReport>),
    /// The front end is connected; no reply.
    Attached,
}

impl Server {
    /// Handles one request. All fds that came with it are closed when this returns.
    ///
    /// # Errors
    /// A [`Violation`] ends the worker; nothing was done for this request then.
    pub fn handle(&mut self, request: ToBroker, fds: Vec<OwnedFd>) -> Result<Answer, Violation> {
        let next = gate(request.kind(), self.phase, self.services, fds.len())?;
        let answer = match request {
            ToBroker::Confined(reports) => Answer::Confined(reports.into_vec()),
            ToBroker::Attached => Answer::Attached,
            ToBroker::Seal => Answer::Reply(seal::seal(self, &fds)?, Vec::new()),
            ToBroker::Reopen(sealed) => reopen::reopen(self, sealed.as_slice())?,
            ToBroker::Admit(admit) => admit::admit(self, &admit)?,
            ToBroker::MakeDevice(device) => Answer::Reply(
                make_device::make_device(self, &device, only(Kind::MakeDevice, &fds)?),
                Vec::new(),
            ),
            ToBroker::TrustedXattr(request) => Answer::Reply(
                trusted_xattr::trusted_xattr(self, &request, only(Kind::TrustedXattr, &fds)?),
                Vec::new(),
            ),
        };
        self.phase = next;
        Ok(answer)
    }
}

/// What a reply tells of each file that was to be opened, and the fds of those that were.
fn open_each(
    opened: impl Iterator<Item = Result<OwnedFd, nix::errno::Errno>>,
) -> (Vec<Result<(), Errno>>, Vec<OwnedFd>) {
    let mut fds = Vec::new();
    let results = opened.map(|result| result.map(|fd| fds.push(fd)).map_err(Errno::from)).collect();
    (results, fds)
}

/// The one fd that the gate has counted.
fn only(kind: Kind, fds: &[OwnedFd]) -> Result<BorrowedFd<'_>, Violation> {
    match fds {
        [fd] => Ok(fd.as_fd()),
        _ => Err(Violation::FdCount { kind, fds: fds.len() }),
    }
}
