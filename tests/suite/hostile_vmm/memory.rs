//! Guest memory that isn't there.

use std::os::fd::AsFd;

use nix::unistd::ftruncate;
use tests::frontend::memory::{PAGE, Region};
use tests::frontend::messages::{RegionDescription, Request, VringAddresses};
use tests::frontend::{Error, GuestMemory, Shape};
use tests::fuse::Session;
use tests::fuse::wire::{IN_HEADER, OUT_HEADER, ROOT, opcode};
use zerocopy::IntoBytes;

use crate::{assert_fails, assert_serving, with_session};

/// What the broker says when the worker died of SIGBUS.
const GONE: &[&str] = &["SIGBUS", "guest memory that the front end had shared was gone"];

fn truncate(session: &Session, len: i64) {
    let memory: &GuestMemory = session.device.memory();
    ftruncate(memory.regions()[0].file(), len).expect("cut a memfd short");
}

#[test]
fn memory_cut_short_under_the_rings_ends_the_worker_with_a_word() {
    with_session(|_, mut session| {
        assert_serving(&mut session);
        truncate(&session, 0);
        // We must not touch the rings ourselves: the kick is enough.
        session.clients[0].queue_mut().kick();
        assert_fails(&mut session.daemon, GONE);
    });
}

/// A STATFS whose request or reply lies in the page at `at` of a region that is cut short.
fn with_buffer_gone(reply_is_gone: bool) {
    with_session(|_, mut session| {
        let region = Region::new(1 << 40, PAGE).unwrap();
        session.device.add_region(&region).unwrap();
        let client = session.client();
        let header = client.header(opcode::STATFS, ROOT, 0);
        let queue = client.queue_mut();
        let slot = queue.take().unwrap();
        queue.request(slot).write(0, header.as_bytes());
        let good = [queue.request(slot).guest_address(), queue.reply(slot).0.guest_address()];
        let gone = region.description().guest;
        let [request, reply] = if reply_is_gone { [good[0], gone] } else { [gone, good[1]] };
        use tests::frontend::ring::{DESC_NEXT, DESC_WRITE, Descriptor};
        let ring = queue.ring_mut();
        let first = Descriptor { address: request, len: IN_HEADER as u32, flags: DESC_NEXT, next: 1 };
        let second = Descriptor { address: reply, len: OUT_HEADER as u32 + 80, flags: DESC_WRITE, next: 0 };
        first.write_to(ring.descriptors(), 0);
        second.write_to(ring.descriptors(), 1);
        ring.push(0);
        ftruncate(region.file().as_fd(), 0).expect("cut a memfd short");
        queue.flush();
        assert_fails(&mut session.daemon, GONE);
    });
}

#[test]
fn memory_cut_short_under_a_request_ends_the_worker_with_a_word() {
    with_buffer_gone(false);
}

#[test]
fn memory_cut_short_under_a_reply_ends_the_worker_with_a_word() {
    with_buffer_gone(true);
}

#[test]
fn a_region_removed_under_the_rings_breaks_the_virtqueues_only() {
    with_session(|_, mut session| {
        let region = session.device.memory().regions()[0].clone();
        session.device.remove_region(&region).expect("REM_MEM_REG");
        session.clients[0].queue_mut().kick();
        // The rings are outside of what is left; that is the guest's or the front end's mistake.
        let queue = session.clients[0].queue();
        let mut fds = [nix::poll::PollFd::new(queue.error_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 20_000u16), Ok(1), "the error eventfd is silent");
        crate::assert_listening(&session);
        // Memory comes back, the queues are set up again, the guest is served.
        session.device.stop().unwrap();
        session.device.add_region(&region).expect("ADD_MEM_REG");
        session.hiprio.lock().unwrap().reset();
        session.client().queue_mut().reset();
        session.with_queues(|device, queues| device.resume(queues, &[0, 0])).unwrap();
        assert_serving(&mut session);
        assert!(session.finish().0.success());
    });
}

