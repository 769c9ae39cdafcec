//! Requests in flight on one virtqueue.
//!
//! A queue has a fixed number of *slots*, each with its own request buffer, reply buffer and indirect table in
//! guest memory. A caller takes a slot, writes the request, submits it with a [`Shape`], and gets the slot
//! back as a [`Completion`]. Nothing is allocated on the way, and the descriptors of a slot are written anew
//! only when its shape changes, so that a benchmark measures the daemon and not this.
//!
//! The shapes are those of Linux's virtio-fs driver: FUSE header and arguments in one descriptor each, file
//! data as one descriptor a page, then the same for the reply. A test that wants other chains uses
//! [`Queue::submit_segments`], or writes the rings itself through [`Queue::ring_mut`].

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::memory::{GuestBuffer, GuestMemory, PAGE};
use super::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DESCRIPTOR_SIZE, Descriptor, SplitRing, Used};
use super::{Error, Result};
use crate::processes::remaining;

/// Room before the page-aligned data area of a request or reply buffer, in bytes: header and arguments end
/// where the data begins.
pub const HEADROOM: usize = PAGE;

/// Bytes of a FUSE request's header (`fuse_in_header`).
const REQUEST_HEADER: u32 = 40;
/// Bytes of a FUSE reply's header (`fuse_out_header`).
const REPLY_HEADER: u32 = 16;

/// How a queue is made.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// Descriptors in the ring; a power of two.
    pub size: u16,
    /// Slots; at most `size`.
    pub depth: u16,
    /// Bytes of data that a request or a reply can have beyond [`HEADROOM`].
    pub max_data: usize,
    /// Indirect descriptors. Without them a slot has `size / depth` descriptors.
    pub indirect: bool,
    /// EVENT_IDX.
    pub event_index: bool,
    /// How long a wait may take.
    pub limit: Duration,
}

impl QueueConfig {
    /// The most descriptors that a request of this queue needs.
    fn table_len(&self) -> usize {
        // Two headers, two arguments, and both data areas with one page more for odd alignment.
        4 + 2 * (self.max_data.div_ceil(PAGE) + 1)
    }

    /// How much guest memory a queue of this kind takes, at most.
    pub fn memory(&self) -> usize {
        let buffer = HEADROOM + self.max_data.next_multiple_of(PAGE);
        let slot = 2 * buffer + (self.table_len() * DESCRIPTOR_SIZE).next_multiple_of(PAGE);
        // The three parts of a ring of 32768 take less than 26 bytes a descriptor, and round up to pages.
        usize::from(self.depth) * slot + usize::from(self.size) * 26 + 4 * PAGE
    }
}

/// How [`Queue::wait`] waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// For the call eventfd, as a guest waits for an interrupt.
    #[default]
    Sleep,
    /// By looking at the used ring again and again, with calls off. It costs a CPU and measures the daemon
    /// alone.
    Spin,
}

/// One of a queue's buffers, in the caller's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u16);

impl SlotId {
    /// Counts from 0 up to the queue's depth.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A request that the daemon returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Its slot, which is the caller's again until [`Queue::put`].
    pub slot: SlotId,
    /// The used length: how many bytes the daemon says that it wrote.
    pub len: u32,
}

/// Sizes, in bytes, of a request's four parts, and how they are cut into descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// FUSE header and arguments.
    pub head: u32,
    /// File data behind them.
    pub data_in: u32,
    /// Reply header and fixed reply.
    pub reply: u32,
    /// Reply data behind them.
    pub data_out: u32,
    /// Data as one descriptor a page, as a guest's page cache gives it; else one descriptor.
    pub pages: bool,
    /// Header and arguments in a descriptor each; else in one.
    pub split_head: bool,
    /// Where the request begins in its buffer.
    pub start: u32,
}

impl Shape {
    /// The usual shape of Linux's driver.
    pub fn new(head: u32, data_in: u32, reply: u32, data_out: u32) -> Shape {
        let start = HEADROOM as u32 - head.min(HEADROOM as u32);
        Shape { head, data_in, reply, data_out, pages: true, split_head: true, start }
    }

    /// A message of `head` bytes in one descriptor and no reply: Linux's FORGET.
    pub fn forget(head: u32) -> Shape {
        Shape { split_head: false, ..Shape::new(head, 0, 0, 0) }
    }

    /// Where the reply begins in its buffer.
    fn reply_start(&self) -> u32 {
        HEADROOM as u32 - self.reply.min(HEADROOM as u32)
    }
}

