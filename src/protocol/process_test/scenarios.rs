//! What is tested.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

use super::daemon::{Daemon, Place, namespace, status};

const SCENARIOS: &[(&str, fn())] = &[
    ("a device from start to end", start_to_end),
    ("the broker keeps one capability", broker_is_confined),
    ("the worker begins in namespaces of its own", worker_is_separate),
    ("signals end the daemon cleanly", signals),
    ("a violation kills the worker and ends the daemon", violations),
    ("a killed worker is explained", killed_worker),
    ("a panic's message arrives", panicking_worker),
    ("the worker's lines are escaped", log_lines),
    ("a second daemon is refused and the first is not disturbed", second_daemon),
    ("a dead daemon's files are replaced", stale_files),
    ("identity and configured ids", other_ids),
    ("without namespaces every missing layer is named", without_namespaces),
    ("an ordinary user", ordinary_user),
    ("an inherited socket", inherited_socket),
    ("device nodes", device_nodes),
    ("trusted attributes", trusted_attributes),
    ("requests that are not enabled", not_enabled),
    ("a single file as the share", single_file),
    ("a socket directory of somebody else's", foreign_directory),
    ("start-up errors are explained and leave nothing behind", start_errors),
];

pub fn run(filter: Option<&str>) -> ExitCode {
    let mut ran = 0;
    for (name, scenario) in SCENARIOS {
        if filter.is_none_or(|filter| filter.starts_with('-') || name.contains(filter)) {
            println!("broker process: {name}");
            scenario();
            ran += 1;
        }
    }
    println!("broker process: {ran} scenarios passed");
    ExitCode::SUCCESS
}

fn start_to_end() {
    let place = Place::new();
    let daemon = place.start(&[]);
    let mut front_end = daemon.connect();
    let start = front_end.ask("start");
    assert!(start.starts_with("Directory Idmapped Shifted(2147483647)"), "{start}");
    assert_eq!(front_end.ask("parent"), "true", "\"..\" at the share's root leads nowhere");
    assert_eq!(front_end.ask("reopen ."), "true");
    assert_eq!(front_end.ask("reopen file"), "true");
    assert_eq!(front_end.ask("read file"), "1234 content", "the ids on disk, through its own fd directory");
    assert_eq!(front_end.ask("deleted file"), nix::errno::Errno::ESTALE.to_string());
    drop(front_end);
    let end = daemon.end();
    assert_eq!(end.code, Some(0), "{}", end.log);
    assert!(place.leftovers().is_empty());
    assert!(end.log.contains("worker ids: shifted to 2147483648:2147483647"), "{}", end.log);
    assert!(end.log.contains("Landlock: missing: this is a \\u{1b}[31mtest\\n"), "{}", end.log);
}

fn broker_is_confined() {
    let place = Place::new();
    let daemon = place.start(&[]);
    let broker = status(daemon.pid());
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(broker[set], "0000000000000004", "{set}: CAP_DAC_READ_SEARCH only");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(broker[set], "0000000000000000", "{set}");
    }
    assert_eq!((&*broker["NoNewPrivs"], &*broker["Seccomp"]), ("1", "2"));
    assert_eq!(broker["Groups"], "");
    assert_eq!(broker["Threads"], "1");
    drop(daemon.connect());
    assert_eq!(daemon.end().code, Some(0));

    let daemon = place.start(&["--inode-file-handles=never"]);
    assert_eq!(status(daemon.pid())["CapPrm"], "0000000000000000");
    let mut front_end = daemon.connect();
    assert!(front_end.ask("start").contains("handles: false"));
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));
}

