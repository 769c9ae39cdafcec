//! Live migration between daemons, ours and upstream's, through the in-process front end: a guest that goes on at
//! another daemon with the nodes and handles that it has; and streams that no daemon made.

#[path = "migration/hostile.rs"]
mod hostile;
#[path = "migration/losses.rs"]
mod losses;
#[path = "migration/many.rs"]
mod many;
#[path = "migration/memory.rs"]
mod memory;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use tests::bounded::bounded;
use tests::daemon::DaemonCommand;
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::fuse::session::Left;
use tests::fuse::wire::{self, ROOT};
use tests::peers::{Implementation, UpstreamVersion};
use tests::share::Share;

const LIMIT: Duration = Duration::from_secs(120);
const OURS: Implementation = Implementation::Ours;
const V1_13: Implementation = Implementation::Upstream(UpstreamVersion::V1_13_3);
const V1_14: Implementation = Implementation::Upstream(UpstreamVersion::V1_14_0);

/// How the source names inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    FindPaths,
    FileHandles,
}

impl Mode {
    fn argument(self) -> &'static str {
        match self {
            Mode::FindPaths => "--migration-mode=find-paths",
            Mode::FileHandles => "--migration-mode=file-handles",
        }
    }
}

fn command(daemon: &Implementation, share: &Share, mode: Mode) -> DaemonCommand {
    DaemonCommand::serving(daemon, share.path()).args([mode.argument()])
}