/// A piece of a slot for [`Queue::submit_segments`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// In the reply buffer (and device-writable); else in the request buffer.
    pub writable: bool,
    /// Where, in bytes from the buffer's begin.
    pub offset: u32,
    /// In bytes.
    pub len: u32,
}

#[derive(Debug)]
struct Slot {
    request: GuestBuffer,
    reply: GuestBuffer,
    table: GuestBuffer,
    /// What the descriptors were last written for.
    shape: Option<Shape>,
    reply_start: usize,
    in_flight: bool,
}

/// A virtqueue with its eventfds and its slots.
#[derive(Debug)]
pub struct Queue {
    config: QueueConfig,
    ring: SplitRing,
    kick: EventFd,
    call: EventFd,
    /// Edge-triggered, so that a call needs no read: a wait is one system call.
    calls: Epoll,
    error: EventFd,
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    wait: Wait,
    kicks: u64,
}

impl Queue {
    /// Makes a queue in guest memory.
    pub fn new(memory: &GuestMemory, config: QueueConfig) -> Result<Queue> {
        assert!(config.depth > 0 && config.depth <= config.size, "a slot needs a descriptor");
        let event = || EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let event = || event().map_err(Error::system("make an eventfd"));
        let buffer = HEADROOM + config.max_data.next_multiple_of(PAGE);
        let slots = (0..config.depth).map(|_| Slot {
            request: memory.allocate(buffer, PAGE),
            reply: memory.allocate(buffer, PAGE),
            table: memory.allocate(config.table_len() * DESCRIPTOR_SIZE, PAGE),
            shape: None,
            reply_start: 0,
            in_flight: false,
        });
        let slots = slots.collect();
        let call = event()?;
        let calls = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Error::system("make an epoll"))?;
        let edges = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        calls.add(&call, edges).map_err(Error::system("add an eventfd to an epoll"))?;
        Ok(Queue {
            config,
            ring: SplitRing::new(memory, config.size, config.event_index),
            kick: event()?,
            call,
            calls,
            error: event()?,
            slots,
            free: (0..config.depth).rev().map(SlotId).collect(),
            wait: Wait::Sleep,
            kicks: 0,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Chooses how [`Queue::wait`] waits.
    pub fn set_wait(&mut self, wait: Wait) {
        self.wait = wait;
        if wait == Wait::Spin {
            self.ring.disable_calls();
        }
    }

    /// The eventfd by which the daemon is told of new requests.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The eventfd by which the daemon tells of returned requests.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// The eventfd by which the daemon tells that the ring is broken.
    pub fn error_fd(&self) -> BorrowedFd<'_> {
        self.error.as_fd()
    }

    /// How often the daemon was kicked.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// The ring.
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    /// The ring, to be driven by hand.
    pub fn ring_mut(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// How many requests the daemon has.
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| slot.in_flight).count()
    }

    /// Takes a free slot.
    pub fn take(&mut self) -> Option<SlotId> {
        self.free.pop()
    }

    /// Gives a slot back.
    pub fn put(&mut self, slot: SlotId) {
        debug_assert!(!self.slots[slot.index()].in_flight, "the daemon still has it");
        self.free.push(slot);
    }

    /// A slot's request buffer. Its data area begins at [`HEADROOM`].
    pub fn request(&self, slot: SlotId) -> &GuestBuffer {
        &self.slots[slot.index()].request
    }

    /// A slot's reply buffer, and where in it the reply of the last submission begins.
    pub fn reply(&self, slot: SlotId) -> (&GuestBuffer, usize) {
        let slot = &self.slots[slot.index()];
        (&slot.reply, slot.reply_start)
    }

    /// Submits the request in a slot; the daemon sees it after [`Queue::flush`].
    pub fn submit(&mut self, id: SlotId, shape: Shape) {
        let slot = &mut self.slots[id.index()];
        if slot.shape != Some(shape) {
            slot.shape = Some(shape);
            slot.reply_start = shape.reply_start() as usize;
            self.write_chain(id, shape.segments());
        }
        self.make_available(id);
    }

    /// Submits a slot with any chain of pieces of it.
    pub fn submit_segments(&mut self, id: SlotId, segments: &[Segment]) {
        let slot = &mut self.slots[id.index()];
        slot.shape = None;
        let first = segments.iter().find(|segment| segment.writable);
        slot.reply_start = first.map_or(0, |segment| segment.offset as usize);
        self.write_chain(id, segments.iter().copied());
        self.make_available(id);
    }