fn worker_is_separate() {
    let place = Place::new();
    let daemon = place.start(&[]);
    let (broker, worker) = (daemon.pid(), daemon.worker_pid());
    let mut front_end = daemon.connect();
    assert_eq!(front_end.ask("parent"), "true");
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(broker, kind), namespace(worker, kind), "{kind}");
    }
    let ids = "2147483648 2147483648 2147483648 2147483648";
    let state = status(worker);
    assert_eq!((&*state["Uid"], &*state["Gid"]), (ids, ids));
    let fds = fs::read_dir(format!("/proc/{worker}/fd")).unwrap();
    let mut numbers: Vec<u32> =
        fds.map(|fd| fd.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    // Null twice, log, channel, the four that came with the first message, and what this test's worker makes
    // itself: a copy of the listening socket, the connection and a copy of that.
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let environment = fs::read(format!("/proc/{worker}/environ")).unwrap();
    assert!(environment.is_empty(), "{}", environment.escape_ascii());
    daemon.signal(Signal::SIGTERM);
    daemon.end();
}

fn signals() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let place = Place::new();
        let daemon = place.start(&[]);
        let mut front_end = daemon.connect();
        assert_eq!(front_end.ask("parent"), "true");
        let worker = daemon.worker_pid();
        daemon.signal(signal);
        let end = daemon.end();
        assert_eq!(end.code, Some(1), "{signal}: {}", end.log);
        assert!(place.leftovers().is_empty(), "{signal}");
        assert!(!fs::exists(format!("/proc/{worker}")).unwrap(), "{signal}: the worker is gone too");
    }
}

fn violations() {
    for command in ["garbage", "forge", "device x", "xattr x"] {
        let place = Place::new();
        let daemon = place.start(&[]);
        assert_eq!(daemon.connect().ask(command), "", "{command}: no reply");
        let end = daemon.end();
        assert_eq!(end.code, Some(1), "{command}: {}", end.log);
        assert!(end.log.contains("broke the broker protocol"), "{command}: {}", end.log);
        assert!(place.leftovers().is_empty(), "{command}");
    }
}

fn killed_worker() {
    for (command, words) in [
        ("die SIGKILL", "was killed by SIGKILL: somebody killed it"),
        ("die SIGBUS", "was killed by SIGBUS: guest memory"),
        ("die SIGSYS", "was killed by SIGSYS: it made a system call that its seccomp policy does not have"),
        ("die SIGABRT", "a bug in this program"),
    ] {
        let place = Place::new();
        let daemon = place.start(&[]);
        assert_eq!(daemon.connect().ask(command), "");
        let end = daemon.end();
        assert_eq!(end.code, Some(1), "{}", end.log);
        assert!(end.log.contains(words), "{command}: {}", end.log);
        assert!(place.leftovers().is_empty());
    }
}

fn panicking_worker() {
    let place = Place::new();
    let daemon = place.start(&[]);
    daemon.connect().ask("panic at the disco");
    let end = daemon.end();
    assert_eq!(end.code, Some(1));
    assert!(end.log.contains("ERROR virtiofsd] worker: at the disco"), "{}", end.log);
}

fn log_lines() {
    let place = Place::new();
    let daemon = place.start(&[]);
    let mut front_end = daemon.connect();
    front_end.ask("log clear");
    front_end.ask("raw-log <4>bell");
    drop(front_end);
    let end = daemon.end();
    assert!(end.log.contains("INFO  virtiofsd] worker: clear\\u{1b}[2J\\nnext\n"), "{}", end.log);
    assert!(end.log.contains("WARN  virtiofsd] worker: bell\\r\\u{7}\n"), "{}", end.log);
}

fn second_daemon() {
    let place = Place::new();
    let first = place.start(&[]);
    let second = place.served(&[]).output().unwrap();
    let log = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("another virtiofsd (process {})", first.pid())), "{log}");
    assert_eq!(first.connect().ask("parent"), "true");
    assert_eq!(first.end().code, Some(0));
}

fn stale_files() {
    let place = Place::new();
    let daemon = place.start(&[]);
    let worker = daemon.worker_process();
    daemon.signal(Signal::SIGKILL);
    daemon.end();
    assert_eq!(place.leftovers().len(), 2, "nobody could clean up");
    let mut fds = [PollFd::new(worker.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, 10_000u16), Ok(1), "the worker ends with its broker");
    let daemon = place.start(&[]);
    drop(daemon.connect());
    assert_eq!(daemon.end().code, Some(0));
    assert!(place.leftovers().is_empty());
}

