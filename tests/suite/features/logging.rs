//! Where messages go and which: `--syslog`, `RUST_LOG`, `--log-level`, and what is said of deprecated options.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::fuse::wire::ROOT;
use tests::share::{Share, TempDir};

use super::{LIMIT, command};

/// Runs a session; what the daemon wrote to stderr.
fn run(command: DaemonCommand) -> String {
    let mut session = Session::start(command, DeviceConfig::default());
    session.client().lookup(ROOT, "absent").unwrap_err();
    let (status, stderr) = session.finish();
    assert!(status.success(), "{status}\n{stderr}");
    stderr
}

/// A `/dev` of this test's own with only what processes need, and perhaps a syslog socket.
fn own_dev(dir: &Path, syslog: bool) -> Option<UnixDatagram> {
    for name in ["null", "urandom"] {
        File::create(dir.join(name)).unwrap();
        let (from, to) = (Path::new("/dev").join(name), dir.join(name));
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    }
    let socket = syslog.then(|| UnixDatagram::bind(dir.join("log")).unwrap());
    mount(Some(dir), "/dev", None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).unwrap();
    socket
}

/// Takes the test's `/dev` away again, so that its directory can be removed.
fn restore_dev(dir: &Path) {
    for path in ["/dev/null", "/dev/urandom", "/dev"] {
        nix::mount::umount(path).unwrap();
    }
    for name in ["null", "urandom"] {
        nix::mount::umount(&dir.join(name)).unwrap();
    }
}

#[test]
fn messages_of_both_processes_go_to_syslog() {
    bounded(LIMIT, || {
        let (share, dev) = (Share::new(), TempDir::short());
        let syslog = own_dev(dev.path(), true).unwrap();
        syslog.set_read_timeout(Some(PATIENCE)).unwrap();
        let stderr = run(command(&share).args(["--syslog", "--xattr"]));
        assert_eq!(stderr, "", "nothing on standard error");
        let (mut broker, mut worker) = (false, false);
        let mut buffer = [0; 4096];
        while !(broker && worker) {
            let length = syslog.recv(&mut buffer).expect("messages of both");
            let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
            // Facility user (1), severities from error (3) to informational (6).
            let priority: u32 = line.strip_prefix('<').unwrap().split_once('>').unwrap().0.parse().unwrap();
            assert!(priority >> 3 == 1 && (3..=6).contains(&(priority & 7)), "{line}");
            assert!(line.contains("virtiofsd"), "{line}");
            broker |= line.contains("worker ids:");
            worker |= line.contains("the worker policy is widened");
        }
        restore_dev(dev.path());
    });
}

#[test]
fn without_a_syslog_they_go_to_stderr() {
    bounded(LIMIT, || {
        let (share, dev) = (Share::new(), TempDir::short());
        own_dev(dev.path(), false);
        let stderr = run(command(&share).args(["--syslog"]));
        assert!(stderr.contains("worker ids:"), "{stderr}");
        restore_dev(dev.path());
    });
}

#[test]
fn levels() {
    bounded(LIMIT, || {
        let share = Share::new();
        // A level, the variable, and whether lines of the levels info, debug and trace come.
        for (level, variable, info, debug, trace) in [
            ("info", "", true, false, false),
            ("error", "", false, false, false),
            ("off", "", false, false, false),
            ("DEBUG", "", true, true, false),
            ("off", "trace", true, true, true),
            ("trace", "virtiofsd=info", true, false, false),
            ("trace", "off", false, false, false),
        ] {
            let command = command(&share).args([format!("--log-level={level}")]).env("RUST_LOG", variable);
            let stderr = run(command);
            let case = format!("--log-level={level} RUST_LOG={variable}:\n{stderr}");
            assert_eq!(stderr.contains("INFO "), info, "{case}");
            assert_eq!(stderr.contains("DEBUG "), debug, "{case}");
            // Of the worker, for a request: the name that is not there.
            assert_eq!(stderr.contains("worker: LOOKUP: ENOENT"), trace, "{case}");
            assert_eq!(stderr.is_empty(), !info, "{case}");
        }
    });
}

#[test]
fn deprecated_options_work_and_say_what_to_use() {
    bounded(LIMIT, || {
        let share = Share::new();
        share.write("file", "x");
        let source =
            format!("source={},cache=always,no_xattr,no_posix_lock,no_flock", share.path().display());
        let binary = tests::peers::Implementation::Ours.binary();
        let old = DaemonCommand::new(binary).args(["-f", "-d", "-o", &source]);
        let stderr = run(old.args(["--inode-file-handles=fallback"]));
        for said in [
            "-f is deprecated",
            "-d is deprecated: use --log-level=debug",
            "-o is deprecated",
            "--inode-file-handles=fallback is deprecated: use --inode-file-handles=prefer",
            "DEBUG ",
        ] {
            assert!(stderr.contains(said), "no \"{said}\" in:\n{stderr}");
        }
        assert_eq!(fs::read(share.join("file")).unwrap(), b"x");
    });
}
