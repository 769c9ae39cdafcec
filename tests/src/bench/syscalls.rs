//! System calls per request, counted by strace on all processes of a daemon, opcode by opcode.
//!
//! Under strace a daemon is slow, so that it finds more requests waiting than it usually would: its waiting and
//! notifying calls are fewer here than in a run without strace at the same depth.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zerocopy::FromBytes;

use super::Failure;
use super::engine::{Script, once};
use super::fixture::{self, BLOCK, Fixture};
use super::guest::{Guest, ROOT_USER};
use super::message::{Message, Response};
use crate::fuse::Caller;
use crate::fuse::wire::{self, opcode};
use crate::share::TempDir;

/// Requests of each kind.
const COUNT: usize = 200;
const LIMIT: Duration = Duration::from_secs(60);

/// Calls by name, and the number of requests (or directory entries) that they were made for.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Calls {
    /// How many requests or entries.
    pub requests: u64,
    /// How many of each system call.
    pub by_name: BTreeMap<String, u64>,
}

impl Calls {
    /// All calls, per request.
    pub fn per_request(&self) -> f64 {
        self.by_name.values().sum::<u64>() as f64 / self.requests.max(1) as f64
    }
}

/// A message list sent with some in flight; the replies' bodies are kept.
struct Batch {
    messages: Vec<Message>,
    next: usize,
    /// Which message each slot has.
    slots: Vec<usize>,
    bodies: Vec<Vec<u8>>,
    high_priority: bool,
}

impl Script for Batch {
    fn next(&mut self, slot: usize) -> Option<&mut Message> {
        let message = self.messages.get_mut(self.next)?;
        self.slots[slot] = self.next;
        self.next += 1;
        Some(message)
    }

    fn take(&mut self, slot: usize, response: Response<'_>) -> Result<u64, Failure> {
        if !self.high_priority {
            let mut body = vec![0; response.check()?];
            response.read(0, &mut body);
            self.bodies[self.slots[slot]] = body;
        }
        Ok(1)
    }

    fn high_priority(&self) -> bool {
        self.high_priority
    }
}

/// Counts one opcode after another on one guest.
struct Counter<'a> {
    guest: &'a mut Guest,
    depth: u16,
    counted: Vec<(String, Calls)>,
}

/// All counts for one daemon, which must have extended attributes on; `depth` requests in flight.
pub fn count(guest: &mut Guest, fixture: &Fixture, depth: u16) -> Result<Vec<(String, Calls)>, Failure> {
    let mut counter = Counter { guest, depth, counted: Vec::new() };
    counter.files(fixture)?;
    counter.directories(fixture)?;
    counter.creation("", ROOT_USER)?;
    counter.creation(" as uid 1000", Caller { uid: 1000, gid: 1000, ..ROOT_USER })?;
    Ok(counter.counted)
}

