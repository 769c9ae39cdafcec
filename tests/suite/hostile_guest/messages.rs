//! FUSE messages: cut short, too long, lying about their length, on nodes and handles that don't exist, with any
//! room for the reply; names that are none; forgets beyond what was looked up.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use tests::fuse::wire::{self, IN_HEADER, OUT_HEADER, ROOT, opcode};
use tests::fuse::{Client, Session};
use tests::share::Share;
use zerocopy::{FromBytes, IntoBytes};

use crate::{VICTIM, WITNESS, assert_still_serving, with_guest, with_options};

/// A node and a handle that exist: of a file, and of a directory.
#[derive(Clone, Copy)]
struct Targets {
    file: u64,
    file_handle: u64,
    directory: u64,
    directory_handle: u64,
}

fn open_targets(share: &Share, client: &mut Client) -> Targets {
    share.write("target", "0123456789");
    share.write("dir/entry", "");
    let file = client.lookup(ROOT, "target").unwrap().nodeid;
    let directory = client.lookup(ROOT, "dir").unwrap().nodeid;
    let file_handle = client.open(file, libc::O_RDWR).unwrap().fh;
    let directory_handle = client.opendir(directory).unwrap().fh;
    Targets { file, file_handle, directory, directory_handle }
}

/// A request that a guest could well send.
struct Sample {
    opcode: u32,
    node: u64,
    body: Vec<u8>,
    /// Whether the node stands for what the request is about.
    needs_node: bool,
    /// Whether the body says which handle.
    needs_handle: bool,
}

