//! What guest and front end do so that the daemon makes every call that its policies have.

use std::time::Instant;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, ftruncate};
use tests::daemon::PATIENCE;
use tests::frontend::DeviceConfig;
use tests::frontend::memory::{PAGE, Region};
use tests::fuse::wire::{self, ROOT, fattr, init, opcode};
use tests::fuse::{Caller, Client, SetAttr};
use tests::share::Share;
use zerocopy::IntoBytes;

use super::trace::{self, Trace, Traced};

type Work = fn(&Share, &mut Traced);

/// Each widening of a policy, the options that bring it, and what needs it.
pub const WIDENINGS: [(&str, &str, &[&str], Work); 8] = [
    ("worker", "limits", &["--limit-ops=200/5"], limits),
    ("worker", "xattr", &["--xattr"], |_, traced| xattrs(traced, "user.a")),
    ("worker", "posix-acl", &["--posix-acl"], umask),
    ("worker", "set-id", &["--killpriv-v2"], set_id),
    ("worker", "locks", &["--locks=posix,flock"], locks),
    ("worker", "ioctl", &["--ioctl"], ioctls),
    ("broker", "make-device", &["--modcaps=+mknod"], devices),
    ("broker", "trusted-xattr", &["--xattr", "--modcaps=+sys_admin"], |_, traced| {
        xattrs(traced, "trusted.a");
    }),
];

