//! `--locks`: the guest's locks hold on the host, and waiting for one holds up nothing.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use tests::bounded::bounded;
use tests::bridge::{Bridge, BridgeOptions};
use tests::daemon::PATIENCE;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::{self, ROOT, init, opcode};
use tests::fuse::{Client, Session};
use tests::program::program;
use tests::share::{Share, TempDir};
use zerocopy::{FromBytes, IntoBytes};

use super::{LIMIT, command, returned, with_client, with_session};

const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const UNLOCK: u32 = libc::F_UNLCK as u32;
const END: u64 = i64::MAX as u64;
const FLOCK: u32 = 1;

fn lk(fh: u64, owner: u64, kind: u32, (start, end): (u64, u64)) -> wire::LkIn {
    wire::LkIn { fh, owner, start, end, kind, pid: 77, lk_flags: 0, padding: 0 }
}

fn flock(fh: u64, kind: u32) -> wire::LkIn {
    wire::LkIn { lk_flags: FLOCK, ..lk(fh, fh, kind, (0, END)) }
}

fn setlk(client: &mut Client, node: u64, request: wire::LkIn) -> Result<(), Errno> {
    client.raw(opcode::SETLK, node, request.as_bytes(), wire::OUT_HEADER).map(drop)
}

fn getlk(client: &mut Client, node: u64, request: wire::LkIn) -> Result<wire::LkOut, Errno> {
    let room = wire::OUT_HEADER + size_of::<wire::LkOut>();
    let body = client.raw(opcode::GETLK, node, request.as_bytes(), room)?;
    Ok(wire::LkOut::read_from_bytes(&body).unwrap())
}

fn setlkw(client: &mut Client, node: u64, request: wire::LkIn) -> u64 {
    client.submit(opcode::SETLKW, node, request.as_bytes())
}

/// A file in the share, looked up and opened twice.
fn open_twice(share: &Share, client: &mut Client) -> (u64, u64, u64) {
    share.write("file", "0123456789");
    let node = client.lookup(ROOT, "file").unwrap().nodeid;
    let [a, b] = [0; 2].map(|_| client.open(node, libc::O_RDWR).unwrap().fh);
    (node, a, b)
}

/// Whether a program on the host can lock these bytes, as an open file description.
fn free_on_host(path: &Path, start: i64, length: i64) -> bool {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let lock =
        libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: start, l_len: length, l_pid: 0 };
    // SAFETY: the call reads one struct flock, which lives until after it.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
}

fn flocked_on_host(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    // SAFETY: no memory is passed.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) != 0 }
}

#[test]
fn only_what_was_asked_for_is_negotiated() {
    for (args, wanted) in [
        (&[][..], 0),
        (&["--locks=posix"], init::POSIX_LOCKS),
        (&["--locks=flock"], init::FLOCK_LOCKS),
        (&["--locks=posix,flock"], init::POSIX_LOCKS | init::FLOCK_LOCKS),
    ] {
        with_session(args, |share, session| {
            let flags = u64::from(session.init.flags) & (init::POSIX_LOCKS | init::FLOCK_LOCKS);
            assert_eq!(flags, wanted);
            let client = session.client();
            let (node, a, _) = open_twice(share, client);
            let result = |on| if on { Ok(()) } else { Err(Errno::ENOSYS) };
            assert_eq!(setlk(client, node, lk(a, 1, WRITE, (0, 1))), result(wanted & init::POSIX_LOCKS != 0));
            assert_eq!(setlk(client, node, flock(a, WRITE)), result(wanted & init::FLOCK_LOCKS != 0));
        });
    }
}

