//! Messages over a `SOCK_SEQPACKET` socket pair, with fds by `SCM_RIGHTS`.
//!
//! One datagram is one message. What the kernel had to shorten, bytes or fds, is an error, never a part of a
//! message. The broker's end never waits: a worker that does not read its replies can't hold the broker up.

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::codec::{self, MAX_MESSAGE};
use super::{MAX_FDS, ToBroker, ToWorker};

/// Why a message could not be sent or received.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The message is too long.
    #[error(transparent)]
    Encode(#[from] codec::EncodeError),
    /// What came is not a message.
    #[error(transparent)]
    Decode(#[from] codec::DecodeError),
    /// What came is longer than any message.
    #[error("a datagram of more than {MAX_MESSAGE} bytes")]
    MessageTruncated,
    /// Fds were lost: more than [`MAX_FDS`], or more than this process may have open.
    #[error("file descriptors that came with a message could not all be taken")]
    FdsTruncated,
    /// The other side does not read what it is sent.
    #[error("the other side of the channel does not read its messages")]
    Full,
    /// A system call failed.
    #[error("cannot {step} the broker channel: {source}")]
    Io {
        /// "send on" or "receive from".
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// What [`Channel::receive`] found.
#[derive(Debug)]
pub enum Received<M> {
    /// A message with its fds.
    Message(M, Vec<OwnedFd>),
    /// Nothing yet (only on an end that does not wait).
    Nothing,
    /// The other side has gone.
    End,
}

/// One end: sends `S`, receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    socket: OwnedFd,
    buffer: Box<[u8; MAX_MESSAGE]>,
    flags: MsgFlags,
    directions: PhantomData<fn(S) -> R>,
}

/// The broker's end: never waits.
pub type BrokerEnd = Channel<ToWorker, ToBroker>;

/// The worker's end: waits for replies.
pub type WorkerEnd = Channel<ToBroker, ToWorker>;

/// Makes the two ends of a channel, both close-on-exec.
///
/// # Errors
/// When the kernel has no more sockets or fds for us.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

impl BrokerEnd {
    /// The broker's end over its socket of [`pair`].
    pub fn for_broker(socket: OwnedFd) -> Self {
        Self::new(socket, MsgFlags::MSG_DONTWAIT)
    }
}

impl WorkerEnd {
    /// The worker's end over its socket of [`pair`].
    pub fn for_worker(socket: OwnedFd) -> Self {
        Self::new(socket, MsgFlags::empty())
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    fn new(socket: OwnedFd, flags: MsgFlags) -> Self {
        Self { socket, buffer: Box::new([0; MAX_MESSAGE]), flags, directions: PhantomData }
    }

    /// Sends one message with fds.
    ///
    /// # Errors
    /// When it is too long, the other side has gone, or (broker) does not read.
    pub fn send(&mut self, message: &S, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let len = codec::encode(message, &mut self.buffer)?;
        self.send_datagram(len, fds)
    }

    fn send_datagram(&self, len: usize, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let data = [IoSlice::new(&self.buffer[..len])];
        let flags = self.flags | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &data, control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ChannelError::Full),
                Err(errno) => return Err(ChannelError::Io { step: "send on", source: errno.into() }),
            }
        }
    }

    /// Receives one message with its fds. Fds that come with something that is not a message are closed.
    ///
    /// # Errors
    /// When what came is not one whole message.
    pub fn receive(&mut self) -> Result<Received<R>, ChannelError> {
        let flags = self.flags.bits() | libc::MSG_CMSG_CLOEXEC;
        let datagram = loop {
            match receive_datagram(self.socket.as_fd(), &mut self.buffer[..], flags) {
                Ok(datagram) => break datagram,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::End),
                Err(source) => return Err(ChannelError::Io { step: "receive from", source }),
            }
        };
        if datagram.flags & libc::MSG_CTRUNC != 0 || datagram.fds.len() > MAX_FDS {
            return Err(ChannelError::FdsTruncated);
        }
        if datagram.flags & libc::MSG_TRUNC != 0 {
            return Err(ChannelError::MessageTruncated);
        }
        match self.buffer.get(..datagram.len) {
            // An empty datagram looks like the end, and nobody sends one.
            None | Some([]) => Ok(Received::End),
            Some(bytes) => Ok(Received::Message(codec::decode(bytes)?, datagram.fds)),
        }
    }
}

/// What `recvmsg` gave.
struct Datagram {
    len: usize,
    flags: libc::c_int,
    fds: Vec<OwnedFd>,
}

const FD_BYTES: usize = mem::size_of::<RawFd>();

/// Words of a control buffer that has room for [`MAX_FDS`] fds.
// SAFETY: CMSG_SPACE only computes with its argument.
const CONTROL_WORDS: usize = (unsafe { libc::CMSG_SPACE((MAX_FDS * FD_BYTES) as u32) } as usize).div_ceil(8);

/// `recvmsg`, with every received fd owned before anything else can fail. (Nix's wrapper hands out no fds when
/// the control data was shortened, and so leaks those that did arrive.)
fn receive_datagram(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: libc::c_int) -> io::Result<Datagram> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero bytes are a valid msghdr: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut data;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: the header's pointers are to `data` (and through it `buffer`) and `control`, which outlive the call
    // and have the lengths that the header states.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    Ok(Datagram { len, flags: header.msg_flags, fds: take_fds(&header) })
}

/// Owns all fds in the control data of `header`, which `recvmsg` has just filled.
fn take_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: recvmsg left in `header` the pointer to a live control buffer and the length of what it wrote there.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole cmsghdr inside the control buffer, which is
        // aligned for it (an array of u64).
        let (level, kind, len) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len as usize) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only computes with its argument.
            let payload = len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            for index in 0..payload / FD_BYTES {
                // SAFETY: the kernel wrote `payload` bytes of fds from CMSG_DATA on; the fds are new in this
                // process and nobody else owns them.
                fds.push(unsafe {
                    let data = libc::CMSG_DATA(message).cast::<RawFd>();
                    OwnedFd::from_raw_fd(data.add(index).read_unaligned())
                });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    fds
}

#[cfg(test)]
mod tests;