/// Regions that overlap, wrap, or have no file behind them: refused, the connection ends.
#[test]
fn regions_that_cannot_be() {
    let good = Region::new(1 << 41, 4 * PAGE).unwrap();
    let at = good.description();
    let used = tests::frontend::device::MEMORY_START;
    let cases: [(&str, RegionDescription); 9] = [
        ("overlaps the first page", RegionDescription { guest: used, ..at }),
        ("overlaps with its last page", RegionDescription { guest: used - 3 * PAGE as u64, ..at }),
        ("lies within", RegionDescription { guest: used + PAGE as u64, size: PAGE as u64, ..at }),
        ("guest address wraps", RegionDescription { guest: u64::MAX - PAGE as u64 + 1, ..at }),
        ("offset wraps", RegionDescription { offset: u64::MAX - PAGE as u64 + 1, ..at }),
        ("size is none", RegionDescription { size: 0, ..at }),
        ("size is everything", RegionDescription { size: u64::MAX, guest: 0, user: 0, offset: 0 }),
        ("size is 1 EiB", RegionDescription { size: 1 << 60, ..at }),
        ("offset is no page", RegionDescription { offset: 1, size: PAGE as u64, ..at }),
    ];
    for (what, region) in cases {
        eprintln!("{what}");
        with_session(|_, mut session| {
            let refused =
                session.device.connection().tell(Request::AddMemReg, &region.to_single(), &[good.file()]);
            assert!(
                matches!(refused, Err(Error::Refused { .. } | Error::Disconnected { .. })),
                "{what}: {refused:?}"
            );
            assert_fails(&mut session.daemon, &["vhost-user:", "closing the connection"]);
        });
    }
}

/// A region that is longer than its file is as if the file had been cut short later: it may be there, and ends the
/// worker only when it is used.
#[test]
fn regions_beyond_their_file_can_be_added_but_not_used() {
    let good = Region::new(1 << 41, 4 * PAGE).unwrap();
    let at = good.description();
    let too_long = RegionDescription { size: 8 * PAGE as u64, ..at };
    let behind = RegionDescription { offset: 16 * PAGE as u64, ..at };
    for region in [too_long, behind] {
        with_session(|_, mut session| {
            let connection = session.device.connection();
            connection.tell(Request::AddMemReg, &region.to_single(), &[good.file()]).expect("ADD_MEM_REG");
            assert_serving(&mut session);
            let end = region.user + region.size - 0x1000;
            let mut addresses = session.clients[0].queue().ring().addresses(1);
            addresses.used = end;
            // The daemon looks into the used ring at once.
            let connection = session.device.connection();
            connection.tell(Request::SetVringAddr, &addresses.to_bytes(), &[]).unwrap_err();
            assert_fails(&mut session.daemon, GONE);
        });
    }
}

/// The vhost crate takes such a region; nothing can be looked up in it.
#[test]
fn a_region_whose_user_address_wraps_can_hold_no_ring() {
    with_session(|_, mut session| {
        let region = Region::new(1 << 41, 4 * PAGE).unwrap();
        let wrong = RegionDescription { user: u64::MAX - PAGE as u64 + 1, ..region.description() };
        let connection = session.device.connection();
        let added = connection.tell(Request::AddMemReg, &wrong.to_single(), &[region.file()]);
        if added.is_ok() {
            assert_serving(&mut session);
            let addresses =
                VringAddresses { descriptors: wrong.user, ..session.clients[0].queue().ring().addresses(1) };
            let connection = session.device.connection();
            connection.tell(Request::SetVringAddr, &addresses.to_bytes(), &[]).unwrap_err();
        }
        // By the library's panic, if it took the region.
        let words: &[&str] = if added.is_ok() {
            &["worker: vhost-user broke down at", "the front end has probably sent", "the worker"]
        } else {
            &["vhost-user:", "closing the connection"]
        };
        assert_fails(&mut session.daemon, words);
    });
}

/// Files that are no memory.
#[test]
fn regions_of_files_that_are_no_memory() {
    let (pipe, _write) = nix::unistd::pipe().unwrap();
    let directory = std::fs::File::open("/").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let read_only = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let description = Region::new(1 << 41, PAGE).unwrap().description();
    for (what, fd) in [
        ("a pipe", pipe.as_fd()),
        ("a directory", directory.as_fd()),
        ("/dev/null", null.as_fd()),
        ("a file that can only be read", read_only.as_fd()),
    ] {
        eprintln!("{what}");
        with_session(|_, mut session| {
            let connection = session.device.connection();
            let refused = connection.tell(Request::AddMemReg, &description.to_single(), &[fd]);
            assert!(refused.is_err(), "{what}");
            assert_fails(&mut session.daemon, &["vhost-user:", "closing the connection"]);
        });
    }
}

