//! The requests against real files, in a mount namespace of the test's own thread. These tests need root.

mod handles;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, fstat};
use proptest::prelude::*;
use sandbox::capabilities::CapabilitySet;
use sandbox::mounts::{ShareAttrs, clone_share};

use super::*;
use crate::broker::launch::{ids, own_capabilities};
use crate::broker::{launch, sys};
use crate::config::IdMapEntry;
use crate::protocol::arbitrary::{forged_handles, mutated, requests};
use crate::protocol::bounded::{Bytes, List};
use crate::protocol::codec;
use crate::protocol::message::{
    Admit, DeviceKind, MakeDevice, Permissions, TrustedXattr, XattrReply, XattrSetMode,
};
use crate::protocol::name::{EntryName, TrustedName};
use crate::protocol::{FileHandle, SealedHandle, handle};

const ALL: Services = Services { handles: true, admit: true, make_device: true, trusted_xattr: true };

/// A host: the share `share/` with a submount `share/sub/`, and beside it `secret`, on one file system.
struct Lab {
    root: PathBuf,
    share: OwnedFd,
}

/// Runs `test` in a thread with a mount namespace of its own: nothing of it stays when the thread ends.
fn in_lab(test: impl FnOnce(&Lab) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        test(&Lab::new(root));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn mount_tmpfs(path: &Path) {
    mount(Some("lab"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

impl Lab {
    fn new(root: PathBuf) -> Self {
        mount_tmpfs(&root);
        let share = root.join("share");
        for directory in ["dir/deep", "sub"] {
            fs::create_dir_all(share.join(directory)).unwrap();
        }
        mount_tmpfs(&share.join("sub"));
        for file in ["share/file", "share/dir/deep/file", "share/sub/file", "secret"] {
            fs::write(root.join(file), file).unwrap();
        }
        symlink("file", share.join("link")).unwrap();
        nix::unistd::mkfifo(&share.join("fifo"), Mode::S_IRUSR).unwrap();
        let share = launch::share::Share::open(&share).unwrap().fd;
        let share = clone_share(share.as_fd(), ShareAttrs::default(), None).unwrap();
        Self { root, share }
    }

    /// A server that has learned nothing yet, in its last phase, with everything enabled.
    fn server(&self) -> Server {
        let own = own_capabilities();
        let line = IdMapEntry { inner: 0, outer: 0, count: u32::MAX };
        Server {
            phase: Phase::Serving,
            services: ALL,
            sealer: Sealer::new().unwrap(),
            mounts: MountTable::of_share(self.share.as_fd()).unwrap(),
            privileges: Privileges::new(own, own),
            host_ids: HostIds { uids: vec![line], gids: vec![line] },
            trusted_names: TrustedNames::All,
            readonly: false,
        }
    }

    /// An `O_PATH` fd opened through the share, as a worker does.
    fn path_fd(&self, path: &str) -> OwnedFd {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.share, path, flags, Mode::empty()).unwrap()
    }

    /// An `O_PATH` fd opened through the host's mounts.
    fn host_fd(&self, path: &str) -> OwnedFd {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        nix::fcntl::open(&self.root.join(path), flags, Mode::empty()).unwrap()
    }

    fn reading_fd(&self, path: &str) -> OwnedFd {
        openat(&self.share, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
    }
}

fn seal_all(server: &mut Server, fds: Vec<OwnedFd>) -> Vec<Result<SealedHandle, i32>> {
    match server.handle(ToBroker::Seal, fds) {
        Ok(Answer::Reply(ToWorker::Sealed(results), fds)) if fds.is_empty() => {
            results.into_vec().into_iter().map(|result| result.map_err(|errno| errno.code())).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn seal(server: &mut Server, fd: OwnedFd) -> Result<SealedHandle, i32> {
    seal_all(server, vec![fd]).pop().unwrap()
}

fn reopen_all(
    server: &mut Server,
    sealed: Vec<SealedHandle>,
) -> Result<Vec<Result<OwnedFd, i32>>, Violation> {
    match server.handle(ToBroker::Reopen(List::new(sealed).unwrap()), Vec::new())? {
        Answer::Reply(ToWorker::Reopened(results), fds) => Ok(each(results, fds)),
        other => panic!("{other:?}"),
    }
}

/// Results with their fds.
fn each(
    results: List<Result<(), crate::protocol::Errno>, { crate::protocol::MAX_FDS }>,
    fds: Vec<OwnedFd>,
) -> Vec<Result<OwnedFd, i32>> {
    let mut fds = fds.into_iter();
    let mut opened = |result: Result<(), crate::protocol::Errno>| match result {
        Ok(()) => Ok(fds.next().unwrap()),
        Err(errno) => Err(errno.code()),
    };
    let results = results.into_vec().into_iter().map(&mut opened).collect();
    assert!(fds.next().is_none(), "an fd too many");
    results
}

fn reopen(server: &mut Server, sealed: &SealedHandle) -> Result<Result<OwnedFd, i32>, Violation> {
    let mut results = reopen_all(server, vec![sealed.clone()])?;
    assert_eq!(results.len(), 1);
    Ok(results.remove(0))
}

fn id(fd: impl AsFd) -> (u64, u64, sys::MountId) {
    let stat = fstat(&fd).unwrap();
    (stat.st_dev, stat.st_ino, sys::stat_fd(fd.as_fd()).unwrap().mount)
}

#[test]
fn sealed_files_reopen_on_the_shares_own_mount() {
    in_lab(|lab| {
        let mut server = lab.server();
        for path in [".", "file", "dir", "dir/deep/file", "link", "fifo"] {
            let fd = lab.path_fd(path);
            let want = id(&fd);
            let sealed = seal(&mut server, fd).unwrap();
            let reopened = reopen(&mut server, &sealed).unwrap().unwrap();
            assert_eq!(id(&reopened), want, "{path}");
            let flags = fcntl(&reopened, FcntlArg::F_GETFL).unwrap();
            assert_eq!(flags & libc::O_PATH, libc::O_PATH, "{path}: for nothing but to name the file");
            assert_eq!(seal(&mut server, reopened), Ok(sealed), "{path}: seals of one file are equal");
        }
    });
}

fn admit_all(
    server: &mut Server,
    mount: u32,
    handles: Vec<FileHandle>,
) -> Result<Vec<Result<OwnedFd, i32>>, Violation> {
    let handles = List::new(handles).unwrap();
    match server.handle(ToBroker::Admit(Admit { mount, handles }), Vec::new())? {
        Answer::Reply(ToWorker::Admitted(results), fds) => Ok(each(results, fds)),
        other => panic!("{other:?}"),
    }
}

fn admit(server: &mut Server, mount: u32, handle: &FileHandle) -> Result<Result<OwnedFd, i32>, Violation> {
    let mut results = admit_all(server, mount, vec![handle.clone()])?;
    assert_eq!(results.len(), 1);
    Ok(results.remove(0))
}

#[test]
fn a_batch_has_a_result_for_each_fd() {
    in_lab(|lab| {
        let mut server = lab.server();
        let paths = ["file", "dir", "link"];
        let fds = (0..crate::protocol::MAX_FDS).map(|n| match n % 4 {
            3 => lab.host_fd("secret"),
            n => lab.path_fd(paths[n]),
        });
        let results = seal_all(&mut server, fds.collect());
        assert_eq!(results.len(), crate::protocol::MAX_FDS);
        for (n, result) in results.iter().enumerate() {
            match n % 4 {
                3 => assert_eq!(*result, Err(libc::EXDEV)),
                n => assert_eq!(*result, results[n]),
            }
        }
    });
}

#[test]
fn a_deleted_file_is_stale() {
    in_lab(|lab| {
        let mut server = lab.server();
        let sealed = seal(&mut server, lab.path_fd("dir/deep/file")).unwrap();
        fs::remove_file(lab.root.join("share/dir/deep/file")).unwrap();
        assert!(matches!(reopen(&mut server, &sealed), Ok(Err(libc::ESTALE))));
        // Whatever takes its place is another file.
        fs::write(lab.root.join("share/dir/deep/file"), "new").unwrap();
        assert!(matches!(reopen(&mut server, &sealed), Ok(Err(libc::ESTALE))));
    });
}

#[test]
fn forged_handles_end_the_worker() {
    in_lab(|lab| {
        let mut server = lab.server();
        let sealed = seal(&mut server, lab.path_fd("file")).unwrap();
        let bytes = sealed.handle.bytes.as_slice().to_vec();
        let with = |bytes: &[u8]| {
            let mut forged = sealed.clone();
            forged.handle.bytes = Bytes::new(bytes).unwrap();
            forged
        };
        let mut forged = vec![
            SealedHandle { mount: 1, ..sealed.clone() },
            SealedHandle { mount: u32::MAX, ..sealed.clone() },
            SealedHandle { mac: [0; handle::MAC_BYTES], ..sealed.clone() },
            with(&bytes[..bytes.len() - 1]),
            with(&[&bytes[..], &[0]].concat()),
            with(&[]),
        ];
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            forged.push(with(&changed));
        }
        // The real handle of a file outside the share, which an attacker may well guess.
        let (secret, _) = sys::handle_of(lab.host_fd("secret").as_fd()).unwrap();
        forged.push(SealedHandle { handle: secret, ..sealed.clone() });
        // A genuine seal of another device.
        forged.push(seal(&mut lab.server(), lab.path_fd("file")).unwrap());
        for forged in forged {
            assert_eq!(reopen(&mut server, &forged).unwrap_err(), Violation::ForgedHandle, "{forged:?}");
        }
        assert!(reopen(&mut server, &sealed).unwrap().is_ok(), "the genuine one");
    });
}

#[test]
fn files_that_were_not_opened_through_the_share_are_not_sealed() {
    in_lab(|lab| {
        let mut server = lab.server();
        // The same file system; the same file, by the host's mount; other file systems; mount roots of the host's.
        for path in ["secret", "share/file", "share", ".", "share/sub", "share/sub/file"] {
            assert_eq!(seal(&mut server, lab.host_fd(path)), Err(libc::EXDEV), "{path}");
        }
        let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        assert!(matches!(seal(&mut server, root), Err(libc::EXDEV | libc::EOPNOTSUPP)));
        let proc = nix::fcntl::open("/proc", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        assert!(matches!(seal(&mut server, proc), Err(libc::EXDEV | libc::EOPNOTSUPP)));
        // Another device's clone of the same share.
        let other = clone_share(lab.host_fd("share").as_fd(), ShareAttrs::default(), None).unwrap();
        assert_eq!(seal(&mut server, other), Err(libc::EXDEV));
    });
}

#[test]
fn a_submount_is_learned_from_its_root() {
    in_lab(|lab| {
        let mut server = lab.server();
        assert_eq!(seal(&mut server, lab.path_fd("sub/file")), Err(libc::EXDEV), "not known yet");
        let root = seal(&mut server, lab.path_fd("sub")).unwrap();
        let file = seal(&mut server, lab.path_fd("sub/file")).unwrap();
        assert_eq!((root.mount, file.mount), (1, 1));
        let reopened = reopen(&mut server, &file).unwrap().unwrap();
        assert_eq!(id(&reopened), id(lab.path_fd("sub/file")));
        assert_ne!(id(&reopened).2, id(lab.path_fd("file")).2);
        // A seal for one mount is none for another.
        let moved = SealedHandle { mount: 0, ..file };
        assert_eq!(reopen(&mut server, &moved).unwrap_err(), Violation::ForgedHandle);
    });
}

/// Access modes do not matter, being a file of the share does.
#[test]
fn what_is_no_file_is_not_sealed() {
    in_lab(|lab| {
        let mut server = lab.server();
        let sealed = seal(&mut server, lab.path_fd("file"));
        assert_eq!(seal(&mut server, lab.reading_fd("file")), sealed);
        let (socket, _other) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        let fds = vec![socket.into(), read, write, event.into()];
        for result in seal_all(&mut server, fds) {
            assert!(matches!(result, Err(libc::EXDEV | libc::EOPNOTSUPP)), "{result:?}");
        }
        let made = make(&mut server, device("null", 0), UnixStream::pair().unwrap().0.into());
        assert_eq!(made, Err(libc::EXDEV));
    });
}

fn device(name: &str, uid: u32) -> MakeDevice {
    MakeDevice {
        name: EntryName::new(name.as_bytes()).unwrap(),
        kind: DeviceKind::Character,
        permissions: Permissions::of_mode(0o666),
        umask: Permissions::of_mode(0o022),
        major: 1,
        minor: 3,
        uid,
        gid: 5,
    }
}

fn make(server: &mut Server, device: MakeDevice, directory: OwnedFd) -> Result<(), i32> {
    match server.handle(ToBroker::MakeDevice(device), vec![directory]) {
        Ok(Answer::Reply(ToWorker::DeviceMade(result), _)) => result.map_err(|errno| errno.code()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_device_node_belongs_to_the_guests_root() {
    in_lab(|lab| {
        let mut server = lab.server();
        let line = IdMapEntry { inner: 0, outer: 100_000, count: 1000 };
        server.host_ids = HostIds { uids: vec![line], gids: vec![line] };
        let standing = CapabilitySet::EMPTY.with(caps::Capability::CAP_DAC_READ_SEARCH);
        server.privileges = Privileges::new(own_capabilities(), standing);
        fs::set_permissions(lab.root.join("share/dir"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        assert_eq!(make(&mut server, device("null", 0), lab.path_fd("dir")), Ok(()));
        let made = fs::symlink_metadata(lab.root.join("share/dir/null")).unwrap();
        assert_eq!((made.uid(), made.gid()), (100_000, 100_005));
        assert_eq!(made.mode(), libc::S_IFCHR | 0o644);
        assert_eq!(made.rdev(), libc::makedev(1, 3));
        // Afterwards the broker is itself again, with its standing capabilities only.
        assert_eq!(own_capabilities(), standing);
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("Uid:\t0\t0\t0\t0\n") && status.contains("Gid:\t0\t0\t0\t0\n"), "{status}");
        assert_eq!(make(&mut server, device("null", 0), lab.path_fd("dir")), Err(libc::EEXIST));
    });
}

#[test]
fn devices_that_are_refused() {
    in_lab(|lab| {
        let mut server = lab.server();
        assert_eq!(
            make(&mut server, device("a", 1), lab.path_fd("dir")),
            Err(libc::EPERM),
            "an ordinary user"
        );
        assert_eq!(make(&mut server, device("a", 0), lab.host_fd("share")), Err(libc::EXDEV), "outside");
        assert_eq!(make(&mut server, device("a", 0), lab.path_fd("file")), Err(libc::ENOTDIR));
        server.host_ids = HostIds::default();
        assert_eq!(make(&mut server, device("a", 0), lab.path_fd("dir")), Err(libc::EOVERFLOW), "no such id");
        server.readonly = true;
        assert_eq!(make(&mut server, device("a", 0), lab.path_fd("dir")), Err(libc::EROFS));
        assert!(!lab.root.join("share/dir/a").exists());
    });
}

fn xattr(server: &mut Server, request: TrustedXattr, fd: OwnedFd) -> Result<XattrReply, i32> {
    match server.handle(ToBroker::TrustedXattr(request), vec![fd]) {
        Ok(Answer::Reply(ToWorker::TrustedXattr(result), _)) => result.map_err(|errno| errno.code()),
        other => panic!("{other:?}"),
    }
}

fn get(name: &str) -> TrustedXattr {
    TrustedXattr::Get { name: TrustedName::new(name.as_bytes()).unwrap() }
}

fn set(name: &str, value: &[u8], mode: XattrSetMode) -> TrustedXattr {
    let name = TrustedName::new(name.as_bytes()).unwrap();
    TrustedXattr::Set { name, value: Bytes::new(value).unwrap(), mode }
}

#[test]
fn trusted_attributes_of_files_that_can_and_cannot_be_opened() {
    in_lab(|lab| {
        let mut server = lab.server();
        for path in ["file", "dir", "link", "fifo"] {
            let mut ask = |request| xattr(&mut server, request, lab.path_fd(path));
            assert_eq!(ask(get("trusted.a")), Err(libc::ENODATA), "{path}");
            assert_eq!(ask(set("trusted.a", b"value", XattrSetMode::Replace)), Err(libc::ENODATA));
            assert_eq!(ask(set("trusted.a", b"value", XattrSetMode::Create)), Ok(XattrReply::Done));
            assert_eq!(ask(set("trusted.a", b"other", XattrSetMode::Create)), Err(libc::EEXIST));
            assert_eq!(ask(get("trusted.a")), Ok(XattrReply::Value(Bytes::new(b"value").unwrap())));
            let names = XattrReply::Names(Bytes::new(b"trusted.a\0").unwrap());
            assert_eq!(ask(TrustedXattr::List), Ok(names), "{path}");
            let name = TrustedName::new(b"trusted.a").unwrap();
            assert_eq!(ask(TrustedXattr::Remove { name }), Ok(XattrReply::Done));
            assert_eq!(ask(get("trusted.a")), Err(libc::ENODATA));
        }
        let reading = xattr(&mut server, set("trusted.b", b"", XattrSetMode::Any), lab.reading_fd("file"));
        assert_eq!(reading, Ok(XattrReply::Done), "through an ordinary fd");
    });
}

#[test]
fn trusted_attributes_that_are_refused() {
    in_lab(|lab| {
        let mut server = lab.server();
        let any = || set("trusted.a", b"x", XattrSetMode::Any);
        for path in ["secret", "share/file"] {
            assert_eq!(xattr(&mut server, any(), lab.host_fd(path)), Err(libc::EXDEV), "{path}");
        }
        let (socket, _other) = UnixStream::pair().unwrap();
        assert_eq!(xattr(&mut server, get("trusted.a"), socket.into()), Err(libc::EXDEV));
        server.trusted_names = TrustedNames::of(Some(":map::trusted.v.:"));
        assert_eq!(xattr(&mut server, any(), lab.path_fd("file")), Err(libc::EPERM));
        let allowed = set("trusted.v.user.x", b"x", XattrSetMode::Any);
        assert_eq!(xattr(&mut server, allowed.clone(), lab.path_fd("file")), Ok(XattrReply::Done));
        server.trusted_names = TrustedNames::of(Some("not a map"));
        assert_eq!(xattr(&mut server, allowed.clone(), lab.path_fd("file")), Err(libc::EPERM));
        server.trusted_names = TrustedNames::All;
        server.readonly = true;
        assert_eq!(xattr(&mut server, allowed, lab.path_fd("file")), Err(libc::EROFS));
        assert!(xattr(&mut server, get("trusted.v.user.x"), lab.path_fd("file")).is_ok());
    });
}

/// Every kind of fd that a hostile worker can hold or be sent.
fn any_fd(lab: &Lab, kind: u8) -> OwnedFd {
    match kind % 10 {
        0 => lab.path_fd("file"),
        1 => lab.path_fd("dir"),
        2 => lab.path_fd("sub"),
        3 => lab.path_fd("link"),
        4 => lab.path_fd("fifo"),
        5 => lab.reading_fd("file"),
        6 => lab.host_fd("secret"),
        7 => UnixStream::pair().unwrap().0.into(),
        8 => nix::unistd::pipe().unwrap().0,
        _ => File::open("/dev/null").unwrap().into(),
    }
}

/// What must hold whatever comes.
fn put(server: &mut Server, request: ToBroker, fds: Vec<OwnedFd>) {
    let (kind, phase, services, count) = (request.kind(), server.phase, server.services, fds.len());
    let gated = gate(kind, phase, services, count);
    match server.handle(request.clone(), fds) {
        Ok(answer) => {
            assert_eq!(gated, Ok(server.phase), "{request:?} got {answer:?}");
            // No handle in these tests was sealed here.
            let forged = matches!(&request, ToBroker::Reopen(handles) if !handles.as_slice().is_empty());
            assert!(!forged, "a forged handle got {answer:?}");
            let is_own = matches!(
                (kind, &answer),
                (Kind::Confined, Answer::Confined(_))
                    | (Kind::Attached, Answer::Attached)
                    | (Kind::Seal, Answer::Reply(ToWorker::Sealed(_), _))
                    | (Kind::Reopen, Answer::Reply(ToWorker::Reopened(_), _))
                    | (Kind::Admit, Answer::Reply(ToWorker::Admitted(_), _))
                    | (Kind::MakeDevice, Answer::Reply(ToWorker::DeviceMade(_), _))
                    | (Kind::TrustedXattr, Answer::Reply(ToWorker::TrustedXattr(_), _))
            );
            assert!(is_own, "{request:?} got {answer:?}");
        }
        Err(violation) => {
            assert_eq!(server.phase, phase, "a violation changes nothing");
            match gated {
                Err(expected) => assert_eq!(violation, expected),
                Ok(_) => assert!(matches!(violation, Violation::ForgedHandle | Violation::UnknownMount)),
            }
        }
    }
}

fn phases() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![Phase::Starting, Phase::Listening, Phase::Serving])
}

fn services() -> impl Strategy<Value = Services> {
    any::<[bool; 4]>().prop_map(|[handles, admit, make_device, trusted_xattr]| Services {
        handles,
        admit,
        make_device,
        trusted_xattr,
    })
}

/// All requests × phases × services × kinds and numbers of fds, whole and with mutated encodings.
#[test]
fn no_request_hurts_the_broker() {
    in_lab(|lab| {
        let fds = prop::collection::vec(any::<u8>(), 0..4);
        let cases = (requests(), phases(), services(), fds);
        let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let shared = std::cell::RefCell::new(lab.server());
        let run = |request: ToBroker, phase, services, kinds: &[u8]| {
            let mut server = shared.borrow_mut();
            server.phase = phase;
            server.services = services;
            put(&mut server, request, kinds.iter().map(|kind| any_fd(lab, *kind)).collect());
        };
        runner
            .run(&cases, |(request, phase, services, kinds)| {
                run(request, phase, services, &kinds);
                Ok(())
            })
            .unwrap();
        let encoded = requests().prop_map(|request| {
            let mut buffer = Box::new([0; codec::MAX_MESSAGE]);
            let len = codec::encode(&request, &mut buffer).unwrap();
            buffer[..len].to_vec()
        });
        let kinds = prop::collection::vec(any::<u8>(), 0..3);
        runner
            .run(&(encoded.prop_flat_map(mutated), phases(), kinds), |(bytes, phase, kinds)| {
                if let Ok(request) = codec::decode::<ToBroker>(&bytes) {
                    run(request, phase, ALL, &kinds);
                }
                Ok(())
            })
            .unwrap();
        runner
            .run(&forged_handles(), |forged| {
                let mut server = shared.borrow_mut();
                server.phase = Phase::Serving;
                server.services = ALL;
                prop_assert_eq!(reopen(&mut server, &forged).unwrap_err(), Violation::ForgedHandle);
                Ok(())
            })
            .unwrap();
    });
}

/// The ids of a device in a shifted namespace are those that the id-mapped mount turns back into the guest's.
#[test]
fn shifted_ids_meet_the_mount() {
    let plan = &ids::plans(&test_confinement(), true).unwrap()[0];
    let Some(maps) = &plan.maps else { panic!("no maps") };
    assert!(plan.idmapped);
    assert_eq!(plan.host_ids().uid(0), Some(maps.uid[0].outer));
    assert_eq!(plan.host_ids().gid(5), Some(maps.gid[0].outer + 5));
}

fn test_confinement() -> crate::config::Confinement {
    use crate::config::{Confinement, LandlockMode, PrivilegedRequests, SandboxMode, SeccompMode, WorkerIds};
    Confinement {
        sandbox: SandboxMode::Namespace,
        seccomp: SeccompMode::Kill,
        landlock: LandlockMode::Free,
        worker_ids: WorkerIds::Auto,
        uid_map: Vec::new(),
        gid_map: Vec::new(),
        privileged: PrivilegedRequests::default(),
        worker_caps: std::collections::BTreeSet::new(),
    }
}

#[test]
fn an_empty_table_knows_no_file() {
    in_lab(|lab| {
        let mut server = lab.server();
        server.mounts = MountTable::empty();
        assert_eq!(seal(&mut server, lab.path_fd("file")), Err(libc::EXDEV));
        assert_eq!(server.mounts.check(lab.share.as_fd()), Err(Errno::EXDEV));
    });
}