    fn make_available(&mut self, id: SlotId) {
        self.slots[id.index()].in_flight = true;
        self.ring.push(id.0 * self.stride());
    }

    /// How many of the ring's descriptors a slot has.
    fn stride(&self) -> u16 {
        if self.config.indirect { 1 } else { self.config.size / self.config.depth }
    }

    fn write_chain(&mut self, id: SlotId, segments: impl Iterator<Item = Segment>) {
        let slot = &self.slots[id.index()];
        let stride = self.stride();
        let head = usize::from(id.0 * stride);
        let (table, base, room) = if self.config.indirect {
            (&slot.table, 0, slot.table.len() / DESCRIPTOR_SIZE)
        } else {
            (self.ring.descriptors(), head, usize::from(stride))
        };
        let mut count = 0;
        let mut last = Descriptor::default();
        for segment in segments {
            let buffer = if segment.writable { &slot.reply } else { &slot.request };
            let end = segment.offset as usize + segment.len as usize;
            assert!(end <= buffer.len(), "{segment:?} does not fit {} bytes", buffer.len());
            assert!(count < room, "the chain needs more than {room} descriptors");
            if count > 0 {
                last.flags |= DESC_NEXT;
                last.next = (base + count) as u16;
                last.write_to(table, base + count - 1);
            }
            last = Descriptor {
                address: buffer.guest_address() + u64::from(segment.offset),
                len: segment.len,
                flags: if segment.writable { DESC_WRITE } else { 0 },
                next: 0,
            };
            last.write_to(table, base + count);
            count += 1;
        }
        if self.config.indirect {
            // Linux doesn't use a table for a single descriptor.
            let entry = match count {
                1 => last,
                _ => Descriptor {
                    address: table.guest_address(),
                    len: (count * DESCRIPTOR_SIZE) as u32,
                    flags: DESC_INDIRECT,
                    next: 0,
                },
            };
            entry.write_to(self.ring.descriptors(), head);
        }
    }

    /// Publishes what was submitted, and kicks the daemon if it wants that.
    pub fn flush(&mut self) {
        if self.ring.publish() {
            self.kick();
        }
    }

    /// Kicks the daemon in any case.
    pub fn kick(&mut self) {
        self.kicks += 1;
        self.kick.write(1).expect("add one to an eventfd");
    }

    /// Takes the next request that the daemon returned, if there is one.
    pub fn poll(&mut self) -> Result<Option<Completion>> {
        self.ring.pop().map(|used| self.claim(used)).transpose()
    }

    /// Waits for the next request that the daemon returns, at most the configured limit.
    pub fn wait(&mut self) -> Result<Completion> {
        let used = self.wait_used()?;
        self.claim(used)
    }

    /// Finds the slot that the daemon returned.
    fn claim(&mut self, used: Used) -> Result<Completion> {
        let stride = u32::from(self.stride());
        let index = (used.head / stride) as usize;
        match self.slots.get_mut(index) {
            Some(slot) if slot.in_flight && used.head.is_multiple_of(stride) => {
                slot.in_flight = false;
                Ok(Completion { slot: SlotId(index as u16), len: used.len })
            }
            _ => Err(Error::Protocol(format!("{used:?} was returned but not in flight"))),
        }
    }

    /// Waits for whatever the daemon returns next: for chains that a test made by hand.
    pub fn wait_used(&mut self) -> Result<Used> {
        if let Some(used) = self.ring.pop() {
            return Ok(used);
        }
        let end = Instant::now() + self.config.limit;
        loop {
            let used = match self.wait {
                Wait::Spin => self.spin(),
                Wait::Sleep => {
                    self.sleep(end)?;
                    self.ring.pop()
                }
            };
            if let Some(used) = used {
                return Ok(used);
            }
            if Instant::now() >= end {
                return Err(Error::Timeout { doing: "waited for a reply", limit: self.config.limit });
            }
        }
    }

    /// Looks some thousand times, for about 100 µs.
    fn spin(&mut self) -> Option<Used> {
        (0..2048).find_map(|_| {
            std::hint::spin_loop();
            self.ring.pop()
        })
    }