#[test]
fn byte_ranges_belong_to_owners_and_hold_on_the_host() {
    with_client(&["--locks=posix"], |share, client| {
        let (node, a, b) = open_twice(share, client);
        let path = share.join("file");
        setlk(client, node, lk(a, 1, WRITE, (2, 3))).unwrap();
        // The same owner, through another descriptor: its own lock is no obstacle.
        setlk(client, node, lk(b, 1, READ, (3, 5))).unwrap();
        assert_eq!(setlk(client, node, lk(a, 2, WRITE, (5, END))), Err(Errno::EAGAIN));
        setlk(client, node, lk(a, 2, READ, (5, END))).unwrap();
        assert!(!free_on_host(&path, 2, 1) && !free_on_host(&path, 5, 1) && !free_on_host(&path, 1000, 1));
        assert!(free_on_host(&path, 0, 2));

        let found = getlk(client, node, lk(a, 3, WRITE, (0, 4))).unwrap();
        assert_eq!((found.start, found.end, found.kind), (2, 2, WRITE));
        let found = getlk(client, node, lk(a, 3, WRITE, (100, 100))).unwrap();
        assert_eq!((found.start, found.end, found.kind), (5, END, READ));
        assert_eq!(
            getlk(client, node, lk(a, 1, WRITE, (2, 3))).unwrap().kind,
            UNLOCK,
            "no obstacle to itself"
        );

        setlk(client, node, lk(a, 1, UNLOCK, (0, END))).unwrap();
        assert!(free_on_host(&path, 2, 3));
        // Nobody's lock: nothing to give up.
        setlk(client, node, lk(a, 9, UNLOCK, (0, END))).unwrap();
        // A host's lock is an obstacle.
        let host = File::options().write(true).open(&path).unwrap();
        let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 1, l_pid: 0 };
        // SAFETY: the call reads one struct flock, which lives until after it.
        assert_eq!(unsafe { libc::fcntl(host.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }, 0);
        assert_eq!(setlk(client, node, lk(a, 1, READ, (0, 0))), Err(Errno::EAGAIN));
        assert_eq!(getlk(client, node, lk(a, 1, READ, (0, 0))).unwrap().kind, WRITE);
    });
}

#[test]
fn locks_end_with_their_owners() {
    with_client(&["--locks=posix,flock"], |share, client| {
        let (node, a, b) = open_twice(share, client);
        let path = share.join("file");
        // Closing any descriptor of the owner gives all of its byte ranges up, and nobody else's.
        setlk(client, node, lk(a, 1, WRITE, (0, 1))).unwrap();
        setlk(client, node, lk(a, 2, WRITE, (4, 5))).unwrap();
        let flush = wire::FlushIn { fh: b, lock_owner: 1, ..Default::default() };
        client.raw(opcode::FLUSH, node, flush.as_bytes(), wire::OUT_HEADER).unwrap();
        assert!(free_on_host(&path, 0, 2) && !free_on_host(&path, 4, 1));
        // A whole-file lock ends with its open file.
        setlk(client, node, flock(a, WRITE)).unwrap();
        assert_eq!(setlk(client, node, flock(b, READ)), Err(Errno::EAGAIN));
        assert!(flocked_on_host(&path));
        client.release(node, a).unwrap();
        assert!(!flocked_on_host(&path));
        setlk(client, node, flock(b, READ)).unwrap();
        // The rest ends with the inode.
        client.release(node, b).unwrap();
        client.forget(node, 1);
        assert!(free_on_host(&path, 4, 1));
        assert_eq!(setlk(client, node, lk(a, 1, WRITE, (0, 1))), Err(Errno::EBADF));
    });
}

#[test]
fn the_end_of_the_session_gives_all_up() {
    with_client(&["--locks=posix,flock"], |share, client| {
        let (node, a, b) = open_twice(share, client);
        setlk(client, node, lk(a, 1, WRITE, (0, END))).unwrap();
        setlk(client, node, flock(b, WRITE)).unwrap();
        client.destroy().unwrap();
        assert!(free_on_host(&share.join("file"), 0, 0) && !flocked_on_host(&share.join("file")));
        client.init(init::GUEST).unwrap();
    });
}

