//! The process that follows mounts: when there is one, what it may do, and how it ends.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bounded::bounded;
use tests::daemon::{Daemon, PATIENCE};
use tests::frontend::DeviceConfig;
use tests::fuse::Session;
use tests::mounts::MountsBelow;
use tests::processes::PidFd;
use tests::procfs::{NAMESPACES, OpenFd, Status, namespace, open_fds};
use tests::share::{Share, TempDir};

use super::follow::{comes, eventually, exists, goes, tmpfs};
use super::{LIMIT, command};

const NAME: &str = "virtiofsd-follower";

fn follower(daemon: &Daemon) -> i32 {
    let all = daemon.started_as(NAME);
    let [one] = all[..] else { panic!("not one follower: {all:?}") };
    one
}

/// The daemon's follower once it is confined, which is before it shows the first mount.
fn working(share: &Share, session: &mut Session) -> i32 {
    tmpfs(&share.join("shown"));
    share.write("shown/file", "");
    comes(session.client(), "shown/file");
    follower(&session.daemon)
}

/// A directory that is a mount of its own, with this propagation.
struct Mounted(TempDir);

impl Mounted {
    fn new(propagation: MsFlags) -> Mounted {
        let dir = TempDir::on_disk();
        let none = None::<&str>;
        mount(Some(dir.path()), dir.path(), none, MsFlags::MS_BIND, none).unwrap();
        mount(none, dir.path(), none, propagation, none).unwrap();
        Mounted(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn serve(directory: &Path, args: &[&str]) -> Session {
    let ours = tests::peers::Implementation::Ours;
    let command = tests::daemon::DaemonCommand::serving(&ours, directory).args(args);
    Session::start(command, DeviceConfig::default())
}

/// How many followers a daemon has once it serves: it starts one before it waits for a front end.
fn followers(directory: &Path, args: &[&str]) -> usize {
    let session = serve(directory, args);
    session.daemon.wait_for_stderr("Client connected", 1);
    let count = session.daemon.started_as(NAME).len();
    let (status, stderr) = session.finish();
    assert!(status.success(), "{stderr}");
    assert!(!stderr.contains("follow"), "{stderr}");
    count
}

#[test]
fn there_is_one_where_mounts_would_come_by_themselves() {
    bounded(LIMIT, || {
        let private = Mounted::new(MsFlags::MS_PRIVATE);
        let shared = Mounted::new(MsFlags::MS_SHARED);
        let auto = "--follow-mounts=auto";
        assert_eq!(followers(private.path(), &[]), 0);
        assert_eq!(followers(private.path(), &[auto]), 0);
        assert_eq!(followers(private.path(), &["--follow-mounts=always"]), 1);
        assert_eq!(followers(shared.path(), &[]), 1);
        assert_eq!(followers(shared.path(), &["--follow-mounts=never"]), 0);
        for sandbox in ["--sandbox=chroot", "--sandbox=none"] {
            assert_eq!(followers(shared.path(), &[sandbox]), 0, "{sandbox}");
        }
        let file = shared.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(followers(&file, &[]), 0);
    });
}

/// As Kata Containers has it: it serves a slave of the directory in which it mounts.
#[test]
fn mounts_come_by_way_of_a_slave() {
    bounded(LIMIT, || {
        let master = Mounted::new(MsFlags::MS_SHARED);
        let slave = TempDir::on_disk();
        let none = None::<&str>;
        mount(Some(master.path()), slave.path(), none, MsFlags::MS_BIND, none).unwrap();
        mount(none, slave.path(), none, MsFlags::MS_SLAVE, none).unwrap();
        let mut session = serve(slave.path(), &[]);
        let client = session.client();
        tmpfs(&master.path().join("container"));
        fs::write(master.path().join("container/file"), "").unwrap();
        comes(client, "container/file");
        umount(&master.path().join("container")).unwrap();
        goes(client, "container/file");
        assert!(session.finish().0.success());
        umount(slave.path()).unwrap();
    });
}

#[test]
fn always_is_an_error_where_it_cannot_be() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        let file = share.write("file", "");
        let fails = |directory: &Path, args: &[&str], why: &str| {
            let ours = tests::peers::Implementation::Ours;
            let command = tests::daemon::DaemonCommand::serving(&ours, directory).args(args);
            let mut daemon = command.args(["--follow-mounts=always"]).start();
            assert_eq!(daemon.wait(PATIENCE).code(), Some(1));
            assert!(daemon.stderr().contains("--follow-mounts=always"), "{}", daemon.stderr());
            assert!(daemon.stderr().contains(why), "{}", daemon.stderr());
        };
        fails(share.path(), &["--sandbox=chroot"], "--sandbox=namespace");
        fails(share.path(), &["--sandbox=none"], "--sandbox=namespace");
        fails(&file, &[], "a single file");
    });
}

#[test]
fn an_ordinary_user_has_none() {
    bounded(LIMIT, || {
        let share = super::shares::share_of_nobody();
        let mut daemon = super::shares::as_nobody(share.path()).args(["--follow-mounts=always"]).start();
        assert_eq!(daemon.wait(PATIENCE).code(), Some(1));
        assert!(daemon.stderr().contains("CAP_SYS_ADMIN"), "{}", daemon.stderr());
        let session = Session::start(super::shares::as_nobody(share.path()), DeviceConfig::default());
        assert!(session.daemon.started_as(NAME).is_empty());
        assert!(session.finish().0.success());
    });
}

