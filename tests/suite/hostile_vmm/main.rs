//! A front end that breaks the vhost-user protocol. It can end its own daemon, and nothing more: each time the
//! daemon either serves on, or ends with status 1 and says why; it never hangs, spins, or dies without a word.
//!
//! - `messages`: malformed control messages, one for each daemon, and mutations of a good conversation.
//! - `memory`: memory that isn't there.
//! - `fds`: kick, call and error fds that are none, block, or never rest.

mod fds;
mod memory;
mod messages;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::bounded::bounded;
use tests::daemon::{Daemon, DaemonCommand, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::frontend::messages::{FLAG_VERSION, Request};
use tests::fuse::Session;
use tests::fuse::wire::ROOT;
use tests::peers::Implementation;
use tests::procfs::cpu_ticks;
use tests::share::Share;

const LIMIT: Duration = Duration::from_secs(200);

fn command(share: &Share) -> DaemonCommand {
    DaemonCommand::serving(&Implementation::Ours, share.path())
}

/// Runs `test` with a daemon that serves a guest with one request queue.
fn with_session(test: impl FnOnce(&Share, Session) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("file", "good");
        let config = DeviceConfig { queue_size: 64, max_data: 64 << 10, ..Default::default() };
        let session = Session::start(command(&share), config);
        test(&share, session);
    });
}

fn assert_serving(session: &mut Session) {
    assert_eq!(session.client().lookup(ROOT, "file").expect("a good request").attr.size, 4);
}

/// The daemon answers control messages.
fn assert_listening(session: &Session) {
    session.device.connection().call(Request::GetFeatures, &[], &[]).expect("GET_FEATURES");
}

/// The daemon ends by itself with status 1, having said all of this.
fn assert_fails(daemon: &mut Daemon, words: &[&str]) {
    let status = daemon.wait(PATIENCE);
    let stderr = daemon.stderr();
    assert_eq!(status.code(), Some(1), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "nothing of {word:?} in:\n{stderr}");
    }
}

/// Broker and worker use next to no CPU time for a while.
fn assert_at_rest(daemon: &Daemon) {
    let all = || {
        [&[daemon.pid()][..], &daemon.descendants()].concat().iter().map(|pid| cpu_ticks(*pid)).sum::<u64>()
    };
    let begin = all();
    let watch = Duration::from_millis(500);
    std::thread::park_timeout(watch);
    let used = all() - begin;
    // A tick is 10 ms: a thread that spins uses 50 of them, on a loaded machine fewer.
    assert!(used <= 5, "{used} ticks of CPU time in {watch:?}; stderr:\n{}", daemon.stderr());
}

#[test]
fn half_a_message_keeps_the_daemon_waiting_but_not_busy() {
    // A body that comes in parts is a mistake; one that doesn't come, not yet.
    for bytes in [1, 5, 12] {
        with_session(|_, mut session| {
            let header = [Request::SetVringNum as u32, FLAG_VERSION, 8, 0];
            let message: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
            session.device.connection().send_raw(&message[..bytes], &[]).unwrap();
            assert_at_rest(&session.daemon);
            // The guest is served all the same.
            assert_serving(&mut session);
            // The operator can end it, in time.
            let begin = Instant::now();
            assert_eq!(session.daemon.stop(Signal::SIGTERM).code(), Some(1));
            assert!(begin.elapsed() < Duration::from_secs(5));
        });
    }
}

#[test]
fn leaving_in_the_middle_of_a_message_ends_the_daemon() {
    for bytes in [1, 11, 12, 19] {
        with_session(|_, session| {
            let header = [Request::SetVringNum as u32, FLAG_VERSION, 8, 0];
            let mut message: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
            message.resize(20, 0);
            session.device.connection().send_raw(&message[..bytes], &[]).unwrap();
            let Session { device, mut daemon, .. } = session;
            drop(device);
            let status = daemon.wait(PATIENCE);
            // Half a header counts as an end, half a message as a mistake.
            let expected = if bytes < 12 { 0 } else { 1 };
            assert_eq!(status.code(), Some(expected), "{bytes} bytes:\n{}", daemon.stderr());
        });
    }
}

#[test]
fn replies_that_nobody_reads() {
    with_session(|_, mut session| {
        use std::os::fd::AsRawFd;
        let request = [Request::GetFeatures as u32, FLAG_VERSION, 0];
        let message: Vec<u8> = request.into_iter().flat_map(u32::to_ne_bytes).collect();
        let socket = std::os::fd::AsFd::as_fd(session.device.connection()).as_raw_fd();
        // Until the daemon waits for us to read, and we would wait for it.
        let mut quiet_rounds = 0;
        while quiet_rounds < 20 {
            // SAFETY: the socket is open, the buffer valid for its length; the call doesn't block.
            let sent =
                unsafe { libc::send(socket, message.as_ptr().cast(), message.len(), libc::MSG_DONTWAIT) };
            if sent < 0 {
                quiet_rounds += 1;
                std::thread::park_timeout(Duration::from_millis(5));
            } else {
                quiet_rounds = 0;
            }
        }
        assert_at_rest(&session.daemon);
        assert_serving(&mut session);
        let Session { device, mut daemon, .. } = session;
        drop(device);
        daemon.wait(PATIENCE);
    });
}

#[test]
fn leaving_with_requests_in_flight() {
    with_session(|_, session| {
        let Session { device, mut daemon, mut clients, .. } = session;
        let queue = clients[0].queue_mut();
        // Garbage in every slot: what matters is that there is work when we go.
        while let Some(slot) = queue.take() {
            queue.submit(slot, tests::frontend::Shape::new(64, 4096, 64, 4096));
        }
        queue.flush();
        drop(device);
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0), "{}", daemon.stderr());
    });
}
