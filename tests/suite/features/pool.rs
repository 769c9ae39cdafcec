//! `--thread-pool-size`: requests that leave their queue's thread are all answered, whatever happens to the queue.

use std::collections::BTreeSet;

use tests::bounded::bounded;
use tests::daemon::PATIENCE;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{self, ROOT, init, opcode};
use tests::fuse::{Client, Session};
use tests::share::Share;
use zerocopy::IntoBytes;

use super::{LIMIT, command, returned, with_session, with_session_on};

const POOL: &[&str] = &["--thread-pool-size=3"];

/// Sends `count` requests of which most go to helpers; their numbers.
fn send(client: &mut Client, node: u64, fh: u64, count: usize) -> BTreeSet<u64> {
    let fsync = wire::FsyncIn { fh, fsync_flags: 0, padding: 0 };
    let fallocate = wire::FallocateIn { fh, offset: 0, length: 1 << 16, mode: 0, padding: 0 };
    let flush = wire::FlushIn { fh, ..Default::default() };
    let requests = (0..count).map(|number| match number % 3 {
        0 => client.submit(opcode::FSYNC, node, fsync.as_bytes()),
        1 => client.submit(opcode::FALLOCATE, node, fallocate.as_bytes()),
        _ => client.submit(opcode::FLUSH, node, flush.as_bytes()),
    });
    requests.collect()
}

fn collect(client: &mut Client, mut sent: BTreeSet<u64>) {
    while !sent.is_empty() {
        let (unique, result) = client.collect();
        result.unwrap();
        assert!(sent.remove(&unique), "a reply that nobody asked for, or twice: {unique}");
    }
}

fn new_file(client: &mut Client) -> (u64, u64) {
    let file = client.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    (file.entry.nodeid, file.open.fh)
}

#[test]
fn all_are_answered_once() {
    with_session_on(Share::in_memory, &["--thread-pool-size=3", "--killpriv-v2"], |share, session| {
        let client = session.client();
        let (node, fh) = new_file(client);
        for _ in 0..20 {
            let sent = send(client, node, fh, 15);
            collect(client, sent);
        }
        let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i ^ (i >> 9)) as u8).collect();
        assert_eq!(client.write(node, fh, 0, &data), Ok(1 << 20));
        assert!(client.read(node, fh, 0, 1 << 20).unwrap() == data);
        assert!(share.read("file") == data);
        client.fsync(node, fh, true).unwrap();
        client.syncfs(ROOT).unwrap();
        assert_eq!(client.fsync(node, fh + 1, false), Err(nix::errno::Errno::EBADF));
    });
}

#[test]
fn a_stop_waits_for_the_helpers() {
    with_session(POOL, |_, session| {
        let client = session.client();
        let (node, fh) = new_file(client);
        for _ in 0..10 {
            let sent = send(session.client(), node, fh, 12);
            let bases = session.device.stop().unwrap();
            // What the daemon has taken it has answered.
            assert_eq!(returned(session), bases[1]);
            session.with_queues(|device, queues| device.resume(queues, &bases).unwrap());
            session.clients[0].queue_mut().kick();
            collect(session.client(), sent);
        }
    });
}

#[test]
fn a_reset_and_an_end_wait_for_nothing_that_is_lost() {
    for reset in [true, false] {
        bounded(LIMIT, || {
            let share = Share::new();
            let mut session =
                Session::start_with(command(&share).args(POOL), DeviceConfig::default(), init::GUEST);
            let client = session.client();
            let (node, fh) = new_file(client);
            send(client, node, fh, 15);
            if reset {
                session.device.reset().unwrap();
                // Nothing comes after the reset: the daemon answers another message without more replies.
                let used = returned(&session);
                session.device.reset().unwrap();
                assert_eq!(returned(&session), used);
            }
            let Session { device, mut daemon, .. } = session;
            drop(device);
            assert!(daemon.wait(PATIENCE).success());
        });
    }
}
