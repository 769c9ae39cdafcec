//! The table of workloads: what is sent, how many requests are in flight, and the same natively.

use std::io;

use super::Failure;
use super::engine::Script;
use super::fixture::{self, BLOCK, Fixture};
use super::guest::{Guest, ROOT_USER};
use super::message::Message;
use super::native::{self, Work};
use super::scripts::{
    self, ColdLookup, CreateUnlink, Forget, OpenRelease, Read, ReadDirPlus, Single, cycle, exactly,
};
use crate::fuse::Caller;
use crate::fuse::wire::{self, opcode};

/// A page: what Linux asks for with READDIRPLUS.
const PAGE_BUFFER: u32 = 4096;
/// Files looked up at a time by listings of directories, on all queues. The C daemon keeps an fd for each, and fails where
/// the limit of open files is as low as in some containers (20,000); ours would keep most of them by handles.
const LOOKED_UP: usize = 8000;
/// Files that are removed and not forgotten in a lap. A guest forgets each at once; where that is not to be measured, there
/// are as few as a lap can have that is not mostly its begin and end.
const REMOVED: usize = 256;
/// What newer guests ask for.
const LARGE_BUFFER: u32 = 32 << 10;
/// Files that the attribute workloads go through.
const ATTRIBUTE_FILES: usize = 64;
/// An ordinary user.
const USER: u32 = 1000;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GETATTR of looked-up files.
    GetAttr,
    /// LOOKUP of files that are looked up already.
    LookupWarm,
    /// LOOKUP of files that the daemon doesn't know (their dentries are in the host's cache).
    LookupCold,
    /// OPEN and RELEASE.
    OpenRelease,
    /// READDIRPLUS of whole directories, in replies of this size; an operation is an entry.
    ReadDirPlus {
        /// In bytes.
        buffer: u32,
        /// The directory of many files, instead of many directories.
        large: bool,
    },
    /// CREATE for writing, WRITE of 4 KiB, FLUSH if the daemon wants it, RELEASE, UNLINK.
    CreateUnlink {
        /// Who asks.
        uid: u32,
        /// And FORGET, at once.
        forget: bool,
    },
    /// READ; at random when small, else in sequence.
    Read {
        /// In bytes.
        size: u32,
        /// Of this file.
        file: &'static str,
    },
    /// WRITE; at random when small, else in sequence.
    Write {
        /// In bytes.
        size: u32,
        /// To this file.
        file: &'static str,
    },
    /// GETXATTR.
    GetXattr,
    /// READLINK.
    ReadLink,
    /// STATFS.
    StatFs,
    /// FORGET.
    Forget,
}

/// One row of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name; options and filters use it.
    pub name: String,
    /// What is done.
    pub kind: Kind,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Request queues, each with a front-end thread.
    pub queues: u16,
}

/// All workloads, in the order of the tables.
pub fn all() -> Vec<Workload> {
    let new = |name: &str, kind, depth| Workload { name: name.into(), kind, depth, queues: 1 };
    let (block, large) = (BLOCK as u32, fixture::LARGE as u32);
    let read_small = Kind::Read { size: block, file: fixture::READ_SMALL };
    let write_small = Kind::Write { size: block, file: fixture::WRITE_SMALL };
    let read_large = Kind::Read { size: large, file: fixture::READ_LARGE };
    let write_large = Kind::Write { size: large, file: fixture::WRITE_LARGE };
    let mut all = vec![
        new("getattr", Kind::GetAttr, 16),
        new("getattr-d1", Kind::GetAttr, 1),
        new("lookup-warm", Kind::LookupWarm, 16),
        new("lookup-cold", Kind::LookupCold, 16),
        new("forget", Kind::Forget, 16),
        new("open-release", Kind::OpenRelease, 16),
        new("readdirplus", Kind::ReadDirPlus { buffer: PAGE_BUFFER, large: false }, 16),
        new("readdirplus-32k", Kind::ReadDirPlus { buffer: LARGE_BUFFER, large: false }, 16),
        new("readdirplus-10k", Kind::ReadDirPlus { buffer: LARGE_BUFFER, large: true }, 1),
        new("create-unlink", Kind::CreateUnlink { uid: 0, forget: false }, 16),
        new("create-unlink-u1000", Kind::CreateUnlink { uid: USER, forget: false }, 16),
        new("create-forget", Kind::CreateUnlink { uid: 0, forget: true }, 16),
        new("read-4k-d1", read_small, 1),
        new("read-4k", read_small, 16),
        new("read-4k-d64", read_small, 64),
        new("write-4k-d1", write_small, 1),
        new("write-4k", write_small, 16),
        new("write-4k-d64", write_small, 64),
        new("write-4k-large", Kind::Write { size: block, file: fixture::WRITE_LARGE }, 16),
        new("read-1m", read_large, 4),
        new("write-1m", write_large, 4),
        new("getxattr", Kind::GetXattr, 16),
        new("readlink", Kind::ReadLink, 16),
        new("statfs", Kind::StatFs, 16),
    ];
    for queues in [1, 2, 4] {
        for (name, kind, depth) in [
            ("getattr", Kind::GetAttr, 16),
            ("readdirplus-32k", Kind::ReadDirPlus { buffer: LARGE_BUFFER, large: false }, 4),
            ("create-unlink", Kind::CreateUnlink { uid: 0, forget: false }, 16),
            ("read-4k", read_small, 16),
            ("read-1m", read_large, 4),
        ] {
            all.push(Workload { name: format!("scale-{name}-q{queues}"), kind, depth, queues });
        }
    }
    all
}

