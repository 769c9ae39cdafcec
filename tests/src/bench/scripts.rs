//! What the workloads send, slot by slot.

use std::collections::VecDeque;

use zerocopy::FromBytes;

use super::Failure;
use super::engine::Script;
use super::fixture::{self, BLOCK};
use super::guest::{Guest, ROOT_USER};
use super::message::{Message, Response};
use crate::fuse::Caller;
use crate::fuse::wire::{self, opcode};

/// One request an operation, without end.
pub struct Single<N, T> {
    messages: Vec<Message>,
    change: N,
    check: T,
}

impl<N, T> Single<N, T>
where
    N: FnMut(usize, &mut Message) + Send,
    T: FnMut(usize, Response<'_>) -> Result<(), Failure> + Send,
{
    /// A message a slot, which `change` makes the next request of; `check` looks at the reply.
    pub fn new(depth: u16, message: Message, change: N, check: T) -> Single<N, T> {
        Single { messages: vec![message; depth.into()], change, check }
    }
}

impl<N, T> Script for Single<N, T>
where
    N: FnMut(usize, &mut Message) + Send,
    T: FnMut(usize, Response<'_>) -> Result<(), Failure> + Send,
{
    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        let message = &mut self.messages[slot];
        (self.change)(slot, message);
        Some(message)
    }

    fn take(&mut self, slot: usize, response: Response<'_>) -> Result<u64, Failure> {
        (self.check)(slot, response).map(|()| 1)
    }
}

/// Accepts a reply whose body has this many bytes.
pub fn exactly(bytes: usize) -> impl FnMut(usize, Response<'_>) -> Result<(), Failure> + Send {
    move |_, response| match response.check()? {
        len if len == bytes => Ok(()),
        _ => Err(Failure::Malformed("a reply of an unexpected size")),
    }
}

/// Goes through items in turn, for ever.
pub fn cycle<T: Copy + Send>(items: Vec<T>) -> impl FnMut() -> T + Send {
    let mut next = 0;
    move || {
        let item = items[next];
        next = if next + 1 == items.len() { 0 } else { next + 1 };
        item
    }
}

/// LOOKUP of names that the daemon doesn't know yet, each once a lap, and forgets them.
pub struct ColdLookup {
    messages: Vec<Message>,
    next: usize,
    count: usize,
    /// What was looked up in this lap.
    pub nodes: Vec<u64>,
    /// Whether the nodes stay looked up.
    pub keep: bool,
}

impl ColdLookup {
    /// The first `count` files of a directory.
    pub fn new(depth: u16, directory: u64, count: usize) -> ColdLookup {
        let message = Message::new(opcode::LOOKUP, directory, ROOT_USER).name(&fixture::name(0));
        let messages = vec![message.reply::<wire::EntryOut>(); depth.into()];
        ColdLookup { messages, next: 0, count, nodes: Vec::with_capacity(count), keep: false }
    }
}

impl Script for ColdLookup {
    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        if self.next == self.count {
            return None;
        }
        let message = &mut self.messages[slot];
        set_number(message, self.next);
        self.next += 1;
        Some(message)
    }

    fn take(&mut self, _slot: usize, response: Response<'_>) -> Result<u64, Failure> {
        self.nodes.push(response.body::<wire::EntryOut>()?.nodeid);
        Ok(1)
    }

    fn clean_up(&mut self, guest: &mut Guest) -> Result<(), Failure> {
        if self.keep {
            return Ok(());
        }
        self.next = 0;
        guest.forget_all(&mut self.nodes)
    }
}

