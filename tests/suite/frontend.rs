//! The daemon under test through the in-process front end: negotiation, rings in each form, every ordinary
//! file operation, start and stop.
//!
//! `VIRTIOFSD_TEST_DAEMON` chooses another daemon than ours: `1.13.3`, `1.14.0`, or a path. (The C daemon lacks
//! several of the options and requests that are used here.)

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, Handover};
use tests::frontend::device::{features, protocol_features};
use tests::frontend::memory::PAGE;
use tests::frontend::messages::{FLAG_NEED_REPLY, FLAG_VERSION, Request};
use tests::frontend::queue::{HEADROOM, Segment};
use tests::frontend::ring::{DESC_NEXT, DESC_WRITE, Descriptor, Used};
use tests::frontend::{Device, DeviceConfig, Shape, Wait};
use tests::fuse::wire::{self, IN_HEADER, OUT_HEADER, ROOT, fattr, opcode};
use tests::fuse::{Caller, Client, Session, SetAttr};
use tests::peers::{Implementation, UpstreamVersion};
use tests::share::Share;
use zerocopy::{FromBytes, IntoBytes};

const LIMIT: Duration = Duration::from_secs(60);

fn under_test() -> Implementation {
    Implementation::under_test()
}

/// The daemon under test on a new share.
fn command(share: &Share) -> DaemonCommand {
    DaemonCommand::serving(&under_test(), share.path())
}

/// Runs `test` with a fresh share and a client of the daemon under test, and ends all in the orderly way.
fn with_client(test: impl FnOnce(&Share, &mut Client) + Send) {
    with_config(DeviceConfig::default(), |share, session| test(share, session.client()));
}

fn with_config(config: DeviceConfig, test: impl FnOnce(&Share, &mut Session) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = Session::start(command(&share).args(under_test().xattr_arguments()), config);
        test(&share, &mut session);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len).collect()
}

#[test]
fn negotiates_as_with_qemu() {
    bounded(LIMIT, || {
        let share = Share::new();
        let daemon = command(&share).start();
        let mut device = Device::connect(daemon.connect(), DeviceConfig::default()).unwrap();
        let both = features::VERSION_1 | features::INDIRECT_DESC | features::EVENT_IDX;
        assert_eq!(device.features(), both | features::PROTOCOL_FEATURES);
        let protocol = device.protocol_features();
        assert_eq!(protocol & protocol_features::CONFIG, 0, "no tag, no configuration space");
        assert_eq!(protocol, protocol_features::QEMU);
        device.reset().unwrap();
        assert!(device.offered_queues() >= 2);
    });
}

#[test]
fn announces_its_tag() {
    bounded(LIMIT, || {
        let share = Share::new();
        let daemon = command(&share).args(["--tag", "the-tag"]).start();
        let device = Device::connect(daemon.connect(), DeviceConfig::default()).unwrap();
        let space = device.config_space(0, 40).unwrap();
        assert_eq!(&space[..36], [&b"the-tag"[..], &[0; 29]].concat());
        let queues = u32::from_le_bytes(*space[36..].first_chunk().unwrap());
        assert_eq!(u64::from(queues) + 1, device.offered_queues());
    });
}

