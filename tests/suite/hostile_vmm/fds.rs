//! Kick, call and error fds.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tests::frontend::Wait;
use tests::frontend::messages::{Request, number};
use tests::fuse::Session;

use crate::{assert_at_rest, assert_listening, assert_serving, with_session};

/// The request queue.
const QUEUE: u64 = 1;

fn set(session: &Session, request: Request, fd: BorrowedFd<'_>) {
    session.device.connection().tell(request, &number(QUEUE), &[fd]).expect("the message itself is good");
}

/// Fds that are no eventfds: readable at once and for ever, at an end, or not made for waiting.
fn not_eventfds() -> Vec<(&'static str, OwnedFd)> {
    let (ended, write) = nix::unistd::pipe().unwrap();
    drop(write);
    let (readable, write) = nix::unistd::pipe().unwrap();
    nix::unistd::write(&write, &[0; 4096]).unwrap();
    // Its writer stays open for the life of the test process.
    std::mem::forget(write);
    let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(other);
    vec![
        ("a pipe at its end", ended),
        ("a pipe full of bytes", readable),
        ("a socket at its end", socket.into()),
        ("a file", File::open(std::env::current_exe().unwrap()).unwrap().into()),
        ("/dev/zero", File::open("/dev/zero").unwrap().into()),
        ("/dev/null", File::options().write(true).open("/dev/null").unwrap().into()),
    ]
}

/// Stops the rings, puts `fd` in the place of the request queue's `request` fd, and starts them.
fn start_with(session: &mut Session, request: Request, fd: BorrowedFd<'_>) {
    let bases = session.device.stop().unwrap();
    set(session, request, fd);
    session.device.enable(2, true).unwrap();
    // Everything but what the test has replaced: for the kick, before; for the others, they are set again.
    if request != Request::SetVringKick {
        session.with_queues(|device, queues| device.resume(queues, &bases)).unwrap();
        set(session, request, fd);
    }
}

#[test]
fn kick_fds_that_are_no_eventfds_are_not_waited_for() {
    for (what, fd) in not_eventfds() {
        eprintln!("{what}");
        with_session(|_, mut session| {
            start_with(&mut session, Request::SetVringKick, fd.as_fd());
            assert_at_rest(&session.daemon);
            assert_listening(&session);
            // With a good one it goes on.
            session.client().queue_mut().reset();
            session.hiprio.lock().unwrap().reset();
            session.device.stop().unwrap();
            session.with_queues(|device, queues| device.resume(queues, &[0, 0])).unwrap();
            assert_serving(&mut session);
            // All that the worker has said is there when the daemon has ended.
            let (status, stderr) = session.finish();
            assert!(status.success(), "{status}\n{stderr}");
            assert!(
                stderr.contains("SET_VRING_KICK: the front end's fd is not an eventfd"),
                "{what}:\n{stderr}"
            );
        });
    }
}

#[test]
fn call_and_error_fds_that_are_no_eventfds_are_not_written_to() {
    for (what, fd) in not_eventfds() {
        eprintln!("{what}");
        with_session(|_, mut session| {
            start_with(&mut session, Request::SetVringErr, fd.as_fd());
            start_with(&mut session, Request::SetVringCall, fd.as_fd());
            session.client().queue_mut().set_wait(Wait::Spin);
            assert_serving(&mut session);
            let (status, stderr) = session.finish();
            assert!(status.success(), "{status}\n{stderr}");
            for message in ["SET_VRING_ERR", "SET_VRING_CALL"] {
                let expected = format!("{message}: the front end's fd is not an eventfd");
                assert!(stderr.contains(&expected), "{what}:\n{stderr}");
            }
        });
    }
}

/// An eventfd, blocking, that a write would wait for.
fn full_eventfd() -> EventFd {
    let full = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC).unwrap();
    full.write(u64::MAX - 1).unwrap();
    full
}

#[test]
fn a_full_call_fd_does_not_stop_the_queue() {
    with_session(|_, mut session| {
        let full = full_eventfd();
        set(&session, Request::SetVringCall, full.as_fd());
        session.client().queue_mut().set_wait(Wait::Spin);
        for _ in 0..10 {
            // The daemon calls whether we want it or not: we want it.
            session.client().queue_mut().arm();
            assert_serving(&mut session);
        }
        assert_listening(&session);
        session.device.stop().expect("no thread holds the queue's lock");
        let Session { device, mut daemon, .. } = session;
        drop(device);
        assert_eq!(daemon.wait(tests::daemon::PATIENCE).code(), Some(0), "{}", daemon.stderr());
    });
}

#[test]
fn a_full_error_fd_does_not_stop_the_thread() {
    with_session(|_, mut session| {
        let full = full_eventfd();
        set(&session, Request::SetVringErr, full.as_fd());
        let queue = session.client().queue_mut();
        queue.ring_mut().push(u16::MAX);
        queue.ring_mut().publish();
        queue.kick();
        // The thread is free when the queue can be set up again.
        session.device.stop().unwrap();
        session.client().queue_mut().reset();
        session.hiprio.lock().unwrap().reset();
        session.with_queues(|device, queues| device.resume(queues, &[0, 0])).unwrap();
        assert_serving(&mut session);
        assert!(session.finish().0.success());
    });
}

#[test]
fn a_kick_fd_that_was_replaced_and_never_rests() {
    with_session(|_, session| {
        let [old, new] = [0, 1].map(|_| EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap());
        // Replaced while the ring runs, which no front end does: the daemon still waits for the first one.
        set(&session, Request::SetVringKick, old.as_fd());
        session.device.enable(2, false).unwrap();
        session.device.enable(2, true).unwrap();
        set(&session, Request::SetVringKick, new.as_fd());
        old.write(1).unwrap();
        assert_at_rest(&session.daemon);
        assert_listening(&session);
        let Session { device, mut daemon, .. } = session;
        drop(device);
        assert_eq!(daemon.wait(tests::daemon::PATIENCE).code(), Some(0), "{}", daemon.stderr());
    });
}