/// Puts a file's name into a LOOKUP without allocation.
fn set_number(message: &mut Message, mut number: usize) {
    let mut name = *b"file-0000000";
    for digit in name[5..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    message.set_name(&name);
}

/// FORGET of nodes that were looked up before the lap, on the high-priority queue.
pub struct Forget {
    messages: Vec<Message>,
    directory: u64,
    count: usize,
    nodes: Vec<u64>,
}

impl Forget {
    /// The first `count` files of a directory.
    pub fn new(depth: u16, directory: u64, count: usize) -> Forget {
        Forget { messages: vec![forget(); depth.into()], directory, count, nodes: Vec::with_capacity(count) }
    }
}

impl Script for Forget {
    fn high_priority(&self) -> bool {
        true
    }

    fn prepare(&mut self, guest: &mut Guest) -> Result<(), Failure> {
        for index in 0..self.count {
            self.nodes.push(guest.lookup(self.directory, &fixture::name(index))?);
        }
        Ok(())
    }

    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        let node = self.nodes.pop()?;
        self.messages[slot].set_node(node);
        Some(&mut self.messages[slot])
    }

    fn take(&mut self, _slot: usize, response: Response<'_>) -> Result<u64, Failure> {
        response.check_none()?;
        Ok(1)
    }

    fn clean_up(&mut self, guest: &mut Guest) -> Result<(), Failure> {
        guest.forget_all(&mut self.nodes)
    }
}

/// One FORGET, as a guest sends it.
fn forget() -> Message {
    Message::new(opcode::FORGET, 0, ROOT_USER).arg(&wire::ForgetIn { nlookup: 1 }).no_reply()
}

/// OPEN and RELEASE of files that are looked up.
pub struct OpenRelease<N> {
    nodes: N,
    slots: Vec<OpenSlot>,
}

struct OpenSlot {
    open: Message,
    release: Message,
    is_open: bool,
}

impl<N: FnMut() -> u64 + Send> OpenRelease<N> {
    /// Opens for reading what `nodes` gives.
    pub fn new(depth: u16, nodes: N) -> OpenRelease<N> {
        let request = wire::OpenIn { flags: libc::O_RDONLY.cast_unsigned(), open_flags: 0 };
        let open = Message::new(opcode::OPEN, 0, ROOT_USER).arg(&request).reply::<wire::OpenOut>();
        let release = Message::new(opcode::RELEASE, 0, ROOT_USER).arg(&wire::ReleaseIn::default());
        let slot = || OpenSlot { open: open.clone(), release: release.clone(), is_open: false };
        OpenRelease { nodes, slots: (0..depth).map(|_| slot()).collect() }
    }
}

impl<N: FnMut() -> u64 + Send> Script for OpenRelease<N> {
    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        let slot = &mut self.slots[slot];
        if slot.is_open {
            return Some(&mut slot.release);
        }
        let node = (self.nodes)();
        slot.open.set_node(node);
        slot.release.set_node(node);
        Some(&mut slot.open)
    }

    fn take(&mut self, slot: usize, response: Response<'_>) -> Result<u64, Failure> {
        let slot = &mut self.slots[slot];
        if slot.is_open {
            response.check()?;
            slot.is_open = false;
            return Ok(1);
        }
        let fh = response.body::<wire::OpenOut>()?.fh;
        slot.release.set_arg(&wire::ReleaseIn { fh, ..Default::default() });
        slot.is_open = true;
        Ok(0)
    }

    fn is_busy(&self, slot: usize) -> bool {
        self.slots[slot].is_open
    }
}

/// READDIRPLUS of whole directories, each once a lap by one slot. An operation is an entry.
pub struct ReadDirPlus {
    directories: Vec<u64>,
    /// So many of them make a lap.
    lap: usize,
    /// The first of the next lap.
    next: usize,
    waiting: VecDeque<u64>,
    buffer: u32,
    slots: Vec<DirectorySlot>,
    data: Vec<u8>,
    nodes: Vec<u64>,
    /// Entries other than `.` and `..` seen in this lap.
    pub seen: u64,
}