/// A daemon and a guest of two queues.
fn two_queues(test: impl FnOnce(&Share, &mut Session) + Send) {
    bounded(LIMIT, || {
        let share = Share::new();
        let command = command(&share).args(["--locks=posix,flock", "--num-request-queues=2"]);
        let config = DeviceConfig { request_queues: 2, ..DeviceConfig::default() };
        let mut session = Session::start(command, config);
        test(&share, &mut session);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

#[test]
fn waiting_blocks_no_queue() {
    two_queues(|share, session| {
        let (one, two) = session.clients.split_at_mut(1);
        let (one, two) = (&mut one[0], &mut two[0]);
        let (node, a, b) = open_twice(share, one);
        setlk(one, node, lk(a, 1, WRITE, (0, END))).unwrap();
        let range = setlkw(one, node, lk(b, 2, WRITE, (3, 4)));
        // The same queue goes on.
        assert_eq!(one.getattr(node, None).unwrap().attr.size, 10);
        one.write(node, a, 0, b"x").unwrap();
        setlk(two, node, lk(a, 1, UNLOCK, (0, END))).unwrap();
        assert_eq!(one.collect(), (range, Ok(())));
        assert!(!free_on_host(&share.join("file"), 3, 2) && free_on_host(&share.join("file"), 0, 3));

        setlk(one, node, flock(a, READ)).unwrap();
        let whole = setlkw(one, node, flock(b, WRITE));
        one.getattr(node, None).unwrap();
        // To close is to give up.
        two.release(node, a).unwrap();
        assert_eq!(one.collect(), (whole, Ok(())));
    });
}

#[test]
fn a_lock_of_the_host_is_waited_for() {
    with_client(&["--locks=flock"], |share, client| {
        let (node, a, _) = open_twice(share, client);
        let host = File::open(share.join("file")).unwrap();
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::flock(host.as_raw_fd(), libc::LOCK_EX) }, 0);
        let unique = setlkw(client, node, flock(a, WRITE));
        client.getattr(node, None).unwrap();
        drop(host);
        assert_eq!(client.collect(), (unique, Ok(())));
    });
}

#[test]
fn a_wait_can_be_given_up() {
    two_queues(|share, session| {
        let (one, two) = session.clients.split_at_mut(1);
        let (one, two) = (&mut one[0], &mut two[0]);
        let (node, a, b) = open_twice(share, one);
        setlk(one, node, lk(a, 1, WRITE, (0, END))).unwrap();
        setlk(one, node, flock(a, WRITE)).unwrap();
        // INTERRUPT, which has no reply.
        let range = setlkw(one, node, lk(b, 2, WRITE, (3, 4)));
        one.getattr(node, None).unwrap();
        let interrupt = two.header(opcode::INTERRUPT, 0, size_of_val(&range));
        let interrupt = [interrupt.as_bytes(), &range.to_le_bytes()].concat();
        assert!(two.raw_message(&interrupt, wire::OUT_HEADER).is_empty());
        assert_eq!(one.collect(), (range, Err(Errno::EINTR)));
        // The open file, or the session, goes.
        let whole = setlkw(one, node, flock(b, READ));
        one.getattr(node, None).unwrap();
        two.release(node, b).unwrap();
        assert_eq!(one.collect(), (whole, Err(Errno::EINTR)));
        let range = setlkw(one, node, lk(a, 3, WRITE, (3, 4)));
        one.getattr(node, None).unwrap();
        two.destroy().unwrap();
        assert_eq!(one.collect(), (range, Err(Errno::EINTR)));
        one.init(init::GUEST).unwrap();
    });
}

/// A stop of the virtqueue answers those who wait, so that no request is lost over a save or a migration.
#[test]
fn a_stop_waits_for_nobody() {
    with_session(&["--locks=posix"], |share, session| {
        let client = session.client();
        let (node, a, b) = open_twice(share, client);
        setlk(client, node, lk(a, 1, WRITE, (0, END))).unwrap();
        let range = setlkw(client, node, lk(b, 2, WRITE, (3, 4)));
        client.getattr(node, None).unwrap();
        let bases = session.device.stop().unwrap();
        assert_eq!(session.client().collect(), (range, Err(Errno::EINTR)));
        session.with_queues(|device, queues| device.resume(queues, &bases).unwrap());
        let client = session.client();
        setlk(client, node, lk(b, 1, UNLOCK, (0, END))).unwrap();
        setlk(client, node, lk(b, 2, WRITE, (3, 4))).unwrap();
    });
}

/// A reset answers nobody: the guest's memory is its own again.
#[test]
fn a_reset_forgets_who_waits() {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = Session::start(command(&share).args(["--locks=flock"]), DeviceConfig::default());
        let client = session.client();
        let (node, a, b) = open_twice(&share, client);
        setlk(client, node, flock(a, WRITE)).unwrap();
        setlkw(client, node, flock(b, WRITE));
        client.getattr(node, None).unwrap();
        let used = returned(&session);
        session.device.reset().unwrap();
        assert!(!flocked_on_host(&share.join("file")), "the lock has gone with the session");
        assert_eq!(returned(&session), used);
        let Session { device, mut daemon, .. } = session;
        drop(device);
        assert!(daemon.wait(PATIENCE).success());
    });
}

