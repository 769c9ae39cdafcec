//! Live migration between daemons, ours and upstream's, through the in-process front end: a guest that goes on at
//! another daemon with the nodes and handles that it has; and streams that no daemon made.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::{Device, DeviceConfig, Error};
use tests::fuse::Session;
use tests::fuse::session::{Left, Refused};
use tests::fuse::wire::ROOT;
use tests::peers::{Implementation, UpstreamVersion};
use tests::share::{Share, TempDir};
use virtiofsd::worker::migrate::format::{self, DeviceState, FileHandle, Inode, InodeLocation};

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

#[test]
fn cold_inodes_and_submounts_come_along() {
    for mode in [Mode::FindPaths, Mode::FileHandles] {
        bounded(LIMIT, || {
            const FILES: usize = 3000;
            let share = Share::new();
            fs::create_dir(share.join("mount")).unwrap();
            let tmpfs: Option<&str> = Some("tmpfs");
            mount(tmpfs, &share.join("mount"), tmpfs, MsFlags::empty(), None::<&str>).unwrap();
            for file in 0..FILES {
                share.write(format!("files/{file}"), file.to_string());
            }
            share.write("mount/inner", "inner");
            let small = |daemon| command(daemon, &share, mode).args(["--rlimit-nofile=512"]);
            let mut session = Session::start(small(&OURS), DeviceConfig::default());
            let client = session.client();
            let inner = client.walk("mount/inner").unwrap();
            let files = client.lookup(ROOT, "files").unwrap().nodeid;
            let nodes: Vec<(u64, u64)> = (0..FILES)
                .map(|file| client.lookup(files, file.to_string()).unwrap())
                .map(|entry| (entry.nodeid, entry.attr.ino))
                .collect();
            let (mut session, _source) = migrate(session, small(&OURS));
            let client = session.client();
            for (file, (node, ino)) in nodes.iter().enumerate() {
                assert_eq!(client.getattr(*node, None).unwrap().attr.ino, *ino);
                if file % 100 == 0 {
                    let fh = client.open(*node, libc::O_RDONLY).unwrap().fh;
                    assert_eq!(client.read(*node, fh, 0, 10).unwrap(), file.to_string().as_bytes());
                    client.release(*node, fh).unwrap();
                }
            }
            let attr = client.getattr(inner.nodeid, None).unwrap().attr;
            assert_eq!((attr.ino, attr.size), (inner.attr.ino, 5));
            assert!(session.finish().0.success());
            nix::mount::umount(&share.join("mount")).unwrap();
        });
    }
}

/// Streams that somebody made up: nothing outside the share, and no harm.
#[test]
fn a_hostile_stream_reaches_nothing_outside() {
    bounded(LIMIT, || {
        let outside = TempDir::on_disk();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let share = Share::new();
        share.write("dir/file", "file");
        std::os::unix::fs::symlink(outside.path(), share.join("link")).unwrap();
        let location = |id, location| Inode { id, refcount: 1, location, file_handle: None };
        let path = |path: &str| InodeLocation::FullPath { filename: path.to_owned() };
        let handle = |path: &Path| InodeLocation::FileHandle { handle: handle_of(path) };
        let state = DeviceState {
            inodes: vec![
                location(1, InodeLocation::RootNode),
                location(2, path("link/secret")),
                location(3, path("link/.")),
                location(4, InodeLocation::Path { parent: 5, filename: "secret".to_owned() }),
                // One reference of the guest, one for the inode that claims to be in it.
                Inode { refcount: 2, ..location(5, path("link")) },
                location(6, handle(&outside.path().join("secret"))),
                location(7, handle(outside.path())),
                location(8, handle(outside.path().parent().unwrap())),
                location(9, handle(&share.join("dir/file"))),
                location(10, handle(&share.join("dir"))),
                location(11, InodeLocation::Path { parent: 12, filename: "a".to_owned() }),
                location(12, InodeLocation::Path { parent: 11, filename: "a".to_owned() }),
            ],
            next_inode: 1,
            mount_paths: [(0, ".".to_owned())].into(),
            ..DeviceState::default()
        };
        let mut bytes = Vec::new();
        format::write(&state, &mut bytes).unwrap();
        let session = Session::start(command(&OURS, &share, Mode::FindPaths), DeviceConfig::default());
        let destination = command(&OURS, &share, Mode::FindPaths).args(["--migration-on-error=guest-error"]);
        let bases = session.device.stop().unwrap();
        let loaded = session.load(destination.start(), DeviceConfig::default(), &bytes, &bases);
        let (mut session, _) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
        let client = session.client();
        for node in [2, 4, 6, 7, 8, 11, 12] {
            assert!(client.getattr(node, None).is_err(), "node {node}");
        }
        // The link itself is in the share.
        assert_eq!(client.readlink(3), client.readlink(5));
        assert_eq!(client.readlink(5).unwrap(), outside.path().as_os_str().as_encoded_bytes());
        assert_eq!(client.getattr(9, None).unwrap().attr.size, 4);
        assert_eq!(client.lookup(10, "file").unwrap().nodeid, 9);
    });
}

