//! One thread between a clone of the FUSE device and a request queue.
//!
//! Lock order: the forget queue's lock is taken by a lane for one batch of forgets, with no other lock held.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::time::TimeSpec;
use zerocopy::{FromBytes, IntoBytes};

use super::reply::{Treatment, treatment};
use super::{MountError, Shared};
use crate::daemon::PATIENCE;
use crate::frontend::memory::PAGE;
use crate::frontend::queue::{HEADROOM, SlotId};
use crate::frontend::{Completion, GuestBuffer, Queue, Shape};
use crate::fuse::wire::{self, IN_HEADER, OUT_HEADER, opcode};

/// `unique` of the requests that the bridge makes itself: the kernel counts up from 2 in steps of 2.
pub(super) const OWN_REQUEST: u64 = 1 << 63;

/// Where a request begins in its slot: a WRITE's header and arguments end at the page-aligned data area, so
/// that its data is page-aligned; of all others only contiguity matters.
const START: usize = HEADROOM - WRITE_HEAD;
const WRITE_HEAD: usize = IN_HEADER + size_of::<wire::WriteIn>();
/// The fixed parts of all requests whose room for a reply depends on them fit this.
const ARGS: usize = size_of::<wire::ReadIn>();

/// The high-priority queue, shared by all lanes.
#[derive(Debug)]
pub struct Forgets {
    queue: Queue,
    unique: u64,
}

impl Forgets {
    pub(super) fn new(queue: Queue) -> Forgets {
        Forgets { queue, unique: OWN_REQUEST }
    }

    /// Sends one FORGET as a guest does; waits for room if the queue is full. Seen by the daemon after
    /// [`Forgets::flush`].
    fn push(&mut self, one: wire::ForgetOne) -> crate::frontend::Result<()> {
        let slot = loop {
            while let Some(done) = self.queue.poll()? {
                self.queue.put(done.slot);
            }
            if let Some(slot) = self.queue.take() {
                break slot;
            }
            self.queue.flush();
            let done = self.queue.wait()?;
            self.queue.put(done.slot);
        };
        self.unique += 2;
        let size = IN_HEADER + size_of::<wire::ForgetIn>();
        let header = wire::InHeader {
            len: size as u32,
            opcode: opcode::FORGET,
            unique: self.unique,
            nodeid: one.nodeid,
            ..Default::default()
        };
        let shape = Shape::forget(size as u32);
        let buffer = self.queue.request(slot);
        buffer.write(shape.start as usize, header.as_bytes());
        buffer.write(shape.start as usize + IN_HEADER, wire::ForgetIn { nlookup: one.nlookup }.as_bytes());
        self.queue.submit(slot, shape);
        Ok(())
    }

    fn flush(&mut self) {
        self.queue.flush();
    }

    /// Waits until the daemon has taken all.
    pub(super) fn drain(&mut self) -> crate::frontend::Result<()> {
        while self.queue.in_flight() > 0 {
            let done = self.queue.wait()?;
            self.queue.put(done.slot);
        }
        Ok(())
    }
}

/// What a lane remembers of a request in flight. The copy in guest memory is not ours alone.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    opcode: u32,
    unique: u64,
    room: u32,
}

/// Why a lane ends.
#[derive(Debug)]
enum End {
    /// The kernel has no more: unmounted or aborted.
    Unmounted,
    /// Somebody wants it to.
    Stopped,
    /// Something is broken.
    Broken(String),
}

impl From<crate::frontend::Error> for End {
    fn from(error: crate::frontend::Error) -> End {
        End::Broken(error.to_string())
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    fuse: OwnedFd,
    /// The vhost-user connection, to see the daemon's end.
    connection: OwnedFd,
    queue: Queue,
    pending: Vec<Pending>,
    /// Replies to requests that reach storage are held back for so long.
    delay: Duration,
    /// Replies that are held back, and until when.
    held: VecDeque<(Instant, Completion)>,
    forgets: Arc<Mutex<Forgets>>,
    shared: Arc<Shared>,
}

impl Lane {
    pub(super) fn new(
        fuse: OwnedFd,
        connection: OwnedFd,
        queue: Queue,
        delay: Duration,
        forgets: Arc<Mutex<Forgets>>,
        shared: Arc<Shared>,
    ) -> Lane {
        let pending = vec![Pending::default(); usize::from(queue.config().depth)];
        Lane { fuse, connection, queue, pending, delay, held: VecDeque::new(), forgets, shared }
    }