/// One good request for each opcode of `fuse.h` but those that begin and end a session, and for some more
/// numbers that are no opcode.
fn samples(at: Targets, session: &Session) -> Vec<Sample> {
    let mut all = Vec::new();
    let mut add = |opcode, node, parts: &[&[u8]], needs_node, needs_handle| {
        all.push(Sample { opcode, node, body: parts.concat(), needs_node, needs_handle });
    };
    let (dir, file, fh) = (at.directory, at.file, at.file_handle);
    add(opcode::LOOKUP, dir, &[b"entry\0"], true, false);
    add(opcode::GETATTR, file, &[wire::GetAttrIn { getattr_flags: 1, dummy: 0, fh }.as_bytes()], true, true);
    let times = wire::SetAttrIn { valid: wire::fattr::MTIME | wire::fattr::FH, fh, ..Default::default() };
    add(opcode::SETATTR, file, &[times.as_bytes()], true, true);
    add(opcode::READLINK, file, &[], true, false);
    add(opcode::SYMLINK, dir, &[b"new-symlink\0target\0"], true, false);
    let mknod = wire::MknodIn { mode: 0o100_644, ..Default::default() };
    add(opcode::MKNOD, dir, &[mknod.as_bytes(), b"new-node\0"], true, false);
    add(opcode::MKDIR, dir, &[wire::MkdirIn { mode: 0o755, umask: 0 }.as_bytes(), b"new-dir\0"], true, false);
    add(opcode::UNLINK, dir, &[b"none\0"], true, false);
    add(opcode::RMDIR, dir, &[b"none\0"], true, false);
    let rename = wire::RenameIn { newdir: dir };
    add(opcode::RENAME, dir, &[rename.as_bytes(), b"none\0none-either\0"], true, false);
    let rename = wire::Rename2In { newdir: dir, flags: libc::RENAME_NOREPLACE, padding: 0 };
    add(opcode::RENAME2, dir, &[rename.as_bytes(), b"none\0none-either\0"], true, false);
    add(opcode::LINK, dir, &[wire::LinkIn { oldnodeid: file }.as_bytes(), b"new-link\0"], true, false);
    let open = wire::OpenIn { flags: libc::O_RDONLY.cast_unsigned(), open_flags: 0 };
    add(opcode::OPEN, file, &[open.as_bytes()], true, false);
    add(opcode::OPENDIR, dir, &[open.as_bytes()], true, false);
    let create =
        wire::CreateIn { flags: libc::O_RDWR.cast_unsigned(), mode: 0o100_644, umask: 0, open_flags: 0 };
    add(opcode::CREATE, dir, &[create.as_bytes(), b"new-file\0"], true, false);
    add(opcode::TMPFILE, dir, &[create.as_bytes(), b"\0"], true, false);
    let read = wire::ReadIn { fh, size: 10, ..Default::default() };
    add(opcode::READ, file, &[read.as_bytes()], true, true);
    let list = wire::ReadIn { fh: at.directory_handle, size: 512, ..Default::default() };
    add(opcode::READDIR, dir, &[list.as_bytes()], true, true);
    add(opcode::READDIRPLUS, dir, &[list.as_bytes()], true, true);
    let write = wire::WriteIn { fh, size: 4, ..Default::default() };
    add(opcode::WRITE, file, &[write.as_bytes(), b"data"], true, true);
    add(opcode::STATFS, file, &[], true, false);
    add(opcode::SYNCFS, file, &[wire::SyncfsIn::default().as_bytes()], true, false);
    // Handles that don't exist: a sample is sent many times, and the open ones are needed.
    let release = wire::ReleaseIn { fh: fh + 1000, ..Default::default() };
    add(opcode::RELEASE, file, &[release.as_bytes()], true, true);
    add(opcode::RELEASEDIR, dir, &[release.as_bytes()], true, true);
    add(opcode::FLUSH, file, &[wire::FlushIn { fh, ..Default::default() }.as_bytes()], true, true);
    add(opcode::FSYNC, file, &[wire::FsyncIn { fh, ..Default::default() }.as_bytes()], true, true);
    let fsyncdir = wire::FsyncIn { fh: at.directory_handle, ..Default::default() };
    add(opcode::FSYNCDIR, dir, &[fsyncdir.as_bytes()], true, true);
    let ext = wire::SetxattrExtIn { size: 5, ..Default::default() };
    let short = wire::SetxattrIn { size: 5, flags: 0 };
    let fixed = if session.clients[0].setxattr_ext { ext.as_bytes() } else { short.as_bytes() };
    add(opcode::SETXATTR, file, &[fixed, b"user.name\0value"], true, false);
    let get = wire::GetxattrIn { size: 64, padding: 0 };
    add(opcode::GETXATTR, file, &[get.as_bytes(), b"user.name\0"], true, false);
    add(opcode::LISTXATTR, file, &[get.as_bytes()], true, false);
    add(opcode::REMOVEXATTR, file, &[b"user.none\0"], true, false);
    add(opcode::ACCESS, file, &[wire::AccessIn { mask: 4, padding: 0 }.as_bytes()], true, false);
    let lock = wire::LkIn { fh, owner: 1, end: 10, kind: 0, ..Default::default() };
    for op in [opcode::GETLK, opcode::SETLK, opcode::SETLKW] {
        add(op, file, &[lock.as_bytes()], true, true);
    }
    add(opcode::BMAP, file, &[wire::BmapIn::default().as_bytes()], true, false);
    add(opcode::IOCTL, file, &[wire::IoctlIn { fh, ..Default::default() }.as_bytes()], true, true);
    add(opcode::POLL, file, &[wire::PollIn { fh, ..Default::default() }.as_bytes()], true, true);
    let fallocate = wire::FallocateIn { fh, length: 4, ..Default::default() };
    add(opcode::FALLOCATE, file, &[fallocate.as_bytes()], true, true);
    let seek = wire::LseekIn { fh, whence: libc::SEEK_DATA.cast_unsigned(), ..Default::default() };
    add(opcode::LSEEK, file, &[seek.as_bytes()], true, true);
    let copy = wire::CopyFileRangeIn {
        fh_in: fh,
        nodeid_out: file,
        fh_out: fh,
        off_out: 100,
        len: 4,
        ..Default::default()
    };
    add(opcode::COPY_FILE_RANGE, file, &[copy.as_bytes()], true, true);
    add(opcode::COPY_FILE_RANGE_64, file, &[copy.as_bytes()], true, true);
    let statx = wire::StatxIn { fh, getattr_flags: 1, sx_mask: 0x7ff, ..Default::default() };
    add(opcode::STATX, file, &[statx.as_bytes()], true, true);
    add(opcode::INTERRUPT, 0, &[&8u64.to_ne_bytes()], false, false);
    // Request numbers that nobody serves.
    for number in [0, 7, 19, 41, 48, 49, 54, 63, 64, 4096, 1 << 20, u32::MAX - 1, u32::MAX] {
        add(number, file, &[&[0; 64]], true, false);
    }
    all
}