/// Everything that a guest does with default options, and a migration of it.
pub fn source_and_destination() -> Trace {
    let share = Share::new();
    std::fs::create_dir(share.join("mount")).expect("a directory");
    mount(Some("t"), &share.join("mount"), Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    share.write("mount/file", "on another file system");
    let mut source = Traced::start(&share, &[], DeviceConfig::default(), init::GUEST);
    let session = source.session();
    let client = session.client();
    files(client);
    names(client);
    long_lists(client);
    creations_by_others(client);
    client.walk("mount/file").expect("LOOKUP");
    let region = Region::new(1 << 40, PAGE).expect("memory");
    session.device.add_region(&region).expect("ADD_MEM_REG");
    session.device.remove_region(&region).expect("REM_MEM_REG");
    session.with_queues(|device, queues| device.start_log(queues)).expect("SET_LOG_BASE");
    let (state, bases) = session.save().expect("a device state");

    // What was removed is lost on the way.
    let (destination, log) = trace::daemon(&share, &["--migration-on-error=guest-error"]);
    let session = source.session.take().expect("it still serves");
    let loaded = session.load(destination, DeviceConfig::default(), &state, &bases);
    let Ok((session, left)) = loaded else { panic!("the destination took its own kind's state") };
    let (status, stderr) = session.finish();
    assert!(status.success(), "{status}\n{stderr}");
    drop(left.device);
    let mut daemon = left.daemon;
    daemon.wait(tests::daemon::PATIENCE);
    let mut calls = source.finish();
    calls.add(trace::read(&log));
    umount(&share.join("mount")).expect("umount");
    calls
}

/// Requests on open files.
fn files(client: &mut Client) {
    let made = client.create(ROOT, "file", libc::O_RDWR, 0o100_644).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    client.write(node, fh, 0, &[1; 8192]).expect("WRITE");
    client.read(node, fh, 0, 4096).expect("READ");
    client.write_scattered(node, wire::WriteIn { fh, ..Default::default() }, &[1; 8192]).expect("WRITE");
    client.read_scattered(node, fh, 0, 8192).expect("READ");
    client.fsync(node, fh, false).expect("FSYNC");
    client.fsync(node, fh, true).expect("FSYNC of data");
    client.fallocate(node, fh, 0, 0, 16384).expect("FALLOCATE");
    client.lseek(node, fh, 0, libc::SEEK_DATA).expect("LSEEK");
    let copy = wire::CopyFileRangeIn {
        fh_in: fh,
        off_in: 0,
        nodeid_out: node,
        fh_out: fh,
        off_out: 8192,
        len: 4096,
        flags: 0,
    };
    client.copy_file_range(node, copy).expect("COPY_FILE_RANGE");
    client.flush(node, fh).expect("FLUSH");
    let all = fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::ATIME | fattr::MTIME;
    let change = SetAttr { valid: all, mode: 0o600, uid: 1000, gid: 1000, size: 10, ..SetAttr::default() };
    client.setattr(node, change).expect("SETATTR");
    client.release(node, fh).expect("RELEASE");
    client.statfs(ROOT).expect("STATFS");
    client.syncfs(ROOT).expect("SYNCFS");
}

/// Requests on directories.
fn names(client: &mut Client) {
    let directory = client.mkdir(ROOT, "directory", 0o755).expect("MKDIR").nodeid;
    for (name, kind) in [
        ("plain", libc::S_IFREG),
        ("fifo", libc::S_IFIFO),
        ("socket", libc::S_IFSOCK),
        ("white", libc::S_IFCHR),
    ] {
        client.mknod(directory, name, kind | 0o600, 0).expect("MKNOD");
    }
    let link = client.symlink(directory, "link", "target").expect("SYMLINK").nodeid;
    client.readlink(link).expect("READLINK");
    let plain = client.lookup(directory, "plain").expect("LOOKUP").nodeid;
    client.link(plain, ROOT, "second").expect("LINK");
    client.rename((ROOT, "second"), (directory, "third"), 0).expect("RENAME");
    let fh = client.opendir(directory).expect("OPENDIR").fh;
    client.readdirplus(directory, fh, 0, 4096).expect("READDIRPLUS");
    // Back to where it began: a seek.
    client.readdir(directory, fh, 0, 4096).expect("READDIR");
    client.fsyncdir(directory, fh).expect("FSYNCDIR");
    client.releasedir(directory, fh).expect("RELEASEDIR");
    for name in ["plain", "fifo", "socket", "white", "link", "third"] {
        client.unlink(directory, name).expect("UNLINK");
    }
    client.rmdir(ROOT, "directory").expect("RMDIR");
}

/// Lists that are too long for the buffer that the list before needed.
fn long_lists(client: &mut Client) {
    for count in [12_000u32, 40_000] {
        let fixed = wire::BatchForgetIn { count, dummy: 0 };
        let body = vec![0; count as usize * size_of::<wire::ForgetOne>()];
        let header = client.header(opcode::BATCH_FORGET, 0, size_of_val(&fixed) + body.len());
        let message = [header.as_bytes(), fixed.as_bytes(), &body].concat();
        assert_eq!(client.raw_message(&message, 0), b"", "FORGET has no reply");
    }
}

/// A user of the guest makes something, with a supplementary group.
fn creations_by_others(client: &mut Client) {
    let public = client.mkdir(ROOT, "public", 0o777).expect("MKDIR").nodeid;
    client.caller = Caller { uid: 1000, gid: 1001, pid: 1 };
    client.create(public, "of a user", libc::O_RDWR, 0o100_600).expect("CREATE");
    /// `FUSE_EXT_GROUPS`
    const GROUPS: u32 = 32;
    let groups = [16, GROUPS, 1, 1002].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let request = wire::MkdirIn { mode: 0o700, umask: 0 };
    let request = [request.as_bytes(), b"of a group\0", &groups].concat();
    let room = wire::OUT_HEADER + size_of::<wire::EntryOut>();
    client.raw(opcode::MKDIR, public, &request, room).expect("MKDIR with a group");
    client.caller = Caller::default();
}

/// More inodes than fds: they are sealed, and opened and looked up again.
pub fn many_inodes(share: &Share, traced: &mut Traced) {
    let name = |number: u32| format!("file-{number}");
    (0..300).for_each(|number| drop(share.write(name(number), "")));
    let client = traced.session().client();
    let nodes: Vec<u64> =
        (0..300).map(|number| client.lookup(ROOT, name(number)).expect("LOOKUP").nodeid).collect();
    for node in nodes {
        client.getattr(node, None).expect("GETATTR");
    }
    for number in 0..300 {
        client.lookup(ROOT, name(number)).expect("LOOKUP of what is known");
    }
}

/// Guest memory goes away under the rings.
pub fn end_by_memory(_: &Share, traced: &mut Traced) {
    traced.fails(|session| {
        let region = &session.device.memory().regions()[0];
        ftruncate(region.file(), 0).expect("cut a memfd short");
        session.clients[0].queue_mut().kick();
    });
}

/// The operator ends the daemon.
pub fn end_by_signal(_: &Share, traced: &mut Traced) {
    traced.fails(|session| {
        let broker = *session.daemon.descendants().first().expect("strace has a child");
        kill(Pid::from_raw(broker), Signal::SIGTERM).expect("kill");
    });
}

/// The host mounts, changes and unmounts file systems in the share, and one that can't be shown.
pub fn mounts_of_the_host(share: &Share, traced: &mut Traced) {
    let client = traced.session().client();
    let mut until = |path: &str, there: bool| {
        let start = Instant::now();
        while client.walk(path).is_ok() != there {
            assert!(start.elapsed() < PATIENCE, "{path}: not {there}");
        }
    };
    let place = share.join("proc");
    std::fs::create_dir(&place).expect("a directory");
    mount(Some("p"), &place, Some("proc"), MsFlags::empty(), None::<&str>).expect("procfs");
    std::fs::create_dir(share.join("late")).expect("a directory");
    mount(Some("t"), &share.join("late"), Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    share.write("late/file", "");
    until("late/file", true);
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, &share.join("late"), None::<&str>, flags, None::<&str>).expect("remount");
    umount(&share.join("late")).expect("umount");
    until("late/file", false);
    umount(&place).expect("umount");
}

fn limits(_: &Share, traced: &mut Traced) {
    let client = traced.session().client();
    for _ in 0..20 {
        client.getattr(ROOT, None).expect("GETATTR");
    }
}

fn xattrs(traced: &mut Traced, name: &str) {
    let client = traced.session().client();
    let node = client.create(ROOT, "file", libc::O_RDWR, 0o100_644).expect("CREATE").entry.nodeid;
    client.setxattr(node, name, b"value", 0).expect("SETXATTR");
    assert_eq!(client.getxattr(node, name, 64).expect("GETXATTR"), b"value");
    client.listxattr(node, 1024).expect("LISTXATTR");
    client.removexattr(node, name).expect("REMOVEXATTR");
}

fn umask(_: &Share, traced: &mut Traced) {
    let client = traced.session().client();
    client.umask = 0o027;
    client.mkdir(ROOT, "directory", 0o777).expect("MKDIR");
}

fn set_id(_: &Share, traced: &mut Traced) {
    let client = traced.session().client();
    let made = client.create(ROOT, "file", libc::O_RDWR, 0o104_755).expect("CREATE");
    /// `FUSE_WRITE_KILL_SUIDGID`
    const KILL: u32 = 1 << 2;
    let request = wire::WriteIn { fh: made.open.fh, write_flags: KILL, ..Default::default() };
    client.write_with(made.entry.nodeid, request, b"x").expect("WRITE");
}

fn locks(_: &Share, traced: &mut Traced) {
    let client = traced.session().client();
    let made = client.create(ROOT, "file", libc::O_RDWR, 0o100_644).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    let posix = wire::LkIn {
        fh,
        owner: 1,
        start: 0,
        end: 9,
        kind: libc::F_WRLCK as u32,
        pid: 1,
        lk_flags: 0,
        padding: 0,
    };
    let room = wire::OUT_HEADER + size_of::<wire::LkOut>();
    client.raw(opcode::GETLK, node, posix.as_bytes(), room).expect("GETLK");
    for lk_flags in [0, 1] {
        let lock = wire::LkIn { lk_flags, ..posix };
        client.raw(opcode::SETLK, node, lock.as_bytes(), wire::OUT_HEADER).expect("SETLK");
    }
}

fn ioctls(_: &Share, traced: &mut Traced) {
    let client = traced.session().client();
    let made = client.create(ROOT, "file", libc::O_RDWR, 0o100_644).expect("CREATE");
    // FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR; what comes of them depends on the file
    // system.
    for (cmd, in_size, out_size) in
        [(0x8008_6601, 0, 4), (0x4008_6602, 4, 0), (0x801c_581f, 0, 28), (0x401c_5820, 28, 0)]
    {
        let request = wire::IoctlIn { fh: made.open.fh, cmd, in_size, out_size, ..Default::default() };
        let request = [request.as_bytes(), &vec![0; in_size as usize]].concat();
        let room = wire::OUT_HEADER + size_of::<wire::IoctlOut>() + out_size as usize;
        let _ = client.raw(opcode::IOCTL, made.entry.nodeid, &request, room);
    }
}

fn devices(_: &Share, traced: &mut Traced) {
    let client = traced.session().client();
    client.umask = 0o022;
    client.mknod(ROOT, "null", libc::S_IFCHR | 0o666, 0x103).expect("MKNOD");
    client.mknod(ROOT, "block", libc::S_IFBLK | 0o640, 0x700).expect("MKNOD");
}
