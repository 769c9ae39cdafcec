//! The loop against real processes: a shell in the worker's place, the test at the worker's end of the channel.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;

use nix::sys::signal::raise;
use sandbox::namespaces::Namespaces;
use sandbox::process::Spawn;

use super::*;
use crate::broker::mounts::MountTable;
use crate::broker::privileges::Privileges;
use crate::broker::requests::{HostIds, TrustedNames};
use crate::broker::sealer::Sealer;
use crate::protocol::bounded::List;
use crate::protocol::channel::{self, WorkerEnd};
use crate::protocol::{Phase, Services, ToBroker};
use sandbox::capabilities::CapabilitySet;

fn server() -> Server {
    Server {
        phase: Phase::Starting,
        services: Services::default(),
        sealer: Sealer::new().unwrap(),
        mounts: MountTable::empty(),
        privileges: Privileges::new(CapabilitySet::EMPTY, CapabilitySet::EMPTY),
        host_ids: HostIds::default(),
        trusted_names: TrustedNames::All,
        readonly: false,
    }
}

/// A device whose worker runs this shell script, with the test at the worker's end of the channel and, as fd 0, the
/// read end of a pipe whose write end the test has.
fn device(script: &str) -> (Device, OwnedFd, OwnedFd) {
    let (ours, theirs) = channel::pair().unwrap();
    let (log, log_end) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let shell = File::open("/bin/sh").unwrap();
    let worker = Spawn {
        exe: shell.as_fd(),
        argv: ["sh", "-c", script].map(|word| CString::new(word).unwrap()).into(),
        envp: Vec::new(),
        fds: vec![(read.as_fd(), 0), (log_end.as_fd(), 2)],
        namespaces: Namespaces::empty(),
        id_maps: None,
    };
    let worker = worker.spawn().unwrap();
    let signals = take_signals().unwrap();
    (Device::new(server(), worker, BrokerEnd::for_broker(ours), log, signals), theirs, write)
}

#[test]
fn the_workers_status_is_the_outcome() {
    for (script, want) in [
        ("exit 0", Outcome::Disconnected),
        ("exit 1", Outcome::Failed),
        ("exit 101", Outcome::Failed),
        ("kill -BUS $$", Outcome::Failed),
        ("kill -SYS $$", Outcome::Failed),
        ("kill -KILL $$", Outcome::Failed),
    ] {
        let (mut device, _channel, _stdin) = device(script);
        assert_eq!(device.serve().unwrap(), want, "{script}");
    }
}

#[test]
fn a_good_worker_walks_through_the_phases() {
    // It ends when the test closes its standard input.
    let (mut device, channel, stdin) = device("read line; exit 0");
    let mut worker = WorkerEnd::for_worker(channel);
    worker.send(&ToBroker::Confined(List::new(Vec::new()).unwrap()), &[]).unwrap();
    worker.send(&ToBroker::Attached, &[]).unwrap();
    // Both messages before the end: the loop may see a process's end before what it said last.
    while device.server.phase != Phase::Serving {
        device.on_channel().unwrap();
    }
    drop((worker, stdin));
    assert_eq!(device.serve().unwrap(), Outcome::Disconnected);
}

/// The shell would run for ever.
#[test]
fn a_violation_ends_the_worker() {
    let null = File::open("/dev/null").unwrap();
    let first_messages: [&dyn Fn(&mut WorkerEnd); 5] = [
        &|worker| worker.send(&ToBroker::Attached, &[]).unwrap(),
        &|worker| worker.send(&ToBroker::Seal, &[null.as_fd()]).unwrap(),
        &|worker| worker.send(&ToBroker::Confined(List::new(Vec::new()).unwrap()), &[null.as_fd()]).unwrap(),
        &|worker| {
            nix::sys::socket::send(
                worker.as_fd().as_raw_fd(),
                b"garbage",
                nix::sys::socket::MsgFlags::empty(),
            )
            .unwrap();
        },
        &|worker| {
            let long = vec![0; crate::protocol::codec::MAX_MESSAGE + 1];
            nix::sys::socket::send(worker.as_fd().as_raw_fd(), &long, nix::sys::socket::MsgFlags::empty())
                .unwrap();
        },
    ];
    for (number, send) in first_messages.iter().enumerate() {
        let (mut device, channel, _stdin) = device("while true; do read line || exit 0; done");
        let mut worker = WorkerEnd::for_worker(channel);
        send(&mut worker);
        assert_eq!(device.serve().unwrap(), Outcome::Failed, "message {number}");
        assert_eq!(device.server.phase, Phase::Starting, "message {number}");
    }
}

/// Replies that nobody reads: the worker is killed, the broker does not wait.
#[test]
fn a_worker_that_does_not_read_ends() {
    let (mut device, channel, _stdin) = device("read line");
    device.server.phase = Phase::Serving;
    device.server.services.trusted_xattr = true;
    let mut worker = WorkerEnd::for_worker(channel);
    let null = File::open("/dev/null").unwrap();
    let sender = std::thread::spawn(move || {
        let request = ToBroker::TrustedXattr(crate::protocol::message::TrustedXattr::List);
        while worker.send(&request, &[null.as_fd()]).is_ok() {}
    });
    assert_eq!(device.serve().unwrap(), Outcome::Failed);
    drop(device);
    sender.join().unwrap();
}

#[test]
fn signals_end_the_device() {
    for signal in STOP_SIGNALS {
        let (mut device, _channel, _stdin) = device("read line");
        raise(signal).unwrap();
        assert_eq!(device.serve().unwrap(), Outcome::Stopped(signal));
    }
}

/// The worker's last words, and more than the pipe holds, are read while it runs; none of it holds the loop up.
#[test]
fn a_flood_of_log_lines_ends_with_the_worker() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo x >&2; i=$((i+1)); done; exit 0";
    let (mut device, _channel, _stdin) = device(script);
    assert_eq!(device.serve().unwrap(), Outcome::Disconnected);
    assert!(device.log_pipe.is_none(), "read to its end");
}

/// Closing the channel without ending is given up on after a while: the deadline passes without a sleep here.
#[test]
fn a_worker_that_only_hangs_up_is_killed() {
    let (mut device, channel, _stdin) = device("read line");
    drop(channel);
    // Another test's fork may hold the channel for a moment, until it execs.
    while device.ending.is_none() {
        device.on_channel().unwrap();
    }
    let ending = device.ending.as_mut().unwrap();
    assert!(!ending.killed);
    ending.deadline = Instant::now();
    assert_eq!(device.serve().unwrap(), Outcome::Failed);
}

/// A worker that can't be killed does not keep the broker: it is left alone, and dropping the device does not wait.
#[test]
fn a_worker_that_cannot_be_killed_is_given_up() {
    let (mut device, _channel, stdin) = device("read line");
    // Killed so far as the loop knows; the process knows nothing of it.
    let deadline = Instant::now();
    device.ending = Some(Ending { deadline, killed: true, outcome: Some(Outcome::Stopped(Signal::SIGTERM)) });
    assert_eq!(device.serve().unwrap(), Outcome::Stopped(Signal::SIGTERM));
    drop(device);
    // What was left ends when its "system call" does.
    drop(stdin);
}
