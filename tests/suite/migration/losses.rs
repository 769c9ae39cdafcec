//! What is lost on the way, what is made of it, and migrations that do not take place.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::session::Refused;
use tests::fuse::wire::{self, ROOT, init, opcode};
use tests::fuse::{Client, Session};
use tests::share::Share;
use zerocopy::IntoBytes;

use super::{LIMIT, Mode, OURS, check, command, furnish, live, migrate};

/// A guest that opened `name`, which was removed then: no path leads there.
fn with_a_lost_file(share: &Share, arguments: &[&str]) -> (Session, (u64, u64), (u64, u64)) {
    share.write("lost", "lost");
    share.write("kept", "kept");
    let source = DaemonCommand::serving(&OURS, share.path()).args(arguments);
    let mut session = Session::start(source, DeviceConfig::default());
    let client = session.client();
    let [lost, kept] = ["lost", "kept"].map(|name| {
        let node = client.lookup(ROOT, name).unwrap().nodeid;
        (node, client.open(node, libc::O_RDWR).unwrap().fh)
    });
    client.unlink(ROOT, "lost").unwrap();
    (session, lost, kept)
}

#[test]
fn abort_leaves_the_source_as_it_is() {
    bounded(LIMIT, || {
        let share = Share::new();
        let (mut session, lost, kept) = with_a_lost_file(&share, &[]);
        session.with_queues(|device, queues| device.start_log(queues)).unwrap();
        let (state, bases) = session.save().unwrap();
        let destination = DaemonCommand::serving(&OURS, share.path()).start();
        let refused = session.load(destination, DeviceConfig::default(), &state, &bases).unwrap_err();
        let Refused { mut session, mut destination, .. } = *refused;
        destination.wait(PATIENCE);
        let said = destination.stderr();
        let node = format!("inode {} ", lost.0);
        assert!(said.contains(&node) && said.contains("--migration-on-error=abort"), "{said}");
        // The guest goes on at the source.
        session.with_queues(|device, queues| device.resume(queues, &bases)).unwrap();
        session.with_queues(|device, queues| device.stop_log(queues)).unwrap();
        let client = session.client();
        assert_eq!(client.read(lost.0, lost.1, 0, 10).unwrap(), b"lost");
        assert_eq!(client.read(kept.0, kept.1, 0, 10).unwrap(), b"kept");
        // And can try again.
        session.with_queues(|device, queues| device.start_log(queues)).unwrap();
        let destination = DaemonCommand::serving(&OURS, share.path());
        let (mut session, _source) = migrate(session, destination.args(["--migration-on-error=guest-error"]));
        let client = session.client();
        assert_eq!(client.read(kept.0, kept.1, 0, 10).unwrap(), b"kept");
        assert_eq!(client.getattr(lost.0, None), Err(Errno::ESTALE));
        assert_eq!(client.read(lost.0, lost.1, 0, 10), Err(Errno::EBADF));
        client.forget(lost.0, 1);
        assert!(session.finish().0.success());
    });
}

#[test]
fn a_snapshot_is_restored_later() {
    bounded(LIMIT, || {
        let share = Share::new();
        furnish(&share);
        let source = command(&OURS, &share, Mode::FindPaths).args(["--migration-confirm-paths"]);
        let mut session = Session::start(source, DeviceConfig::default());
        let guest = live(&mut session);
        let (state, bases) = session.save().unwrap();
        // The source is gone before the guest goes on.
        assert_eq!(session.daemon.stop(Signal::SIGTERM).code(), Some(1));
        let destination = command(&OURS, &share, Mode::FindPaths).args(["--migration-on-error=guest-error"]);
        let loaded = session.load(destination.start(), DeviceConfig::default(), &state, &bases);
        let (mut session, _) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
        check(&mut session, &share, &guest, Mode::FindPaths);
        assert!(session.finish().0.success());
    });
}

#[test]
fn verification_finds_a_replaced_file() {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("same", "same");
        share.write("replaced", "before");
        let source = command(&OURS, &share, Mode::FindPaths).args(["--migration-verify-handles"]);
        let mut session = Session::start(source, DeviceConfig::default());
        let same = session.client().lookup(ROOT, "same").unwrap().nodeid;
        let replaced = session.client().lookup(ROOT, "replaced").unwrap().nodeid;
        let (state, bases) = session.save().unwrap();
        share.write("other", "after");
        fs::rename(share.join("other"), share.join("replaced")).unwrap();
        let destination = command(&OURS, &share, Mode::FindPaths).args(["--migration-on-error=guest-error"]);
        let loaded = session.load(destination.start(), DeviceConfig::default(), &state, &bases);
        let (mut session, _) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
        assert_eq!(session.client().getattr(same, None).unwrap().attr.size, 4);
        assert_eq!(session.client().getattr(replaced, None), Err(Errno::ESTALE));
    });
}