/// The handle of a file, as `name_to_handle_at` gives it, on mount 0.
fn handle_of(path: &Path) -> FileHandle {
    #[repr(C)]
    struct Raw {
        len: u32,
        kind: i32,
        bytes: [u8; 128],
    }
    let mut raw = Raw { len: 128, kind: 0, bytes: [0; 128] };
    let mut mount = 0i32;
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path is NUL-terminated, `raw` has the layout of struct file_handle with 128 bytes behind its
    // head, as it says, and both outlive the call.
    let result = unsafe {
        let raw = (&raw mut raw).cast::<libc::c_void>();
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), raw, &raw mut mount, 0)
    };
    assert_eq!(result, 0);
    FileHandle { mnt_id: 0, handle_type: raw.kind, handle: raw.bytes[..raw.len as usize].to_vec() }
}

/// 10,000 streams with bytes changed, cut off, put in or taken out, loaded one after another by one daemon.
#[test]
fn mutated_streams_do_no_harm() {
    bounded(LIMIT * 3, || {
        let share = Share::new();
        furnish(&share);
        let mut streams = Vec::new();
        for mode in [Mode::FindPaths, Mode::FileHandles] {
            let mut session = Session::start(command(&OURS, &share, mode), DeviceConfig::default());
            let client = session.client();
            for path in ["dir/sub/file", "dir/moves", "other/victim", "symlink"] {
                client.walk(path).unwrap();
            }
            let many = client.lookup(ROOT, "many").unwrap().nodeid;
            client.opendir(many).unwrap();
            streams.push(session.save().unwrap().0);
        }
        let destination = command(&OURS, &share, Mode::FindPaths)
            .args(["--migration-on-error=guest-error", "--log-level=off"])
            .start();
        let device = Device::connect(destination.connect(), DeviceConfig::default()).unwrap();
        device.load_state(&streams[0]).unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let mut taken = 0;
        for round in 0..10_000 {
            let mut stream = streams[round % 2].clone();
            for _ in 0..=next(4) {
                let place = next(stream.len());
                match next(4) {
                    0 => stream.truncate(place.max(1)),
                    1 => stream.insert(place, next(256) as u8),
                    2 => drop(stream.remove(place)),
                    _ => stream[place] = next(256) as u8,
                }
                if stream.is_empty() {
                    stream.push(0);
                }
            }
            match device.load_state(&stream) {
                Ok(()) => taken += 1,
                Err(Error::Refused { .. }) => {}
                Err(e) => panic!("round {round}: {e}\n{stream:?}"),
            }
        }
        assert!(taken > 100, "some are harmless: {taken}");
        device.load_state(&streams[0]).unwrap();
        let worker = *destination.descendants().last().unwrap();
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak < 200 << 10, "{peak} kB");
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

/// Prints what the migration of many inodes takes: `VIRTIOFSD_TEST_INODES=1000000 cargo test --release -p tests
/// --test migration -- --ignored --nocapture many_inodes`. Some minutes; as many files are made on the disk.
#[test]
#[ignore = "a measurement"]
fn many_inodes() {
    let count: usize = std::env::var("VIRTIOFSD_TEST_INODES").map_or(100_000, |n| n.parse().unwrap());
    bounded(LIMIT * 15, || {
        let share = Share::new();
        let directories: Vec<String> =
            (0..count.div_ceil(10_000)).map(|n| format!("directory {n}")).collect();
        for directory in &directories {
            fs::create_dir(share.join(directory)).unwrap();
            for file in 0..10_000 {
                fs::File::create(share.join(directory).join(format!("file {file}"))).unwrap();
            }
        }
        for mode in [Mode::FindPaths, Mode::FileHandles] {
            let mut session = Session::start(command(&OURS, &share, mode), DeviceConfig::default());
            let client = session.client();
            let mut last = 0;
            for directory in &directories {
                let node = client.lookup(ROOT, directory).unwrap().nodeid;
                for file in 0..10_000 {
                    last = client.lookup(node, format!("file {file}")).unwrap().nodeid;
                }
            }
            session.with_queues(|device, queues| device.start_log(queues)).unwrap();
            let (begin, mut longest) = (Instant::now(), Duration::ZERO);
            while mode == Mode::FindPaths && !session.daemon.stderr().contains("migration: prepared") {
                let one = Instant::now();
                session.client().getattr(last, None).unwrap();
                longest = longest.max(one.elapsed());
            }
            let prepared = begin.elapsed();
            let begin = Instant::now();
            let (state, bases) = session.save().unwrap();
            let saved = begin.elapsed();
            let destination = command(&OURS, &share, mode).start();
            let begin = Instant::now();
            let loaded = session.load(destination, DeviceConfig::default(), &state, &bases);
            let (session, _) = loaded.unwrap_or_else(|no| panic!("{}", no.destination.stderr()));
            println!(
                "{mode:?}, {} inodes: prepared in {prepared:?} (longest GETATTR meanwhile {longest:?}), saved in \
                 {saved:?}, {} bytes, loaded in {:?}",
                directories.len() * 10_001 + 1,
                state.len(),
                begin.elapsed()
            );
            drop(session);
        }
    });
}