fn other_ids() {
    let place = Place::new();
    let daemon = place.start(&["--worker-ids=identity"]);
    let mut front_end = daemon.connect();
    assert!(front_end.ask("start").starts_with("Directory Detached Identity"));
    assert_eq!(front_end.ask("read file"), "1234 content");
    assert_eq!(front_end.ask("reopen file"), "true");
    assert_ne!(namespace(daemon.pid(), "user"), namespace(daemon.worker_pid(), "user"));
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));

    let daemon = place.start(&["--worker-ids=shifted:100000:65536"]);
    let mut front_end = daemon.connect();
    assert!(front_end.ask("start").starts_with("Directory Idmapped Shifted(65536)"));
    assert!(status(daemon.worker_pid())["Uid"].starts_with("100000 "));
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));
}

fn without_namespaces() {
    for mode in ["none", "chroot"] {
        let place = Place::new();
        let daemon = place.start(&[&format!("--sandbox={mode}")]);
        for layer in
            ["user namespace", "mount namespace", "pid namespace", "network namespace", "shifted ids"]
        {
            let line = format!("confinement: {layer}: missing: --sandbox={mode}");
            assert_eq!(daemon.log().matches(&line).count(), 1, "{line}: {}", daemon.log());
        }
        let mut front_end = daemon.connect();
        assert!(front_end.ask("start").starts_with("Directory Detached Identity"));
        assert_eq!(front_end.ask("parent"), "true", "root can still clone the share's mount");
        assert_eq!(front_end.ask("reopen file"), "true");
        drop(front_end);
        assert_eq!(daemon.end().code, Some(0));
    }
}

fn ordinary_user() {
    let place = Place::new();
    let daemon = place.start_as_user(&[]);
    assert!(
        daemon.log().contains("no file handles: the share is not a mount of its own"),
        "{}",
        daemon.log()
    );
    let mut front_end = daemon.connect();
    let start = front_end.ask("start");
    assert!(start.starts_with("Directory Host OwnOnly"), "{start}");
    assert!(start.contains("handles: false"), "{start}");
    assert_eq!(front_end.ask("parent"), "true", "the worker has cloned it itself");
    assert_eq!(front_end.ask("read file"), "0 content", "the user's own id is the worker's 0");
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(daemon.pid(), kind), namespace(daemon.worker_pid(), kind), "{kind}");
    }
    drop(front_end);
    let end = daemon.end();
    assert_eq!(end.code, Some(0), "{}", end.log);
    assert!(place.leftovers().is_empty());

    let daemon = place.start_as_user(&["--uid-map=:0:54321:1:", "--gid-map=:0:54321:1:"]);
    let mut front_end = daemon.connect();
    assert!(front_end.ask("start").starts_with("Directory Host Mapped"));
    assert_eq!(front_end.ask("read file"), "0 content");
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));

    let daemon = place.start_as_user(&["--sandbox=none", "--modcaps=+mknod"]);
    assert!(daemon.log().contains("own mount of the share: missing"), "{}", daemon.log());
    assert!(daemon.log().contains("--modcaps=+mknod has no effect"), "{}", daemon.log());
    let mut front_end = daemon.connect();
    assert_eq!(front_end.ask("read file"), "54321 content");
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));

    let mut mandatory = place.served(&["--inode-file-handles=mandatory"]);
    let output = mandatory.uid(54_321).gid(54_321).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--inode-file-handles=mandatory, but"));
    assert!(place.leftovers().is_empty());
}