/// A reply, its form checked: `None` where nothing was written.
fn reply_of(message: &[u8], request: &wire::InHeader) -> Option<Result<Vec<u8>, Errno>> {
    if message.is_empty() {
        return None;
    }
    let (header, body) = wire::OutHeader::read_from_prefix(message).expect("a reply has a header");
    assert_eq!(header.len as usize, message.len(), "{request:?}: used length and header differ");
    assert_eq!(header.unique, request.unique, "{request:?}: another request's reply");
    if header.error == 0 {
        return Some(Ok(body.to_vec()));
    }
    assert!((-4095..0).contains(&header.error) && body.is_empty(), "{request:?}: {header:?}");
    Some(Err(Errno::from_raw(-header.error)))
}

/// Sends `bytes` behind a header that claims `claimed` bytes in all.
fn send(
    client: &mut Client,
    sample: &Sample,
    bytes: &[u8],
    claimed: u32,
    room: usize,
) -> Option<Result<Vec<u8>, Errno>> {
    let mut header = client.header(sample.opcode, sample.node, bytes.len());
    header.len = claimed;
    reply_of(&client.raw_message(&[header.as_bytes(), bytes].concat(), room), &header)
}

const ROOM: usize = 4096;

/// What is in a directory, with what the guest could have changed.
fn state(dir: &Path) -> BTreeSet<(std::path::PathBuf, u32, u64, i64)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            found.extend(state(&path));
        }
        found.insert((path, metadata.mode(), metadata.size(), metadata.mtime()));
    }
    found
}

/// What lets the daemon understand, and hand to helpers, the most.
const EVERYTHING: &[&str] = &[
    "--xattr",
    "--posix-acl",
    "--security-label",
    "--killpriv-v2",
    "--locks=posix,flock",
    "--ioctl",
    "--writeback",
    "--allow-direct-io",
    "--thread-pool-size=2",
];

/// With few options and with many.
fn in_each_way(test: impl Fn(&Share, &mut Session) + Send + Sync) {
    with_guest(&test);
    with_options(EVERYTHING, &test);
}

/// Without this, a mistake in a sample would make the other tests pass for a wrong reason.
#[test]
fn the_whole_samples_are_understood() {
    with_guest(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        let mut served = BTreeSet::new();
        for sample in samples(at, session) {
            let claimed = (IN_HEADER + sample.body.len()) as u32;
            let reply = send(&mut session.clients[VICTIM], &sample, &sample.body, claimed, ROOM);
            let meaning = match reply {
                None => sample.opcode == opcode::INTERRUPT,
                Some(Ok(_)) => served.insert(sample.opcode),
                // READLINK of a file; names and handles that are not there; what is not served.
                Some(Err(Errno::EINVAL)) => sample.opcode == opcode::READLINK,
                Some(Err(errno)) => {
                    matches!(errno, Errno::ENOENT | Errno::EBADF | Errno::ENODATA | Errno::ENOSYS)
                }
            };
            assert!(meaning, "opcode {}: {reply:?}", sample.opcode);
        }
        assert!(served.len() >= 26, "only {served:?} succeed");
    });
}

#[test]
fn every_request_cut_at_every_length() {
    in_each_way(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        let before = state(share.path());
        for sample in samples(at, session) {
            for len in 0..sample.body.len() {
                let claimed = (IN_HEADER + len) as u32;
                let client = &mut session.clients[VICTIM];
                let reply = send(client, &sample, &sample.body[..len], claimed, ROOM);
                // Nothing may be done on half a request; "ENOENT" and the like would mean that it was.
                let fine = match reply {
                    None => sample.opcode == opcode::INTERRUPT,
                    Some(Err(errno)) => matches!(errno, Errno::EINVAL | Errno::ENOSYS),
                    Some(Ok(_)) => is_whole(sample.opcode, len),
                };
                assert!(fine, "opcode {} cut to {len} bytes: {reply:?}", sample.opcode);
            }
            assert_still_serving(session, WITNESS);
        }
        assert_eq!(state(share.path()), before, "half a request did something");
    });
}

/// Requests whose last bytes are not looked at.
fn is_whole(op: u32, _len: usize) -> bool {
    matches!(op, opcode::SYNCFS)
}

