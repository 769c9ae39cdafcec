//! Files that are opened by a name that they were met under: a shortcut that nobody may notice.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::bounded::bounded;
use tests::frontend::DeviceConfig;
use tests::fuse::wire::ROOT;
use tests::fuse::{Client, Session};
use tests::meanwhile::meanwhile;
use tests::procfs::open_fds;
use tests::share::{Mounted, Share};

use super::shares::as_nobody;
use super::{LIMIT, with_session_on};

const TEXT: &[u8] = b"the file's own text";

/// Makes something under a name.
type Make = fn(&Path);

/// What a guest reads that opens a node.
fn text(client: &mut Client, node: u64) -> Vec<u8> {
    let fh = client.open(node, libc::O_RDONLY).unwrap().fh;
    let text = client.read(node, fh, 0, 4096).unwrap();
    client.release(node, fh).unwrap();
    text
}

#[test]
fn what_a_name_leads_to_by_now_is_not_opened_for_another_file() {
    let replacements: [(&str, Make); 7] = [
        ("nothing", |_| ()),
        ("another file", |path| fs::write(path, "other").unwrap()),
        ("a link to another file", |path| symlink("other", path).unwrap()),
        ("a link to it", |path| symlink("moved", path).unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a FIFO that nobody writes to", |path| mkfifo(path, Mode::from_bits_truncate(0o666)).unwrap()),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
    ];
    with_session_on(Share::in_memory, &[], |share, session| {
        let client = session.client();
        for (number, (what, replace)) in replacements.into_iter().enumerate() {
            let name = format!("{number}/file");
            let path = share.write(&name, TEXT);
            share.write(format!("{number}/other"), "other");
            let directory = client.lookup(ROOT, number.to_string()).unwrap().nodeid;
            let node = client.lookup(directory, "file").unwrap().nodeid;
            fs::rename(&path, path.with_file_name("moved")).unwrap();
            replace(&path);
            for _ in 0..2 {
                assert_eq!(text(client, node), TEXT, "{what}");
            }
            fs::remove_file(path.with_file_name("moved")).unwrap();
            assert_eq!(text(client, node), TEXT, "{what}, and the file has no name");
        }
    });
}

#[test]
fn a_name_that_changes_all_the_time_changes_nothing() {
    with_session_on(Share::in_memory, &[], |share, session| {
        let client = session.client();
        let path = share.write("file", TEXT);
        mkfifo(&share.join("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
        share.write("other", "other");
        let exchange = |with: &str| {
            let (other, flags) = (share.join(with), RenameFlags::RENAME_EXCHANGE);
            renameat2(AT_FDCWD, &path, AT_FDCWD, &other, flags).unwrap();
        };
        let node = client.lookup(ROOT, "file").unwrap().nodeid;
        let mut nodes = BTreeSet::new();
        let there_and_back = |round: usize| {
            let with = ["fifo", "other"][round % 2];
            exchange(with);
            exchange(with);
        };
        meanwhile(there_and_back, || {
            // Until each of the three was met under the name, and for a while.
            for round in 0.. {
                // Whatever that finds: it is how the daemon comes to know the file's name again.
                nodes.insert(client.lookup(ROOT, "file").unwrap().nodeid);
                assert_eq!(text(client, node), TEXT);
                if round >= 3000 && nodes.len() == 3 {
                    break;
                }
            }
        });
    });
}

/// Whether each file description that the daemon has of a file was opened without waiting: by name, that is.
fn opened_by_name(session: &Session, path: &Path) -> Vec<bool> {
    let (worker, metadata) = (session.daemon.worker(), fs::metadata(path).unwrap());
    let fds = open_fds(worker).into_iter().filter(|fd| fd.identity == (metadata.dev(), metadata.ino()));
    let flags = fds.map(|fd| {
        let info = fs::read_to_string(format!("/proc/{worker}/fdinfo/{}", fd.number)).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap()
    });
    flags.filter(|flags| flags & libc::O_PATH == 0).map(|flags| flags & libc::O_NONBLOCK != 0).collect()
}

/// Opens a node, and tells how the daemon has opened the file.
fn is_opened_by_name(session: &mut Session, node: u64, flags: i32, path: &Path) -> bool {
    let fh = session.client().open(node, flags).unwrap().fh;
    let by_name = opened_by_name(session, path);
    session.client().release(node, fh).unwrap();
    assert_eq!(by_name.len(), 1, "{by_name:?}");
    by_name[0]
}

#[test]
fn the_name_is_used_where_it_does_no_harm() {
    with_session_on(Share::in_memory, &[], |share, session| {
        let path = share.write("directory/file", TEXT);
        let directory = session.client().lookup(ROOT, "directory").unwrap().nodeid;
        let node = session.client().lookup(directory, "file").unwrap().nodeid;
        for (flags, by_name) in [
            (libc::O_RDONLY, true),
            (libc::O_RDONLY | libc::O_SYNC, true),
            (libc::O_WRONLY, false),
            (libc::O_RDWR, false),
            (libc::O_RDONLY | libc::O_TRUNC, false),
            (libc::O_RDONLY, true),
        ] {
            assert_eq!(is_opened_by_name(session, node, flags, &path), by_name, "{flags:#x}");
        }
        // A directory that moves takes its names along.
        fs::rename(share.join("directory"), share.join("moved")).unwrap();
        let path = share.join("moved/file");
        assert!(is_opened_by_name(session, node, libc::O_RDONLY, &path));
        // The host moves the file: the daemon knows no name until it meets the file again.
        let moved = share.join("file");
        fs::rename(&path, &moved).unwrap();
        assert!(!is_opened_by_name(session, node, libc::O_RDONLY, &moved));
        assert_eq!(session.client().lookup(ROOT, "file").unwrap().nodeid, node);
        assert!(is_opened_by_name(session, node, libc::O_RDONLY, &moved));

        let created = session.client().create(ROOT, "created", libc::O_WRONLY, 0o644).unwrap();
        session.client().release(created.entry.nodeid, created.open.fh).unwrap();
        let path = share.join("created");
        assert!(is_opened_by_name(session, created.entry.nodeid, libc::O_RDONLY, &path));

        let path = share.write("listed/file", TEXT);
        let listed = session.client().lookup(ROOT, "listed").unwrap().nodeid;
        let fh = session.client().opendir(listed).unwrap().fh;
        let entries = session.client().readdirplus(listed, fh, 0, 4096).unwrap();
        let entry = entries.iter().find(|entry| entry.name == b"file").unwrap().entry.unwrap();
        assert!(is_opened_by_name(session, entry.nodeid, libc::O_RDONLY, &path));
    });
}

/// An ordinary user's daemon serves the host's own mount, on which a device that takes a file's place would be opened.
#[test]
fn it_is_not_used_on_a_mount_that_lets_devices_be_opened() {
    for (flags, by_name) in [(MsFlags::empty(), false), (MsFlags::MS_NODEV, true)] {
        bounded(LIMIT, || {
            let share = Share::new();
            mount(Some("share"), share.path(), Some("tmpfs"), flags, None::<&str>).unwrap();
            let _mounted = Mounted(share.path().to_owned());
            let path = share.write("file", TEXT);
            let command = as_nobody(share.path()).args(["--sandbox=none"]);
            let mut session = Session::start(command, DeviceConfig::default());
            let node = session.client().lookup(ROOT, "file").unwrap().nodeid;
            assert_eq!(is_opened_by_name(&mut session, node, libc::O_RDONLY, &path), by_name, "{flags:?}");
            let (status, stderr) = session.finish();
            assert!(status.success(), "{status}\n{stderr}");
        });
    }
}
