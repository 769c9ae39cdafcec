//! (6) The worker's side of the broker channel: one method per request.
//!
//! Only cold paths come here: a warm workload makes no request to the broker at all. Any thread may call; one
//! exchange at a time is on the channel. Lock order: the client's lock is a leaf, nothing is taken under it.
//!
//! After a failure of the channel itself the replies can't be told apart any more, so every later call fails too;
//! the broker ends the worker then anyway.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use crate::protocol::bounded::List;
use crate::protocol::channel::{Received, WorkerEnd};
use crate::protocol::message::{Admit, LayerReport, MakeDevice, Start, TrustedXattr, XattrReply};
use crate::protocol::phase::KINDS;
use crate::protocol::{ChannelError, Errno, FileHandle, MAX_FDS, SealedHandle, ToBroker, ToWorker};

/// Why the broker did not do what it was asked.
#[derive(Debug, Error)]
pub enum BrokerClientError {
    /// It tried, and the kernel refused: goes to the guest as it is.
    #[error("{0}")]
    Refused(Errno),
    /// The channel failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The broker has closed the channel.
    #[error("the broker has gone")]
    Gone,
    /// The channel failed before.
    #[error("the broker channel is broken since an earlier failure")]
    Broken,
    /// The reply is none to this request.
    #[error("the broker's reply does not belong to the request")]
    WrongReply,
    /// More of something than a message takes; nothing was sent.
    #[error("the request has more than the protocol allows: {0}")]
    TooMuch(&'static str),
}

impl BrokerClientError {
    /// The errno for the guest: the kernel's own, else `EIO`.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Refused(errno) => *errno,
            _ => Errno::EIO,
        }
    }
}

impl From<BrokerClientError> for io::Error {
    fn from(error: BrokerClientError) -> Self {
        error.errno().into()
    }
}

/// The fds that come with [`Start`].
#[derive(Debug)]
pub struct StartFds {
    /// The root of the share (`O_PATH`).
    pub share: OwnedFd,
    /// The listening vhost-user socket.
    pub listener: OwnedFd,
    /// The worker's own `/proc/self/fd`: opens what `O_PATH` fds only name.
    pub fd_directory: OwnedFd,
    /// The memory for metrics.
    pub metrics: OwnedFd,
}

/// The channel to the broker.
#[derive(Debug)]
pub struct BrokerClient {
    channel: Mutex<State>,
    requests: [AtomicU64; KINDS],
}

#[derive(Debug)]
struct State {
    end: WorkerEnd,
    broken: bool,
    /// The broker knows that the front end has connected.
    attached: bool,
}

impl BrokerClient {
    /// Takes the worker's end of the channel and waits for the broker's first message.
    ///
    /// # Errors
    /// When the channel is not one, or something else than [`ToWorker::Start`] with its four fds comes.
    pub fn start(socket: OwnedFd) -> Result<(Self, Box<Start>, StartFds), BrokerClientError> {
        let mut end = WorkerEnd::for_worker(socket);
        let (message, fds) = receive(&mut end)?;
        let ToWorker::Start(start) = message else { return Err(BrokerClientError::WrongReply) };
        let [share, listener, fd_directory, metrics] =
            <[OwnedFd; 4]>::try_from(fds).map_err(|_| BrokerClientError::WrongReply)?;
        let channel = Mutex::new(State { end, broken: false, attached: false });
        let client = Self { channel, requests: std::array::from_fn(|_| AtomicU64::new(0)) };
        Ok((client, start, StartFds { share, listener, fd_directory, metrics }))
    }

    /// Tells the broker that confinement is complete, and which layers are less than asked for.
    ///
    /// # Errors
    /// When the channel fails, or there are more reports than [`crate::protocol::message::MAX_REPORTS`].
    pub fn confined(&self, reports: Vec<LayerReport>) -> Result<(), BrokerClientError> {
        let reports = List::new(reports).map_err(|_| BrokerClientError::TooMuch("layer reports"))?;
        self.tell(&ToBroker::Confined(reports))
    }

    /// Tells the broker that the front end has connected, unless a request has told it already.
    ///
    /// # Errors
    /// When the channel fails.
    pub fn attached(&self) -> Result<(), BrokerClientError> {
        self.with_channel(|state| self.attach(state))
    }