/// What is wrong with the addresses, by name.
type WrongAddress = (&'static str, fn(&mut VringAddresses));

/// Where a ring's parts may be said to be.
#[test]
fn rings_outside_memory() {
    let wrong: [WrongAddress; 8] = [
        ("no address", |a| (a.descriptors, a.used, a.available) = (0, 0, 0)),
        ("descriptors nowhere", |a| a.descriptors = 1 << 60),
        ("used ring nowhere", |a| a.used = 1 << 60),
        ("available ring nowhere", |a| a.available = 1 << 60),
        ("the last address", |a| a.descriptors = u64::MAX),
        ("odd descriptors", |a| a.descriptors += 1),
        ("odd used ring", |a| a.used += 1),
        ("odd available ring", |a| a.available += 1),
    ];
    for (what, change) in wrong {
        eprintln!("{what}");
        with_session(|_, mut session| {
            let mut addresses = session.clients[0].queue().ring().addresses(1);
            change(&mut addresses);
            let refused = session.device.connection().tell(Request::SetVringAddr, &addresses.to_bytes(), &[]);
            assert!(refused.is_err(), "{what}");
            assert_fails(&mut session.daemon, &["vhost-user:", "closing the connection"]);
        });
    }
}

/// Parts of a ring that begin in memory and end outside, each in the last bytes of memory.
#[test]
fn rings_across_the_end_of_memory() {
    for part in 0..3 {
        with_session(|_, mut session| {
            let end = session.device.memory().regions()[0].description();
            let end = end.user + end.size;
            session.device.stop().unwrap();
            session.client().queue_mut().reset();
            session.hiprio.lock().unwrap().reset();
            let mut addresses = session.clients[0].queue().ring().addresses(1);
            *[&mut addresses.descriptors, &mut addresses.available, &mut addresses.used][part] = end - 16;
            session.with_queues(|device, queues| device.resume(queues, &[0, 0])).unwrap();
            let connection = session.device.connection();
            connection
                .tell(Request::SetVringAddr, &addresses.to_bytes(), &[])
                .expect("its begin is in memory");
            let client = session.client();
            let header = client.header(opcode::STATFS, ROOT, 0);
            let queue = client.queue_mut();
            let shape = Shape::new(IN_HEADER as u32, 0, OUT_HEADER as u32 + 80, 0);
            let slot = queue.take().unwrap();
            queue.request(slot).write(shape.start as usize, header.as_bytes());
            queue.submit(slot, shape);
            queue.flush();
            queue.kick();
            // Whatever of it can be used; nobody dies.
            session.with_queues(|_, _| ());
            crate::assert_listening(&session);
            let Session { device, mut daemon, .. } = session;
            drop(device);
            assert_eq!(
                daemon.wait(tests::daemon::PATIENCE).code(),
                Some(0),
                "part {part}:\n{}",
                daemon.stderr()
            );
        });
    }
}

/// A dirty log that doesn't cover guest memory, or isn't there.
#[test]
fn dirty_logs_that_are_too_small() {
    let log = Region::new(0, PAGE).unwrap();
    for (size, offset) in
        [(1u64, 0u64), (8, 0), (0, 0), (PAGE as u64, 1), (1 << 60, 0), (u64::MAX, PAGE as u64)]
    {
        eprintln!("size {size:#x}, offset {offset:#x}");
        with_session(|_, mut session| {
            let payload: Vec<u8> = [size, offset].into_iter().flat_map(u64::to_ne_bytes).collect();
            let reply = session.device.connection().call(Request::SetLogBase, &payload, &[log.file()]);
            match reply {
                Ok(_) => {
                    assert_serving(&mut session);
                    assert!(session.finish().0.success());
                }
                Err(_) => assert_fails(&mut session.daemon, &["vhost-user:", "closing the connection"]),
            }
        });
    }
}