struct DirectorySlot {
    open: Message,
    read: Message,
    close: Message,
    state: DirectoryState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DirectoryState {
    Idle,
    Opening,
    Reading { fh: u64 },
    Closing,
}

impl ReadDirPlus {
    /// Reads these directories with buffers of this many bytes; each has about this many entries. No more are looked up
    /// at a time than `most`, unless one directory has more.
    pub fn new(depth: u16, directories: Vec<u64>, buffer: u32, entries: usize, most: usize) -> ReadDirPlus {
        let new = |opcode| Message::new(opcode, 0, ROOT_USER);
        let flags = (libc::O_RDONLY | libc::O_DIRECTORY).cast_unsigned();
        let slot = || DirectorySlot {
            open: new(opcode::OPENDIR).arg(&wire::OpenIn { flags, open_flags: 0 }).reply::<wire::OpenOut>(),
            read: new(opcode::READDIRPLUS).arg(&wire::ReadIn::default()).data_out(buffer),
            close: new(opcode::RELEASEDIR).arg(&wire::ReleaseIn::default()),
            state: DirectoryState::Idle,
        };
        ReadDirPlus {
            waiting: VecDeque::with_capacity(directories.len()),
            nodes: Vec::with_capacity(directories.len() * (entries + 2)),
            lap: (most / entries.max(1)).clamp(1, directories.len().max(1)),
            next: 0,
            directories,
            buffer,
            slots: (0..depth).map(|_| slot()).collect(),
            data: vec![0; buffer as usize],
            seen: 0,
        }
    }

