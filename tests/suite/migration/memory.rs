//! The dirty log, and the end of what is in flight: what the front end relies on for the guest's memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tests::bounded::bounded;
use tests::frontend::memory::{GuestMemory, PAGE};
use tests::frontend::messages::Request;
use tests::frontend::{Device, DeviceConfig, Shape};
use tests::fuse::wire::{self, IN_HEADER, OUT_HEADER, ROOT, opcode};
use tests::fuse::{Client, Session};
use tests::share::Share;
use zerocopy::IntoBytes;

use super::{LIMIT, Mode, OURS, command};

/// All of guest memory, a page after another.
fn pages(memory: &GuestMemory) -> Vec<(u64, Vec<u8>)> {
    let mut pages = Vec::new();
    for (number, region) in memory.regions().iter().enumerate() {
        let description = region.description();
        for offset in (0..description.size as usize).step_by(PAGE) {
            let bytes = memory.at(number, offset, PAGE).to_vec(0, PAGE);
            pages.push((description.guest + offset as u64, bytes));
        }
    }
    pages
}

/// Makes one request and returns the pages that are others than before, as far as only the daemon writes there.
fn changed_by(session: &mut Session, node: u64, (opcode, body, data): (u32, &[u8], u32)) -> Vec<u64> {
    let memory = std::sync::Arc::clone(session.device.memory());
    let client = session.client();
    let header = client.header(opcode, node, body.len());
    let shape = Shape::new((IN_HEADER + body.len()) as u32, 0, OUT_HEADER as u32, data);
    let queue = client.queue_mut();
    let slot = queue.take().unwrap();
    queue.request(slot).write(shape.start as usize, &[header.as_bytes(), body].concat());
    queue.reply(slot).0.fill(0xa5);
    queue.submit(slot, shape);
    let before = pages(&memory);
    queue.flush();
    let done = queue.wait().unwrap();
    assert!(done.len as usize >= OUT_HEADER);
    queue.put(slot);
    let ours = queue.ring().available();
    let ours = ours.guest_address() / PAGE as u64..=(ours.guest_address() + ours.len() as u64) / PAGE as u64;
    let after = pages(&memory);
    let both = before.into_iter().zip(after).filter(|((at, _), _)| !ours.contains(&(at / PAGE as u64)));
    both.filter(|(before, after)| before != after).map(|((at, _), _)| at).collect()
}

fn requests(client: &mut Client) -> Vec<(&'static str, u64, u32, Vec<u8>, u32)> {
    let file = client.lookup(ROOT, "file").unwrap().nodeid;
    let fh = client.open(file, libc::O_RDWR).unwrap().fh;
    let directory = client.opendir(ROOT).unwrap().fh;
    let read = |fh, size| wire::ReadIn { fh, size, ..Default::default() }.as_bytes().to_vec();
    let fsync = wire::FsyncIn { fh, fsync_flags: 0, padding: 0 }.as_bytes().to_vec();
    vec![
        ("GETATTR", file, opcode::GETATTR, wire::GetAttrIn::default().as_bytes().to_vec(), 104),
        ("LOOKUP", ROOT, opcode::LOOKUP, b"file\0".to_vec(), 128),
        ("LOOKUP of nothing", ROOT, opcode::LOOKUP, b"nothing\0".to_vec(), 128),
        ("STATFS", ROOT, opcode::STATFS, Vec::new(), 80),
        ("READ", file, opcode::READ, read(fh, 5 * PAGE as u32), 5 * PAGE as u32),
        ("READ of much", file, opcode::READ, read(fh, 1 << 20), 1 << 20),
        ("READDIR", ROOT, opcode::READDIR, read(directory, 8192), 8192),
        ("READDIRPLUS", ROOT, opcode::READDIRPLUS, read(directory, 8192), 8192),
        ("FSYNC", file, opcode::FSYNC, fsync, 0),
        ("an unknown request", ROOT, 4000, Vec::new(), 0),
    ]
}

