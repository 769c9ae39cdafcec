//! The fixtures themselves: whatever happens in a test, nothing that it started or mounted is left.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, Handover, PATIENCE};
use tests::frontend::{Device, DeviceConfig};
use tests::peers::Implementation;
use tests::share::{Share, TempDir};

const LIMIT: Duration = Duration::from_secs(60);
/// Set in the process that [`a_test_that_hangs_is_ended`] starts.
const HANG: &str = "VIRTIOFSD_TEST_HANG";

/// Whether a process runs; one that has ended and waits for its parent doesn't.
fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])))
}

#[test]
fn a_test_that_hangs_is_ended() {
    if std::env::var_os(HANG).is_some() {
        // In the process started below. Its child holds the stdout pipe open as long as it lives.
        bounded(Duration::from_millis(200), || {
            Command::new("sleep").arg("1000").status().unwrap();
        });
        unreachable!("sleep does not return");
    }
    bounded(LIMIT, || {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_test_that_hangs_is_ended", "--nocapture"])
            .env(HANG, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut output).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGABRT as i32), "{output}");
        assert!(output.contains("did not end within 200ms") && output.contains("sleep 1000"), "{output}");
    });
}

#[test]
fn a_dropped_daemon_leaves_no_process() {
    bounded(LIMIT, || {
        let share = Share::new();
        let daemon = DaemonCommand::serving(&Implementation::under_test(), share.path()).start();
        let device = Device::connect(daemon.connect(), DeviceConfig::default()).unwrap();
        let pids = [vec![daemon.pid()], daemon.descendants()].concat();
        assert!(pids.iter().all(|pid| runs(*pid)), "{pids:?}");
        drop(daemon);
        assert!(!pids.iter().any(|pid| runs(*pid)), "{pids:?}");
        drop(device);
    });
}

#[test]
fn a_refused_command_line_is_seen() {
    bounded(LIMIT, || {
        let binary = Implementation::under_test().binary();
        let mut daemon =
            DaemonCommand::new(binary).args(["--no-such-option"]).handover(Handover::None).start();
        assert_eq!(daemon.wait(PATIENCE).code(), Some(2));
        assert!(daemon.stderr().contains("--no-such-option"), "{}", daemon.stderr());
    });
}

#[test]
fn mounts_of_a_test_stay_in_it() {
    bounded(LIMIT, || {
        let dir = TempDir::short();
        bounded(LIMIT, || {
            mount(None::<&str>, dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            fs::write(dir.path().join("inside"), "").unwrap();
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    });
}

#[test]
fn a_temporary_directory_is_not_removed_through_a_mount() {
    bounded(LIMIT, || {
        let outer = TempDir::short();
        let path = outer.path().to_owned();
        fs::create_dir(path.join("mounted")).unwrap();
        mount(None::<&str>, &path.join("mounted"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(path.join("mounted/file"), "x").unwrap();
        drop(outer);
        assert_eq!(fs::read(path.join("mounted/file")).unwrap(), b"x");
        nix::mount::umount(&path.join("mounted")).unwrap();
        fs::remove_dir_all(path).unwrap();
    });
}