/// Both sides say which inode is lost, and where it was.
#[test]
fn messages_name_the_inode_and_its_last_path() {
    bounded(LIMIT, || {
        let share = Share::new();
        for file in ["a/b/removed", "a/b/gone later", "a/b/kept"] {
            share.write(file, "");
        }
        let mut session = Session::start(command(&OURS, &share, Mode::FindPaths), DeviceConfig::default());
        let client = session.client();
        let removed = client.walk("a/b/removed").unwrap().nodeid;
        let gone = client.walk("a/b/gone later").unwrap().nodeid;
        let b = client.walk("a/b").unwrap().nodeid;
        client.walk("a/b/kept").unwrap();
        client.unlink(b, "removed").unwrap();
        let (state, bases) = session.save().unwrap();
        let line = format!("inode {removed} is lost; it was last at \"a/b/removed (deleted)\"");
        session.daemon.wait_for_stderr(&line, 1);
        fs::remove_file(share.join("a/b/gone later")).unwrap();
        let destination = command(&OURS, &share, Mode::FindPaths).args(["--migration-on-error=guest-error"]);
        let loaded = session.load(destination.start(), DeviceConfig::default(), &state, &bases);
        let (session, _) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
        let line =
            format!("inode {gone} (\"a/b/gone later\") of the migration stream cannot be found here: ENOENT");
        session.daemon.wait_for_stderr(&line, 1);
        session.daemon.wait_for_stderr(&format!("inode {removed} (without a path"), 1);
    });
}

/// `--migration-confirm-paths`: what somebody else moved since it was found is found again.
#[test]
fn confirmed_paths_follow_the_host() {
    bounded(LIMIT, || {
        let share = Share::new();
        for file in ["dir/one", "dir/two", "stays"] {
            share.write(file, file);
        }
        let source = command(&OURS, &share, Mode::FindPaths).args(["--migration-confirm-paths"]);
        let mut session = Session::start(source, DeviceConfig::default());
        let nodes = ["dir/one", "dir/two", "stays"].map(|path| session.client().walk(path).unwrap().nodeid);
        session.with_queues(|device, queues| device.start_log(queues)).unwrap();
        while !session.daemon.stderr().contains("migration: prepared") {
            session.client().statfs(ROOT).unwrap();
        }
        // Behind the guest's back: a file within its directory, and another one's place taken by it.
        fs::rename(share.join("dir/one"), share.join("moved")).unwrap();
        fs::rename(share.join("dir/two"), share.join("dir/one")).unwrap();
        let (mut session, source) = migrate(session, command(&OURS, &share, Mode::FindPaths));
        drop(source);
        for (node, text) in nodes.into_iter().zip(["dir/one", "dir/two", "stays"]) {
            let client = session.client();
            let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
            assert_eq!(client.read(node, fh, 0, 100).unwrap(), text.as_bytes());
        }
    });
}

/// Locks on the host stay at the source, which says so; the file itself comes along.
#[test]
fn locks_on_the_host_stay_behind() {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("file", "file");
        let with_locks = || command(&OURS, &share, Mode::FindPaths).args(["--locks=posix"]);
        let flags = init::GUEST | init::POSIX_LOCKS;
        let mut session = Session::start_with(with_locks(), DeviceConfig::default(), flags);
        let client = session.client();
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let fh = client.open(node, libc::O_RDWR).unwrap().fh;
        let kind = libc::F_WRLCK as u32;
        let lock = wire::LkIn { fh, owner: 7, start: 0, end: 99, kind, pid: 1, ..Default::default() };
        let setlk = |client: &mut Client, lock: &wire::LkIn| {
            client.raw(opcode::SETLK, node, lock.as_bytes(), wire::OUT_HEADER).map(drop)
        };
        setlk(client, &lock).unwrap();
        let (mut session, source) = migrate(session, with_locks());
        source.daemon.wait_for_stderr("1 owners of byte-range locks lose theirs", 1);
        drop(source);
        let client = session.client();
        assert_eq!(client.read(node, fh, 0, 10).unwrap(), b"file");
        // Another owner gets it now, and the first one may have it again.
        let other = wire::LkIn { owner: 8, ..lock };
        setlk(client, &other).unwrap();
        assert_eq!(setlk(client, &lock), Err(Errno::EAGAIN));
    });
}