#[test]
fn headers_that_lie_about_their_length() {
    in_each_way(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        let before = state(share.path());
        for sample in samples(at, session) {
            let len = (IN_HEADER + sample.body.len()) as u32;
            for claimed in [0, 1, 39, len + 1, len + 4096, 1 << 20, 1 << 30, i32::MAX as u32, u32::MAX] {
                let reply = send(&mut session.clients[VICTIM], &sample, &sample.body, claimed, ROOM);
                let fine = match reply {
                    None => sample.opcode == opcode::INTERRUPT,
                    Some(Err(errno)) => matches!(errno, Errno::EINVAL | Errno::ENOSYS),
                    Some(Ok(_)) => false,
                };
                assert!(fine, "opcode {} of {len} bytes claims {claimed}: {reply:?}", sample.opcode);
            }
        }
        assert_still_serving(session, VICTIM);
        assert_eq!(state(share.path()), before);
    });
}

#[test]
fn requests_that_are_too_long() {
    in_each_way(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        for sample in samples(at, session) {
            for extra in [1, 8, 4096, 60_000] {
                let body = [&sample.body[..], &vec![b'x'; extra]].concat();
                let claimed = (IN_HEADER + body.len()) as u32;
                // What it means is the request's business; that there is an answer is ours.
                let reply = send(&mut session.clients[VICTIM], &sample, &body, claimed, ROOM);
                assert_eq!(reply.is_none(), sample.opcode == opcode::INTERRUPT, "opcode {}", sample.opcode);
            }
            assert_still_serving(session, VICTIM);
        }
    });
}

#[test]
fn nodes_and_handles_that_do_not_exist() {
    in_each_way(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        let forgotten = session.client().lookup(at.directory, "entry").unwrap().nodeid;
        session.client().forget(forgotten, 1);
        let before = state(share.path());
        for sample in samples(at, session) {
            for node in [0, forgotten, 2 << 40, 1 << 63, u64::MAX - 1, u64::MAX] {
                let sample = Sample { node, body: sample.body.clone(), ..sample };
                let claimed = (IN_HEADER + sample.body.len()) as u32;
                let reply = send(&mut session.clients[VICTIM], &sample, &sample.body, claimed, ROOM);
                let refused = matches!(reply, Some(Err(_)));
                assert!(
                    refused || !sample.needs_node,
                    "opcode {} on node {node:#x}: {reply:?}",
                    sample.opcode
                );
            }
            if sample.needs_handle {
                unknown_handles(session, &sample, at);
            }
        }
        assert_still_serving(session, VICTIM);
        assert_eq!(state(share.path()), before);
    });
}

fn unknown_handles(session: &mut Session, sample: &Sample, at: Targets) {
    // The other one's handle is as wrong as one that doesn't exist.
    let other = if sample.node == at.file { at.directory_handle } else { at.file_handle };
    let offset = match sample.opcode {
        opcode::GETATTR | opcode::SETATTR | opcode::STATX => 8,
        _ => 0,
    };
    for handle in [other, u64::MAX, 1 << 63, at.file_handle + (1 << 32)] {
        let mut body = sample.body.clone();
        body[offset..offset + 8].copy_from_slice(&handle.to_ne_bytes());
        let claimed = (IN_HEADER + body.len()) as u32;
        let reply = send(&mut session.clients[VICTIM], sample, &body, claimed, ROOM);
        let refused = matches!(reply, Some(Err(_)));
        assert!(refused, "opcode {} by handle {handle:#x}: {reply:?}", sample.opcode);
    }
}

/// Requests that change the share; their reply has to have room before they do.
const CHANGES: [u32; 9] = [
    opcode::SYMLINK,
    opcode::MKNOD,
    opcode::MKDIR,
    opcode::LINK,
    opcode::CREATE,
    opcode::TMPFILE,
    opcode::WRITE,
    opcode::SETATTR,
    opcode::COPY_FILE_RANGE,
];

#[test]
fn room_for_the_reply_that_is_too_small() {
    in_each_way(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        let before = state(share.path());
        let fds = tests::procfs::open_fds(session.daemon.worker()).len();
        for sample in samples(at, session) {
            let claimed = (IN_HEADER + sample.body.len()) as u32;
            for room in 0..OUT_HEADER {
                let reply = send(&mut session.clients[VICTIM], &sample, &sample.body, claimed, room);
                assert_eq!(reply, None, "opcode {}: {room} bytes hold no header", sample.opcode);
            }
            if !CHANGES.contains(&sample.opcode) {
                continue;
            }
            // Just the header: an error fits, the result doesn't.
            for room in OUT_HEADER..OUT_HEADER + 8 {
                let reply = send(&mut session.clients[VICTIM], &sample, &sample.body, claimed, room);
                assert!(matches!(reply, Some(Err(_))), "opcode {} in {room} bytes: {reply:?}", sample.opcode);
            }
        }
        assert_eq!(state(share.path()), before, "something was done that could not be told");
        // An OPEN that can't be answered leaves no handle behind.
        assert_eq!(tests::procfs::open_fds(session.daemon.worker()).len(), fds);
        assert_still_serving(session, VICTIM);
    });
}