/// A front end that goes while somebody waits.
#[test]
fn the_daemon_ends_while_somebody_waits() {
    bounded(LIMIT, || {
        let share = Share::new();
        let mut session = Session::start(command(&share).args(["--locks=posix"]), DeviceConfig::default());
        let client = session.client();
        let (node, a, b) = open_twice(&share, client);
        setlk(client, node, lk(a, 1, WRITE, (0, END))).unwrap();
        setlkw(client, node, lk(b, 2, WRITE, (3, 4)));
        client.getattr(node, None).unwrap();
        let Session { device, mut daemon, .. } = session;
        drop(device);
        assert!(daemon.wait(PATIENCE).success());
    });
}

#[test]
fn owners_are_bounded() {
    with_client(&["--locks=posix", "--rlimit-nofile=8192"], |share, client| {
        let (node, a, _) = open_twice(share, client);
        for owner in 0..4096 {
            setlk(client, node, lk(a, owner, READ, (0, 0))).unwrap();
        }
        assert_eq!(setlk(client, node, lk(a, 5000, READ, (0, 0))), Err(Errno::ENOLCK));
        let flush = wire::FlushIn { fh: a, lock_owner: 7, ..Default::default() };
        client.raw(opcode::FLUSH, node, flush.as_bytes(), wire::OUT_HEADER).unwrap();
        setlk(client, node, lk(a, 5000, READ, (0, 0))).unwrap();
    });
}

/// The kernel's client, and programs that lock: each adds to a counter under a lock, in the share and on the host.
#[test]
fn programs_count_under_locks() {
    for tool in ["flock", "fcntl"] {
        bounded(LIMIT, || {
            let (share, mountpoint) = (Share::new(), TempDir::short());
            share.write("counter", "0");
            let args = ["--locks=posix,flock", "--num-request-queues=2", "--cache=never"];
            let mut daemon = command(&share).args(args).start();
            let bridge = Bridge::mount_with(&daemon, mountpoint.path(), BridgeOptions::with_queues(2));
            let script = format!(
                "import fcntl, os, sys
for path in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        for _ in range(50):
            with open(path, 'r+') as f:
                fcntl.{}(f, fcntl.LOCK_EX)
                n = int(f.read()); f.seek(0); f.write(str(n + 1)); f.flush()
        os._exit(0)
if any(os.wait()[1] for _ in sys.argv[1:]): sys.exit('a child failed')",
                if tool == "flock" { "flock" } else { "lockf" }
            );
            let guest = bridge.path().join("counter");
            let on_host = share.join("counter");
            let paths = [&guest, &guest, &guest, &on_host];
            program("python3", "python3")
                .args(["-c", &script])
                .args(paths.map(|path| path.to_owned()))
                .succeed();
            assert_eq!(fs::read_to_string(share.join("counter")).unwrap(), "200", "{tool}");
            bridge.unmount().unwrap();
            assert!(daemon.wait(PATIENCE).success());
        });
    }
}
