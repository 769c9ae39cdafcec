//! A guest that sends what no driver sends. After each attempt the daemon lives and serves the next good
//! request; a virtqueue that the guest broke is in its error state until it is set up again, and the others work.
//!
//! - `chains`: descriptor chains, indirect tables, ring indices.
//! - `messages`: FUSE messages of any length, on any node and handle, with any room for the reply; names.
//! - `races`: memory that changes while the daemon reads it.

mod chains;
mod messages;
mod races;

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::{Device, DeviceConfig, Queue};
use tests::fuse::Session;
use tests::fuse::wire::{self, ROOT};
use tests::peers::Implementation;
use tests::share::Share;

const LIMIT: Duration = Duration::from_secs(100);

/// The request queue that is mistreated, and the one that must go on working, as numbers of clients.
const VICTIM: usize = 0;
const WITNESS: usize = 1;

/// Runs `test` against a daemon with two request queues. However the guest behaves, the daemon ends only when
/// the front end leaves, and then with success.
fn with_guest(test: impl FnOnce(&Share, &mut Session) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("file", "good");
        let command = DaemonCommand::serving(&Implementation::Ours, share.path());
        let command = command.args(["--xattr", "--num-request-queues=2"]);
        let config =
            DeviceConfig { request_queues: 2, queue_size: 64, max_data: 64 << 10, ..Default::default() };
        let mut session = Session::start(command, config);
        let workers = session.daemon.descendants();
        test(&share, &mut session);
        assert_still_serving(&mut session, VICTIM);
        assert_still_serving(&mut session, WITNESS);
        assert_eq!(session.daemon.descendants(), workers, "the worker was replaced");
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

/// A good request on this queue gets its good reply.
fn assert_still_serving(session: &mut Session, client: usize) {
    let client = &mut session.clients[client];
    let entry = client.lookup(ROOT, "file").expect("a good request");
    assert_eq!(entry.attr.size, 4);
    client.forget(entry.nodeid, 1);
}

/// Waits for the eventfd by which the daemon says that this virtqueue is broken, and takes the event.
fn wait_until_broken(queue: &Queue) {
    let mut fds = [PollFd::new(queue.error_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(PATIENCE).expect("short");
    assert_eq!(poll(&mut fds, timeout), Ok(1), "the daemon did not tell of a broken virtqueue");
    nix::unistd::read(queue.error_fd().as_fd(), &mut [0; 8]).expect("read an eventfd");
}

/// Whether the daemon said that the virtqueue is broken.
fn is_broken(queue: &Queue) -> bool {
    let mut fds = [PollFd::new(queue.error_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(1)
}

/// Sets all virtqueues up again as a driver does: GET_VRING_BASE, and then everything from its start.
fn set_up_again(session: &mut Session) {
    session.device.stop().expect("GET_VRING_BASE");
    empty_rings(session);
    session.with_queues(|device, queues| device.resume(queues, &vec![0; queues.len()])).expect("resume");
}

/// Resets the device as a guest's reboot does (RESET_DEVICE); the file system has to be mounted again.
fn reset_and_mount(session: &mut Session) {
    session.device.stop().expect("GET_VRING_BASE");
    session.device.reset().expect("RESET_DEVICE");
    empty_rings(session);
    session.with_queues(|device: &mut Device, queues| {
        for region in device.memory().regions().to_vec() {
            device.remove_region(&region).expect("REM_MEM_REG");
        }
        device.start_at(queues, &vec![0; queues.len()]).expect("start");
    });
    session.client().init(wire::init::GUEST).expect("INIT");
}

fn empty_rings(session: &mut Session) {
    session.hiprio.lock().expect("no panic while it is held").reset();
    for client in &mut session.clients {
        client.queue_mut().reset();
    }
}
