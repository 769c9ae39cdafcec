use std::fs::File;
use std::io::Read;

use super::*;
use crate::protocol::bounded::List;
use crate::protocol::message::{Layer, LayerReport, LayerState};
use crate::protocol::{FileHandle, SealedHandle, bounded::Bytes};

fn ends() -> (BrokerEnd, WorkerEnd) {
    let (broker, worker) = pair().unwrap();
    (BrokerEnd::for_broker(broker), WorkerEnd::for_worker(worker))
}

/// A pipe's read end to send; [`is_closed`] tells when nobody has it any more.
fn canary() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap()
}

/// Waits until every copy of the read end is closed (a test that forks may have one for a moment).
fn is_closed(write: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(write.as_fd(), PollFlags::empty())];
    poll(&mut fds, 10_000u16).unwrap() == 1 && fds[0].revents() == Some(PollFlags::POLLERR)
}

/// Sends bytes and fds that need not be a message.
fn send_raw(worker: &mut WorkerEnd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    worker.buffer[..bytes.len()].copy_from_slice(bytes);
    worker.send_datagram(bytes.len(), fds).unwrap();
}

fn sealed() -> SealedHandle {
    let handle = FileHandle { handle_type: 1, bytes: Bytes::new(&[1, 2, 3]).unwrap() };
    SealedHandle { mount: 7, handle, mac: [9; 16] }
}

fn reopen() -> ToBroker {
    ToBroker::Reopen(List::new(vec![sealed()]).unwrap())
}

#[test]
fn messages_and_fds_arrive() {
    let (mut broker, mut worker) = ends();
    assert!(matches!(broker.receive(), Ok(Received::Nothing)), "the broker's end never waits");
    let (read, write) = nix::unistd::pipe().unwrap();
    worker.send(&ToBroker::Seal, &[read.as_fd(), write.as_fd()]).unwrap();
    drop((read, write));
    let Ok(Received::Message(ToBroker::Seal, mut fds)) = broker.receive() else { panic!("not received") };
    assert_eq!(fds.len(), 2);
    let (write, read) = (fds.pop().unwrap(), fds.pop().unwrap());
    nix::unistd::write(&write, b"x").unwrap();
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
    let flags = nix::fcntl::fcntl(&broker.socket, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);

    let reports = vec![LayerReport::new(Layer::Landlock, LayerState::Missing, "kernel")];
    let confined = ToBroker::Confined(List::new(reports).unwrap());
    worker.send(&confined, &[]).unwrap();
    worker.send(&reopen(), &[]).unwrap();
    let mut next = || match broker.receive() {
        Ok(Received::Message(message, fds)) => (message, fds.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(next(), (confined, 0));
    assert_eq!(next(), (reopen(), 0));
    drop(worker);
    assert!(matches!(broker.receive(), Ok(Received::End)));
}

#[test]
fn the_most_fds_arrive_and_one_more_is_refused() {
    let (mut broker, mut worker) = ends();
    let null = File::open("/dev/null").unwrap();
    worker.send(&ToBroker::Seal, &vec![null.as_fd(); MAX_FDS]).unwrap();
    let Ok(Received::Message(ToBroker::Seal, fds)) = broker.receive() else { panic!("not received") };
    assert_eq!(fds.len(), MAX_FDS);
    let too_many = worker.send(&ToBroker::Seal, &vec![null.as_fd(); MAX_FDS + 1]);
    assert!(matches!(too_many, Err(ChannelError::Io { .. })), "the kernel's own limit: {too_many:?}");
}

#[test]
fn what_is_no_message_is_an_error_and_leaves_no_fd() {
    let (mut broker, mut worker) = ends();
    let mut buffer = Box::new([0; MAX_MESSAGE]);
    let len = codec::encode(&reopen(), &mut buffer).unwrap();
    let mut refused = |bytes: &[u8]| {
        let (read, write) = canary();
        send_raw(&mut worker, bytes, &[read.as_fd(), read.as_fd()]);
        drop(read);
        let error = broker.receive().unwrap_err();
        assert!(is_closed(&write), "an fd stays open after: {error}");
        error
    };
    for cut in 1..len {
        assert!(matches!(refused(&buffer[..cut]), ChannelError::Decode(_)), "cut to {cut}");
    }
    let trailing = refused(&[&buffer[..len], &[0]].concat());
    assert!(matches!(trailing, ChannelError::Decode(codec::DecodeError::TrailingBytes(1))), "{trailing}");
    assert!(matches!(refused(&[0xff; 64]), ChannelError::Decode(_)));
}

/// A datagram that is longer than the buffer: the kernel cuts it, we refuse it.
#[test]
fn a_cut_datagram_is_an_error() {
    let (mut broker, worker) = ends();
    let long = vec![0; MAX_MESSAGE + 1];
    nix::sys::socket::send(worker.socket.as_raw_fd(), &long, MsgFlags::empty()).unwrap();
    assert!(matches!(broker.receive(), Err(ChannelError::MessageTruncated)));
    assert!(matches!(broker.receive(), Ok(Received::Nothing)));
}

/// A process at its limit of open files gets fewer fds than were sent: an error, not a shorter list. Runs in a
/// child of its own, since the limit is the process's.
#[test]
fn lost_fds_are_an_error() {
    let (mut broker, mut worker) = ends();
    let null = File::open("/dev/null").unwrap();
    worker.send(&ToBroker::Seal, &[null.as_fd(); 8]).unwrap();
    // SAFETY: the child takes no lock that another thread could hold (the C library's allocator survives a fork), and
    // leaves by _exit.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
            // The lowest free number is the last one allowed: room for exactly one of the eight.
            let lowest = null.try_clone().map(|fd| fd.as_raw_fd() as u64).unwrap_or(0);
            let (_, hard) = getrlimit(RLIMIT_NOFILE).unwrap_or((0, 0));
            let limited = setrlimit(RLIMIT_NOFILE, lowest + 1, hard).is_ok();
            let lost = limited && matches!(broker.receive(), Err(ChannelError::FdsTruncated));
            // SAFETY: _exit does not return and runs nothing of this process's.
            unsafe { libc::_exit(if lost { 0 } else { 1 }) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
        }
    }
}

#[test]
fn a_side_that_does_not_read_does_not_hold_up_the_broker() {
    let (mut broker, _worker) = ends();
    let reply = ToWorker::Reopened(List::new(vec![Ok(())]).unwrap());
    let full = (0..100_000).find_map(|_| broker.send(&reply, &[]).err());
    assert!(matches!(full, Some(ChannelError::Full)), "{full:?}");
}

#[test]
fn a_message_that_is_too_long_is_not_sent() {
    let (_broker, mut worker) = ends();
    let mut buffer = Box::new([0; MAX_MESSAGE]);
    let long = "x".repeat(MAX_MESSAGE);
    assert!(codec::encode(&long, &mut buffer).is_err());
    drop(_broker);
    assert!(matches!(worker.send(&ToBroker::Attached, &[]), Err(ChannelError::Io { .. })), "no SIGPIPE");
}
