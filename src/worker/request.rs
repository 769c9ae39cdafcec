//! One request from the bytes of its chain to the bytes of its reply. Between `queue`, which moves chains, and
//! `dispatch`, which knows what operations mean.

use std::hint::cold_path;
use std::sync::Arc;

use nix::errno::Errno;
use vm_memory::bitmap::Bitmap;
use zerocopy::{FromBytes, IntoBytes};

use super::buffers::Buffers;
use super::dispatch::{self, Outcome};
use super::fs::{Attempt, FileSystem, Thread};
use super::fuse::decode::{self, Message};
use super::fuse::operation::{Context, Operation};
use super::fuse::reply::ReplyBuf;
use super::fuse::wire::{InHeader, Opcode, OutHeader, WriteIn};
use super::recorder::Recorder;

/// Bytes of the header of a reply.
pub const OUT_HEADER: usize = size_of::<OutHeader>();

/// Bytes of a WRITE before its data.
const WRITE_MESSAGE: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// A transfer of this many bytes or more counts as slow: the guest hears of earlier replies first.
const SLOW_TRANSFER: u32 = 256 * 1024;

/// What became of a request.
pub enum Served {
    /// It is done; bytes written to the guest, 0 where there is no reply.
    Replied(u32),
    /// Its answer comes when this lock is there.
    Waits {
        /// The request.
        unique: u64,
        /// The lock.
        attempt: Attempt,
    },
    /// Nothing was done: another thread is to serve it.
    Moves,
}

/// Why a request may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// It moves many bytes.
    Transfer,
    /// It moves file data, which is quick where the data is in memory.
    Data,
    /// It waits for storage.
    Storage,
    /// It must stay on its queue's thread all the same.
    Stays,
}

/// What a queue thread serves requests with. Made and used by that thread alone.
pub struct Server {
    fs: Arc<FileSystem>,
    thread: Thread,
    body: Vec<u8>,
    reply: ReplyBuf,
    /// Helpers don't count: the queue's thread has.
    recorder: Option<Recorder>,
    moved: u64,
}

impl Server {
    /// For the calling thread.
    pub fn new(fs: Arc<FileSystem>, thread: Thread, recorder: Option<Recorder>) -> Self {
        Server { fs, thread, body: Vec::new(), reply: ReplyBuf::default(), recorder, moved: 0 }
    }

    /// Serves the request in `buffers`. `before_slow` is called once, before anything that may take long;
    /// it says whether to leave the request to another thread.
    ///
    /// Whatever the guest sent, there is a reply if the protocol has one and the guest gave room for it.
    pub fn serve<B: Bitmap + 'static>(
        &mut self,
        buffers: &mut Buffers<'_, B>,
        before_slow: impl FnOnce(Slow) -> bool,
    ) -> Served {
        let Some(raw) = buffers.begin::<{ decode::HEADER }>() else {
            cold_path();
            log::debug!("a request of {} bytes is too short for a header", buffers.readable_len());
            return Served::Replied(0);
        };
        let Ok(header) = InHeader::read_from_bytes(&raw) else { return Served::Replied(0) };
        let has_reply = Opcode::from_raw(header.opcode).is_none_or(Opcode::has_reply);
        if has_reply && buffers.writable_len() < OUT_HEADER {
            cold_path();
            log::debug!("request {} has no room for a reply; it is not served", header.opcode);
            return Served::Replied(0);
        }
        self.thread.refresh(&self.fs);
        self.reply.begin(buffers.writable_len().saturating_sub(OUT_HEADER));
        let begun = self.recorder.as_ref().map(|recorder| recorder.begin(header.opcode));
        let result = self.run(&header, buffers, before_slow);
        let data = match &result {
            // A helper will read as much as there is room for, at most.
            Ok(Outcome::Moves) if Opcode::from_raw(header.opcode) == Some(Opcode::Read) => {
                buffers.writable_len().saturating_sub(OUT_HEADER) as u64
            }
            Ok(_) => self.data_len(&header, buffers),
            Err(_) => 0,
        };
        self.moved = self.moved.wrapping_add(data);
        if let (Some(recorder), Some(begun)) = (&self.recorder, begun) {
            recorder.end(&begun, result.is_err(), data);
        }
        let result = match result {
            Ok(Outcome::Waits(attempt)) => {
                cold_path();
                return Served::Waits { unique: header.unique, attempt };
            }
            Ok(Outcome::Moves) => return Served::Moves,
            Ok(Outcome::Done) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            cold_path();
            log::trace!("{}: {e}", Opcode::from_raw(header.opcode).map_or("unknown opcode", Opcode::name));
        }
        if !has_reply {
            return Served::Replied(0);
        }
        let out = self.reply.header(header.unique, result);
        buffers.copy_out(0, out.as_bytes());
        if result.is_ok() {
            buffers.copy_out(OUT_HEADER, self.reply.bytes());
        }
        Served::Replied(out.len)
    }

    /// What the thread counts with.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Bytes of file data, read or written, of all requests so far.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes of file data of the request that was just served.
    fn data_len<B: Bitmap + 'static>(&self, header: &InHeader, buffers: &Buffers<'_, B>) -> u64 {
        match Opcode::from_raw(header.opcode) {
            Some(Opcode::Read) => self.reply.payload_len() as u64,
            Some(Opcode::Write) => buffers.readable_len().saturating_sub(WRITE_MESSAGE) as u64,
            _ => 0,
        }
    }

    /// Decodes and runs the request; its reply is in `self.reply` then.
    fn run<B: Bitmap + 'static>(
        &mut self,
        header: &InHeader,
        buffers: &mut Buffers<'_, B>,
        before_slow: impl FnOnce(Slow) -> bool,
    ) -> Result<Outcome, Errno> {
        let frame = decode::frame(header, buffers.readable_len())?;
        if self.body.len() < frame.body {
            cold_path();
            self.body.resize(frame.body.next_power_of_two(), 0);
        }
        let body = self.body.get_mut(..frame.body).ok_or(Errno::EINVAL)?;
        if !buffers.copy_in(decode::HEADER, body) {
            cold_path();
            return Err(Errno::EINVAL);
        }
        let message = Message { header, body, data: frame.data };
        let operation = decode::decode(&message, self.thread.session())?;
        // No side effect may be lost for want of room to tell of it.
        if self.reply.room() < operation.reply_len() {
            cold_path();
            return Err(Errno::EINVAL);
        }
        if slowness(&operation).is_some_and(before_slow) {
            return Ok(Outcome::Moves);
        }
        let ctx = Context::from(header);
        let data = decode::HEADER + frame.body;
        dispatch::dispatch(&self.fs, &mut self.thread, &ctx, operation, buffers, data, &mut self.reply)
    }
}

fn transfer(size: u32) -> Slow {
    if size >= SLOW_TRANSFER { Slow::Transfer } else { Slow::Data }
}

/// May it take long enough to hold back replies that are ready?
fn slowness(operation: &Operation<'_>) -> Option<Slow> {
    match operation {
        Operation::Read(read) => Some(transfer(read.size)),
        Operation::Write(write) => Some(transfer(write.size)),
        Operation::FSync { .. }
        | Operation::FSyncDir { .. }
        | Operation::SyncFs
        | Operation::Flush { .. }
        | Operation::CopyFileRange { .. }
        | Operation::FAllocate { .. } => Some(Slow::Storage),
        Operation::SetLk { .. } => Some(Slow::Stays),
        _ => None,
    }
}