/// Every page that a request changes is in the log by the time the guest hears of it, used ring and replies of helpers
/// included.
#[test]
fn every_page_that_the_daemon_writes_is_logged() {
    for pool in ["--thread-pool-size=0", "--thread-pool-size=2"] {
        bounded(LIMIT, || {
            let share = Share::new();
            let data: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
            share.write("file", &data);
            for n in 0..40 {
                share.write(format!("entry {n}"), "");
            }
            let daemon = command(&OURS, &share, Mode::FindPaths).args([pool]);
            let mut session = Session::start(daemon, DeviceConfig::default());
            let requests = requests(session.client());
            session.with_queues(Device::start_log).unwrap();
            for (name, node, opcode, body, data) in requests {
                session.device.dirty_log().unwrap().clear();
                let changed = changed_by(&mut session, node, (opcode, &body, data));
                let used =
                    session.clients[0].queue().ring().used().guest_address() / PAGE as u64 * PAGE as u64;
                assert!(changed.contains(&used), "{name}: {changed:x?}");
                let expected = 2 + data as usize / PAGE - usize::from(opcode == opcode::READDIR) * 2;
                assert!(changed.len() >= expected.min(3), "{name}: {changed:x?}");
                let log = session.device.dirty_log().unwrap();
                for page in changed {
                    assert!(
                        log.is_dirty(page),
                        "{name} wrote to page {page:#x}, which is not logged ({pool})"
                    );
                }
            }
            assert!(session.finish().0.success());
        });
    }
}

/// GET_VRING_BASE answers when nothing is in flight any more, on the queue's thread or with helpers; what is saved then
/// is the whole state, and no page is written afterwards.
#[test]
fn a_stopped_queue_has_nothing_in_flight() {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("file", "file");
        let daemon = || command(&OURS, &share, Mode::FindPaths).args(["--thread-pool-size=3"]);
        let mut session = Session::start(daemon(), DeviceConfig::default());
        let client = session.client();
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let fh = client.open(node, libc::O_RDWR).unwrap().fh;
        let fsync = wire::FsyncIn { fh, fsync_flags: 0, padding: 0 };
        for round in 0..5 {
            session.with_queues(Device::start_log).unwrap();
            let client = session.client();
            let mut sent: Vec<u64> =
                (0..15).map(|_| client.submit(opcode::FSYNC, node, fsync.as_bytes())).collect();
            let (state, bases) = session.save().unwrap();
            let published = session.clients[0].queue().ring().published_index();
            let log = session.device.dirty_log().unwrap();
            log.clear();
            let loaded = session.load(daemon().start(), DeviceConfig::default(), &state, &bases);
            let (there, source) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
            session = there;
            // The destination takes up what the source did not begin; all are answered, each once.
            while !sent.is_empty() {
                let (unique, result) = session.client().collect();
                result.unwrap();
                let place = sent.iter().position(|one| *one == unique);
                sent.remove(place.unwrap_or_else(|| panic!("round {round}: {unique} is answered twice")));
            }
            assert_eq!(source.device.dirty_log().unwrap().dirty_pages(), [0u64; 0], "written after the stop");
            assert!(published >= 15);
        }
        assert!(session.finish().0.success());
    });
}

/// QEMU sends SET_VRING_ADDR to running virtqueues when it turns the dirty log on and off. Each reply still comes once:
/// none is lost, and none is given twice.
#[test]
fn addresses_that_are_set_again_move_no_ring() {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("file", "file");
        let mut session = Session::start(command(&OURS, &share, Mode::FindPaths), DeviceConfig::default());
        let node = session.client().lookup(ROOT, "file").unwrap().nodeid;
        let addresses = session.with_queues(|device, queues| device.ring_addresses(1, queues[1]).to_bytes());
        let Session { clients, device, .. } = &mut session;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let guest = scope.spawn(|| {
                let mut requests = 0;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(clients[0].getattr(node, None).unwrap().attr.size, 4);
                    requests += 1;
                }
                requests
            });
            for _ in 0..20_000 {
                device.connection().tell(Request::SetVringAddr, &addresses, &[]).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            assert!(guest.join().unwrap() > 100);
        });
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}