    /// Runs until the mount is gone. Gives the queue back.
    pub(super) fn run(mut self) -> Queue {
        let end = loop {
            match self.turn() {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        if let End::Broken(why) = end {
            self.shared.violation(why);
        }
        // Can only fail when the counter is full.
        let _ = self.shared.ended.write(1);
        self.queue
    }

    /// Moves all replies and all requests that are there; sleeps when there are none.
    fn turn(&mut self) -> Result<(), End> {
        let mut idle = true;
        while let Some(done) = self.queue.poll()? {
            let pending = self.pending[done.slot.index()].opcode;
            if self.delay.is_zero() || !matches!(pending, opcode::READ | opcode::WRITE | opcode::FSYNC) {
                self.deliver(done)?;
            } else {
                self.held.push_back((Instant::now() + self.delay, done));
            }
            idle = false;
        }
        while let Some((_, done)) = self.held.pop_front_if(|(due, _)| *due <= Instant::now()) {
            self.deliver(done)?;
            idle = false;
        }
        let mut full = true;
        while let Some(slot) = self.queue.take() {
            match self.fetch(slot) {
                Ok(true) => idle = false,
                Ok(false) => {
                    self.queue.put(slot);
                    full = false;
                    break;
                }
                Err(end) => {
                    self.queue.put(slot);
                    return Err(end);
                }
            }
        }
        self.queue.flush();
        if idle { self.sleep(full) } else { Ok(()) }
    }

    fn sleep(&mut self, full: bool) -> Result<(), End> {
        if self.queue.arm() {
            return Ok(());
        }
        let mut fds = [
            PollFd::new(self.queue.call_fd(), PollFlags::POLLIN),
            PollFd::new(self.shared.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.connection.as_fd(), PollFlags::empty()),
            PollFd::new(self.fuse.as_fd(), PollFlags::POLLIN),
        ];
        // Without a free slot there is nothing to do with a request.
        let watched = if full { &mut fds[..3] } else { &mut fds[..] };
        let limit =
            self.held.front().map(|(due, _)| TimeSpec::from(due.saturating_duration_since(Instant::now())));
        match ppoll(watched, limit, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(End::Broken(format!("poll: {errno}"))),
        }
        let [called, stopped, gone] = [0, 1, 2].map(|i: usize| fds[i].any().unwrap_or(true));
        if stopped {
            return Err(End::Stopped);
        }
        if gone {
            return Err(End::Broken("the daemon closed the connection".into()));
        }
        if called {
            self.queue.acknowledge_call();
        }
        Ok(())
    }

    /// Reads a request from the kernel into a slot and treats it as a guest does. `false` when there is none.
    fn fetch(&mut self, slot: SlotId) -> Result<bool, End> {
        let Some(len) = read_request(self.fuse.as_fd(), self.queue.request(slot))? else { return Ok(false) };
        let buffer = self.queue.request(slot);
        let header = wire::InHeader::read_from_bytes(&buffer.read_array::<IN_HEADER>(START))
            .expect("a header has that size");
        let mut args = [0; ARGS];
        let args = &mut args[..ARGS.min(len - IN_HEADER)];
        buffer.read(START + IN_HEADER, args);
        match treatment(header.opcode, args) {
            Treatment::Forward(room) => {
                let head = if header.opcode == opcode::WRITE { WRITE_HEAD } else { len };
                let shape = Shape {
                    start: START as u32,
                    ..Shape::new(head as u32, (len - head) as u32, room.fixed, room.pages)
                };
                self.pending[slot.index()] =
                    Pending { opcode: header.opcode, unique: header.unique, room: room.fixed + room.pages };
                self.shared.forwarded.fetch_add(1, Ordering::Relaxed);
                self.queue.submit(slot, shape);
                return Ok(true);
            }
            Treatment::Forget => self.forget(slot, &header)?,
            Treatment::Drop => {}
            Treatment::Unknown => {
                self.shared.violation(format!("the bridge doesn't know opcode {}", header.opcode));
                self.answer_error(header.unique, Errno::ENOSYS)?;
            }
        }
        self.queue.put(slot);
        Ok(true)
    }

    /// Sends the FORGET or BATCH_FORGET in a slot on as single FORGETs.
    fn forget(&mut self, slot: SlotId, header: &wire::InHeader) -> Result<(), End> {
        let buffer = self.queue.request(slot);
        let args = START + IN_HEADER;
        let mut forgets = self.forgets.lock().expect("no panic while it is held");
        if header.opcode == opcode::FORGET {
            let nlookup = u64::from_ne_bytes(buffer.read_array(args));
            forgets.push(wire::ForgetOne { nodeid: header.nodeid, nlookup })?;
        } else {
            let count = u32::from_ne_bytes(buffer.read_array(args));
            for index in 0..count as usize {
                let at = args + size_of::<wire::BatchForgetIn>() + index * size_of::<wire::ForgetOne>();
                let one = buffer.read_array::<{ size_of::<wire::ForgetOne>() }>(at);
                forgets.push(wire::ForgetOne::read_from_bytes(&one).expect("it has that size"))?;
            }
        }
        forgets.flush();
        Ok(())
    }

    /// Checks a reply as the guest's driver does and hands it to the kernel.
    fn deliver(&mut self, done: Completion) -> Result<(), End> {
        let pending = self.pending[done.slot.index()];
        let (buffer, start) = self.queue.reply(done.slot);
        let header = wire::OutHeader::read_from_bytes(&buffer.read_array::<OUT_HEADER>(start))
            .expect("a header has that size");
        let fault = fault_of(done.len, &header, pending);
        let result = match &fault {
            None => write_reply(self.fuse.as_fd(), buffer, start, done.len as usize),
            Some(_) => Ok(()),
        };
        self.queue.put(done.slot);
        match (fault, result) {
            (Some(fault), _) => {
                let Pending { opcode, unique, room } = pending;
                self.shared.violation(format!(
                    "opcode {opcode} ({unique}, room {room}): {fault}: {header:?}, used length {}",
                    done.len
                ));
                self.answer_error(pending.unique, Errno::EIO)
            }
            (None, Ok(())) => Ok(()),
            // The kernel gave the request up in the meantime.
            (None, Err(Errno::ENOENT)) => Ok(()),
            (None, Err(Errno::ENODEV)) => Err(End::Unmounted),
            (None, Err(errno)) => {
                // The kernel ends the request with EIO itself.
                let opcode = pending.opcode;
                self.shared.violation(format!("opcode {opcode}: the kernel refuses {header:?} with {errno}"));
                Ok(())
            }
        }
    }

    fn answer_error(&self, unique: u64, errno: Errno) -> Result<(), End> {
        let header = wire::OutHeader { len: OUT_HEADER as u32, error: -(errno as i32), unique };
        match nix::unistd::write(&self.fuse, header.as_bytes()) {
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENODEV) => Err(End::Unmounted),
            Err(errno) => Err(End::Broken(format!("write to /dev/fuse: {errno}"))),
        }
    }
}

/// What is wrong with a reply.
fn fault_of(used: u32, header: &wire::OutHeader, pending: Pending) -> Option<&'static str> {
    match header {
        _ if (used as usize) < OUT_HEADER => Some("no header"),
        _ if used > pending.room => Some("more than there is room for"),
        header if header.len != used => Some("the lengths differ"),
        header if header.unique != pending.unique => Some("another request's reply"),
        header if !(-4095..=0).contains(&header.error) => Some("no errno"),
        header if header.error != 0 && used as usize != OUT_HEADER => Some("an error with data"),
        _ => None,
    }
}

/// Reads one request into a slot's buffer at [`START`]: its size, or `None` when there is none.
fn read_request(fuse: BorrowedFd<'_>, buffer: &GuestBuffer) -> Result<Option<usize>, End> {
    loop {
        // SAFETY: the buffer is longer than `START`, and the kernel writes at most the rest of it; guest memory
        // is only ever accessed by copies.
        let result =
            unsafe { libc::read(fuse.as_raw_fd(), buffer.as_ptr().add(START).cast(), buffer.len() - START) };
        return match Errno::result(result) {
            Ok(len) => Ok(usize::try_from(len).ok()),
            Err(Errno::EAGAIN) => Ok(None),
            // ENOENT: the request was taken back while we read it.
            Err(Errno::EINTR | Errno::ENOENT) => continue,
            Err(Errno::ENODEV | Errno::ECONNABORTED) => Err(End::Unmounted),
            Err(errno) => Err(End::Broken(format!("read from /dev/fuse: {errno}"))),
        };
    }
}

fn write_reply(fuse: BorrowedFd<'_>, buffer: &GuestBuffer, start: usize, len: usize) -> nix::Result<()> {
    assert!(start + len <= buffer.len(), "the reply was checked against its room");
    // SAFETY: in bounds, just checked; the kernel only reads.
    let result = unsafe { libc::write(fuse.as_raw_fd(), buffer.as_ptr().add(start).cast(), len) };
    Errno::result(result).map(drop)
}

/// Forwards the kernel's INIT; see the module `bridge` for what is changed in it and in its reply.
pub(super) fn forward_init(
    fuse: BorrowedFd<'_>,
    queue: &mut Queue,
    max_data: usize,
    mountpoint: &Path,
) -> Result<wire::InitOut, MountError> {
    let limit = PollTimeout::try_from(PATIENCE).expect("it fits");
    poll(&mut [PollFd::new(fuse, PollFlags::POLLIN)], limit)
        .map_err(MountError::kernel("poll", mountpoint))?;
    let mut message = vec![0; START + IN_HEADER + max_data];
    let len = nix::unistd::read(fuse, &mut message).map_err(MountError::kernel("read INIT", mountpoint))?;
    let (header, body) = wire::InHeader::read_from_prefix(&message[..len]).expect("the kernel sends headers");
    let (mut init, _) = wire::InitIn::read_from_prefix(body).expect("the kernel sends an INIT");
    assert_eq!(header.opcode, opcode::INIT, "the kernel begins with INIT");
    init.flags |= wire::init::SUBMOUNTS as u32;
    let reply = queue
        .exchange(&[header.as_bytes(), init.as_bytes()].concat(), OUT_HEADER + size_of::<wire::InitOut>())?;
    let pending = Pending { opcode: opcode::INIT, unique: header.unique, room: reply.len() as u32 };
    let out = wire::OutHeader::read_from_prefix(&reply).map_err(|_| MountError::Init("no header".into()))?;
    if let Some(fault) = fault_of(reply.len() as u32, &out.0, pending) {
        return Err(MountError::Init(format!("{fault}: {out:?}")));
    }
    if out.0.error != 0 {
        return Err(MountError::Init(Errno::from_raw(-out.0.error).to_string()));
    }
    let (mut init, _) = wire::InitOut::read_from_prefix(out.1)
        .map_err(|_| MountError::Init(format!("{} bytes", reply.len())))?;
    init.max_write = init.max_write.min(max_data as u32);
    // As the guest's driver: four descriptors are for headers and arguments.
    let pages = usize::from(queue.config().size).saturating_sub(4).min(max_data / PAGE);
    init.max_pages = init.max_pages.min(pages as u16);
    let reply = [out.0.as_bytes(), init.as_bytes()].concat();
    nix::unistd::write(fuse, &reply).map_err(MountError::kernel("answer INIT", mountpoint))?;
    Ok(init)
}

#[cfg(test)]
mod tests {
    use super::{Pending, fault_of};
    use crate::fuse::wire::{OutHeader, opcode};

    #[test]
    fn replies_are_checked_as_a_guest_checks_them() {
        let pending = Pending { opcode: opcode::GETATTR, unique: 4, room: 120 };
        let fault = |used, len, error, unique| fault_of(used, &OutHeader { len, error, unique }, pending);
        assert_eq!(fault(120, 120, 0, 4), None);
        assert_eq!(fault(16, 16, -2, 4), None);
        assert_eq!(fault(0, 0, 0, 4), Some("no header"));
        assert_eq!(fault(121, 121, 0, 4), Some("more than there is room for"));
        assert_eq!(fault(120, 119, 0, 4), Some("the lengths differ"));
        assert_eq!(fault(120, 120, 0, 6), Some("another request's reply"));
        assert_eq!(fault(16, 16, 2, 4), Some("no errno"));
        assert_eq!(fault(120, 120, -2, 4), Some("an error with data"));
    }
}
