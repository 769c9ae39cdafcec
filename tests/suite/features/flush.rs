//! FLUSH is only asked for where it can have something to say.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use tests::bounded::bounded;
use tests::bridge::{Bridge, BridgeOptions};
use tests::daemon::PATIENCE;
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::fuse::wire::{FOPEN_NOFLUSH, ROOT};
use tests::mounts::MountsBelow;
use tests::peers::Implementation;
use tests::share::{Share, TempDir};

use super::shares::overlay;
use super::{LIMIT, command};

/// A share with a tmpfs in the directory `tmpfs`, which has nothing to do at a close.
fn with_tmpfs(share: &Share) {
    fs::create_dir(share.join("tmpfs")).unwrap();
    mount(Some("t"), &share.join("tmpfs"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

/// For which kinds of access the daemon says that FLUSH isn't needed: reading, writing, both; the same for OPEN and CREATE.
fn without_flush(session: &mut Session, directory: u64) -> [bool; 3] {
    let client = session.client();
    [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR].map(|access| {
        let name = format!("file-{access}");
        let created = client.create(directory, &name, access, 0o644).unwrap();
        let opened = client.open(created.entry.nodeid, access).unwrap();
        let flags = [created.open.open_flags, opened.open_flags].map(|flags| flags & FOPEN_NOFLUSH != 0);
        assert_eq!(flags[0], flags[1], "{name}");
        flags[0]
    })
}

#[test]
fn it_is_left_out_by_access_and_file_system() {
    for (args, on_tmpfs) in [
        (&[][..], [true, true, false]),
        (&["--locks=flock,posix"], [false; 3]),
        (&["--cache=never"], [true, true, false]),
    ] {
        bounded(LIMIT, || {
            let share = Share::new();
            let _overlay = overlay(share.path());
            let _mounts = MountsBelow(share.path());
            with_tmpfs(&share);
            let mut session = Session::start(command(&share).args(args), DeviceConfig::default());
            let below = session.client().lookup(ROOT, "tmpfs").unwrap().nodeid;
            // By turns: what is known of one must not be taken for the other.
            for _ in 0..2 {
                assert_eq!(without_flush(&mut session, below), on_tmpfs, "{args:?}");
                let on_overlay = [on_tmpfs[0], false, false];
                assert_eq!(without_flush(&mut session, ROOT), on_overlay, "{args:?}");
            }
            let (status, stderr) = session.finish();
            assert!(status.success(), "{status}\n{stderr}");
        });
    }
}

/// FLUSH requests that the daemon has counted.
fn flushes(metrics: &Path) -> u64 {
    let output = Command::new(Implementation::Ours.binary()).arg("stat").arg(metrics).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().any(|line| line.starts_with("RELEASE ")), "{table}");
    let row = table.lines().find(|line| line.starts_with("FLUSH "));
    row.map_or(0, |row| row.split_whitespace().nth(1).unwrap().parse().unwrap())
}

#[test]
fn the_kernel_s_client_sends_none_then() {
    bounded(LIMIT, || {
        let (share, mountpoint, sockets) = (Share::new(), TempDir::short(), TempDir::short());
        let _mounts = MountsBelow(share.path());
        with_tmpfs(&share);
        let metrics = sockets.path().join("metrics");
        let daemon = command(&share).args([Path::new("--metrics-socket"), &metrics]).start();
        let bridge = Bridge::mount_with(&daemon, mountpoint.path(), BridgeOptions::with_queues(1));
        let file = bridge.path().join("tmpfs/file");
        for _ in 0..5 {
            // Opened for writing alone, then for reading alone; the program's write has arrived when it returns.
            fs::write(&file, "text").unwrap();
            assert_eq!(share.read("tmpfs/file"), b"text");
            assert_eq!(fs::read(&file).unwrap(), b"text");
        }
        // A request of its own, so that the counters of those before are published.
        fs::metadata(&file).unwrap();
        assert_eq!(flushes(&metrics), 0);
        for _ in 0..3 {
            drop(File::options().read(true).write(true).open(&file).unwrap());
        }
        assert_eq!(flushes(&metrics), 3);
        bridge.unmount().unwrap();
        let mut daemon = daemon;
        let status = daemon.wait(PATIENCE);
        assert!(status.success(), "{status}\n{}", daemon.stderr());
    });
}