#[test]
fn makes_its_own_socket_and_ends_with_its_front_end() {
    bounded(LIMIT, || {
        let share = Share::new();
        let session = Session::start(command(&share).handover(Handover::Path), DeviceConfig::default());
        let mode = fs::metadata(session.daemon.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

#[test]
fn sigterm_ends_it_with_status_1() {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = Session::start(command(&share), DeviceConfig::default());
        assert_eq!(session.daemon.stop(Signal::SIGTERM).code(), Some(1));
    });
}

#[test]
fn survives_init_again_and_unknown_requests() {
    with_client(|share, client| {
        share.write("file", "x");
        assert_eq!(client.raw(999, ROOT, &[], OUT_HEADER + 64), Err(Errno::ENOSYS));
        assert_eq!(client.raw(opcode::BMAP, ROOT, &[0; 16], OUT_HEADER + 8), Err(Errno::ENOSYS));
        client.init(wire::init::GUEST).unwrap();
        assert_eq!(client.lookup(ROOT, "file").unwrap().attr.size, 1);
        assert_eq!(client.lookup(ROOT, "absent"), Err(Errno::ENOENT));
    });
}

#[test]
fn init_answers_as_upstream_does() {
    with_config(DeviceConfig::default(), |_, session| {
        let init = session.init;
        assert_eq!((init.major, init.time_gran), (7, 1));
        assert!(init.minor >= 38, "{init:?}");
        // Ours gives more to a guest whose kernel may be set to use it.
        let sizes = if under_test() == Implementation::Ours { (4 << 20, 1024) } else { (1 << 20, 256) };
        assert_eq!((init.max_write, init.max_pages), sizes, "{init:?}");
        let flags = u64::from(init.flags) | u64::from(init.flags2) << 32;
        let least = wire::init::PARALLEL_DIROPS | wire::init::BIG_WRITES | wire::init::DO_READDIRPLUS;
        assert_eq!(flags & least, least);
        assert_eq!(flags & (wire::init::WRITEBACK_CACHE | wire::init::POSIX_ACL), 0);
    });
}

#[test]
fn files_are_written_and_read() {
    with_client(|share, client| {
        let made = client.create(ROOT, "file", libc::O_RDWR, 0o100_640).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        assert_eq!(made.entry.attr.mode, 0o100_640);
        for (offset, len) in [(0, 1), (1, 4096), (4097, 1 << 20), (3 << 20, 12345), (5_000_000, 4097)] {
            let data = pattern(offset, len);
            assert_eq!(client.write(node, fh, offset, &data), Ok(len as u32));
            let on_host = share.read("file");
            assert_eq!(on_host[offset as usize..], data);
            assert_eq!(client.read(node, fh, offset, len as u32), Ok(data));
        }
        let size = client.getattr(node, Some(fh)).unwrap().attr.size;
        assert_eq!(client.read(node, fh, size, 4096), Ok(vec![]));
        assert_eq!(client.read(node, fh, size - 3, 4096).unwrap().len(), 3);
        client.fallocate(node, fh, 0, size, 4096).unwrap();
        assert_eq!(client.lseek(node, fh, 2 << 20, libc::SEEK_HOLE), Ok(2 << 20));
        client.fsync(node, fh, false).unwrap();
        client.flush(node, fh).unwrap();
        client.release(node, fh).unwrap();
        assert_eq!(client.read(node, fh, 0, 1), Err(Errno::EBADF));
        assert_eq!(share.read("file").len() as u64, size + 4096);
    });
}

#[test]
fn copies_ranges_on_the_host() {
    with_client(|share, client| {
        share.write("from", pattern(7, 100_000));
        let from = client.lookup(ROOT, "from").unwrap().nodeid;
        let fh_in = client.open(from, libc::O_RDONLY).unwrap().fh;
        let to = client.create(ROOT, "to", libc::O_WRONLY, 0o100_600).unwrap();
        let request = wire::CopyFileRangeIn {
            fh_in,
            off_in: 1000,
            nodeid_out: to.entry.nodeid,
            fh_out: to.open.fh,
            off_out: 0,
            len: 50_000,
            flags: 0,
        };
        assert_eq!(client.copy_file_range(from, request), Ok(50_000));
        assert_eq!(share.read("to"), pattern(7, 100_000)[1000..51_000]);
    });
}

#[test]
fn directories_are_listed_completely() {
    with_client(|share, client| {
        let names: Vec<String> = (0..1000).map(|i| format!("{i:0width$}", width = 4 + i % 200)).collect();
        for name in &names {
            share.write(format!("dir/{name}"), "");
        }
        let dir = client.lookup(ROOT, "dir").unwrap().nodeid;
        let mut listed: Vec<String> = client
            .list(dir)
            .unwrap()
            .into_iter()
            .map(|entry| String::from_utf8(entry.name).unwrap())
            .filter(|name| name != "." && name != "..")
            .collect();
        listed.sort();
        let mut expected = names;
        expected.sort();
        assert_eq!(listed, expected);
    });
}

#[test]
fn readdirplus_looks_up_and_forget_takes_back() {
    with_client(|share, client| {
        for i in 0..20 {
            share.write(format!("f{i}"), vec![b'x'; i]);
        }
        let fh = client.opendir(ROOT).unwrap().fh;
        let mut seen = BTreeMap::new();
        let mut offset = 0;
        loop {
            let batch = client.readdirplus(ROOT, fh, offset, 1024).unwrap();
            let Some(last) = batch.last() else { break };
            offset = last.offset;
            for entry in batch {
                seen.insert(String::from_utf8(entry.name).unwrap(), entry.entry.unwrap());
            }
        }
        client.releasedir(ROOT, fh).unwrap();
        for i in 0..20 {
            let entry = seen[&format!("f{i}")];
            assert_eq!(entry.attr.size, i);
            assert_eq!(client.getattr(entry.nodeid, None).unwrap().attr.size, i);
        }
        let first = seen["f0"].nodeid;
        assert_eq!(client.lookup(ROOT, "f0").unwrap().nodeid, first, "one node id for one file");
        client.forget(first, 1);
        client.getattr(first, None).expect("looked up twice, forgotten once");
        client.batch_forget(&[wire::ForgetOne { nodeid: first, nlookup: 1 }]);
        assert!(client.getattr(first, None).is_err(), "forgotten");
    });
}

#[test]
fn names_come_and_go() {
    with_client(|share, client| {
        let dir = client.mkdir(ROOT, "dir", 0o755).unwrap().nodeid;
        let link = client.symlink(dir, "link", "over/there").unwrap();
        assert_eq!(client.readlink(link.nodeid), Ok(b"over/there".to_vec()));
        share.write("a", "a");
        let a = client.lookup(ROOT, "a").unwrap().nodeid;
        assert_eq!(client.link(a, dir, "hard").unwrap().attr.nlink, 2);
        client.rename((ROOT, "a"), (dir, "b"), 0).unwrap();
        assert_eq!(client.rename((dir, "b"), (dir, "link"), libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
        client.rename((dir, "b"), (dir, "link"), libc::RENAME_EXCHANGE).unwrap();
        assert_eq!(fs::read_link(share.join("dir/b")).unwrap().as_os_str().as_bytes(), b"over/there");
        assert_eq!(client.rmdir(ROOT, "dir"), Err(Errno::ENOTEMPTY));
        assert_eq!(client.unlink(ROOT, "dir"), Err(Errno::EISDIR));
        for name in ["b", "link", "hard"] {
            client.unlink(dir, name).unwrap();
        }
        let fifo = client.mknod(dir, "fifo", libc::S_IFIFO | 0o644, 0).unwrap();
        assert_eq!(fifo.attr.mode & libc::S_IFMT, libc::S_IFIFO);
        client.unlink(dir, "fifo").unwrap();
        client.rmdir(ROOT, "dir").unwrap();
        assert_eq!(fs::read_dir(share.path()).unwrap().count(), 0);
    });
}

#[test]
fn attributes_change() {
    with_client(|share, client| {
        let path = share.write("file", "0123456789");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let mut set = |change| client.setattr(node, change).unwrap().attr;
        assert_eq!(set(SetAttr { valid: fattr::SIZE, size: 4, ..Default::default() }).size, 4);
        let mode = SetAttr { valid: fattr::MODE, mode: 0o600, ..Default::default() };
        assert_eq!(set(mode).mode & 0o7777, 0o600);
        let owner = SetAttr { valid: fattr::UID | fattr::GID, uid: 7, gid: 8, ..Default::default() };
        set(owner);
        let time = SetAttr { valid: fattr::MTIME, mtime: 1000, mtimensec: 5, ..Default::default() };
        assert_eq!((set(time).mtime, set(time).mtimensec), (1000, 5));
        let on_host = fs::metadata(path).unwrap();
        assert_eq!((on_host.uid(), on_host.gid(), on_host.len(), on_host.mtime()), (7, 8, 4, 1000));
        client.access(node, libc::R_OK.cast_unsigned()).unwrap();
        assert!(client.statfs(ROOT).unwrap().blocks > 0);
    });
}

#[test]
fn files_belong_to_the_guest_s_user() {
    with_client(|share, client| {
        client.caller = Caller { uid: 1000, gid: 1001, pid: 42 };
        client.create(ROOT, "file", libc::O_WRONLY, 0o100_644).unwrap();
        client.mkdir(ROOT, "dir", 0o755).unwrap();
        for name in ["file", "dir"] {
            let on_host = fs::metadata(share.join(name)).unwrap();
            assert_eq!((on_host.uid(), on_host.gid()), (1000, 1001), "{name}");
        }
    });
}

#[test]
fn extended_attributes() {
    with_client(|share, client| {
        share.write("file", "");
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let value = pattern(1, 300);
        client.setxattr(node, "user.a", &value, 0).unwrap();
        assert_eq!(client.setxattr(node, "user.a", b"", libc::XATTR_CREATE), Err(Errno::EEXIST));
        assert_eq!(client.getxattr_size(node, "user.a"), Ok(300));
        assert_eq!(client.getxattr(node, "user.a", 1000), Ok(value));
        assert_eq!(client.getxattr(node, "user.a", 10), Err(Errno::ERANGE));
        assert_eq!(client.listxattr(node, 100), Ok(b"user.a\0".to_vec()));
        client.removexattr(node, "user.a").unwrap();
        assert_eq!(client.getxattr_size(node, "user.a"), Err(Errno::ENODATA));
    });
}

/// Fills all slots with reads of different places, and checks each reply, over and over.
fn read_at_full_depth(share: &Share, client: &mut Client, rounds: usize) {
    let blocks = 64;
    share.write("big", (0..blocks).flat_map(|i| pattern(i, PAGE)).collect::<Vec<u8>>());
    let node = client.lookup(ROOT, "big").unwrap().nodeid;
    let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
    let shape = Shape::new((IN_HEADER + size_of::<wire::ReadIn>()) as u32, 0, OUT_HEADER as u32, PAGE as u32);
    let mut block_of = BTreeMap::new();
    let mut next = 0;
    for _ in 0..rounds {
        while let Some(slot) = client.queue_mut().take() {
            let header = client.header(opcode::READ, node, size_of::<wire::ReadIn>());
            let block = next % blocks;
            let read =
                wire::ReadIn { fh, offset: block * PAGE as u64, size: PAGE as u32, ..Default::default() };
            let queue = client.queue_mut();
            queue.request(slot).write(shape.start as usize, header.as_bytes());
            queue.request(slot).write(shape.start as usize + IN_HEADER, read.as_bytes());
            queue.submit(slot, shape);
            block_of.insert(slot, (block, header.unique));
            next += 1;
        }
        let queue = client.queue_mut();
        queue.flush();
        // Takes back only half, so that old and new requests mix.
        for _ in 0..block_of.len().div_ceil(2) {
            let done = queue.wait().unwrap();
            let (block, unique) = block_of.remove(&done.slot).unwrap();
            assert_eq!(done.len as usize, OUT_HEADER + PAGE);
            let (buffer, start) = queue.reply(done.slot);
            let header = wire::OutHeader::read_from_bytes(&buffer.to_vec(start, OUT_HEADER)).unwrap();
            assert_eq!((header.error, header.unique), (0, unique));
            assert_eq!(buffer.to_vec(HEADROOM, PAGE), pattern(block, PAGE));
            queue.put(done.slot);
        }
    }
    let queue = client.queue_mut();
    for _ in 0..block_of.len() {
        let done = queue.wait().unwrap();
        queue.put(done.slot);
    }
    client.release(node, fh).unwrap();
}

#[test]
fn many_requests_in_flight() {
    with_config(DeviceConfig { depth: 64, ..Default::default() }, |share, session| {
        read_at_full_depth(share, session.client(), 200);
        session.client().queue_mut().set_wait(Wait::Spin);
        read_at_full_depth(share, session.client(), 200);
        // More than 65536 chains would be needed to see every index; at least the ring itself wraps.
        assert!(session.client().queue_mut().ring().used_index() > 2 * 1024);
    });
}

#[test]
fn rings_without_event_index() {
    let features = features::VERSION_1 | features::INDIRECT_DESC;
    with_config(DeviceConfig { features, ..Default::default() }, |share, session| {
        assert_eq!(session.device.features() & features::EVENT_IDX, 0);
        read_at_full_depth(share, session.client(), 50);
    });
}

#[test]
fn rings_without_indirect_descriptors() {
    let features = features::VERSION_1 | features::EVENT_IDX;
    let config = DeviceConfig { features, depth: 100, ..Default::default() };
    with_config(config, |share, session| {
        assert_eq!(session.device.features() & features::INDIRECT_DESC, 0);
        read_at_full_depth(share, session.client(), 50);
    });
}

#[test]
fn small_rings() {
    let config = DeviceConfig { queue_size: 4, depth: 4, ..Default::default() };
    with_config(config, |share, session| read_at_full_depth(share, session.client(), 50));
}

#[test]
fn framing_does_not_matter() {
    with_client(|share, client| {
        share.write("file", "x");
        // A LOOKUP cut into single bytes, its reply into pieces of seven.
        let name = b"file\0";
        let header = client.header(opcode::LOOKUP, ROOT, name.len());
        let message = [header.as_bytes(), name].concat();
        let reply = (OUT_HEADER + size_of::<wire::EntryOut>()) as u32;
        let queue = client.queue_mut();
        let slot = queue.take().unwrap();
        queue.request(slot).write(0, &message);
        let request = (0..message.len() as u32).map(|offset| Segment { writable: false, offset, len: 1 });
        let reply_pieces = (0..reply).step_by(7).map(|offset| Segment {
            writable: true,
            offset,
            len: 7.min(reply - offset),
        });
        queue.submit_segments(slot, &request.chain(reply_pieces).collect::<Vec<_>>());
        queue.flush();
        let done = queue.wait().unwrap();
        assert_eq!(done.len, reply);
        let (buffer, start) = queue.reply(slot);
        let bytes = buffer.to_vec(start + OUT_HEADER, size_of::<wire::EntryOut>());
        assert_eq!(wire::EntryOut::read_from_bytes(&bytes).unwrap().attr.size, 1);
        queue.put(slot);
    });
}

#[test]
fn pages_that_lie_apart_are_one_transfer() {
    with_client(|share, client| {
        let made = client.create(ROOT, "file", libc::O_RDWR, 0o100_644).unwrap();
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        let request = |offset, flags: i32| wire::WriteIn {
            fh,
            offset,
            flags: flags.cast_unsigned(),
            ..Default::default()
        };
        let mut expected = Vec::<u8>::new();
        for size in [1, 10, PAGE, PAGE + 1, 3 * PAGE - 5, 16 * PAGE] {
            let data = pattern(size as u64, size);
            // At its place, and at the end wherever that is.
            let (at, append) = (request(expected.len() as u64, 0), request(7, libc::O_APPEND));
            for request in [at, append] {
                assert_eq!(client.write_scattered(node, request, &data), Ok(size as u32), "{size}");
                expected.extend(&data);
            }
        }
        assert!(fs::read(share.join("file")).unwrap() == expected);
        for (offset, size) in
            [(0, 1), (3, PAGE), (PAGE, 2 * PAGE + 1), (5, 16 * PAGE), (expected.len() - 9, 2 * PAGE)]
        {
            let part = &expected[offset..expected.len().min(offset + size)];
            assert!(
                client.read_scattered(node, fh, offset as u64, size).unwrap() == part,
                "{size} at {offset}"
            );
        }
        assert_eq!(client.read_scattered(node, fh, expected.len() as u64, 2 * PAGE), Ok(Vec::new()));
        client.release(node, fh).unwrap();
    });
}

#[test]
fn rings_stop_and_start() {
    with_config(DeviceConfig::default(), |share, session| {
        for _ in 0..3 {
            read_at_full_depth(share, session.client(), 10);
            let bases = session.device.stop().unwrap();
            let indices = session.with_queues(|_, queues| {
                queues.iter().map(|queue| queue.ring().published_index()).collect::<Vec<_>>()
            });
            assert_eq!(bases, indices, "all that was available was read");
            session.with_queues(|device, queues| device.resume(queues, &bases)).unwrap();
        }
        read_at_full_depth(share, session.client(), 10);
    });
}

#[test]
fn a_request_made_while_stopped_is_served_after_the_start() {
    with_config(DeviceConfig::default(), |_, session| {
        let bases = session.device.stop().unwrap();
        let client = session.client();
        let header = client.header(opcode::STATFS, ROOT, 0);
        let shape = Shape::new(IN_HEADER as u32, 0, (OUT_HEADER + size_of::<wire::StatfsOut>()) as u32, 0);
        let slot = client.queue_mut().take().unwrap();
        client.queue_mut().request(slot).write(shape.start as usize, header.as_bytes());
        client.queue_mut().submit(slot, shape);
        client.queue_mut().flush();
        // The daemon answers messages in order: after this one it has seen all that came before.
        session.device.connection().call(Request::GetFeatures, &[], &[]).unwrap();
        assert_eq!(session.client().queue_mut().poll().unwrap(), None, "the ring is stopped");
        session.with_queues(|device, queues| device.resume(queues, &bases)).unwrap();
        let queue = session.client().queue_mut();
        if under_test() != Implementation::Ours {
            // The peers lose a kick that comes before the ring is enabled.
            queue.kick();
        }
        let done = queue.wait().unwrap();
        assert_eq!(done.len, shape.reply);
        queue.put(slot);
    });
}

#[test]
fn writes_to_guest_memory_are_logged() {
    with_config(DeviceConfig::default(), |share, session| {
        share.write("file", pattern(3, 5 * PAGE));
        let node = session.client().lookup(ROOT, "file").unwrap().nodeid;
        let fh = session.client().open(node, libc::O_RDONLY).unwrap().fh;
        session.with_queues(Device::start_log).unwrap();
        assert_eq!(session.client().read(node, fh, 0, 5 * PAGE as u32).unwrap().len(), 5 * PAGE);
        let log = session.device.dirty_log().unwrap();
        let queue = session.clients[0].queue();
        let ring_of = |queue: &tests::frontend::Queue| {
            let start = queue.ring().used().guest_address();
            start..start + queue.ring().used().len() as u64
        };
        let ring = ring_of(queue);
        assert!(log.is_dirty(ring.start), "the used ring was written");
        assert!(!log.is_dirty(queue.ring().available().guest_address()), "the available ring was not");
        // The daemon may look at the other virtqueue only now, and says behind its used ring when it wants to be kicked.
        let other = ring_of(&session.hiprio.lock().unwrap());
        let pages = log.dirty_pages().into_iter().filter(|page| !other.contains(page));
        let outside = pages.filter(|page| !ring.contains(page)).count();
        assert_eq!(outside, 6, "the reply's header lies in one page, its data in five");
        let log = session.with_queues(Device::stop_log).unwrap().unwrap();
        log.clear();
        assert_eq!(session.client().read(node, fh, 0, 5 * PAGE as u32).unwrap().len(), 5 * PAGE);
        if under_test() == Implementation::Ours {
            // Upstream goes on with the used ring.
            assert_eq!(log.dirty_pages(), [0u64; 0], "nobody wants to know any more");
        }
        session.with_queues(Device::start_log).unwrap();
        session.client().getattr(node, None).unwrap();
        assert!(session.device.dirty_log().unwrap().is_dirty(ring.start), "and again");
        session.client().release(node, fh).unwrap();
    });
}

#[test]
fn memory_is_added_and_removed() {
    with_config(DeviceConfig::default(), |_, session| {
        let region = tests::frontend::memory::Region::new(1 << 40, 1 << 20).unwrap();
        for _ in 0..3 {
            session.device.add_region(&region).unwrap();
            session.client().statfs(ROOT).unwrap();
            session.device.remove_region(&region).unwrap();
            session.client().statfs(ROOT).unwrap();
        }
    });
}

#[test]
fn memory_comes_as_a_table_and_nothing_is_acknowledged() {
    let config = DeviceConfig { protocol_features: protocol_features::MQ, ..Default::default() };
    with_config(config, |share, session| {
        assert_eq!(session.device.protocol_features(), protocol_features::MQ);
        read_at_full_depth(share, session.client(), 10);
    });
}

#[test]
fn requests_come_on_several_queues_at_once() {
    bounded(LIMIT, || {
        let share = Share::new();
        let queues = under_test().request_queues(4);
        let config = DeviceConfig { request_queues: queues, ..Default::default() };
        let mut session = Session::start(command(&share).args(under_test().queue_arguments(queues)), config);
        share.write("shared", pattern(0, 1 << 20));
        std::thread::scope(|scope| {
            for (number, client) in session.clients.iter_mut().enumerate() {
                scope.spawn(move || use_alone_and_together(client, number));
            }
        });
        assert!(session.finish().0.success());
    });
}

/// Works in a directory of its own, and on a file that all have.
fn use_alone_and_together(client: &mut Client, number: usize) {
    let dir = client.mkdir(ROOT, format!("dir{number}"), 0o755).unwrap().nodeid;
    let shared = client.lookup(ROOT, "shared").unwrap().nodeid;
    let whole = pattern(0, 1 << 20);
    for round in 0..50 {
        let made = client.create(dir, format!("file{round}"), libc::O_RDWR, 0o100_644).unwrap();
        let data = pattern(round, 5000);
        client.write(made.entry.nodeid, made.open.fh, 0, &data).unwrap();
        assert_eq!(client.read(made.entry.nodeid, made.open.fh, 0, 5000), Ok(data));
        client.release(made.entry.nodeid, made.open.fh).unwrap();
        client.forget(made.entry.nodeid, 1);
        let fh = client.open(shared, libc::O_RDONLY).unwrap().fh;
        let at = round as usize * 20_000;
        assert_eq!(client.read(shared, fh, at as u64, 20_000).unwrap(), whole[at..at + 20_000]);
        client.release(shared, fh).unwrap();
        assert_eq!(client.lookup(ROOT, "shared").unwrap().nodeid, shared);
    }
}

#[test]
fn a_chain_is_made_by_hand() {
    with_client(|_, client| {
        let header = client.header(opcode::STATFS, ROOT, 0);
        let queue = client.queue_mut();
        let slot = queue.take().unwrap();
        queue.request(slot).write(0, header.as_bytes());
        let (request, reply) = (queue.request(slot).guest_address(), queue.reply(slot).0.guest_address());
        let ring = queue.ring_mut();
        let last = ring.size() - 1;
        let [first, second] = [(request, 40, DESC_NEXT, 500), (reply, 96, DESC_WRITE, 0)]
            .map(|(address, len, flags, next)| Descriptor { address, len, flags, next });
        first.write_to(ring.descriptors(), last.into());
        second.write_to(ring.descriptors(), 500);
        ring.push(last);
        queue.flush();
        assert_eq!(queue.wait_used().unwrap(), Used { head: last.into(), len: 96 });
        queue.put(slot);
    });
}

#[test]
fn raw_messages_reach_the_daemon() {
    with_config(DeviceConfig::default(), |_, session| {
        let connection = session.device.connection();
        // Cut in the middle of the header.
        let bytes: Vec<u8> =
            [Request::GetFeatures as u32, FLAG_VERSION, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        connection.send_raw(&bytes[..5], &[]).unwrap();
        connection.send_raw(&bytes[5..], &[]).unwrap();
        let reply = connection.receive().unwrap();
        assert_eq!(reply.request, Request::GetFeatures as u32);
        assert_ne!(reply.as_u64().unwrap() & features::VERSION_1, 0);
        connection.send(Request::GetVringBase, FLAG_VERSION | FLAG_NEED_REPLY, &[0; 8], &[]).unwrap();
        assert_eq!(connection.receive().unwrap().request, Request::GetVringBase as u32);
    });
}

/// The front end's own migration, proven on the two upstream releases: node ids and handles live on in the
/// second daemon, which gets the same guest memory and rings.
#[test]
fn state_moves_between_upstream_releases() {
    bounded(LIMIT, || {
        let share = Share::new();
        let [old, new] = [UpstreamVersion::V1_13_3, UpstreamVersion::V1_14_0].map(Implementation::Upstream);
        let config = DeviceConfig::default();
        let mut source = Session::start(DaemonCommand::serving(&old, share.path()), config.clone());
        share.write("file", "before");
        let node = source.client().lookup(ROOT, "file").unwrap().nodeid;
        let fh = source.client().open(node, libc::O_RDWR).unwrap().fh;
        source.with_queues(Device::start_log).unwrap();
        source.client().getattr(node, Some(fh)).unwrap();
        let bases = source.device.stop().unwrap();
        let state = source.device.save_state().unwrap();

        let daemon = DaemonCommand::serving(&new, share.path()).start();
        let memory = Arc::clone(source.device.memory());
        let mut device = Device::connect_guest(daemon.connect(), config, memory).unwrap();
        device.load_state(&state).unwrap();
        source.with_queues(|_, queues| device.start_at(queues, &bases)).unwrap();
        (source.device, source.daemon) = (device, daemon);
        assert_eq!(source.client().read(node, fh, 0, 100), Ok(b"before".to_vec()));
        assert_eq!(source.client().write(node, fh, 0, b"behind"), Ok(6));
        assert_eq!(share.read("file"), b"behind");
        assert!(source.finish().0.success());
    });
}

#[test]
fn a_broken_device_state_is_refused() {
    bounded(LIMIT, || {
        let share = Share::new();
        let daemon =
            DaemonCommand::serving(&Implementation::Upstream(UpstreamVersion::V1_13_3), share.path());
        let daemon = daemon.start();
        let device = Device::connect(daemon.connect(), DeviceConfig::default()).unwrap();
        device.load_state(b"\xff\xff\xff no state").unwrap_err();
    });
}