    /// Takes the entries of a reply; returns how many they are, and the last one's offset.
    fn take_entries(&mut self, len: usize) -> Result<(u64, u64), Failure> {
        let mut data = &self.data[..len];
        let (mut count, mut last) = (0, 0);
        while !data.is_empty() {
            let Ok((entry, rest)) = wire::Direntplus::read_from_prefix(data) else {
                return Err(Failure::Malformed("READDIRPLUS: a cut entry"));
            };
            let name_len = entry.dirent.namelen as usize;
            let name = rest.get(..name_len).ok_or(Failure::Malformed("READDIRPLUS: a cut name"))?;
            // As in Linux, dots aren't looked up.
            if name != b"." && name != b".." {
                if entry.entry.nodeid != 0 {
                    self.nodes.push(entry.entry.nodeid);
                }
                self.seen += 1;
            }
            last = entry.dirent.off;
            count += 1;
            data = rest.get(name_len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok((count, last))
    }
}

impl Script for ReadDirPlus {
    fn prepare(&mut self, _guest: &mut Guest) -> Result<(), Failure> {
        self.seen = 0;
        self.waiting.clear();
        self.waiting.extend(self.directories.iter().cycle().skip(self.next).take(self.lap));
        self.next = (self.next + self.lap) % self.directories.len().max(1);
        Ok(())
    }

    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        let slot = &mut self.slots[slot];
        match slot.state {
            DirectoryState::Idle => {
                let node = self.waiting.pop_front()?;
                [&mut slot.open, &mut slot.read, &mut slot.close].into_iter().for_each(|m| m.set_node(node));
                slot.state = DirectoryState::Opening;
                Some(&mut slot.open)
            }
            DirectoryState::Opening => Some(&mut slot.open),
            DirectoryState::Reading { .. } => Some(&mut slot.read),
            DirectoryState::Closing => Some(&mut slot.close),
        }
    }

    fn take(&mut self, index: usize, response: Response<'_>) -> Result<u64, Failure> {
        let size = self.buffer;
        let slot = &mut self.slots[index];
        match slot.state {
            DirectoryState::Idle => Err(Failure::Malformed("a reply without a request")),
            DirectoryState::Opening => {
                let fh = response.body::<wire::OpenOut>()?.fh;
                slot.read.set_arg(&wire::ReadIn { fh, size, ..Default::default() });
                slot.close.set_arg(&wire::ReleaseIn { fh, ..Default::default() });
                slot.state = DirectoryState::Reading { fh };
                Ok(0)
            }
            DirectoryState::Reading { fh } => {
                let len = response.check()?;
                response.read(0, &mut self.data[..len]);
                let (count, offset) = self.take_entries(len)?;
                let slot = &mut self.slots[index];
                slot.read.set_arg(&wire::ReadIn { fh, offset, size, ..Default::default() });
                if count == 0 {
                    slot.state = DirectoryState::Closing;
                }
                Ok(count)
            }
            DirectoryState::Closing => {
                response.check()?;
                slot.state = DirectoryState::Idle;
                Ok(0)
            }
        }
    }

    fn is_busy(&self, slot: usize) -> bool {
        // Between two replies of a long directory a lap may end: then the handle must be closed.
        matches!(self.slots[slot].state, DirectoryState::Opening | DirectoryState::Closing)
    }

    fn stop(&mut self, slot: usize) {
        if let DirectoryState::Reading { .. } = self.slots[slot].state {
            self.slots[slot].state = DirectoryState::Closing;
        }
    }

    fn clean_up(&mut self, guest: &mut Guest) -> Result<(), Failure> {
        guest.forget_all(&mut self.nodes)
    }
}

/// CREATE for writing, WRITE of a block, FLUSH if the daemon wants it, RELEASE and UNLINK, as some user.
pub struct CreateUnlink {
    slots: Vec<CreateSlot>,
    /// Files that are made in a lap, and forgotten after it; without, each is forgotten as soon as it is removed.
    kept: Option<usize>,
    /// Files that are still to be made in this lap.
    left: usize,
    nodes: Vec<u64>,
}

struct CreateSlot {
    /// In the order in which they are sent.
    messages: Vec<Message>,
    step: usize,
    /// The daemon's reply to CREATE asked for no FLUSH.
    no_flush: bool,
}

/// FLUSH and FORGET among a slot's messages.
const FLUSH: usize = 2;
const FORGET: usize = 5;

impl CreateUnlink {
    /// Each slot has a file name of its own in `directory`; `kept` files a lap are forgotten after it.
    pub fn new(depth: u16, directory: u64, caller: Caller, kept: Option<usize>) -> CreateUnlink {
        let slot = |index: u16| {
            let name = fixture::name(index.into());
            let new = |opcode, node| Message::new(opcode, node, caller);
            let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).cast_unsigned();
            let create = wire::CreateIn { flags, mode: libc::S_IFREG | 0o644, umask: 0o022, open_flags: 0 };
            let mut messages = vec![
                new(opcode::CREATE, directory).arg(&create).name(&name).reply::<wire::CreateOut>(),
                new(opcode::WRITE, 0)
                    .arg(&wire::WriteIn::default())
                    .data_in(BLOCK as u32)
                    .reply::<wire::WriteOut>(),
                new(opcode::FLUSH, 0).arg(&wire::FlushIn::default()),
                new(opcode::RELEASE, 0).arg(&wire::ReleaseIn::default()),
                new(opcode::UNLINK, directory).name(&name),
            ];
            if kept.is_none() {
                messages.push(forget());
            }
            CreateSlot { messages, step: 0, no_flush: false }
        };
        let left = kept.unwrap_or(usize::MAX);
        let nodes = Vec::with_capacity(kept.unwrap_or(0));
        CreateUnlink { slots: (0..depth).map(slot).collect(), kept, left, nodes }
    }
}

impl Script for CreateUnlink {
    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        let slot = &mut self.slots[slot];
        if slot.step == 0 {
            self.left = self.left.checked_sub(1)?;
        }
        Some(&mut slot.messages[slot.step])
    }

    fn take(&mut self, slot: usize, response: Response<'_>) -> Result<u64, Failure> {
        let slot = &mut self.slots[slot];
        match slot.step {
            0 => {
                let created: wire::CreateOut = response.body()?;
                let (node, fh) = (created.entry.nodeid, created.open.fh);
                if self.kept.is_some() {
                    self.nodes.push(node);
                }
                slot.begin(node, fh, created.open.open_flags & wire::FOPEN_NOFLUSH != 0);
            }
            FORGET => response.check_none()?,
            _ => drop(response.check()?),
        }
        slot.step = (slot.step + 1) % slot.messages.len();
        if slot.step == FLUSH && slot.no_flush {
            slot.step += 1;
        }
        Ok(u64::from(slot.step == 0))
    }