/// Prefix of the workloads that are there to compare numbers of queues.
const SCALE: &str = "scale-";

impl Workload {
    /// Whether it is there to compare numbers of queues, for daemons that can have several.
    pub fn is_scaling(&self) -> bool {
        self.name.starts_with(SCALE)
    }

    /// The name of the same work with another number of queues; for those of which there are several.
    pub fn with_queues(&self, queues: u16) -> String {
        let base = self.name.strip_suffix(&format!("-q{}", self.queues)).unwrap_or(&self.name);
        format!("{base}-q{queues}")
    }

    /// Whether the daemon needs extended attributes turned on.
    pub fn needs_xattr(&self) -> bool {
        self.kind == Kind::GetXattr
    }

    /// A script for each queue, on a guest that has that many.
    pub fn scripts(&self, guest: &mut Guest, fixture: &Fixture) -> Result<Vec<Box<dyn Script>>, Failure> {
        (0..usize::from(self.queues)).map(|queue| self.script(guest, fixture, queue)).collect()
    }

    fn script(&self, guest: &mut Guest, fixture: &Fixture, queue: usize) -> Result<Box<dyn Script>, Failure> {
        let (depth, sizes) = (self.depth, fixture.sizes);
        let mut directory = |name: &str| guest.lookup(wire::ROOT, name.as_bytes());
        Ok(match self.kind {
            Kind::GetAttr => {
                let message = Message::new(opcode::GETATTR, 0, ROOT_USER).arg(&wire::GetAttrIn::default());
                on_nodes(
                    depth,
                    message.reply::<wire::AttrOut>(),
                    files(guest, fixture::WARM)?,
                    size_of::<wire::AttrOut>(),
                )
            }
            Kind::LookupWarm => {
                let parent = directory(fixture::WARM)?;
                let names: Vec<Vec<u8>> = (0..sizes.warm).map(fixture::name).collect();
                guest.lookup_all(parent, &names)?;
                let message = Message::new(opcode::LOOKUP, parent, ROOT_USER).name(&names[0]);
                let mut next = cycle((0..names.len()).collect());
                let change = move |_: usize, message: &mut Message| message.set_name(&names[next()]);
                let size = size_of::<wire::EntryOut>();
                Box::new(Single::new(depth, message.reply::<wire::EntryOut>(), change, exactly(size)))
            }
            Kind::LookupCold => Box::new(ColdLookup::new(depth, directory(fixture::COLD)?, sizes.cold)),
            Kind::Forget => Box::new(Forget::new(depth, directory(fixture::COLD)?, sizes.cold)),
            Kind::OpenRelease => {
                let parent = directory(fixture::WARM)?;
                let names: Vec<Vec<u8>> = (0..sizes.warm).map(fixture::name).collect();
                Box::new(OpenRelease::new(depth, cycle(guest.lookup_all(parent, &names)?)))
            }
            Kind::ReadDirPlus { buffer, large: true } => {
                let nodes = vec![directory(fixture::COLD)?];
                Box::new(ReadDirPlus::new(depth, nodes, buffer, sizes.cold, sizes.cold))
            }
            Kind::ReadDirPlus { buffer, large: false } => {
                let parent = directory(fixture::DIRECTORIES)?;
                // Several queues share the directories, so that no two read the same.
                let mine = (queue..sizes.directories).step_by(self.queues.into());
                let names: Vec<Vec<u8>> = mine.map(fixture::name).collect();
                let nodes = guest.lookup_all(parent, &names)?;
                Box::new(ReadDirPlus::new(
                    depth,
                    nodes,
                    buffer,
                    sizes.entries,
                    LOOKED_UP / usize::from(self.queues),
                ))
            }
            Kind::CreateUnlink { uid, forget } => {
                let parent = directory(fixture::CREATE)?;
                let own = guest.lookup(parent, &fixture::name(queue))?;
                let caller = Caller { uid, gid: uid, ..ROOT_USER };
                // Threads that are started anew for each lap, one a queue, take long to be where they should.
                let kept = if self.is_scaling() { LOOKED_UP / usize::from(self.queues) } else { REMOVED };
                Box::new(CreateUnlink::new(depth, own, caller, (!forget).then_some(kept)))
            }
            Kind::Read { size, file } => {
                let node = directory(file)?;
                let file = (node, guest.open(node, libc::O_RDONLY)?);
                Box::new(Read::new(depth, file, size, offsets(fixture, size)))
            }
            Kind::Write { size, file } => {
                let node = directory(file)?;
                let file = (node, guest.open(node, libc::O_RDWR)?);
                Box::new(scripts::write(depth, file, size, offsets(fixture, size)))
            }
            Kind::GetXattr => {
                let size = fixture::XATTR_VALUE.len() as u32;
                let message = Message::new(opcode::GETXATTR, 0, ROOT_USER)
                    .arg(&wire::GetxattrIn { size, padding: 0 })
                    .name(fixture::XATTR_NAME.as_bytes());
                on_nodes(depth, message.reply_bytes(size), files(guest, fixture::WARM)?, size as usize)
            }
            Kind::ReadLink => {
                let message = Message::new(opcode::READLINK, 0, ROOT_USER).data_out(4095);
                on_nodes(
                    depth,
                    message,
                    files(guest, fixture::LINKS)?,
                    "../warm/some-target-of-usual-length".len(),
                )
            }
            Kind::StatFs => {
                let message = Message::new(opcode::STATFS, 0, ROOT_USER).reply::<wire::StatfsOut>();
                on_nodes(depth, message, vec![wire::ROOT], size_of::<wire::StatfsOut>())
            }
        })
    }

