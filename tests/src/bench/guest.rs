//! A started daemon with a guest booted on it, for as long as it is measured.

use std::time::{Duration, Instant};

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Failure;
use super::message::{Message, Response};
use super::tree::{Memory, ProcessTree};
use crate::daemon::{Daemon, DaemonCommand};
use crate::frontend::queue::HEADROOM;
use crate::frontend::{Device, DeviceConfig, Queue, Wait};
use crate::fuse::Caller;
use crate::fuse::wire::{self, IN_HEADER, opcode};

/// Requests in flight on a request queue, at most.
pub const MAX_DEPTH: u16 = 64;
/// The user who asks where none is named.
pub const ROOT_USER: Caller = Caller { uid: 0, gid: 0, pid: 4711 };
/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nodes in one BATCH_FORGET of the size of a slot.
const FORGETS: usize =
    (HEADROOM - IN_HEADER - size_of::<wire::BatchForgetIn>()) / size_of::<wire::ForgetOne>();

/// What a start of a daemon costs.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Startup {
    /// From before fork to the reply to INIT.
    pub first_reply: Duration,
    /// With one connected guest that has done nothing else.
    pub memory: Memory,
    /// Of all its processes.
    pub threads: usize,
    /// Of all its processes.
    pub descriptors: usize,
}

/// A daemon and its guest. The daemon is killed when this is dropped.
#[derive(Debug)]
pub struct Guest {
    /// The daemon's processes.
    pub tree: ProcessTree,
    /// How it started.
    pub startup: Startup,
    /// The daemon's request queues, and the threads that ask, each have a CPU of so many.
    pub spread: Option<usize>,
    /// The high-priority queue.
    pub high_priority: Queue,
    queues: Vec<Queue>,
    /// Kept open: the daemon ends with the connection.
    _device: Device,
    daemon: Daemon,
}

impl Guest {
    /// Starts a daemon and mounts, as a guest does, with this many request queues.
    pub fn boot(command: DaemonCommand, request_queues: u16, wait: Wait) -> Result<Guest, Failure> {
        let config = DeviceConfig { request_queues, depth: MAX_DEPTH, limit: PATIENCE, ..Default::default() };
        let start = Instant::now();
        let daemon = command.start();
        let tell = |e: &dyn std::fmt::Display| {
            Failure::Boot(format!("{e}; last it wrote: {}", last_line(&daemon.stderr())))
        };
        let (device, queues) = Device::boot(daemon.connect(), config).map_err(|e| tell(&e))?;
        let mut queues = queues.into_iter();
        let high_priority = queues.next().ok_or(Failure::Malformed("no high-priority queue"))?;
        let mut queues: Vec<Queue> = queues.collect();
        init(&mut queues[0]).map_err(|e| tell(&e))?;
        let first_reply = start.elapsed();
        let tree = ProcessTree::of(&daemon)?;
        tree.settle()?;
        let (memory, threads, descriptors) = (tree.memory()?, tree.threads()?, tree.descriptors()?);
        let startup = Startup { first_reply, memory, threads, descriptors };
        queues.iter_mut().for_each(|queue| queue.set_wait(wait));
        Ok(Guest { tree, startup, spread: None, high_priority, queues, _device: device, daemon })
    }

    /// Spreads the queues over the CPUs, so that how many of them work at a time doesn't depend on the scheduler.
    pub fn spread(&mut self) -> Result<(), Failure> {
        let cpus = std::thread::available_parallelism()?.get();
        self.tree.spread_queues(cpus)?;
        self.spread = Some(cpus);
        Ok(())
    }

    /// The first request queue.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    /// All request queues.
    pub fn queues_mut(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// Whether the daemon still serves; if not, its last words.
    pub fn check_alive(&mut self) -> Result<(), Failure> {
        match self.daemon.has_ended() {
            false => Ok(()),
            true => Err(Failure::Ended(last_line(&self.daemon.stderr()))),
        }
    }

    /// Makes one request and waits for its reply.
    pub fn last_line(text: &str) -> String {
        text.trim().lines().last().unwrap_or("nothing").to_owned()
    }

    fn call<T: FromBytes + FromZeros + IntoBytes>(&mut self, message: Message) -> Result<T, Failure> {
        call(self.queue(), message.reply::<T>())
    }

    /// LOOKUP; the node stays looked up.
    pub fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<u64, Failure> {
        let message = Message::new(opcode::LOOKUP, parent, ROOT_USER).name(name);
        self.call::<wire::EntryOut>(message).map(|entry| entry.nodeid)
    }

    /// LOOKUP of several names, one after another.
    pub fn lookup_all(&mut self, parent: u64, names: &[Vec<u8>]) -> Result<Vec<u64>, Failure> {
        names.iter().map(|name| self.lookup(parent, name)).collect()
    }

    /// OPEN; returns the file handle.
    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, Failure> {
        let request = wire::OpenIn { flags: flags.cast_unsigned(), open_flags: 0 };
        let message = Message::new(opcode::OPEN, node, ROOT_USER).arg(&request);
        self.call::<wire::OpenOut>(message).map(|open| open.fh)
    }

    /// Forgets each of these nodes once, and empties the list. A guest sends single FORGETs; this is to get
    /// rid of many quickly, not to be measured.
    pub fn forget_all(&mut self, nodes: &mut Vec<u64>) -> Result<(), Failure> {
        let queue = &mut self.high_priority;
        let mut slots = Vec::new();
        for batch in nodes.chunks(FORGETS) {
            let slot = match queue.take() {
                Some(slot) => slot,
                None => queue.wait()?.slot,
            };
            let count = batch.len() as u32;
            let mut message = Message::new(opcode::BATCH_FORGET, 0, ROOT_USER)
                .arg(&wire::BatchForgetIn { count, dummy: 0 })
                .no_reply();
            for nodeid in batch {
                message = message.arg(&wire::ForgetOne { nodeid: *nodeid, nlookup: 1 });
            }
            message.submit(queue, slot, 2);
            queue.flush();
            slots.push(slot);
        }
        while queue.in_flight() > 0 {
            queue.wait()?;
        }
        slots.sort_unstable();
        slots.dedup();
        slots.into_iter().rev().for_each(|slot| queue.put(slot));
        nodes.clear();
        Ok(())
    }
}

fn last_line(text: &str) -> String {
    text.trim().lines().last().unwrap_or("nothing").to_owned()
}

fn call<T: FromBytes + FromZeros + IntoBytes>(queue: &mut Queue, mut message: Message) -> Result<T, Failure> {
    let slot = queue.take().ok_or(Failure::Malformed("no free slot"))?;
    message.submit(queue, slot, 2);
    queue.flush();
    let completion = queue.wait()?;
    let result = Response::new(queue, completion).body();
    queue.put(slot);
    result
}

/// INIT with what a Linux guest offers.
fn init(queue: &mut Queue) -> Result<(), Failure> {
    let flags = wire::init::GUEST;
    let request = wire::InitIn {
        major: wire::MAJOR,
        minor: wire::MINOR,
        max_readahead: 128 << 10,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        unused: [0; 11],
    };
    let message = Message::new(opcode::INIT, 0, ROOT_USER).arg(&request).reply::<wire::InitOut>();
    let reply: wire::InitOut = call(queue, message)?;
    if reply.max_write < 1 << 20 {
        return Err(Failure::Malformed("INIT: a max_write below 1 MiB"));
    }
    Ok(())
}