/// What a guest holds: each node by its id, with the inode number that it must have, and handles.
struct Guest {
    nodes: Vec<(&'static str, u64, u64)>,
    file: (u64, u64),
    appended: (u64, u64),
    directory: (u64, u64),
    /// Names of the directory that were read, and where to go on.
    seen: BTreeSet<Vec<u8>>,
    offset: u64,
    unlinked: (u64, u64),
    covered: (u64, u64),
}

const ENTRIES: usize = 700;

fn furnish(share: &Share) {
    share.write("dir/sub/file", "file");
    share.write("dir/moves", "moves");
    share.write("other/victim", "victim");
    share.write("other/new", "new");
    share.write("unlinked", "unlinked");
    share.write("appended", "begin");
    fs::hard_link(share.join("dir/moves"), share.join("hard")).unwrap();
    std::os::unix::fs::symlink("dir/sub", share.join("symlink")).unwrap();
    for entry in 0..ENTRIES {
        share.write(format!("many/entry {entry}"), "");
    }
}

/// A guest that looks around, opens files, and goes on changing names when the migration has begun.
fn live(session: &mut Session) -> Guest {
    let client = session.client();
    let mut nodes = Vec::new();
    for path in [
        "dir",
        "dir/sub",
        "dir/sub/file",
        "dir/moves",
        "other",
        "other/victim",
        "other/new",
        "symlink",
        "many",
    ] {
        let entry = client.walk(path).unwrap();
        nodes.push((path, entry.nodeid, entry.attr.ino));
    }
    let node = |path: &str| nodes.iter().find(|(name, ..)| *name == path).unwrap().1;
    let file = node("dir/sub/file");
    let file = (file, client.open(file, libc::O_RDWR).unwrap().fh);
    client.write(file.0, file.1, 4, b" written").unwrap();
    let appended = client.lookup(ROOT, "appended").unwrap().nodeid;
    let appended = (appended, client.open(appended, libc::O_WRONLY).unwrap().fh);
    let unlinked = client.lookup(ROOT, "unlinked").unwrap().nodeid;
    let unlinked = (unlinked, client.open(unlinked, libc::O_RDWR).unwrap().fh);
    let covered = node("other/victim");
    let covered = (covered, client.open(covered, libc::O_RDONLY).unwrap().fh);
    let many = node("many");
    let directory = (many, client.opendir(many).unwrap().fh);
    let page = client.readdir(directory.0, directory.1, 0, 4096).unwrap();
    let offset = page.last().unwrap().offset;
    let seen: BTreeSet<Vec<u8>> = page.into_iter().map(|entry| entry.name).collect();
    assert!(!seen.is_empty() && seen.len() < ENTRIES / 2);
    // From here on the migration is being prepared.
    session.with_queues(|device, queues| device.start_log(queues)).unwrap();
    let client = session.client();
    let (dir, other) = (node("dir"), node("other"));
    client.rename((dir, "moves"), (other, "moved"), 0).unwrap();
    client.rename((ROOT, "dir"), (ROOT, "renamed"), 0).unwrap();
    client.rename((other, "new"), (other, "victim"), 0).unwrap();
    client.unlink(ROOT, "unlinked").unwrap();
    let late = client.mkdir(dir, "late", 0o755).unwrap();
    nodes.push(("renamed/late", late.nodeid, late.attr.ino));
    let made = client.create(late.nodeid, "made", libc::O_RDWR, 0o644).unwrap();
    nodes.push(("renamed/late/made", made.entry.nodeid, made.entry.attr.ino));
    client.write(made.entry.nodeid, made.open.fh, 0, b"made").unwrap();
    Guest { nodes, file, appended, directory, seen, offset, unlinked, covered }
}

/// The guest finds everything as it was, but for what can be lost.
fn check(session: &mut Session, share: &Share, guest: &Guest, mode: Mode) {
    let client = session.client();
    for (path, node, ino) in &guest.nodes {
        let attr = client.getattr(*node, None);
        if mode == Mode::FindPaths && *path == "other/victim" {
            assert!(attr.is_err(), "{path} has no name any more");
        } else {
            assert_eq!(attr.unwrap_or_else(|e| panic!("{path}: {e}")).attr.ino, *ino, "{path}");
        }
    }
    let node = |path: &str| guest.nodes.iter().find(|(name, ..)| *name == path).unwrap().1;
    let (file, fh) = guest.file;
    assert_eq!(client.read(file, fh, 0, 100).unwrap(), b"file written");
    client.write(file, fh, 0, b"FILE").unwrap();
    assert_eq!(share.read("renamed/sub/file"), b"FILE written");
    let (appended, fh) = guest.appended;
    client.write(appended, fh, 5, b" end").unwrap();
    assert_eq!(share.read("appended"), b"begin end");
    assert_eq!(client.readlink(node("symlink")).unwrap(), b"dir/sub");
    // The directory goes on where it was.
    let (directory, fh) = guest.directory;
    let (mut names, mut offset) = (guest.seen.clone(), guest.offset);
    loop {
        let page = client.readdir(directory, fh, offset, 4096).unwrap();
        let Some(last) = page.last() else { break };
        offset = last.offset;
        for entry in page {
            assert!(names.insert(entry.name.clone()), "{entry:?} comes twice");
        }
    }
    assert_eq!(names.len(), ENTRIES + 2);
    // Names lead to the nodes that the guest knows; each lookup is one more reference.
    assert_eq!(client.walk("renamed/sub/file").unwrap().nodeid, file);
    assert_eq!(client.walk("other/moved").unwrap().nodeid, node("dir/moves"));
    assert_eq!(client.walk("hard").unwrap().nodeid, node("dir/moves"));
    assert_eq!(client.walk("other/victim").unwrap().nodeid, node("other/new"));
    // A new node has an id that is not in use.
    let fresh = client.create(ROOT, "fresh", libc::O_RDWR, 0o644).unwrap();
    assert!(guest.nodes.iter().all(|(_, node, _)| *node != fresh.entry.nodeid));
    assert!(![guest.file.1, guest.appended.1, guest.directory.1].contains(&fresh.open.fh));
    client.release(fresh.entry.nodeid, fresh.open.fh).unwrap();
    client.unlink(ROOT, "fresh").unwrap();
    let (unlinked, covered) = (guest.unlinked, guest.covered);
    let unlinked = client.read(unlinked.0, unlinked.1, 0, 100);
    let covered = client.read(covered.0, covered.1, 0, 100);
    if mode == Mode::FileHandles {
        assert_eq!((unlinked.unwrap(), covered.unwrap()), (b"unlinked".to_vec(), b"victim".to_vec()));
    } else {
        assert!(unlinked.is_err() && covered.is_err(), "they have no path");
    }
    // Put back what a second check expects.
    client.write(file, guest.file.1, 0, b"file").unwrap();
    fs::write(share.join("appended"), "begin").unwrap();
}

/// Saves at the session's daemon and loads at another one, which must take it. The source is kept.
fn migrate(mut session: Session, destination: DaemonCommand) -> (Session, Left) {
    let saved = session.save();
    let (state, bases) = saved.unwrap_or_else(|e| panic!("{e}\n{}", session.daemon.stderr()));
    let loaded = session.load(destination.start(), DeviceConfig::default(), &state, &bases);
    loaded.unwrap_or_else(|no| panic!("{}\n{}", no.error, no.destination.stderr()))
}

fn there(source: &Implementation, destination: &Implementation, mode: Mode) {
    bounded(LIMIT, || {
        let share = Share::new();
        furnish(&share);
        let mut session = Session::start(command(source, &share, mode), DeviceConfig::default());
        let guest = live(&mut session);
        let destination = command(destination, &share, mode).args(["--migration-on-error=guest-error"]);
        // The source's daemon keeps removed files alive for as long as it runs.
        let (mut session, _source) = migrate(session, destination);
        check(&mut session, &share, &guest, mode);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

/// There and back again: A → B → A.
fn there_and_back(b: &Implementation, mode: Mode) {
    bounded(LIMIT, || {
        let share = Share::new();
        furnish(&share);
        let lenient = |daemon| command(daemon, &share, mode).args(["--migration-on-error=guest-error"]);
        let mut session = Session::start(lenient(&OURS), DeviceConfig::default());
        let guest = live(&mut session);
        let (mut session, _first) = migrate(session, lenient(b));
        check(&mut session, &share, &guest, mode);
        session.with_queues(|device, queues| device.start_log(queues)).unwrap();
        let (mut session, _second) = migrate(session, lenient(&OURS));
        check(&mut session, &share, &guest, mode);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

#[test]
fn there_and_back_by_paths() {
    there_and_back(&OURS, Mode::FindPaths);
    there_and_back(&V1_13, Mode::FindPaths);
}

#[test]
fn there_and_back_by_handles() {
    there_and_back(&OURS, Mode::FileHandles);
    there_and_back(&V1_14, Mode::FileHandles);
}

#[test]
fn by_paths_from_ours_to_ours() {
    there(&OURS, &OURS, Mode::FindPaths);
}

#[test]
fn by_paths_from_ours_to_1_13() {
    there(&OURS, &V1_13, Mode::FindPaths);
}

#[test]
fn by_paths_from_1_13_to_ours() {
    there(&V1_13, &OURS, Mode::FindPaths);
}

#[test]
fn by_paths_from_ours_to_1_14() {
    there(&OURS, &V1_14, Mode::FindPaths);
}

#[test]
fn by_paths_from_1_14_to_ours() {
    there(&V1_14, &OURS, Mode::FindPaths);
}

#[test]
fn by_handles_from_ours_to_ours() {
    there(&OURS, &OURS, Mode::FileHandles);
}

#[test]
fn by_handles_from_ours_to_1_13() {
    there(&OURS, &V1_13, Mode::FileHandles);
}

#[test]
fn by_handles_from_1_13_to_ours() {
    there(&V1_13, &OURS, Mode::FileHandles);
}

#[test]
fn by_handles_from_ours_to_1_14() {
    there(&OURS, &V1_14, Mode::FileHandles);
}

#[test]
fn by_handles_from_1_14_to_ours() {
    there(&V1_14, &OURS, Mode::FileHandles);
}

/// A stream's reference counts have one for each inode that is named in the directory, which its reader gives up again:
/// afterwards the guest has as many references as before, and the last one it forgets is the last one.
#[test]
fn references_are_counted_exactly() {
    let pairs = [(OURS, OURS), (OURS, V1_13), (V1_13, OURS), (OURS, V1_14), (V1_14, OURS)];
    for (source, destination) in &pairs {
        bounded(LIMIT, || {
            let share = Share::new();
            furnish(&share);
            let mode = Mode::FindPaths;
            let mut session = Session::start(command(source, &share, mode), DeviceConfig::default());
            let client = session.client();
            let dir = client.lookup(ROOT, "dir").unwrap().nodeid;
            assert_eq!(client.lookup(ROOT, "dir").unwrap().nodeid, dir);
            let sub = client.lookup(dir, "sub").unwrap().nodeid;
            let files = [0; 3].map(|_| client.lookup(sub, "file").unwrap().nodeid);
            let moves = client.lookup(dir, "moves").unwrap().nodeid;
            session.with_queues(|device, queues| device.start_log(queues)).unwrap();
            let (mut session, _source) = migrate(session, command(destination, &share, mode));
            let client = session.client();
            for (node, references) in [(files[0], 3), (moves, 1), (sub, 1), (dir, 2)] {
                client.forget(node, references - 1);
                let known = client.getattr(node, None);
                assert!(known.is_ok(), "{destination:?}: {node} has lost a reference: {known:?}");
                client.forget(node, 1);
                let known = client.getattr(node, None);
                assert_eq!(known.err(), Some(Errno::EBADF), "{destination:?}: {node} has one too many");
            }
            // The root has none that the guest can give up.
            client.getattr(ROOT, None).unwrap();
            assert!(session.finish().0.success());
        });
    }
}

/// RESET_DEVICE: a guest that is booted anew begins with nothing, also after a migration.
#[test]
fn a_reset_forgets_the_guest() {
    bounded(LIMIT, || {
        let share = Share::new();
        furnish(&share);
        let ours = || command(&OURS, &share, Mode::FindPaths);
        let mut session = Session::start(ours(), DeviceConfig::default());
        let client = session.client();
        let file = client.walk("dir/sub/file").unwrap().nodeid;
        let fh = client.open(file, libc::O_RDONLY).unwrap().fh;
        let (mut session, _source) = migrate(session, ours());
        assert_eq!(session.client().read(file, fh, 0, 10).unwrap(), b"file");
        let bases = session.device.stop().unwrap();
        session.device.reset().unwrap();
        session.with_queues(|device, queues| {
            for region in device.memory().regions().to_vec() {
                device.remove_region(&region).unwrap();
            }
            device.start_at(queues, &bases).unwrap();
        });
        let client = session.client();
        client.init(wire::init::GUEST).unwrap();
        assert_eq!(client.getattr(file, None), Err(Errno::EBADF));
        assert_eq!(client.read(file, fh, 0, 10), Err(Errno::EBADF));
        client.walk("dir/sub/file").unwrap();
        assert!(session.finish().0.success());
    });
}

/// A stream of version 1, which upstream wrote before 1.13, has no paths of mounts and is otherwise the same.
#[test]
fn version_1_is_read() {
    bounded(LIMIT, || {
        let share = Share::new();
        furnish(&share);
        let mut session = Session::start(command(&V1_13, &share, Mode::FindPaths), DeviceConfig::default());
        let file = session.client().walk("dir/sub/file").unwrap();
        let (mut state, bases) = session.save().unwrap();
        assert_eq!((state[0], state.pop()), (1, Some(0)), "version 2, and no mounts");
        state[0] = 0;
        let destination = command(&OURS, &share, Mode::FindPaths).start();
        let loaded = session.load(destination, DeviceConfig::default(), &state, &bases);
        let (mut session, _) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
        let attr = session.client().getattr(file.nodeid, None).unwrap().attr;
        assert_eq!((attr.ino, attr.size), (file.attr.ino, 4));
    });
}