    /// The same as system calls, and the user who makes them; `None` when there is no such thing.
    pub fn native(&self, fixture: &Fixture) -> io::Result<Option<(Work, u32)>> {
        let (sizes, mut uid) = (fixture.sizes, 0);
        let work = match self.kind {
            _ if self.is_scaling() => return Ok(None),
            Kind::Forget => return Ok(None),
            Kind::GetAttr => native::getattr(fixture)?,
            Kind::LookupWarm => native::lookup(fixture, fixture::WARM, sizes.warm)?,
            Kind::LookupCold => native::lookup(fixture, fixture::COLD, sizes.cold)?,
            Kind::OpenRelease => native::open_release(fixture)?,
            Kind::ReadDirPlus { large: true, .. } => native::readdir(fixture, &[fixture::COLD.to_owned()])?,
            Kind::ReadDirPlus { large: false, .. } => {
                let names = (0..sizes.directories)
                    .map(fixture::name)
                    .map(|name| format!("{}/{}", fixture::DIRECTORIES, String::from_utf8_lossy(&name)));
                native::readdir(fixture, &names.collect::<Vec<_>>())?
            }
            Kind::CreateUnlink { uid: user, .. } => {
                uid = user;
                native::create_unlink(fixture)?
            }
            Kind::Read { size, file } => native::read(fixture, file, size, offsets(fixture, size))?,
            Kind::Write { size, file } => native::write(fixture, file, size, offsets(fixture, size))?,
            Kind::GetXattr => native::getxattr(fixture)?,
            Kind::ReadLink => native::readlink(fixture)?,
            Kind::StatFs => native::statfs(fixture)?,
        };
        Ok(Some((work, uid)))
    }
}

/// Some looked-up files.
fn files(guest: &mut Guest, directory: &str) -> Result<Vec<u64>, Failure> {
    let parent = guest.lookup(wire::ROOT, directory.as_bytes())?;
    let names: Vec<Vec<u8>> = (0..ATTRIBUTE_FILES).map(fixture::name).collect();
    guest.lookup_all(parent, &names)
}

/// The same request on one node after another, with a reply of this many bytes.
fn on_nodes(depth: u16, message: Message, nodes: Vec<u64>, reply: usize) -> Box<dyn Script> {
    let mut next = cycle(nodes);
    let change = move |_: usize, message: &mut Message| message.set_node(next());
    Box::new(Single::new(depth, message, change, exactly(reply)))
}

fn offsets(fixture: &Fixture, size: u32) -> impl FnMut() -> u64 + Send + use<> {
    let size = u64::from(size);
    scripts::offsets(fixture.sizes.data / size, size, size <= BLOCK)
}

#[cfg(test)]
mod tests {
    use super::all;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = all().into_iter().map(|workload| workload.name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