impl Counter<'_> {
    /// Sends messages under strace; returns the replies' bodies.
    fn count(&mut self, name: &str, messages: Vec<Message>) -> Result<Vec<Vec<u8>>, Failure> {
        let requests = messages.len();
        let high_priority = name == "FORGET";
        let mut batch = Batch {
            bodies: vec![Vec::new(); requests],
            messages,
            next: 0,
            slots: vec![0; self.depth.into()],
            high_priority,
        };
        let strace = Strace::attach(self.guest.tree.pids())?;
        let done = once(self.guest, &mut batch, self.depth, LIMIT);
        let by_name = strace.finish()?;
        if let Some(failure) = done.failure {
            eprintln!("{name}: {failure}");
            return Err(Failure::Malformed("a request failed under strace"));
        }
        self.counted.push((name.to_owned(), Calls { requests: requests as u64, by_name }));
        Ok(batch.bodies)
    }

    /// One message for each of these, with the reply's fixed part.
    fn each<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        message: impl Fn(T) -> Message,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        self.count(name, items.into_iter().map(message).collect())
    }

    fn files(&mut self, fixture: &Fixture) -> Result<(), Failure> {
        let new = |opcode, node| Message::new(opcode, node, ROOT_USER);
        let cold = self.guest.lookup(wire::ROOT, fixture::COLD.as_bytes())?;
        let lookup = |index| new(opcode::LOOKUP, cold).name(&fixture::name(index)).reply::<wire::EntryOut>();
        let count = COUNT.min(fixture.sizes.cold);
        let nodes = nodes(&self.each("LOOKUP (unknown)", 0..count, lookup)?);
        self.each("LOOKUP (known)", 0..count, lookup)?;
        self.each("GETATTR", &nodes, |node| {
            new(opcode::GETATTR, *node).arg(&wire::GetAttrIn::default()).reply::<wire::AttrOut>()
        })?;
        self.each("SETATTR (mode)", &nodes, |node| {
            let change = wire::SetAttrIn { valid: wire::fattr::MODE, mode: 0o100_600, ..Default::default() };
            new(opcode::SETATTR, *node).arg(&change).reply::<wire::AttrOut>()
        })?;
        let opened = self.each("OPEN for reading", &nodes, |node| {
            let flags = libc::O_RDONLY.cast_unsigned();
            new(opcode::OPEN, *node).arg(&wire::OpenIn { flags, open_flags: 0 }).reply::<wire::OpenOut>()
        })?;
        let handles = parse(&opened, |open: wire::OpenOut| open.fh);
        self.each("RELEASE of it", nodes.iter().zip(handles), |(node, fh)| {
            new(opcode::RELEASE, *node).arg(&wire::ReleaseIn { fh, ..Default::default() })
        })?;
        let data = self.guest.lookup(wire::ROOT, fixture::WRITE_SMALL.as_bytes())?;
        let opened = self.each("OPEN for writing", 0..COUNT, |_| {
            let flags = libc::O_RDWR.cast_unsigned();
            new(opcode::OPEN, data).arg(&wire::OpenIn { flags, open_flags: 0 }).reply::<wire::OpenOut>()
        })?;
        let handles = parse(&opened, |open: wire::OpenOut| open.fh);
        let size = BLOCK as u32;
        self.each("READ (4 KiB)", &handles, |fh| {
            new(opcode::READ, data).arg(&wire::ReadIn { fh: *fh, size, ..Default::default() }).data_out(size)
        })?;
        self.each("WRITE (4 KiB)", &handles, |fh| {
            let write =
                wire::WriteIn { fh: *fh, size, flags: libc::O_RDWR.cast_unsigned(), ..Default::default() };
            new(opcode::WRITE, data).arg(&write).data_in(size).reply::<wire::WriteOut>()
        })?;
        self.each("FLUSH", &handles, |fh| {
            new(opcode::FLUSH, data).arg(&wire::FlushIn { fh: *fh, ..Default::default() })
        })?;
        self.each("RELEASE", &handles, |fh| {
            new(opcode::RELEASE, data).arg(&wire::ReleaseIn { fh: *fh, ..Default::default() })
        })?;
        self.each("STATFS", 0..COUNT, |_| new(opcode::STATFS, wire::ROOT).reply::<wire::StatfsOut>())?;
        self.attributes()?;
        self.each("FORGET", &nodes, |node| {
            new(opcode::FORGET, *node).arg(&wire::ForgetIn { nlookup: 2 }).no_reply()
        })?;
        Ok(())
    }

    fn attributes(&mut self) -> Result<(), Failure> {
        let new = |opcode, node| Message::new(opcode, node, ROOT_USER);
        let warm = self.guest.lookup(wire::ROOT, fixture::WARM.as_bytes())?;
        let file = self.guest.lookup(warm, &fixture::name(0))?;
        let size = fixture::XATTR_VALUE.len() as u32;
        self.each("GETXATTR", 0..COUNT, |_| {
            let request = wire::GetxattrIn { size, padding: 0 };
            new(opcode::GETXATTR, file).arg(&request).name(fixture::XATTR_NAME.as_bytes()).reply_bytes(size)
        })?;
        let links = self.guest.lookup(wire::ROOT, fixture::LINKS.as_bytes())?;
        let link = self.guest.lookup(links, &fixture::name(0))?;
        self.each("READLINK", 0..COUNT, |_| new(opcode::READLINK, link).data_out(4095))?;
        Ok(())
    }

    fn directories(&mut self, fixture: &Fixture) -> Result<(), Failure> {
        let new = |opcode, node| Message::new(opcode, node, ROOT_USER);
        let parent = self.guest.lookup(wire::ROOT, fixture::DIRECTORIES.as_bytes())?;
        let names: Vec<Vec<u8>> = (0..fixture.sizes.directories).map(fixture::name).collect();
        let directories = self.guest.lookup_all(parent, &names)?;
        let flags = (libc::O_RDONLY | libc::O_DIRECTORY).cast_unsigned();
        let opened = self.each("OPENDIR", &directories, |node| {
            new(opcode::OPENDIR, *node).arg(&wire::OpenIn { flags, open_flags: 0 }).reply::<wire::OpenOut>()
        })?;
        let handles = parse(&opened, |open: wire::OpenOut| open.fh);
        let pairs: Vec<(u64, u64)> = directories.iter().copied().zip(handles).collect();
        let size = BLOCK as u32;
        let replies = self.each("READDIRPLUS (per entry)", &pairs, |(node, fh)| {
            new(opcode::READDIRPLUS, *node)
                .arg(&wire::ReadIn { fh: *fh, size, ..Default::default() })
                .data_out(size)
        })?;
        if let Some((_, calls)) = self.counted.last_mut() {
            calls.requests = replies.iter().map(|data| count_entries(data)).sum();
        }
        self.each("RELEASEDIR", &pairs, |(node, fh)| {
            new(opcode::RELEASEDIR, *node).arg(&wire::ReleaseIn { fh: *fh, ..Default::default() })
        })?;
        Ok(())
    }

    fn creation(&mut self, who: &str, caller: Caller) -> Result<(), Failure> {
        let new = |opcode, node| Message::new(opcode, node, caller);
        let parent = self.guest.lookup(wire::ROOT, fixture::CREATE.as_bytes())?;
        let parent = self.guest.lookup(parent, &fixture::name(0))?;
        let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).cast_unsigned();
        let create = wire::CreateIn { flags, mode: libc::S_IFREG | 0o644, umask: 0o022, open_flags: 0 };
        let created = self.each(&format!("CREATE{who}"), 0..COUNT, |index| {
            new(opcode::CREATE, parent).arg(&create).name(&fixture::name(index)).reply::<wire::CreateOut>()
        })?;
        let handles = parse(&created, |c: wire::CreateOut| (c.entry.nodeid, c.open.fh));
        self.each(&format!("RELEASE (created{who})"), &handles, |(node, fh)| {
            new(opcode::RELEASE, *node).arg(&wire::ReleaseIn { fh: *fh, ..Default::default() })
        })?;
        self.each(&format!("UNLINK{who}"), 0..COUNT, |index| {
            new(opcode::UNLINK, parent).name(&fixture::name(index))
        })?;
        let mkdir = wire::MkdirIn { mode: 0o755, umask: 0o022 };
        self.each(&format!("MKDIR{who}"), 0..COUNT, |index| {
            new(opcode::MKDIR, parent).arg(&mkdir).name(&fixture::name(index)).reply::<wire::EntryOut>()
        })?;
        self.each(&format!("RMDIR{who}"), 0..COUNT, |index| {
            new(opcode::RMDIR, parent).name(&fixture::name(index))
        })?;
        Ok(())
    }
}