    /// The broker takes no request before it knows of a front end; the front end's messages are served by other threads
    /// than the one that sees it connect, and may bring a request first.
    fn attach(&self, state: &mut State) -> Result<(), BrokerClientError> {
        if !state.attached {
            self.count(&ToBroker::Attached);
            state.end.send(&ToBroker::Attached, &[])?;
            state.attached = true;
        }
        Ok(())
    }

    /// Seals the files of 1–253 fds (any access mode); one result each, in their order. `EXDEV`: on a mount that the
    /// broker does not know (pass the mount's root directory once to teach it); `EOPNOTSUPP`: the file system has
    /// no handles.
    ///
    /// # Errors
    /// When the channel fails, or the number of fds is not within limits.
    pub fn seal(
        &self,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<Result<SealedHandle, Errno>>, BrokerClientError> {
        if fds.is_empty() || fds.len() > MAX_FDS {
            return Err(BrokerClientError::TooMuch("file descriptors"));
        }
        match self.ask(&ToBroker::Seal, fds)? {
            (ToWorker::Sealed(results), _) if results.as_slice().len() == fds.len() => Ok(results.into_vec()),
            _ => self.wrong_reply(),
        }
    }

    /// Opens a sealed file again, as an `O_PATH` fd on the mount that it was sealed on.
    ///
    /// # Errors
    /// [`BrokerClientError::Refused`] with `ESTALE` when the file is gone; when the channel fails.
    pub fn reopen(&self, sealed: &SealedHandle) -> Result<OwnedFd, BrokerClientError> {
        match self.reopen_all(vec![sealed.clone()])?.pop() {
            Some(result) => result.map_err(BrokerClientError::Refused),
            None => self.wrong_reply(),
        }
    }

    /// Opens up to 253 sealed files again, as `O_PATH` fds on the mounts that they were sealed on; one result each, in
    /// their order. `ESTALE`: the file is gone. The caller sees to it that there is room for as many fds: a reply
    /// whose fds don't fit breaks the channel.
    ///
    /// # Errors
    /// When the channel fails, or there are more.
    pub fn reopen_all(
        &self,
        sealed: Vec<SealedHandle>,
    ) -> Result<Vec<Result<OwnedFd, Errno>>, BrokerClientError> {
        let number = sealed.len();
        let sealed = List::new(sealed).map_err(|_| BrokerClientError::TooMuch("sealed handles"))?;
        match self.ask(&ToBroker::Reopen(sealed), &[])? {
            (ToWorker::Reopened(results), fds) => self.each(number, results, fds),
            _ => self.wrong_reply(),
        }
    }

    /// Opens up to 253 file handles of a migration stream, as `O_PATH` fds, on the mount of this number (as in a
    /// [`SealedHandle`]); one result each, in their order. `ESTALE`: the file is gone or not known to lie in the share.
    /// As with [`BrokerClient::reopen_all`], there must be room for the fds.
    ///
    /// # Errors
    /// When the channel fails, or there are more.
    pub fn admit(
        &self,
        mount: u32,
        handles: Vec<FileHandle>,
    ) -> Result<Vec<Result<OwnedFd, Errno>>, BrokerClientError> {
        let number = handles.len();
        let handles = List::new(handles).map_err(|_| BrokerClientError::TooMuch("file handles"))?;
        match self.ask(&ToBroker::Admit(Admit { mount, handles }), &[])? {
            (ToWorker::Admitted(results), fds) => self.each(number, results, fds),
            _ => self.wrong_reply(),
        }
    }

    /// The results of `number` files that were to be opened, each with its fd.
    fn each(
        &self,
        number: usize,
        results: List<Result<(), Errno>, MAX_FDS>,
        fds: Vec<OwnedFd>,
    ) -> Result<Vec<Result<OwnedFd, Errno>>, BrokerClientError> {
        let opened = results.as_slice().iter().filter(|result| result.is_ok()).count();
        if results.as_slice().len() != number || fds.len() != opened {
            return self.wrong_reply();
        }
        let mut fds = fds.into_iter();
        let each = results.into_vec().into_iter();
        Ok(each.filter_map(|result| result.map(|()| fds.next()).transpose()).collect())
    }

    /// Makes a device node in `directory` (an fd of any access mode).
    ///
    /// # Errors
    /// [`BrokerClientError::Refused`] with `mknodat`'s errno; when the channel fails.
    pub fn make_device(
        &self,
        directory: BorrowedFd<'_>,
        device: MakeDevice,
    ) -> Result<(), BrokerClientError> {
        match self.ask(&ToBroker::MakeDevice(device), &[directory])? {
            (ToWorker::DeviceMade(result), _) => result.map_err(BrokerClientError::Refused),
            _ => self.wrong_reply(),
        }
    }

    /// Acts on a `trusted.*` attribute of `file` (any fd of it, also `O_PATH`).
    ///
    /// # Errors
    /// [`BrokerClientError::Refused`] with the system call's errno; when the channel fails.
    pub fn trusted_xattr(
        &self,
        file: BorrowedFd<'_>,
        request: TrustedXattr,
    ) -> Result<XattrReply, BrokerClientError> {
        match self.ask(&ToBroker::TrustedXattr(request), &[file])? {
            (ToWorker::TrustedXattr(result), _) => result.map_err(BrokerClientError::Refused),
            _ => self.wrong_reply(),
        }
    }

    /// How many requests of each kind there were.
    pub fn requests(&self) -> &[AtomicU64; KINDS] {
        &self.requests
    }

    fn count(&self, request: &ToBroker) {
        if let Some(counter) = self.requests.get(request.kind() as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends a request that has no reply.
    fn tell(&self, request: &ToBroker) -> Result<(), BrokerClientError> {
        self.count(request);
        self.with_channel(|state| Ok(state.end.send(request, &[])?))
    }

    /// Sends a request and waits for the reply.
    fn ask(
        &self,
        request: &ToBroker,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(ToWorker, Vec<OwnedFd>), BrokerClientError> {
        self.count(request);
        self.with_channel(|state| {
            self.attach(state)?;
            state.end.send(request, fds)?;
            receive(&mut state.end)
        })
    }

    /// Runs one exchange; whatever leaves it half done, an error or a panic, breaks the channel for good.
    fn with_channel<T>(
        &self,
        exchange: impl FnOnce(&mut State) -> Result<T, BrokerClientError>,
    ) -> Result<T, BrokerClientError> {
        let mut state = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if state.broken {
            return Err(BrokerClientError::Broken);
        }
        state.broken = true;
        let result = exchange(&mut state)?;
        state.broken = false;
        Ok(result)
    }

    fn wrong_reply<T>(&self) -> Result<T, BrokerClientError> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).broken = true;
        Err(BrokerClientError::WrongReply)
    }
}

fn receive(end: &mut WorkerEnd) -> Result<(ToWorker, Vec<OwnedFd>), BrokerClientError> {
    match end.receive()? {
        Received::Message(message, fds) => Ok((message, fds)),
        Received::Nothing | Received::End => Err(BrokerClientError::Gone),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::protocol::BrokerEnd;
    use crate::protocol::channel::pair;

    /// What the broker receives next.
    fn received(broker: &mut BrokerEnd) -> ToBroker {
        loop {
            match broker.receive().unwrap() {
                Received::Message(message, _) => return message,
                Received::Nothing => std::thread::yield_now(),
                Received::End => panic!("the client has gone"),
            }
        }
    }

    #[test]
    fn no_request_comes_before_the_broker_knows_of_the_front_end() {
        let (broker, worker) = pair().unwrap();
        let mut broker = BrokerEnd::for_broker(broker);
        let state = State { end: WorkerEnd::for_worker(worker), broken: false, attached: false };
        let requests = std::array::from_fn(|_| AtomicU64::new(0));
        let client = BrokerClient { channel: Mutex::new(state), requests };
        let file = std::fs::File::open("/dev/null").unwrap();
        let no_handle = Errno::from(nix::errno::Errno::EOPNOTSUPP);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                // The thread of the front end's messages is quicker than the one that saw it connect.
                let first = client.seal(&[file.as_fd()]).unwrap();
                client.attached().unwrap();
                let second = client.seal(&[file.as_fd()]).unwrap();
                [first, second].map(|results| results[0].clone().unwrap_err())
            });
            assert!(matches!(received(&mut broker), ToBroker::Attached));
            for _ in 0..2 {
                assert!(matches!(received(&mut broker), ToBroker::Seal));
                broker.send(&ToWorker::Sealed(List::new(vec![Err(no_handle)]).unwrap()), &[]).unwrap();
            }
            assert_eq!(asking.join().unwrap(), [no_handle; 2]);
        });
    }
}