/// As in the systemd unit without its drop-in: the log says what is missing, and that is all.
#[test]
fn without_the_capability_to_enter_there_is_none() {
    bounded(LIMIT, || {
        let shared = Mounted::new(MsFlags::MS_SHARED);
        let ours = tests::peers::Implementation::Ours;
        let without = || {
            tests::daemon::DaemonCommand::new("setpriv")
                .args(["--bounding-set=-sys_chroot", "--"])
                .args([ours.binary()])
                .args(ours.share_arguments(shared.path()))
        };
        let session = Session::start(without(), DeviceConfig::default());
        session.daemon.wait_for_stderr("is not shown: it takes CAP_SYS_CHROOT", 1);
        assert!(session.daemon.started_as(NAME).is_empty());
        assert!(session.finish().0.success());
        let mut daemon = without().args(["--follow-mounts=always"]).start();
        assert_eq!(daemon.wait(PATIENCE).code(), Some(1));
        assert!(daemon.stderr().contains("CAP_SYS_CHROOT"), "{}", daemon.stderr());
    });
}

#[test]
fn it_has_what_it_needs_and_nothing_else() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        let args = ["--follow-mounts=always"];
        let mut session = Session::start(command(&share).args(args), DeviceConfig::default());
        let pid = working(&share, &mut session);
        let status = Status::of(pid);
        assert_eq!((status.field("NoNewPrivs"), status.field("Seccomp")), ("1", "2"));
        assert_eq!(status.field("Threads"), "1");
        // CAP_DAC_READ_SEARCH, CAP_SYS_CHROOT, CAP_SYS_ADMIN
        let needed = 1 << 2 | 1 << 18 | 1 << 21;
        for (set, expected) in
            [("CapInh", 0), ("CapPrm", needed), ("CapEff", needed), ("CapBnd", needed), ("CapAmb", 0)]
        {
            assert_eq!(status.capabilities(set), expected, "{set}");
        }
        // It belongs where the host's mounts are, and has nothing else of the host or of the worker.
        let (broker, worker) = (session.daemon.pid(), session.daemon.worker());
        eventually("it is back", || namespace(pid, "mnt") == namespace(broker, "mnt"));
        for kind in NAMESPACES {
            let is_host_s = namespace(pid, kind) == namespace(broker, kind);
            assert_eq!(is_host_s, ["user", "mnt"].contains(&kind), "{kind}");
            assert_ne!(namespace(pid, kind), namespace(worker, kind), "{kind}");
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        for limit in ["Max core file size", "Max processes", "Max file size"] {
            let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
            assert_eq!(line[limit.len()..].split_whitespace().next(), Some("0"), "{line}");
        }
        // No socket, no file; of the host's mounts none that could not be unmounted then. (It may still be looking at what
        // it has done.)
        let kind = |fd: &OpenFd| {
            let link = fd.link.display().to_string();
            let kind = match link.as_str() {
                _ if fd.number < 2 => "null",
                _ if link.starts_with("pipe:") => "log",
                _ if link.starts_with("mnt:") || link.starts_with("user:") => "namespace",
                _ if link.ends_with("/mountinfo") => "list",
                _ if link.starts_with("/proc/") => "proc",
                _ if link == share.path().display().to_string() => "share",
                // Mounts of the worker, whose paths begin at its root.
                "/" | "/shown" => "copy",
                other => other,
            };
            kind.to_owned()
        };
        let expected = "copy copy list log log namespace namespace namespace null null proc proc share";
        eventually(expected, || {
            let mut kinds: Vec<String> = open_fds(pid).iter().map(kind).collect();
            kinds.sort();
            kinds.join(" ") == expected
        });
        umount(&share.join("shown")).unwrap();
        goes(session.client(), "shown/file");
        assert!(session.finish().0.success());
    });
}

#[test]
fn it_ends_with_the_broker_however_that_ends() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let args = ["--follow-mounts=always"];
            let mut session = Session::start(command(&share).args(args), DeviceConfig::default());
            let pid = working(&share, &mut session);
            let end = PidFd::open(pid.cast_unsigned()).unwrap();
            umount(&share.join("shown")).unwrap();
            // Waits for all that hold its standard error, too.
            session.daemon.stop(signal);
            assert!(end.ended_within(PATIENCE).unwrap(), "{signal}");
        }
    });
}

#[test]
fn the_daemon_goes_on_without_it() {
    bounded(LIMIT, || {
        let share = Share::new();
        let _mounts = MountsBelow(share.path());
        let args = ["--follow-mounts=always"];
        let mut session = Session::start(command(&share).args(args), DeviceConfig::default());
        let pid = working(&share, &mut session);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        session.daemon.wait_for_stderr("new mounts are no longer shown", 1);
        let client = session.client();
        assert!(exists(client, "shown/file"));
        tmpfs(&share.join("later"));
        share.write("later/file", "");
        assert!(exists(client, "later") && !exists(client, "later/file"));
        for name in ["shown", "later"] {
            umount(&share.join(name)).unwrap();
        }
        let (status, stderr) = session.finish();
        assert!(status.success(), "{status}\n{stderr}");
        assert_eq!(stderr.matches("the process that follows mounts").count(), 1, "{stderr}");
    });
}