fn inherited_socket() {
    let place = Place::new();
    let path = place.path("inherited.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let number = listener.as_raw_fd();
    let mut command = place.command(&["--fd", "9", "-o"]);
    command.arg(format!("source={}", place.path("share").display()));
    // SAFETY: dup2 is async-signal-safe, and makes a fd that is not closed on exec.
    unsafe {
        command
            .pre_exec(move || nix::errno::Errno::result(libc::dup2(number, 9)).map(drop).map_err(Into::into));
    }
    let daemon = Daemon::wait_ready(command, path.clone());
    assert!(daemon.log().contains("-o is deprecated"), "{}", daemon.log());
    drop(listener);
    let mut front_end = daemon.connect();
    assert_eq!(front_end.ask("reopen file"), "true");
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));
    assert!(path.exists(), "it is not ours to remove");

    let output = place.command(&["--fd", "9", "--shared-dir", "/"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--fd 9 is not an open file descriptor"));
}

fn device_nodes() {
    let place = Place::new();
    let daemon = place.start(&["--modcaps=+mknod"]);
    let mut front_end = daemon.connect();
    assert_eq!(front_end.ask("device disk"), "made");
    let made = fs::symlink_metadata(place.path("share/disk")).unwrap();
    assert!(made.file_type().is_block_device());
    assert_eq!((made.uid(), made.gid()), (0, 3), "through the id map and back");
    assert_eq!(made.permissions().mode() & 0o7777, 0o600);
    assert_eq!(made.rdev(), libc::makedev(7, 300));
    assert_eq!(front_end.ask("device disk"), format!("error: {}", nix::errno::Errno::EEXIST));
    assert_eq!(front_end.ask("reopen disk"), "true");
    assert_eq!(status(daemon.pid())["CapEff"], "0000000000000004", "nothing of it stays effective");
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));
}

fn trusted_attributes() {
    let place = Place::new();
    let daemon = place.start(&["--modcaps=+sys_admin", "--xattr"]);
    let mut front_end = daemon.connect();
    assert_eq!(front_end.ask("xattr v"), r#"Value(b"v") Names(b"trusted.test\x00")"#);
    assert_eq!(status(daemon.pid())["CapEff"], "0000000000000004", "nothing of it stays effective");
    drop(front_end);
    assert_eq!(daemon.end().code, Some(0));

    let daemon = place.start(&["--modcaps=+sys_admin", "--xattrmap=:map::user.v.:"]);
    let refused = daemon.connect().ask("xattr v");
    assert_eq!(refused, format!("error: {}", nix::errno::Errno::EPERM));
    assert_eq!(daemon.end().code, Some(0));
}

fn not_enabled() {
    let place = Place::new();
    let daemon = place.start(&["--inode-file-handles=never"]);
    assert_eq!(daemon.connect().ask("reopen file"), "");
    let end = daemon.end();
    assert_eq!(end.code, Some(1));
    assert!(end.log.contains("request Seal, which is not enabled"), "{}", end.log);
}

fn single_file() {
    let place = Place::new();
    let mut command = place.command(&["--shared-dir"]);
    command.arg(place.path("share/file")).arg("--socket-path").arg(place.socket());
    let daemon = Daemon::wait_ready(command, place.socket());
    let start = daemon.connect().ask("start");
    assert!(start.starts_with("RegularFile Idmapped") && start.contains("handles: false"), "{start}");
    assert_eq!(daemon.end().code, Some(0));
}

/// Root without CAP_DAC_OVERRIDE may not write in a user's directory: the capability is kept for the end.
fn foreign_directory() {
    let place = Place::new();
    std::os::unix::fs::chown(place.path("run"), Some(54_321), Some(54_321)).unwrap();
    let daemon = place.start(&[]);
    let broker = status(daemon.pid());
    assert_eq!((&*broker["CapPrm"], &*broker["CapEff"]), ("0000000000000006", "0000000000000004"));
    drop(daemon.connect());
    assert_eq!(daemon.end().code, Some(0));
    assert!(place.leftovers().is_empty());
}

fn start_errors() {
    let place = Place::new();
    let fails = |args: &[&str], words: &str| {
        let mut command = place.command(args);
        let output = command.arg("--socket-path").arg(place.socket()).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(words), "{log}");
        assert!(place.leftovers().is_empty(), "{words}");
    };
    fails(&["--shared-dir", "/no/such/directory"], "cannot open the shared directory /no/such/directory");
    fails(&["--shared-dir", "/dev/null"], "neither a directory nor a regular file");
    fails(&["--shared-dir", "/", "--socket-group", "no such group"], "there is no group no such group");
    fails(&["--shared-dir", "/sys", "--worker-ids=shifted"], "--worker-ids=shifted is not possible here");
}
