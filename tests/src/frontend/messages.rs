//! The vhost-user socket. Layouts are those of QEMU's `docs/interop/vhost-user.rst`; all numbers are in the
//! machine's byte order.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::{Error, Result};

/// Messages from the front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetLogFd = 7,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SetBackendReqFd = 21,
    GetConfig = 24,
    SetConfig = 25,
    GetInflightFd = 31,
    SetInflightFd = 32,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
    SetStatus = 39,
    GetStatus = 40,
    SetDeviceStateFd = 42,
    CheckDeviceState = 43,
}

/// Message flag: protocol version 1.
pub const FLAG_VERSION: u32 = 0x1;
/// Message flag: a reply.
pub const FLAG_REPLY: u32 = 0x4;
/// Message flag: the sender wants an acknowledgement (needs REPLY_ACK).
pub const FLAG_NEED_REPLY: u32 = 0x8;

/// The header's size in bytes: request, flags, size of the payload.
pub const HEADER_SIZE: usize = 12;

/// A payload of more than this breaks the protocol (ours; the specification has no general limit).
const MAX_PAYLOAD: usize = 4096;
/// More file descriptors than this in one message break it.
const MAX_FDS: usize = 8;

/// A received message.
#[derive(Debug)]
pub struct Message {
    /// Its number; see [`Request`].
    pub request: u32,
    /// Its flags.
    pub flags: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload's first eight bytes as a number.
    pub fn as_u64(&self) -> Result<u64> {
        let bytes = self.payload.first_chunk().ok_or_else(|| Error::Protocol(format!("short: {self:?}")))?;
        Ok(u64::from_ne_bytes(*bytes))
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    limit: Duration,
    /// Whether REPLY_ACK was negotiated: then [`Connection::tell`] waits for the daemon's status.
    pub(super) reply_ack: bool,
}

impl Connection {
    /// Takes over a connected socket. Each message is answered within `limit`, or it is an error.
    pub fn new(stream: UnixStream, limit: Duration) -> Connection {
        stream.set_read_timeout(Some(limit)).expect("set a socket's timeout");
        stream.set_write_timeout(Some(limit)).expect("set a socket's timeout");
        Connection { stream, limit, reply_ack: false }
    }

    /// Sends a message that has a reply of its own, and receives that.
    pub fn call(&self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Message> {
        self.send(request, FLAG_VERSION, payload, fds)?;
        self.reply_to(request)
    }

    /// Sends a message that has no reply of its own; if REPLY_ACK was negotiated, waits for the status.
    pub fn tell(&self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if !self.reply_ack {
            return self.send(request, FLAG_VERSION, payload, fds);
        }
        self.send(request, FLAG_VERSION | FLAG_NEED_REPLY, payload, fds)?;
        match self.reply_to(request)?.as_u64()? {
            0 => Ok(()),
            status => Err(Error::Refused { request, status }),
        }
    }

    fn reply_to(&self, request: Request) -> Result<Message> {
        let message = self.receive()?;
        if message.request != request as u32 || message.flags & FLAG_REPLY == 0 {
            return Err(Error::Protocol(format!("not a reply to {request:?}: {message:?}")));
        }
        Ok(message)
    }

    /// Sends one message and waits for nothing.
    pub fn send(&self, request: Request, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let size = u32::try_from(payload.len()).expect("payloads are small");
        let mut bytes = Vec::with_capacity(HEADER_SIZE + payload.len());
        for field in [request as u32, flags, size] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        self.send_raw(&bytes, fds)
    }

    /// Sends any bytes and descriptors, in one `sendmsg` where the socket takes them.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let mut control: &[ControlMessage] = if raw.is_empty() { &[] } else { &control };
        let mut rest = bytes;
        while !rest.is_empty() {
            let iov = [IoSlice::new(rest)];
            match sendmsg::<UnixAddr>(self.stream.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(count) => {
                    rest = &rest[count..];
                    control = &[];
                }
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(self.failed("sent a message", errno)),
            }
        }
        Ok(())
    }

    /// Receives one message.
    pub fn receive(&self) -> Result<Message> {
        let mut header = [0; HEADER_SIZE];
        let mut fds = Vec::new();
        self.receive_exact(&mut header, &mut fds)?;
        let [request, flags, size] = [0, 4, 8]
            .map(|at| u32::from_ne_bytes(*header[at..].first_chunk().expect("three numbers of four bytes")));
        let size = size as usize;
        if size > MAX_PAYLOAD {
            return Err(Error::Protocol(format!("a payload of {size} bytes for request {request}")));
        }
        let mut payload = vec![0; size];
        self.receive_exact(&mut payload, &mut fds)?;
        Ok(Message { request, flags, payload, fds })
    }

    fn receive_exact(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut control = cmsg_space!([RawFd; MAX_FDS]);
            let mut iov = [IoSliceMut::new(&mut buffer[filled..])];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received =
                match recvmsg::<UnixAddr>(self.stream.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                    Ok(received) => received,
                    Err(nix::Error::EINTR) => continue,
                    Err(errno) => return Err(self.failed("waited for a message", errno)),
                };
            let count = received.bytes;
            for message in received.cmsgs().map_err(Error::system("read a control message"))? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    // SAFETY: the kernel just installed these descriptors for this message only.
                    fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            if count == 0 {
                return Err(Error::Disconnected { doing: "waited for a message" });
            }
            filled += count;
        }
        Ok(())
    }

    fn failed(&self, doing: &'static str, errno: nix::Error) -> Error {
        match errno {
            nix::Error::EAGAIN => Error::Timeout { doing, limit: self.limit },
            nix::Error::EPIPE | nix::Error::ECONNRESET => Error::Disconnected { doing },
            errno => Error::System { what: doing, source: errno.into() },
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The payload of messages about one number.
pub fn number(value: u64) -> [u8; 8] {
    value.to_ne_bytes()
}

/// The payload of SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE.
pub fn vring_state(index: u32, value: u32) -> Vec<u8> {
    [index, value].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Where a ring's parts are, as the payload of SET_VRING_ADDR: addresses of this process, not of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddresses {
    /// The ring's number.
    pub index: u32,
    /// Bit 0: log writes to the used ring at `log`.
    pub flags: u32,
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring's guest address, for the dirty log.
    pub log: u64,
}

impl VringAddresses {
    /// The payload.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vring_state(self.index, self.flags);
        bytes.extend(
            [self.descriptors, self.used, self.available, self.log].into_iter().flat_map(u64::to_ne_bytes),
        );
        bytes
    }
}

/// A memory region as SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionDescription {
    /// The guest's address.
    pub guest: u64,
    /// In bytes.
    pub size: u64,
    /// The address in the front end.
    pub user: u64,
    /// The offset in the region's file.
    pub offset: u64,
}

impl RegionDescription {
    /// One entry of a table.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.guest, self.size, self.user, self.offset].into_iter().flat_map(u64::to_ne_bytes).collect()
    }

    /// The payload of ADD_MEM_REG and REM_MEM_REG.
    pub fn to_single(self) -> Vec<u8> {
        [&[0; 8][..], &self.to_bytes()].concat()
    }

    /// The payload of SET_MEM_TABLE.
    pub fn to_table(regions: &[RegionDescription]) -> Vec<u8> {
        let count = u32::try_from(regions.len()).expect("few regions");
        let mut bytes = vring_state(count, 0);
        bytes.extend(regions.iter().flat_map(|region| region.to_bytes()));
        bytes
    }
}