/// What is no name of a directory entry.
const NO_NAMES: [&[u8]; 8] = [b"", b".", b"..", b"/", b"a/b", b"../outside", b"/etc/passwd", b"a\0b"];

/// All operations that take names, with this one in each place.
fn with_name(name: &[u8], at: Targets) -> Vec<(&'static str, u32, Vec<u8>)> {
    let name = [name, b"\0"].concat();
    let name = &name[..];
    let dir = at.directory;
    let mknod = wire::MknodIn { mode: 0o100_644, ..Default::default() };
    let mkdir = wire::MkdirIn { mode: 0o755, umask: 0 };
    let create =
        wire::CreateIn { flags: libc::O_RDWR.cast_unsigned(), mode: 0o100_644, umask: 0, open_flags: 0 };
    let rename = wire::RenameIn { newdir: dir };
    let rename2 = wire::Rename2In { newdir: dir, flags: libc::RENAME_NOREPLACE, padding: 0 };
    let link = wire::LinkIn { oldnodeid: at.file };
    let all: [(_, _, &[&[u8]]); 12] = [
        ("LOOKUP", opcode::LOOKUP, &[name]),
        ("MKNOD", opcode::MKNOD, &[mknod.as_bytes(), name]),
        ("MKDIR", opcode::MKDIR, &[mkdir.as_bytes(), name]),
        ("SYMLINK", opcode::SYMLINK, &[name, b"target\0"]),
        ("UNLINK", opcode::UNLINK, &[name]),
        ("RMDIR", opcode::RMDIR, &[name]),
        ("RENAME from", opcode::RENAME, &[rename.as_bytes(), name, b"new\0"]),
        ("RENAME to", opcode::RENAME, &[rename.as_bytes(), b"entry\0", name]),
        ("RENAME2 from", opcode::RENAME2, &[rename2.as_bytes(), name, b"new\0"]),
        ("RENAME2 to", opcode::RENAME2, &[rename2.as_bytes(), b"entry\0", name]),
        ("LINK", opcode::LINK, &[link.as_bytes(), name]),
        ("CREATE", opcode::CREATE, &[create.as_bytes(), name]),
    ];
    all.into_iter().map(|(what, opcode, parts)| (what, opcode, parts.concat())).collect()
}

#[test]
fn names_that_are_none_are_refused_in_every_operation() {
    with_guest(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        let before = state(share.path());
        for name in NO_NAMES {
            for (what, opcode, body) in with_name(name, at) {
                let dots = name == b"." || name == b"..";
                if dots && opcode == opcode::LOOKUP {
                    // The kernel's export support looks these up; `outside` has what they may lead to.
                    continue;
                }
                let client = &mut session.clients[VICTIM];
                let reply = client.raw(opcode, at.directory, &body, 4096);
                // The decoder's answer. The kernel has others: ENOENT, EEXIST, ENOTEMPTY, EBUSY.
                assert_eq!(reply, Err(Errno::EINVAL), "{what} {:?}", String::from_utf8_lossy(name));
            }
        }
        let long = vec![b'x'; 256];
        for (what, opcode, body) in with_name(&long, at) {
            let reply = session.clients[VICTIM].raw(opcode, at.directory, &body, 4096);
            assert_eq!(reply, Err(Errno::ENAMETOOLONG), "{what} with 256 bytes");
        }
        assert_eq!(state(share.path()), before);
    });
}

#[test]
fn the_parent_of_the_share_is_the_share() {
    with_guest(|share, session| {
        let at = open_targets(share, &mut session.clients[VICTIM]);
        let client = &mut session.clients[VICTIM];
        for name in [".", ".."] {
            assert_eq!(client.lookup(ROOT, name).unwrap().nodeid, ROOT, "{name} of the root");
        }
        assert_eq!(client.lookup(at.directory, "..").unwrap().nodeid, ROOT);
        assert_eq!(client.lookup(at.directory, ".").unwrap().nodeid, at.directory);
    });
}

