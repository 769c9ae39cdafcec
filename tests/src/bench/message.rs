//! FUSE messages written into a slot and read from it without allocation.

use nix::errno::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::Failure;
use crate::frontend::queue::HEADROOM;
use crate::frontend::{Completion, Queue, Shape};
use crate::fuse::Caller;
use crate::fuse::wire::{self, IN_HEADER, OUT_HEADER};

/// Bytes of the longest request, without file data: a full BATCH_FORGET.
const MAX_REQUEST: usize = HEADROOM;

/// A request's header and arguments.
#[derive(Clone)]
pub struct Message {
    bytes: [u8; MAX_REQUEST],
    len: usize,
    data_in: u32,
    reply: u32,
    data_out: u32,
}

impl Message {
    /// A request with a header alone, and a reply of a header alone.
    pub fn new(opcode: u32, nodeid: u64, caller: Caller) -> Message {
        let Caller { uid, gid, pid } = caller;
        let header = wire::InHeader { opcode, nodeid, uid, gid, pid, ..Default::default() };
        let message =
            Message { bytes: [0; MAX_REQUEST], len: 0, data_in: 0, reply: OUT_HEADER as u32, data_out: 0 };
        message.bytes(header.as_bytes())
    }

    /// Adds an argument.
    pub fn arg(self, arg: &(impl IntoBytes + Immutable)) -> Message {
        self.bytes(arg.as_bytes())
    }

    /// Adds a name.
    pub fn name(self, name: &[u8]) -> Message {
        self.bytes(name).bytes(&[0])
    }

    fn bytes(mut self, bytes: &[u8]) -> Message {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    /// File data of this length follows: what the slot's data area holds.
    pub fn data_in(mut self, len: u32) -> Message {
        self.data_in = len;
        self
    }

    /// The reply has a fixed part.
    pub fn reply<T>(mut self) -> Message {
        self.reply = (OUT_HEADER + size_of::<T>()) as u32;
        self
    }

    /// The reply has up to this many bytes in one piece.
    pub fn reply_bytes(mut self, len: u32) -> Message {
        self.reply = OUT_HEADER as u32 + len;
        self
    }

    /// The reply has data in pages behind its header.
    pub fn data_out(mut self, len: u32) -> Message {
        self.data_out = len;
        self
    }

    /// The protocol has no reply.
    pub fn no_reply(mut self) -> Message {
        self.reply = 0;
        self
    }

    /// Puts another node id into the header.
    pub fn set_node(&mut self, nodeid: u64) {
        self.bytes[16..24].copy_from_slice(&nodeid.to_ne_bytes());
    }

    /// Replaces the argument at the beginning.
    pub fn set_arg(&mut self, arg: &(impl IntoBytes + Immutable)) {
        let bytes = arg.as_bytes();
        self.bytes[IN_HEADER..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Puts another name of the same length into a message whose last argument it is.
    pub fn set_name(&mut self, name: &[u8]) {
        let at = self.len - 1 - name.len();
        self.bytes[at..][..name.len()].copy_from_slice(name);
    }

    /// Writes the request into a slot and submits it; the daemon sees it after the next flush.
    pub fn submit(&mut self, queue: &mut Queue, slot: crate::frontend::queue::SlotId, unique: u64) {
        let total = self.len as u32 + self.data_in;
        self.bytes[..4].copy_from_slice(&total.to_ne_bytes());
        self.bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        let mut shape = Shape::new(self.len as u32, self.data_in, self.reply, self.data_out);
        // Linux puts a forget into one descriptor.
        shape.split_head = self.reply > 0;
        queue.request(slot).write(shape.start as usize, &self.bytes[..self.len]);
        queue.submit(slot, shape);
    }
}

/// A reply in its slot.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    queue: &'a Queue,
    completion: Completion,
}

impl<'a> Response<'a> {
    /// What a queue returned.
    pub fn new(queue: &'a Queue, completion: Completion) -> Response<'a> {
        Response { queue, completion }
    }

    /// Checks it as Linux's driver does; returns how many bytes follow the header.
    pub fn check(&self) -> Result<usize, Failure> {
        let used = self.completion.len as usize;
        if used < OUT_HEADER {
            return Err(Failure::Malformed("a reply without a header"));
        }
        let (buffer, start) = self.queue.reply(self.completion.slot);
        let header: [u8; OUT_HEADER] = buffer.read_array(start);
        let header = wire::OutHeader::read_from_bytes(&header).expect("the size is right");
        match header.error {
            _ if header.len as usize != used => {
                Err(Failure::Malformed("used length and reply header differ"))
            }
            0 => Ok(used - OUT_HEADER),
            error => Err(Failure::Errno(Errno::from_raw(error.saturating_neg()))),
        }
    }

    /// Checks that it is none.
    pub fn check_none(&self) -> Result<(), Failure> {
        match self.completion.len {
            0 => Ok(()),
            _ => Err(Failure::Malformed("a reply to a request that has none")),
        }
    }

    /// The reply's fixed part.
    pub fn body<T: FromBytes + FromZeros + IntoBytes>(&self) -> Result<T, Failure> {
        if self.check()? < size_of::<T>() {
            return Err(Failure::Malformed("a short reply"));
        }
        let mut value = T::new_zeroed();
        self.read(0, value.as_mut_bytes());
        Ok(value)
    }

    /// Copies from the reply behind its header.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        let (buffer, start) = self.queue.reply(self.completion.slot);
        buffer.read(start + OUT_HEADER + at, to);
    }
}