fn nodes(bodies: &[Vec<u8>]) -> Vec<u64> {
    parse(bodies, |entry: wire::EntryOut| entry.nodeid)
}

fn parse<T: FromBytes, R>(bodies: &[Vec<u8>], part: impl Fn(T) -> R) -> Vec<R> {
    bodies.iter().filter_map(|body| T::read_from_bytes(body).ok()).map(part).collect()
}

/// Entries in a READDIRPLUS reply.
fn count_entries(mut data: &[u8]) -> u64 {
    let mut count = 0;
    while let Ok((entry, rest)) = wire::Direntplus::read_from_prefix(data) {
        count += 1;
        data = rest.get((entry.dirent.namelen as usize).next_multiple_of(8)..).unwrap_or_default();
    }
    count
}

/// A strace that counts.
struct Strace {
    child: Child,
    output: TempDir,
}

impl Strace {
    /// Returns when it is attached to all of these processes.
    fn attach(pids: impl Iterator<Item = i32>) -> io::Result<Strace> {
        let output = TempDir::short();
        let pids: Vec<i32> = pids.collect();
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "name,calls", "-o"]).arg(output.path().join("counts"));
        command.args(pids.iter().map(|pid| format!("--attach={pid}")));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|e| {
            io::Error::new(e.kind(), format!("cannot start strace (of the package of that name): {e}"))
        })?;
        let mut attached = 0;
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is a pipe")).lines();
        while attached < pids.len() {
            let line =
                lines.next().ok_or_else(|| io::Error::other("strace ended before it was attached"))??;
            attached += usize::from(line.contains(" attached"));
        }
        // What it says when it detaches must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Strace { child, output })
    }

    /// Detaches it and reads what it counted.
    fn finish(mut self) -> io::Result<BTreeMap<String, u64>> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        self.child.wait()?;
        let text = fs::read_to_string(self.output.path().join("counts"))?;
        Ok(parse_counts(&text))
    }
}

/// Lines of a name and a number; head, rule and sum are none or are left out.
fn parse_counts(text: &str) -> BTreeMap<String, u64> {
    let parse = |line: &str| {
        let (name, calls) = line.trim().split_once(char::is_whitespace)?;
        Some((name.to_owned(), calls.trim().parse().ok()?))
    };
    text.lines().filter_map(parse).filter(|(name, _)| name != "total").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let text = "syscall              calls\n---------------- ---------\nepoll_wait              12\n\
                    read                     3\n---------------- ---------\ntotal                   15\n";
        let calls = Calls { requests: 5, by_name: parse_counts(text) };
        assert_eq!(calls.by_name, BTreeMap::from([("epoll_wait".into(), 12), ("read".into(), 3)]));
        assert_eq!(calls.per_request(), 3.0);
    }
}