#[test]
fn symbolic_links_are_never_followed_on_the_host() {
    with_guest(|share, session| {
        let secret = tests::share::TempDir::on_disk();
        fs::write(secret.path().join("secret"), "secret").unwrap();
        let client = &mut session.clients[VICTIM];
        client.symlink(ROOT, "out", secret.path()).unwrap();
        client.symlink(ROOT, "up", "../../..").unwrap();
        client.symlink(ROOT, "file-link", "file").unwrap();
        for link in ["out", "up", "file-link"] {
            let entry = client.lookup(ROOT, link).unwrap();
            assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK, "{link} is itself");
            assert!(client.lookup(entry.nodeid, "secret").is_err(), "{link} is no directory");
            assert!(client.open(entry.nodeid, libc::O_RDONLY).is_err(), "{link} can't be opened");
            assert!(client.opendir(entry.nodeid).is_err());
        }
        // CREATE doesn't follow one either.
        assert!(client.create(ROOT, "file-link", libc::O_RDWR | libc::O_TRUNC, 0o100_644).is_err());
        assert_eq!(share.read("file"), b"good");
    });
}

#[test]
fn more_is_forgotten_than_was_looked_up() {
    with_guest(|share, session| {
        share.write("other", "");
        for _ in 0..3 {
            let client = &mut session.clients[VICTIM];
            let node = client.lookup(ROOT, "other").unwrap().nodeid;
            client.forget(node, u64::MAX);
            assert!(client.getattr(node, None).is_err(), "forgotten");
            client.forget(node, 1);
            client.forget(node, u64::MAX);
            let one = |nodeid, nlookup| wire::ForgetOne { nodeid, nlookup };
            client.batch_forget(&[one(node, 5), one(node, u64::MAX), one(0, 1), one(u64::MAX, u64::MAX)]);
            // The root can't be forgotten.
            client.forget(ROOT, u64::MAX);
            client.batch_forget(&[one(ROOT, u64::MAX), one(ROOT, 1)]);
            client.getattr(ROOT, None).expect("the root is there for ever");
            assert_still_serving(session, VICTIM);
        }
    });
}

#[test]
fn forgets_of_any_form() {
    with_guest(|_, session| {
        let client = &mut session.clients[VICTIM];
        for count in [0, 1, 2, 3, 0x1000_0000, u32::MAX] {
            let body = [wire::BatchForgetIn { count, dummy: 0 }.as_bytes(), &[0xff; 32]].concat();
            // On a request queue, with room for a reply that the protocol doesn't have.
            let header = client.header(opcode::BATCH_FORGET, 0, body.len());
            assert!(client.raw_message(&[header.as_bytes(), &body].concat(), ROOM).is_empty());
        }
        for len in 0..8 {
            let header = client.header(opcode::FORGET, 5, len);
            assert!(client.raw_message(&[header.as_bytes(), &vec![0xff; len]].concat(), ROOM).is_empty());
        }
    });
}

#[test]
fn sessions_begin_and_end_in_any_order() {
    with_guest(|_, session| {
        for round in 0..3 {
            let client = &mut session.clients[VICTIM];
            client.destroy().unwrap();
            // Without a session; what comes back doesn't matter, that it comes does.
            let _ = client.lookup(ROOT, "file");
            let _ = client.getattr(ROOT, None);
            client.destroy().unwrap();
            for major in [0, 6, 8, u32::MAX] {
                let request = wire::InitIn { major, minor: 45, flags: u32::MAX, ..Default::default() };
                let _ = client.raw(opcode::INIT, 0, request.as_bytes(), OUT_HEADER + 64);
            }
            for len in 0..size_of::<wire::InitIn>() {
                let request = wire::InitIn { major: 7, minor: 45, ..Default::default() };
                let _ = client.raw(opcode::INIT, 0, &request.as_bytes()[..len], OUT_HEADER + 64);
            }
            let _ = client.raw(opcode::INIT, round, &[0xff; 64], OUT_HEADER);
            client.init(wire::init::GUEST).expect("a session begins again");
            client.init(wire::init::GUEST).expect("and once more");
        }
    });
}
