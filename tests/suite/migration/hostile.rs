//! Streams that no daemon made: nothing outside the share, no crash, no memory without bounds.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tests::bounded::bounded;
use tests::frontend::{Device, DeviceConfig, Error};
use tests::fuse::Session;
use tests::fuse::wire::ROOT;
use tests::share::{Share, TempDir};
use virtiofsd::worker::migrate::format::{
    self, DeviceState, FileHandle, Handle, HandleSource, Inode, InodeLocation,
};

use super::{LIMIT, Mode, OURS, command, furnish};

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
        let on_mount = |mnt_id, handle: FileHandle| InodeLocation::FileHandle {
            handle: FileHandle { mnt_id, ..handle },
        };
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
                // One reference of the guest, two for those that claim to be in it.
                Inode { refcount: 3, ..location(13, path("dir")) },
                location(14, InodeLocation::Path { parent: 13, filename: "./secret".to_owned() }),
                location(15, InodeLocation::Path { parent: 13, filename: "file/.".to_owned() }),
                location(16, on_mount(1, handle_of(&outside.path().join("secret")))),
                location(17, on_mount(2, handle_of(&outside.path().join("secret")))),
            ],
            next_inode: 1,
            // The second is outside the share, the third is not told.
            mount_paths: [(0, ".".to_owned()), (1, "link".to_owned())].into(),
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
        for node in [2, 4, 6, 7, 8, 11, 12, 14, 16, 17] {
            assert!(client.getattr(node, None).is_err(), "node {node}");
        }
        // The link itself is in the share.
        assert_eq!(client.readlink(3), client.readlink(5));
        assert_eq!(client.readlink(5).unwrap(), outside.path().as_os_str().as_encoded_bytes());
        assert_eq!(client.getattr(9, None).unwrap().attr.size, 4);
        assert_eq!(client.lookup(10, "file").unwrap().nodeid, 9);
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
    });
}

/// Paths that lead up or begin at the root are refused with the whole stream, in every place that a stream has for them.
#[test]
fn paths_that_lead_out_are_refused() {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("dir/file", "file");
        let destination = command(&OURS, &share, Mode::FindPaths)
            .args(["--migration-on-error=guest-error", "--log-level=error"])
            .start();
        let device = Device::connect(destination.connect(), DeviceConfig::default()).unwrap();
        let load = |location: InodeLocation, mounts: &str| {
            let root = Inode { id: 1, refcount: 2, location: InodeLocation::RootNode, file_handle: None };
            let state = DeviceState {
                inodes: vec![root, Inode { id: 2, refcount: 1, location, file_handle: None }],
                next_inode: 3,
                mount_paths: [(0, mounts.to_owned())].into(),
                ..DeviceState::default()
            };
            let mut bytes = Vec::new();
            format::write(&state, &mut bytes).unwrap();
            device.load_state(&bytes)
        };
        for bad in ["..", "../secret", "dir/../../secret", "dir/..", "/etc/passwd", "/", "dir\0file", ""] {
            let full = InodeLocation::FullPath { filename: bad.to_owned() };
            let named = InodeLocation::Path { parent: 1, filename: bad.to_owned() };
            let good = InodeLocation::FullPath { filename: "dir".to_owned() };
            for (location, mount) in [(full, "."), (named, "."), (good, bad)] {
                let refused = load(location, mount);
                assert!(matches!(refused, Err(Error::Refused { .. })), "{bad:?}: {refused:?}");
            }
        }
        load(InodeLocation::FullPath { filename: "dir/file".to_owned() }, ".").unwrap();
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

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn of<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Changes bytes, cuts some off, puts some in or takes some out.
fn mutate_bytes(stream: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let place = random.below(stream.len());
        match random.below(4) {
            0 => stream.truncate(place.max(1)),
            1 => stream.insert(place, random.below(256) as u8),
            2 => drop(stream.remove(place)),
            _ => stream[place] = random.below(256) as u8,
        }
        if stream.is_empty() {
            stream.push(0);
        }
    }
}

/// Changes what a stream says, and not its form: what gets past the decoder.
fn mutate_meaning(state: &mut DeviceState, handles: &[FileHandle], random: &mut Random) {
    const PATHS: &[&str] =
        &["link", "link/secret", "dir/sub", "dir/sub/file", "symlink/file", ".", "many", "nothing"];
    const IDS: &[u64] = &[0, 1, 2, 3, 7, 1 << 32, u64::MAX - 1, u64::MAX];
    for _ in 0..=random.below(4) {
        let parent = *random.of(IDS);
        let filename = (*random.of(PATHS)).to_owned();
        let handle = random.of(handles).clone();
        let other = state.inodes.get(random.below(state.inodes.len().max(1))).cloned();
        let place = random.below(state.inodes.len().max(1));
        let Some(inode) = state.inodes.get_mut(place) else { return };
        match random.below(10) {
            0 => inode.id = parent,
            1 => inode.refcount = *random.of(IDS),
            2 => inode.location = InodeLocation::Invalid,
            3 => inode.location = InodeLocation::FullPath { filename },
            4 => inode.location = InodeLocation::Path { parent, filename },
            5 => inode.location = InodeLocation::FileHandle { handle },
            6 => inode.file_handle = Some(handle),
            7 => state.inodes.extend(other.map(|inode| Inode { id: parent, ..inode })),
            8 => state.next_inode = parent,
            _ => {
                let flags = random.of(&[0, -1, libc::O_RDWR | libc::O_TRUNC, libc::O_PATH, libc::O_TMPFILE]);
                let source = HandleSource::OpenInode { flags: *flags };
                state.handles.push(Handle { id: parent, inode: *random.of(IDS), source });
            }
        }
    }
}