    fn is_busy(&self, slot: usize) -> bool {
        self.slots[slot].step != 0
    }

    fn clean_up(&mut self, guest: &mut Guest) -> Result<(), Failure> {
        self.left = self.kept.unwrap_or(usize::MAX);
        guest.forget_all(&mut self.nodes)
    }
}

impl CreateSlot {
    /// The file is made, and open.
    fn begin(&mut self, node: u64, fh: u64, no_flush: bool) {
        self.no_flush = no_flush;
        let [_, write, flush, release, _, forget @ ..] = &mut *self.messages else {
            unreachable!("a slot has five messages or six");
        };
        [&mut *write, &mut *flush, &mut *release].into_iter().chain(forget).for_each(|m| m.set_node(node));
        let flags = libc::O_WRONLY.cast_unsigned();
        write.set_arg(&wire::WriteIn { fh, size: BLOCK as u32, flags, ..Default::default() });
        flush.set_arg(&wire::FlushIn { fh, ..Default::default() });
        release.set_arg(&wire::ReleaseIn { fh, ..Default::default() });
    }
}

/// Offsets of whole pieces in a file: in turn, or at random but the same each time.
pub fn offsets(pieces: u64, size: u64, random: bool) -> impl FnMut() -> u64 + Send {
    let (mut next, mut state) = (0, 0x9e37_79b9_7f4a_7c15_u64);
    move || {
        if random {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            return state % pieces * size;
        }
        next = (next + 1) % pieces;
        next * size
    }
}

/// READ of pieces of a file of numbered blocks; each piece's first bytes are checked.
pub struct Read<N> {
    offsets: N,
    fh: u64,
    size: u32,
    slots: Vec<(Message, u64)>,
}

impl<N: FnMut() -> u64 + Send> Read<N> {
    /// Pieces of `size` bytes at `offsets`.
    pub fn new(depth: u16, (node, fh): (u64, u64), size: u32, offsets: N) -> Read<N> {
        let message =
            Message::new(opcode::READ, node, ROOT_USER).arg(&wire::ReadIn::default()).data_out(size);
        Read { offsets, fh, size, slots: vec![(message, 0); depth.into()] }
    }
}

impl<N: FnMut() -> u64 + Send> Script for Read<N> {
    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        let offset = (self.offsets)();
        let (message, asked) = &mut self.slots[slot];
        *asked = offset;
        message.set_arg(&wire::ReadIn { fh: self.fh, offset, size: self.size, ..Default::default() });
        Some(message)
    }

    fn take(&mut self, slot: usize, response: Response<'_>) -> Result<u64, Failure> {
        if response.check()? != self.size as usize {
            return Err(Failure::Malformed("a short READ"));
        }
        let mut number = [0; 8];
        response.read(0, &mut number);
        if u64::from_ne_bytes(number) * BLOCK != self.slots[slot].1 {
            return Err(Failure::Malformed("READ returned other data"));
        }
        Ok(1)
    }
}

/// WRITE of pieces of a file.
pub fn write(
    depth: u16,
    (node, fh): (u64, u64),
    size: u32,
    mut offsets: impl FnMut() -> u64 + Send,
) -> impl Script {
    let message = Message::new(opcode::WRITE, node, ROOT_USER)
        .arg(&wire::WriteIn::default())
        .data_in(size)
        .reply::<wire::WriteOut>();
    let flags = libc::O_RDWR.cast_unsigned();
    let change = move |_: usize, message: &mut Message| {
        message.set_arg(&wire::WriteIn { fh, offset: offsets(), size, flags, ..Default::default() });
    };
    let check = move |_: usize, response: Response<'_>| match response.body::<wire::WriteOut>()?.size {
        written if written == size => Ok(()),
        _ => Err(Failure::Malformed("a short WRITE")),
    };
    Single::new(depth, message, change, check)
}