    fn sleep(&mut self, end: Instant) -> Result<()> {
        if self.arm() {
            return Ok(());
        }
        match self.calls.wait(&mut [EpollEvent::empty()], remaining(end)) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(errno) => Err(Error::system("wait for an eventfd")(errno)),
        }
    }

    /// Sends one message, in Linux's shape without file data, and waits for it: as many bytes of its reply as
    /// the daemon says that it wrote. For the slow path; it allocates.
    pub fn exchange(&mut self, message: &[u8], reply_len: usize) -> Result<Vec<u8>> {
        let shape = Shape::new(message.len() as u32, 0, reply_len as u32, 0);
        let slot = loop {
            match self.take() {
                Some(slot) => break slot,
                // All are in flight, for nobody (see below).
                None => {
                    let done = self.wait()?;
                    self.put(done.slot);
                }
            }
        };
        self.request(slot).write(shape.start as usize, message);
        self.submit(slot, shape);
        self.flush();
        let completion = loop {
            let completion = self.wait()?;
            if completion.slot == slot {
                break completion;
            }
            // A request that nobody waits for any more, as when a mount ends under its program.
            self.put(completion.slot);
        };
        if completion.len > shape.reply {
            return Err(Error::Protocol(format!("{} bytes written in {reply_len}", completion.len)));
        }
        let (buffer, start) = self.reply(slot);
        let reply = buffer.to_vec(start, completion.len as usize);
        self.put(slot);
        Ok(reply)
    }

    /// Before sleeping on [`Queue::call_fd`]: asks for a call; `true` when there is something to take now.
    pub fn arm(&mut self) -> bool {
        self.ring.enable_calls()
    }

    /// After [`Queue::call_fd`] was readable: makes it unreadable.
    pub fn acknowledge_call(&mut self) {
        // EAGAIN only says that nobody called.
        let _ = self.call.read();
    }

    /// Makes the ring empty and all slots free, as a guest's driver does after it reset the device.
    pub fn reset(&mut self) {
        self.ring.reset();
        for slot in &mut self.slots {
            (slot.shape, slot.in_flight) = (None, false);
        }
        self.free = (0..self.config.depth).rev().map(SlotId).collect();
        self.acknowledge_call();
        self.set_wait(self.wait);
    }
}

impl Shape {
    /// The pieces, in the order of the chain.
    fn segments(self) -> impl Iterator<Item = Segment> {
        let head = if self.split_head { REQUEST_HEADER } else { u32::MAX };
        let reply = self.reply_start();
        pieces(false, self.start, self.head, head)
            .chain(pages(false, self.start + self.head, self.data_in, self.pages))
            .chain(pieces(true, reply, self.reply, REPLY_HEADER))
            .chain(pages(true, reply + self.reply, self.data_out, self.pages))
    }
}

/// The first `first` bytes, and the rest.
fn pieces(writable: bool, offset: u32, len: u32, first: u32) -> impl Iterator<Item = Segment> {
    let first = first.min(len);
    let parts = [(offset, first), (offset + first, len - first)];
    parts.into_iter().filter(|part| part.1 > 0).map(move |(offset, len)| Segment { writable, offset, len })
}

/// Cut into pages, or in one piece.
fn pages(writable: bool, offset: u32, len: u32, cut: bool) -> impl Iterator<Item = Segment> {
    let step = if cut { PAGE as u32 } else { len.max(1) };
    (0..len.div_ceil(step)).map(move |i| {
        let at = i * step;
        Segment { writable, offset: offset + at, len: step.min(len - at) }
    })
}

#[cfg(test)]
mod tests {
    use super::{HEADROOM, Segment, Shape};

    #[test]
    fn a_write_is_cut_as_linux_cuts_it() {
        let head = HEADROOM as u32;
        let segments: Vec<Segment> = Shape::new(80, 4097, 24, 0).segments().collect();
        let expected =
            [(false, head - 80, 40), (false, head - 40, 40), (false, head, 4096), (false, head + 4096, 1)];
        let reply = [(true, head - 24, 16), (true, head - 8, 8)];
        let expected = expected.into_iter().chain(reply);
        let expected: Vec<_> =
            expected.map(|(writable, offset, len)| Segment { writable, offset, len }).collect();
        assert_eq!(segments, expected);
    }

    #[test]
    fn a_forget_is_one_descriptor() {
        assert_eq!(Shape::forget(56).segments().count(), 1);
    }

    #[test]
    fn no_empty_descriptors() {
        assert_eq!(Shape::new(40, 0, 16, 0).segments().count(), 2);
        assert_eq!(Shape::new(0, 0, 0, 0).segments().count(), 0);
    }
}
