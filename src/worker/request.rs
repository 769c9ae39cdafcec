//! One request from the bytes of its chain to the bytes of its reply. Between `queue`, which moves chains, and
//! `dispatch`, which knows what operations mean.

use std::sync::Arc;

use nix::errno::Errno;
use vm_memory::bitmap::Bitmap;
use zerocopy::{FromBytes, IntoBytes};

use super::buffers::Buffers;
use super::dispatch;
use super::fs::{FileSystem, Thread};
use super::fuse::decode::{self, Message};
use super::fuse::operation::{Context, Operation};
use super::fuse::reply::ReplyBuf;
use super::fuse::wire::{InHeader, Opcode, OutHeader};

/// Bytes of the header of a reply.
pub const OUT_HEADER: usize = size_of::<OutHeader>();

/// A transfer of this many bytes or more counts as slow: the guest hears of earlier replies first.
const SLOW_TRANSFER: u32 = 256 * 1024;

/// What a queue thread serves requests with. Made and used by that thread alone.
pub struct Server {
    fs: Arc<FileSystem>,
    thread: Thread,
    body: Vec<u8>,
    reply: ReplyBuf,
}

impl Server {
    /// For the calling thread.
    pub fn new(fs: Arc<FileSystem>, thread: Thread) -> Self {
        Server { fs, thread, body: Vec::new(), reply: ReplyBuf::default() }
    }

    /// Serves the request in `buffers`; bytes written to the guest, 0 where there is no reply. `before_slow` is
    /// called once, before anything that may take long.
    ///
    /// Whatever the guest sent, there is a reply if the protocol has one and the guest gave room for it.
    pub fn serve<B: Bitmap + 'static>(
        &mut self,
        buffers: &mut Buffers<'_, B>,
        before_slow: impl FnOnce(),
    ) -> u32 {
        let mut raw = [0u8; decode::HEADER];
        if !buffers.copy_in(0, &mut raw) {
            log::debug!("a request of {} bytes is too short for a header", buffers.readable_len());
            return 0;
        }
        let Ok(header) = InHeader::read_from_bytes(&raw) else { return 0 };
        let has_reply = Opcode::from_raw(header.opcode).is_none_or(Opcode::has_reply);
        if has_reply && buffers.writable_len() < OUT_HEADER {
            log::debug!("request {} has no room for a reply; it is not served", header.opcode);
            return 0;
        }
        self.thread.refresh(&self.fs);
        self.reply.begin(buffers.writable_len().saturating_sub(OUT_HEADER));
        let result = self.run(&header, buffers, before_slow);
        if let Err(e) = result {
            log::trace!("{}: {e}", Opcode::from_raw(header.opcode).map_or("unknown opcode", Opcode::name));
        }
        if !has_reply {
            return 0;
        }
        let out = self.reply.header(header.unique, result);
        buffers.copy_out(0, out.as_bytes());
        if result.is_ok() {
            buffers.copy_out(OUT_HEADER, self.reply.bytes());
        }
        out.len
    }

    /// Decodes and runs the request; its reply is in `self.reply` then.
    fn run<B: Bitmap + 'static>(
        &mut self,
        header: &InHeader,
        buffers: &mut Buffers<'_, B>,
        before_slow: impl FnOnce(),
    ) -> Result<(), Errno> {
        let frame = decode::frame(header, buffers.readable_len())?;
        if self.body.len() < frame.body {
            self.body.resize(frame.body.next_power_of_two(), 0);
        }
        let body = self.body.get_mut(..frame.body).ok_or(Errno::EINVAL)?;
        if !buffers.copy_in(decode::HEADER, body) {
            return Err(Errno::EINVAL);
        }
        let message = Message { header, body, data: frame.data };
        let operation = decode::decode(&message, self.thread.session())?;
        // No side effect may be lost for want of room to tell of it.
        if self.reply.room() < operation.reply_len() {
            return Err(Errno::EINVAL);
        }
        if is_slow(&operation) {
            before_slow();
        }
        let ctx = Context::from(header);
        let data = decode::HEADER + frame.body;
        dispatch::dispatch(&self.fs, &mut self.thread, &ctx, operation, buffers, data, &mut self.reply)
    }
}

/// May it take long enough to hold back replies that are ready?
fn is_slow(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Read(read) => read.size >= SLOW_TRANSFER,
        Operation::Write(write) => write.size >= SLOW_TRANSFER,
        Operation::FSync { .. }
        | Operation::FSyncDir { .. }
        | Operation::SyncFs
        | Operation::Flush { .. }
        | Operation::CopyFileRange { .. }
        | Operation::FAllocate { .. }
        | Operation::SetLk { .. } => true,
        _ => false,
    }
}
