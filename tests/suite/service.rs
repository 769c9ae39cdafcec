//! The daemon as a system service: configuration file, socket activation, and what it tells a service manager.
//! The test plays systemd's part of each protocol.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::bounded::bounded;
use tests::daemon::{DaemonCommand, Handover, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::peers::Implementation;
use tests::share::{Share, TempDir};

const LIMIT: Duration = Duration::from_secs(60);

/// Receives what the daemon tells its service manager.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _directory: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let directory = TempDir::short();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket, path, _directory: directory }
    }

    /// The next message; panics when there is none in good time.
    fn next(&self) -> String {
        let mut buffer = [0; 1024];
        let len = self.socket.recv(&mut buffer).expect("a message from the daemon");
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    /// The next message that is no keep-alive.
    fn next_state(&self) -> String {
        loop {
            let message = self.next();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }
}

/// Starts the daemon as systemd would: its arguments are those of the shell's, and the listening socket is fd 3.
fn activated(arguments: &str) -> DaemonCommand {
    let binary = Implementation::Ours.binary();
    let script = format!(
        "fd=${{!#}}; fd=${{fd#--fd=}}; if [ $fd != 3 ]; then exec 3<&$fd {{fd}}<&-; fi; \
         LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=share.socket exec {} {arguments}",
        binary.display()
    );
    DaemonCommand::new("/bin/bash").args(["-c", &script, "bash"]).handover(Handover::Fd)
}

#[test]
fn systemd_starts_it_with_a_file_and_a_socket_and_hears_how_it_goes() {
    bounded(LIMIT, || {
        let (share, manager) = (Share::new(), Manager::new());
        let file = manager.path.with_file_name("share.toml");
        let text = format!("shared-dir = {:?}\nsocket-path = '/not/used'\nxattr = true\n", share.path());
        fs::write(&file, text).unwrap();
        let command = activated(&format!("--config {}", file.display())).env("NOTIFY_SOCKET", &manager.path);
        let session = Session::start(command, DeviceConfig::default());
        assert!(manager.next().starts_with("READY=1\nSTATUS="));
        assert_eq!(manager.next(), "STATUS=Serving a front end");
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
        assert!(manager.next().starts_with("STOPPING=1\n"));
    });
}

#[test]
fn a_stop_is_told_and_leaves_nothing() {
    bounded(LIMIT, || {
        let (share, manager) = (Share::new(), Manager::new());
        let arguments = format!("--shared-dir {}", share.path().display());
        let mut daemon = activated(&arguments).env("NOTIFY_SOCKET", &manager.path).start();
        assert!(manager.next().starts_with("READY=1\n"));
        daemon.signal(Signal::SIGTERM);
        assert!(manager.next().starts_with("STOPPING=1\n"));
        assert_eq!(daemon.wait(PATIENCE).code(), Some(1));
    });
}

#[test]
fn keep_alives_come_in_time_until_the_worker_is_gone() {
    bounded(LIMIT, || {
        let (share, manager) = (Share::new(), Manager::new());
        let arguments = format!("--shared-dir {}", share.path().display());
        let command =
            activated(&arguments).env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "400000");
        let mut daemon = command.start();
        assert!(manager.next_state().starts_with("READY=1\n"));
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(manager.next(), "WATCHDOG=1");
        }
        // Three of them, 200 ms apart; the first may have been due already.
        assert!(start.elapsed() >= Duration::from_millis(300));
        // A broker that stands still sends none.
        daemon.signal(Signal::SIGSTOP);
        manager.socket.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
        while manager.socket.recv(&mut [0; 64]).is_ok() {
            assert!(start.elapsed() < PATIENCE, "a stopped broker goes on sending");
        }
        daemon.signal(Signal::SIGCONT);
        manager.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(manager.next(), "WATCHDOG=1");
        // The end of the worker is told at once, as the end of the service.
        let worker = daemon.worker();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        assert!(manager.next_state().starts_with("STOPPING=1\n"));
        assert_eq!(daemon.wait(PATIENCE).code(), Some(1));
    });
}

#[test]
fn a_check_starts_nothing_and_points_at_the_fault() {
    let directory = TempDir::short();
    let file = directory.path().join("share.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        let command = &mut Command::new(Implementation::Ours.binary());
        let output = command.arg("--check-config").arg(&file).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check("shared-dir = '/nowhere'\n"), (Some(0), String::new()));
    let (status, complaint) = check("shared-dir = '/nowhere'\ncaches = 'auto'\n");
    assert_eq!(status, Some(2));
    let expected = format!("virtiofsd: {}:2:1: there is no option \"caches\"\n", file.display());
    assert_eq!(complaint, expected);
}