/// The device and the inode numbers of everything in a share.
fn inventory(share: &Share) -> (u64, BTreeSet<u64>) {
    fn walk(path: &Path, device: u64, numbers: &mut BTreeSet<u64>) {
        let metadata = fs::symlink_metadata(path).unwrap();
        assert_eq!(metadata.dev(), device);
        numbers.insert(metadata.ino());
        if metadata.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), device, numbers));
        }
    }
    let device = fs::metadata(share.path()).unwrap().dev();
    let mut numbers = BTreeSet::new();
    walk(share.path(), device, &mut numbers);
    (device, numbers)
}

/// All that a process has open of this device must be in the share; how much it is.
fn assert_confined(process: i32, (device, numbers): &(u64, BTreeSet<u64>)) -> usize {
    let mut open = 0;
    for fd in fs::read_dir(format!("/proc/{process}/fd")).unwrap() {
        // Follows the kernel's own link to the open file; one that was closed meanwhile does no harm.
        let Ok(metadata) = fs::metadata(fd.unwrap().path()) else { continue };
        if metadata.dev() == *device {
            assert!(numbers.contains(&metadata.ino()), "inode {} is not in the share", metadata.ino());
            open += 1;
        }
    }
    open
}

/// 10,000 streams, changed in their bytes or in what they say, are restored one after another by one daemon. What it has
/// open after each that it took lies in the share; among what the streams name are files outside of it.
#[test]
fn mutated_streams_do_no_harm() {
    bounded(LIMIT * 3, || {
        let outside = TempDir::on_disk();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let share = Share::new();
        furnish(&share);
        std::os::unix::fs::symlink(outside.path(), share.join("link")).unwrap();
        let streams = [Mode::FindPaths, Mode::FileHandles].map(|mode| a_stream(&share, mode));
        let states = [0, 1].map(|n| format::decode(&streams[n]).unwrap());
        let foreign = [
            outside.path().join("secret"),
            outside.path().into(),
            share.join("dir"),
            share.join("dir/moves"),
        ];
        let mut handles: Vec<FileHandle> = foreign.iter().map(|path| handle_of(path)).collect();
        let mount = *states[1].mount_paths.keys().next().expect("the share's root");
        handles.iter_mut().for_each(|handle| handle.mnt_id = mount);
        let destination = command(&OURS, &share, Mode::FindPaths)
            .args(["--migration-on-error=guest-error", "--log-level=off"])
            .start();
        let device = Device::connect(destination.connect(), DeviceConfig::default()).unwrap();
        device.load_state(&streams[0]).unwrap();
        let worker = destination.worker();
        let inside = inventory(&share);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut taken, mut open) = (0, 0);
        for round in 0..10_000 {
            let mut stream = streams[round % 2].clone();
            if round % 4 < 2 {
                mutate_bytes(&mut stream, &mut random);
            } else {
                let mut state = states[round % 2].clone();
                mutate_meaning(&mut state, &handles, &mut random);
                stream.clear();
                format::write(&state, &mut stream).unwrap();
            }
            match device.load_state(&stream) {
                Ok(()) => {
                    taken += 1;
                    open += assert_confined(worker, &inside);
                }
                Err(Error::Refused { .. }) => {}
                Err(e) => panic!("round {round}: {e}\n{stream:?}"),
            }
        }
        assert!(
            taken > 1000 && open > 5 * taken,
            "some are harmless: {taken} taken, {open} open files looked at"
        );
        device.load_state(&streams[0]).unwrap();
        let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        eprintln!("{taken} of 10000 streams taken, {open} open files looked at, peak {peak} kB");
        assert!(peak < 32 << 10, "{peak} kB");
    });
}

/// What a daemon of ours saves.
fn a_stream(share: &Share, mode: Mode) -> Vec<u8> {
    let mut session = Session::start(command(&OURS, share, mode), DeviceConfig::default());
    let client = session.client();
    for path in ["dir/sub/file", "dir/moves", "other/victim", "symlink"] {
        client.walk(path).unwrap();
    }
    let many = client.lookup(ROOT, "many").unwrap().nodeid;
    client.opendir(many).unwrap();
    session.save().unwrap().0
}
